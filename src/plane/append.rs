//! From a canonical batch to its acknowledgement: memory is admitted, the batch is encoded and handed to the committer,
//! and the request waits for its fate.
//!
//! - **I1** The answer comes from the committer, after the batch is durable, confirmed and applied. A request that
//!   stops waiting ([`APPEND_TIMEOUT`]) is answered 503, and its batch may yet be stored: a retry under the same
//!   identity is safe.
//! - **I7** A batch and its encoding are admitted until it is answered, and a full queue answers
//!   [`PlaneError::Busy`].
//!
//! Nothing here is kept: after a crash, a batch that was not acknowledged is sent again by its client.

use std::sync::Arc;
use std::time::Duration;

use arrow::record_batch::RecordBatch;
use chrono::{DateTime, Utc};
use tokio::sync::oneshot;

use super::commit::{self, Message, Pending};
use super::{Ack, Admission, Plane, PlaneError, not_removed};
use crate::ingest::{BatchId, RowKind};
use crate::log::{Rows, SectionKind};
use crate::model::OrgName;
use crate::state::Budget;
use crate::state::dedup::Decision;

/// How long a batch waits to become durable before its sender is answered 503.
const APPEND_TIMEOUT: Duration = Duration::from_secs(25);
/// Batches of at least this many rows are encoded by the request that brought them, in parallel; smaller ones are put
/// together by the committer.
const ENCODE_ALONE_ROWS: usize = 512;

impl Plane {
    /// Sets memory aside for a body of `bytes` before it is read, waiting a while for room (invariant I7).
    ///
    /// # Errors
    /// [`PlaneError::Busy`] when there is no room in time.
    pub async fn admit(&self, bytes: usize) -> Result<Admission, PlaneError> {
        Budget::admit(&self.budget, bytes).await
    }

    /// Whether a batch was stored before, as far as this node has applied the log: to be asked before the batch is
    /// validated. That it was not is decided for good when it is committed.
    ///
    /// # Errors
    /// [`PlaneError::KeyReused`], [`PlaneError::SequenceConflict`], and as [`Plane::append`].
    pub async fn is_stored(&self, name: &OrgName, id: &BatchId) -> Result<bool, PlaneError> {
        self.serving()?;
        let org = self.org(name).await?;
        let state = org.state.read();
        if state.removed.is_some() {
            return Err(PlaneError::OrgRemoved(name.to_string()));
        }
        match state.dedup.decide(id) {
            Decision::Fresh | Decision::FreshAfterGap => Ok(false),
            Decision::Duplicate => Ok(true),
            refused => Err(commit::refusal(refused, Some(id), &state.dedup)),
        }
    }

    /// From when on keys are known, where that is less than 24 hours ago.
    pub fn keys_since(&self, name: &OrgName) -> Option<DateTime<Utc>> {
        let org = self.registry.loaded(name)?;
        let since = org.state.read().dedup.keys_since();
        since.and_then(DateTime::from_timestamp_micros)
    }

    /// Makes a canonical batch durable and visible, then says so.
    ///
    /// # Errors
    /// See [`PlaneError`]; after an error the batch is stored at most once, and a retry under the same identity is
    /// safe.
    pub async fn append(
        self: &Arc<Self>,
        org: &OrgName,
        kind: RowKind,
        batch: RecordBatch,
        id: Option<BatchId>,
        admission: Admission,
    ) -> Result<Ack, PlaneError> {
        self.serving()?;
        not_removed(&*self.org(org).await?)?;
        if !self.announced.lock().contains(org) {
            let (plane, org) = (Arc::clone(self), org.clone());
            tokio::spawn(async move {
                if let Err(e) = plane.announce_start_to(&org, true).await {
                    tracing::warn!(%org, error = %e, "the ledger does not say that this node starts");
                }
            });
        }
        self.append_while_running(org, kind, batch, id, admission).await
    }

    /// As [`Plane::append`], also while requests are not served.
    pub(super) async fn append_while_running(
        &self,
        name: &OrgName,
        kind: RowKind,
        batch: RecordBatch,
        id: Option<BatchId>,
        mut admission: Admission,
    ) -> Result<Ack, PlaneError> {
        let org = self.org(name).await?;
        org.touch();
        // The batch itself and its encoding, both held until the acknowledgement.
        admission.wait_to_grow_to(batch.get_array_memory_size().saturating_mul(2)).await?;
        let kind = match kind {
            RowKind::Sample => SectionKind::Samples,
            RowKind::Event => SectionKind::Events,
        };
        // A large batch takes a while: not on a thread that others wait for.
        let mut alone = None;
        if batch.num_rows() >= ENCODE_ALONE_ROWS {
            let (batch, remote) = (batch.clone(), self.node.settings.remote);
            let prepare = move || -> Result<_, PlaneError> {
                let digest = commit::digest(kind, &batch)?;
                Ok((Rows::new(kind, &batch, remote)?, digest))
            };
            let prepared = tokio::task::spawn_blocking(prepare).await;
            alone = Some(prepared.map_err(|e| PlaneError::Internal(e.to_string()))??);
        }
        let (reply, answer) = oneshot::channel();
        let arrived = tokio::time::Instant::now();
        let pending = Pending { org: name.clone(), kind, batch, alone, id, payloads: None, admission, reply, arrived };
        self.commit(pending, answer).await
    }

    /// Hands a batch to the committer, and waits for its fate.
    pub(super) async fn commit(
        &self,
        pending: Pending,
        answer: oneshot::Receiver<Result<Ack, PlaneError>>,
    ) -> Result<Ack, PlaneError> {
        let queue = self.queue.get().ok_or_else(|| PlaneError::unavailable("the control plane is starting"))?;
        queue
            .try_send(Message::Commit(Box::new(pending)))
            .map_err(|_| PlaneError::busy("too many batches wait to be committed"))?;
        match tokio::time::timeout(APPEND_TIMEOUT, answer).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(PlaneError::unavailable("it is not known whether the batch was stored")),
            Err(_) => Err(PlaneError::unavailable("the store has not taken the batch in time, and may yet")),
        }
    }
}
