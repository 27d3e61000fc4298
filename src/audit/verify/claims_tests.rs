//! Segments whose rows are all right, and whose file says otherwise beside them.

use std::fs;
use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use ed25519_dalek::SigningKey;
use parquet::arrow::ArrowWriter;
use parquet::basic::{ConvertedType, Encoding, LogicalType, PageType};
use parquet::bloom_filter::Sbbf;
use parquet::column::writer::ColumnCloseResult;
use parquet::data_type::ByteArray;
use parquet::file::metadata::{
    KeyValue, LevelHistogram, PageEncodingStats, PageIndexPolicy, ParquetMetaData, ParquetMetaDataOptions,
    ParquetMetaDataReader, SortingColumn,
};
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterPropertiesBuilder, WriterVersion};
use parquet::file::statistics::Statistics;
use parquet::file::writer::SerializedFileWriter;
use tempfile::TempDir;

use super::{Expected, Fault, Folder, Kind, VerifyError, verify};
use crate::audit::fixtures::{ORIGIN, entries};
use crate::audit::note::{Algorithm, Note, VKey};
use crate::audit::segment::{self, SegmentName};
use crate::audit::{Checkpoint, Leaf, TreeEdge};

const ROWS: usize = 300;

/// A ledger in one segment, whose bytes each test takes from elsewhere.
struct Ledger {
    folder: TempDir,
    batch: RecordBatch,
    name: SegmentName,
}

impl Ledger {
    fn new() -> Self {
        let (folder, batch) = (TempDir::new().unwrap(), entries(ROWS));
        let mut edge = TreeEdge::default();
        let hash = |column: &str, row: usize| {
            use arrow::array::AsArray;
            batch.column_by_name(column).unwrap().as_string::<i32>().value(row).parse().unwrap()
        };
        for row in 0..ROWS {
            let leaf = Leaf { seq: row as u64, prev_hash: hash("prev_hash", row), entry_hash: hash("entry_hash", row) };
            edge.push(&leaf);
        }
        let write = |path: &str, bytes: &[u8]| {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        };
        for (path, bytes) in edge.take_tiles() {
            write(&format!("tile/{path}"), &bytes);
        }
        let head = Checkpoint { origin: ORIGIN.to_owned(), size: edge.size(), root: edge.root() };
        let note = Note::sign(head.to_string(), ORIGIN, &[&SigningKey::from_bytes(&[1; 32])]).unwrap();
        write("checkpoint", note.to_string().as_bytes());
        fs::create_dir(folder.path().join("segments")).unwrap();
        Self { folder, batch, name: SegmentName { first: 0, last: ROWS as u64 - 1 } }
    }

    fn verify(&self, segment: &[u8]) -> Result<(), Fault> {
        fs::write(self.folder.path().join(format!("segments/{}", self.name)), segment).unwrap();
        let key = SigningKey::from_bytes(&[1; 32]).verifying_key();
        let vkeys = vec![VKey::new(ORIGIN, Algorithm::Ed25519, key).unwrap()];
        let org = "acme".parse().unwrap();
        let expected = Expected { org, vkeys, witnesses: Vec::new(), checkpoints: Vec::new() };
        match verify(&Folder::open(self.folder.path()).unwrap(), &expected, None, &|_, _| {}) {
            Ok(_) => Ok(()),
            Err(VerifyError::NotSound(fault)) => Err(fault),
            Err(other) => panic!("{other}"),
        }
    }

    /// Asserts that a segment is refused for what it says beside its rows.
    #[track_caller]
    fn refuses(&self, segment: &[u8], what: &str, why: &str) {
        let fault = self.verify(segment).expect_err(what);
        assert_eq!((fault.kind, fault.seq), (Kind::FalseStatistics, Some(0)), "{what}: {fault}");
        assert!(fault.why.contains(why), "{what}: {fault}");
    }
}

fn written(batch: &RecordBatch, form: WriterPropertiesBuilder) -> Bytes {
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(form.build())).unwrap();
    // In pieces, so that a limit on the rows of a page is kept.
    (0..batch.num_rows()).step_by(10).for_each(|from| {
        writer.write(&batch.slice(from, 10.min(batch.num_rows() - from))).unwrap();
    });
    for (key, value) in [("mcpg.v", "mcpg.audit/1"), ("mcpg.origin", ORIGIN), ("mcpg.position", "1000000000000000")] {
        writer.append_key_value_metadata(KeyValue::new(key.to_owned(), value.to_owned()));
    }
    writer.into_inner().unwrap().into()
}

fn form() -> WriterPropertiesBuilder {
    WriterProperties::builder().set_data_page_row_count_limit(70).set_write_batch_size(10)
}

/// As the first design wrote its segments.
fn first_design() -> WriterPropertiesBuilder {
    form().set_statistics_enabled(EnabledStatistics::Chunk)
}

/// With all that can be said beside the rows.
fn talkative() -> WriterPropertiesBuilder {
    form().set_statistics_enabled(EnabledStatistics::Page).set_write_page_header_statistics(true)
}

#[test]
fn true_statistics_are_sound_in_whatever_form() {
    let ledger = Ledger::new();
    for (what, form) in [
        ("as the first design wrote", first_design()),
        ("no statistics", form().set_statistics_enabled(EnabledStatistics::None)),
        ("page statistics, indexes", talkative()),
        ("pages of version 2", talkative().set_writer_version(WriterVersion::PARQUET_2_0)),
        ("several row groups", talkative().set_max_row_group_row_count(Some(64))),
        ("bloom filters", talkative().set_bloom_filter_enabled(true)),
        ("no dictionaries", talkative().set_dictionary_enabled(false)),
        ("cut texts", talkative().set_statistics_truncate_length(Some(4)).set_column_index_truncate_length(Some(4))),
    ] {
        if let Err(fault) = ledger.verify(&written(&ledger.batch, form)) {
            panic!("{what}: {fault}");
        }
    }
}

fn metadata(bytes: &Bytes) -> ParquetMetaData {
    let options = ParquetMetaDataOptions::new().with_encoding_stats_as_mask(false);
    let reader = ParquetMetaDataReader::new().with_page_index_policy(PageIndexPolicy::Optional);
    reader.with_metadata_options(Some(options)).parse_and_finish(bytes).unwrap()
}

/// The file with its pages as they are, and whatever `change` makes of what is said about each column chunk, by the
/// column's name.
fn forged(bytes: &Bytes, change: impl Fn(&str, &mut ColumnCloseResult)) -> Vec<u8> {
    forged_as(bytes, WriterProperties::builder(), change)
}

fn forged_as(bytes: &Bytes, form: WriterPropertiesBuilder, change: impl Fn(&str, &mut ColumnCloseResult)) -> Vec<u8> {
    let metadata = metadata(bytes);
    let file = metadata.file_metadata();
    let pairs = file.key_value_metadata().cloned();
    let form = Arc::new(form.set_key_value_metadata(pairs).build());
    let schema = file.schema_descr().root_schema_ptr();
    let mut writer = SerializedFileWriter::new(Vec::new(), schema, form).unwrap();
    for (at, group) in metadata.row_groups().iter().enumerate() {
        let mut out = writer.next_row_group().unwrap();
        for (place, column) in group.columns().iter().enumerate() {
            let mut close = ColumnCloseResult {
                bytes_written: column.byte_range().1,
                rows_written: group.num_rows() as u64,
                metadata: column.clone(),
                bloom_filter: None,
                column_index: metadata.column_index().map(|index| index[at][place].clone()),
                offset_index: metadata.offset_index().map(|index| index[at][place].clone()),
            };
            change(column.column_path().parts()[0].as_str(), &mut close);
            out.append_column(bytes, close).unwrap();
        }
        out.close().unwrap();
    }
    writer.into_inner().unwrap()
}

/// Changes what is said of one column.
fn of(column: &'static str, change: impl Fn(&mut ColumnCloseResult)) -> impl Fn(&str, &mut ColumnCloseResult) {
    move |name, close| {
        if name == column {
            change(close);
        }
    }
}

fn with_statistics(close: &mut ColumnCloseResult, statistics: Statistics) {
    close.metadata = close.metadata.clone().into_builder().set_statistics(statistics).build().unwrap();
}

fn texts(least: &str, greatest: &str, distinct: Option<u64>, nulls: u64) -> Statistics {
    Statistics::byte_array(Some(ByteArray::from(least)), Some(ByteArray::from(greatest)), distinct, Some(nulls), false)
}

#[test]
fn a_copy_that_says_the_same_is_sound() {
    let ledger = Ledger::new();
    for form in [first_design(), talkative()] {
        let bytes = written(&ledger.batch, form);
        ledger.verify(&forged(&bytes, |_, _| {})).unwrap();
    }
}

#[test]
fn false_statistics_of_a_column_chunk_are_found() {
    let ledger = Ledger::new();
    let bytes = written(&ledger.batch, first_design());
    // actor-0 … actor-299; recorded_at 0 … 299 µs; reason is null in six of seven rows.
    ledger
        .verify(&forged(&bytes, of("actor", |close| with_statistics(close, texts("actor-0", "actor-99", None, 0)))))
        .unwrap();
    for (what, least, greatest, nulls) in [
        ("the greatest actor less", "actor-0", "actor-98", 0),
        ("the least actor greater", "actor-1", "actor-99", 0),
        ("a greatest that is none", "actor-0", "actor-990", 0),
        ("nulls that are none", "actor-0", "actor-99", 7),
    ] {
        let forged = forged(&bytes, of("actor", |close| with_statistics(close, texts(least, greatest, None, nulls))));
        ledger.refuses(&forged, what, "column actor, row group 0");
    }
    for (what, least, greatest) in [("set back", 0, 298), ("set forward", 0, 300), ("its least set forward", 1, 299)] {
        let statistics = Statistics::int64(Some(least), Some(greatest), None, Some(0), false);
        let forged = forged(&bytes, of("recorded_at", |close| with_statistics(close, statistics.clone())));
        ledger.refuses(&forged, what, "column recorded_at, row group 0");
    }
    let all_null = Statistics::byte_array(None, None, None, Some(ROWS as u64), false);
    ledger.refuses(
        &forged(&bytes, of("reason", |close| with_statistics(close, all_null.clone()))),
        "all null",
        "nulls is 300",
    );
    let of_nothing = texts("a", "b", None, ROWS as u64);
    ledger.refuses(
        &forged(&bytes, of("target", |close| with_statistics(close, of_nothing.clone()))),
        "values of nothing",
        "all are null",
    );
    let distinct = texts("actor-0", "actor-99", Some(3), 0);
    ledger.refuses(
        &forged(&bytes, of("actor", |close| with_statistics(close, distinct.clone()))),
        "distinct values",
        "cannot be held",
    );
    // What other readers take where the newer fields lack.
    let deprecated = Statistics::int64(Some(0), Some(298), None, Some(0), true);
    ledger.refuses(
        &forged(&bytes, of("recorded_at", |close| with_statistics(close, deprecated.clone()))),
        "old fields",
        "greatest",
    );
}

#[test]
fn false_counts_levels_sizes_and_encodings_are_found() {
    let ledger = Ledger::new();
    let bytes = written(&ledger.batch, first_design());
    let change = |column,
                  change: &dyn Fn(
        parquet::file::metadata::ColumnChunkMetaDataBuilder,
    ) -> parquet::file::metadata::ColumnChunkMetaDataBuilder| {
        forged(
            &bytes,
            of(column, |close| close.metadata = change(close.metadata.clone().into_builder()).build().unwrap()),
        )
    };
    ledger.refuses(&change("actor", &|column| column.set_num_values(299)), "values", "the number of values is 299");
    ledger.refuses(
        &change("actor", &|column| column.set_unencoded_byte_array_data_bytes(Some(7))),
        "bytes of texts",
        "the bytes of its texts is 7",
    );
    ledger.refuses(
        &change("reason", &|column| column.set_definition_level_histogram(Some(LevelHistogram::from(vec![300, 0])))),
        "definition levels",
        "histogram of definition levels",
    );
    ledger.refuses(
        &change("policy_ids", &|column| column.set_repetition_level_histogram(Some(LevelHistogram::from(vec![1, 2])))),
        "repetition levels",
        "histogram of repetition levels",
    );
    let encodings =
        vec![PageEncodingStats { page_type: PageType::DATA_PAGE, encoding: Encoding::RLE_DICTIONARY, count: 99 }];
    ledger.refuses(
        &change("actor", &|column| column.set_page_encoding_stats(encodings.clone())),
        "encodings of pages",
        "other encodings",
    );
    let fewer = forged(&bytes, |_, close| close.rows_written = 299);
    ledger.refuses(&fewer, "rows of the file", "the footer's number of rows is 299");
    let sorted = vec![SortingColumn { column_idx: 4, descending: true, nulls_first: false }];
    let sorted = forged_as(&bytes, WriterProperties::builder().set_sorting_columns(Some(sorted)), |_, _| {});
    ledger.refuses(&sorted, "an order", "cannot be held");
}

#[test]
fn false_page_indexes_are_found() {
    let ledger = Ledger::new();
    let bytes = written(&ledger.batch, talkative());
    let rows = forged(
        &bytes,
        of("actor", |close| {
            close.offset_index.as_mut().unwrap().page_locations[1].first_row_index += 1;
        }),
    );
    ledger.refuses(&rows, "the first row of a page", "a page's first row");
    let place = forged(
        &bytes,
        of("policy_ids", |close| {
            close.offset_index.as_mut().unwrap().page_locations[1].offset += 1;
        }),
    );
    ledger.refuses(&place, "the place of a page", "a page's place");
    let fewer = forged(
        &bytes,
        of("seq", |close| {
            close.offset_index.as_mut().unwrap().page_locations.pop();
        }),
    );
    ledger.refuses(&fewer, "a page less", "the offset index has");
    // The index of another ledger's segment: the numbers are the same, and nothing else is.
    let other = {
        let events = crate::audit::fixtures::events(1_000, &vec![("tool.deny", None); ROWS]);
        let schema = &crate::model::schema::schemas().unwrap().audit_log;
        crate::audit::seal(schema, ORIGIN, &crate::audit::ChainHead::default(), &events).unwrap().batch
    };
    let other = metadata(&written(&other, talkative()));
    for column in ["actor", "recorded_at", "action"] {
        let place = ledger.batch.schema().index_of(column).unwrap();
        let index = other.column_index().unwrap()[0][place].clone();
        let forged = forged(&bytes, of(column, |close| close.column_index = Some(index.clone())));
        ledger.refuses(&forged, column, "the column index");
    }
}

#[test]
fn a_bloom_filter_without_a_value_that_is_there_is_found() {
    let ledger = Ledger::new();
    let bytes = written(&ledger.batch, first_design());
    let filter = |values: std::ops::Range<usize>| {
        let mut filter = Sbbf::new_with_num_of_bytes(1 << 14);
        values.for_each(|n| filter.insert(format!("actor-{n}").as_str()));
        filter
    };
    let with = |filter: &Sbbf| forged(&bytes, of("actor", |close| close.bloom_filter = Some(filter.clone())));
    ledger.verify(&with(&filter(0..ROWS))).unwrap();
    ledger.refuses(&with(&filter(1..ROWS)), "a filter without actor-0", "does not have `actor-0`");
    // Nothing to look in at all.
    let empty = with(&Sbbf::new_with_num_of_bytes(32));
    ledger.refuses(&empty, "an empty filter", "does not have");
}

#[test]
fn any_byte_of_a_footer_that_is_changed_is_found_or_says_nothing_of_rows() {
    let ledger = Ledger::new();
    for form in [first_design(), talkative(), form().set_statistics_enabled(EnabledStatistics::None)] {
        let bytes = written(&ledger.batch, form);
        ledger.verify(&bytes).unwrap();
        let length = u32::from_le_bytes(bytes[bytes.len() - 8..bytes.len() - 4].try_into().unwrap()) as usize;
        let before = said(&bytes).unwrap();
        for at in (bytes.len() - 8 - length..bytes.len()).step_by(13) {
            let mut changed = bytes.to_vec();
            changed[at] ^= 1 << (at % 8);
            if ledger.verify(&changed).is_ok() {
                let now = said(&changed.into()).unwrap_or_default();
                let differs = before.bytes().zip(now.bytes()).position(|(a, b)| a != b).unwrap_or(before.len());
                let shown = |text: &str| text.chars().skip(differs.saturating_sub(60)).take(160).collect::<String>();
                assert!(
                    now == before,
                    "byte {at} of {length} in the footer: {} became {}",
                    shown(&before),
                    shown(&now)
                );
            }
        }
    }
}

/// Statistics as far as they are exact. A bound that is said not to be may be any that holds.
fn exact(statistics: &Statistics) -> String {
    let bound = |is_exact: bool, bytes: Option<&[u8]>| bytes.filter(|_| is_exact).map(<[u8]>::to_vec);
    let least = bound(statistics.min_is_exact(), statistics.min_bytes_opt());
    let greatest = bound(statistics.max_is_exact(), statistics.max_bytes_opt());
    format!("{least:?} {greatest:?} {:?} {:?}", statistics.null_count_opt(), statistics.distinct_count_opt())
}

/// What a reader can take about rows from a file's metadata; none where it cannot be read.
fn said(bytes: &Bytes) -> Option<String> {
    std::panic::catch_unwind(|| {
        let metadata = metadata(bytes);
        let file = metadata.file_metadata();
        let columns = metadata.row_groups().iter().flat_map(|group| {
            let rows = group.num_rows();
            group.columns().iter().map(move |column| {
                let (encodings, pages) = (column.encodings().collect::<Vec<_>>(), column.page_encoding_stats());
                let levels = (column.definition_level_histogram(), column.repetition_level_histogram());
                let sizes = (column.num_values(), column.byte_range(), column.unencoded_byte_array_data_bytes());
                format!("{rows} {:?} {encodings:?} {pages:?} {levels:?} {sizes:?}", column.statistics().map(exact))
            })
        });
        let columns: Vec<_> = columns.collect();
        let pairs = file
            .key_value_metadata()
            .into_iter()
            .flatten()
            .filter(|pair| ["mcpg.v", "mcpg.origin"].contains(&pair.key.as_str()));
        let pairs: Vec<_> = pairs.collect();
        // Names of the root, of groups within lists and of their items are free, and so are types that older readers
        // have twice.
        let leaves = file.schema_descr().columns().iter().map(|leaf| {
            let levels = (leaf.max_def_level(), leaf.max_rep_level());
            // Where the newer type is not understood, readers go by the older one beside it.
            let is_older_text = leaf.logical_type_ref().is_none() && leaf.converted_type() == ConvertedType::UTF8;
            let logical = if is_older_text { Some(&LogicalType::String) } else { leaf.logical_type_ref() };
            format!("{:?} {:?} {logical:?} {levels:?}", leaf.path().parts().first(), leaf.physical_type())
        });
        let (rows, leaves) = (file.num_rows(), leaves.collect::<Vec<_>>());
        format!("{rows} {pairs:?} {leaves:?} {columns:?} {:?} {:?}", metadata.column_index(), metadata.offset_index())
    })
    .ok()
}

#[test]
fn a_merged_segment_says_nothing_beside_its_rows() {
    let ledger = Ledger::new();
    let parts = [(0, 100), (100, 200)].map(|(from, count)| {
        let name = SegmentName { first: from as u64, last: (from + count - 1) as u64 };
        (name, written(&ledger.batch.slice(from, count), talkative()))
    });
    ledger.verify(&segment::merge(&ledger.batch.schema(), ORIGIN, &parts).unwrap()).unwrap();
}
