//! Makes a plan give its thread up now and then, so that time limits and cancellation reach it, and measures what flows in it.
//!
//! The engine makes its leaves cooperative. A join can make any number of batches of one batch of a leaf, and where a filter above
//! drops them all, nothing ever waits: the task would not return to its scheduler until the join is done. So whatever
//! multiplies rows is made cooperative too.

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::execution_plan::replace_children_if_necessary;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::unnest::UnnestExec;
use datafusion::physical_plan::windows::WindowAggExec;

use super::metered::{Kept, Metered};
use super::usage::Usage;

/// The plan, with everything that multiplies rows made cooperative, what can make large batches measured, and what takes its whole input bounded.
pub(super) fn yielding(plan: Arc<dyn ExecutionPlan>, usage: &Arc<Usage>) -> Result<Arc<dyn ExecutionPlan>> {
    let measured = |node, kept| Arc::new(Metered::new(node, Arc::clone(usage), kept)) as Arc<dyn ExecutionPlan>;
    let wrapped = plan.transform_up(|node| {
        if let Some(window) = node.downcast_ref::<WindowAggExec>() {
            let kept = Kept::All { functions: window.window_expr().len() };
            let input = measured(Arc::clone(window.input()), kept);
            return Ok(Transformed::yes(replace_children_if_necessary(node, vec![input])?));
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
