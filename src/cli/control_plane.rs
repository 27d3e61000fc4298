//! `mcpg control-plane`: serves until it is asked to stop, then finishes what is under way, flushes, and ends.
//!
//! The order at the start: settings, address, store, then the API answers (`/readyz` says 503) while the write-ahead
//! log is replayed. The order at the end, on SIGTERM or SIGINT: no new connection, requests under way finished, buffers
//! flushed to the tables. A second signal ends it at once; what was acknowledged is safe in the write-ahead log either
//! way.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use ed25519_dalek::SigningKey;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use super::config::load;
use super::{CliError, output, tokens};
use crate::api::refusals::{self, Refusals};
use crate::api::server::Server;
use crate::api::{Access, Api, Sealer, Tokens};
use crate::audit::note::VKey;
use crate::audit::{AuditError, SigningKeys, keys};
use crate::config::{self, Audit, ControlPlane, Storage, StorageUrl};
use crate::keys::KeyService;
use crate::log::Rules;
use crate::model::{Clock, OrgName, SystemClock, SystemRandom};
use crate::plane::{self, Elsewhere, Parts, Plane, Readiness, Witness};
use crate::query::{LocalEngine, SqlLimits};
use crate::storage::Store;
use crate::telemetry::Telemetry;
use crate::telemetry::logs::is_human;
use crate::telemetry::metrics::Metrics;
use crate::tls::Tls;

/// How long requests under way may take to finish once it is asked to stop.
const GRACE: Duration = Duration::from_secs(10);

/// How long the last flush may take.
const DRAIN: Duration = Duration::from_secs(120);

/// How long a replay may take before its progress is worth a bar.
const PROGRESS_AFTER: Duration = Duration::from_millis(500);

/// How soon payload keys are tried again that could not be opened.
const KEYS_RETRY: Duration = Duration::from_secs(5);

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
    /// Where everything durable lives (a folder, file:///folder, s3://bucket/prefix or memory://), instead of the
    /// configured place.
    #[arg(long, value_name = "URL")]
    storage: Option<StorageUrl>,
}

impl ControlPlaneArgs {
    fn settings(self) -> Result<ControlPlane, CliError> {
        let mut settings = settings_of(self.config.as_deref(), self.storage)?;
        if let Some(listen) = self.listen {
            settings.listen = listen;
        }
        match settings.exposure() {
            Some(why) => Err(CliError::CouldNot(why)),
            None => Ok(settings),
        }
    }
}

/// The settings in a file, or the defaults; with the storage that the command line names in place of theirs.
pub(super) fn settings_of(config: Option<&Path>, storage: Option<StorageUrl>) -> Result<ControlPlane, CliError> {
    let mut settings = match config {
        None => ControlPlane::default(),
        Some(file) => load(file)?,
    };
    if let Some(url) = storage {
        settings.storage = storage_at(settings.storage, url);
    }
    Ok(settings)
}

/// The storage at another URL.
pub(super) fn storage_at(settings: Storage, url: StorageUrl) -> Storage {
    // What the file says of a bucket is kept for another bucket, and is of no meaning elsewhere.
    match url.is_remote() && settings.url.is_remote() {
        true => Storage { url, ..settings },
        false => url.into(),
    }
}

pub(super) async fn run(args: ControlPlaneArgs) -> Result<(), CliError> {
    let file = args.config.clone();
    let settings = args.settings()?;
    let telemetry = Telemetry::start(&settings.telemetry).map_err(|error| CliError::CouldNot(error.to_string()))?;
    let outcome = serve(&settings, file).await;
    if let Err(error) = &outcome
        && !is_human(settings.telemetry.log.format)
    {
        // Printed last, for people on the same terminal.
        tracing::error!(%error, "the control plane failed");
    }
    telemetry.shutdown().await;
    outcome
}

async fn serve(settings: &ControlPlane, file: Option<PathBuf>) -> Result<(), CliError> {
    super::hardening::harden();
    let mut signals = Signals::new()?;
    let node = Node::start(settings).await?;
    if let Some(file) = file {
        tokio::spawn(tokens::follow(file, node.tokens.clone(), Arc::clone(&node.plane)));
    }
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
    plane: Arc<Plane>,
    refusals: Arc<Refusals>,
    tokens: Tokens,
    url: String,
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
        let tls = settings.tls.as_ref().map(Tls::load).transpose();
        let tls = tls.map_err(|error| CliError::could_not("TLS cannot be had", error))?;
        let server = server.within_descriptors(descriptors()).with_tls(tls);
        let store = Store::open_with(&settings.storage).map_err(|error| CliError::CouldNot(error.to_string()))?;
        // Before anything is written: a store that lies would lose what is.
        store.probe(&*clock).await.map_err(|error| CliError::CouldNot(error.to_string()))?;
        let engine = LocalEngine::new(Arc::clone(store.objects()), sql_limits(settings))
            .map_err(|error| CliError::could_not("the SQL engine does not start", error))?
            .with_gauge(metrics.query.running.clone());
        let signing = Arc::new(signing_keys(&settings.audit).map_err(|error| CliError::CouldNot(error.to_string()))?);
        let parts = Parts {
            store,
            clock: Arc::clone(&clock),
            random: Arc::new(SystemRandom),
            metrics: Arc::clone(&metrics),
            signing: Arc::clone(&signing),
            elsewhere: elsewhere(&settings.audit)?,
            rules: Rules::default(),
        };
        let main = parts.store.clone();
        let plane = Plane::new(settings, parts).map_err(|error| CliError::CouldNot(error.to_string()))?;
        let sealer = Sealer::load(&settings.session, &signing).map_err(CliError::CouldNot)?;
        let access = Access::new(settings, server.address().port(), sealer)
            .map_err(|error| CliError::CouldNot(error.to_string()))?;
        payload_keys(settings, &main, &plane).await?;
        let access = access.with(Arc::clone(&clock), Arc::clone(&metrics));
        let tokens = access.tokens();
        let api = Api::new(Arc::clone(&plane), Arc::new(engine), access, metrics, settings.limits.clone(), clock);
        let api = if settings.audit.queries { api.with_queries_in_ledger() } else { api };
        let refusals = api.refusals();
        tokio::spawn(refusals::run(Arc::clone(&refusals), Arc::clone(&plane)));
        let (url, stop) = (server.url(), CancellationToken::new());
        let server = tokio::spawn(server.run(api.into_router(), stop.clone().cancelled_owned(), GRACE));
        Ok(Self { plane, refusals, tokens, url, stop, server })
    }

    /// Where it is reached.
    pub(super) fn url(&self) -> String {
        self.url.clone()
    }

    /// Replays the write-ahead log, showing how far it is; afterwards requests are served.
    pub(super) async fn recover(&self) -> Result<(), CliError> {
        tokio::select! {
            recovered = plane::start(&self.plane) => {
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
            tracing::warn!(%error, "the ledgers do not record that this node stops");
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

/// Opens the payload keys, where an org is entitled to have payloads captured or keys lie there that are to be
/// destroyed one day. What is away for now is tried again beside everything else.
async fn payload_keys(settings: &ControlPlane, store: &Store, plane: &Arc<Plane>) -> Result<(), CliError> {
    let are_there = || async {
        // A store of their own is named for keys that are there, or will be.
        if settings.payload_keys.storage.is_some() {
            return true;
        }
        let listed = store.list(&object_store::path::Path::from("payload-keys")).await;
        listed.is_ok_and(|listed| !listed.is_empty())
    };
    if !settings.orgs.iter().any(config::Org::captures_payloads) && !are_there().await {
        return Ok(());
    }
    match KeyService::open(&settings.payload_keys, (&settings.storage, store)).await {
        Ok(keys) => plane.set_payload_keys(Arc::new(keys)),
        Err(error) if error.is_passing() => {
            tracing::error!(%error, "payload keys cannot be opened yet; trying again");
            let (settings, store, plane) = (settings.clone(), store.clone(), Arc::clone(plane));
            tokio::spawn(async move {
                loop {
                    tokio::time::sleep(KEYS_RETRY).await;
                    match KeyService::open(&settings.payload_keys, (&settings.storage, &store)).await {
                        Ok(keys) => return plane.set_payload_keys(Arc::new(keys)),
                        Err(error) => tracing::error!(%error, "payload keys cannot be opened yet; trying again"),
                    }
                }
            });
        }
        Err(error) => return Err(CliError::could_not("payload_keys", error)),
    }
    Ok(())
}

/// The keys that the ledgers' checkpoints are signed with; made at the first start.
fn signing_keys(settings: &Audit) -> Result<SigningKeys, AuditError> {
    let current = match &settings.key {
        Some(pem) => keys::parse(pem.expose())?,
        None => keys::load_or_make(&settings.key_file)?,
    };
    with_previous(settings, current)
}

/// The same for a command that makes none.
pub(super) fn existing_signing_keys(settings: &Audit) -> Result<SigningKeys, AuditError> {
    let missing = || {
        let path = settings.key_file.display();
        AuditError::Key(format!("{path} is not there; the control plane makes it at its first start"))
    };
    let current = match &settings.key {
        Some(pem) => keys::parse(pem.expose())?,
        None => keys::load(&settings.key_file)?.ok_or_else(missing)?,
    };
    with_previous(settings, current)
}

fn with_previous(settings: &Audit, current: SigningKey) -> Result<SigningKeys, AuditError> {
    let signing = SigningKeys::new(current);
    let Some(path) = &settings.previous_key_file else { return Ok(signing) };
    let missing = || AuditError::Key(format!("{}, audit.previous_key_file, is not there", path.display()));
    Ok(signing.with_previous(keys::load(path)?.ok_or_else(missing)?))
}

/// Where the ledgers' checkpoints are replicated to.
fn elsewhere(settings: &Audit) -> Result<Elsewhere, CliError> {
    let witness = settings.witness.as_ref().map(|witness| {
        let vkey = witness.vkey.parse::<VKey>();
        vkey.and_then(|vkey| Witness::new(&witness.url, vkey))
            .map_err(|error| CliError::could_not("audit.witness", error))
    });
    let mirror = settings
        .mirror
        .as_ref()
        .map(|mirror| Store::open_with(mirror).map_err(|error| CliError::could_not("audit.mirror", error)));
    Ok(Elsewhere { witness: witness.transpose()?, mirror: mirror.transpose()? })
}

/// The bounds of orgs that have one of their own.
fn own_scan_bytes(settings: &ControlPlane) -> HashMap<OrgName, u64> {
    let own = settings.orgs.iter().filter_map(|org| Some((org.name.clone(), org.scan_bytes?.as_u64())));
    own.collect()
}

/// How many descriptors the process may have, once it has asked for as many as it may.
fn descriptors() -> u64 {
    /// What every system grants.
    const LEAST: u64 = 1_024;
    match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(descriptors) => descriptors,
        Err(error) => {
            tracing::warn!(%error, "the number of descriptors could not be raised");
            rlimit::getrlimit(rlimit::Resource::NOFILE).map_or(LEAST, |(soft, _)| soft)
        }
    }
}

fn sql_limits(settings: &ControlPlane) -> SqlLimits {
    let (sql, count) = (&settings.limits.sql, |n: u64| usize::try_from(n).unwrap_or(usize::MAX));
    SqlLimits {
        memory_bytes: sql.memory_bytes.as_usize(),
        resident_bytes: sql.resident_bytes.as_u64(),
        spill_bytes: sql.spill_bytes.as_u64(),
        time: sql.timeout.as_duration(),
        answer_time: sql.answer_timeout.as_duration().max(sql.timeout.as_duration()),
        rows: count(sql.rows),
        scan_files: sql.scan_files,
        scan_bytes: sql.scan_bytes.as_u64(),
        scan_bytes_of: own_scan_bytes(settings),
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
        if bar.is_none() && terminal && started.elapsed() >= PROGRESS_AFTER {
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

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::ControlPlaneArgs;

    fn storage(file: &str, url: &str) -> crate::config::Storage {
        let mut config = tempfile::NamedTempFile::new().unwrap();
        writeln!(config, "{file}").unwrap();
        let config = Some(config.path().to_owned());
        let args = ControlPlaneArgs { config, listen: None, storage: Some(url.parse().unwrap()) };
        args.settings().unwrap().storage
    }

    #[test]
    fn a_bucket_on_the_command_line_keeps_what_the_file_says_of_buckets() {
        let file = "storage: { url: \"s3://one\", region: eu-central-1 }";
        let other = storage(file, "s3://two/x");
        assert_eq!((other.url.to_string().as_str(), other.region.as_deref()), ("s3://two/x", Some("eu-central-1")));
        assert_eq!(storage(file, "memory://").region, None);
        assert_eq!(storage("", "s3://two").region, None);
    }
}
