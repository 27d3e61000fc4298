//! The one integration-test binary: each module is one part of the specification.
