//! Segments as they are written, read and merged, and those of the first design.

use arrow::compute::concat_batches;
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::file::metadata::{KeyValue, PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader};
use parquet::file::properties::{EnabledStatistics, WriterProperties};

use super::{META_POSITION, META_STANDING, SPLICE_ROWS, SegmentName, SegmentWriter, merge, read};
use crate::audit::Hash;
use crate::audit::fixtures::{ORIGIN, entries};
use crate::model::schema::schemas;

fn name(first: usize, last: usize) -> SegmentName {
    SegmentName { first: first as u64, last: last as u64 }
}

fn written(batch: &RecordBatch) -> Bytes {
    let mut writer = SegmentWriter::new(&batch.schema(), ORIGIN).unwrap();
    writer.write(batch).unwrap();
    writer.finish().unwrap()
}

/// A segment as the first design wrote it.
fn of_the_first_design(batch: &RecordBatch) -> Bytes {
    let form = WriterProperties::builder().set_statistics_enabled(EnabledStatistics::Chunk).build();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(form)).unwrap();
    writer.write(batch).unwrap();
    for (key, value) in
        [("mcpg.v", "mcpg.audit/1"), ("mcpg.origin", ORIGIN), (META_POSITION, "17"), (META_STANDING, "{}")]
    {
        writer.append_key_value_metadata(KeyValue::new(key.to_owned(), value.to_owned()));
    }
    writer.into_inner().unwrap().into()
}

fn rows(bytes: &Bytes, name: SegmentName) -> RecordBatch {
    let mut batches = Vec::new();
    read("x", name, bytes.clone(), |batch| {
        batches.push(batch);
        Ok(())
    })
    .unwrap();
    concat_batches(&schemas().unwrap().audit_log, &batches).unwrap()
}

fn metadata(bytes: &Bytes) -> ParquetMetaData {
    ParquetMetaDataReader::new().with_page_index_policy(PageIndexPolicy::Optional).parse_and_finish(bytes).unwrap()
}

#[test]
fn a_segment_says_nothing_of_its_rows_beside_them() {
    let batch = entries(500);
    let bytes = written(&batch);
    assert_eq!(rows(&bytes, name(0, 499)), batch);
    let metadata = metadata(&bytes);
    let keys = metadata.file_metadata().key_value_metadata().unwrap().iter().map(|pair| pair.key.as_str());
    assert_eq!(keys.collect::<Vec<_>>(), ["mcpg.v", "mcpg.origin"]);
    assert!(metadata.column_index().is_none() && metadata.offset_index().is_none());
    for column in metadata.row_groups().iter().flat_map(|group| group.columns()) {
        assert!(super::merge::is_plain(column), "{column:?}");
    }
}

#[test]
fn a_segment_of_the_first_design_is_read_and_its_bookmarks_come_back() {
    let batch = entries(50);
    let bytes = of_the_first_design(&batch);
    assert_eq!(rows(&bytes, name(0, 49)), batch);
    let end = read("x", name(0, 49), bytes, |_| Ok(())).unwrap();
    assert_eq!((end.position, end.standing.as_deref(), end.head.size), (Some(17), Some("{}"), 50));
    let end = read("x", name(0, 49), written(&batch), |_| Ok(())).unwrap();
    assert_eq!((end.position, end.standing), (None, None));
}

#[test]
fn rows_that_are_not_those_of_the_name_are_damage() {
    let bytes = written(&entries(50));
    for (first, last) in [(0, 48), (0, 50), (1, 50)] {
        assert!(read("x", name(first, last), bytes.clone(), |_| Ok(())).unwrap_err().is_damage());
    }
}

/// Cuts the entries into parts that end at these numbers.
fn parts(batch: &RecordBatch, ends: &[usize], write: fn(&RecordBatch) -> Bytes) -> Vec<(SegmentName, Bytes)> {
    let mut from = 0;
    let part = |end: &usize| {
        let part = (name(from, *end - 1), write(&batch.slice(from, *end - from)));
        from = *end;
        part
    };
    ends.iter().map(part).collect()
}

#[test]
fn merging_keeps_every_row_whatever_the_parts_are() {
    let large = SPLICE_ROWS as usize;
    let all = entries(2 * large + 100);
    let ends = [1, 20, 20 + large, 50 + large, 50 + 2 * large, all.num_rows()];
    for (write, is_plain) in [(written as fn(&RecordBatch) -> Bytes, true), (of_the_first_design, false)] {
        let parts = parts(&all, &ends, write);
        let merged = merge(&all.schema(), ORIGIN, &parts).unwrap();
        assert_eq!(rows(&merged, name(0, all.num_rows() - 1)), all);
        assert_eq!(merge(&all.schema(), ORIGIN, &parts).unwrap(), merged, "the same parts give the same bytes");
        let metadata = metadata(&merged);
        assert!(metadata.row_groups().iter().flat_map(|group| group.columns()).all(super::merge::is_plain));
        let groups: Vec<_> = metadata.row_groups().iter().map(|group| group.num_rows() as usize).collect();
        let expected = if is_plain { vec![20, large, 30, large, 50] } else { vec![all.num_rows()] };
        assert_eq!(groups, expected);
    }
}

#[test]
fn large_row_groups_are_copied_as_they_are_encoded() {
    let large = SPLICE_ROWS as usize;
    let all = entries(2 * large);
    let parts = parts(&all, &[large, 2 * large], written);
    let merged = merge(&all.schema(), ORIGIN, &parts).unwrap();
    let (whole, part) = (metadata(&merged), metadata(&parts[1].1));
    for (column, of_part) in whole.row_group(1).columns().iter().zip(part.row_group(0).columns()) {
        let bytes =
            |file: &Bytes, (from, length): (u64, u64)| Hash::of(&[&file[from as usize..(from + length) as usize]]);
        assert_eq!(bytes(&merged, column.byte_range()), bytes(&parts[1].1, of_part.byte_range()));
    }
}

#[test]
fn parts_that_do_not_follow_each_other_or_are_of_another_ledger_are_damage() {
    let all = entries(60);
    let good = parts(&all, &[20, 40, 60], written);
    let swapped = vec![good[1].clone(), good[0].clone()];
    let gap = vec![good[0].clone(), good[2].clone()];
    let renamed = vec![good[0].clone(), (name(20, 39), good[2].1.clone())];
    let mut other = entries(60).slice(20, 20);
    let column = other.schema().index_of("prev_hash").unwrap();
    let mut columns = other.columns().to_vec();
    columns[column] = std::sync::Arc::clone(other.column_by_name("entry_hash").unwrap());
    other = RecordBatch::try_new(other.schema(), columns).unwrap();
    let unlinked = vec![good[0].clone(), (name(20, 39), written(&other))];
    for bad in [swapped, gap, renamed, unlinked] {
        assert!(merge(&all.schema(), ORIGIN, &bad).unwrap_err().is_damage());
    }
    assert!(merge(&all.schema(), "x/orgs/acme/audit/1", &good).unwrap_err().is_damage());
}
