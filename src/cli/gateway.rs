//! `mcpg gateway`: serves MCP until it is asked to stop, then finishes what is under way, and ends.
//!
//! On SIGTERM or SIGINT no new session and no new call is taken, calls under way are finished within `limits.drain`,
//! what waits to be sent is made safe on disk, and the plugins are ended. A second signal ends it at once.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio::time::{MissedTickBehavior, interval};

use super::config::load_gateway;
use super::control_plane::Signals;
use super::{CliError, output};
use crate::config;
use crate::gateway::{Gateway, Parts};
use crate::model::{SystemClock, SystemRandom};
use crate::telemetry::Telemetry;
use crate::telemetry::logs::is_human;

#[derive(Debug, Args)]
pub(super) struct GatewayArgs {
    /// The configuration, YAML; deploy/gateway.yaml shows every key.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The address to serve MCP on, instead of the configured one.
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
}

impl GatewayArgs {
    fn settings(self) -> Result<config::Gateway, CliError> {
        let mut settings = load_gateway(&self.config)?;
        if let Some(listen) = self.listen {
            settings.listen = listen;
        }
        Ok(settings)
    }
}

pub(super) async fn run(args: GatewayArgs) -> Result<(), CliError> {
    let file = args.config.clone();
    let settings = args.settings()?;
    let own = config::Telemetry { log: settings.telemetry.log.clone(), ..config::Telemetry::default() };
    let telemetry = Telemetry::start(&own).map_err(|error| CliError::CouldNot(error.to_string()))?;
    for warning in settings.warnings() {
        tracing::warn!("{warning}");
    }
    let outcome = serve(&settings, file).await;
    if let Err(error) = &outcome
        && !is_human(settings.telemetry.log.format)
    {
        // Printed last, for people on the same terminal.
        tracing::error!(%error, "the gateway failed");
    }
    telemetry.shutdown().await;
    outcome
}

async fn serve(settings: &config::Gateway, file: PathBuf) -> Result<(), CliError> {
    super::hardening::harden();
    let mut signals = Signals::new()?;
    let parts = Parts { clock: Arc::new(SystemClock), random: Arc::new(SystemRandom) };
    let gateway = Gateway::start(settings, parts).await.map_err(|error| CliError::CouldNot(error.to_string()))?;
    let url = gateway.url();
    tracing::info!(%url, version = env!("CARGO_PKG_VERSION"), "listening on {url}");
    // Nobody reading standard output is no reason not to serve.
    let _ = output::line(&format!("listening on {url}"));
    tokio::select! {
        () = signals.next() => {}
        () = follow_rates(&gateway, file, settings.limits.rates.clone()) => {}
    }
    tracing::info!("stopping: finishing calls; a second signal ends at once");
    tokio::select! {
        finished = gateway.drain() => {
            if !finished {
                tracing::warn!("calls that did not end in time were cut off");
            }
            tracing::info!("stopped");
            Ok(())
        }
        () = signals.next() => Err(CliError::CouldNot("ended by a second signal before all was finished".to_owned())),
    }
}

/// How often the configuration is looked at.
const RELOAD_INTERVAL: Duration = Duration::from_secs(1);

/// Puts the rates of the configuration in force when they change, and nothing else of it. Never ends.
async fn follow_rates(gateway: &Gateway, file: PathBuf, mut rates: Vec<config::Rate>) {
    let mut ticks = interval(RELOAD_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let look = |path: PathBuf| async move { tokio::task::spawn_blocking(move || std::fs::read(path).ok()).await.ok() };
    let mut last = look(file.clone()).await.flatten();
    let mut judged = last.clone();
    loop {
        ticks.tick().await;
        let Some(seen) = look(file.clone()).await else { continue };
        // A file that is being written is ignored: it counts once it has stayed as it is from one look to the next.
        if seen == last && seen != judged {
            judged.clone_from(&seen);
            match load_gateway(&file) {
                Ok(settings) if settings.limits.rates != rates => {
                    rates = settings.limits.rates;
                    gateway.set_rates(&rates);
                    tracing::info!(rates = rates.len(), "rates reloaded; other changes count after a restart");
                }
                Ok(_) => {}
                Err(_) => tracing::error!("the changed configuration has faults; the old rates stay in force"),
            }
        }
        last = seen;
    }
}
