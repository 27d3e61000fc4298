//! Plugins whose servers the tests play: over HTTP as a closure that answers requests, as a child as a shell script.

mod forgotten;
mod generations;
mod hostile;
mod lists;
mod modern;
mod pool;
mod session;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use ::http::{HeaderMap, Method, StatusCode};
use async_trait::async_trait;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::response::Response;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Ask, ListKind, Listeners, Plugin, Upcalls, next_id};
use crate::config;
use crate::gateway::budget::Budget;
use crate::gateway::message::{Json, Notification, Request, RpcError};
use crate::gateway::pass::Pass;

/// A request to a server.
#[derive(Debug, Clone)]
pub(super) struct Got {
    pub(super) method: Method,
    pub(super) headers: HeaderMap,
    /// The message, as it was written.
    pub(super) text: String,
}

impl Got {
    pub(super) fn message(&self) -> Value {
        // A number that no float holds is sound JSON, and nothing for a tree of it.
        serde_json::from_str(&self.text.replace("1E400", "0")).unwrap_or_default()
    }

    /// Its JSON-RPC method; empty: it is no request and no notification.
    pub(super) fn asks(&self) -> String {
        self.message()["method"].as_str().unwrap_or_default().to_owned()
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

/// A server over HTTP, and what it got.
pub(super) struct Server {
    pub(super) url: String,
    got: Arc<Mutex<Vec<Got>>>,
}

/// An answer that may come late.
pub(super) struct Late {
    after: Duration,
    answer: Box<dyn FnOnce() -> Response + Send>,
}

impl Late {
    pub(super) fn at_once(answer: Response) -> Self {
        Self::after(Duration::ZERO, move || answer)
    }

    pub(super) fn after(after: Duration, answer: impl FnOnce() -> Response + Send + 'static) -> Self {
        Self { after, answer: Box::new(answer) }
    }
}

/// A stream of events without any, which does not end.
pub(super) fn endless() -> Response {
    let nothing = futures::stream::pending::<Result<Bytes, std::convert::Infallible>>();
    answer(StatusCode::OK, "text/event-stream", Body::from_stream(nothing))
}

impl Server {
    pub(super) async fn start(answer: impl Fn(&Got) -> Response + Send + Sync + 'static) -> Self {
        Self::start_late(move |got| Late::at_once(answer(got))).await
    }

    pub(super) async fn start_late(answer: impl Fn(&Got) -> Late + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/mcp", listener.local_addr().unwrap());
        let got = Arc::<Mutex<Vec<Got>>>::default();
        let (kept, answer) = (Arc::clone(&got), Arc::new(answer));
        let router = Router::new().fallback(move |method: Method, headers: HeaderMap, body: Bytes| {
            let text = String::from_utf8(body.to_vec()).unwrap();
            let got = Got { method, headers, text };
            kept.lock().push(got.clone());
            let late = answer(&got);
            async move {
                tokio::time::sleep(late.after).await;
                (late.answer)()
            }
        });
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, got }
    }

    /// What it got so far.
    pub(super) fn got(&self) -> Vec<Got> {
        self.got.lock().clone()
    }

    /// The requests and notifications of this method it got.
    pub(super) fn asked(&self, method: &str) -> Vec<Got> {
        self.got().into_iter().filter(|got| got.asks() == method).collect()
    }
}

pub(super) fn answer(status: StatusCode, content_type: &str, body: impl Into<Body>) -> Response {
    Response::builder().status(status).header("content-type", content_type).body(body.into()).unwrap()
}

pub(super) fn status(status: u16) -> Response {
    answer(StatusCode::from_u16(status).unwrap(), "text/plain", "")
}

/// The result of a request.
pub(super) fn result(got: &Got, result: &Value) -> Response {
    let id = &got.message()["id"];
    answer(StatusCode::OK, "application/json", json!({"jsonrpc": "2.0", "id": id, "result": result}).to_string())
}

pub(super) fn error(got: &Got, status: u16, code: i64, message: &str) -> Response {
    let body = json!({"jsonrpc": "2.0", "id": got.message()["id"], "error": {"code": code, "message": message}});
    answer(StatusCode::from_u16(status).unwrap(), "application/json", body.to_string())
}

pub(super) fn events(text: String) -> Response {
    answer(StatusCode::OK, "text/event-stream", text)
}

/// What an old server answers to `initialize`, in this session.
pub(super) fn initialized(got: &Got, session: &str) -> Response {
    let opened = json!({
        "protocolVersion": got.message()["params"]["protocolVersion"],
        "capabilities": {"tools": {}},
        "serverInfo": {"name": "s", "version": "1"},
    });
    let mut response = result(got, &opened);
    response.headers_mut().insert("mcp-session-id", session.parse().unwrap());
    response
}

/// A plugin with settings; `name` is given.
pub(super) fn plugin(mut settings: Value) -> Arc<Plugin> {
    settings["name"] = json!("p");
    let settings: config::Plugin = serde_json::from_value(settings).unwrap();
    let lifecycle: super::Lifecycle = Arc::new(|_, _, _| {});
    let running = prometheus::IntGauge::new("running", "running").unwrap();
    let (http, tasks) = (super::http_client().unwrap(), TaskTracker::new());
    Arc::new(Plugin::new(settings, http, lifecycle, running, tasks, Budget::new(1 << 28)).unwrap())
}

pub(super) fn http_plugin(server: &Server) -> Arc<Plugin> {
    plugin(json!({ "url": server.url }))
}

/// Begins to monitor a plugin; it ends with what this gives. Changed lists are counted.
pub(super) fn monitored(plugin: &Arc<Plugin>) -> (tokio_util::sync::DropGuard, Arc<Changes>) {
    let (stop, changes) = (CancellationToken::new(), Arc::new(Changes::default()));
    tokio::spawn(Arc::clone(plugin).monitor(Arc::downgrade(&changes), stop.clone()));
    (stop.drop_guard(), changes)
}

/// Lists that changed.
#[derive(Default)]
pub(super) struct Changes {
    pub(super) of_all: Mutex<Vec<ListKind>>,
    /// The callers as whose own sessions and processes see them.
    pub(super) of_callers: Mutex<Vec<Arc<str>>>,
}

#[async_trait]
impl Listeners for Changes {
    async fn list_changed(&self, _: &str, kind: ListKind, caller: Option<&Arc<str>>) {
        match caller {
            None => self.of_all.lock().push(kind),
            Some(caller) => self.of_callers.lock().push(Arc::clone(caller)),
        }
    }

    async fn make_room(&self, _: &str, _: &str) -> bool {
        false
    }
}

/// The questions and notifications; questions are answered in turn, with `{}` at last.
#[derive(Default)]
pub(super) struct Client {
    pub(super) heard: Mutex<Vec<String>>,
    pub(super) answers: Mutex<VecDeque<Value>>,
}

#[async_trait]
impl Upcalls for Client {
    async fn asked(&self, request: Request) -> Result<Json, RpcError> {
        self.heard.lock().push(request.method.to_string());
        let answer = self.answers.lock().pop_front();
        Ok(Json::of(&answer.unwrap_or(json!({}))))
    }

    async fn notified(&self, notification: Notification) {
        self.heard.lock().push(notification.method.to_string());
    }
}

pub(super) fn initialize() -> Json {
    Json::of(&json!({
        "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "c", "version": "1"},
    }))
}

pub(super) fn ask(method: &str, params: &str, upcalls: &Arc<Client>) -> Ask {
    Ask {
        id: next_id(),
        method: method.into(),
        params: Json::parse(&params.to_owned().into()),
        headers: HeaderMap::new(),
        pass: Pass::own(),
        upcalls: Arc::clone(upcalls) as Arc<dyn Upcalls>,
    }
}

/// Waits until something is there.
pub(super) async fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    for _ in 0..6_000 {
        if let Some(found) = look() {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("waited in vain: {what}")
}

/// A child that is a shell script: the text after `method)` says what it does at such a request, whose id is `$id`.
pub(super) fn shell(cases: &str) -> Value {
    let script = format!(
        r#"say() {{ printf '%s\n' "$1"; }}
        result() {{ say "{{\"jsonrpc\":\"2.0\",\"id\":$id,\"result\":$1}}"; }}
        error() {{ say "{{\"jsonrpc\":\"2.0\",\"id\":$id,\"error\":{{\"code\":$1,\"message\":\"no\"}}}}"; }}
        while read -r line; do
            id=$(printf '%s' "$line" | sed -n 's/.*"id":\([0-9]*\).*/\1/p')
            method=$(printf '%s' "$line" | sed -n 's/.*"method":"\([a-zA-Z/_]*\)".*/\1/p')
            case "$method" in
                {cases}
                notifications/*) ;;
                *) error -32601 ;;
            esac
        done"#
    );
    json!({ "command": "/bin/sh", "args": ["-c", script] })
}

/// What an old child answers to `initialize`, as a case of [`shell`].
pub(super) const INITIALIZE: &str = r#"initialize) result '{"protocolVersion":"2025-11-25","capabilities":{"tools":{}},"serverInfo":{"name":"s","version":"1"}}' ;;"#;
