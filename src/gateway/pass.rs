//! What may reach a server: a type that says why.
//!
//! A request to a server carries a [`Pass`], and there are two ways to one: a permit that has been put on the record
//! ([`Recorded`], made by [`record`] alone, once the audit stream has taken the event), or being a message that the
//! gateway makes itself, which no caller decides on ([`Pass::own`]: handshakes, pings, its own lists, cancellations,
//! the end of subscriptions). So no path through the code dispatches what was not recorded.

use super::export::{AuditEvent, Emitters, NotRecorded};
use crate::config::OnFailure;

/// That an event is on the record: durably where audit may not fail, in memory where it may.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Recorded(());

/// That a message may be sent to a server.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pass(());

/// Puts a decision on the record.
///
/// # Errors
/// When it is not on it, and audit is set to fail closed.
pub(crate) async fn record(
    emitters: &Emitters,
    on_failure: OnFailure,
    event: &AuditEvent<'_>,
) -> Result<Recorded, NotRecorded> {
    match on_failure {
        OnFailure::Closed => emitters.audit(event).await?,
        OnFailure::Open => emitters.audit_soon(event),
    }
    Ok(Recorded(()))
}

impl Pass {
    /// For what a recorded permit allows.
    pub(crate) fn permitted(_: Recorded) -> Self {
        Self(())
    }

    /// For a message that the gateway makes itself.
    pub(crate) fn own() -> Self {
        Self(())
    }
}
