//! The sessions, as the SDK's HTTP service manages them.
//!
//! The service calls in here for each request that it has found to be well formed: for `initialize` to make a session and
//! answer, for every other message with the session's id. It would also run a server of its own over each session's
//! "transport"; since sessions are the gateway's, that transport is at its end from the start, and such a server with it:
//! an idle session costs no task.

use std::borrow::Cow;
use std::collections::HashMap;
use std::convert::Infallible;
use std::future::{Future, ready};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures::Stream;
use rmcp::ServerHandler;
use rmcp::model::{ClientJsonRpcMessage, ErrorData, ProtocolVersion, ServerConfig, ServerJsonRpcMessage};
use rmcp::service::RoleServer;
use rmcp::transport::Transport;
use rmcp::transport::streamable_http_server::session::{ServerSseMessage, SessionId, SessionManager};
use serde_json::{Map, Value, json};

use super::inbound::Inbound;
use super::relay::Relay;
use super::session::{Endpoint, Session};
use super::streams::Events;
use crate::gateway::call::Reply;
use crate::gateway::message::{Message, Notification};
use crate::gateway::upstream::UpstreamFault;

/// How long `initialize` waits for a plugin that was never up to be.
const PATIENCE: Duration = Duration::from_secs(20);

/// The versions that are served: those with sessions.
pub(super) fn served_versions() -> Vec<ProtocolVersion> {
    ProtocolVersion::KNOWN_VERSIONS.iter().filter(|version| version.has_initialize()).cloned().collect()
}

/// The sessions of one endpoint.
pub(super) struct Sessions {
    endpoint: Endpoint,
    relay: Arc<Relay>,
    sessions: RwLock<HashMap<SessionId, Arc<Session>>>,
}

/// Why a request of the service cannot be met. The service answers with status 500.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionsError {
    #[error("the session has ended")]
    Ended,
    #[error("the event id is of no stream that can be resumed")]
    NoSuchEvent,
    #[error("the request did not come over HTTP")]
    NoRequest,
}

impl Sessions {
    pub(super) fn new(endpoint: Endpoint, relay: Arc<Relay>) -> Self {
        Self { endpoint, relay, sessions: RwLock::default() }
    }

    pub(super) fn count(&self) -> usize {
        self.sessions.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Ends sessions that nobody used for `idle`, and drops what nobody came for in the others.
    pub(super) async fn sweep(&self, idle: Duration) {
        for session in self.all() {
            session.streams.sweep();
            if session.is_idle(idle) {
                self.end(&session.id).await;
            }
        }
    }

    /// Ends every session.
    pub(super) async fn end_all(&self) {
        for session in self.all() {
            self.end(&session.id).await;
        }
    }

    /// Passes on that a plugin's list changed, to sessions that do not hear it from the plugin itself.
    pub(super) async fn list_changed(&self, plugin: &str, notification: &Notification) {
        let Some(index) = self.endpoint.plugins.iter().position(|known| known.name() == plugin) else { return };
        for session in self.all() {
            if !session.open_links().await.iter().any(|(open, _)| *open == index) {
                session.tell(notification.clone(), None);
            }
        }
    }

    fn all(&self) -> Vec<Arc<Session>> {
        self.sessions.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// A session of whoever asks.
    fn get(&self, id: &SessionId) -> Option<Arc<Session>> {
        let session = self.sessions.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned()?;
        let inbound = Inbound::current()?;
        if *session.caller != *inbound.caller.name().as_str() {
            return None;
        }
        session.touch();
        Some(session)
    }

    async fn end(&self, id: &SessionId) {
        let session = self.sessions.write().unwrap_or_else(PoisonError::into_inner).remove(id);
        if let Some(session) = session {
            self.relay.calls().telling.metrics.sessions.open.dec();
            session.close().await;
        }
    }

    /// The answer to `initialize`.
    async fn opened(&self, version: &str) -> Result<Value, ErrorData> {
        let mut opened = if self.endpoint.namespaced { self.all_opened() } else { self.one_opened().await? };
        if let Some(opened) = opened.as_object_mut() {
            opened.insert("protocolVersion".to_owned(), Value::from(version));
        }
        Ok(opened)
    }

    /// What the one plugin itself answers.
    async fn one_opened(&self) -> Result<Value, ErrorData> {
        let Some(plugin) = self.endpoint.plugins.first() else {
            return Err(ErrorData::internal_error("there is no plugin here", None));
        };
        match plugin.opened(PATIENCE).await {
            Some(opened) => Ok((*opened).clone()),
            None => Err(UpstreamFault::Unreachable.to_error(plugin.name())),
        }
    }

    /// The gateway itself, with all that any of the plugins can.
    fn all_opened(&self) -> Value {
        let mut capabilities = Map::new();
        let mut instructions = Vec::new();
        for plugin in self.endpoint.plugins.iter() {
            let Some(opened) = plugin.health().opened else { continue };
            if let Some(own) = opened.get("capabilities").and_then(Value::as_object) {
                join(&mut capabilities, own);
            }
            if let Some(own) = opened.get("instructions").and_then(Value::as_str) {
                instructions.push(format!("{}: {own}", plugin.name()));
            }
        }
        // A plugin that is not up yet may have tools, and says so when it is.
        join(&mut capabilities, &Map::from_iter([("tools".to_owned(), json!({ "listChanged": true }))]));
        let mut opened = json!({
            "capabilities": capabilities,
            "serverInfo": { "name": "mcpg", "version": env!("CARGO_PKG_VERSION") },
        });
        if !instructions.is_empty()
            && let Some(opened) = opened.as_object_mut()
        {
            opened.insert("instructions".to_owned(), Value::String(instructions.join("\n\n")));
        }
        opened
    }
}

/// Adds capabilities: what one has, all together have.
fn join(all: &mut Map<String, Value>, more: &Map<String, Value>) {
    for (name, value) in more {
        match (all.get_mut(name), value) {
            (Some(Value::Object(has)), Value::Object(more)) => join(has, more),
            (Some(has @ Value::Bool(false)), Value::Bool(true)) => *has = Value::Bool(true),
            (Some(_), _) => {}
            (None, value) => {
                all.insert(name.clone(), value.clone());
            }
        }
    }
}

/// The version to agree on: the client's, where it is served.
fn negotiate(asked: &str) -> ProtocolVersion {
    served_versions()
        .into_iter()
        .find(|version| version.as_str() == asked)
        .unwrap_or(ProtocolVersion::LATEST_WITH_INITIALIZE)
}

impl SessionManager for Sessions {
    type Error = SessionsError;
    type Transport = Silent;

    async fn create_session(&self) -> Result<(SessionId, Silent), SessionsError> {
        let inbound = Inbound::current().ok_or(SessionsError::NoRequest)?;
        let Some(Message::Request(request)) = &inbound.message else { return Err(SessionsError::NoRequest) };
        let mut hello = request.params.clone().unwrap_or_default();
        let version = negotiate(request.text("protocolVersion").unwrap_or_default());
        if let Some(hello) = hello.as_object_mut() {
            hello.insert("protocolVersion".to_owned(), Value::from(version.as_str()));
        }
        let id: SessionId = self.relay.calls().telling.random.uuid().simple().to_string().into();
        let session = Session::new(
            Arc::clone(&id),
            inbound.caller.name().as_str().into(),
            self.endpoint.clone(),
            version.as_str().to_owned(),
            hello,
        );
        self.sessions.write().unwrap_or_else(PoisonError::into_inner).insert(Arc::clone(&id), session);
        let counts = &self.relay.calls().telling.metrics.sessions;
        counts.opened.inc();
        counts.open.inc();
        Ok((id, Silent))
    }

    async fn initialize_session(
        &self,
        id: &SessionId,
        message: ClientJsonRpcMessage,
    ) -> Result<ServerJsonRpcMessage, SessionsError> {
        let session = self.get(id).ok_or(SessionsError::Ended)?;
        let inbound = Inbound::current().ok_or(SessionsError::NoRequest)?;
        let ClientJsonRpcMessage::Request(request) = message else { return Err(SessionsError::NoRequest) };
        let opened = self.opened(&session.version).await;
        if opened.is_err() {
            self.end(id).await;
        }
        let reply = Reply::plain(&request.id, opened);
        if let Some(spans) = inbound.take_spans() {
            spans.end(reply.told());
        }
        Ok(reply.message)
    }

    async fn has_session(&self, id: &SessionId) -> Result<bool, SessionsError> {
        Ok(self.get(id).is_some())
    }

    async fn close_session(&self, id: &SessionId) -> Result<(), SessionsError> {
        // The service's own server, which has nothing to serve, ends at once and says so here, within no request.
        if self.get(id).is_some() {
            self.end(id).await;
        }
        Ok(())
    }

    async fn create_stream(
        &self,
        id: &SessionId,
        _: ClientJsonRpcMessage,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, SessionsError> {
        let session = self.get(id).ok_or(SessionsError::Ended)?;
        let inbound = Inbound::current().ok_or(SessionsError::NoRequest)?;
        // Before this version an empty event is one that clients do not expect.
        let primed = session.version.as_str() >= ProtocolVersion::V_2025_11_25.as_str();
        let (number, events) = session.streams.open(primed);
        Arc::clone(&self.relay).serve(session, inbound, number);
        Ok(Open(events))
    }

    async fn accept_message(&self, id: &SessionId, _: ClientJsonRpcMessage) -> Result<(), SessionsError> {
        let session = self.get(id).ok_or(SessionsError::Ended)?;
        let inbound = Inbound::current().ok_or(SessionsError::NoRequest)?;
        self.relay.accept(&session, inbound).await;
        Ok(())
    }

    async fn create_standalone_stream(
        &self,
        id: &SessionId,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, SessionsError> {
        let session = self.get(id).ok_or(SessionsError::Ended)?;
        Ok(Open(session.streams.standalone()))
    }

    async fn resume(
        &self,
        id: &SessionId,
        last_event_id: String,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, SessionsError> {
        let session = self.get(id).ok_or(SessionsError::Ended)?;
        session.streams.resume(&last_event_id).map(Open).ok_or(SessionsError::NoSuchEvent)
    }
}

/// A connection's events as a stream.
struct Open(Events);

impl Stream for Open {
    type Item = ServerSseMessage;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<ServerSseMessage>> {
        self.0.poll_recv(context)
    }
}

/// The transport of the SDK's own server: nothing passes it.
pub(super) struct Silent;

impl Transport<RoleServer> for Silent {
    type Error = Infallible;

    fn name() -> Cow<'static, str> {
        "session".into()
    }

    fn send(&mut self, _: ServerJsonRpcMessage) -> impl Future<Output = Result<(), Infallible>> + Send + 'static {
        ready(Ok(()))
    }

    async fn receive(&mut self) -> Option<ClientJsonRpcMessage> {
        None
    }

    async fn close(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
}

/// The SDK's own server: asked only by clients that want a version without sessions, it says which versions there are.
#[derive(Debug, Clone, Copy)]
pub(super) struct WithSessions;

impl ServerHandler for WithSessions {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::default()
    }

    fn supported_protocol_versions(&self) -> Cow<'static, [ProtocolVersion]> {
        Cow::Owned(served_versions())
    }
}
