//! `mcpg control-plane`: serves until it is told to stop, then finishes what is under way, flushes, and ends.
//!
//! The order at the start: settings, address, store, then the API answers (`/readyz` says 503) while the write-ahead
//! log is replayed. The order at the end, on SIGTERM or SIGINT: no new connection, requests under way finished, buffers
//! flushed to the tables. A second signal ends it at once; what was acknowledged is safe in the write-ahead log either
//! way.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use super::config::load;
use super::{CliError, output};
use crate::api::refusals::{self, Refusals};
use crate::api::server::Server;
use crate::api::{Access, Api};
use crate::audit::note::VKey;
use crate::audit::{AuditError, SigningKeys, keys};
use crate::config::{Audit, ControlPlane, StorageUrl};
use crate::model::{Clock, SystemClock, SystemRandom};
use crate::plane::{self, Elsewhere, Parts, Plane, Readiness, Witness};
use crate::query::{LocalEngine, SqlLimits};
use crate::storage::Store;
use crate::telemetry::Telemetry;
use crate::telemetry::logs::is_human;
use crate::telemetry::metrics::Metrics;

/// How long requests under way may take to finish once it is told to stop.
const GRACE: Duration = Duration::from_secs(10);

/// How long the last flush may take.
const DRAIN: Duration = Duration::from_secs(120);

/// How long a replay may take before its progress is worth a bar.
const PATIENCE: Duration = Duration::from_millis(500);

/// How often the replay's progress is looked at, and how often it is logged.
const PROGRESS_TICK: Duration = Duration::from_millis(100);
const PROGRESS_LOG: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub(super) struct ControlPlaneArgs {
    /// The configuration, YAML; deploy/control-plane.yaml shows every key.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The address to serve HTTP on, instead of the configured one.
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Where everything durable lives (a folder, file:///folder or memory://), instead of the configured place.
    #[arg(long, value_name = "URL")]
    storage: Option<StorageUrl>,
}

impl ControlPlaneArgs {
    fn settings(self) -> Result<ControlPlane, CliError> {
        let mut settings = match &self.config {
            None => ControlPlane::default(),
            Some(file) => load(file)?,
        };
        if let Some(listen) = self.listen {
            settings.listen = listen;
        }
        if let Some(url) = self.storage {
            settings.storage.url = url;
        }
        match settings.exposure() {
            Some(why) => Err(CliError::CouldNot(why)),
            None => Ok(settings),
        }
    }
}

pub(super) async fn run(args: ControlPlaneArgs) -> Result<(), CliError> {
    let settings = args.settings()?;
    let telemetry = Telemetry::start(&settings.telemetry).map_err(|error| CliError::CouldNot(error.to_string()))?;
    let outcome = serve(&settings).await;
    if let Err(error) = &outcome
        && !is_human(settings.telemetry.log.format)
    {
        // People are told at the end, on the same terminal.
        tracing::error!(%error, "the control plane failed");
    }
    telemetry.shutdown().await;
    outcome
}

async fn serve(settings: &ControlPlane) -> Result<(), CliError> {
    let mut signals = Signals::new()?;
    let node = Node::start(settings).await?;
    let url = node.url();
    tracing::info!(%url, storage = %settings.storage.url, version = env!("CARGO_PKG_VERSION"), "listening on {url}");
    // Nobody reading standard output is no reason not to serve.
    let _ = output::line(&format!("listening on {url}"));
    let recovered = tokio::select! {
        recovered = node.recover() => Some(recovered),
        () = signals.next() => None,
    };
    match recovered {
        Some(Ok(())) => {
            tracing::info!("ready");
            signals.next().await;
        }
        Some(Err(error)) => {
            node.abandon().await;
            return Err(error);
        }
        None => {}
    }
    tracing::info!("stopping: finishing requests and flushing; a second signal ends at once");
    tokio::select! {
        stopped = node.stop() => stopped,
        () = signals.next() => Err(CliError::CouldNot(
            "ended by a second signal before all was flushed; what was acknowledged is safe in the log".to_owned(),
        )),
    }
}

/// The signals that ask the program to stop.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// From now on the signals do not kill the process any more.
    pub(super) fn new() -> Result<Self, CliError> {
        let listen = |kind| signal(kind).map_err(|error| CliError::could_not("signals cannot be listened to", error));
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    /// Waits for the next one.
    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// A control-plane node that serves.
pub(super) struct Node {
    settings: ControlPlane,
    plane: Arc<Plane>,
    refusals: Arc<Refusals>,
    address: SocketAddr,
    stop: CancellationToken,
    server: JoinHandle<bool>,
}

impl Node {
    /// Builds everything and serves; the API answers 503 until [`Node::recover`] is done.
    pub(super) async fn start(settings: &ControlPlane) -> Result<Self, CliError> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let metrics = Arc::new(Metrics::new());
        metrics.process.start_time_seconds.set(clock.now().timestamp_millis() as f64 / 1e3);
        let server = Server::bind(settings.listen)
            .await
            .map_err(|error| CliError::could_not(format!("cannot listen on {}", settings.listen), error))?;
        let store =
            Store::open(&settings.storage.url.to_string()).map_err(|error| CliError::could_not("storage", error))?;
        let engine = LocalEngine::new(Arc::clone(store.objects()), sql_limits(settings))
            .map_err(|error| CliError::could_not("the SQL engine does not start", error))?;
        let signing = signing_keys(&settings.audit).map_err(|error| CliError::CouldNot(error.to_string()))?;
        let parts = Parts {
            store,
            clock: Arc::clone(&clock),
            random: Arc::new(SystemRandom),
            metrics: Arc::clone(&metrics),
            signing: Arc::new(signing),
            elsewhere: elsewhere(&settings.audit)?,
        };
        let plane = Plane::new(settings, parts).map_err(|error| CliError::CouldNot(error.to_string()))?;
        let api = Api::new(
            Arc::clone(&plane),
            Arc::new(engine),
            Access::new(settings),
            metrics,
            settings.limits.clone(),
            clock,
        );
        let refusals = api.refusals();
        tokio::spawn(refusals::run(Arc::clone(&refusals), Arc::clone(&plane)));
        let (address, stop) = (server.address(), CancellationToken::new());
        let server = tokio::spawn(server.run(api.into_router(), stop.clone().cancelled_owned(), GRACE));
        Ok(Self { settings: settings.clone(), plane, refusals, address, stop, server })
    }

    /// Where it is reached.
    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Replays the write-ahead log, showing how far it is; afterwards requests are served.
    pub(super) async fn recover(&self) -> Result<(), CliError> {
        tokio::select! {
            recovered = plane::start(&self.plane, &self.settings) => {
                recovered.map_err(|error| CliError::could_not("the store cannot be read", error))
            }
            () = show_replay(&self.plane) => Err(CliError::CouldNot("the replay's progress ended".to_owned())),
        }
    }

    /// Finishes requests under way and flushes every buffer.
    pub(super) async fn stop(self) -> Result<(), CliError> {
        self.stop.cancel();
        match self.server.await {
            Ok(true) => {}
            Ok(false) => tracing::warn!(grace = ?GRACE, "requests that did not end in time were cut off"),
            Err(error) => tracing::error!(%error, "the server did not end well"),
        }
        self.refusals.record(&self.plane, true).await;
        if let Err(error) = self.plane.announce_stop().await {
            tracing::warn!(%error, "the ledgers were not told that this node stops");
        }
        let unflushed = |why: String| {
            CliError::could_not("not all was flushed; what was acknowledged is safe in the write-ahead log", why)
        };
        match timeout(DRAIN, self.plane.drain()).await {
            Ok(Ok(())) => {
                tracing::info!("stopped");
                Ok(())
            }
            Ok(Err(error)) => Err(unflushed(error.to_string())),
            Err(_) => Err(unflushed(format!("the store took longer than {} s", DRAIN.as_secs()))),
        }
    }

    /// Stops serving, when there is nothing to flush.
    async fn abandon(self) {
        self.stop.cancel();
        // Nothing was served; how it ends does not matter.
        let _ = self.server.await;
    }
}

/// The keys that the ledgers' heads are signed with.
fn signing_keys(settings: &Audit) -> Result<SigningKeys, AuditError> {
    let current = match &settings.key {
        Some(pem) => keys::parse(pem.expose())?,
        None => keys::load_or_make(&settings.key_file)?,
    };
    let signing = SigningKeys::new(current);
    let Some(path) = &settings.previous_key_file else { return Ok(signing) };
    let missing = || AuditError::Key(format!("{}, audit.previous_key_file, is not there", path.display()));
    Ok(signing.with_previous(keys::load(path)?.ok_or_else(missing)?))
}

/// Where the ledgers' heads are handed on to.
fn elsewhere(settings: &Audit) -> Result<Elsewhere, CliError> {
    let witness = settings.witness.as_ref().map(|witness| {
        let vkey = witness.vkey.parse::<VKey>();
        vkey.and_then(|vkey| Witness::new(&witness.url, vkey))
            .map_err(|error| CliError::could_not("audit.witness", error))
    });
    let mirror = settings
        .mirror
        .as_ref()
        .map(|mirror| Store::open(&mirror.url.to_string()).map_err(|error| CliError::could_not("audit.mirror", error)));
    Ok(Elsewhere { witness: witness.transpose()?, mirror: mirror.transpose()? })
}

fn sql_limits(settings: &ControlPlane) -> SqlLimits {
    let (sql, count) = (&settings.limits.sql, |n: u64| usize::try_from(n).unwrap_or(usize::MAX));
    SqlLimits {
        memory_bytes: sql.memory_bytes.as_usize(),
        resident_bytes: sql.resident_bytes.as_u64(),
        spill_bytes: sql.spill_bytes.as_u64(),
        time: sql.timeout.as_duration(),
        rows: count(sql.rows),
        concurrency: count(sql.concurrency),
        text_bytes: sql.query_bytes.as_usize(),
        ..SqlLimits::default()
    }
}

/// Shows how far the replay is: a bar on a terminal, a log line now and then elsewhere. Never ends by itself.
async fn show_replay(plane: &Plane) {
    let (started, terminal) = (Instant::now(), std::io::stderr().is_terminal());
    let mut bar = None;
    let mut tick = interval(PROGRESS_TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut logged = Instant::now();
    loop {
        tick.tick().await;
        let Readiness::Replaying { done, total } = plane.readiness() else { continue };
        if bar.is_none() && terminal && started.elapsed() >= PATIENCE {
            bar = Some(replay_bar());
        }
        match &bar {
            Some(bar) => {
                bar.set_length(total);
                bar.set_position(done);
            }
            None if !terminal && logged.elapsed() >= PROGRESS_LOG => {
                logged = Instant::now();
                tracing::info!(done, total, "replaying the write-ahead log");
            }
            None => {}
        }
    }
}

fn replay_bar() -> ProgressBar {
    let style = ProgressStyle::with_template("replaying the write-ahead log {wide_bar} {pos}/{len} {eta}");
    // The template is a constant; were it wrong, the default style would do.
    ProgressBar::no_length()
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        .with_finish(indicatif::ProgressFinish::AndClear)
}
