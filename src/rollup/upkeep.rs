//! The partial rollups of a flush: the SQL of `queries/rollup_*.sql` over the samples that it writes.
//!
//! A partial holds one row for each window and series that the samples touch. A late sample is in no way special: its
//! row is of the hour and the day that it belongs to, and merges with the partials written before. Readers merge the
//! partials of all flushes by sum, least, greatest and `latency_merge`; since each of these is exact and the same in
//! any order, so are the rollups, however the samples were batched. For the same reason days are made of hours: samples
//! are read once.

use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::compute::{cast, concat_batches};
use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::datasource::{MemTable, provider_as_source};
use datafusion::error::DataFusionError;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::collect;
use datafusion::prelude::{SessionConfig, SessionContext, col};
use tokio::sync::OnceCell;

use super::{Granularity, RollupError, aggregate_functions};
use crate::model::schema::schemas;

/// The query that makes partial rollups of the columns of `tool_usage_hourly` of a table [`SAMPLES`] of those of
/// `tool_invocations`, or those of `tool_usage_daily` of a table [`HOURS`] of the hourly ones. It needs the functions
/// of [`aggregate_functions`].
pub const fn partials_sql(granularity: Granularity) -> &'static str {
    match granularity {
        Granularity::Hour => include_str!("../../queries/rollup_hourly.sql"),
        Granularity::Day => include_str!("../../queries/rollup_daily.sql"),
    }
}

/// The name that the hourly query knows the samples by.
pub const SAMPLES: &str = "samples";
/// The name that the daily query knows the hourly partials by.
pub const HOURS: &str = "hours";

/// The partial hourly rollups of some canonical batches of one org: rows of exactly the schema of `tool_usage_hourly`,
/// ordered by window, plugin, tool and workspace.
///
/// # Errors
/// When a batch is not of the canonical schema, or the query fails.
pub async fn hourly_partials(batches: &[RecordBatch]) -> Result<RecordBatch, RollupError> {
    let all = schemas()?;
    let samples = (SAMPLES, &all.tool_invocations, batches.to_vec());
    rolled_up(Granularity::Hour, samples, &all.tool_usage_hourly).await
}

/// The partial daily rollups that hourly ones add up to: rows of exactly the schema of `tool_usage_daily`, in the same
/// order.
///
/// # Errors
/// When the hours are not of their schema, or the query fails.
pub async fn daily_partials(hours: &RecordBatch) -> Result<RecordBatch, RollupError> {
    let all = schemas()?;
    let hours = (HOURS, &all.tool_usage_hourly, vec![hours.clone()]);
    rolled_up(Granularity::Day, hours, &all.tool_usage_daily).await
}

/// One of the queries, planned over a table without rows. To parse and optimize it takes a multiple of what it takes to
/// run it over the samples of a small flush, and both are the same each time.
#[derive(Debug)]
struct Planned {
    state: SessionState,
    plan: LogicalPlan,
}

static HOURLY: OnceCell<Planned> = OnceCell::const_new();
static DAILY: OnceCell<Planned> = OnceCell::const_new();

async fn planned(granularity: Granularity, name: &str, of: &SchemaRef) -> Result<&'static Planned, RollupError> {
    let planned = match granularity {
        Granularity::Hour => &HOURLY,
        Granularity::Day => &DAILY,
    };
    let plan = async || {
        let ctx = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(1));
        aggregate_functions().iter().for_each(|function| ctx.register_udaf(function.as_ref().clone()));
        ctx.register_table(name, table(of, Vec::new())?)?;
        let order = ["window_start", "plugin", "tool", "workspace"].map(|column| col(column).sort(true, false));
        let plan = ctx.sql(partials_sql(granularity)).await?.sort(order.to_vec())?.into_optimized_plan()?;
        Ok(Planned { state: ctx.state(), plan })
    };
    planned.get_or_try_init(plan).await
}

fn table(of: &SchemaRef, batches: Vec<RecordBatch>) -> Result<Arc<MemTable>, DataFusionError> {
    MemTable::try_new(Arc::clone(of), vec![batches]).map(Arc::new)
}

async fn rolled_up(
    granularity: Granularity,
    (name, of, batches): (&str, &SchemaRef, Vec<RecordBatch>),
    schema: &SchemaRef,
) -> Result<RecordBatch, RollupError> {
    let Planned { state, plan } = planned(granularity, name, of).await?;
    let source = provider_as_source(table(of, batches)?);
    let with_rows = |node: LogicalPlan| match node {
        LogicalPlan::TableScan(mut scan) => {
            scan.source = Arc::clone(&source);
            Ok(Transformed::yes(LogicalPlan::TableScan(scan)))
        }
        node => Ok(Transformed::no(node)),
    };
    let plan = plan.clone().transform_up(with_rows)?.data;
    let plan = state.query_planner().create_physical_plan(&plan, state).await?;
    let rows = collect(plan, state.task_ctx()).await?;
    let parts = rows.iter().map(|rows| conform(rows, schema)).collect::<Result<Vec<_>, _>>()?;
    Ok(concat_batches(schema, &parts).map_err(DataFusionError::from)?)
}

/// The same rows in the table's own types and nullability.
fn conform(rows: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, DataFusionError> {
    let column = |name: &str| rows.column_by_name(name).ok_or_else(|| missing(name));
    let columns = schema.fields().iter().map(|field| Ok(cast(column(field.name())?, field.data_type())?));
    let columns = columns.collect::<Result<Vec<ArrayRef>, DataFusionError>>()?;
    Ok(RecordBatch::try_new(Arc::clone(schema), columns)?)
}

fn missing(name: &str) -> DataFusionError {
    DataFusionError::Internal(format!("the rollup query gives no column `{name}`"))
}
