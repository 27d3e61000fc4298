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

use rmcp::model::{ErrorCode, ErrorData, RequestId};
use serde_json::{Value, json};
use tokio_util::task::TaskTracker;

use super::inbound::Inbound;
use super::lists::{self, List};
use super::session::Session;
use crate::gateway::call::{Calls, Reply, Subject, Work};
use crate::gateway::message::{Message, Notification, Response};
use crate::gateway::policy::Action;
use crate::gateway::story::Ending;
use crate::gateway::traces::Target;
use crate::gateway::upstream::{StreamNumber, UpstreamFault};

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

    pub(super) fn calls(&self) -> &Calls {
        &self.calls
    }

    /// Handles a request in a task of its own.
    pub(super) fn serve(self: Arc<Self>, session: Arc<Session>, inbound: Arc<Inbound>, stream: StreamNumber) {
        let tasks = self.tasks.clone();
        tasks.spawn(async move {
            let (Some(Message::Request(request)), Some(spans)) = (&inbound.message, inbound.take_spans()) else {
                session.streams.end(stream, None);
                return;
            };
            let Some(cancelled) = session.begin(&request.id) else {
                let error = ErrorData::invalid_request("Invalid Request: a request with this id is under way", None);
                let reply = Reply::plain(&request.id, Err(error));
                spans.end(reply.told());
                session.streams.end(stream, Some((reply.message, reply.bytes)));
                return;
            };
            let mut work = Work { session: &session, inbound: &inbound, request, stream, spans };
            let reply = tokio::select! {
                reply = self.answer(&mut work) => Some(reply),
                () = cancelled.cancelled() => None,
            };
            if let Some(reply) = &reply {
                work.spans.end(reply.told());
            }
            session.streams.end(stream, reply.map(|reply| (reply.message, reply.bytes)));
            session.finish(&request.id);
        });
    }

    /// Handles a message that expects no response.
    pub(super) async fn accept(&self, session: &Arc<Session>, inbound: Arc<Inbound>) {
        match &inbound.message {
            Some(Message::Response(response)) => {
                session.answered(Response { id: response.id.clone(), outcome: response.outcome.clone() });
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

    async fn answer(&self, work: &mut Work<'_>) -> Reply {
        let request = work.request;
        if request.method == "tools/call" {
            // The one request that is decided on, and told as a call.
            let target = request.text("name").and_then(|name| work.session.endpoint.resolve(name));
            return self.calls.tool(work, target).await;
        }
        Reply::plain(&request.id, self.other(work).await)
    }

    /// A request that is no call.
    async fn other(&self, work: &mut Work<'_>) -> Result<Value, ErrorData> {
        let (method, namespaced) = (work.request.method.as_str(), work.session.endpoint.namespaced);
        match method {
            "ping" => Ok(json!({})),
            "initialize" => Err(ErrorData::invalid_request("Invalid Request: the session is initialized", None)),
            "prompts/get" => {
                let name = work.request.text("name").unwrap_or_default();
                let (index, name) = work.session.endpoint.resolve(name).ok_or_else(|| unknown("prompt"))?;
                self.govern(work, Subject { action: Action::GetPrompt, index, name }).await
            }
            "resources/read" | "resources/subscribe" => self.read(work).await,
            _ => match List::of(method) {
                Some(list) if namespaced => lists::joined(work, list, &self.calls).await,
                Some(list) => self.list(work, list).await,
                None if namespaced => self.route(work).await,
                None => self.forward(work, 0, work.request.params.clone()).await,
            },
        }
    }

    /// The one plugin's list, a page of it.
    async fn list(&self, work: &mut Work<'_>, list: List) -> Result<Value, ErrorData> {
        let mut result = self.forward(work, 0, work.request.params.clone()).await?;
        if let (Some(entries), Some(plugin)) = (result.get_mut(list.member()), work.plugin(0)) {
            lists::visible(entries, list, plugin.name(), work, &self.calls);
        }
        Ok(result)
    }

    /// A request that policy has no say in, at the endpoint of all plugins.
    async fn route(&self, work: &mut Work<'_>) -> Result<Value, ErrorData> {
        match work.request.method.as_str() {
            "resources/unsubscribe" => self.search(work, "resources").await,
            "completion/complete" => self.complete(work).await,
            "logging/setLevel" => self.set_level(work).await,
            _ => Err(ErrorData::new(ErrorCode::METHOD_NOT_FOUND, "there is no such method here", None)),
        }
    }

    /// A resource: from the first plugin that has it, and from which the caller may read it.
    async fn read(&self, work: &mut Work<'_>) -> Result<Value, ErrorData> {
        let uri = work.request.text("uri").unwrap_or_default();
        let mut refused = None;
        for index in having(work, "resources") {
            match self.govern(work, Subject { action: Action::ReadResource, index, name: uri }).await {
                Ok(result) => return Ok(result),
                Err(error) => refused = Some(error),
            }
        }
        Err(refused.unwrap_or_else(|| unknown("resource")))
    }

    async fn govern(&self, work: &mut Work<'_>, subject: Subject<'_>) -> Result<Value, ErrorData> {
        self.calls.governed(work, subject, None).await.map_err(Ending::into_error)
    }

    async fn complete(&self, work: &mut Work<'_>) -> Result<Value, ErrorData> {
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
    async fn search(&self, work: &mut Work<'_>, capability: &str) -> Result<Value, ErrorData> {
        let mut refused = None;
        for index in having(work, capability) {
            match self.forward(work, index, work.request.params.clone()).await {
                Ok(result) => return Ok(result),
                Err(error) => refused = Some(error),
            }
        }
        Err(refused.unwrap_or_else(|| ErrorData::new(ErrorCode::METHOD_NOT_FOUND, "no plugin has that", None)))
    }

    async fn set_level(&self, work: &mut Work<'_>) -> Result<Value, ErrorData> {
        work.session.set_log_level(work.request.params.clone());
        for (index, link) in work.session.open_links().await {
            if link.opened().pointer("/capabilities/logging").is_some() {
                self.forward(work, index, work.request.params.clone()).await?;
            }
        }
        Ok(json!({}))
    }

    /// The request to one plugin, with `params`.
    async fn forward(&self, work: &mut Work<'_>, index: usize, params: Option<Value>) -> Result<Value, ErrorData> {
        let plugin = work.plugin(index).ok_or_else(|| unknown("plugin"))?;
        work.spans.about(plugin.name(), Target::Unnamed);
        let fault = |fault: UpstreamFault| fault.to_error(plugin.name());
        let _turn = plugin.turn(plugin.timeout()).await.map_err(fault)?;
        work.ask(index, Target::Unnamed, params, plugin.timeout()).await.map_err(fault)
    }
}

/// The plugins that have a capability, or may have it.
fn having(work: &Work<'_>, capability: &str) -> Vec<usize> {
    let pointer = format!("/capabilities/{capability}");
    let plugins = work.session.endpoint.plugins.iter().enumerate();
    let has =
        plugins.filter(|(_, plugin)| plugin.health().opened.is_none_or(|opened| opened.pointer(&pointer).is_some()));
    has.map(|(index, _)| index).collect()
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
