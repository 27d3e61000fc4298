//! The seam between what a query means and what runs it, and the engine that runs it in this process.

use std::fmt::{self, Debug};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use datafusion::physical_plan::{SendableRecordBatchStream, execute_stream};
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt, stream};
use object_store::ObjectStore;
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};

use super::formats::{HEAD_BYTES, HeadRoom};
use super::guard;
use super::session::Sessions;
use super::view::OrgView;
use super::watchdog::{Ticket, Watchdog, resident_bytes};
use super::workers::Workers;
use super::yielding::yielding;
use super::{QueryError, SqlLimits};

/// Batches that wait for the client before the query pauses.
const BATCHES_AHEAD: usize = 2;

/// How much longer than its time a query is waited for before it is given up without its own word.
const GRACE: Duration = Duration::from_secs(1);

/// A query as a client sends it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SqlRequest {
    /// One `SELECT`, `WITH` or `VALUES` statement.
    pub query: String,
    /// The values of `$1`, `$2` … or of each `?` in turn: strings, numbers, booleans, nulls.
    #[serde(default)]
    pub params: Vec<serde_json::Value>,
}

/// The answer to a query, on its way.
pub struct QueryResult {
    /// The columns.
    pub schema: SchemaRef,
    /// The rows, in batches of `schema`. It ends with `None` only when the answer is complete; a failure is an `Err` and the last item.
    /// Dropped, it stops the query.
    pub stream: BoxStream<'static, Result<RecordBatch, QueryError>>,
    /// Where the beginning of the answer's body may wait.
    pub room: HeadRoom,
}

impl Debug for QueryResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueryResult").field("schema", &self.schema).finish_non_exhaustive()
    }
}

/// What answers SQL over one org's tables.
#[async_trait]
pub trait Engine: Debug + Send + Sync + 'static {
    /// Starts a query; returns when its columns are known. Dropping the future or the answer stops it.
    ///
    /// # Errors
    /// See [`QueryError`]; errors that come later are in the stream.
    async fn query(&self, view: OrgView, request: SqlRequest) -> Result<QueryResult, QueryError>;

    /// How many queries run.
    fn running(&self) -> usize;
}

/// The engine that runs queries in this process, on DataFusion.
#[derive(Debug)]
pub struct LocalEngine {
    limits: SqlLimits,
    sessions: Arc<Sessions>,
    admission: Arc<Semaphore>,
    watchdog: Watchdog,
    workers: Workers,
    room: HeadRoom,
}

/// What travels from the query's task to its reader: a batch, the end, or a failure. A channel that closes before the end means a
/// query that died without a word.
type Item = Result<Option<RecordBatch>, QueryError>;

impl LocalEngine {
    /// An engine over the files of `store`.
    ///
    /// # Errors
    /// When threads or the spill folder cannot be had, or a compiled-in statement does not plan.
    pub fn new(store: Arc<dyn ObjectStore>, limits: SqlLimits) -> Result<Self, QueryError> {
        let start = |error: std::io::Error| {
            tracing::error!(%error, "the SQL engine cannot start its threads");
            QueryError::Internal
        };
        Ok(Self {
            sessions: Arc::new(Sessions::new(store, &limits)?),
            admission: Arc::new(Semaphore::new(limits.concurrency.max(1))),
            watchdog: Watchdog::start(limits.resident_bytes, resident_bytes).map_err(start)?,
            workers: Workers::start(limits.threads.max(limits.concurrency)).map_err(start)?,
            room: HeadRoom::new(HEAD_BYTES.saturating_mul(limits.concurrency.max(1))),
            limits,
        })
    }

    async fn admit(&self) -> Result<OwnedSemaphorePermit, QueryError> {
        match timeout(self.limits.queue_wait, Arc::clone(&self.admission).acquire_owned()).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) => Err(QueryError::Internal),
            Err(_) => Err(QueryError::Busy { limit: self.limits.concurrency, retry_after: Duration::from_secs(1) }),
        }
    }
}

#[async_trait]
impl Engine for LocalEngine {
    async fn query(&self, view: OrgView, request: SqlRequest) -> Result<QueryResult, QueryError> {
        guard::check_size(&request.query, self.limits.text_bytes)?;
        let permit = self.admit().await?;
        let (schema_sender, schema) = oneshot::channel();
        let (sender, receiver) = mpsc::channel(BATCHES_AHEAD);
        let query = Query {
            sessions: Arc::clone(&self.sessions),
            limits: self.limits.clone(),
            view,
            request,
            schema: Some(schema_sender),
            items: sender,
            _permit: permit,
        };
        self.workers.handle().ok_or(QueryError::Internal)?.spawn(query.run(self.watchdog.enter()));
        let patience = self.limits.time + GRACE;
        let schema = match timeout(patience, schema).await {
            Ok(Ok(known)) => known?,
            Ok(Err(_)) => return Err(QueryError::Internal),
            Err(_) => return Err(QueryError::Timeout { limit: self.limits.time }),
        };
        Ok(QueryResult { schema, stream: read(receiver, patience, self.limits.time), room: self.room.clone() })
    }

    fn running(&self) -> usize {
        self.watchdog.running()
    }
}

/// The reader's end: patient for as long as a query may take, then no longer, even if its thread does not come back.
fn read(
    receiver: mpsc::Receiver<Item>,
    patience: Duration,
    limit: Duration,
) -> BoxStream<'static, Result<RecordBatch, QueryError>> {
    stream::unfold(Some(receiver), move |receiver| async move {
        let mut receiver = receiver?;
        match timeout(patience, receiver.recv()).await {
            Ok(Some(Ok(Some(batch)))) => Some((Ok(batch), Some(receiver))),
            Ok(Some(Ok(None))) => None,
            Ok(Some(Err(error))) => Some((Err(error), None)),
            Ok(None) => Some((Err(QueryError::Internal), None)),
            Err(_) => Some((Err(QueryError::Timeout { limit }), None)),
        }
    })
    .boxed()
}

/// One query, as the task that runs it holds it. The permit goes back when the task ends, not when the client leaves: a query that does
/// not stop at once still counts.
struct Query {
    sessions: Arc<Sessions>,
    limits: SqlLimits,
    view: OrgView,
    request: SqlRequest,
    schema: Option<oneshot::Sender<Result<SchemaRef, QueryError>>>,
    items: mpsc::Sender<Item>,
    _permit: OwnedSemaphorePermit,
}

impl Query {
    async fn run(mut self, ticket: Ticket) {
        let items = self.items.clone();
        let outcome = tokio::select! {
            biased;
            () = items.closed() => return,
            () = ticket.stopped() => Err(QueryError::Memory(
                "the server is at its memory bound, and this query was stopped; filter more, select fewer columns, or try again".into(),
            )),
            outcome = AssertUnwindSafe(self.answer()).catch_unwind() => outcome.unwrap_or_else(|_| {
                tracing::error!("a query panicked");
                Err(QueryError::Internal)
            }),
        };
        let last = match (outcome, self.schema.take()) {
            (Err(error), Some(schema)) => {
                // The reader may have left; then nobody is to be told.
                drop(schema.send(Err(error)));
                return;
            }
            (Err(error), None) => Err(error),
            (Ok(()), _) => Ok(None),
        };
        // As above: no reader, nobody to tell.
        drop(timeout(self.limits.time, items.send(last)).await);
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
            match timeout(limit, self.items.send(Ok(Some(batch)))).await {
                Ok(Ok(())) => deadline += handed_over.elapsed(),
                Ok(Err(_)) => return Ok(()),
                Err(_) => return Err(QueryError::Timeout { limit }),
            }
        }
        Ok(())
    }

    async fn start(&self) -> Result<SendableRecordBatchStream, QueryError> {
        let checked = guard::check(&self.request.query, &self.request.params)?;
        let state =
            self.sessions.open(&self.view, checked.large_values, |table| checked.tables.contains(table)).await?;
        let plan = async {
            let plan = state.statement_to_plan(checked.statement).await?;
            guard::read_only().verify_plan(&plan)?;
            let plan = state.create_physical_plan(&plan).await?;
            execute_stream(yielding(plan)?, state.task_ctx())
        };
        plan.await.map_err(|error| QueryError::from_datafusion(&error))
    }
}
