//! A client's message, to the plugin it is for, and what comes back.
//!
//! | message | goes to |
//! |---|---|
//! | `tools/call`, `prompts/get` | the plugin that the name says |
//! | lists | every plugin, joined ([`lists`]) |
//! | `resources/read`, `…/subscribe`, `…/unsubscribe`, completion of a resource | the plugin that has the resource: its URI does not say which, so plugins with resources are asked in order until one knows it |
//! | `logging/setLevel` | every plugin, those that come later too |
//! | notifications | every plugin that the session has a session with |
//! | the client's answers | whoever asked |
//! | `ping` | nobody: the gateway answers |
//! | anything else | the one plugin, at its own endpoint; at that of all plugins there is no such method |
//!
//! Each request runs in a task of its own, which ends its stream: with a response, or without one when the client has
//! cancelled it. A client whose connection breaks off has not cancelled: the response waits for it on the stream.

use std::sync::Arc;

use http::HeaderMap;
use rmcp::model::{CustomResult, ErrorCode, ErrorData, RequestId, ServerJsonRpcMessage, ServerResult};
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use super::inbound::Inbound;
use super::lists::{self, List};
use super::session::Session;
use crate::gateway::call::{Calls, Work};
use crate::gateway::message::{Message, Notification, Request, size};
use crate::gateway::upstream::{Ask, StreamNumber, UpstreamFault};

/// Messages of clients, on their way.
pub(crate) struct Relay {
    calls: Calls,
    /// Requests under way, waited for at the end.
    tasks: TaskTracker,
}

impl Relay {
    pub(crate) fn new(calls: Calls, tasks: TaskTracker) -> Self {
        Self { calls, tasks }
    }

    pub(super) fn new_session_id(&self) -> String {
        self.calls.random_id().simple().to_string()
    }

    pub(super) fn calls(&self) -> &Calls {
        &self.calls
    }

    /// Handles a request in a task of its own.
    pub(super) fn serve(self: Arc<Self>, session: Arc<Session>, inbound: Arc<Inbound>, stream: StreamNumber) {
        let tasks = self.tasks.clone();
        tasks.spawn(async move {
            let Some(Message::Request(request)) = &inbound.message else {
                session.streams.end(stream, None);
                return;
            };
            let Some(cancelled) = session.begin(&request.id) else {
                let error = ErrorData::invalid_request("Invalid Request: a request with this id is under way", None);
                session.streams.end(stream, Some(respond(&request.id, Err(error))));
                return;
            };
            let response = tokio::select! {
                outcome = self.answer(&session, &inbound, request, stream) => Some(respond(&request.id, outcome)),
                () = cancelled.cancelled() => None,
            };
            session.streams.end(stream, response);
            session.finish(&request.id);
        });
    }

    /// Handles a message that expects no response.
    pub(super) async fn accept(&self, session: &Arc<Session>, inbound: Arc<Inbound>) {
        match &inbound.message {
            Some(Message::Response(response)) => {
                session.answered(crate::gateway::message::Response {
                    id: response.id.clone(),
                    outcome: response.outcome.clone(),
                });
            }
            Some(Message::Notification(notification)) => self.told(session, notification).await,
            Some(Message::Request(_)) | None => {}
        }
    }

    async fn told(&self, session: &Arc<Session>, notification: &Notification) {
        match notification.method.as_str() {
            "notifications/cancelled" => {
                let id = notification.params.as_ref().and_then(|params| params.get("requestId"));
                if let Some(id) = id.and_then(|id| serde_json::from_value::<RequestId>(id.clone()).ok()) {
                    session.cancel(&id);
                }
            }
            // Each plugin hears it when its own session opens.
            "notifications/initialized" => {}
            _ => {
                for (_, link) in session.open_links().await {
                    link.tell(notification.clone()).await;
                }
            }
        }
    }

    async fn answer(
        &self,
        session: &Arc<Session>,
        inbound: &Arc<Inbound>,
        request: &Request,
        stream: StreamNumber,
    ) -> Result<Value, ErrorData> {
        let work = Work { session, inbound, request, stream };
        match request.method.as_str() {
            "ping" => Ok(json!({})),
            "initialize" => Err(ErrorData::invalid_request("Invalid Request: the session is initialized", None)),
            "tools/call" => self.call_tool(work).await,
            method => match List::of(method) {
                Some(list) if session.endpoint.namespaced => self.list_all(&work, list).await,
                Some(List::Tools) => self.list_tools(&work).await,
                _ if session.endpoint.namespaced => self.route(&work).await,
                _ => self.forward(&work, 0, request.params.clone()).await,
            },
        }
    }

    /// `tools/call`: the one request that is identified, decided, dispatched and told as a call.
    async fn call_tool(&self, work: Work<'_>) -> Result<Value, ErrorData> {
        let target = work.request.text("name").and_then(|name| work.session.endpoint.resolve(name));
        self.calls.tool(work, target).await
    }

    async fn list_all(&self, work: &Work<'_>, list: List) -> Result<Value, ErrorData> {
        let may_list = |plugin: &str, tool: &str| self.calls.may_list(work.inbound, plugin, tool);
        lists::joined(work.session, list, work.request.meta().cloned().map(Value::Object), &may_list).await
    }

    async fn list_tools(&self, work: &Work<'_>) -> Result<Value, ErrorData> {
        let mut result = self.forward(work, 0, work.request.params.clone()).await?;
        if let (Some(tools), Some(plugin)) = (result.get_mut(List::Tools.member()), work.plugin(0)) {
            lists::retain(tools, |tool| self.calls.may_list(work.inbound, plugin.name(), tool));
        }
        Ok(result)
    }

    /// A request other than for tools, at the endpoint of all plugins.
    async fn route(&self, work: &Work<'_>) -> Result<Value, ErrorData> {
        let request = work.request;
        match request.method.as_str() {
            "prompts/get" => {
                let name = request.text("name").unwrap_or_default();
                let (index, own) = work.session.endpoint.resolve(name).ok_or_else(|| unknown("prompt"))?;
                let params = with(request.params.as_ref(), "/name", own);
                self.forward(work, index, params).await
            }
            "resources/read" | "resources/subscribe" | "resources/unsubscribe" => self.search(work, "resources").await,
            "completion/complete" => self.complete(work).await,
            "logging/setLevel" => self.set_level(work).await,
            _ => Err(ErrorData::new(ErrorCode::METHOD_NOT_FOUND, "there is no such method here", None)),
        }
    }

    async fn complete(&self, work: &Work<'_>) -> Result<Value, ErrorData> {
        let params = work.request.params.as_ref();
        let prompt = params.and_then(|params| params.pointer("/ref/name")).and_then(Value::as_str);
        match prompt {
            Some(name) => {
                let (index, own) = work.session.endpoint.resolve(name).ok_or_else(|| unknown("prompt"))?;
                self.forward(work, index, with(params, "/ref/name", own)).await
            }
            None => self.search(work, "completions").await,
        }
    }

    /// Asks the plugins that have `capability`, in order, until one does not refuse.
    async fn search(&self, work: &Work<'_>, capability: &str) -> Result<Value, ErrorData> {
        let capability = format!("/capabilities/{capability}");
        let mut refused = None;
        for (index, plugin) in work.session.endpoint.plugins.iter().enumerate() {
            if plugin.health().opened.is_some_and(|opened| opened.pointer(&capability).is_none()) {
                continue;
            }
            match self.forward(work, index, work.request.params.clone()).await {
                Ok(result) => return Ok(result),
                Err(error) => refused = Some(error),
            }
        }
        Err(refused.unwrap_or_else(|| ErrorData::new(ErrorCode::METHOD_NOT_FOUND, "no plugin has resources", None)))
    }

    async fn set_level(&self, work: &Work<'_>) -> Result<Value, ErrorData> {
        work.session.set_log_level(work.request.params.clone());
        for (index, link) in work.session.open_links().await {
            if link.opened().pointer("/capabilities/logging").is_some() {
                self.forward(work, index, work.request.params.clone()).await?;
            }
        }
        Ok(json!({}))
    }

    /// The request to one plugin, with `params`, as a request that is no tool call: traced, and not decided on.
    async fn forward(&self, work: &Work<'_>, index: usize, params: Option<Value>) -> Result<Value, ErrorData> {
        let plugin = work.plugin(index).ok_or_else(|| unknown("plugin"))?;
        let patience = plugin.timeout();
        let asked = timeout(patience, async {
            let _turn = plugin.turn(patience).await?;
            let link = work.session.link(index).await?;
            let request = Ask {
                method: work.request.method.clone(),
                params,
                headers: HeaderMap::new(),
                stream: Some(work.stream),
            };
            link.ask(request).await
        });
        let outcome = asked.await.unwrap_or(Err(UpstreamFault::TimedOut { after: patience }));
        outcome.map_err(|fault| fault.to_error(plugin.name()))
    }
}

/// A response, and how large it is.
fn respond(id: &RequestId, outcome: Result<Value, ErrorData>) -> (ServerJsonRpcMessage, u64) {
    let message = match outcome {
        Ok(result) => ServerJsonRpcMessage::response(ServerResult::CustomResult(CustomResult(result)), id.clone()),
        Err(error) => ServerJsonRpcMessage::error(error, Some(id.clone())),
    };
    let bytes = size(&message);
    (message, bytes)
}

fn unknown(what: &str) -> ErrorData {
    ErrorData::invalid_params(format!("there is no such {what}"), None)
}

/// The parameters with another text at `pointer`.
fn with(params: Option<&Value>, pointer: &str, text: &str) -> Option<Value> {
    let mut params = params.cloned()?;
    if let Some(place) = params.pointer_mut(pointer) {
        *place = Value::from(text);
    }
    Some(params)
}
