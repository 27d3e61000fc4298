//! What one core encodes to Parquet with nothing else to do: the yardstick for ingest.
//!
//! A flush's worth of canonical samples, in this process, on one thread, with the encoder that the flush uses. Twice:
//! with all ids new in every row, as gateways make them, and as the load generator sends them (its ids count up within
//! a batch and its rows come again in later batches, which packs better and is faster). Ingest is measured with the
//! load generator, so the second is what it is compared with.

use std::hint::black_box;
use std::time::Instant;

use arrow::compute::concat_batches;
use arrow::record_batch::RecordBatch;
use chrono::{DateTime, TimeDelta, Utc};
use mcpg::demo::{Fleet, Template};
use mcpg::ingest::{DecodeContext, DecodeLimits, Encoding, Media, RandomIds, decode};
use mcpg::model::schema::schemas;
use mcpg::model::{Clock, OrgName, SystemClock};
use mcpg::storage::parquet::encode;
use serde_json::json;

use super::Result;
use super::figures::{median, readable};
use super::options::Options;
use super::report::Finding;
use super::samples::{GATEWAYS, SEED, arrow_stream};

/// The finding that ingest is compared with.
pub(crate) const LIMIT: &str = "encode limit of one core, samples of the load generator";

/// Samples of a flush, by default.
const ROWS: u64 = 500_000;
/// Samples of a body, and bodies of a batch as it lies in the live buffer.
const BODY_ROWS: usize = 5_000;
const BODIES: usize = 10;
/// Templates that the load generator renders in turn.
const TEMPLATES: usize = 16;
/// Timed runs, after one that is not.
const RUNS: usize = 7;

/// Measures it.
///
/// # Errors
/// When samples cannot be made or encoded.
pub(crate) fn measure(options: &Options) -> Result<Vec<Finding>> {
    let now = SystemClock.now();
    // A stretch of one day, so that it becomes one file.
    let from = now.date_naive().and_hms_opt(0, 0, 0).ok_or("no midnight")?.and_utc() - TimeDelta::hours(12);
    let bodies = (options.count(ROWS) as usize).div_ceil(BODY_ROWS);
    let fresh = Flush::of(now, bodies, fresh_bodies(from))?;
    let generated = Flush::of(now, bodies, generated_bodies(from)?)?;
    Ok(vec![fresh.encode("encode limit of one core, all ids new")?, generated.encode(LIMIT)?])
}

type Bodies = Box<dyn FnMut(usize) -> Result<bytes::Bytes>>;

fn fresh_bodies(from: DateTime<Utc>) -> Bodies {
    let mut fleet = Fleet::new(SEED, GATEWAYS);
    Box::new(move |number| {
        let from = from + TimeDelta::seconds(i64::try_from(number)?);
        arrow_stream(&fleet.batch(number, from, from + TimeDelta::seconds(1), BODY_ROWS)?)
    })
}

fn generated_bodies(from: DateTime<Utc>) -> Result<Bodies> {
    let mut fleet = Fleet::new(SEED, GATEWAYS);
    let mut template = |gateway| -> Result<Template> {
        let samples = fleet.batch(gateway, from, from + TimeDelta::seconds(1), BODY_ROWS)?;
        Ok(Template::new(Media::ArrowStream, samples)?)
    };
    let templates = (0..TEMPLATES).map(&mut template).collect::<Result<Vec<_>>>()?;
    Ok(Box::new(move |number| {
        let shift = TimeDelta::seconds(i64::try_from(number)?);
        let template = templates.get(number % TEMPLATES).ok_or("no template")?;
        Ok(template.render(from + shift, shift, &mut rand::rng())?.bytes)
    }))
}

/// Canonical samples, in batches as the live buffer holds them.
struct Flush {
    batches: Vec<RecordBatch>,
    rows: usize,
}

impl Flush {
    fn of(now: DateTime<Utc>, count: usize, mut bodies: Bodies) -> Result<Self> {
        let (org, mut ids) = (OrgName::default(), RandomIds::default());
        let context = DecodeContext { org: &org, now, limits: DecodeLimits::default() };
        let decoded = (0..count).map(|number| -> Result<RecordBatch> {
            Ok(decode(&bodies(number)?, Media::ArrowStream, Encoding::Identity, &context, &mut ids)?)
        });
        let decoded = decoded.collect::<Result<Vec<_>>>()?;
        let schema = &schemas()?.tool_invocations;
        let merged = decoded.chunks(BODIES).map(|batches| concat_batches(schema, batches));
        Ok(Self { batches: merged.collect::<Result<_, _>>()?, rows: count * BODY_ROWS })
    }

    fn encode(&self, what: &str) -> Result<Finding> {
        let schema = &schemas()?.tool_invocations;
        let mut bytes = 0;
        let mut rates = Vec::with_capacity(RUNS);
        for run in 0..=RUNS {
            let began = Instant::now();
            let files = black_box(encode(schema, black_box(&self.batches), 1)?);
            if run > 0 {
                rates.push(self.rows as f64 / began.elapsed().as_secs_f64());
            }
            bytes = files.iter().map(|file| file.bytes.len()).sum();
        }
        let bytes_per_row = bytes as f64 / self.rows as f64;
        let note = format!("{} bytes a sample, {} samples", readable(bytes_per_row), readable(self.rows as f64));
        let detail = json!({ "rows": self.rows, "bytes": bytes, "rows_per_second_by_run": rates });
        Ok(Finding::new("encode", what, median(&rates), "samples/s").note(note).detail(detail))
    }
}
