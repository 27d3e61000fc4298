//! What the plane answers when it cannot do what was asked.

use std::time::Duration;

use crate::storage::StorageError;

/// Why the control plane could not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PlaneError {
    /// No org of that name.
    #[error("no org named {0}")]
    UnknownOrg(String),
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

    /// The log was trimmed while this node slept; it starts again from the snapshots.
    pub(crate) fn left_behind() -> Self {
        Self::unavailable("this node was left behind by the log's trimming and is catching up")
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
            e => Self::unavailable(e.to_string()),
        }
    }
}
