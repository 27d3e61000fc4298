//! `mcpg demo`: everything on one machine. A control plane, a gateway, MCP servers with a dozen tools behind it, and
//! agents that call them.
//!
//! The order at the end: the agents finish their calls, the gateway drains and sends what it has spooled, the servers
//! stop, the control plane flushes. What could not be sent in time waits in the spool for the next demo.

use std::fmt::Display;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use tokio_util::sync::CancellationToken;
use url::Url;

use super::control_plane::{Node, Signals};
use super::token::new_token;
use super::{CliError, output};
use crate::config::{self, ControlPlane, LogLevel, StorageUrl};
use crate::demo::{Credentials, GatewaySetup, Servers, call_tools};
use crate::gateway::{Gateway, Parts};
use crate::model::{Random, SystemClock, SystemRandom};
use crate::telemetry::Telemetry;

#[derive(Debug, Args)]
pub(super) struct DemoArgs {
    /// The address of the control plane.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7843")]
    listen: SocketAddr,
    /// The address of the gateway, for MCP.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    gateway: SocketAddr,
    /// The address of the gateway's own metrics.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9090")]
    gateway_metrics: SocketAddr,
    /// A collector to send traces to, over OTLP by gRPC, like http://127.0.0.1:4317.
    #[arg(long, value_name = "URL")]
    otlp: Option<Url>,
    /// The folder to keep data in.
    #[arg(long, value_name = "FOLDER", default_value = "./mcpg-data")]
    data: PathBuf,
    /// Tool calls a second of all agents together, on average.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=500))]
    rate: u32,
}

pub(super) async fn run(args: DemoArgs) -> Result<(), CliError> {
    let mut settings = ControlPlane { listen: args.listen, ..ControlPlane::default() };
    settings.storage.url = StorageUrl::Folder(args.data.join("store"));
    settings.audit.key_file = args.data.join("keys").join("ledger.key");
    settings.telemetry.log.level = LogLevel::Warn;
    for (address, flag) in
        [(args.listen, "--listen"), (args.gateway, "--gateway"), (args.gateway_metrics, "--gateway-metrics")]
    {
        usable(address, flag)?;
    }
    let telemetry = Telemetry::start(&settings.telemetry).map_err(|error| CliError::CouldNot(error.to_string()))?;
    let outcome = demonstrate(&args, &settings).await;
    telemetry.shutdown().await;
    outcome
}

/// Refuses an address that cannot be had before anything has started.
fn usable(address: SocketAddr, flag: &str) -> Result<(), CliError> {
    if !address.ip().is_loopback() {
        let why =
            format!("{flag} {address}: the demo knows no tokens for its control plane and serves this machine alone");
        return Err(CliError::CouldNot(format!("{why}; use an address like 127.0.0.1:{}", address.port())));
    }
    match TcpListener::bind(address) {
        Ok(_) => Ok(()),
        Err(error) => Err(CliError::could_not(format!("{address} cannot be had; choose another with {flag}"), error)),
    }
}

async fn demonstrate(args: &DemoArgs, settings: &ControlPlane) -> Result<(), CliError> {
    let mut signals = Signals::new()?;
    let node = Node::start(settings).await?;
    node.recover().await?;
    let served = serve(args, &node, &mut signals).await;
    let stopped = node.stop().await;
    served.and(stopped)
}

/// Runs the gateway and all that is around it, until a signal.
async fn serve(args: &DemoArgs, node: &Node, signals: &mut Signals) -> Result<(), CliError> {
    let seed = SystemRandom.uuid().as_u64_pair().0;
    let servers = Servers::start(seed).await.map_err(|error| failed("the demo's MCP servers", error))?;
    let plugins: Vec<_> = servers.plugins().collect();
    let credentials = Credentials::for_all(|| new_token(rand::random()));
    let setup = GatewaySetup {
        data: &args.data,
        listen: args.gateway,
        metrics: args.gateway_metrics,
        control_plane: &node.url(),
        collector: args.otlp.as_ref(),
        plugins: &plugins,
        credentials: &credentials,
    };
    let gateway = start_gateway(&setup).await?;
    let (url, stop) = (gateway.url(), CancellationToken::new());
    output::line(&introduction(&node.url(), &url, &setup, args.rate))?;
    let agents = {
        let (rate, stop) = (f64::from(args.rate), stop.clone());
        tokio::spawn(async move { call_tools(&url, &credentials, rate, seed, stop).await })
    };
    signals.next().await;
    output::line("stopping: the agents first, then the gateway, then what is in memory goes to the tables")?;
    stop.cancel();
    let left = agents.await.map_err(|error| failed("the agents", error));
    gateway.drain().await;
    let stopped = servers.stop().await.map_err(|error| failed("the demo's MCP servers", error));
    left.and(stopped)
}

async fn start_gateway(setup: &GatewaySetup<'_>) -> Result<Gateway, CliError> {
    let file = setup.file();
    let text = setup.write().map_err(|error| failed(format!("{} cannot be written", file.display()), error))?;
    let settings = config::Gateway::parse(&file.to_string_lossy(), &text, &|_| None)
        .map_err(|faults| failed("the gateway's configuration has faults", faults))?;
    let parts = Parts { clock: Arc::new(SystemClock), random: Arc::new(SystemRandom) };
    Gateway::start(&settings, parts).await.map_err(|error| failed("the gateway", error))
}

fn failed(what: impl Display, why: impl Display) -> CliError {
    CliError::could_not(what, why)
}

/// What runs, what to open, what to try.
fn introduction(control_plane: &str, mcp: &str, setup: &GatewaySetup<'_>, rate: u32) -> String {
    let program = std::env::args().next().unwrap_or_else(|| "mcpg".to_owned());
    let (org, target) = (format!("{control_plane}/v1/orgs/default"), control_plane.trim_start_matches("http://"));
    let (data, policy, metrics) = (setup.data.display(), setup.policy_file().display().to_string(), setup.metrics);
    let traces = setup.collector.map_or_else(
        || "nowhere yet: start again with --otlp http://127.0.0.1:4317, your collector".to_owned(),
        |url| format!("sent to {url}"),
    );
    format!(
        r#"The dashboard: {control_plane}/

listening on {control_plane}

A control plane, a gateway, and three MCP servers with a dozen tools run here; agents make {rate} calls a second.
Some calls are slow, some fail, some are denied. Data lies in {data}; Ctrl-C drains and stops.

  MCP, for a client of yours  {mcp}
  Its policy: edit and watch  {policy}
  The gateway's own metrics   http://{metrics}/metrics
  The fleet's metrics         {org}/metrics
  Traces                      {traces}
  The API                     {control_plane}/openapi.json

Try:

  curl '{org}/metrics?granularity=hour'

  {program} sql --url {control_plane} "SELECT plugin, tool, sum(calls) AS calls, sum(errors) AS errors, sum(denials) AS denials,
    latency_quantile(latency_merge(latency), 0.99) AS p99_ms
    FROM tool_usage_hourly GROUP BY plugin, tool ORDER BY calls DESC"

  curl '{org}/audit?action=tool.deny&limit=3'

  {program} audit verify --url {control_plane} --org default --vkey "$({program} audit vkey --url {control_plane} --org default)"

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
