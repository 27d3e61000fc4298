//! The live buffer: acknowledged samples that some table does not hold yet, in order of position.
//!
//! Batches that arrive small are put together as they age (each row is copied at most about log2 of the merged size
//! times), so that a thousand requests of one sample are not a thousand batches to a query. Where a merged batch holds
//! several positions it remembers the row each ends at, and so can be cut at any position without a copy.
//!
//! It is memory only: after a crash it is made again from the WAL.

use std::collections::VecDeque;

use arrow::array::{Array, ArrayRef};
use arrow::compute::concat_batches;
use arrow::record_batch::RecordBatch;

/// Batches are put together up to this many rows. A query gains little by larger ones, and each doubling copies every
/// sample once more while the org waits.
const MERGE_ROWS: usize = 1_024;

/// Memory that a batch's rows take, in bytes. The columns of a batch that was read from the log share one allocation,
/// which `get_array_memory_size` would count for each of them.
pub fn held_bytes(batch: &RecordBatch) -> usize {
    let column = |column: &ArrayRef| column.to_data().get_slice_memory_size().unwrap_or_default();
    batch.columns().iter().map(column).sum()
}

#[derive(Debug)]
struct Entry {
    batch: RecordBatch,
    bytes: usize,
    /// Ascending positions, each with the number of rows up to and with it.
    ends: Vec<(u64, usize)>,
}

impl Entry {
    fn last(&self) -> u64 {
        self.ends.last().map_or(0, |end| end.0)
    }

    /// The rows after position `after`, up to and with `through`.
    fn range(&self, after: u64, through: u64) -> RecordBatch {
        let row = |position| self.ends.iter().rev().find(|end| end.0 <= position).map_or(0, |end| end.1);
        let (from, to) = (row(after), row(through));
        self.batch.slice(from, to.saturating_sub(from))
    }
}

/// The live buffer of one table.
#[derive(Debug, Default)]
pub struct LiveBuffer {
    entries: VecDeque<Entry>,
    rows: usize,
    bytes: usize,
}

impl LiveBuffer {
    /// Adds the samples of a position, not lower than any before. It cannot fail: where Arrow would not put batches
    /// together, which batches of one schema never cause, they stay apart.
    pub fn push(&mut self, position: u64, batch: RecordBatch) {
        if batch.num_rows() == 0 {
            return;
        }
        let bytes = held_bytes(&batch);
        let mut last = Entry { ends: vec![(position, batch.num_rows())], batch, bytes };
        self.rows += last.batch.num_rows();
        self.bytes += bytes;
        while let Some(before) = self.entries.back() {
            let (old, new) = (before.batch.num_rows(), last.batch.num_rows());
            if old > 2 * new || old + new > MERGE_ROWS {
                break;
            }
            let Ok(batch) = concat_batches(&last.batch.schema(), [&before.batch, &last.batch]) else { break };
            let bytes = held_bytes(&batch);
            self.bytes = self.bytes + bytes - before.bytes - last.bytes;
            let mut ends = before.ends.clone();
            ends.extend(last.ends.iter().map(|(position, row)| (*position, row + old)));
            last = Entry { batch, bytes, ends };
            self.entries.pop_back();
        }
        self.entries.push_back(last);
    }

    /// The samples after `position`, oldest first.
    pub fn after(&self, position: u64) -> Vec<RecordBatch> {
        self.range(position, u64::MAX)
    }

    /// The samples after position `after`, up to and with `through`, oldest first.
    pub fn range(&self, after: u64, through: u64) -> Vec<RecordBatch> {
        let newer = self.entries.iter().filter(|entry| entry.last() > after);
        newer.map(|entry| entry.range(after, through)).filter(|batch| batch.num_rows() > 0).collect()
    }

    /// The samples after `position`, each position's by itself, oldest first.
    pub fn parts(&self, position: u64) -> Vec<(u64, RecordBatch)> {
        let mut parts = Vec::new();
        for entry in self.entries.iter().filter(|entry| entry.last() > position) {
            let mut from = 0;
            for (at, end) in &entry.ends {
                if *at > position {
                    parts.push((*at, entry.batch.slice(from, end - from)));
                }
                from = *end;
            }
        }
        parts
    }

    /// The least position in it.
    pub fn first_position(&self) -> Option<u64> {
        self.entries.front().and_then(|entry| entry.ends.first()).map(|(position, _)| *position)
    }

    /// Forgets what every table holds. An entry goes when all of it is at or below `position`.
    pub fn release(&mut self, position: u64) {
        while let Some(first) = self.entries.front() {
            if first.last() > position {
                return;
            }
            self.rows -= first.batch.num_rows();
            self.bytes -= first.bytes;
            self.entries.pop_front();
        }
    }

    /// The greatest position in it.
    pub fn last_position(&self) -> Option<u64> {
        self.entries.back().map(Entry::last)
    }

    /// Rows in it.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes that its arrays hold.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{AsArray, Int64Array};
    use arrow::datatypes::{DataType, Field, Int64Type, Schema};
    use arrow::record_batch::RecordBatch;
    use proptest::prelude::*;

    use super::LiveBuffer;

    fn batch(values: impl IntoIterator<Item = i64>) -> RecordBatch {
        let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]));
        RecordBatch::try_new(schema, vec![Arc::new(values.into_iter().collect::<Int64Array>())]).unwrap()
    }

    fn values(batches: &[RecordBatch]) -> Vec<i64> {
        batches.iter().flat_map(|b| b.column(0).as_primitive::<Int64Type>().values().to_vec()).collect()
    }

    #[test]
    fn many_small_batches_become_few() {
        let mut live = LiveBuffer::default();
        for position in 1..=1000 {
            live.push(position, batch([position as i64]));
        }
        assert!(live.after(0).len() < 12, "{} batches", live.after(0).len());
        assert_eq!(values(&live.after(0)), (1..=1000).collect::<Vec<_>>());
    }

    proptest! {
        /// Whatever the sizes, cutting at any position gives exactly the rows after it, and the sums stay right.
        #[test]
        fn a_cut_at_any_position_gives_exactly_the_rows_after_it(
            sizes in prop::collection::vec(0usize..200, 1..60), cut in 0u64..70, release in 0u64..70, through in 0u64..80,
        ) {
            let mut live = LiveBuffer::default();
            let mut model: Vec<(u64, i64)> = Vec::new();
            for (n, size) in sizes.iter().enumerate() {
                let position = n as u64 + 1;
                let rows: Vec<i64> = (0..*size as i64).map(|i| position as i64 * 1000 + i).collect();
                model.extend(rows.iter().map(|row| (position, *row)));
                live.push(position, batch(rows));
            }
            let cut = cut.max(release);
            live.release(release);
            let through = through.max(cut);
            let rows = |to: u64| model.iter().filter(|(p, _)| *p > cut && *p <= to).map(|(_, row)| *row).collect::<Vec<_>>();
            prop_assert_eq!(values(&live.after(cut)), rows(u64::MAX));
            prop_assert_eq!(values(&live.range(cut, through)), rows(through));
            live.release(u64::MAX);
            prop_assert_eq!((live.rows(), live.bytes()), (0, 0));
        }
    }
}
