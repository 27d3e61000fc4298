//! How far a frame of values (`RANGE … PRECEDING`) reaches back, in rows that were taken in: what an operator of
//! windows holds beside what it has not given yet.
//!
//! Rows come in the order of the window: partition by partition, and in each by value. A batch is held while some row
//! of it may be in the frame of the next row that comes out. It is looked at by its last row alone: where that is of
//! another partition than the batch of the next row begins with, or is further back than the frame reaches from the
//! first value of it, all of it is over. What cannot be compared is held.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::{WindowFrameBound, WindowFrameUnits};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::InputOrderMode;
use datafusion::physical_plan::windows::BoundedWindowAggExec;

/// See the module's doc.
#[derive(Debug)]
pub(super) struct Reach {
    partition: Vec<Arc<dyn PhysicalExpr>>,
    order: Arc<dyn PhysicalExpr>,
    descending: bool,
    /// By how much each function's frame reaches back.
    values: Vec<ScalarValue>,
    /// How many rows frames of rows reach back.
    rows: usize,
}

impl Reach {
    /// Of the functions of an operator, where it can be told: of frames of rows and of ranges of one value.
    pub(super) fn of(window: &BoundedWindowAggExec, rows: usize) -> Option<Self> {
        if window.input_order_mode != InputOrderMode::Sorted {
            return None;
        }
        let function = window.window_expr().first()?;
        let [order] = function.order_by() else { return None };
        let mut values = Vec::new();
        for function in window.window_expr() {
            let frame = function.get_window_frame();
            match (&frame.start_bound, frame.units) {
                (_, WindowFrameUnits::Rows) => {}
                (WindowFrameBound::Preceding(reach), WindowFrameUnits::Range) if !reach.is_null() => {
                    values.push(reach.clone());
                }
                (WindowFrameBound::Preceding(_), WindowFrameUnits::Range) | (_, WindowFrameUnits::Groups) => {
                    return None;
                }
                // From the current row, or after it: none before it is held.
                (_, WindowFrameUnits::Range) => {}
            }
        }
        let (partition, order, descending) =
            (function.partition_by().to_vec(), Arc::clone(&order.expr), order.options.descending);
        Some(Self { partition, order, descending, values, rows })
    }

    fn end(&self, batch: &RecordBatch, row: usize) -> Result<End> {
        let at = |expr: &Arc<dyn PhysicalExpr>| {
            ScalarValue::try_from_array(&expr.evaluate(batch)?.into_array(batch.num_rows())?, row)
        };
        Ok(End { partition: self.partition.iter().map(at).collect::<Result<_>>()?, value: at(&self.order)? })
    }

    /// Whether the frame of a row like `first` may hold one like `last`, which came before it.
    fn covers(&self, last: &End, first: &End) -> bool {
        let reaches = |by: &ScalarValue| {
            let bound = if self.descending { first.value.add_checked(by) } else { first.value.sub_checked(by) };
            let Ok(bound) = bound else { return true };
            let over = if self.descending { Ordering::Greater } else { Ordering::Less };
            last.value.partial_cmp(&bound) != Some(over)
        };
        last.partition == first.partition && self.values.iter().any(reaches)
    }
}

/// The first or the last row of a batch.
#[derive(Debug)]
struct End {
    partition: Vec<ScalarValue>,
    value: ScalarValue,
}

#[derive(Debug)]
struct Piece {
    rows: usize,
    bytes: usize,
    first: End,
    last: End,
}

/// The batches that are held.
#[derive(Debug, Default)]
pub(super) struct Held {
    pieces: VecDeque<Piece>,
    bytes: usize,
    /// Rows of batches that are held no more.
    over: usize,
}

impl Held {
    /// Takes a batch in, when `given` rows have come out of all that came in before. Gives the bytes that are held.
    ///
    /// # Errors
    /// When what rows are ordered by cannot be computed.
    pub(super) fn take(&mut self, reach: &Reach, batch: &RecordBatch, given: usize) -> Result<usize> {
        if let Some(last) = batch.num_rows().checked_sub(1) {
            let (first, last) = (reach.end(batch, 0)?, reach.end(batch, last)?);
            let bytes = batch.get_array_memory_size();
            self.pieces.push_back(Piece { rows: batch.num_rows(), bytes, first, last });
            self.bytes += bytes;
        }
        self.forget(reach, given);
        Ok(self.bytes)
    }

    fn forget(&mut self, reach: &Reach, given: usize) {
        while let Some(oldest) = self.pieces.front() {
            let mut end = self.over;
            let next = self.pieces.iter().find(|piece| {
                end += piece.rows;
                end > given
            });
            let is_behind = self.over + oldest.rows + reach.rows <= given;
            if !is_behind || next.is_none_or(|next| reach.covers(&oldest.last, &next.first)) {
                return;
            }
            self.bytes -= oldest.bytes;
            self.over += oldest.rows;
            self.pieces.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int64Array, StringArray};
    use arrow::record_batch::RecordBatch;
    use datafusion::common::ScalarValue;
    use datafusion::physical_expr::expressions::Column;

    use super::{Held, Reach};

    fn batch(tool: &str, values: &[i64]) -> RecordBatch {
        let tools = StringArray::from(vec![tool; values.len()]);
        let columns = [("tool", Arc::new(tools) as _), ("value", Arc::new(Int64Array::from(values.to_vec())) as _)];
        RecordBatch::try_from_iter(columns).unwrap()
    }

    fn reach(descending: bool, values: &[i64], rows: usize) -> Reach {
        Reach {
            partition: vec![Arc::new(Column::new("tool", 0))],
            order: Arc::new(Column::new("value", 1)),
            descending,
            values: values.iter().map(|value| ScalarValue::Int64(Some(*value))).collect(),
            rows,
        }
    }

    /// How many batches are held after each, by batches and rows given when each came.
    fn held(reach: &Reach, batches: &[(RecordBatch, usize)]) -> Vec<usize> {
        let mut held = Held::default();
        let mut take = |(batch, given): &(RecordBatch, usize)| {
            let bytes = held.take(reach, batch, *given).unwrap();
            assert_eq!(bytes, held.pieces.iter().map(|piece| piece.bytes).sum::<usize>());
            held.pieces.len()
        };
        batches.iter().map(&mut take).collect()
    }

    fn rising(descending: bool) -> Vec<(RecordBatch, usize)> {
        let of = |n: i64| {
            let values = [10 * n, 10 * n + 5].map(|value| if descending { -value } else { value });
            (batch("a", &values), (2 * n as usize).saturating_sub(1))
        };
        (0..8).map(of).collect()
    }

    #[test]
    fn batches_behind_the_frame_are_held_no_more() {
        // The next row is the second of the batch before: what is over is measured by the first of that.
        assert_eq!(held(&reach(false, &[12], 0), &rising(false)), [1, 2, 3, 3, 3, 3, 3, 3]);
        assert_eq!(held(&reach(true, &[12], 0), &rising(true)), [1, 2, 3, 3, 3, 3, 3, 3]);
        assert_eq!(held(&reach(false, &[4], 0), &rising(false)), [1, 2, 2, 2, 2, 2, 2, 2]);
        assert_eq!(held(&reach(false, &[4, 12], 0), &rising(false)), [1, 2, 3, 3, 3, 3, 3, 3], "the longest counts");
        assert_eq!(held(&reach(false, &[4], 6), &rising(false)), [1, 2, 3, 4, 5, 5, 5, 5], "rows count too");
        assert_eq!(held(&reach(false, &[i64::MAX], 0), &rising(false)), [1, 2, 3, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn a_partition_that_is_over_is_held_no_more_and_what_has_not_come_out_is() {
        let all = [(batch("a", &[1, 2]), 0), (batch("a", &[3, 4]), 0), (batch("b", &[1, 2]), 2), (batch("b", &[3]), 4)];
        assert_eq!(held(&reach(false, &[100], 0), &all), [1, 2, 3, 2]);
        assert_eq!(held(&reach(false, &[0], 0), &all[..3]), [1, 2, 2], "of the first all came out");
    }
}
