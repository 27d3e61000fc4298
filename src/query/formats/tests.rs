//! Every format, read back.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, Float64Array, Int64Array, ListArray,
    StringViewArray, TimestampMicrosecondArray, UInt64Array,
};
use arrow::datatypes::Int32Type;
use arrow::ipc::reader::StreamReader;
use arrow::record_batch::RecordBatch;
use datafusion::execution::memory_pool::{GreedyMemoryPool, UnboundedMemoryPool};
use futures::{StreamExt, TryStreamExt, stream};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Value, json};

use super::{CHUNK_BYTES, Coding, Format, HEAD_BYTES, HeadRoom, Options, begin};
use crate::query::{QueryError, QueryResult};

fn every_kind() -> RecordBatch {
    let columns: [(&str, ArrayRef); 9] = [
        ("text", Arc::new(StringViewArray::from(vec![Some("a \"b\",\nü"), None, Some("")]))),
        ("int", Arc::new(Int64Array::from(vec![Some(i64::MIN), None, Some(7)]))),
        ("big", Arc::new(UInt64Array::from(vec![Some(u64::MAX), None, Some(0)]))),
        ("real", Arc::new(Float64Array::from(vec![Some(84.0), Some(f64::NAN), Some(0.1)]))),
        ("yes", Arc::new(BooleanArray::from(vec![Some(true), None, Some(false)]))),
        ("at", Arc::new(TimestampMicrosecondArray::from(vec![Some(0), None, Some(1_500_000)]).with_timezone("UTC"))),
        ("day", Arc::new(Date32Array::from(vec![Some(0), None, Some(-1)]))),
        ("bytes", Arc::new(BinaryArray::from_opt_vec(vec![Some(&[0x0f, 0xa0][..]), None, Some(&[])]))),
        (
            "exact",
            Arc::new(
                Decimal128Array::from(vec![Some(12_345), None, Some(-5)]).with_precision_and_scale(10, 2).unwrap(),
            ),
        ),
    ];
    RecordBatch::try_from_iter(columns).unwrap()
}

fn result(items: Vec<Result<RecordBatch, QueryError>>) -> QueryResult {
    let schema =
        items.iter().find_map(|item| item.as_ref().ok()).map_or_else(|| every_kind().schema(), RecordBatch::schema);
    QueryResult {
        schema,
        stream: stream::iter(items).boxed(),
        rows: Arc::default(),
        room: HeadRoom::new(1 << 30),
        workers: tokio::runtime::Handle::current(),
        memory: Arc::new(UnboundedMemoryPool::default()),
    }
}

async fn body(batch: RecordBatch, format: Format) -> Vec<u8> {
    written(batch, format.into()).await
}

async fn written(batch: RecordBatch, options: Options) -> Vec<u8> {
    let begun = begin(result(vec![Ok(batch)]), options).await.unwrap();
    assert_eq!((begun.content_type, begun.coding), (options.format.content_type(), options.coding));
    begun.body.try_collect::<Vec<_>>().await.unwrap().concat()
}

#[tokio::test]
async fn json_holds_every_kind_of_value() {
    let answer: Value = serde_json::from_slice(&body(every_kind(), Format::Json).await).unwrap();
    let types: Vec<_> =
        answer["columns"].as_array().unwrap().iter().map(|column| column["type"].as_str().unwrap()).collect();
    let expected =
        ["string", "bigint", "bigint unsigned", "double", "boolean", "timestamp", "date", "binary", "decimal(10,2)"];
    assert_eq!(types, expected);
    assert_eq!(
        answer["rows"],
        json!([
            ["a \"b\",\nü", i64::MIN, u64::MAX, 84, true, "1970-01-01T00:00:00Z", "1970-01-01", "0fa0", 123.45],
            [null, null, null, null, null, null, null, null, null],
            ["", 7, 0, 0.1, false, "1970-01-01T00:00:01.500Z", "1969-12-31", "", -0.05],
        ])
    );
}

#[tokio::test]
async fn ndjson_is_an_object_a_line() {
    let text = String::from_utf8(body(every_kind().project(&[0, 1]).unwrap(), Format::NdJson).await).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(
        lines,
        [
            json!({"text": "a \"b\",\nü", "int": i64::MIN}),
            json!({"text": null, "int": null}),
            json!({"text": "", "int": 7})
        ]
    );
}

#[tokio::test]
async fn csv_quotes_what_needs_it_and_tells_null_from_empty() {
    let text = String::from_utf8(body(every_kind().project(&[0, 3, 7]).unwrap(), Format::Csv).await).unwrap();
    assert_eq!(text, "text,real,bytes\r\n\"a \"\"b\"\",\nü\",84,0fa0\r\n,NaN,\r\n\"\",0.1,\"\"\r\n");
}

#[tokio::test]
async fn arrow_and_parquet_hold_the_same_rows_in_plain_types() {
    let batch = every_kind();
    let bytes = body(batch.clone(), Format::Arrow).await;
    let from_arrow: Vec<_> = StreamReader::try_new(bytes.as_slice(), None).unwrap().map(Result::unwrap).collect();
    let bytes = body(batch, Format::Parquet).await;
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes::Bytes::from(bytes)).unwrap().build().unwrap();
    let from_parquet: Vec<_> = reader.map(Result::unwrap).collect();
    assert_eq!(from_arrow[0].schema().field(0).data_type(), &arrow::datatypes::DataType::Utf8);
    assert_eq!(format!("{:?}", from_arrow[0].columns()), format!("{:?}", from_parquet[0].columns()));
}

#[tokio::test]
async fn lists_are_nested_in_json_and_json_in_csv() {
    let lists = ListArray::from_iter_primitive::<Int32Type, _, _>(vec![Some(vec![Some(1), None]), None, Some(vec![])]);
    let batch = RecordBatch::try_from_iter([("list", Arc::new(lists) as ArrayRef)]).unwrap();
    let answer: Value = serde_json::from_slice(&body(batch.clone(), Format::Json).await).unwrap();
    assert_eq!(answer["rows"], json!([[[1, null]], [null], [[]]]));
    assert_eq!(String::from_utf8(body(batch, Format::Csv).await).unwrap(), "list\r\n\"[1,null]\"\r\n\r\n[]\r\n");
}

#[tokio::test]
async fn an_answer_without_rows_is_still_whole() {
    for format in Format::ALL {
        let bytes = body(every_kind().slice(0, 0), format).await;
        match format {
            Format::Json => assert_eq!(serde_json::from_slice::<Value>(&bytes).unwrap()["rows"], json!([])),
            Format::NdJson => assert!(bytes.is_empty()),
            Format::Csv => assert_eq!(bytes, b"text,int,big,real,yes,at,day,bytes,exact\r\n"),
            Format::Arrow => {
                assert_eq!(StreamReader::try_new(bytes.as_slice(), None).unwrap().schema().fields().len(), 9)
            }
            Format::Parquet => {
                let file = ParquetRecordBatchReaderBuilder::try_new(bytes::Bytes::from(bytes)).unwrap();
                assert_eq!(file.metadata().file_metadata().num_rows(), 0);
            }
        }
    }
}

#[tokio::test]
async fn a_failure_early_in_the_answer_comes_before_the_body() {
    for format in Format::ALL {
        let items = vec![Ok(every_kind()), Err(QueryError::TooManyRows { limit: 3 })];
        assert_eq!(begin(result(items), format).await.err(), Some(QueryError::TooManyRows { limit: 3 }), "{format:?}");
    }
}

#[tokio::test]
async fn a_failure_late_in_the_answer_is_the_last_item_of_the_body() {
    let wide = StringViewArray::from(vec!["x".repeat(1 << 20).as_str(); 2]);
    let batch = RecordBatch::try_from_iter([("wide", Arc::new(wide) as ArrayRef)]).unwrap();
    for format in [Format::Json, Format::NdJson, Format::Csv, Format::Arrow] {
        let batches = HEAD_BYTES / (2 << 20) + 2;
        let mut items: Vec<_> = (0..batches).map(|_| Ok(batch.clone())).collect();
        items.push(Err(QueryError::Storage));
        let begun = begin(result(items), format).await.unwrap();
        assert_eq!(begun.whole, None);
        let chunks: Vec<_> = begun.body.collect().await;
        let (last, rest) = chunks.split_last().unwrap();
        assert_eq!(last, &Err(QueryError::Storage));
        let all = rest.iter().flat_map(|chunk| chunk.as_ref().unwrap().to_vec()).collect::<Vec<u8>>();
        let text = String::from_utf8_lossy(&all);
        let says_why = r#""error":{"code":"storage_unavailable""#;
        assert_eq!(text.contains(says_why), matches!(format, Format::Json | Format::NdJson), "{format:?}");
        if format == Format::Json {
            serde_json::from_slice::<Value>(&all).unwrap();
        }
    }
}

#[tokio::test]
async fn without_room_a_body_begins_at_once_and_gives_its_place_back_as_it_is_sent() {
    let wide = StringViewArray::from(vec!["x".repeat(1 << 20).as_str()]);
    let batch = RecordBatch::try_from_iter([("wide", Arc::new(wide) as ArrayRef)]).unwrap();
    let room = HeadRoom::new(3 << 20);
    let answer = || QueryResult { room: room.clone(), ..result((0..8).map(|_| Ok(batch.clone())).collect()) };
    let first = begin(answer(), Format::Csv).await.unwrap().body;
    let failing = stream::iter([Ok(batch.clone()), Err(QueryError::Storage)]).boxed();
    let late = QueryResult { stream: failing, ..answer() };
    let late = begin(late, Format::Csv).await.expect("it began before it failed").body;
    assert_eq!(late.try_collect::<Vec<_>>().await, Err(QueryError::Storage));
    assert_eq!(first.try_collect::<Vec<_>>().await.unwrap().concat().len(), "wide\r\n".len() + 8 * ((1 << 20) + 2));
    assert!(room.take(2 << 20).is_some());
}

#[tokio::test]
async fn a_batch_is_cut_before_it_is_written_and_charged_to_its_query() {
    let wide = StringViewArray::from(vec!["x".repeat(16 << 10).as_str(); 1_000]);
    let batch = RecordBatch::try_from_iter([("wide", Arc::new(wide) as ArrayRef)]).unwrap();
    for format in [Format::Json, Format::NdJson, Format::Csv, Format::Arrow] {
        let begun = begin(result(vec![Ok(batch.clone())]), format).await.unwrap();
        let chunks: Vec<_> = begun.body.try_collect().await.unwrap();
        assert!(chunks.iter().all(|chunk| chunk.len() <= 2 * CHUNK_BYTES), "{format:?}");
    }
    let poor = QueryResult { memory: Arc::new(GreedyMemoryPool::new(CHUNK_BYTES)), ..result(vec![Ok(batch)]) };
    assert_eq!(begin(poor, Format::Csv).await.err().map(|error| error.code()), Some("query_memory"));
}

#[tokio::test]
async fn a_compressed_answer_is_the_same_answer() {
    let plain = body(every_kind(), Format::Json).await;
    for coding in [Coding::Gzip, Coding::Zstd] {
        let packed = written(every_kind(), Options { coding: Some(coding), ..Format::Json.into() }).await;
        let unpacked = match coding {
            Coding::Zstd => zstd::decode_all(packed.as_slice()).unwrap(),
            Coding::Gzip => std::io::read_to_string(flate2::read::GzDecoder::new(packed.as_slice())).unwrap().into(),
        };
        assert_eq!(unpacked, plain);
    }
    let parquet =
        begin(result(vec![Ok(every_kind())]), Options { coding: Some(Coding::Gzip), ..Format::Parquet.into() });
    assert_eq!(parquet.await.unwrap().coding, None, "it is compressed as it is");
}

#[tokio::test]
async fn numbers_that_no_double_holds_are_strings_where_it_is_asked_for() {
    let columns: [(&str, ArrayRef); 3] = [
        ("big", Arc::new(Int64Array::from(vec![1 << 53, (1 << 53) + 1, i64::MIN]))),
        ("small", Arc::new(arrow::array::Int32Array::from(vec![1, 2, i32::MAX]))),
        (
            "exact",
            Arc::new(
                Decimal128Array::from(vec![15, 12_345_678_901_234_567_890_i128, -5])
                    .with_precision_and_scale(30, 1)
                    .unwrap(),
            ),
        ),
    ];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let options = Options { text_numbers: true, ..Format::Json.into() };
    let answer: Value = serde_json::from_slice(&written(batch, options).await).unwrap();
    assert_eq!(
        answer["rows"],
        json!([
            [1_i64 << 53, 1, 1.5],
            ["9007199254740993", 2, "1234567890123456789.0"],
            ["-9223372036854775808", i32::MAX, -0.5],
        ])
    );
}

#[tokio::test]
async fn every_timestamp_is_in_utc_and_says_so() {
    let columns: [(&str, ArrayRef); 4] = [
        ("s", Arc::new(arrow::array::TimestampSecondArray::from(vec![1]))),
        ("us", Arc::new(TimestampMicrosecondArray::from(vec![1]).with_timezone("+05:30"))),
        ("ns", Arc::new(arrow::array::TimestampNanosecondArray::from(vec![1]))),
        ("ns_tz", Arc::new(arrow::array::TimestampNanosecondArray::from(vec![-1]).with_timezone("Europe/Berlin"))),
    ];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let answer: Value = serde_json::from_slice(&body(batch, Format::Json).await).unwrap();
    let expected = [
        "1970-01-01T00:00:01Z",
        "1970-01-01T00:00:00.000001Z",
        "1970-01-01T00:00:00.000000001Z",
        "1969-12-31T23:59:59.999999999Z",
    ];
    assert_eq!(answer["rows"], json!([expected]));
}

#[tokio::test]
async fn what_a_spreadsheet_would_run_is_a_text_unless_it_is_asked_for_raw() {
    let texts = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "＝1", "a=1", "'x"];
    let columns: [(&str, ArrayRef); 2] = [
        ("=name", Arc::new(StringViewArray::from(texts.to_vec()))),
        ("n", Arc::new(Int64Array::from(vec![-1; texts.len()]))),
    ];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let text = String::from_utf8(body(batch.clone(), Format::Csv).await).unwrap();
    assert_eq!(
        text,
        "'=name,n\r\n'=1+1,-1\r\n'+1,-1\r\n'-1,-1\r\n'@SUM(A1),-1\r\n'\t=1,-1\r\n'＝1,-1\r\na=1,-1\r\n'x,-1\r\n"
    );
    let raw = written(batch, Options { raw_csv: true, ..Format::Csv.into() }).await;
    assert!(String::from_utf8(raw).unwrap().starts_with("=name,n\r\n=1+1,-1\r\n"));
}

#[tokio::test]
async fn columns_of_one_name_are_told_apart_in_every_format() {
    let schema = Arc::new(arrow::datatypes::Schema::new(vec![
        arrow::datatypes::Field::new("n", arrow::datatypes::DataType::Int64, false),
        arrow::datatypes::Field::new("n", arrow::datatypes::DataType::Int64, false),
    ]));
    let column = |value| Arc::new(Int64Array::from(vec![value])) as ArrayRef;
    let batch = RecordBatch::try_new(schema, vec![column(1), column(2)]).unwrap();
    assert_eq!(String::from_utf8(body(batch.clone(), Format::NdJson).await).unwrap(), "{\"n\":1,\"n_2\":2}\n");
    assert!(body(batch.clone(), Format::Csv).await.starts_with(b"n,n_2\r\n"));
    let arrow = body(batch, Format::Arrow).await;
    assert_eq!(StreamReader::try_new(arrow.as_slice(), None).unwrap().schema().field(1).name(), "n_2");
}

#[test]
fn the_format_liked_best_is_chosen() {
    for (accept, expected) in [
        (None, Format::Json),
        (Some(""), Format::Json),
        (Some("*/*"), Format::Json),
        (Some("text/*"), Format::Csv),
        (Some("text/csv"), Format::Csv),
        (Some("TEXT/CSV; header=present"), Format::Csv),
        (Some("application/x-ndjson"), Format::NdJson),
        (Some("application/vnd.apache.arrow.stream, application/json;q=0.5"), Format::Arrow),
        (Some("application/json;q=0.5, application/vnd.apache.parquet;q=0.9"), Format::Parquet),
        (Some("application/json;q=0, */*"), Format::NdJson),
        (Some("text/html, application/*;q=0.8"), Format::Json),
    ] {
        assert_eq!(Format::negotiate(accept), Ok(expected), "{accept:?}");
    }
}

#[test]
fn when_no_format_is_acceptable_all_are_named() {
    for accept in ["text/html", "application/json;q=0", "image/*"] {
        let error = Format::negotiate(Some(accept)).unwrap_err();
        assert_eq!((error.code(), error.status()), ("not_acceptable", 406));
        for format in Format::ALL {
            let media_type = format.content_type().split(';').next().unwrap();
            assert!(error.to_string().contains(media_type), "{error}");
        }
    }
}
