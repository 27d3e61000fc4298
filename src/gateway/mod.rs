//! The gateway: MCP between agents and the servers they use, with every call identified, decided, dispatched, and told.
//!
//! | module | holds |
//! |---|---|
//! | `mcp` | MCP as clients see it: HTTP, sessions, names, lists |
//! | `call` | one request's way: policy, dispatch, what may be told of the result |
//! | `story` | what is told of a call, the same in all three streams |
//! | [`identity`] | who calls |
//! | [`policy`] | what a caller may do, and under which obligations |
//! | `upstream` | the MCP servers behind it, as a client of theirs |
//! | [`metrics`] | stream 1, the near half: the gateway's own Prometheus metrics |
//! | [`traces`] | stream 2: the spans of each request |
//! | [`emit`] | streams 1 and 3: samples and audit events on their way to the control plane |
//! | `spool` | the durable queue on disk that samples and events wait in |
//! | `message` | JSON-RPC messages as a relay sees them |
//! | `error` | why it does not start |
//!
//! At the end calls under way finish, then sessions end, those of clients and those with plugins, and what was told is made
//! durable, in this order: nothing is told after the spool is safe.

mod call;
pub mod emit;
mod error;
pub mod identity;
mod mcp;
mod message;
pub mod metrics;
pub mod policy;
mod spool;
mod story;
pub mod traces;
mod upstream;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::error::GatewayError;

use self::call::Calls;
use self::emit::{EmitParts, Emitters};
use self::identity::Identity;
use self::mcp::{Doors, Relay, router};
use self::metrics::GatewayMetrics;
use self::metrics::push::Push;
use self::policy::{Abilities, Change, Policy, Version};
use self::story::Telling;
use self::traces::{Emitter, Traces};
use self::upstream::{Lifecycle, Plugin, Step, http_client};
use crate::api::server::Server;
use crate::config;
use crate::model::{Clock, Random};

/// How long connections and plugins may take to end once nothing is under way.
const GRACE: Duration = Duration::from_secs(8);

/// How long delivering the last telemetry may take; what is not delivered by then is durable.
const DELIVERY: Duration = Duration::from_secs(5);

/// Connections beside those that sessions may hold open.
const CONNECTIONS: usize = 1_024;

/// What a gateway is made of besides its settings.
#[derive(Debug)]
pub struct Parts {
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub random: Arc<dyn Random>,
}

/// A gateway that serves.
pub struct Gateway {
    address: SocketAddr,
    doors: Arc<Doors>,
    telling: Telling,
    traces: Arc<Traces>,
    push: Option<Push>,
    /// Requests under way.
    requests: TaskTracker,
    /// Sessions with plugins.
    links: TaskTracker,
    monitors: TaskTracker,
    drain: Duration,
    /// No connection is taken any more, and event streams end.
    stop: CancellationToken,
    stop_monitors: CancellationToken,
    server: JoinHandle<bool>,
    /// What runs until the end, and has nothing to finish.
    background: Vec<JoinHandle<()>>,
}

impl Gateway {
    /// Takes its addresses, reads its policies, begins to use the plugins, and serves. A plugin that is not up, and a
    /// control plane that is away, do not hinder it.
    ///
    /// # Errors
    /// See [`GatewayError`].
    pub async fn start(settings: &config::Gateway, parts: Parts) -> Result<Self, GatewayError> {
        let listen = |address| move |error| GatewayError::Listen { address, error };
        let server = Server::bind(settings.listen).await.map_err(listen(settings.listen))?;
        let own = &settings.observability.metrics;
        let scrapes = match own.enabled {
            true => Some(TcpListener::bind(own.listen).await.map_err(listen(own.listen))?),
            false => None,
        };
        let (policy, identity) = (
            Policy::start(&settings.policy, &settings.workspace, Abilities::default(), Arc::clone(&parts.clock))
                .map_err(GatewayError::Policy)?,
            Identity::start(&settings.identity, Arc::clone(&parts.clock))?,
        );
        let policy = Arc::new(policy);
        let telling = telling(settings, &parts)?;
        let traces = Arc::new(start_traces(settings, &telling)?);
        let push = match own.push.as_ref().filter(|_| own.enabled) {
            Some(push) => Some(Push::start(push, &settings.instance, &telling.metrics).map_err(GatewayError::Push)?),
            None => None,
        };
        let (requests, links, monitors) = (TaskTracker::new(), TaskTracker::new(), TaskTracker::new());
        let (stop, stop_monitors) = (CancellationToken::new(), CancellationToken::new());
        let plugins = plugins(settings, &telling, &links)?;
        let most = settings.limits.calls;
        let room = usize::try_from(most).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        let calls = Calls { policy: Arc::clone(&policy), telling: telling.clone(), room: Semaphore::new(room), most };
        let relay = Arc::new(Relay::new(calls, requests.clone()));
        let doors = Doors::new(settings, &plugins, &relay, identity, Arc::clone(&traces), &stop);
        telling.step("operator.gateway_started", None, Some(&started(&policy.version())));
        for plugin in &plugins {
            monitors.spawn(Arc::clone(plugin).monitor(Arc::downgrade(&doors), stop_monitors.clone()));
        }
        let mut background =
            vec![tokio::spawn(Arc::clone(&doors).sweep()), tokio::spawn(watch(policy, telling.clone()))];
        if let Some(listener) = scrapes {
            background.push(tokio::spawn(serve_metrics(listener, Arc::clone(&telling.metrics), stop.clone())));
        }
        let sessions = usize::try_from(settings.limits.sessions).unwrap_or(usize::MAX);
        let server = server.with_connections(sessions.saturating_add(CONNECTIONS));
        let address = server.address();
        let server = tokio::spawn(server.run(router(&doors), stop.clone().cancelled_owned(), GRACE));
        Ok(Self {
            address,
            doors,
            telling,
            traces,
            push,
            requests,
            links,
            monitors,
            drain: settings.limits.drain.as_duration(),
            stop,
            stop_monitors,
            server,
            background,
        })
    }

    /// Where it is reached.
    pub fn url(&self) -> String {
        format!("http://{}/mcp", self.address)
    }

    /// Takes nothing new, lets calls under way finish, ends every session and every plugin, and makes what was told
    /// durable. Says whether all calls ended in time.
    pub async fn drain(self) -> bool {
        self.doors.close();
        self.requests.close();
        let finished = timeout(self.drain, self.requests.wait()).await.is_ok();
        self.doors.end_all().await;
        self.stop.cancel();
        self.stop_monitors.cancel();
        self.monitors.close();
        self.links.close();
        let ended = async { tokio::join!(self.requests.wait(), self.monitors.wait(), self.links.wait()) };
        if timeout(GRACE, ended).await.is_err() {
            tracing::warn!("a plugin did not end in time");
        }
        match self.server.await {
            Ok(true) => {}
            Ok(false) => tracing::warn!("connections that did not end in time were cut off"),
            Err(error) => tracing::error!(%error, "the server did not end well"),
        }
        self.background.iter().for_each(JoinHandle::abort);
        self.telling.step("operator.gateway_stopped", None, None);
        let telemetry = async {
            self.telling.emitters.drain(Instant::now() + DELIVERY).await;
        };
        let push = async {
            if let Some(push) = self.push {
                push.shutdown().await;
            }
        };
        tokio::join!(telemetry, push, self.traces.shutdown());
        finished
    }
}

fn telling(settings: &config::Gateway, parts: &Parts) -> Result<Telling, GatewayError> {
    let metrics = Arc::new(GatewayMetrics::new(settings.org.as_str(), &settings.workspace));
    metrics.process.start_time_seconds.set(parts.clock.now().timestamp_millis() as f64 / 1e3);
    let emit =
        EmitParts { clock: Arc::clone(&parts.clock), random: Arc::clone(&parts.random), metrics: Arc::clone(&metrics) };
    Ok(Telling {
        emitters: Emitters::start(settings, &emit)?,
        metrics,
        on_failure: settings.observability.audit.on_failure,
        clock: Arc::clone(&parts.clock),
        random: Arc::clone(&parts.random),
    })
}

fn start_traces(settings: &config::Gateway, telling: &Telling) -> Result<Traces, GatewayError> {
    let emitter = Emitter { org: &settings.org, workspace: &settings.workspace, instance: &settings.instance };
    let traces = Traces::start(&settings.observability.otlp.otlp(), emitter).map_err(GatewayError::Traces)?;
    if let Some(counts) = traces.counts() {
        telling.metrics.watch_spans(Arc::clone(counts));
    }
    Ok(traces)
}

/// The plugins; each step of theirs goes to the ledger and into the metrics.
fn plugins(
    settings: &config::Gateway,
    telling: &Telling,
    links: &TaskTracker,
) -> Result<Vec<Arc<Plugin>>, GatewayError> {
    let http = http_client()?;
    let lifecycle: Lifecycle = {
        let telling = telling.clone();
        Arc::new(move |plugin, step, why| {
            let upstreams = &telling.metrics.upstreams;
            match step {
                Step::Ready => upstreams.set_up(plugin, true),
                Step::Failed | Step::Stopped => upstreams.set_up(plugin, false),
                Step::Restarted | Step::ProcessRestarted => upstreams.restarted(plugin),
                Step::Started | Step::ToolsChanged | Step::ProcessFailed => {}
            }
            let scope = matches!(step, Step::ProcessFailed | Step::ProcessRestarted).then_some(("scope", "session"));
            let detail: Map<_, _> = why
                .map(|code| ("code", code))
                .into_iter()
                .chain(scope)
                .map(|(name, value)| (name.to_owned(), Value::from(value)))
                .collect();
            let detail = (!detail.is_empty()).then_some(detail);
            telling.step(step.action(), Some(plugin), detail.as_ref());
        })
    };
    settings
        .plugins
        .iter()
        .map(|plugin| {
            let running = telling.metrics.upstreams.in_flight(plugin.name.as_str());
            telling.metrics.upstreams.set_up(plugin.name.as_str(), false);
            Plugin::new(plugin.clone(), http.clone(), Arc::clone(&lifecycle), running, links.clone()).map(Arc::new)
        })
        .collect()
}

/// Tells of every change of the policies, for as long as the gateway runs.
async fn watch(policy: Arc<Policy>, telling: Telling) {
    let report = move |change| match change {
        Change::Reloaded(version) => {
            telling.metrics.policy.reloaded(true);
            telling.step("operator.policy_reloaded", None, Some(&described(&version)));
        }
        Change::Rejected(_) => {
            telling.metrics.policy.reloaded(false);
            telling.step("operator.policy_rejected", None, None);
        }
    };
    policy.watch(report).await;
}

async fn serve_metrics(listener: TcpListener, metrics: Arc<GatewayMetrics>, stop: CancellationToken) {
    if let Err(error) = metrics::server::serve(listener, metrics, stop).await {
        tracing::error!(%error, "the gateway's own metrics are not served any more");
    }
}

fn started(version: &Version) -> Map<String, Value> {
    let mut detail = described(version);
    detail.insert("version".to_owned(), Value::from(env!("CARGO_PKG_VERSION")));
    detail
}

/// Which policies are in force.
fn described(version: &Version) -> Map<String, Value> {
    Map::from_iter([
        ("policy_digest".to_owned(), Value::from(version.digest.as_str())),
        ("policy_files".to_owned(), Value::from(version.files)),
        ("policies".to_owned(), Value::from(version.policies)),
    ])
}
