//! What must hold of all of this module together: however samples are ordered and batched, and whichever way they take,
//! through SQL or through the running totals, the rollups are the same to the last bucket.

use std::collections::BTreeMap;

use arrow::array::{AsArray, Int64Array};
use arrow::compute::{concat_batches, take_record_batch};
use arrow::datatypes::{Float64Type, Int64Type, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;
use datafusion::prelude::SessionContext;
use proptest::prelude::*;

use super::testing::{Sample, batch};
use super::*;
use crate::model::schema::schemas;

const HOUR: i64 = Granularity::Hour.width();

/// What a rollup says of one window and series: calls, errors, denials, sum, least, greatest and the histogram.
type Rollup = (i64, i64, i64, u64, u64, u64, Vec<u8>);
type Key = (i64, String, String, String);

/// Samples of a few series over two days, late and early ones mixed, with a heavy tail.
fn samples() -> impl Strategy<Value = Vec<Sample<'static>>> {
    let duration = prop_oneof![
        20 => (0.0..1.0f64).prop_map(|u| 3.0 * (1.0 - u).powf(-1.5)),
        2 => Just(0.0),
        1 => 0.0..1e7f64,
    ];
    let sample = (0..3usize, 0..2usize, 0..3usize, 0..48 * HOUR, duration, 0..6usize).prop_map(
        |(workspace, plugin, tool, started_at, duration_ms, outcome)| Sample {
            workspace: ["prod", "test", "dev"][workspace],
            plugin: ["github", "files"][plugin],
            tool: ["read", "write", "list"][tool],
            started_at,
            duration_ms,
            outcome: crate::model::Outcome::ALL[outcome].as_str(),
            trace_id: None,
        },
    );
    prop::collection::vec(sample, 1..300)
}

/// The samples in another order, cut into batches.
fn shuffled() -> impl Strategy<Value = (Vec<Sample<'static>>, Vec<Vec<Sample<'static>>>)> {
    samples().prop_flat_map(|samples| {
        let sizes = prop::collection::vec(1..80usize, 1..10);
        (Just(samples.clone()), Just(samples).prop_shuffle(), sizes).prop_map(|(original, shuffled, sizes)| {
            let mut rest = shuffled.as_slice();
            let mut batches = Vec::new();
            for size in sizes {
                let (batch, others) = rest.split_at(size.min(rest.len()));
                batches.push(batch.to_vec());
                rest = others;
            }
            batches.push(rest.to_vec());
            (original, batches)
        })
    })
}

fn encoded(histogram: &Histogram) -> Vec<u8> {
    let mut out = Vec::new();
    encode(histogram, &mut out);
    out
}

/// The rollup worked out sample by sample, without batches or SQL.
fn expected(granularity: Granularity, samples: &[Sample<'_>]) -> BTreeMap<Key, Rollup> {
    let mut groups: BTreeMap<Key, (i64, i64, i64, Histogram)> = BTreeMap::new();
    for s in samples {
        let key = (granularity.window_start(s.started_at), s.workspace.into(), s.plugin.into(), s.tool.into());
        let (calls, errors, denials, latency) = groups.entry(key).or_insert((0, 0, 0, Histogram::new()));
        let denied = ["policy_denied", "quota_exceeded"].contains(&s.outcome);
        *calls += 1;
        *errors += i64::from(["client_error", "server_error", "timeout"].contains(&s.outcome));
        *denials += i64::from(denied);
        if !denied {
            latency.record(s.duration_ms);
        }
    }
    let rollup = |(calls, errors, denials, latency): (i64, i64, i64, Histogram)| {
        let (min, max) = (latency.min_ms().unwrap_or(f64::MAX), latency.max_ms().unwrap_or(0.0));
        let bits = [latency.sum_ms(), min, max].map(f64::to_bits);
        (calls, errors, denials, bits[0], bits[1], bits[2], encoded(&latency))
    };
    groups.into_iter().map(|(key, group)| (key, rollup(group))).collect()
}

/// The partial rollups of a batch by the SQL of a flush.
async fn partials(granularity: Granularity, batches: &[RecordBatch]) -> RecordBatch {
    let hours = hourly_partials(batches).await.unwrap();
    match granularity {
        Granularity::Hour => hours,
        Granularity::Day => daily_partials(&hours).await.unwrap(),
    }
}

/// Partial rollups of each batch by the SQL of a flush, merged as a reader merges them.
async fn merged(granularity: Granularity, batches: &[Vec<Sample<'_>>]) -> BTreeMap<Key, Rollup> {
    let mut partial = Vec::new();
    for samples in batches {
        partial.push(partials(granularity, &[batch(samples)]).await);
    }
    let ctx = SessionContext::new();
    aggregate_functions().iter().for_each(|f| ctx.register_udaf(f.as_ref().clone()));
    ctx.register_batch("partials", concat_batches(&partial[0].schema(), &partial).unwrap()).unwrap();
    let sql = "SELECT window_start, workspace, plugin, tool, sum(calls), sum(errors), sum(denials), sum(sum_ms),
        min(min_ms), max(max_ms), latency_merge(latency) FROM partials GROUP BY window_start, workspace, plugin, tool";
    let rows = ctx.sql(sql).await.unwrap().collect().await.unwrap();
    rows.iter().flat_map(read).collect()
}

fn read(rows: &RecordBatch) -> Vec<(Key, Rollup)> {
    let text = |column: usize, row: usize| rows.column(column).as_string::<i32>().value(row).to_owned();
    let integer = |column: usize, row: usize| rows.column(column).as_primitive::<Int64Type>().value(row);
    let bits = |column: usize, row: usize| rows.column(column).as_primitive::<Float64Type>().value(row).to_bits();
    let one = |row: usize| {
        let start = rows.column(0).as_primitive::<TimestampMicrosecondType>().value(row);
        let counts = (integer(4, row), integer(5, row), integer(6, row));
        let latency = rows.column(10).as_binary::<i32>().value(row).to_vec();
        let rollup = (counts.0, counts.1, counts.2, bits(7, row), bits(8, row), bits(9, row), latency);
        ((start, text(1, row), text(2, row), text(3, row)), rollup)
    };
    (0..rows.num_rows()).map(one).collect()
}

fn applied(batches: &[Vec<Sample<'_>>]) -> RunningTotals {
    let mut totals = RunningTotals::new("default".parse().unwrap(), 100);
    for samples in batches {
        totals.apply(&Digest::of(&batch(samples)).unwrap(), 48 * HOUR - 1);
    }
    totals
}

/// Calls, errors, denials and histogram by series, and the windows by tool, in an order of their own.
fn contents(totals: &RunningTotals) -> Vec<String> {
    let series = totals.series().iter().map(|series| {
        let latency = encoded(&series.latency);
        format!("{} {} {} {} {latency:?}", series.labels.text, series.calls, series.errors, series.denials)
    });
    let windows = totals.tools().iter().flat_map(|tool| {
        let of = |granularity| tool.windows.of(granularity).iter().map(move |window| (granularity, window));
        Granularity::ALL.into_iter().flat_map(of).map(|(granularity, window)| {
            format!("{} {granularity} {} {:?}", tool.labels.text, window.start, encoded(&window.latency))
        })
    });
    let mut contents: Vec<String> = series.chain(windows).collect();
    contents.sort();
    contents
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn rollups_by_sql_are_those_of_the_samples_in_any_order_and_batching((samples, batches) in shuffled()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for granularity in Granularity::ALL {
            let merged = runtime.block_on(merged(granularity, &batches));
            prop_assert_eq!(merged, expected(granularity, &samples));
        }
    }

    #[test]
    fn totals_are_those_of_the_samples_in_any_order_and_batching((samples, batches) in shuffled()) {
        prop_assert_eq!(contents(&applied(&batches)), contents(&applied(&[samples])));
    }

    #[test]
    fn a_counter_never_decreases_through_batches_restarts_and_expiry((_, batches) in shuffled()) {
        let mut totals = RunningTotals::new("default".parse().unwrap(), 5);
        let mut before: BTreeMap<String, (u64, u64, u64)> = BTreeMap::new();
        for (round, samples) in batches.iter().enumerate() {
            totals.apply(&Digest::of(&batch(samples)).unwrap(), 48 * HOUR);
            totals = RunningTotals::decode(&totals.encode(), 5 - round % 3).unwrap();
            totals.expire(round as i64 * HOUR);
            let now: BTreeMap<_, _> = totals.series().iter().map(|series| {
                (series.labels.text.to_string(), (series.calls, series.errors, series.denials))
            }).collect();
            for (labels, (calls, errors, denials)) in &before {
                let (c, e, d) = now[labels];
                prop_assert!(c >= *calls && e >= *errors && d >= *denials, "{labels}");
            }
            prop_assert!(now.len() <= 6);
            before = now;
        }
        let calls: u64 = before.values().map(|(calls, ..)| calls).sum();
        prop_assert_eq!(calls, batches.iter().map(Vec::len).sum::<usize>() as u64);
    }
}

#[tokio::test]
async fn a_partial_is_of_the_tables_schema_and_in_order() {
    let samples = [
        Sample { tool: "z", started_at: 25 * HOUR, ..Sample::default() },
        Sample { tool: "a", started_at: 25 * HOUR + 1, ..Sample::default() },
        Sample { tool: "z", started_at: -1, ..Sample::default() },
    ];
    for (granularity, schema, starts, dates) in [
        (Granularity::Hour, &schemas().unwrap().tool_usage_hourly, [-HOUR, 25 * HOUR, 25 * HOUR], [-1, 1, 1]),
        (Granularity::Day, &schemas().unwrap().tool_usage_daily, [-24 * HOUR, 24 * HOUR, 24 * HOUR], [-1, 1, 1]),
    ] {
        let partial = partials(granularity, &[batch(&samples)]).await;
        assert_eq!(&partial.schema(), schema);
        let start = partial.column_by_name("window_start").unwrap().as_primitive::<TimestampMicrosecondType>().clone();
        assert_eq!(start.values().as_ref(), starts);
        let date = partial.column_by_name("date").unwrap().as_primitive::<arrow::datatypes::Date32Type>().clone();
        assert_eq!(date.values().as_ref(), dates);
        let tool = partial.column_by_name("tool").unwrap().as_string::<i32>().clone();
        assert_eq!(tool.iter().flatten().collect::<Vec<_>>(), ["z", "a", "z"]);
    }
}

#[tokio::test]
async fn a_partial_of_nothing_is_empty() {
    let partial = hourly_partials(&[]).await.unwrap();
    assert_eq!((partial.num_rows(), partial.schema()), (0, schemas().unwrap().tool_usage_hourly.clone()));
}

#[tokio::test]
async fn a_slice_of_a_batch_is_rolled_up_as_it_is() {
    let samples = ["a", "b", "c", "d"].map(|tool| Sample { tool, ..Sample::default() });
    let whole = batch(&samples);
    let taken = take_record_batch(&whole, &Int64Array::from(vec![1, 2])).unwrap();
    let sliced = hourly_partials(&[whole.slice(1, 2)]).await.unwrap();
    assert_eq!(sliced, hourly_partials(std::slice::from_ref(&taken)).await.unwrap());
    assert_eq!(Digest::of(&whole.slice(1, 2)).unwrap(), Digest::of(&taken).unwrap());
}
