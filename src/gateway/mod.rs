//! The gateway: MCP between agents and the servers they use, with every call identified, decided on, dispatched, and
//! recorded.
//!
//! | module | holds |
//! |---|---|
//! | `downstream` | MCP as clients see it: HTTP, sessions and requests without, names, lists |
//! | `call` | one request's way: policy, the record, dispatch in either generation, what may be said of the result |
//! | `upstream` | the MCP servers behind it, as a client of theirs |
//! | `control_plane` | the HTTP client by which the control plane is spoken to |
//! | `capture` | payloads that policies capture: sealed, spooled, sent |
//! | [`identity`] | who calls |
//! | [`policy`] | what a caller may do, and under which obligations |
//! | `pass` | why a message may be sent to a server, as a type |
//! | [`metrics`] | stream 1, the near half: the gateway's own Prometheus metrics |
//! | [`traces`] | stream 2: the spans of each request |
//! | [`export`] | streams 1 and 3: samples and audit events on their way to the control plane |
//! | `spool` | the durable queue on disk that samples and events wait in |
//! | `message`, `protocol` | JSON-RPC messages as a relay carries them; the protocol's own words |
//! | `budget` | one bound for the memory of requests and answers |
//! | `error` | why it does not start |
//!
//! At the end calls under way finish, then sessions end, those of clients and those with plugins, and what was recorded
//! is made durable, in this order: nothing is recorded after the spool is safe.

mod budget;
mod call;
mod capture;
mod control_plane;
mod downstream;
mod error;
pub mod export;
pub mod identity;
mod message;
pub mod metrics;
mod pass;
pub mod policy;
mod protocol;
mod spool;
pub mod traces;
mod upstream;

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::call::seal::KeyError;
pub use self::control_plane::ControlPlaneError;
pub use self::error::GatewayError;

use self::budget::Budget;
use self::call::calls::{CallLimits, Calls};
use self::call::dispatch::Dispatcher;
use self::call::park::Parks;
use self::call::rates::Rates;
use self::call::replay::Replays;
use self::call::seal::Sealer;
use self::call::tasks::Tasks;
use self::call::telemetry::CallTelemetry;
use self::capture::Capture;
use self::downstream::{Downstream, DownstreamParts, Relay, router};
use self::export::{EmitParts, Emitters};
use self::identity::Identity;
use self::metrics::GatewayMetrics;
use self::metrics::push::Push;
use self::policy::{Abilities, Change, Policy, Version};
use self::traces::{Emitter, Traces};
use self::upstream::{Lifecycle, Plugin, Step, http_client};
use crate::api::server::Server;
use crate::config;
use crate::model::{Clock, Random};
use crate::tls::Tls;

/// How long connections and plugins may take to end once nothing is under way.
const GRACE: Duration = Duration::from_secs(8);

/// How long delivering the last telemetry may take; what is not delivered within it is durable.
const DELIVERY: Duration = Duration::from_secs(5);

/// Connections beside those that sessions may hold open.
const CONNECTIONS: usize = 1_024;

/// Descriptors that every system grants.
const LEAST_DESCRIPTORS: u64 = 1_024;

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
    url: String,
    downstream: Arc<Downstream>,
    telemetry: CallTelemetry,
    calls: Arc<Calls>,
    capture: Capture,
    traces: Arc<Traces>,
    push: Option<Push>,
    /// Requests under way.
    requests: TaskTracker,
    /// Sessions with plugins.
    sessions: TaskTracker,
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
        let tls = settings.tls.as_ref().map(Tls::load).transpose()?;
        let server = Server::bind(settings.listen).await.map_err(listen(settings.listen))?.with_tls(tls);
        let own = &settings.observability.metrics;
        let scrapes = match own.enabled {
            true => Some(TcpListener::bind(own.listen).await.map_err(listen(own.listen))?),
            false => None,
        };
        let abilities = Abilities::default();
        let (policy, identity) = (
            Policy::start(&settings.policy, &settings.workspace, abilities.clone(), Arc::clone(&parts.clock))
                .map_err(GatewayError::Policy)?,
            Identity::start(&settings.identity, Arc::clone(&parts.clock))?,
        );
        let policy = Arc::new(policy);
        let telemetry = start_telemetry(settings, &parts)?;
        let capture = Capture::start(settings, &telemetry.emitters, &abilities, &telemetry.metrics, &parts.clock);
        let capture = capture.map_err(GatewayError::Capture)?;
        let following = capture.follow(&policy).await;
        let traces = Arc::new(start_traces(settings, &telemetry)?);
        let push = match own.push.as_ref().filter(|_| own.enabled) {
            Some(push) => Some(Push::start(push, &settings.instance, &telemetry.metrics).map_err(GatewayError::Push)?),
            None => None,
        };
        let (requests, sessions, monitors) = (TaskTracker::new(), TaskTracker::new(), TaskTracker::new());
        let (stop, stop_monitors) = (CancellationToken::new(), CancellationToken::new());
        let budget = Budget::new(settings.limits.memory.as_usize());
        let plugins = plugins(settings, &telemetry, &sessions, &budget)?;
        let calls = start_calls(settings, &policy, &telemetry, &plugins)?;
        let parks = Parks::new(calls.limits.parked);
        let dispatcher = Dispatcher {
            calls: Arc::clone(&calls),
            capture: capture.clone(),
            parks,
            tasks: Tasks::default(),
            replays: Replays::default(),
        };
        let downstream = Downstream::new(DownstreamParts {
            settings,
            plugins: &plugins,
            relay: Arc::new(Relay { dispatcher }),
            identity,
            traces: Arc::clone(&traces),
            budget,
            requests: requests.clone(),
            stop: stop.clone(),
        });
        telemetry.step("operator.gateway_started", None, Some(&started(&policy.version())));
        for plugin in &plugins {
            monitors.spawn(Arc::clone(plugin).monitor(Arc::downgrade(&downstream), stop_monitors.clone()));
        }
        let watching = watch(policy, telemetry.clone(), Arc::clone(&downstream));
        let mut background = vec![tokio::spawn(Arc::clone(&downstream).sweep()), tokio::spawn(watching), following];
        if let Some(listener) = scrapes {
            background.push(tokio::spawn(serve_metrics(listener, Arc::clone(&telemetry.metrics), stop.clone())));
        }
        let most = usize::try_from(settings.limits.sessions).unwrap_or(usize::MAX);
        // Plugins need descriptors, too.
        let server = server.with_connections(most.saturating_add(CONNECTIONS)).within_descriptors(descriptors() / 2);
        let url = server.url();
        let server = tokio::spawn(server.run(router(&downstream), stop.clone().cancelled_owned(), GRACE));
        Ok(Self {
            url,
            downstream,
            telemetry,
            calls,
            capture,
            traces,
            push,
            requests,
            sessions,
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
        format!("{}/mcp", self.url)
    }

    /// Puts other rates in force.
    pub fn set_rates(&self, rates: &[config::Rate]) {
        self.calls.rates.replace(rates);
    }

    /// Takes nothing new, lets calls under way finish, ends every session and every plugin, and makes what was recorded
    /// durable. Says whether all calls ended in time.
    pub async fn drain(self) -> bool {
        self.downstream.close();
        self.requests.close();
        let finished = timeout(self.drain, self.requests.wait()).await.is_ok();
        self.downstream.end_all().await;
        self.stop.cancel();
        self.stop_monitors.cancel();
        self.monitors.close();
        self.sessions.close();
        let ended = async { tokio::join!(self.requests.wait(), self.monitors.wait(), self.sessions.wait()) };
        if timeout(GRACE, ended).await.is_err() {
            tracing::warn!("a plugin did not end in time");
        }
        match self.server.await {
            Ok(true) => {}
            Ok(false) => tracing::warn!("connections that did not end in time were cut off"),
            Err(error) => tracing::error!(%error, "the server did not end well"),
        }
        self.background.iter().for_each(JoinHandle::abort);
        self.telemetry.step("operator.gateway_stopped", None, None);
        let telemetry = async {
            self.capture.drain().await;
            self.telemetry.emitters.drain(Instant::now() + DELIVERY).await;
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

fn start_telemetry(settings: &config::Gateway, parts: &Parts) -> Result<CallTelemetry, GatewayError> {
    let metrics = Arc::new(GatewayMetrics::new(settings.org.as_str(), &settings.workspace));
    metrics.process.start_time_seconds.set(parts.clock.now().timestamp_millis() as f64 / 1e3);
    let emit =
        EmitParts { clock: Arc::clone(&parts.clock), random: Arc::clone(&parts.random), metrics: Arc::clone(&metrics) };
    Ok(CallTelemetry {
        emitters: Emitters::start(settings, &emit)?,
        metrics,
        on_failure: settings.observability.audit.on_failure,
        clock: Arc::clone(&parts.clock),
        random: Arc::clone(&parts.random),
    })
}

fn start_traces(settings: &config::Gateway, telemetry: &CallTelemetry) -> Result<Traces, GatewayError> {
    let emitter = Emitter { org: &settings.org, workspace: &settings.workspace, instance: &settings.instance };
    let traces = Traces::start(&settings.observability.otlp.otlp(), emitter).map_err(GatewayError::Traces)?;
    if let Some(counts) = traces.counts() {
        telemetry.metrics.watch_spans(Arc::clone(counts));
    }
    Ok(traces)
}

fn start_calls(
    settings: &config::Gateway,
    policy: &Arc<Policy>,
    telemetry: &CallTelemetry,
    plugins: &[Arc<Plugin>],
) -> Result<Arc<Calls>, GatewayError> {
    let limits = &settings.limits;
    let sealer = Sealer::start(&settings.state_keys, Arc::clone(&telemetry.clock), telemetry.random.uuid())?;
    let call_limits = CallLimits {
        answer: limits.answer.as_duration(),
        parked: usize::try_from(limits.waiting_calls).unwrap_or(usize::MAX),
    };
    let rates = Rates::new(&limits.rates);
    let bounds = (limits.calls, plugins);
    Ok(Arc::new(Calls::new(Arc::clone(policy), telemetry.clone(), rates, call_limits, sealer, bounds)))
}

/// The plugins; each step of theirs goes to the ledger and into the metrics.
fn plugins(
    settings: &config::Gateway,
    telemetry: &CallTelemetry,
    sessions: &TaskTracker,
    budget: &Arc<Budget>,
) -> Result<Vec<Arc<Plugin>>, GatewayError> {
    let http = http_client()?;
    let lifecycle: Lifecycle = {
        let telemetry = telemetry.clone();
        Arc::new(move |plugin, step, why| {
            let upstreams = &telemetry.metrics.upstreams;
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
            telemetry.step(step.action(), Some(plugin), detail.as_ref());
        })
    };
    settings
        .plugins
        .iter()
        .map(|plugin| {
            let running = telemetry.metrics.upstreams.in_flight(plugin.name.as_str());
            telemetry.metrics.upstreams.set_up(plugin.name.as_str(), false);
            let (lifecycle, budget) = (Arc::clone(&lifecycle), Arc::clone(budget));
            Plugin::new(plugin.clone(), http.clone(), lifecycle, running, sessions.clone(), budget).map(Arc::new)
        })
        .collect()
}

/// Records every change of the policies, for as long as the gateway runs, and says that lists may look different.
async fn watch(policy: Arc<Policy>, telemetry: CallTelemetry, downstream: Arc<Downstream>) {
    let report = move |change| match change {
        Change::Reloaded(version) => {
            telemetry.metrics.policy.reloaded(true);
            telemetry.step("operator.policy_reloaded", None, Some(&described(&version)));
            downstream.policies_changed();
        }
        Change::Rejected(_) => {
            telemetry.metrics.policy.reloaded(false);
            telemetry.step("operator.policy_rejected", None, None);
        }
    };
    policy.watch(report).await;
}

/// How many descriptors the process may have, once it has asked for as many as it may.
fn descriptors() -> u64 {
    rlimit::increase_nofile_limit(u64::MAX).unwrap_or_else(|error| {
        tracing::warn!(%error, "the number of descriptors could not be raised");
        rlimit::getrlimit(rlimit::Resource::NOFILE).map_or(LEAST_DESCRIPTORS, |(soft, _)| soft)
    })
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
