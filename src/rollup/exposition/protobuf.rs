//! The protobuf format: `io.prometheus.client.MetricFamily` messages, each after its length.
//!
//! A histogram has both kinds of buckets: the classic ones for who does not know the others, and the native ones, of
//! schema 6. A native bucket's index in Prometheus is one above ours, since Prometheus counts by upper bound. Runs of
//! non-empty buckets are spans; a gap of one or two empty buckets is filled up, since a new span would take more bytes.
//!
//! The messages are written field by field rather than built up as objects first: a scrape of 10,000 series has a
//! million buckets.

use std::thread::available_parallelism;

use prost::encoding::{WireType, encode_key, encode_varint};

use super::{
    BUCKET_EXPONENTS, CALLS, DENIALS, DURATION, ERRORS, Exemplar, Family, LATENCY, OVERFLOWED, OVERFLOWED_BY,
    QUANTILES, Scrape,
};
use crate::rollup::histogram::{Histogram, SCALE, ZERO_THRESHOLD_SECONDS};
use crate::rollup::labels::{Labels, put_delimited, put_label};
use crate::rollup::totals::Series;
use crate::rollup::wire::{put_signed, zigzag};

/// Field numbers of `MetricFamily`.
mod family {
    pub(super) const NAME: u32 = 1;
    pub(super) const HELP: u32 = 2;
    pub(super) const TYPE: u32 = 3;
    pub(super) const METRIC: u32 = 4;
}

/// Field numbers of `Metric` and of the messages `Counter` and `Gauge`, whose one field is their value.
mod metric {
    pub(super) const GAUGE: u32 = 2;
    pub(super) const COUNTER: u32 = 3;
    pub(super) const HISTOGRAM: u32 = 7;
    pub(super) const VALUE: u32 = 1;
    pub(super) const COUNTER_EXEMPLAR: u32 = 2;
    pub(super) const COUNTER_CREATED: u32 = 3;
}

/// Field numbers of `Exemplar` and of `google.protobuf.Timestamp`.
mod exemplar {
    pub(super) const VALUE: u32 = 2;
    pub(super) const TIMESTAMP: u32 = 3;
    pub(super) const SECONDS: u32 = 1;
    pub(super) const NANOS: u32 = 2;
}

/// Field numbers of `Histogram`, `Bucket` and `BucketSpan`.
mod histogram {
    pub(super) const SAMPLE_COUNT: u32 = 1;
    pub(super) const SAMPLE_SUM: u32 = 2;
    pub(super) const BUCKET: u32 = 3;
    pub(super) const SCHEMA: u32 = 5;
    pub(super) const ZERO_THRESHOLD: u32 = 6;
    pub(super) const ZERO_COUNT: u32 = 7;
    pub(super) const POSITIVE_SPAN: u32 = 12;
    pub(super) const POSITIVE_DELTA: u32 = 13;
    pub(super) const CREATED: u32 = 15;
    pub(super) const EXEMPLARS: u32 = 16;
    pub(super) const BUCKET_CUMULATIVE_COUNT: u32 = 1;
    pub(super) const BUCKET_UPPER_BOUND: u32 = 2;
    pub(super) const BUCKET_EXEMPLAR: u32 = 3;
    pub(super) const SPAN_OFFSET: u32 = 1;
    pub(super) const SPAN_LENGTH: u32 = 2;
}

/// Values of the enum `MetricType`.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Counter = 0,
    Gauge = 1,
    Histogram = 4,
}

/// Gaps of at most so many empty buckets are filled up.
const FILLED_GAP: i64 = 2;

/// From so many series on, histograms are written by several threads: they are nearly all of the answer, and nearly all
/// of its time.
const SHARED_SERIES: usize = 1_000;
/// Threads that write one answer, at most.
const MAX_THREADS: usize = 4;

/// The whole answer.
pub(super) fn render(scrape: &Scrape<'_>) -> Vec<u8> {
    let mut page = Page { out: Vec::with_capacity(capacity(scrape)), ..Page::default() };
    page.counter(scrape, CALLS, |series| series.calls, |_| None);
    page.counter(scrape, ERRORS, |series| series.errors, |series| scrape.exemplars_of(series).1);
    page.latency(scrape);
    page.counter(scrape, DENIALS, |series| series.denials, |_| None);
    if scrape.shown.histogram {
        page.durations(scrape);
    }
    page.overflowed(scrape);
    page.out
}

/// About how long the answer will be, and rather more: memory that is not written to costs nothing.
fn capacity(scrape: &Scrape<'_>) -> usize {
    // Three counters and three gauges, the classic buckets, and a byte or two for each native bucket that has counted.
    const NUMBERS: usize = 6 * 32 + 4 * 16 + BUCKET_EXPONENTS.len() * 24;
    let series = scrape.totals.shown();
    let length = series.map(|s| 7 * s.labels.protobuf.len() + NUMBERS + s.latency.heap_bytes());
    4096 + length.sum::<usize>()
}

/// An answer in the making. What is nested in a metric is written apart first, since its length stands before it; the
/// memory for that is used again and again. A family is written in place, and then moved up by its length.
#[derive(Default)]
struct Page {
    out: Vec<u8>,
    /// Where in `out` the family begins.
    family: usize,
    metric: Vec<u8>,
    value: Vec<u8>,
    native: Native,
}

impl Page {
    fn begin(&mut self, family: Family, suffix: &str, kind: Kind) {
        self.family = self.out.len();
        put_delimited(&mut self.out, family::NAME, format!("{}{suffix}", family.name).as_bytes());
        put_delimited(&mut self.out, family::HELP, family.help.as_bytes());
        put_varint_field(&mut self.out, family::TYPE, kind as u64);
    }

    fn end(&mut self) {
        let mut length = Vec::with_capacity(10);
        encode_varint((self.out.len() - self.family) as u64, &mut length);
        self.out.splice(self.family..self.family, length);
    }

    /// Appends a metric whose labels are in `metric`, and whose value of the field `kind` is in `value`.
    fn end_metric(&mut self, kind: u32) {
        put_delimited(&mut self.metric, kind, &self.value);
        put_delimited(&mut self.out, family::METRIC, &self.metric);
    }

    fn simple(&mut self, labels: &Labels, kind: u32, value: f64) {
        self.metric.extend_from_slice(&labels.protobuf);
        self.value.clear();
        put_double(&mut self.value, metric::VALUE, value);
        self.end_metric(kind);
        self.metric.clear();
    }

    fn counter<'a>(
        &mut self,
        scrape: &Scrape<'a>,
        family: Family,
        value: impl Fn(&Series) -> u64,
        exemplar: impl Fn(&Series) -> Option<&'a Exemplar>,
    ) {
        self.begin(family, "_total", Kind::Counter);
        for series in scrape.totals.shown() {
            self.metric.extend_from_slice(&series.labels.protobuf);
            self.value.clear();
            put_double(&mut self.value, metric::VALUE, value(series) as f64);
            if let Some(exemplar) = exemplar(series) {
                put_exemplar(&mut self.value, metric::COUNTER_EXEMPLAR, exemplar, 1.0);
            }
            put_created(&mut self.value, metric::COUNTER_CREATED, series);
            self.end_metric(metric::COUNTER);
            self.metric.clear();
        }
        self.end();
    }

    fn latency(&mut self, scrape: &Scrape<'_>) {
        self.begin(LATENCY, "", Kind::Gauge);
        scrape.for_each_latency(|tool, quantiles| {
            for ((_, label), ms) in QUANTILES.iter().zip(quantiles) {
                put_label(&mut self.metric, "quantile", label);
                self.simple(&tool.labels, metric::GAUGE, ms);
            }
        });
        self.end();
    }

    fn durations(&mut self, scrape: &Scrape<'_>) {
        self.begin(DURATION, "", Kind::Histogram);
        let all: Vec<&Series> = scrape.totals.shown().collect();
        let threads = if all.len() < SHARED_SERIES { 1 } else { available_parallelism().map_or(1, usize::from) };
        let mut shares = all.chunks(all.len().div_ceil(threads.min(MAX_THREADS)).max(1));
        let first = shares.next().unwrap_or_default();
        std::thread::scope(|threads| {
            let share = move |series: &'_ [&Series]| {
                let mut page = Page::default();
                page.histograms(scrape, series);
                page.out
            };
            let others: Vec<_> = shares.map(|series| threads.spawn(move || share(series))).collect();
            self.histograms(scrape, first);
            for other in others {
                match other.join() {
                    Ok(metrics) => self.out.extend_from_slice(&metrics),
                    Err(fault) => std::panic::resume_unwind(fault),
                }
            }
        });
        self.end();
    }

    fn histograms(&mut self, scrape: &Scrape<'_>, series: &[&Series]) {
        let bounds = super::bucket_bounds();
        for series in series {
            self.metric.extend_from_slice(&series.labels.protobuf);
            self.value.clear();
            let exemplar = scrape.exemplars_of(series).0;
            self.put_classic(&series.latency, bounds, exemplar);
            self.put_native(&series.latency);
            put_created(&mut self.value, histogram::CREATED, series);
            // Past the last bound no bucket can have it. Else a bucket has it, so that a reader of the classic buckets
            // too finds it for each series: of native histograms alone Prometheus (3.5) reads exemplars of a family's
            // first one.
            if let Some(exemplar) = exemplar.filter(|exemplar| super::bucket_of(exemplar.seconds) == bounds.len()) {
                put_exemplar(&mut self.value, histogram::EXEMPLARS, exemplar, exemplar.seconds);
            }
            self.end_metric(metric::HISTOGRAM);
            self.metric.clear();
        }
    }

    fn put_classic(&mut self, latency: &Histogram, bounds: [f64; BUCKET_EXPONENTS.len()], exemplar: Option<&Exemplar>) {
        let exemplar = exemplar.map(|exemplar| (super::bucket_of(exemplar.seconds), exemplar));
        let value = &mut self.value;
        put_varint_field(value, histogram::SAMPLE_COUNT, latency.count());
        put_double(value, histogram::SAMPLE_SUM, latency.sum_ms() / 1000.0);
        let mut bucket = Vec::with_capacity(24);
        for (place, (bound, calls)) in bounds.into_iter().zip(latency.cumulative(BUCKET_EXPONENTS)).enumerate() {
            bucket.clear();
            put_varint_field(&mut bucket, histogram::BUCKET_CUMULATIVE_COUNT, calls);
            put_double(&mut bucket, histogram::BUCKET_UPPER_BOUND, bound);
            if let Some((_, exemplar)) = exemplar.filter(|(at, _)| *at == place) {
                put_exemplar(&mut bucket, histogram::BUCKET_EXEMPLAR, exemplar, exemplar.seconds);
            }
            put_delimited(value, histogram::BUCKET, &bucket);
        }
    }

    fn put_native(&mut self, latency: &Histogram) {
        let value = &mut self.value;
        put_varint_field(value, histogram::SCHEMA, zigzag(SCALE.into()));
        put_double(value, histogram::ZERO_THRESHOLD, ZERO_THRESHOLD_SECONDS);
        put_varint_field(value, histogram::ZERO_COUNT, latency.zero_count());
        self.native.fill(latency);
        let mut span = Vec::with_capacity(16);
        for &(offset, length) in &self.native.spans {
            span.clear();
            put_varint_field(&mut span, histogram::SPAN_OFFSET, zigzag(offset));
            put_varint_field(&mut span, histogram::SPAN_LENGTH, length);
            put_delimited(value, histogram::POSITIVE_SPAN, &span);
        }
        put_delimited(value, histogram::POSITIVE_DELTA, &self.native.deltas);
    }

    fn overflowed(&mut self, scrape: &Scrape<'_>) {
        self.begin(OVERFLOWED, "", Kind::Gauge);
        let labels = Labels::new([("org", scrape.totals.org().as_str())]);
        self.simple(&labels, metric::GAUGE, scrape.totals.overflowed_series() as f64);
        self.end();
        if scrape.totals.overflowed_by().next().is_none() {
            return;
        }
        self.begin(OVERFLOWED_BY, "", Kind::Gauge);
        for (workspace, plugin, count) in scrape.totals.overflowed_by() {
            let org = scrape.totals.org().as_str();
            let labels = Labels::new([("org", org), ("workspace", workspace), ("plugin", plugin)]);
            self.simple(&labels, metric::GAUGE, count as f64);
        }
        self.end();
    }
}

/// The native buckets of a histogram, in spans.
#[derive(Default)]
struct Native {
    /// For each span, the empty buckets before it (the first: its index), and its length.
    spans: Vec<(i64, u64)>,
    /// Each bucket's count less that of the bucket before, packed.
    deltas: Vec<u8>,
}

impl Native {
    fn fill(&mut self, latency: &Histogram) {
        self.spans.clear();
        self.deltas.clear();
        let mut previous_count = 0;
        // The span being gathered, and the bucket after its last.
        let (mut offset, mut length, mut end) = (0, 0, 0);
        latency.for_each_bucket(|index, count| {
            // Prometheus names a bucket by the power that it ends at, one above the power that it starts at.
            let index = i64::from(index) + 1;
            let gap = index - end;
            if length > 0 && gap <= FILLED_GAP {
                for _ in 0..gap {
                    put_signed(&mut self.deltas, -previous_count);
                    previous_count = 0;
                }
                length += gap as u64 + 1;
            } else {
                if length > 0 {
                    self.spans.push((offset, length));
                }
                (offset, length) = (gap, 1);
            }
            end = index + 1;
            let count = count as i64;
            put_signed(&mut self.deltas, count - previous_count);
            previous_count = count;
        });
        if length > 0 {
            self.spans.push((offset, length));
        }
    }
}

/// Appends when a series began, where that is known.
fn put_created(out: &mut Vec<u8>, field: u32, series: &Series) {
    if series.created > 0 {
        put_time(out, field, series.created);
    }
}

/// Appends an `Exemplar` of this value.
fn put_exemplar(out: &mut Vec<u8>, field: u32, exemplar: &Exemplar, value: f64) {
    let mut message = Vec::with_capacity(80);
    put_label(&mut message, "trace_id", &exemplar.trace_id);
    put_double(&mut message, exemplar::VALUE, value);
    put_time(&mut message, exemplar::TIMESTAMP, exemplar.at);
    put_delimited(out, field, &message);
}

/// Appends a `google.protobuf.Timestamp` of a time in microseconds since the Unix epoch.
fn put_time(out: &mut Vec<u8>, field: u32, micros: i64) {
    let mut time = Vec::with_capacity(16);
    put_varint_field(&mut time, exemplar::SECONDS, micros.div_euclid(1_000_000) as u64);
    put_varint_field(&mut time, exemplar::NANOS, micros.rem_euclid(1_000_000) as u64 * 1_000);
    put_delimited(out, field, &time);
}

/// Appends a field of a number.
fn put_varint_field(out: &mut Vec<u8>, field: u32, value: u64) {
    encode_key(field, WireType::Varint, out);
    encode_varint(value, out);
}

/// Appends a field of type `double`.
fn put_double(out: &mut Vec<u8>, field: u32, value: f64) {
    encode_key(field, WireType::SixtyFourBit, out);
    out.extend_from_slice(&value.to_le_bytes());
}
