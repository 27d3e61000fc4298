//! From a checked statement to a plan that can be stopped, measured and held in memory.
//!
//! How many rows a batch has is chosen by how wide a row can be: a batch of wide rows, or of calls that each make a
//! large value, would otherwise take gigabytes in one step, which nothing sees before it is done. Rows wider than
//! [`MAX_COLUMNS`] are refused.

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{DataFusionError, Result};
use datafusion::execution::{SessionState, TaskContext};
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::physical_plan::ExecutionPlan;

use super::functions::{MAX_VALUE_BYTES, makes_large_values};
use super::guard::{self, Checked};
use super::usage::Usage;
use super::yielding::yielding;
use super::{QueryError, session};

/// Columns of a row, anywhere in a query.
const MAX_COLUMNS: usize = 1_000;

/// Bytes that a batch may come to, if every value is as large as it can be.
const BATCH_BYTES: usize = 64 << 20;

/// What a value of a stored text column takes at most: 256 characters, and most far less.
const TEXT_BYTES: usize = 256;
/// What one of the ledger takes, taken over its columns: `detail` is up to 64 KiB, `reason` 16 KiB, all others are
/// short.
const LEDGER_TEXT_BYTES: usize = 4 << 10;
/// What any other value takes.
const FIXED_BYTES: usize = 16;
/// Into how many rows `unnest` may turn one: as many as a list has elements, which is a value and so bounded; stored
/// lists have few.
const MAX_UNNESTED: usize = 256;
const UNNESTED: usize = 16;

/// A plan, with what it runs in.
pub(super) async fn physical(
    mut state: SessionState,
    checked: Checked,
    usage: &Arc<Usage>,
) -> Result<(Arc<dyn ExecutionPlan>, Arc<TaskContext>), QueryError> {
    let large = checked.large_values;
    let text_bytes = if checked.reads_ledger() { LEDGER_TEXT_BYTES } else { TEXT_BYTES };
    let plan = async {
        let plan = state.statement_to_plan(checked.statement).await?;
        guard::read_only().verify_plan(&plan)?;
        state.optimize(&plan)
    };
    let plan = plan.await.map_err(|error| QueryError::from_planning(&error))?;
    let width = Width::of(&plan).map_err(|error| QueryError::from_planning(&error))?;
    if width.columns > MAX_COLUMNS {
        return Err(QueryError::TooLarge(format!(
            "a row of the query has {} columns, and {MAX_COLUMNS} are allowed; select fewer",
            width.columns
        )));
    }
    let rows = width.rows_of_a_batch(large, text_bytes);
    *state.config_mut() = state.config().clone().with_batch_size(rows);
    let plan = async {
        let plan = state.query_planner().create_physical_plan(&plan, &state).await?;
        yielding(plan, usage)
    };
    let plan = plan.await.map_err(|error| QueryError::from_planning(&error))?;
    Ok((plan, state.task_ctx()))
}

/// How wide the rows of a plan are where they are widest.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Width {
    /// Columns.
    columns: usize,
    /// Of those, columns of texts, bytes and lists.
    texts: usize,
    /// Calls, in the expressions of one operator, that make large values.
    calls: usize,
    unnests: bool,
}

impl Width {
    fn of(plan: &LogicalPlan) -> Result<Self> {
        let mut width = Self::default();
        plan.apply_with_subqueries(|node| {
            let fields = node.schema().fields();
            let texts = fields.iter().filter(|field| is_text(field.data_type())).count();
            width.columns = width.columns.max(fields.len());
            width.texts = width.texts.max(texts);
            width.unnests |= matches!(node, LogicalPlan::Unnest(_));
            let mut calls = 0;
            node.apply_expressions(|expr| {
                calls += large_calls(expr)?;
                Ok(TreeNodeRecursion::Continue)
            })?;
            width.calls = width.calls.max(calls);
            Ok(TreeNodeRecursion::Continue)
        })?;
        Ok(width)
    }

    fn rows_of_a_batch(self, large: bool, text_bytes: usize) -> usize {
        let text = if large { text_bytes.max(MAX_VALUE_BYTES) } else { text_bytes };
        let values = self.texts.saturating_mul(text).saturating_add(self.columns.saturating_mul(FIXED_BYTES));
        let row = values.saturating_add(self.calls.saturating_mul(MAX_VALUE_BYTES)).max(1);
        let most = if large { session::BATCH_ROWS_OF_LARGE_VALUES } else { session::BATCH_ROWS };
        let unnested = match (self.unnests, large) {
            (false, _) => 1,
            (true, false) => UNNESTED,
            (true, true) => MAX_UNNESTED,
        };
        (BATCH_BYTES / row / unnested).clamp(1, most)
    }
}

fn is_text(data_type: &DataType) -> bool {
    !(data_type.is_primitive() || matches!(data_type, DataType::Boolean | DataType::Null))
}

/// How many calls within an expression make large values.
fn large_calls(expr: &Expr) -> Result<usize, DataFusionError> {
    let mut calls = 0;
    expr.apply(|part| {
        if let Expr::ScalarFunction(call) = part {
            calls += usize::from(call.name() == "||" || makes_large_values(call.name()));
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(calls)
}

#[cfg(test)]
mod tests {
    use super::{BATCH_BYTES, MAX_VALUE_BYTES, TEXT_BYTES, Width};

    #[test]
    fn a_batch_has_fewer_rows_the_wider_they_are() {
        let narrow = Width { columns: 3, texts: 2, ..Width::default() };
        assert_eq!(narrow.rows_of_a_batch(false, TEXT_BYTES), 8_192);
        let one = Width { columns: 1, texts: 1, calls: 1, ..Width::default() };
        assert_eq!(one.rows_of_a_batch(true, TEXT_BYTES), 512);
        for calls in [50, 250, 500, 5_000] {
            let wide = Width { columns: 250, texts: 250, calls, unnests: false };
            let rows = wide.rows_of_a_batch(true, TEXT_BYTES);
            assert!(rows == 1 || rows * (250 + calls) * MAX_VALUE_BYTES <= BATCH_BYTES, "{calls}: {rows}");
        }
        let unnested = Width { unnests: true, ..one };
        assert!(unnested.rows_of_a_batch(true, TEXT_BYTES) <= 8);
        let ledger = Width { columns: 25, texts: 20, unnests: true, ..Width::default() };
        assert!(ledger.rows_of_a_batch(false, super::LEDGER_TEXT_BYTES) >= 50, "a batch is worth its making");
    }
}
