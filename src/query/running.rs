//! One query from its text to its last batch, as the task that runs it holds it.
//!
//! Its place goes back when the task ends, not when the client leaves: a query that does not stop at once still counts.
//! It goes back for a while when the reader is slow, see `admission`. Time that a query waits for its reader or for a
//! place does not count as its own, but all of it together has a limit, and so has the answer.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use datafusion::execution::memory_pool::MemoryPool;
use datafusion::physical_plan::{SendableRecordBatchStream, execute_stream};
use futures::{FutureExt, StreamExt};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};

use super::admission::{Admission, Party, Place};
use super::explain::{Explain, explained};
use super::scanned::{Reads, Scanned};
use super::session::Sessions;
use super::usage::{Usage, too_much};
use super::view::OrgView;
use super::watchdog::Ticket;
use super::{QueryError, SqlLimits, SqlRequest, guard, plan};

/// How long a reader may leave a batch unread before the query gives its place to others.
const SLOW: Duration = Duration::from_secs(1);

/// What travels from the query's task to its reader: a batch, the end, or a failure. A channel that closes before the
/// end means a query that died without a word.
pub(super) type Item = Result<Option<RecordBatch>, QueryError>;

/// A query.
pub(super) struct Running {
    pub(super) sessions: Arc<Sessions>,
    pub(super) limits: Arc<SqlLimits>,
    pub(super) admission: Arc<Admission>,
    pub(super) view: OrgView,
    pub(super) request: SqlRequest,
    pub(super) party: Party,
    pub(super) usage: Arc<Usage>,
    /// Rows handed over.
    pub(super) rows: Arc<AtomicUsize>,
    pub(super) memory: Arc<dyn MemoryPool>,
    /// Where its columns are sent; `None` once they are.
    pub(super) schema: Option<oneshot::Sender<Result<SchemaRef, QueryError>>>,
    pub(super) items: mpsc::Sender<Item>,
    /// None while it is parked.
    pub(super) place: Option<Place>,
    /// When the answer must have been read.
    pub(super) ends: Instant,
}

impl Running {
    /// Runs it until it ends, is cancelled, or its reader is gone.
    pub(super) async fn run(mut self, ticket: Ticket) {
        let items = self.items.clone();
        let outcome = tokio::select! {
            biased;
            () = items.closed() => return,
            () = ticket.stopped() => Err(too_much()),
            outcome = AssertUnwindSafe(self.answer()).catch_unwind() => outcome.unwrap_or_else(|_| {
                tracing::error!("a query panicked");
                Err(QueryError::Internal)
            }),
        };
        let last = match (outcome, self.schema.take()) {
            (Err(error), Some(schema)) => {
                // Ignore the error: the reader has left.
                drop(schema.send(Err(error)));
                return;
            }
            (Err(error), None) => Err(error),
            (Ok(()), _) => Ok(None),
        };
        // Nothing is computed any more.
        self.place = None;
        // Ignore the error: the reader has left.
        drop(timeout_at(self.ends, items.send(last)).await);
    }

    /// Plans, then hands batches on until the end.
    async fn answer(&mut self) -> Result<(), QueryError> {
        let limit = self.limits.time;
        let mut deadline = Instant::now() + limit;
        let mut batches = timeout_at(deadline, self.start()).await.map_err(|_| QueryError::Timeout { limit })??;
        if let Some(schema) = self.schema.take()
            && schema.send(Ok(batches.schema())).is_err()
        {
            return Ok(());
        }
        let mut rows = 0;
        while let Some(batch) = timeout_at(deadline, batches.next()).await.map_err(|_| QueryError::Timeout { limit })? {
            let batch = batch.map_err(|error| QueryError::from_datafusion(&error))?;
            rows += batch.num_rows();
            if rows > self.limits.rows {
                return Err(QueryError::TooManyRows { limit: self.limits.rows });
            }
            if batch.num_rows() == 0 {
                continue;
            }
            let handed_over = Instant::now();
            if !self.hand_over(batch).await? {
                return Ok(());
            }
            deadline += handed_over.elapsed();
        }
        Ok(())
    }

    /// Hands a batch to the reader; `false` when it is gone.
    async fn hand_over(&mut self, batch: RecordBatch) -> Result<bool, QueryError> {
        let items = self.items.clone();
        self.rows.fetch_add(batch.num_rows(), Ordering::Relaxed);
        if let Ok(room) = timeout(SLOW, items.reserve()).await {
            let Ok(room) = room else { return Ok(false) };
            room.send(Ok(Some(batch)));
            return Ok(true);
        }
        let unread = QueryError::Unread { limit: self.limits.answer_time };
        self.place = None;
        let parked = self.admission.park(&self.party.org).ok_or(QueryError::SlowReader)?;
        let room = timeout_at(self.ends, items.reserve()).await.map_err(|_| unread.clone())?;
        let Ok(room) = room else { return Ok(false) };
        room.send(Ok(Some(batch)));
        let left = self.ends.saturating_duration_since(Instant::now());
        self.place = Some(self.admission.enter(&self.party, left).await.ok_or(unread)?);
        drop(parked);
        Ok(true)
    }

    async fn start(&self) -> Result<SendableRecordBatchStream, QueryError> {
        let checked = guard::check(&self.request.query, &self.request.params)?;
        let explain = checked.explain;
        let reads = Reads {
            limits: Arc::clone(&self.limits),
            org: self.party.org.clone(),
            runs: explain != Some(Explain::Plan),
        };
        let mentions = |table: &str| checked.tables.contains(table);
        let mut state = self.sessions.open(&self.view, Arc::clone(&self.memory), reads, mentions).await?;
        let parts = self.limits.threads / self.admission.running_of(&self.party.org).max(1);
        *state.config_mut() = state.config().clone().with_target_partitions(parts.max(1));
        let (plan, context) = plan::physical(state, checked, &self.usage).await?;
        // What a plan reads is shown however much it is; only what runs is bounded.
        if explain != Some(Explain::Plan) {
            Scanned::of(plan.as_ref()).within(&self.limits, &self.party.org)?;
        }
        let rows = match explain {
            Some(explain) => explained(explain, plan, context),
            None => execute_stream(plan, context),
        };
        rows.map_err(|error| QueryError::from_datafusion(&error))
    }
}
