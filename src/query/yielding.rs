//! Makes a plan give its thread up now and then, so that time limits and cancellation reach it.
//!
//! The engine makes its leaves cooperative. A join can make any number of batches of one batch of a leaf, and where a filter above
//! drops them all, nothing ever waits: the task would not return to its scheduler until the join is done. So whatever
//! multiplies rows is made cooperative too.

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::unnest::UnnestExec;

/// The plan, with everything that multiplies rows made cooperative.
pub(super) fn yielding(plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    let wrapped = plan.transform_up(|node| {
        let multiplies = node.children().len() > 1 || node.is::<UnnestExec>();
        Ok(if multiplies { Transformed::yes(Arc::new(CooperativeExec::new(node)) as _) } else { Transformed::no(node) })
    });
    wrapped.map(|wrapped| wrapped.data)
}
