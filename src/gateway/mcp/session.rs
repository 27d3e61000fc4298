//! One session of a client: its streams, its sessions with the plugins, and what either side waits for.
//!
//! A session belongs to the caller who opened it; to anybody else it does not exist. It ends when the client says so,
//! after a while without use, or with the gateway; its sessions with plugins, and requests under way, end with it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use http::HeaderMap;
use rmcp::model::{
    CustomNotification, CustomRequest, ErrorData, RequestId, ServerJsonRpcMessage, ServerNotification, ServerRequest,
};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::streams::Streams;
use crate::gateway::message::{Notification, Response};
use crate::gateway::upstream::{Ask, Link, Plugin, StreamNumber, Upcalls, UpstreamFault};

/// Requests of servers that a client may have to answer at once; more are refused.
const ASKED: usize = 64;

/// Which plugins a session reaches.
#[derive(Clone)]
pub(crate) struct Endpoint {
    pub(crate) plugins: Arc<[Arc<Plugin>]>,
    /// Whether names of tools and prompts start with their plugin's.
    pub(crate) namespaced: bool,
}

/// One session of a client.
pub(crate) struct Session {
    pub(crate) id: Arc<str>,
    /// Whose it is.
    pub(crate) caller: Arc<str>,
    pub(crate) endpoint: Endpoint,
    /// The version of MCP that was agreed on.
    pub(crate) version: String,
    /// What its client said hello with; the plugins hear the same.
    hello: Value,
    pub(super) streams: Streams,
    /// The session with each plugin, once it is needed.
    links: Box<[tokio::sync::Mutex<Option<Arc<Link>>>]>,
    state: Mutex<State>,
    /// Over.
    pub(super) closed: CancellationToken,
}

struct State {
    /// What the client is asked, by the id it is asked under.
    asked: HashMap<i64, Asked>,
    last_asked: i64,
    /// The client's requests under way.
    requests: HashMap<RequestId, CancellationToken>,
    /// The parameters of the last `logging/setLevel`, for plugins whose session opens later.
    log_level: Option<Value>,
    used: Instant,
}

/// Something the client is asked.
struct Asked {
    answer: oneshot::Sender<Result<Value, ErrorData>>,
    stream: Option<StreamNumber>,
}

impl Session {
    pub(super) fn new(id: Arc<str>, caller: Arc<str>, endpoint: Endpoint, version: String, hello: Value) -> Arc<Self> {
        let links = endpoint.plugins.iter().map(|_| tokio::sync::Mutex::default()).collect();
        let state = State {
            asked: HashMap::new(),
            last_asked: 0,
            requests: HashMap::new(),
            log_level: None,
            used: Instant::now(),
        };
        Arc::new(Self {
            id,
            caller,
            endpoint,
            version,
            hello,
            streams: Streams::default(),
            links,
            state: Mutex::new(state),
            closed: CancellationToken::new(),
        })
    }

    /// It is used now.
    pub(super) fn touch(&self) {
        self.state().used = Instant::now();
    }

    /// Whether nobody used it for `idle`, nothing is under way, and no connection of the client is open.
    pub(super) fn is_idle(&self, idle: Duration) -> bool {
        let unused = {
            let state = self.state();
            state.used.elapsed() >= idle && state.requests.is_empty()
        };
        unused && !self.streams.in_use()
    }

    /// The session with the plugin at `index`, opened when there is none or it has ended.
    pub(crate) async fn link(self: &Arc<Self>, index: usize) -> Result<Arc<Link>, UpstreamFault> {
        let (Some(slot), Some(plugin)) = (self.links.get(index), self.endpoint.plugins.get(index)) else {
            return Err(UpstreamFault::Unreachable);
        };
        let mut slot = slot.lock().await;
        if let Some(link) = slot.as_ref().filter(|link| !link.is_closed()) {
            return Ok(Arc::clone(link));
        }
        // A session that has ended must not open another.
        if self.closed.is_cancelled() {
            return Err(UpstreamFault::Broken);
        }
        let died = slot.take().is_some();
        let upcalls = Arc::new(FromPlugin { session: Arc::downgrade(self) });
        let link = Arc::new(plugin.connect(self.hello.clone(), upcalls).await?);
        if died {
            plugin.revived();
        }
        let level = self.state().log_level.clone();
        if let Some(level) = level {
            // A plugin without logging refuses; that is its right.
            let _ = link.ask(Ask::plain("logging/setLevel", Some(level))).await;
        }
        *slot = Some(Arc::clone(&link));
        Ok(link)
    }

    /// The sessions with plugins that are open, with the plugins' indexes.
    pub(super) async fn open_links(&self) -> Vec<(usize, Arc<Link>)> {
        let mut open = Vec::new();
        for (index, slot) in self.links.iter().enumerate() {
            if let Some(link) = slot.lock().await.as_ref().filter(|link| !link.is_closed()) {
                open.push((index, Arc::clone(link)));
            }
        }
        open
    }

    pub(super) fn set_log_level(&self, params: Option<Value>) {
        self.state().log_level = params;
    }

    /// A request of the client is under way; the token says when it is cancelled. `None`: its id is in use.
    pub(super) fn begin(&self, id: &RequestId) -> Option<CancellationToken> {
        let token = self.closed.child_token();
        let mut state = self.state();
        state.used = Instant::now();
        match state.requests.entry(id.clone()) {
            std::collections::hash_map::Entry::Occupied(_) => None,
            std::collections::hash_map::Entry::Vacant(entry) => Some(entry.insert(token).clone()),
        }
    }

    pub(super) fn finish(&self, id: &RequestId) {
        let mut state = self.state();
        state.requests.remove(id);
        state.used = Instant::now();
    }

    /// The client does not want the answer any more.
    pub(super) fn cancel(&self, id: &RequestId) {
        if let Some(request) = self.state().requests.remove(id) {
            request.cancel();
        }
    }

    /// Whether the client is asked something for the sake of the request on `stream`.
    pub(crate) fn is_asked(&self, stream: StreamNumber) -> bool {
        self.state().asked.values().any(|asked| asked.stream.is_none_or(|of| of == stream))
    }

    /// The client answers what it was asked.
    pub(super) fn answered(&self, response: Response) {
        let Some(RequestId::Number(id)) = response.id else { return };
        if let Some(waiting) = self.state().asked.remove(&id) {
            // Whoever does not wait any more does not mind.
            let _ = waiting.answer.send(response.outcome);
        }
    }

    /// Ends it.
    pub(super) async fn close(&self) {
        self.closed.cancel();
        self.state().asked.clear();
        for slot in &self.links {
            drop(slot.lock().await.take());
        }
    }

    /// Asks the client on behalf of a plugin. Dropping the future tells it that the answer is not wanted any more.
    async fn ask(
        &self,
        method: String,
        params: Option<Value>,
        stream: Option<StreamNumber>,
    ) -> Result<Value, ErrorData> {
        let (answer, answered) = oneshot::channel();
        let id = {
            let mut state = self.state();
            if state.asked.len() >= ASKED {
                return Err(ErrorData::internal_error("the client has too many requests to answer", None));
            }
            state.last_asked += 1;
            let id = state.last_asked;
            state.asked.insert(id, Asked { answer, stream });
            id
        };
        let mut asking = Asking { session: self, id, stream, answered: false };
        let request = ServerRequest::CustomRequest(CustomRequest::new(method, params));
        self.streams.send(stream, ServerJsonRpcMessage::request(request, RequestId::Number(id)));
        let outcome = answered.await;
        asking.answered = true;
        outcome.unwrap_or_else(|_| Err(ErrorData::internal_error("the client's session ended", None)))
    }

    /// Tells the client.
    pub(super) fn tell(&self, notification: Notification, stream: Option<StreamNumber>) {
        let custom = CustomNotification::new(notification.method, notification.params);
        let message = ServerJsonRpcMessage::notification(ServerNotification::CustomNotification(custom));
        self.streams.send(stream, message);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A question to the client; unanswered at its end, it is withdrawn.
struct Asking<'a> {
    session: &'a Session,
    id: i64,
    stream: Option<StreamNumber>,
    answered: bool,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if !self.answered && self.session.state().asked.remove(&self.id).is_some() {
            let method = "notifications/cancelled".to_owned();
            let cancelled = Notification { method, params: Some(json!({ "requestId": self.id })) };
            self.session.tell(cancelled, self.stream);
        }
    }
}

/// What a plugin asks and tells, on its way to the client.
struct FromPlugin {
    session: Weak<Session>,
}

#[async_trait]
impl Upcalls for FromPlugin {
    async fn asked(
        &self,
        method: String,
        params: Option<Value>,
        stream: Option<StreamNumber>,
    ) -> Result<Value, ErrorData> {
        if method == "ping" {
            // It asks whether its own peer is there.
            return Ok(json!({}));
        }
        match self.session.upgrade() {
            Some(session) => session.ask(method, params, stream).await,
            None => Err(ErrorData::internal_error("the client's session ended", None)),
        }
    }

    async fn told(&self, notification: Notification, stream: Option<StreamNumber>) {
        if let Some(session) = self.session.upgrade() {
            session.tell(notification, stream);
        }
    }
}

impl Ask {
    /// A request that belongs to none of the client's.
    pub(crate) fn plain(method: &str, params: Option<Value>) -> Self {
        Self { method: method.to_owned(), params, headers: HeaderMap::new(), stream: None }
    }
}
