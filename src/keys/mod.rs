//! The private keys of sealed payloads: wrapped by a KEK that is not in the store, kept, unwrapped for a view,
//! destroyed.
//!
//! | file | holds |
//! |---|---|
//! | `kek` | what wraps: the interface, its errors |
//! | `file` | a KEK in a file or in the environment |
//! | `vault` | a key of Vault's or OpenBao's transit engine |
//! | `aws_kms` | a key of AWS KMS |
//! | `place` | where wrapped keys lie, and that what is deleted there is gone |
//! | `service` | making, unwrapping, wrapping anew, destroying |
//!
//! A wrapped key is the object `<org>/<epoch>`, created if absent: of nodes that make the same key at once all take the
//! first one's. Which key counts is said by the org's ledger, and every key that was unwrapped is held against what
//! that says: an object that merely lies there is not believed.
//!
//! Unwrapped keys are kept for five minutes at most, on locked pages, and zeroized.

mod aws_kms;
mod file;
mod kek;
mod place;
mod service;
mod vault;

pub use kek::{Before, Kek, KekError, Rotation, Wrapped};
pub use place::KeyPlace;
pub use service::{KeyError, KeyService, Made, Rotated, survey};
