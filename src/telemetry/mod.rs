//! What the program tells of itself: its own metrics, logs and traces.
//!
//! | module | holds |
//! |---|---|
//! | [`metrics`] | the control plane's own metrics, served at `/metrics` |

pub mod metrics;
mod process;
