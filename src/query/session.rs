//! Sessions: what a query can name and call, and the machine it may use.

use std::num::NonZeroUsize;
use std::sync::Arc;

use arrow::datatypes::Schema;
use datafusion::catalog::TableProvider;
use datafusion::common::{DataFusionError, Result, plan_err};
use datafusion::datasource::ViewTable;
use datafusion::execution::memory_pool::{FairSpillPool, MemoryPool, TrackConsumersPool};
use datafusion::execution::object_store::{ObjectStoreRegistry, ObjectStoreUrl};
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::{SessionState, SessionStateBuilder};
use datafusion::prelude::SessionConfig;
use object_store::ObjectStore;
use url::Url;

use crate::model::OrgName;
use crate::model::schema::{
    AUDIT_LOG, TOOL_INVOCATION_PAYLOADS, TOOL_INVOCATIONS, TOOL_USAGE_DAILY, TOOL_USAGE_HOURLY, schemas,
};
use crate::rollup::{Granularity, HOURS, SAMPLES, partials_sql};
use crate::storage::table::DataFile;

use super::catalog::{CATALOG, INFORMATION_SCHEMA, OneCatalog, PUBLIC, Tables};
use super::functions::Functions;
use super::functions::arithmetic::CheckedArithmetic;
use super::scan::EventTable;
use super::scanned::Reads;
use super::spill::Spills;
use super::usage::Shares;
use super::view::{OrgView, TableState};
use super::views::{FILES, FRESH, merged_sql};
use super::{QueryError, SqlLimits, information_schema};

/// The name under which the engine knows the one store. No statement can spell it.
const STORE_URL: &str = "mcpg://store";

/// Rows of a batch.
pub(super) const BATCH_ROWS: usize = 8192;
/// Rows of a batch of a query that can make large values, so that a column of them stays small.
pub(super) const BATCH_ROWS_OF_LARGE_VALUES: usize = 512;

/// What is remembered of files' footers and page indexes, of all orgs together; what was used longest ago gives way.
/// About a hundred of the largest files, or some thousands of small ones.
const FOOTER_BYTES: usize = 64 << 20;

/// How many consumers of memory an error names in the log.
const TOP_CONSUMERS: NonZeroUsize = NonZeroUsize::MIN;

/// Opens sessions over one store; what they share is here.
#[derive(Debug)]
pub(super) struct Sessions {
    store: Arc<dyn ObjectStore>,
    store_url: ObjectStoreUrl,
    runtime: Arc<RuntimeEnv>,
    config: SessionConfig,
    functions: Functions,
    information: Tables,
    shares: Shares,
    spills: Arc<Spills>,
}

impl Sessions {
    /// Sets up memory pool, spill folder, caches and functions.
    pub(super) fn new(store: Arc<dyn ObjectStore>, limits: &SqlLimits) -> Result<Self, QueryError> {
        let build = || -> Result<Self> {
            let functions = Functions::offered();
            Ok(Self {
                store_url: ObjectStoreUrl::parse(STORE_URL)?,
                runtime: runtime(Arc::clone(&store), limits)?,
                config: config(limits),
                information: information_schema::tables(&functions)?,
                functions,
                store,
                shares: Shares::default(),
                spills: Arc::new(Spills::new(limits)),
            })
        };
        build().map_err(|error| {
            tracing::error!(%error, "the SQL engine cannot start");
            QueryError::Internal
        })
    }

    /// The memory of all queries.
    pub(super) fn pool(&self) -> Arc<dyn MemoryPool> {
        Arc::clone(&self.runtime.memory_pool)
    }

    /// What each org has of it.
    pub(super) fn shares(&self) -> &Shares {
        &self.shares
    }

    /// Where each org's queries spill to.
    pub(super) fn spills(&self) -> &Arc<Spills> {
        &self.spills
    }

    /// A session that holds the tables of `view` and the information schema, and takes its memory from `memory`.
    /// `mentions` tells which tables the query may name, so that the others need not be made; `reads` bounds what is
    /// read as it is planned.
    pub(super) async fn open(
        &self,
        view: &OrgView,
        memory: Arc<dyn MemoryPool>,
        reads: Reads,
        mentions: impl Fn(&str) -> bool,
    ) -> Result<SessionState, QueryError> {
        for table in [&view.samples, &view.hourly, &view.daily, &view.payloads, &view.audit] {
            within_org(&view.org, table)?;
        }
        let open = async {
            let schemas = schemas().map_err(|error| DataFusionError::External(Box::new(error)))?;
            let mut tables = Tables::new();
            tables.insert(TOOL_INVOCATIONS.to_owned(), self.samples(Arc::clone(&view.samples.files), &view.samples)?);
            let ledger = self.events(&schemas.audit_log, "occurred_at", &view.audit).bounded(reads);
            tables.insert(AUDIT_LOG.to_owned(), Arc::new(ledger));
            if mentions(TOOL_INVOCATION_PAYLOADS) {
                let seen = &schemas.payloads_in_sql;
                let columns: Vec<usize> = (0..seen.fields().len()).collect();
                let live = view.payloads.live.iter().map(|batch| batch.project(&columns)).collect::<Result<_, _>>()?;
                let state = TableState { files: Arc::clone(&view.payloads.files), live, evidence: None };
                tables.insert(TOOL_INVOCATION_PAYLOADS.to_owned(), self.table(seen, "started_at", &state));
            }
            if mentions(TOOL_USAGE_HOURLY) {
                let hourly = self.rollup(Granularity::Hour, &schemas.tool_usage_hourly, &view.hourly).await?;
                tables.insert(TOOL_USAGE_HOURLY.to_owned(), hourly);
            }
            if mentions(TOOL_USAGE_DAILY) {
                let daily = self.rollup(Granularity::Day, &schemas.tool_usage_daily, &view.daily).await?;
                tables.insert(TOOL_USAGE_DAILY.to_owned(), daily);
            }
            let disk_manager = self.spills.of(&view.org)?;
            let runtime = RuntimeEnv { memory_pool: memory, disk_manager, ..RuntimeEnv::clone(&self.runtime) };
            let schemas = [(PUBLIC, tables), (INFORMATION_SCHEMA, self.information.clone())];
            let mut state = self.state(schemas, Arc::new(runtime));
            // What now() answers, at each place of the query.
            state.mark_start_execution();
            Ok(state)
        };
        open.await.map_err(|error: DataFusionError| {
            tracing::error!(%error, "a session cannot be opened");
            QueryError::Internal
        })
    }

    /// Samples: those in `files` and the live ones of `state`.
    fn samples(&self, files: Arc<Vec<DataFile>>, state: &TableState) -> Result<Arc<dyn TableProvider>> {
        let schemas = schemas().map_err(|error| DataFusionError::External(Box::new(error)))?;
        let state = TableState { files, live: state.live.clone(), evidence: None };
        Ok(self.table(&schemas.tool_invocations, "started_at", &state))
    }

    fn table(&self, stored: &Schema, event_time: &'static str, state: &TableState) -> Arc<dyn TableProvider> {
        Arc::new(self.events(stored, event_time, state))
    }

    fn events(&self, stored: &Schema, event_time: &'static str, state: &TableState) -> EventTable {
        EventTable::new(stored, event_time, state.clone(), self.store_url.clone(), Arc::clone(&self.store))
    }

    /// A rollup table, merged from its files and its live samples.
    async fn rollup(
        &self,
        granularity: Granularity,
        stored: &Schema,
        state: &TableState,
    ) -> Result<Arc<dyn TableProvider>> {
        let samples = self.samples(Arc::default(), state)?;
        let mut fresh = self.view_of(partials_sql(Granularity::Hour), [(SAMPLES.to_owned(), samples)].into()).await?;
        if granularity == Granularity::Day {
            fresh = self.view_of(partials_sql(granularity), [(HOURS.to_owned(), fresh)].into()).await?;
        }
        let files = TableState { files: Arc::clone(&state.files), live: Vec::new(), evidence: None };
        let files = self.table(stored, "window_start", &files);
        self.view_of(merged_sql(granularity), [(FILES.to_owned(), files), (FRESH.to_owned(), fresh)].into()).await
    }

    /// A statement of our own over tables that only it can name, as a table.
    async fn view_of(&self, sql: &str, tables: Tables) -> Result<Arc<dyn TableProvider>> {
        let plan = self.state([(PUBLIC, tables)], Arc::clone(&self.runtime)).create_logical_plan(sql).await?;
        Ok(Arc::new(ViewTable::new(plan, None)))
    }

    fn state(
        &self,
        schemas: impl IntoIterator<Item = (&'static str, Tables)>,
        runtime: Arc<RuntimeEnv>,
    ) -> SessionState {
        self.functions
            .give_to(SessionStateBuilder::new())
            .with_config(self.config.clone().with_batch_size(BATCH_ROWS))
            .with_runtime_env(runtime)
            .with_catalog_list(Arc::new(OneCatalog::new(schemas)))
            .with_analyzer_rule(Arc::new(CheckedArithmetic))
            .build()
    }
}

/// Keeps invariant I4 where paths are last seen: each file of a view lies in its org's folder.
fn within_org(org: &OrgName, table: &TableState) -> Result<(), QueryError> {
    let folder = format!("orgs/{org}/");
    match table.files.iter().find(|file| !file.path.as_ref().starts_with(&folder)) {
        None => Ok(()),
        Some(file) => {
            tracing::error!(%org, path = %file.path, "a view holds a file outside its org's folder");
            Err(QueryError::Internal)
        }
    }
}

fn config(limits: &SqlLimits) -> SessionConfig {
    let mut config = SessionConfig::new()
        .with_target_partitions(limits.threads.max(1))
        .with_default_catalog_and_schema(CATALOG, PUBLIC)
        .with_create_default_catalog_and_schema(false)
        .with_information_schema(false);
    let options = config.options_mut();
    options.execution.time_zone = Some("UTC".to_owned());
    options.execution.enable_recursive_ctes = false;
    options.execution.collect_statistics = false;
    options.sql_parser.collect_spans = true;
    config
}

fn runtime(store: Arc<dyn ObjectStore>, limits: &SqlLimits) -> Result<Arc<RuntimeEnv>> {
    RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(TrackConsumersPool::new(FairSpillPool::new(limits.memory_bytes), TOP_CONSUMERS)))
        .with_object_store_registry(Arc::new(OneStore(store)))
        .with_metadata_cache_limit(FOOTER_BYTES)
        .build_arc()
}

/// The one store there is. Unlike the engine's own registry it knows no local files and no addresses.
#[derive(Debug)]
struct OneStore(Arc<dyn ObjectStore>);

impl ObjectStoreRegistry for OneStore {
    /// The store is fixed: what is offered here is dropped.
    fn register_store(&self, _: &Url, _: Arc<dyn ObjectStore>) -> Option<Arc<dyn ObjectStore>> {
        None
    }

    fn get_store(&self, url: &Url) -> Result<Arc<dyn ObjectStore>> {
        if url.as_str().starts_with(STORE_URL) {
            return Ok(Arc::clone(&self.0));
        }
        plan_err!("there are no tables at addresses")
    }
}
