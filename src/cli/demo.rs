//! `mcpg demo`: a control plane on this machine, and a simulated fleet of gateways that sends to it through its HTTP
//! API.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use clap::Args;
use tokio_util::sync::CancellationToken;

use super::control_plane::{Node, Signals};
use super::{CliError, output};
use crate::config::{ControlPlane, LogLevel, StorageUrl};
use crate::demo::{Fleet, Sender, TrafficError, backfill, simulate};
use crate::ingest::{Encoding, Media};
use crate::model::{Clock, OrgName, SystemClock};
use crate::telemetry::Telemetry;

/// Gateways of the simulated fleet, and the seed that it follows from.
const GATEWAYS: usize = 12;
const SEED: u64 = 1;

/// How far back the fleet has worked when a demo starts on an empty store.
const PAST: TimeDelta = TimeDelta::hours(1);

/// How long a simulated gateway keeps trying to deliver a batch.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, Args)]
pub(super) struct DemoArgs {
    /// The address to serve HTTP on.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7843")]
    listen: SocketAddr,
    /// The folder to keep data in.
    #[arg(long, value_name = "FOLDER", default_value = "./mcpg-data")]
    data: PathBuf,
    /// Samples a second of all gateways together, on average.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: u32,
}

pub(super) async fn run(args: DemoArgs) -> Result<(), CliError> {
    let mut settings = ControlPlane { listen: args.listen, ..ControlPlane::default() };
    settings.storage.url = StorageUrl::Folder(args.data.join("store"));
    settings.telemetry.log.level = LogLevel::Warn;
    if let Some(why) = settings.exposure() {
        return Err(CliError::CouldNot(why));
    }
    let telemetry = Telemetry::start(&settings.telemetry).map_err(|error| CliError::CouldNot(error.to_string()))?;
    let outcome = demonstrate(&args, &settings).await;
    telemetry.shutdown().await;
    outcome
}

async fn demonstrate(args: &DemoArgs, settings: &ControlPlane) -> Result<(), CliError> {
    let mut signals = Signals::new()?;
    let node = Node::start(settings).await?;
    node.recover().await?;
    output::line(&introduction(&node.url(), args))?;
    let stop = CancellationToken::new();
    let mut traffic = tokio::spawn(run_fleet(node.url(), is_empty(&node).await?, f64::from(args.rate), stop.clone()));
    let ended = tokio::select! {
        () = signals.next() => None,
        ended = &mut traffic => Some(ended),
    };
    output::line("stopping: the fleet first, then what is in memory goes to the tables")?;
    stop.cancel();
    let ended = match ended {
        Some(ended) => ended,
        None => traffic.await,
    };
    node.stop().await?;
    match ended {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(CliError::could_not("the simulated fleet", error)),
        Err(error) => Err(CliError::could_not("the simulated fleet", error)),
    }
}

/// Whether no demo has run on this store before.
async fn is_empty(node: &Node) -> Result<bool, CliError> {
    let series = node.plane().with_totals(&OrgName::default(), |totals| totals.series_count()).await;
    Ok(series.map_err(|error| CliError::CouldNot(error.to_string()))? == 0)
}

/// The fleet's past, if it has none yet, then its present until `stop`.
async fn run_fleet(url: String, with_past: bool, rate: f64, stop: CancellationToken) -> Result<(), TrafficError> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let sender = Sender::new(&url, &OrgName::default(), None, Media::ArrowStream, Encoding::Zstd, PATIENCE)?;
    let mut fleet = Fleet::new(SEED, GATEWAYS);
    if with_past {
        let now = clock.now();
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            sent = backfill(&mut fleet, &sender, now - PAST, now, rate) => sent?,
        };
    }
    simulate(fleet, sender, clock, rate, stop).await
}

/// What runs, what to open, what to try.
fn introduction(url: &str, args: &DemoArgs) -> String {
    let program = std::env::args().next().unwrap_or_else(|| "mcpg".to_owned());
    let (target, rate, data) = (url.trim_start_matches("http://"), args.rate, args.data.display());
    format!(
        r#"listening on {url}

A control plane runs here, and {GATEWAYS} simulated gateways send it {rate} samples a second and those of the last hour.
Data lies in {data}; Ctrl-C drains and stops.

  The fleet's metrics     {url}/v1/orgs/default/metrics
  The control plane's own {url}/metrics
  The API                 {url}/openapi.json

Try:

  curl '{url}/v1/orgs/default/metrics?granularity=hour'

  {program} sql --url {url} "SELECT plugin, tool, sum(calls) AS calls, sum(errors) AS errors,
    latency_quantile(latency_merge(latency), 0.99) AS p99_ms
    FROM tool_usage_hourly GROUP BY plugin, tool ORDER BY calls DESC LIMIT 10"

  # prometheus.yml
  scrape_configs:
    - job_name: mcpg-fleet
      scrape_interval: 30s
      metrics_path: /v1/orgs/default/metrics
      params:
        granularity: [hour]
      static_configs:
        - targets: ['{target}']
"#
    )
}
