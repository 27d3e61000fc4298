//! Where clients come in: the endpoints, and what they share.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use axum::extract::ConnectInfo;
use axum::response::Response;
use http::StatusCode;
use http::header::WWW_AUTHENTICATE;
use http::request::Parts;
use tokio::sync::broadcast;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::entry::{Entered, refuse};
use super::listen::ListChange;
use super::listener::FromPlugins;
use super::origin::Allowed;
use super::relay::Relay;
use super::sessions::{self, Counts, Sessions};
use crate::config;
use crate::gateway::budget::Budget;
use crate::gateway::call::client::{Endpoint, Inbound};
use crate::gateway::call::telemetry::{CallTelemetry, micros};
use crate::gateway::identity::{Caller, Identity};
use crate::gateway::message::{self, Json, Object};
use crate::gateway::traces::{self, RequestSpans, Traces};
use crate::gateway::upstream::{ListKind, Listeners, Plugin};
use crate::telemetry::w3c;

/// How often sessions that nobody uses are looked for.
const SWEEP: Duration = Duration::from_secs(10);

/// Changes of lists that a slow stream may fall behind.
const CHANGES: usize = 64;

/// Where clients come in: one endpoint for all plugins, and one for each.
pub(crate) struct Downstream {
    pub(super) routes: Vec<Arc<Route>>,
    pub(super) all: Vec<Arc<Sessions>>,
    pub(super) counts: Arc<Counts>,
    pub(super) limits: config::GatewayLimits,
    identity: Identity,
    pub(super) allowed: Allowed,
    traces: Arc<Traces>,
    trust: config::TrustCallers,
    pub(super) relay: Arc<Relay>,
    pub(super) budget: Arc<Budget>,
    pub(super) listener: Arc<FromPlugins>,
    pub(super) changes: broadcast::Sender<ListChange>,
    /// Requests under way, waited for at the end.
    pub(super) requests: TaskTracker,
    draining: AtomicBool,
    /// Streams of `subscriptions/listen` end, so that calls under way are all that is waited for.
    pub(super) stop_listening: CancellationToken,
    /// Event streams end.
    pub(super) stop: CancellationToken,
}

/// One endpoint.
pub(super) struct Route {
    pub(super) endpoint: Endpoint,
    pub(super) sessions: Arc<Sessions>,
    pub(super) path: String,
}

/// What the side that clients see is made of.
pub(crate) struct DownstreamParts<'a> {
    pub(crate) settings: &'a config::Gateway,
    pub(crate) plugins: &'a [Arc<Plugin>],
    pub(crate) relay: Arc<Relay>,
    pub(crate) identity: Identity,
    pub(crate) traces: Arc<Traces>,
    pub(crate) budget: Arc<Budget>,
    pub(crate) requests: TaskTracker,
    pub(crate) stop: CancellationToken,
}

impl Downstream {
    pub(crate) fn new(parts: DownstreamParts<'_>) -> Arc<Self> {
        let DownstreamParts { settings, plugins, relay, identity, traces, budget, requests, stop } = parts;
        let limits = settings.limits.clone();
        let size = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
        let most = size(limits.sessions);
        let of_caller = limits.sessions_per_caller.map_or(usize::MAX, size);
        let counts = Counts::new(most, of_caller, Arc::clone(&relay.dispatcher.calls.telemetry.metrics));
        let route = |path: String, plugins: Vec<Arc<Plugin>>, namespaced| {
            let endpoint = Endpoint { plugins: plugins.into(), namespaced };
            let sessions = Arc::new(Sessions::new(endpoint.clone(), Arc::clone(&counts)));
            Arc::new(Route { endpoint, sessions, path })
        };
        let mut routes = vec![route("/mcp".to_owned(), plugins.to_vec(), true)];
        routes.extend(
            plugins.iter().map(|plugin| route(format!("/mcp/{}", plugin.name()), vec![Arc::clone(plugin)], false)),
        );
        let all = routes.iter().map(|route| Arc::clone(&route.sessions)).collect();
        let local = settings.listen.ip().is_loopback();
        let allowed = Allowed::new(&settings.allowed_hosts, &settings.allowed_origins, local);
        let listener = Arc::new(FromPlugins { relay: Arc::downgrade(&relay) });
        let (changes, _) = broadcast::channel(CHANGES);
        let trust = settings.observability.otlp.trust_callers;
        let draining = AtomicBool::new(false);
        Arc::new(Self {
            routes,
            all,
            counts,
            limits,
            identity,
            allowed,
            traces,
            trust,
            relay,
            budget,
            listener,
            changes,
            requests,
            draining,
            stop_listening: CancellationToken::new(),
            stop,
        })
    }

    /// Ends idle sessions, for as long as the gateway runs.
    pub(crate) async fn sweep(self: Arc<Self>) {
        let mut tick = interval(SWEEP);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            for sessions in &self.all {
                sessions.sweep(self.limits.session_idle.as_duration()).await;
            }
        }
    }

    /// From now on there are no new sessions, and no new requests.
    pub(crate) fn close(&self) {
        self.draining.store(true, Ordering::Relaxed);
        self.stop_listening.cancel();
    }

    /// Ends every session, and every call that waits for its client.
    pub(crate) async fn end_all(&self) {
        self.relay.dispatcher.parks.end_all();
        for sessions in &self.all {
            sessions.end_all().await;
        }
    }

    /// The policies changed, and with them what callers see of the lists.
    pub(crate) fn policies_changed(&self) {
        for kind in [ListKind::Tools, ListKind::Prompts, ListKind::Resources] {
            self.announce(None, kind);
        }
    }

    fn announce(&self, plugin: Option<&str>, kind: ListKind) {
        for sessions in &self.all {
            sessions.list_changed(plugin, kind.notification());
        }
        self.announce_to_listens(plugin, kind, None);
    }

    fn announce_to_listens(&self, plugin: Option<&str>, kind: ListKind, caller: Option<&Arc<str>>) {
        let kind = if kind == ListKind::Templates { ListKind::Resources } else { kind };
        // Ignore the error: nobody listens.
        let _ = self.changes.send(ListChange { plugin: plugin.map(Into::into), kind, caller: caller.cloned() });
    }

    pub(super) fn readiness(&self) -> (StatusCode, &'static str) {
        if self.is_draining() { (StatusCode::SERVICE_UNAVAILABLE, "stopping\n") } else { (StatusCode::OK, "ready\n") }
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    pub(super) fn telemetry(&self) -> &CallTelemetry {
        &self.relay.dispatcher.calls.telemetry
    }
}

#[async_trait]
impl Listeners for Downstream {
    async fn list_changed(&self, plugin: &str, kind: ListKind, caller: Option<&Arc<str>>) {
        match caller {
            None => self.announce(Some(plugin), kind),
            // Sessions of old clients hear of their own changes from their own sessions with the plugin.
            Some(caller) => self.announce_to_listens(Some(plugin), kind, Some(caller)),
        }
    }

    async fn make_room(&self, plugin: &str, owner: &str) -> bool {
        sessions::make_room_at(&self.all, plugin, owner).await.is_ok()
    }
}

impl Downstream {
    /// Finds out who asks.
    pub(super) async fn identify(&self, parts: &Parts, request_id: &str) -> Result<Caller, Response> {
        match self.identity.identify(&parts.headers).await {
            Ok(caller) => Ok(caller),
            Err(unidentified) => {
                self.telemetry().metrics.unidentified.inc();
                // A trace of nobody's is kept by the gateway's own rate.
                let described = traces::Request {
                    method: "",
                    http_version: Some(parts.version),
                    client: parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|info| info.0),
                    request_id: Some(request_id),
                    ..traces::Request::default()
                };
                let spans = self.traces.request(&described, w3c::Inbound::read(&parts.headers, None), false, None);
                spans.identity().refused();
                let mut response = refuse(unidentified.status(), None, unidentified.to_string());
                if let Some(challenge) = unidentified.challenge() {
                    response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
                }
                Err(response)
            }
        }
    }

    /// What came with a request, and its spans.
    pub(super) fn begin(
        &self,
        entered: &Entered,
        request: &message::Request,
        params: &Object,
        (session, version, bytes): (Option<&str>, &str, usize),
    ) -> (Arc<Inbound>, RequestSpans) {
        let invocation_id = self.telemetry().id();
        let is_call = &*request.method == "tools/call";
        let (jsonrpc_id, invocation) = (request.id.to_string(), invocation_id.to_string());
        let described = traces::Request {
            method: &request.method,
            jsonrpc_id: Some(&jsonrpc_id),
            session_id: session,
            protocol_version: Some(version),
            http_version: Some(entered.parts.version),
            client: entered.parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|info| info.0),
            request_id: Some(&entered.request_id),
            invocation_id: is_call.then_some(&*invocation),
        };
        let meta = params.get("_meta").and_then(Json::object);
        let carried = meta.as_ref().map(trace_fields);
        let context = w3c::Inbound::read(&entered.parts.headers, carried.as_ref());
        let trusted = match self.trust {
            config::TrustCallers::All => true,
            config::TrustCallers::Known => entered.known,
            config::TrustCallers::None => false,
        };
        let spans = self.traces.request(&described, context, trusted, Some(&entered.identity));
        spans.identified(&entered.identity, entered.caller.name().as_str());
        let inbound = Inbound {
            caller: entered.caller.clone(),
            owner: Arc::clone(&entered.owner),
            known: entered.known,
            arrived_at: entered.arrived_at,
            identity_us: micros(entered.identity.took),
            bytes: bytes as u64,
            request_id: Arc::clone(&entered.request_id),
            invocation_id,
        };
        (Arc::new(inbound), spans)
    }
}

/// The fields of a trace in a message's `_meta`, and nothing else of it.
fn trace_fields(meta: &Object) -> serde_json::Map<String, serde_json::Value> {
    let field = |name: &str| Some((name.to_owned(), serde_json::Value::from(meta.text(name)?.into_owned())));
    ["traceparent", "tracestate", "baggage"].into_iter().filter_map(field).collect()
}
