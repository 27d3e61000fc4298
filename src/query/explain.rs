//! `EXPLAIN` and `EXPLAIN ANALYZE`: the plan of a query as text, a line a row, with how many files and bytes it reads
//! and, analysed, what each operator did.
//!
//! Paths are the store's business: in their place stands how many files there are.

use std::sync::{Arc, LazyLock};

use arrow::array::StringArray;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use datafusion::common::{DataFusionError, Result};
use datafusion::execution::TaskContext;
use datafusion::physical_plan::display::DisplayableExecutionPlan;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{ExecutionPlan, SendableRecordBatchStream, execute_stream};
use futures::{TryStreamExt, stream};
use regex::{Captures, Regex};

use super::QueryError;
use super::scanned::Scanned;

/// Whether a plan is shown before it runs, or after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Explain {
    /// As it would run.
    Plan,
    /// As it ran.
    Analyze,
}

/// What the plan's files stand in.
static FILES: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"file_groups=\{[^}]*\}").ok());

/// Operators of our own, which tell nothing of the query.
const OWN: [&str; 2] = ["Metered", "CooperativeExec"];

/// The lines of a plan, as an answer.
pub(super) fn explained(
    explain: Explain,
    plan: Arc<dyn ExecutionPlan>,
    context: Arc<TaskContext>,
) -> Result<SendableRecordBatchStream> {
    let schema: SchemaRef = Arc::new(Schema::new(vec![Field::new("plan", DataType::Utf8, false)]));
    let of_answer = Arc::clone(&schema);
    let rows = stream::once(async move {
        if explain == Explain::Analyze {
            let mut rows = execute_stream(Arc::clone(&plan), context)?;
            while rows.try_next().await?.is_some() {}
        }
        let lines = StringArray::from_iter_values(lines(plan.as_ref(), explain)?);
        Ok(RecordBatch::try_new(of_answer, vec![Arc::new(lines)])?)
    });
    Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows)))
}

fn lines(plan: &dyn ExecutionPlan, explain: Explain) -> Result<Vec<String>> {
    let scanned = Scanned::of(plan);
    let shown = match explain {
        Explain::Plan => DisplayableExecutionPlan::new(plan).indent(false).to_string(),
        Explain::Analyze => DisplayableExecutionPlan::with_metrics(plan).indent(false).to_string(),
    };
    let Some(files) = &*FILES else { return Err(DataFusionError::External(Box::new(QueryError::Internal))) };
    let count = |found: &Captures<'_>| {
        format!("files={}", found.get(0).map_or(0, |text| text.as_str().matches(".parquet").count()))
    };
    let shown = files.replace_all(&shown, count);
    let own = |line: &&str| !OWN.iter().any(|own| line.trim_start().starts_with(own));
    let all = format!("reads {} files of {} bytes, at most", scanned.files, scanned.bytes);
    // No path is shown, in any form that one may yet take in it.
    let safe = |line: &str| if line.contains("orgs/") { "(not shown)".to_owned() } else { line.to_owned() };
    Ok(std::iter::once(all).chain(shown.lines().filter(own).map(safe)).collect())
}
