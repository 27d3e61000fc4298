//! `mcpg loadgen`: realistic samples at a chosen rate, and what became of them.
//!
//! With a rate the load is open: batch *n* is due at `n · batch / rate` whether the ones before it are acknowledged or
//! not, and its latency counts from then, so that a server that stalls shows it. With rate 0 each connection sends as
//! fast as it is acknowledged, and latency counts from the sending.

mod acked_log;
mod report;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use rand::RngExt;
use tokio::task::JoinSet;
use tokio::time::Instant;

use acked_log::AckedLog;
pub use report::Report;
use report::Tally;

use crate::demo::{DemoError, Fleet, Refusal, Sender, Template};
use crate::ingest::{Encoding, Media};
use crate::model::{Clock, OrgName, SystemClock};

/// Gateways of the simulated fleet.
const GATEWAYS: usize = 12;
/// The most samples kept as templates, and the most templates.
const TEMPLATE_ROWS: usize = 100_000;
const MAX_TEMPLATES: usize = 16;
/// How long a run lasts when neither `--duration` nor `--total` says.
const DEFAULT_SECONDS: f64 = 10.0;
/// How often a burst comes.
const BURST_CYCLE_SECONDS: f64 = 10.0;
/// The stretch of time that the samples of a batch are spread over, when sending as fast as possible.
const BATCH_SPAN: TimeDelta = TimeDelta::seconds(1);

/// Arguments of `mcpg loadgen`.
#[derive(Debug, Clone, Args)]
pub struct LoadgenArgs {
    /// The control plane
    #[arg(long, env = "MCPG_URL", default_value = "http://127.0.0.1:7843")]
    pub url: String,
    /// The org to send samples to
    #[arg(long, env = "MCPG_ORG", default_value = "default")]
    pub org: OrgName,
    /// A token with the role `ingest`
    #[arg(long, env = "MCPG_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// Samples a second; 0 sends as fast as they are acknowledged
    #[arg(long, default_value_t = 1000.0, value_parser = not_negative)]
    pub rate: f64,
    /// Send half of the samples in a tenth of the time: a burst every ten seconds
    #[arg(long)]
    pub bursts: bool,
    /// Seconds to run [default: 10, or until --total]
    #[arg(long, value_parser = not_negative)]
    pub duration: Option<f64>,
    /// Samples to send in all
    #[arg(long)]
    pub total: Option<u64>,
    /// Connections that send at a time
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub connections: u32,
    /// Samples in a batch
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub batch: u32,
    /// Form of the bodies
    #[arg(long, value_enum, default_value_t = Format::Arrow)]
    pub format: Format,
    /// Packing of the bodies
    #[arg(long, value_enum, default_value_t = Packing::None)]
    pub encoding: Packing,
    /// Seed of the fleet: the same one makes the same samples, but for ids and times
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Seconds to keep trying to have a batch acknowledged
    #[arg(long, default_value_t = 30.0, value_parser = not_negative)]
    pub give_up: f64,
    /// Append a line to this file for each acknowledged batch
    #[arg(long)]
    pub acked_log: Option<PathBuf>,
    /// Print the report as JSON
    #[arg(long)]
    pub json: bool,
}

/// Form of the bodies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// An Arrow IPC stream.
    Arrow,
    /// NDJSON.
    Ndjson,
    /// A JSON array.
    Json,
}

/// Packing of the bodies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Packing {
    /// None.
    None,
    /// gzip.
    Gzip,
    /// Zstandard.
    Zstd,
}

/// Why the load could not be generated.
#[derive(Debug, thiserror::Error)]
pub enum LoadgenError {
    /// The samples could not be made.
    #[error(transparent)]
    Demo(#[from] DemoError),
    /// The sender could not be made.
    #[error(transparent)]
    Sender(Refusal),
    /// The log of acknowledged batches could not be written.
    #[error("cannot write {path}: {cause}")]
    AckedLog {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// The report could not be printed.
    #[error("cannot print the report: {0}")]
    Report(#[from] io::Error),
}

/// Runs `mcpg loadgen`: exit code 0 when every batch was acknowledged, 1 when not.
///
/// # Errors
/// See [`LoadgenError`].
pub async fn run(args: LoadgenArgs) -> Result<ExitCode, LoadgenError> {
    let as_json = args.json;
    let report = generate(args, Arc::new(SystemClock)).await?;
    let text = if as_json { serde_json::to_string(&report).map_err(io::Error::from)? } else { report.to_string() };
    match writeln!(io::stdout(), "{text}") {
        // Ignore the error: the reader of the report has closed the pipe.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        printed => printed?,
    }
    Ok(if report.failed_batches == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// Sends samples as the arguments say, until done or Ctrl-C.
///
/// # Errors
/// See [`LoadgenError`].
pub async fn generate(args: LoadgenArgs, clock: Arc<dyn Clock>) -> Result<Report, LoadgenError> {
    let sender = Sender::new(
        &args.url,
        &args.org,
        args.token.clone(),
        args.format.media(),
        args.encoding.encoding(),
        Duration::from_secs_f64(args.give_up),
    )
    .map_err(LoadgenError::Sender)?;
    let acked_log = args.acked_log.as_deref().map(AckedLog::open).transpose()?;
    let span = if args.rate > 0.0 {
        TimeDelta::microseconds((f64::from(args.batch) / args.rate * 1e6).min(60e6) as i64)
    } else {
        BATCH_SPAN
    };
    let made_at = clock.now();
    let run = Arc::new(Run {
        templates: templates(&args, made_at, span)?,
        made_at,
        sender,
        clock,
        acked_log,
        // Keys of two runs must differ, or the second would be taken for retries of the first.
        run_id: rand::rng().random(),
        next_batch: AtomicU64::new(0),
        batches: args.batches(),
        bursts: args.bursts,
        gap: (args.rate > 0.0).then(|| Duration::from_secs_f64(f64::from(args.batch) / args.rate)),
        started: Instant::now(),
        stop_after: args.stop_after(),
        stopped: AtomicBool::new(false),
        progress: progress(&args),
    });
    let mut workers = JoinSet::new();
    for _ in 0..args.connections {
        workers.spawn(worker(Arc::clone(&run)));
    }
    let mut total = Tally::default();
    let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
    let mut listening = true;
    while !workers.is_empty() {
        tokio::select! {
            _ = &mut interrupted, if listening => {
                listening = false;
                run.stopped.store(true, Ordering::Relaxed);
            }
            Some(joined) = workers.join_next() => match joined {
                Ok(tally) => total.add(tally?),
                Err(panicked) => total.fail(panicked.to_string()),
            },
        }
    }
    run.progress.finish_and_clear();
    Ok(total.report(run.started.elapsed()))
}

impl LoadgenArgs {
    fn batches(&self) -> u64 {
        self.total.map_or(u64::MAX, |total| total.div_ceil(u64::from(self.batch)))
    }

    fn stop_after(&self) -> Option<Duration> {
        let seconds = self.duration.or(self.total.is_none().then_some(DEFAULT_SECONDS));
        seconds.map(Duration::from_secs_f64)
    }
}

impl Format {
    const fn media(self) -> Media {
        match self {
            Self::Arrow => Media::ArrowStream,
            Self::Ndjson => Media::Ndjson,
            Self::Json => Media::Json,
        }
    }
}

impl Packing {
    const fn encoding(self) -> Encoding {
        match self {
            Self::None => Encoding::Identity,
            Self::Gzip => Encoding::Gzip,
            Self::Zstd => Encoding::Zstd,
        }
    }
}

/// Batches of all gateways in turn.
fn templates(args: &LoadgenArgs, at: DateTime<Utc>, span: TimeDelta) -> Result<Vec<Template>, DemoError> {
    let rows = args.batch as usize;
    let mut fleet = Fleet::new(args.seed, GATEWAYS);
    let count = (TEMPLATE_ROWS / rows).clamp(1, MAX_TEMPLATES);
    (0..count).map(|gateway| Template::new(args.format.media(), fleet.batch(gateway, at - span, at, rows)?)).collect()
}

/// What all connections share.
struct Run {
    templates: Vec<Template>,
    made_at: DateTime<Utc>,
    sender: Sender,
    clock: Arc<dyn Clock>,
    acked_log: Option<AckedLog>,
    run_id: u64,
    next_batch: AtomicU64,
    batches: u64,
    bursts: bool,
    gap: Option<Duration>,
    started: Instant,
    stop_after: Option<Duration>,
    stopped: AtomicBool,
    progress: ProgressBar,
}

impl Run {
    /// When a batch is due; none when it is sent as soon as a connection is free.
    fn due(&self, number: u64) -> Option<Instant> {
        let even = self.gap?.mul_f64(number as f64);
        Some(self.started + if self.bursts { in_bursts(even) } else { even })
    }
}

/// Moves a moment of an even load into a load of bursts: in each ten seconds, the first half of what is due comes in
/// the first second.
fn in_bursts(even: Duration) -> Duration {
    let cycles = even.as_secs_f64() / BURST_CYCLE_SECONDS;
    let (cycle, share) = (cycles.floor(), cycles.fract());
    let place = if share < 0.5 { share * 0.2 } else { 0.1 + (share - 0.5) * 1.8 };
    Duration::from_secs_f64((cycle + place) * BURST_CYCLE_SECONDS)
}

/// One connection: takes the next batch, waits until it is due, sends it.
async fn worker(run: Arc<Run>) -> Result<Tally, LoadgenError> {
    let mut tally = Tally::default();
    loop {
        let number = run.next_batch.fetch_add(1, Ordering::Relaxed);
        let due = run.due(number);
        let over = run.stop_after.is_some_and(|limit| due.unwrap_or_else(Instant::now) >= run.started + limit);
        if number >= run.batches || over || run.stopped.load(Ordering::Relaxed) {
            return Ok(tally);
        }
        if let Some(due) = due {
            tokio::time::sleep_until(due).await;
        }
        let Some(template) = run.templates.get((number % run.templates.len().max(1) as u64) as usize) else {
            return Ok(tally);
        };
        let now = run.clock.now();
        let body = template.render(now, now - run.made_at, &mut rand::rng())?;
        let packed = run.sender.pack(&body).map_err(LoadgenError::Sender)?;
        let key = format!("loadgen-{:016x}-{number}", run.run_id);
        let sent = due.unwrap_or_else(Instant::now);
        match run.sender.deliver(packed, &key).await {
            Ok(delivery) => {
                tally.acknowledged(delivery.accepted, delivery.duplicate, delivery.retries, sent.elapsed());
                run.progress.inc(body.rows as u64);
                if let Some(log) = &run.acked_log {
                    let how = if delivery.duplicate { "duplicate" } else { "accepted" };
                    log.append(&format!("{key}\t{}\t{}\t{how}\n", body.rows, body.first_id))?;
                }
            }
            Err(refusal) => tally.fail(refusal.to_string()),
        }
    }
}

/// A bar on a terminal, nothing elsewhere.
fn progress(args: &LoadgenArgs) -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    let style = ProgressStyle::with_template("{spinner} {human_pos} samples acknowledged, {per_sec}, {elapsed}");
    if let Ok(style) = style {
        bar.set_style(style);
    }
    if args.json {
        bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
    }
    bar
}

fn not_negative(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() && (0.0..=1e9).contains(&number) => Ok(number),
        _ => Err("expected a number from 0 to 1000000000".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use arrow::array::AsArray;
    use axum::Router;
    use axum::extract::{DefaultBodyLimit, State};
    use axum::http::HeaderMap;
    use axum::response::{IntoResponse, Response};
    use axum::routing::post;
    use bytes::Bytes;
    use clap::Parser;
    use tokio::net::TcpListener;
    use uuid::Uuid;

    use super::{LoadgenArgs, Report, generate, in_bursts};
    use crate::ingest::{DecodeContext, DecodeLimits, Encoding, Media, RandomIds, decode};
    use crate::model::{Clock, SystemClock};

    /// A control plane that decodes what it gets, and remembers keys and ids.
    #[derive(Clone, Default)]
    struct Plane {
        keys: Arc<Mutex<Vec<String>>>,
        ids: Arc<Mutex<HashSet<Uuid>>>,
        busy_answers: Arc<Mutex<u32>>,
    }

    async fn take(State(plane): State<Plane>, headers: HeaderMap, body: Bytes) -> Response {
        {
            let mut busy = plane.busy_answers.lock().unwrap();
            if *busy > 0 {
                *busy -= 1;
                return (axum::http::StatusCode::TOO_MANY_REQUESTS, [("Retry-After", "0")]).into_response();
            }
        }
        let (media, encoding) = (Media::from_headers(&headers).unwrap(), Encoding::from_headers(&headers).unwrap());
        let org = "default".parse().unwrap();
        let context = DecodeContext { org: &org, now: SystemClock.now(), limits: DecodeLimits::default() };
        let batch = decode(&body, media, encoding, &context, &mut RandomIds::default()).unwrap();
        plane.keys.lock().unwrap().push(headers["idempotency-key"].to_str().unwrap().to_owned());
        let ids = batch.column_by_name("invocation_id").unwrap().as_string::<i32>();
        plane.ids.lock().unwrap().extend(ids.iter().map(|id| id.unwrap().parse::<Uuid>().unwrap()));
        format!("{{\"accepted\": {}, \"duplicate\": false}}", batch.num_rows()).into_response()
    }

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: LoadgenArgs,
    }

    async fn generated(plane: &Plane, args: &str) -> Report {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let app = Router::new()
            .route("/v1/orgs/default/invocations", post(take))
            .layer(DefaultBodyLimit::disable())
            .with_state(plane.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        let words = ["loadgen", "--url", &url].into_iter().chain(args.split_whitespace());
        generate(Command::parse_from(words).args, Arc::new(SystemClock)).await.unwrap()
    }

    #[tokio::test]
    async fn every_sample_arrives_once_under_its_own_id_and_every_batch_under_its_own_key() {
        for format in ["arrow", "ndjson", "json"] {
            for encoding in ["none", "gzip", "zstd"] {
                let plane = Plane::default();
                let args = format!("--rate 0 --total 2000 --batch 100 --format {format} --encoding {encoding}");
                let report = generated(&plane, &args).await;
                assert_eq!((report.samples, report.batches, report.failed_batches), (2000, 20, 0), "{args}");
                assert_eq!(plane.ids.lock().unwrap().len(), 2000);
                let keys = plane.keys.lock().unwrap();
                assert_eq!(keys.iter().collect::<HashSet<_>>().len(), 20);
            }
        }
    }

    #[tokio::test]
    async fn the_rate_is_kept() {
        let plane = Plane::default();
        let report = generated(&plane, "--rate 1000 --duration 1 --batch 50").await;
        assert_eq!(report.samples, 1000);
        // A busy machine may fall behind; nothing goes faster than it is told to.
        assert!((0.9..60.0).contains(&report.seconds), "{}", report.seconds);
    }

    #[test]
    fn bursts_bring_half_of_the_load_in_a_tenth_of_the_time_and_keep_the_rate() {
        let due: Vec<f64> = (0..3_000).map(|n| in_bursts(Duration::from_millis(10 * n)).as_secs_f64()).collect();
        assert!(due.is_sorted());
        assert_eq!(due.iter().filter(|at| (10.0..11.0).contains(*at)).count(), 500);
        assert_eq!(due.iter().filter(|at| (10.0..20.0).contains(*at)).count(), 1_000);
    }

    #[tokio::test]
    async fn a_busy_server_gets_retries_and_loses_nothing() {
        let plane = Plane::default();
        *plane.busy_answers.lock().unwrap() = 5;
        let report = generated(&plane, "--rate 0 --total 500 --batch 100").await;
        assert_eq!((report.samples, report.retries, report.failed_batches), (500, 5, 0));
        assert_eq!(plane.ids.lock().unwrap().len(), 500);
    }

    #[tokio::test]
    async fn the_log_tells_which_samples_were_acknowledged() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("acked.log");
        let plane = Plane::default();
        generated(&plane, &format!("--rate 0 --total 1000 --batch 100 --acked-log {}", log.display())).await;
        let mut logged = HashSet::new();
        for line in std::fs::read_to_string(log).unwrap().lines() {
            let [key, rows, first_id, "accepted"] = line.split('\t').collect::<Vec<_>>()[..] else { panic!("{line}") };
            assert!(plane.keys.lock().unwrap().iter().any(|known| known == key));
            let first = first_id.parse::<Uuid>().unwrap().as_u128();
            logged.extend((0..rows.parse::<u128>().unwrap()).map(|row| Uuid::from_u128(first + row)));
        }
        assert_eq!(logged, *plane.ids.lock().unwrap());
    }

    #[tokio::test]
    async fn batches_that_are_never_acknowledged_are_failures() {
        let args = "loadgen --url http://127.0.0.1:1 --rate 0 --total 200 --batch 100 --give-up 0.1";
        let args = Command::parse_from(args.split_whitespace()).args;
        let report = generate(args, Arc::new(SystemClock)).await.unwrap();
        assert_eq!((report.samples, report.failed_batches), (0, 2));
        assert!(report.first_failure.is_some());
    }
}
