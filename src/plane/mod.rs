//! (to be written)

use std::time::Duration;

use arrow::record_batch::RecordBatch;

use crate::ingest::IdempotencyKey;
use crate::model::OrgName;
use crate::query::OrgView;
use crate::rollup::RunningTotals;

/// The control plane's state.
#[derive(Debug)]
pub struct Plane {}

/// What became of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    /// Samples in the batch.
    pub accepted: usize,
    /// Whether the batch had been stored before, under the same key.
    pub duplicate: bool,
}

/// Memory set aside for a request's body until its samples are acknowledged; dropped, it is free again.
#[derive(Debug)]
pub struct Admission {}

/// Why the control plane could not do what was asked.
#[derive(Debug, thiserror::Error)]
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
    /// A fault of the program itself: 500.
    #[error("internal error: {0}")]
    Internal(String),
}

/// Whether the plane can serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// Replaying the WAL.
    Replaying {
        /// WAL objects applied so far.
        done: u64,
        /// WAL objects to apply in all.
        total: u64,
    },
    /// Serving.
    Ready,
    /// Draining before it stops.
    Draining,
}

impl Plane {
    /// Sets memory aside for a body of `bytes` before it is read (invariant I7).
    ///
    /// # Errors
    /// [`PlaneError::Busy`] when there is no room.
    pub fn admit(&self, bytes: usize) -> Result<Admission, PlaneError> {
        let _ = bytes;
        Err(PlaneError::Internal(String::new()))
    }

    /// Makes a canonical batch durable and visible, then says so.
    ///
    /// # Errors
    /// See [`PlaneError`]; after an error the batch is stored at most once, and a retry under the same key is safe.
    pub async fn append(
        &self,
        org: &OrgName,
        batch: RecordBatch,
        key: Option<IdempotencyKey>,
        admission: Admission,
    ) -> Result<Ack, PlaneError> {
        let _ = (org, batch, key, admission);
        Err(PlaneError::Internal(String::new()))
    }

    /// Reads the running totals, after everything that any node acknowledged before this call has been applied.
    ///
    /// # Errors
    /// See [`PlaneError`].
    pub async fn with_totals<R>(&self, org: &OrgName, read: impl FnOnce(&RunningTotals) -> R) -> Result<R, PlaneError> {
        let _ = (org, read);
        Err(PlaneError::Internal(String::new()))
    }

    /// One consistent view of an org's tables, after catching up as [`Plane::with_totals`] does.
    ///
    /// # Errors
    /// See [`PlaneError`].
    pub async fn view(&self, org: &OrgName) -> Result<OrgView, PlaneError> {
        let _ = org;
        Err(PlaneError::Internal(String::new()))
    }

    /// Whether it can serve.
    pub fn readiness(&self) -> Readiness {
        Readiness::Ready
    }

    /// Stops taking samples, commits what is under way and flushes every buffer to the tables.
    ///
    /// # Errors
    /// When the store refuses; what was acknowledged is still safe in the WAL.
    pub async fn drain(&self) -> Result<(), PlaneError> {
        Ok(())
    }
}
