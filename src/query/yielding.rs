//! Makes a plan give its thread up now and then, so that time limits and cancellation reach it, and measures what flows
//! in it.
//!
//! The engine makes its leaves cooperative. A join can make any number of batches of one batch of a leaf, and where a
//! filter above drops them all, nothing ever waits: the task would not return to its scheduler until the join is done.
//! So whatever multiplies rows is made cooperative too.

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::{WindowFrameBound, WindowFrameUnits};
use datafusion::physical_expr::window::WindowExpr;
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::execution_plan::replace_children_if_necessary;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::unnest::UnnestExec;
use datafusion::physical_plan::windows::{BoundedWindowAggExec, WindowAggExec};
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};

use super::metered::{Counts, Kept, Metered};
use super::reach::Reach;
use super::usage::Usage;

/// The plan, with everything that multiplies rows made cooperative, what can make large batches measured, and what
/// takes its whole input bounded.
pub(super) fn yielding(plan: Arc<dyn ExecutionPlan>, usage: &Arc<Usage>) -> Result<Arc<dyn ExecutionPlan>> {
    let measured = |node, kept| Arc::new(Metered::new(node, Arc::clone(usage), kept)) as Arc<dyn ExecutionPlan>;
    let wrapped = plan.transform_up(|node| {
        if let Some(window) = node.downcast_ref::<WindowAggExec>() {
            let kept = Kept::All { functions: window.window_expr().len() };
            let input = measured(Arc::clone(window.input()), kept);
            return Ok(Transformed::yes(replace_children_if_necessary(node, vec![input])?));
        }
        if let Some(window) = node.downcast_ref::<BoundedWindowAggExec>() {
            let input = Arc::clone(window.input());
            let given = Counts::new(input.output_partitioning().partition_count());
            let kept = if reaches_back_by_values(window) {
                let Some(reach) = Reach::of(window, rows_back(window)) else {
                    let input = measured(input, Kept::All { functions: 0 });
                    return Ok(Transformed::yes(replace_children_if_necessary(node, vec![input])?));
                };
                Kept::Within(given.clone(), Arc::new(reach))
            } else {
                Kept::Until(given.clone(), rows_back(window))
            };
            let input = measured(input, kept);
            let node = replace_children_if_necessary(node, vec![input])?;
            return Ok(Transformed::yes(measured(node, Kept::Counted(given))));
        }
        let inputs = node.children().len();
        if inputs > 1 || node.is::<UnnestExec>() {
            return Ok(Transformed::yes(measured(Arc::new(CooperativeExec::new(node)), Kept::One)));
        }
        if inputs == 0 || node.is::<ProjectionExec>() {
            return Ok(Transformed::yes(measured(node, Kept::One)));
        }
        Ok(Transformed::no(node))
    });
    wrapped.map(|wrapped| wrapped.data)
}

/// How many rows a frame of rows reaches back.
fn rows_back(window: &BoundedWindowAggExec) -> usize {
    let of = |function: &Arc<dyn WindowExpr>| match &function.get_window_frame().start_bound {
        WindowFrameBound::Preceding(ScalarValue::UInt64(Some(rows))) => usize::try_from(*rows).ok(),
        _ => None,
    };
    window.window_expr().iter().filter_map(of).max().unwrap_or_default()
}

/// Whether rows stay within a frame for as long as their values, or how many are alike, say.
fn reaches_back_by_values(window: &BoundedWindowAggExec) -> bool {
    window.window_expr().iter().any(|function| {
        let frame = function.get_window_frame();
        let is_bounded = matches!(&frame.start_bound, WindowFrameBound::Preceding(reach) if !reach.is_null());
        frame.units != WindowFrameUnits::Rows && is_bounded
    })
}
