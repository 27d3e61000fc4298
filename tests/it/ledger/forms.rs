//! A ledger that something else wrote: its Parquet files may be of any physical form, and must say neither more nor
//! less.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, ListArray, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, TimeUnit};
use mcpg::audit::segment::SegmentName;
use parquet::basic::{Compression, GzipLevel, ZstdLevel};
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterVersion};

use super::given::{Copied, Given};
use super::spoil::{Segments, rows, with_column};

const SOUND: [(&str, &str); 2] = [("mcpg.v", "mcpg.audit/1"), ("mcpg.origin", "mcpg.local/orgs/default/audit/1")];

fn each_text(batch: &RecordBatch, to: &DataType) -> RecordBatch {
    let texts: Vec<_> =
        batch.schema().fields().iter().filter(|field| *field.data_type() == DataType::Utf8).cloned().collect();
    texts.iter().fold(batch.clone(), |batch, field| {
        let column = cast(batch.column_by_name(field.name()).unwrap(), to).unwrap();
        with_column(&batch, field.name(), column)
    })
}

/// Another name for the items of lists, as other writers have it.
fn renamed_items(batch: &RecordBatch) -> RecordBatch {
    ["policy_ids", "obligations"].iter().fold(batch.clone(), |batch, name| {
        let list = batch.column_by_name(name).unwrap().as_list::<i32>().clone();
        let (_, offsets, values, nulls) = list.into_parts();
        let item = Arc::new(Field::new("element", DataType::Utf8, true));
        let list: ArrayRef = Arc::new(ListArray::new(item, offsets, values, nulls));
        with_column(&batch, name, list)
    })
}

fn zoned(batch: &RecordBatch, zone: Option<&str>) -> RecordBatch {
    ["occurred_at", "recorded_at"].iter().fold(batch.clone(), |batch, name| {
        let to = DataType::Timestamp(TimeUnit::Microsecond, zone.map(Into::into));
        let column = cast(batch.column_by_name(name).unwrap(), &to).unwrap();
        with_column(&batch, name, column)
    })
}

fn without(batch: &RecordBatch, name: &str) -> RecordBatch {
    let schema = batch.schema();
    let columns = schema
        .fields()
        .iter()
        .zip(batch.columns())
        .filter(|(field, _)| field.name() != name)
        .map(|(f, c)| (f.name().clone(), Arc::clone(c), true));
    RecordBatch::try_from_iter_with_nullable(columns.collect::<Vec<_>>()).unwrap()
}

/// Writes every segment of a copy anew.
fn rewrite(
    copy: &Copied,
    pairs: &[(&str, &str)],
    form: &WriterProperties,
    change: impl Fn(&RecordBatch) -> RecordBatch,
) {
    let segments = Segments::of(copy);
    for name in &segments.names {
        segments.write_as(*name, &change(&segments.read(*name)), pairs, form.clone());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_physical_form_of_a_segment_is_free() {
    let given = Given::of(2_000, 2).await;
    let form = || WriterProperties::builder();
    let forms = [
        ("no compression", form().set_compression(Compression::UNCOMPRESSED).build()),
        ("snappy", form().set_compression(Compression::SNAPPY).build()),
        ("gzip", form().set_compression(Compression::GZIP(GzipLevel::default())).build()),
        ("lz4", form().set_compression(Compression::LZ4_RAW).build()),
        ("zstd 9", form().set_compression(Compression::ZSTD(ZstdLevel::try_new(9).unwrap())).build()),
        ("no dictionaries", form().set_dictionary_enabled(false).build()),
        ("row groups of 100", form().set_max_row_group_row_count(Some(100)).build()),
        ("version 2 pages", form().set_writer_version(WriterVersion::PARQUET_2_0).build()),
        ("no statistics", form().set_statistics_enabled(EnabledStatistics::None).build()),
        ("small pages", form().set_data_page_size_limit(512).build()),
    ];
    for (what, form) in forms {
        let copy = given.copy();
        rewrite(&copy, &SOUND, &form, Clone::clone);
        let verdict = copy.verify().await;
        assert_eq!(verdict.code, 0, "{what}: {verdict:?}");
    }
    type Change = fn(&RecordBatch) -> RecordBatch;
    let types: [(&str, Change); 6] = [
        ("LargeUtf8", |batch| each_text(batch, &DataType::LargeUtf8)),
        ("Utf8View", |batch| each_text(batch, &DataType::Utf8View)),
        ("Dictionary", |batch| {
            each_text(batch, &DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8)))
        }),
        ("items named element", renamed_items),
        ("+00:00", |batch| zoned(batch, Some("+00:00"))),
        ("columns in another order", |batch| {
            batch.project(&(0..batch.num_columns()).rev().collect::<Vec<_>>()).unwrap()
        }),
    ];
    for (what, change) in types {
        let copy = given.copy();
        rewrite(&copy, &SOUND, &form().build(), change);
        let verdict = copy.verify().await;
        assert_eq!(verdict.code, 0, "{what}: {verdict:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_segment_says_is_not() {
    let given = Given::of(500, 1).await;
    let plain = WriterProperties::builder().build();
    let first = Segments::of(&given.copy()).names[0];
    let other_org = [SOUND[0], ("mcpg.origin", "mcpg.local/orgs/globex/audit/1")];
    let other_version = [("mcpg.v", "mcpg.audit/2"), SOUND[1]];
    for (what, pairs, kind) in [
        ("another org's", &other_org[..], "wrong_org"),
        ("another version", &other_version[..], "changed"),
        ("no metadata", &[][..], "changed"),
        ("no origin", &SOUND[..1], "wrong_org"),
    ] {
        let copy = given.copy();
        rewrite(&copy, pairs, &plain, Clone::clone);
        let (found, seq, file) = copy.verify().await.not_sound();
        assert_eq!((found.as_str(), seq, file), (kind, Some(0), format!("segments/{first}")), "{what}");
    }
    type Change = fn(&RecordBatch) -> RecordBatch;
    let changes: [(&str, Change); 4] = [
        ("a column more", |batch| {
            let more: ArrayRef = Arc::new(StringArray::from(vec!["x"; batch.num_rows()]));
            let schema = batch.schema();
            let columns = schema.fields().iter().map(|f| f.name().clone()).zip(batch.columns().iter().cloned());
            let columns = columns.chain([("approved_by".to_owned(), more)]);
            RecordBatch::try_from_iter(columns.collect::<Vec<_>>()).unwrap()
        }),
        ("a column less", |batch| without(batch, "reason")),
        ("a number as text", |batch| {
            with_column(batch, "seq", cast(batch.column_by_name("seq").unwrap(), &DataType::Utf8).unwrap())
        }),
        ("milliseconds", |batch| {
            let to = DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()));
            with_column(batch, "occurred_at", cast(batch.column_by_name("occurred_at").unwrap(), &to).unwrap())
        }),
    ];
    for (what, change) in changes {
        let copy = given.copy();
        rewrite(&copy, &SOUND, &plain, change);
        let (kind, seq, file) = copy.verify().await.not_sound();
        assert_eq!((kind.as_str(), seq, file), ("changed", Some(0), format!("segments/{first}")), "{what}");
    }
    let copy = given.copy();
    copy.write(&format!("segments/{first}"), b"PAR1 this is no Parquet PAR1");
    assert_eq!(copy.verify().await.not_sound().0, "unreadable");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_merged_segment_and_its_parts_are_one_ledger_if_they_agree() {
    let given = Given::of(600, 1).await;
    let copy = given.copy();
    let segments = Segments::of(&copy);
    let whole = *segments.names.iter().max_by_key(|name| name.entries()).unwrap();
    let (first, all) = (whole.first, segments.read(whole));
    let part = |from: u64, to: u64| {
        let name = SegmentName { first: first + from, last: first + to };
        segments.write(name, &rows(&all, from as usize..=to as usize));
    };
    part(0, 99);
    part(100, 299);
    part(300, 300);
    let sound = copy.verify().await.sound();
    // Its parts without it, too.
    part(301, whole.last - first);
    copy.remove(&format!("segments/{whole}"));
    assert_eq!(copy.verify().await.sound(), sound);

    // A part that is not what the whole holds.
    let copy = given.copy();
    let segments = Segments::of(&copy);
    let part = SegmentName { first: first + 100, last: first + 299 };
    segments.write(part, &rows(&all, 101..=300));
    assert_eq!(copy.verify().await.not_sound().2, format!("segments/{part}"));
    let changed = super::spoil::changed(&rows(&all, 100..=299), "reason", 7);
    segments.write(part, &changed);
    let (kind, seq, file) = copy.verify().await.not_sound();
    assert_eq!((kind.as_str(), seq, file), ("changed", Some(first + 107), format!("segments/{part}")));
}
