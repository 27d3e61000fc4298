//! The seam between what a query means and what runs it, and the engine that runs it in this process.

use std::fmt::{self, Debug};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use datafusion::execution::memory_pool::MemoryPool;
use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use object_store::ObjectStore;
use prometheus::IntGauge;
use serde::Deserialize;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};
use tracing::{Instrument, Span};

use super::admission::{Admission, Party};
use super::formats::{HEAD_BYTES, HeadRoom};
use super::guard;
use super::running::{Item, Running};
use super::session::Sessions;
use super::usage::{QueryPool, Usage};
use super::view::OrgView;
use super::watchdog::Watchdog;
use super::workers::Workers;
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

/// What a query is for: each has places of its own, so that neither waits for the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// A statement that a client sent.
    Sql,
    /// A statement of the program's own, over a ledger.
    Ledger,
}

/// Who asks, beside the org of the view.
#[derive(Debug, Clone)]
pub struct Asker {
    /// What for.
    pub lane: Lane,
    /// The name of the token that was presented, if one was needed.
    pub token: Option<Arc<str>>,
}

impl Asker {
    /// Someone who sent a statement.
    pub fn sql(token: Option<&str>) -> Self {
        Self { lane: Lane::Sql, token: token.map(Arc::from) }
    }

    /// Someone who reads a ledger.
    pub fn ledger(token: Option<&str>) -> Self {
        Self { lane: Lane::Ledger, token: token.map(Arc::from) }
    }
}

/// The answer to a query, on its way.
pub struct QueryResult {
    /// The columns.
    pub schema: SchemaRef,
    /// The rows, in batches of `schema`. It ends with `None` only when the answer is complete; a failure is an `Err`
    /// and the last item. Dropped, it stops the query.
    pub stream: BoxStream<'static, Result<RecordBatch, QueryError>>,
    /// How many rows were handed over so far.
    pub rows: Arc<AtomicUsize>,
    /// Where the beginning of the answer's body may wait.
    pub room: HeadRoom,
    /// The threads that queries run on, where the answer is made into a body too.
    pub workers: Handle,
    /// What the making of a body is charged to.
    pub memory: Arc<dyn MemoryPool>,
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
    async fn query(&self, view: OrgView, request: SqlRequest, asker: Asker) -> Result<QueryResult, QueryError>;

    /// How many queries run.
    fn running(&self) -> usize;
}

/// The engine that runs queries in this process, on DataFusion.
#[derive(Debug)]
pub struct LocalEngine {
    limits: Arc<SqlLimits>,
    sessions: Arc<Sessions>,
    sql: Arc<Admission>,
    ledger: Arc<Admission>,
    watchdog: Watchdog,
    workers: Workers,
    room: HeadRoom,
}

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
        let (sql, ledger) = (Admission::new(limits.concurrency), Admission::new(limits.concurrency));
        let most = sql.most().saturating_add(ledger.most());
        let sessions = Arc::new(Sessions::new(store, &limits)?);
        let spills = Arc::clone(sessions.spills());
        Ok(Self {
            sessions,
            sql,
            ledger,
            watchdog: Watchdog::start(limits.resident_bytes, move || spills.balance()).map_err(start)?,
            workers: Workers::start(limits.threads.max(most)).map_err(start)?,
            room: HeadRoom::new(HEAD_BYTES.saturating_mul(limits.concurrency.max(1))),
            limits: Arc::new(limits),
        })
    }

    /// Has a gauge say how many queries run.
    #[must_use]
    pub fn with_gauge(self, running: IntGauge) -> Self {
        self.watchdog.show(running);
        self
    }
}

#[async_trait]
impl Engine for LocalEngine {
    async fn query(&self, view: OrgView, request: SqlRequest, asker: Asker) -> Result<QueryResult, QueryError> {
        guard::check_size(&request.query, self.limits.text_bytes)?;
        let admission = match asker.lane {
            Lane::Sql => &self.sql,
            Lane::Ledger => &self.ledger,
        };
        let party = Party { org: view.org.clone(), token: asker.token };
        let busy = || QueryError::Busy { limit: self.limits.concurrency, retry_after: Duration::from_secs(1) };
        let place = admission.enter(&party, self.limits.queue_wait).await.ok_or_else(busy)?;
        let usage = Arc::new(Usage::default());
        let memory: Arc<dyn MemoryPool> = Arc::new(QueryPool::new(
            self.sessions.pool(),
            self.limits.memory_bytes,
            self.sessions.shares(),
            &party.org,
            Arc::clone(&usage),
        ));
        let (schema_sender, schema) = oneshot::channel();
        let (sender, receiver) = mpsc::channel(BATCHES_AHEAD);
        let rows = Arc::new(AtomicUsize::new(0));
        let query = Running {
            sessions: Arc::clone(&self.sessions),
            limits: Arc::clone(&self.limits),
            admission: Arc::clone(admission),
            view,
            request,
            party,
            usage: Arc::clone(&usage),
            rows: Arc::clone(&rows),
            memory: Arc::clone(&memory),
            schema: Some(schema_sender),
            items: sender,
            place: Some(place),
            ends: Instant::now() + self.limits.answer_time,
        };
        let workers = self.workers.handle().ok_or(QueryError::Internal)?.clone();
        // Within the request's span, so that what is logged of the query carries the request's id.
        workers.spawn(query.run(self.watchdog.enter(usage)).instrument(Span::current()));
        let schema = match timeout(self.limits.time + GRACE, schema).await {
            Ok(Ok(known)) => known?,
            Ok(Err(_)) => return Err(QueryError::Internal),
            Err(_) => return Err(QueryError::Timeout { limit: self.limits.time }),
        };
        let patience = self.limits.answer_time + GRACE;
        let stream = read(receiver, patience, self.limits.answer_time);
        Ok(QueryResult { schema, stream, rows, room: self.room.clone(), workers, memory })
    }

    fn running(&self) -> usize {
        self.watchdog.running()
    }
}

/// The reader's end: patient for as long as an answer may take, then no longer, even if its thread does not come back.
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
            Err(_) => Some((Err(QueryError::Unread { limit }), None)),
        }
    })
    .boxed()
}
