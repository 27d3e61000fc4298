//! Encoding table rows as Parquet files.
//!
//! | file | holds |
//! |---|---|
//! | `layout` | encodings, row groups, bloom filters, the order of the rows |
//! | `order` | putting rows in that order |
//! | `reader` | reading parts of a file |
//! | `stats` | the statistics that Delta's log carries of a file |
//! | `writer` | writing a file of any size piece by piece |
//!
//! A flush encodes what it has in memory as one file a partition date. The partition column is not stored in the file,
//! as Delta has it.

mod layout;
mod order;
mod reader;
mod stats;
mod writer;

use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{Array, AsArray, BooleanArray};
use arrow::compute;
use arrow::datatypes::{Date32Type, SchemaRef};
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::{ArrowColumnChunk, ArrowColumnWriter, compute_leaves};
use parquet::errors::ParquetError;
use parquet::file::metadata::RowGroupMetaDataPtr;
use parquet::file::properties::WriterProperties;

pub use layout::{MERGED_ROW_GROUP_BYTES, MERGED_ROW_GROUP_ROWS, Purpose, ROW_GROUP_ROWS, is_partial, properties};
pub use order::{Keys, sorted, taken};
pub use reader::{StoredFile, open};
pub use stats::{Counts, SOUGHT_ID, text_bounds, time_bounds};
pub use writer::FileWriter;

use super::StorageError;
use super::table::Partitioning;
use crate::model::schema::PARTITION_COLUMN;

/// Rows that are put in order at a time, so that what is at work stays in the processor's cache.
const TAKEN_ROWS: usize = 16_384;

/// An encoded file, not yet in the store.
#[derive(Debug, Clone)]
pub struct EncodedFile {
    /// Partition value: days since the Unix epoch, of the first day of its month where the table is partitioned by
    /// month.
    pub date: i32,
    /// The Parquet bytes.
    pub bytes: Bytes,
    /// Delta's statistics, JSON.
    pub stats: String,
}

/// Encodes batches of a table that is partitioned by day, in the order of the table, as one file a partition, on up to
/// `threads` threads, of which the caller's is one. The bytes do not depend on how many.
///
/// # Errors
/// When a batch is not of the table's schema, or Parquet cannot encode it.
pub fn encode(schema: &SchemaRef, batches: &[RecordBatch], threads: usize) -> Result<Vec<EncodedFile>, StorageError> {
    encode_by(Partitioning::Day, schema, batches, threads)
}

/// As [`encode`], of a table that is partitioned so.
///
/// # Errors
/// As [`encode`].
pub fn encode_by(
    partitioning: Partitioning,
    schema: &SchemaRef,
    batches: &[RecordBatch],
    threads: usize,
) -> Result<Vec<EncodedFile>, StorageError> {
    let failed = |e: ParquetError| StorageError::failed("encode", "a Parquet file", e);
    let mut files = Vec::new();
    for (date, rows) in split(partitioning, schema, batches).map_err(|e| failed(e.into()))? {
        let Some(first) = rows.first() else { continue };
        let schema = first.schema();
        let groups = Groups::of(&rows).map_err(|e| failed(e.into()))?;
        let (bytes, groups) = encode_file(properties(&schema, Purpose::Flushed)?, groups, threads).map_err(failed)?;
        let mut counts = Counts::default();
        rows.iter().for_each(|rows| counts.add(rows));
        let stats = counts.stats(&schema, groups.iter().map(AsRef::as_ref)).to_string();
        files.push(EncodedFile { date, bytes, stats });
    }
    Ok(files)
}

/// The rows of a file as they come to lie in row groups, of which one is made at a time.
enum Groups<'a> {
    /// In the order that they are in.
    Given(Vec<Vec<RecordBatch>>),
    /// In the order of the table: where they lie.
    Sorted(&'a [RecordBatch], Vec<(usize, usize)>),
}

impl<'a> Groups<'a> {
    fn of(rows: &'a [RecordBatch]) -> Result<Self, ArrowError> {
        Ok(match sorted(rows)? {
            None => Self::Given(row_groups(rows)),
            Some(places) => Self::Sorted(rows, places),
        })
    }

    /// The batches of the group of this number; none after the last.
    fn get(&self, number: usize) -> Result<Option<Vec<RecordBatch>>, ArrowError> {
        match self {
            Self::Given(groups) => Ok(groups.get(number).cloned()),
            Self::Sorted(rows, places) => {
                let group = places.chunks(ROW_GROUP_ROWS).nth(number);
                group.map(|group| group.chunks(TAKEN_ROWS).map(|places| taken(rows, places)).collect()).transpose()
            }
        }
    }
}

/// One file of rows, of which there is at least one, and what is known of its row groups.
fn encode_file(
    properties: WriterProperties,
    groups: Groups<'_>,
    threads: usize,
) -> Result<(Bytes, Vec<RowGroupMetaDataPtr>), ParquetError> {
    let first = groups.get(0)?.unwrap_or_default();
    let schema = first.first().map(RecordBatch::schema).ok_or_else(|| ParquetError::General("no batch".to_owned()))?;
    let writer = ArrowWriter::try_new(Vec::new(), Arc::clone(&schema), Some(properties))?;
    let (mut file, factory) = writer.into_serialized_writer()?;
    let (mut done, mut group) = (Vec::new(), Some(first));
    while let Some(rows) = group {
        let number = done.len();
        let chunks = encode_columns(&schema, factory.create_column_writers(number)?, &rows, threads)?;
        let mut row_group = file.next_row_group()?;
        chunks.into_iter().try_for_each(|chunk| chunk.append_to_row_group(&mut row_group))?;
        done.push(row_group.close()?);
        group = groups.get(number + 1)?;
    }
    Ok((file.into_inner()?.into(), done))
}

/// The batches as they come to lie in row groups, cut where a group is full.
fn row_groups(rows: &[RecordBatch]) -> Vec<Vec<RecordBatch>> {
    let (mut groups, mut group, mut room) = (Vec::new(), Vec::new(), ROW_GROUP_ROWS);
    for batch in rows {
        let mut at = 0;
        while at < batch.num_rows() {
            let taken = room.min(batch.num_rows() - at);
            group.push(batch.slice(at, taken));
            (at, room) = (at + taken, room - taken);
            if room == 0 {
                groups.push(std::mem::take(&mut group));
                room = ROW_GROUP_ROWS;
            }
        }
    }
    if !group.is_empty() {
        groups.push(group);
    }
    groups
}

/// The columns of one row group, encoded by several threads, each of which takes the next column when it is done with
/// one. Column by column also means that what is at work, a dictionary above all, stays in the processor's cache.
fn encode_columns(
    schema: &SchemaRef,
    writers: Vec<ArrowColumnWriter>,
    rows: &[RecordBatch],
    threads: usize,
) -> Result<Vec<ArrowColumnChunk>, ParquetError> {
    if writers.len() != schema.fields().len() {
        return Err(ParquetError::NYI("columns of several leaves".to_owned()));
    }
    let mut columns: Vec<_> = writers.into_iter().enumerate().collect();
    // The last is taken first: that with the most bytes, so that no thread is left with it at the end.
    columns.sort_by_cached_key(|(column, _)| column_bytes(rows, *column));
    let columns = Mutex::new(columns);
    let work = || {
        let mut done = Vec::new();
        loop {
            let next = columns.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some((column, mut writer)) = next else { return Ok::<_, ParquetError>(done) };
            for batch in rows {
                for leaf in compute_leaves(schema.field(column), batch.column(column))? {
                    writer.write(&leaf)?;
                }
            }
            done.push((column, writer.close()?));
        }
    };
    let mut chunks = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut chunks = work()?;
        for other in others {
            chunks.extend(other.join().map_err(|_| ParquetError::General("an encoding thread ended".to_owned()))??);
        }
        Ok::<_, ParquetError>(chunks)
    })?;
    chunks.sort_unstable_by_key(|(column, _)| *column);
    Ok(chunks.into_iter().map(|(_, chunk)| chunk).collect())
}

fn column_bytes(rows: &[RecordBatch], column: usize) -> usize {
    let bytes = |batch: &RecordBatch| batch.column(column).to_data().get_slice_memory_size().unwrap_or_default();
    rows.iter().map(bytes).sum()
}

/// The rows of each partition, as they are stored in its files. Days are without the column that says which, as Delta
/// has it; months keep their days.
fn split(
    partitioning: Partitioning,
    schema: &SchemaRef,
    batches: &[RecordBatch],
) -> Result<Vec<(i32, Vec<RecordBatch>)>, ArrowError> {
    let (index, _) = schema
        .column_with_name(PARTITION_COLUMN)
        .ok_or_else(|| ArrowError::SchemaError(format!("no column {PARTITION_COLUMN}")))?;
    let is_stored = |column: &usize| partitioning == Partitioning::Month || *column != index;
    let stored: Vec<usize> = (0..schema.fields().len()).filter(is_stored).collect();
    let mut partitions: Vec<(i32, Vec<RecordBatch>)> = Vec::new();
    for batch in batches {
        let dates = batch.column(index).as_primitive::<Date32Type>();
        let of = |date: i32| partitioning.partition_of(date);
        let (Some(first), Some(last)) = (compute::min(dates).map(of), compute::max(dates).map(of)) else { continue };
        let projected = batch.project(&stored)?;
        let mut put = |date: i32, rows: RecordBatch| match partitions.iter_mut().find(|day| day.0 == date) {
            Some(day) => day.1.push(rows),
            None => partitions.push((date, vec![rows])),
        };
        if first == last {
            put(first, projected);
            continue;
        }
        let mut present: Vec<i32> = dates.values().iter().map(|date| of(*date)).collect();
        present.sort_unstable();
        present.dedup();
        for partition in present {
            let mask: BooleanArray = dates.values().iter().map(|date| Some(of(*date) == partition)).collect();
            put(partition, compute::filter_record_batch(&projected, &mask)?);
        }
    }
    Ok(partitions)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Date32Array, Int64Array, StringArray};
    use arrow::compute::concat_batches;
    use arrow::datatypes::{DataType, Field, Schema};
    use arrow::record_batch::RecordBatch;
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
    use proptest::prelude::*;

    use super::{ROW_GROUP_ROWS, encode, row_groups};

    fn batch(numbers: std::ops::Range<i64>) -> RecordBatch {
        let fields = [("n", DataType::Int64), ("tool", DataType::Utf8), ("date", DataType::Date32)];
        let schema = Schema::new(fields.map(|(name, data_type)| Field::new(name, data_type, false)).to_vec());
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from_iter_values(numbers.clone())),
            Arc::new(StringArray::from_iter_values(numbers.clone().map(|n| format!("tool-{}", n % 7)))),
            Arc::new(Date32Array::from_iter_values(numbers.map(|_| 3))),
        ];
        RecordBatch::try_new(Arc::new(schema), columns).unwrap()
    }

    #[test]
    fn the_bytes_are_the_same_on_any_number_of_threads_and_hold_every_row_in_order() {
        let batches = [batch(0..1000), batch(1000..1001), batch(1001..30_000)];
        let encoded = |threads| encode(&batches[0].schema(), &batches, threads).unwrap().remove(0);
        let file = encoded(1);
        assert_eq!((file.date, &file.bytes), (3, &encoded(4).bytes));
        let reader = ParquetRecordBatchReaderBuilder::try_new(file.bytes).unwrap().build().unwrap();
        let read: Vec<_> = reader.map(Result::unwrap).collect();
        let expected = batch(0..30_000).project(&[0, 1]).unwrap();
        assert_eq!(concat_batches(&read[0].schema(), &read).unwrap().columns(), expected.columns());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        /// Each group but the last is full, and none is empty.
        #[test]
        fn row_groups_are_full_but_for_the_last(sizes in prop::collection::vec(0i64..200_000, 0..8)) {
            let batches: Vec<_> = sizes.iter().map(|size| batch(0..*size).project(&[0]).unwrap()).collect();
            let rows = |group: &Vec<RecordBatch>| group.iter().map(RecordBatch::num_rows).sum::<usize>();
            let groups = row_groups(&batches);
            prop_assert_eq!(groups.iter().map(rows).sum::<usize>() as i64, sizes.iter().sum::<i64>());
            if let Some((last, full)) = groups.split_last() {
                prop_assert!(full.iter().all(|group| rows(group) == ROW_GROUP_ROWS));
                prop_assert!((1..=ROW_GROUP_ROWS).contains(&rows(last)));
            }
        }
    }
}
