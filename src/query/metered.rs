//! Measures the batches that a plan's operators hand on, and bounds those that take a whole input before they give anything.
//!
//! A window function over a frame that has no end takes all its rows in and computes them in one go, which nothing can interrupt, and the
//! engine's memory pool does not see them. So its input is charged to the pool as it is taken, and what there is to compute in one go is bounded.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{DataFusionError, Result, exec_err};
use datafusion::execution::TaskContext;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::execution_plan::ReplaceChildrenOptions;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, RecordBatchStream, SendableRecordBatchStream,
};
use futures::Stream;

use super::QueryError;
use super::usage::Usage;

/// Values that window functions may compute in one go: a second's work, about.
const MAX_VALUES_AT_ONCE: usize = 10_000_000;

/// What becomes of the batches.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kept {
    /// Each is gone when the next one comes.
    One,
    /// All are kept, and so many functions are then computed over all of them in one go.
    All { functions: usize },
}

/// An operator whose batches are measured.
#[derive(Debug)]
pub(super) struct Metered {
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
    usage: Arc<Usage>,
    kept: Kept,
}

impl Metered {
    /// Measures what `input` gives.
    pub(super) fn new(input: Arc<dyn ExecutionPlan>, usage: Arc<Usage>, kept: Kept) -> Self {
        let properties = Arc::clone(input.properties());
        Self { input, properties, usage, kept }
    }
}

impl DisplayAs for Metered {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metered")
    }
}

impl ExecutionPlan for Metered {
    fn name(&self) -> &'static str {
        "Metered"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        match (children.pop(), children.is_empty()) {
            (Some(input), true) => Ok(Arc::new(Self::new(input, Arc::clone(&self.usage), self.kept))),
            _ => exec_err!("one operator is measured at a time"),
        }
    }

    fn with_new_children(self: Arc<Self>, mut children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        match (children.pop(), children.is_empty()) {
            (Some(input), true) => Ok(Arc::new(Self::new(input, Arc::clone(&self.usage), self.kept))),
            _ => exec_err!("one operator is measured at a time"),
        }
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let reservation = MemoryConsumer::new("window").register(context.memory_pool());
        Ok(Box::pin(MeteredStream {
            input: self.input.execute(partition, context)?,
            usage: Arc::clone(&self.usage),
            kept: self.kept,
            last: 0,
            rows: 0,
            reservation,
        }))
    }
}

struct MeteredStream {
    input: SendableRecordBatchStream,
    usage: Arc<Usage>,
    kept: Kept,
    /// Bytes of the batch that was handed on last.
    last: usize,
    rows: usize,
    reservation: MemoryReservation,
}

impl MeteredStream {
    fn measure(&mut self, batch: &RecordBatch) -> Result<()> {
        let bytes = batch.get_array_memory_size();
        match self.kept {
            Kept::One => {
                self.usage.flows(self.last, bytes);
                self.last = bytes;
            }
            Kept::All { functions } => {
                self.rows = self.rows.saturating_add(batch.num_rows());
                if self.rows.saturating_mul(functions) > MAX_VALUES_AT_ONCE {
                    return Err(DataFusionError::External(Box::new(QueryError::Memory(format!(
                        "window functions over a whole partition compute at most {MAX_VALUES_AT_ONCE} values; filter more, use \
                         fewer of them, or a frame that ends at the current row"
                    )))));
                }
                self.reservation.try_grow(bytes)?;
            }
        }
        Ok(())
    }
}

impl Stream for MeteredStream {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = ready!(self.input.as_mut().poll_next(context));
        Poll::Ready(match next {
            Some(Ok(batch)) => Some(self.measure(&batch).map(|()| batch)),
            other => other,
        })
    }
}

impl RecordBatchStream for MeteredStream {
    fn schema(&self) -> SchemaRef {
        self.input.schema()
    }
}

impl Drop for MeteredStream {
    fn drop(&mut self) {
        self.usage.flows(self.last, 0);
    }
}
