//! Streams 1 and 3 on their way out: samples and audit events.
//!
//! | module | holds |
//! |---|---|
//! | [`sample`] | what one call leaves for metrics and SQL |
//! | [`event`] | one step that the ledger has to know |

mod event;
mod sample;
mod text;

pub use event::AuditEvent;
pub use sample::{CallSample, ErrorHash};
