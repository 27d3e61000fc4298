use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, Float64Array, Int64Array, StringArray};
use arrow::datatypes::DataType;
use arrow::record_batch::RecordBatch;
use datafusion::prelude::{SessionConfig, SessionContext};

use super::{aggregate_functions, scalar_functions};
use crate::rollup::{Histogram, encode};

/// 40 groups of samples in batches of three rows: `key`, `ms`, `whole` (an integer), `latency` (a histogram of `ms`).
fn session(config: SessionConfig) -> SessionContext {
    let ctx = SessionContext::new_with_config(config);
    aggregate_functions().iter().for_each(|f| ctx.register_udaf(f.as_ref().clone()));
    scalar_functions().iter().for_each(|f| ctx.register_udf(f.as_ref().clone()));
    let batches: Vec<RecordBatch> = (0..40i64)
        .map(|i| {
            let ms = [1.0 + i as f64, 10.0 * (1 + i) as f64, 100.0 * (1 + i) as f64];
            let key: ArrayRef = Arc::new(Int64Array::from(vec![i, i, (i + 1) % 40]));
            let text: ArrayRef = Arc::new(StringArray::from(vec!["a", "b", "c"]));
            let latency: ArrayRef = Arc::new(BinaryArray::from_iter_values(ms.map(|ms| bytes(&[ms]))));
            let whole: ArrayRef = Arc::new(Int64Array::from_iter_values(ms.map(|ms| ms as i64)));
            let ms: ArrayRef = Arc::new(Float64Array::from(ms.to_vec()));
            let columns = [("key", key), ("text", text), ("ms", ms), ("whole", whole), ("latency", latency)];
            RecordBatch::try_from_iter(columns).unwrap()
        })
        .collect();
    let schema = batches[0].schema();
    let partitions = batches.chunks(10).map(<[RecordBatch]>::to_vec).collect();
    let table = datafusion::datasource::MemTable::try_new(schema, partitions).unwrap();
    ctx.register_table("samples", Arc::new(table)).unwrap();
    ctx
}

fn bytes(durations: &[f64]) -> Vec<u8> {
    let mut histogram = Histogram::new();
    durations.iter().for_each(|&ms| histogram.record(ms));
    let mut out = Vec::new();
    encode(&histogram, &mut out);
    out
}

fn durations_of(key: i64) -> [f64; 3] {
    let before = (key + 39) % 40;
    [1.0 + key as f64, 10.0 * (1 + key) as f64, 100.0 * (1 + before) as f64]
}

async fn try_column(ctx: &SessionContext, sql: &str) -> Result<ArrayRef, String> {
    let batches = ctx.sql(sql).await.map_err(|e| e.to_string())?.collect().await.map_err(|e| e.to_string())?;
    let columns: Vec<_> = batches.iter().map(|batch| batch.column(0).as_ref()).collect();
    arrow::compute::concat(&columns).map_err(|e| e.to_string())
}

async fn histograms(ctx: &SessionContext, sql: &str) -> Vec<Option<Vec<u8>>> {
    let column = try_column(ctx, sql).await.unwrap();
    let column = arrow::compute::cast(&column, &DataType::Binary).unwrap();
    column.as_any().downcast_ref::<BinaryArray>().unwrap().iter().map(|b| b.map(<[u8]>::to_vec)).collect()
}

async fn number(ctx: &SessionContext, sql: &str) -> Option<f64> {
    let column = try_column(ctx, sql).await.unwrap();
    column.as_any().downcast_ref::<Float64Array>().unwrap().iter().next().unwrap()
}

fn by_key() -> Vec<Option<Vec<u8>>> {
    (0..40).map(|key| Some(bytes(&durations_of(key)))).collect()
}

const PLANS: [fn(SessionConfig) -> SessionConfig; 3] = [
    |config| config.with_target_partitions(1),
    |config| config.with_target_partitions(4).with_batch_size(7),
    // Every partial aggregation gives up aggregating at once, and hands rows on as states.
    |config| {
        let config = config.with_target_partitions(4).with_batch_size(3);
        let config = config.set_usize("datafusion.execution.skip_partial_aggregation_probe_rows_threshold", 1);
        config.set("datafusion.execution.skip_partial_aggregation_probe_ratio_threshold", &0.0f64.into())
    },
];

#[tokio::test]
async fn a_groups_histogram_is_that_of_its_rows_whatever_the_plan() {
    for plan in PLANS {
        let ctx = session(plan(SessionConfig::new()));
        for argument in ["hist(ms)", "hist(whole)", "hist(CAST(ms AS REAL))", "merge(latency)"] {
            let sql = format!("SELECT latency_{argument} FROM samples GROUP BY key ORDER BY key");
            assert_eq!(histograms(&ctx, &sql).await, by_key(), "{argument}");
        }
    }
}

#[tokio::test]
async fn histograms_of_all_kinds_of_binary_merge() {
    let ctx = session(SessionConfig::new());
    for kind in ["Binary", "LargeBinary", "BinaryView"] {
        let sql = format!(
            "SELECT latency_merge(arrow_cast(latency, '{kind}')) FROM samples WHERE latency_quantile(arrow_cast(latency, '{kind}'), 1) >= 0 GROUP BY key ORDER BY key"
        );
        assert_eq!(histograms(&ctx, &sql).await, by_key(), "{kind}");
    }
}

#[tokio::test]
async fn merging_twice_and_without_groups_is_the_histogram_of_all() {
    let ctx = session(SessionConfig::new().with_target_partitions(4));
    let all: Vec<f64> = (0..40).flat_map(durations_of).collect();
    for sql in [
        "SELECT latency_hist(ms) FROM samples",
        "SELECT latency_merge(h) FROM (SELECT latency_hist(ms) AS h FROM samples GROUP BY text, key)",
    ] {
        assert_eq!(histograms(&ctx, sql).await, [Some(bytes(&all))], "{sql}");
    }
}

#[tokio::test]
async fn a_filter_and_nulls_pass_rows_over() {
    for plan in PLANS {
        let ctx = session(plan(SessionConfig::new()));
        let expected: Vec<_> = (0..40).map(|key| (key < 30).then(|| bytes(&durations_of(key)[..1]))).collect();
        for argument in
            ["hist(ms) FILTER (WHERE text = 'a' AND key < 30)", "hist(CASE WHEN text = 'a' AND key < 30 THEN ms END)"]
        {
            let sql = format!("SELECT latency_{argument} FROM samples GROUP BY key ORDER BY key");
            assert_eq!(histograms(&ctx, &sql).await, expected, "{argument}");
        }
    }
}

#[tokio::test]
async fn a_running_window_counts_up() {
    let ctx = session(SessionConfig::new());
    let sql = "SELECT latency_quantile(latency_hist(ms) OVER (ORDER BY ms), 1) - ms AS d FROM samples ORDER BY d DESC";
    assert_eq!(number(&ctx, sql).await, Some(0.0));
}

#[tokio::test]
async fn an_aggregate_of_nothing_is_null() {
    let ctx = session(SessionConfig::new());
    for sql in [
        "SELECT latency_hist(ms) FROM samples WHERE key < 0",
        "SELECT latency_merge(latency) FROM samples WHERE key < 0",
        "SELECT latency_hist(NULL) FROM samples",
        "SELECT latency_merge(NULL) FROM samples",
    ] {
        assert_eq!(histograms(&ctx, sql).await, [None], "{sql}");
    }
}

#[tokio::test]
async fn a_quantile_is_that_of_the_histogram() {
    let ctx = session(SessionConfig::new());
    let mut all = Histogram::new();
    (0..40).flat_map(durations_of).for_each(|ms| all.record(ms));
    for q in ["0", "0.5", "0.95", "1", "CAST(0.25 AS REAL)"] {
        let sql = format!("SELECT latency_quantile(latency_hist(ms), {q}) FROM samples");
        let exact: f64 = q.trim_start_matches("CAST(").trim_end_matches(" AS REAL)").parse().unwrap();
        assert_eq!(number(&ctx, &sql).await, all.quantile(exact), "{q}");
    }
}

#[tokio::test]
async fn a_quantile_of_null_is_null() {
    let ctx = session(SessionConfig::new());
    for sql in [
        "SELECT latency_quantile(NULL, 0.5)",
        "SELECT latency_quantile(latency, NULL) FROM samples",
        "SELECT latency_quantile(latency_hist(ms), 0.5) FROM samples WHERE key < 0",
    ] {
        assert_eq!(number(&ctx, sql).await, None, "{sql}");
    }
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_in_plain_words() {
    let ctx = session(SessionConfig::new());
    for (sql, expected) in [
        ("SELECT latency_quantile(latency, 1.5) FROM samples", "the quantile must be from 0 to 1, and is 1.5"),
        ("SELECT latency_quantile(latency, 'NaN'::double) FROM samples", "the quantile must be from 0 to 1"),
        ("SELECT latency_quantile(latency) FROM samples", "latency_quantile takes a latency histogram and a quantile"),
        (
            "SELECT latency_quantile('x', 0.5)",
            "latency_quantile takes a latency histogram here, which is binary, not Utf8",
        ),
        ("SELECT latency_quantile(X'0206', 0.5)", "latency histogram of version 2"),
        (
            "SELECT latency_merge(X'00') FROM samples",
            "no latency histogram: it ends at byte 1, in the middle of the scale",
        ),
        ("SELECT latency_hist(-ms) FROM samples", "-1 is no duration"),
        ("SELECT latency_hist(ms / 0.0) FROM samples", "inf is no duration"),
        ("SELECT latency_hist(text) FROM samples", "latency_hist takes a number here, not Utf8"),
        ("SELECT latency_hist(ms, ms) FROM samples", "latency_hist takes one argument, not 2"),
        ("SELECT latency_hist(DISTINCT ms), count(DISTINCT key) FROM samples", "every call counts"),
    ] {
        let error = try_column(&ctx, sql).await.unwrap_err();
        assert!(error.contains(expected), "{sql}\n{error}");
    }
}

#[tokio::test]
async fn buckets_sum_whole_ones_and_leave_none_out() {
    let ctx = session(SessionConfig::new());
    for per_octave in [1, 4, 64] {
        let sql = format!(
            "SELECT sum(b['calls']) * 1.0, bool_and(b['lower_ms'] < b['upper_ms']) FROM
             (SELECT unnest(latency_buckets(latency_hist(ms), {per_octave})) AS b FROM samples)"
        );
        assert_eq!(number(&ctx, &sql).await, Some(120.0), "{per_octave}");
    }
    // 1 to 40 ms once each, 10 to 400 and 100 to 4000 ms: a doubling whole holds what lies in it, its upper bound
    // included.
    let within = |bound: &str| {
        format!(
            "SELECT sum(b['calls']) * 1.0 FROM (SELECT unnest(latency_buckets(latency_hist(ms), 1)) AS b FROM samples)
             WHERE b['upper_ms'] <= {bound}"
        )
    };
    let exact = |bound: &str| format!("SELECT count(*) * 1.0 FROM samples WHERE ms <= {bound}");
    for bound in ["31.25", "62.5", "500", "4000"] {
        assert_eq!(number(&ctx, &within(bound)).await, number(&ctx, &exact(bound)).await, "{bound}");
    }
}

#[tokio::test]
async fn buckets_of_zeros_of_nothing_and_of_no_histogram() {
    let ctx = session(SessionConfig::new());
    let one = "SELECT latency_buckets(latency_hist(ms * 0), 4)[1]['lower_ms'] FROM samples";
    assert_eq!(number(&ctx, one).await, Some(0.0));
    for nothing in [
        "SELECT latency_buckets(NULL, 4) IS NULL",
        "SELECT latency_buckets(latency_hist(ms), 4) IS NULL FROM samples WHERE key < 0",
        "SELECT latency_buckets(latency, NULL) IS NULL FROM samples LIMIT 1",
    ] {
        let column = try_column(&ctx, nothing).await.unwrap();
        assert!(arrow::array::AsArray::as_boolean(&column).value(0), "{nothing}");
    }
    for (sql, says) in [
        ("SELECT latency_buckets(latency, 3) FROM samples", "1, 2, 4, 8, 16, 32 or 64 buckets, not 3"),
        ("SELECT latency_buckets(latency, 0) FROM samples", "not 0"),
        ("SELECT latency_buckets(latency, 0.5) FROM samples", "a whole number, not Float64"),
        ("SELECT latency_buckets(latency) FROM samples", "the number of buckets of a doubling"),
        ("SELECT latency_buckets(X'0206', 4)", "latency histogram of version 2"),
    ] {
        let error = try_column(&ctx, sql).await.unwrap_err();
        assert!(error.contains(says), "{sql}: {error}");
    }
}
