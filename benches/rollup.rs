//! What the rollups cost: recording, digests of batches, merging, the binary forms, a scrape.

#![expect(clippy::unwrap_used, reason = "a bench that cannot be set up should stop")]

use std::hint::black_box;
use std::sync::Arc;

use arrow::array::{ArrayRef, Date32Array, Float64Array, StringArray, TimestampMicrosecondArray, new_null_array};
use arrow::record_batch::RecordBatch;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use mcpg::model::schema::schemas;
use mcpg::rollup::exposition::{Format, render};
use mcpg::rollup::{Digest, Granularity, Histogram, RunningTotals, encode, hourly_partials};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

/// Rows of a batch, about what one request brings.
const ROWS: usize = 8192;

/// A time of the samples and the scrapes, in microseconds: the middle of an hour.
const NOW: i64 = 490_000 * Granularity::Hour.width() + Granularity::Hour.width() / 2;

/// Heavy-tailed durations in milliseconds: the median 7, one in a hundred above 200, one in a million above 2 minutes.
fn duration_ms(random: &mut SmallRng) -> f64 {
    let uniform: f64 = random.random_range(f64::EPSILON..1.0);
    4.5 * uniform.powf(-0.8) + random.random_range(0.0..1.0)
}

/// A canonical batch of calls to `tools` tools, in random order; an eighth of them fails, some are denied.
fn batch(random: &mut SmallRng, rows: usize, tools: usize) -> RecordBatch {
    let schema = &schemas().unwrap().tool_invocations;
    let tool_of_row: Vec<usize> =
        (0..rows).map(|row| if row < tools { row } else { random.random_range(0..tools) }).collect();
    let text = |of: &dyn Fn(usize) -> String| -> ArrayRef {
        Arc::new(tool_of_row.iter().map(|&tool| Some(of(tool))).collect::<StringArray>())
    };
    let durations: Vec<f64> = (0..rows).map(|_| duration_ms(random)).collect();
    let outcomes: Vec<usize> = (0..rows).map(|_| random.random_range(0..40)).collect();
    let word =
        |n: &usize| ["client_error", "server_error", "timeout", "policy_denied"].get(*n).unwrap_or(&"ok").to_string();
    let columns = schema.fields().iter().map(|field| -> ArrayRef {
        match field.name().as_str() {
            "invocation_id" => text(&|_| "01933b7e-0000-7000-8000-000000000000".to_owned()),
            "org" => text(&|_| "default".to_owned()),
            "workspace" => text(&|tool| if tool % 2 == 0 { "prod" } else { "staging" }.to_owned()),
            "instance" => text(&|_| "gw-1".to_owned()),
            "plugin" => text(&|tool| format!("plugin-{:03}", tool % 40)),
            "tool" => text(&|tool| format!("list_things_of_{tool:05}")),
            "outcome" => Arc::new(outcomes.iter().map(|n| Some(word(n))).collect::<StringArray>()),
            "started_at" | "arrived_at" | "ingested_at" => {
                let times = TimestampMicrosecondArray::from_iter_values((0..rows as i64).map(|row| NOW - row * 1000));
                Arc::new(times.with_timezone("UTC"))
            }
            "duration_ms" => Arc::new(Float64Array::from(durations.clone())),
            "date" => Arc::new(Date32Array::from(vec![(NOW / Granularity::Day.width()) as i32; rows])),
            _ => new_null_array(field.data_type(), rows),
        }
    });
    RecordBatch::try_new(Arc::clone(schema), columns.collect()).unwrap()
}

fn random() -> SmallRng {
    SmallRng::seed_from_u64(7)
}

/// Totals of so many series, with `samples` samples behind each.
fn totals(series: usize, samples: usize) -> RunningTotals {
    let mut random = random();
    let mut totals = RunningTotals::new("default".parse().unwrap(), series);
    for _ in 0..samples {
        totals.apply(&Digest::of(&batch(&mut random, series, series)).unwrap(), NOW);
    }
    totals
}

fn histogram(samples: usize) -> Histogram {
    let mut random = random();
    let mut histogram = Histogram::new();
    (0..samples).for_each(|_| histogram.record(duration_ms(&mut random)));
    histogram
}

fn histograms(c: &mut Criterion) {
    let mut random = random();
    let durations: Vec<f64> = (0..ROWS).map(|_| duration_ms(&mut random)).collect();
    let mut group = c.benchmark_group("histogram");
    group.throughput(Throughput::Elements(ROWS as u64));
    let mut warm = histogram(100_000);
    group.bench_function("record", |b| b.iter(|| durations.iter().for_each(|&ms| warm.record(ms))));
    group.throughput(Throughput::Elements(1));
    for samples in [20, 1_000, 1_000_000] {
        let other = histogram(samples);
        let mut bytes = Vec::new();
        encode(&other, &mut bytes);
        group.bench_function(BenchmarkId::new("merge", samples), |b| b.iter(|| warm.merge(black_box(&other))));
        group.bench_function(BenchmarkId::new("quantile", samples), |b| b.iter(|| other.quantile(black_box(0.99))));
        group.bench_function(BenchmarkId::new("merge encoded", samples), |b| {
            b.iter(|| warm.merge_encoded(black_box(&bytes)));
        });
        group.bench_function(BenchmarkId::new("encode", samples), |b| {
            b.iter(|| {
                bytes.clear();
                encode(black_box(&other), &mut bytes);
            });
        });
    }
    group.finish();
}

fn batches(c: &mut Criterion) {
    let mut group = c.benchmark_group("batch");
    group.throughput(Throughput::Elements(ROWS as u64));
    for tools in [1, 50, 1_000] {
        let batch = batch(&mut random(), ROWS, tools);
        let digest = Digest::of(&batch).unwrap();
        group.bench_function(BenchmarkId::new("digest", tools), |b| b.iter(|| Digest::of(black_box(&batch))));
        let mut totals = RunningTotals::new("default".parse().unwrap(), 10_000);
        group.bench_function(BenchmarkId::new("apply", tools), |b| b.iter(|| totals.apply(black_box(&digest), NOW)));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let batches: Vec<RecordBatch> = (0..16).map(|_| batch(&mut random(), ROWS, 200)).collect();
    group.sample_size(20).throughput(Throughput::Elements(16 * ROWS as u64));
    group.bench_function("hourly partials", |b| b.iter(|| runtime.block_on(hourly_partials(&batches))));
    group.finish();
}

fn scrapes(c: &mut Criterion) {
    let mut group = c.benchmark_group("scrape");
    group.sample_size(20);
    for (series, samples) in [(100, 1_000), (1_000, 1_000), (10_000, 10), (10_000, 1_000)] {
        let totals = totals(series, samples);
        for format in [Format::Text004, Format::OpenMetrics, Format::Protobuf] {
            let name = BenchmarkId::new(format!("{format:?}"), format!("{series} series of {samples} samples"));
            group.bench_function(name, |b| b.iter(|| render(black_box(&totals), Granularity::Hour, NOW, format)));
        }
        let name = |what| BenchmarkId::new(what, format!("{series} series of {samples} samples"));
        let bytes = totals.encode();
        group.bench_function(name("snapshot encode"), |b| b.iter(|| black_box(&totals).encode()));
        group.bench_function(name("snapshot decode"), |b| {
            b.iter_batched(|| (), |()| RunningTotals::decode(black_box(&bytes), series), BatchSize::PerIteration);
        });
    }
    group.finish();
}

criterion_group!(benches, histograms, batches, scrapes);
criterion_main!(benches);
