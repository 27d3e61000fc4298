//! Measures the batches that a plan's operators hand on, and bounds those that take a whole input before they give
//! anything.
//!
//! A window function over a frame that has no end takes all its rows in and computes them in one go, which nothing can
//! interrupt, and the engine's memory pool does not see them. So its input is charged to the pool as it is taken, and
//! what there is to compute in one go is bounded.
//!
//! One over a frame that has an end gives rows as it takes others in, and holds those between: few, but where many rows
//! are alike in what they are ordered by, all of these. They are charged as what went in and has not come out. A frame
//! that reaches back by values holds as many as the values say (see `reach`); where that cannot be told, all that went
//! in is charged.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
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
use super::reach::{Held, Reach};
use super::usage::Usage;

/// Values that window functions may compute in one go: a second's work, about.
const MAX_VALUES_AT_ONCE: usize = 10_000_000;

/// What becomes of the batches.
#[derive(Debug, Clone)]
pub(super) enum Kept {
    /// Each is gone when the next one comes.
    One,
    /// All are kept, and so many functions are then computed over all of them in one go.
    All { functions: usize },
    /// Those are kept that have not come out again, and so many rows before: rows of each partition that have come out
    /// are counted here.
    Until(Counts, usize),
    /// The same with those before that frames of values reach back over.
    Within(Counts, Arc<Reach>),
    /// Counts the rows that come out.
    Counted(Counts),
}

/// Rows of each partition.
#[derive(Debug, Clone)]
pub(super) struct Counts(Arc<[AtomicUsize]>);

impl Counts {
    /// None yet, of so many partitions.
    pub(super) fn new(partitions: usize) -> Self {
        Self((0..partitions).map(|_| AtomicUsize::new(0)).collect())
    }

    fn of(&self, partition: usize) -> usize {
        self.0.get(partition).map_or(0, |rows| rows.load(Ordering::Relaxed))
    }

    fn add(&self, partition: usize, rows: usize) {
        if let Some(count) = self.0.get(partition) {
            count.fetch_add(rows, Ordering::Relaxed);
        }
    }
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
            (Some(input), true) => Ok(Arc::new(Self::new(input, Arc::clone(&self.usage), self.kept.clone()))),
            _ => exec_err!("one operator is measured at a time"),
        }
    }

    fn with_new_children(self: Arc<Self>, mut children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        match (children.pop(), children.is_empty()) {
            (Some(input), true) => Ok(Arc::new(Self::new(input, Arc::clone(&self.usage), self.kept.clone()))),
            _ => exec_err!("one operator is measured at a time"),
        }
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let reservation = MemoryConsumer::new("window").register(context.memory_pool());
        Ok(Box::pin(MeteredStream {
            input: self.input.execute(partition, context)?,
            usage: Arc::clone(&self.usage),
            kept: self.kept.clone(),
            partition,
            last: 0,
            rows: 0,
            bytes: 0,
            held: Held::default(),
            reservation,
        }))
    }
}

struct MeteredStream {
    input: SendableRecordBatchStream,
    usage: Arc<Usage>,
    kept: Kept,
    partition: usize,
    /// Bytes of the batch that was handed on last.
    last: usize,
    /// Rows and bytes that were handed on.
    rows: usize,
    bytes: usize,
    held: Held,
    reservation: MemoryReservation,
}

impl MeteredStream {
    fn measure(&mut self, batch: &RecordBatch) -> Result<()> {
        let bytes = batch.get_array_memory_size();
        match &self.kept {
            Kept::One => {
                self.usage.flows(self.last, bytes);
                self.last = bytes;
            }
            Kept::All { functions } => {
                self.rows = self.rows.saturating_add(batch.num_rows());
                if self.rows.saturating_mul(*functions) > MAX_VALUES_AT_ONCE {
                    return Err(DataFusionError::External(Box::new(QueryError::Memory(format!(
                        "window functions over a whole partition compute at most {MAX_VALUES_AT_ONCE} values; filter more, use \
                         fewer of them, or a frame that ends at the current row"
                    )))));
                }
                self.reservation.try_grow(bytes)?;
            }
            Kept::Until(given, before) => {
                self.rows = self.rows.saturating_add(batch.num_rows());
                self.bytes = self.bytes.saturating_add(bytes);
                let given = given.of(self.partition);
                let kept = self.rows.saturating_sub(given).saturating_add(given.min(*before));
                self.reservation.try_resize((self.bytes / self.rows.max(1)).saturating_mul(kept))?;
            }
            Kept::Within(given, reach) => {
                let given = given.of(self.partition);
                let held = self.held.take(reach, batch, given)?;
                self.reservation.try_resize(held)?;
            }
            Kept::Counted(given) => given.add(self.partition, batch.num_rows()),
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
