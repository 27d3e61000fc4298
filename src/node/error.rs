//! What the plane answers when it cannot do what was asked.

use std::time::Duration;

use crate::storage::StorageError;

/// Why the control plane could not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PlaneError {
    /// No org of that name.
    #[error("no org named {0}")]
    UnknownOrg(String),
    /// The org is removed: 404 with code `org_removed`.
    #[error(
        "org {0} is removed; until all of it is deleted, an operator can bring it back with POST /v1/orgs/{0}/restore"
    )]
    OrgRemoved(String),
    /// The org's ledger is on hold, and nothing of it may go: 409 with code `on_hold`.
    #[error("the ledger of org {org} is on hold since entry {entry}, so nothing of it may go; release the hold first")]
    OnHold {
        /// Which org.
        org: String,
        /// The entry that put it on hold.
        entry: u64,
    },
    /// Buffers are full: 429 with `Retry-After`.
    #[error("{reason}; retry in {} s", retry_after.as_secs())]
    Busy {
        /// What is full.
        reason: String,
        /// When to come again.
        retry_after: Duration,
    },
    /// The store did not take or give what it should, or the process is starting or stopping: 503 with `Retry-After`.
    #[error("{reason}; retry in {} s", retry_after.as_secs())]
    Unavailable {
        /// What happened.
        reason: String,
        /// When to come again.
        retry_after: Duration,
    },
    /// The org's data is damaged; it is stopped until an operator mends it: 503 with code `org_stopped`.
    #[error("org {org} is stopped: {reason}")]
    OrgStopped {
        /// Which org.
        org: String,
        /// The exact damage: object and what is wrong with it.
        reason: String,
    },
    /// What is stored is damaged, and no single org can be named for it: 503 with code `store_damaged`.
    #[error("{0}")]
    Damaged(String),
    /// The key was used before, for another body: 422 with code `key_reused`.
    #[error("this Idempotency-Key was used for another body; a key names one batch, so send another key with this one")]
    KeyReused,
    /// The number of the batch cannot be compared with what is remembered of its lane: 409 with code
    /// `sequence_conflict`.
    #[error(
        "batch {number} of this lane cannot be told from what was stored before (its last number is {last}); \
         send it again under a new emitter id"
    )]
    SequenceConflict {
        /// The batch's number.
        number: u64,
        /// The last number of the lane.
        last: u64,
    },
    /// Sealed payloads are not taken, and will not be: 422 with this code.
    #[error("{reason}")]
    PayloadRefused {
        /// The stable code.
        code: &'static str,
        /// What is wrong, and with which of them.
        reason: String,
    },
    /// What unwraps payload keys is away: 503 with code `key_service_unavailable`.
    #[error("{0}")]
    KeyServiceUnavailable(String),
    /// The configuration does not fit what is stored: the operator must change it. The control plane does not start.
    #[error("{0}")]
    Misconfigured(String),
    /// A fault of the program itself: 500.
    #[error("internal error: {0}")]
    Internal(String),
}

impl PlaneError {
    /// Something is full that empties by itself within a second or two.
    pub(crate) fn busy(reason: impl Into<String>) -> Self {
        Self::Busy { reason: reason.into(), retry_after: Duration::from_secs(1) }
    }

    /// Something is not there that should come back.
    pub(crate) fn unavailable(reason: impl Into<String>) -> Self {
        Self::Unavailable { reason: reason.into(), retry_after: Duration::from_secs(2) }
    }
}

impl From<StorageError> for PlaneError {
    fn from(e: StorageError) -> Self {
        match e {
            StorageError::Unusable { .. } => Self::Misconfigured(e.to_string()),
            StorageError::Damaged { .. } => Self::Damaged(e.to_string()),
            e => Self::unavailable(e.to_string()),
        }
    }
}
