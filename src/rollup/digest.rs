//! What a batch adds to the running totals, worked out before the batch is committed.
//!
//! Applying a batch to the totals happens under a lock, in the order of the WAL; aggregating its rows is pure and needs
//! neither. So each request makes the digest of its batch without waiting, and under the lock there is left one
//! addition for each distinct series and hour and one for each row's bucket.
//!
//! A digest has *cells*: a cell is one hour of one series. The buckets of its dispatched calls lie together in one list
//! for the whole batch; most cells have few calls, for which a histogram each would be far larger than the list. A
//! denied call is counted and has no bucket: it ran nothing, and how soon it was denied says nothing of the tool's
//! latency.

use std::hash::BuildHasher;
use std::ops::Range;

use arrow::array::{Array, ArrayRef, AsArray, Float64Array, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Float64Type, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;
use hashbrown::hash_table::Entry;
use hashbrown::{DefaultHashBuilder, HashTable};

use super::histogram::{Moments, bucket_of, sanitised};
use super::{Granularity, RollupError};
use crate::model::Outcome;
use crate::model::schema::schemas;

/// What names a series within an org.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct SeriesName<'a> {
    pub(super) workspace: &'a str,
    pub(super) plugin: &'a str,
    pub(super) tool: &'a str,
}

/// What a batch adds to the running totals of its org.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Digest {
    /// Names of the distinct series, in order of first appearance, one after the other.
    names: String,
    /// Where in `names` each series' workspace, plugin and tool are.
    series: Vec<[Range<usize>; 3]>,
    cells: Vec<Cell>,
    /// The bucket of the duration of every dispatched call, those of a cell in a row.
    buckets: Vec<i16>,
}

/// One hour of one series.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Cell {
    /// Which series of the digest, counted from 0.
    pub(super) series: usize,
    /// The start of the hour, in microseconds since the Unix epoch.
    pub(super) hour: i64,
    /// All calls.
    pub(super) calls: u64,
    /// Calls that failed.
    pub(super) errors: u64,
    /// Calls that were not allowed.
    pub(super) denials: u64,
    /// Sum, least and greatest duration of dispatched calls.
    pub(super) moments: Moments,
    /// How many calls were dispatched; while the digest is made, how many so far.
    dispatched: usize,
    /// Where the buckets of those begin in the digest's list.
    first: usize,
}

impl Digest {
    /// Aggregates a canonical batch by series and hour. Pure.
    ///
    /// # Errors
    /// When the batch is not of the canonical schema or an outcome is unknown.
    pub fn of(batch: &RecordBatch) -> Result<Self, RollupError> {
        let columns = Columns::of(batch)?;
        let mut digest = Self::default();
        let mut index = Index::default();
        // A gateway's samples often come in runs of one series; then the name need not be hashed again.
        let mut cell_of_row = Vec::with_capacity(batch.num_rows());
        let mut bucket_of_row = Vec::with_capacity(batch.num_rows());
        let mut last: Option<(SeriesName<'_>, usize)> = None;
        for row in 0..batch.num_rows() {
            let name = columns.name(row);
            let series = match last {
                Some((last, series)) if last == name => series,
                _ => index.series(&mut digest, name),
            };
            last = Some((name, series));
            let place = index.cell(&mut digest, series, columns.started_at.value(row));
            let outcome = columns.outcome(row)?;
            let Some(cell) = digest.cells.get_mut(place) else { continue };
            cell.calls += 1;
            cell.errors += u64::from(outcome.is_error());
            cell.denials += u64::from(outcome.is_denial());
            if outcome.is_denial() {
                continue;
            }
            let duration_ms = sanitised(columns.duration_ms.value(row));
            cell.moments.record(duration_ms, 1);
            cell.dispatched += 1;
            cell_of_row.push(place);
            bucket_of_row.push(bucket_of(duration_ms));
        }
        digest.gather(&cell_of_row, &bucket_of_row);
        Ok(digest)
    }

    /// The distinct series, in order of first appearance.
    pub(super) fn series(&self) -> impl Iterator<Item = SeriesName<'_>> {
        let part = |range: &Range<usize>| self.names.get(range.clone()).unwrap_or_default();
        self.series.iter().map(move |[workspace, plugin, tool]| SeriesName {
            workspace: part(workspace),
            plugin: part(plugin),
            tool: part(tool),
        })
    }

    /// The cells, in order of first appearance.
    pub(super) fn cells(&self) -> &[Cell] {
        &self.cells
    }

    /// The buckets of a cell's dispatched calls.
    pub(super) fn buckets(&self, cell: &Cell) -> &[i16] {
        self.buckets.get(cell.first..cell.first + cell.dispatched).unwrap_or_default()
    }

    /// Memory held, in bytes.
    pub fn size_bytes(&self) -> usize {
        size_of::<Self>()
            + self.names.capacity()
            + self.series.capacity() * size_of::<[Range<usize>; 3]>()
            + self.cells.capacity() * size_of::<Cell>()
            + self.buckets.capacity() * size_of::<i16>()
    }

    /// Puts the bucket of each dispatched call to those of its cell.
    fn gather(&mut self, cell_of_row: &[usize], bucket_of_row: &[i16]) {
        let mut end = 0;
        let mut next: Vec<usize> = Vec::with_capacity(self.cells.len());
        for cell in &mut self.cells {
            cell.first = end;
            next.push(end);
            end += cell.dispatched;
        }
        self.buckets = vec![0; end];
        for (&cell, &bucket) in cell_of_row.iter().zip(bucket_of_row) {
            if let Some(next) = next.get_mut(cell) {
                if let Some(place) = self.buckets.get_mut(*next) {
                    *place = bucket;
                }
                *next += 1;
            }
        }
    }
}

/// Where the series and cells of a digest in the making are.
#[derive(Default)]
struct Index<'a> {
    hasher: DefaultHashBuilder,
    series: HashTable<(SeriesName<'a>, usize)>,
    /// Places of cells, found by series and hour.
    cells: HashTable<usize>,
    /// For each series, the hour of its last row, and the place of that cell.
    latest: Vec<(Range<i64>, usize)>,
}

impl<'a> Index<'a> {
    /// The series of that name, new if need be.
    fn series(&mut self, digest: &mut Digest, name: SeriesName<'a>) -> usize {
        let hasher = &self.hasher;
        match self.series.entry(hasher.hash_one(name), |(of, _)| *of == name, |(of, _)| hasher.hash_one(of)) {
            Entry::Occupied(found) => found.get().1,
            Entry::Vacant(vacant) => {
                let series = digest.series.len();
                vacant.insert((name, series));
                digest.series.push([name.workspace, name.plugin, name.tool].map(|part| {
                    let start = digest.names.len();
                    digest.names.push_str(part);
                    start..digest.names.len()
                }));
                self.latest.push((0..0, 0));
                series
            }
        }
    }

    /// The cell of a series at a time in microseconds since the Unix epoch, new if need be.
    fn cell(&mut self, digest: &mut Digest, series: usize, micros: i64) -> usize {
        if let Some((hour, place)) = self.latest.get(series)
            && hour.contains(&micros)
        {
            return *place;
        }
        let hour = Granularity::Hour.window_start(micros);
        let hasher = &self.hasher;
        let cells = &mut digest.cells;
        let key = |place: &usize| cells.get(*place).map(|cell| (cell.series, cell.hour));
        let sought = Some((series, hour));
        let place =
            match self.cells.entry(hasher.hash_one(sought), |at| key(at) == sought, |at| hasher.hash_one(key(at))) {
                Entry::Occupied(found) => *found.get(),
                Entry::Vacant(vacant) => *vacant.insert(cells.len()).get(),
            };
        if place == cells.len() {
            cells.push(Cell {
                series,
                hour,
                calls: 0,
                errors: 0,
                denials: 0,
                moments: Moments::default(),
                dispatched: 0,
                first: 0,
            });
        }
        if let Some(latest) = self.latest.get_mut(series) {
            *latest = (hour..hour.saturating_add(Granularity::Hour.width()), place);
        }
        place
    }
}

/// The columns of a canonical batch that a digest is made of.
struct Columns<'a> {
    workspace: &'a StringArray,
    plugin: &'a StringArray,
    tool: &'a StringArray,
    outcome: &'a StringArray,
    started_at: &'a TimestampMicrosecondArray,
    duration_ms: &'a Float64Array,
}

impl<'a> Columns<'a> {
    fn of(batch: &'a RecordBatch) -> Result<Self, RollupError> {
        Ok(Self {
            workspace: column(batch, "workspace", |array| array.as_string_opt::<i32>())?,
            plugin: column(batch, "plugin", |array| array.as_string_opt::<i32>())?,
            tool: column(batch, "tool", |array| array.as_string_opt::<i32>())?,
            outcome: column(batch, "outcome", |array| array.as_string_opt::<i32>())?,
            started_at: column(batch, "started_at", |array| array.as_primitive_opt::<TimestampMicrosecondType>())?,
            duration_ms: column(batch, "duration_ms", |array| array.as_primitive_opt::<Float64Type>())?,
        })
    }

    fn name(&self, row: usize) -> SeriesName<'a> {
        SeriesName { workspace: self.workspace.value(row), plugin: self.plugin.value(row), tool: self.tool.value(row) }
    }

    fn outcome(&self, row: usize) -> Result<Outcome, RollupError> {
        let word = self.outcome.value(row);
        Outcome::parse(word).ok_or_else(|| RollupError::UnknownOutcome { row, outcome: word.to_owned() })
    }
}

/// A column of a canonical batch, which has no nulls.
fn column<'a, A: Array>(
    batch: &'a RecordBatch,
    name: &'static str,
    downcast: impl FnOnce(&'a ArrayRef) -> Option<&'a A>,
) -> Result<&'a A, RollupError> {
    let found = batch.column_by_name(name).and_then(downcast).filter(|array| array.null_count() == 0);
    found.ok_or_else(|| {
        let schema = schemas().map(|all| &all.tool_invocations);
        let expected = schema.ok().and_then(|schema| schema.field_with_name(name).ok()).map(|f| f.data_type().clone());
        RollupError::Column { column: name, expected: expected.unwrap_or(DataType::Null) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollup::testing::{Sample, batch};

    const HOUR: i64 = Granularity::Hour.width();

    #[test]
    fn a_cell_is_an_hour_of_a_series() {
        let calls = [
            Sample { tool: "a", started_at: HOUR, duration_ms: 1000.0, ..Sample::default() },
            Sample { tool: "b", started_at: HOUR, outcome: "timeout", ..Sample::default() },
            Sample {
                tool: "a",
                started_at: 2 * HOUR - 1,
                duration_ms: 2000.0,
                outcome: "quota_exceeded",
                ..Sample::default()
            },
            Sample { tool: "a", started_at: HOUR - 1, ..Sample::default() },
        ];
        let digest = Digest::of(&batch(&calls)).unwrap();
        let tools: Vec<_> = digest.series().map(|name| name.tool).collect();
        assert_eq!(tools, ["a", "b"]);
        let cells: Vec<_> = digest.cells().iter().map(|c| (c.series, c.hour, c.calls, c.errors, c.denials)).collect();
        assert_eq!(cells, [(0, HOUR, 2, 0, 1), (1, HOUR, 1, 1, 0), (0, 0, 1, 0, 0)]);
        assert_eq!(digest.buckets(&digest.cells()[0]), [-1], "a denied call has no latency");
        assert_eq!(digest.cells()[0].moments, Moments { sum: 1000 << 16, min: 1000.0, max: 1000.0 });
    }

    #[test]
    fn names_that_read_alike_when_joined_are_apart() {
        let calls = [
            Sample { workspace: "a", plugin: "bc", ..Sample::default() },
            Sample { workspace: "ab", plugin: "c", ..Sample::default() },
        ];
        assert_eq!(Digest::of(&batch(&calls)).unwrap().series().count(), 2);
    }

    #[test]
    fn an_unknown_outcome_is_named_with_its_row() {
        let calls = [Sample::default(), Sample { outcome: "maybe", ..Sample::default() }];
        let error = Digest::of(&batch(&calls)).unwrap_err().to_string();
        assert_eq!(error, "row 1 of a batch of samples: `maybe` is no outcome");
    }

    #[test]
    fn a_batch_without_a_column_is_refused() {
        let batch = batch(&[Sample::default()]);
        let without = batch.schema().index_of("duration_ms").unwrap();
        let kept: Vec<usize> = (0..batch.num_columns()).filter(|&column| column != without).collect();
        let error = Digest::of(&batch.project(&kept).unwrap()).unwrap_err().to_string();
        assert_eq!(error, "a batch of samples has no column `duration_ms` of type Float64 without nulls");
    }

    #[test]
    fn a_batch_of_nothing_adds_nothing() {
        assert_eq!(Digest::of(&batch(&[])).unwrap(), Digest::default());
    }
}
