//! Tasks within a call of a client of the other generation: the gateway waits for the task, and its result is the
//! call's.
//!
//! Only a tool that cannot run otherwise is called so: of a modern server one that refuses to, of an old server one
//! that is listed so. What the task asks for is asked of the client like any other question. A call that ends before
//! its task (cancelled, overdue) cancels the task.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::HeaderMap;
use tokio::time::{sleep, timeout};

use super::answers::answers;
use super::trip::Trip;
use super::work::Work;
use super::{Dispatcher, MAX_ROUNDS, own_ask};
use crate::gateway::call::bridge::InputRequired;
use crate::gateway::call::error::CallError;
use crate::gateway::call::outgoing::Meta;
use crate::gateway::call::scope::Scope;
use crate::gateway::message::{Json, Notification, Object, Request, RpcError};
use crate::gateway::pass::Pass;
use crate::gateway::protocol::Generation;
use crate::gateway::upstream::{Ask, Lease, Plugin, Upcalls, UpstreamError, UpstreamSession, next_id};
use crate::telemetry::w3c;

/// How long to wait before a task is asked for again: unless its server says, at least, and at most.
const POLL_AFTER: Duration = Duration::from_secs(1);
const MIN_POLL: Duration = Duration::from_millis(50);
const MAX_POLL: Duration = Duration::from_secs(10);

/// How long cancelling a task may take.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(10);

impl Dispatcher {
    /// Waits for the end of a task that a call became; gives the call's result.
    pub(super) async fn drive(
        &self,
        work: &Work,
        trip: &Trip<'_>,
        scope: &Arc<Scope>,
        created: Json,
    ) -> Result<Json, CallError> {
        let not_mcp = || trip.failed(UpstreamError::NotMcp);
        let mut about = Object::default();
        about.add("taskId", created.get("taskId").filter(|id| id.as_text().is_some()).ok_or_else(not_mcp)?);
        let mut task = Driven::new(work, trip, &about);
        let (mut state, mut asked) = (created, 0);
        loop {
            let status = state.get("status");
            match status.as_ref().and_then(Json::as_text).as_deref() {
                Some("completed") => {
                    task.has_ended = true;
                    return state.get("result").filter(Json::is_object).ok_or_else(not_mcp);
                }
                Some("failed") => {
                    task.has_ended = true;
                    return Err(trip.failed(UpstreamError::Refused(error_of(&state))));
                }
                Some("cancelled") => {
                    task.has_ended = true;
                    return Err(trip.failed(UpstreamError::Refused(RpcError::internal("the task was cancelled"))));
                }
                Some("input_required") => {
                    asked += 1;
                    if asked > MAX_ROUNDS {
                        return Err(CallError::unending(trip.plugin.name()));
                    }
                    let asks = InputRequired::read(&state).ok_or_else(not_mcp)?;
                    let mut update = about.clone();
                    update.add("inputResponses", answers(scope, asks.requests, not_mcp).await?.to_json());
                    scope.renumber(next_id());
                    self.exchange_for(work, trip, scope, ("tasks/update", &update, false)).await?;
                }
                Some("working") => {}
                _ => return Err(not_mcp()),
            }
            let after = state.get("pollIntervalMs").and_then(|after| after.read()).map(Duration::from_millis);
            sleep(after.unwrap_or(POLL_AFTER).clamp(MIN_POLL, MAX_POLL)).await;
            scope.renumber(next_id());
            state = self.exchange_for(work, trip, scope, ("tasks/get", &about, false)).await?;
        }
    }
}

/// Why a task failed, as its server says.
fn error_of(state: &Json) -> RpcError {
    let error = state.get("error");
    let code = error.as_ref().and_then(|error| error.get("code")?.read());
    let message = error.as_ref().and_then(|error| Some(error.get("message")?.as_text()?.into_owned()));
    RpcError::new(code.unwrap_or(-32603), message.unwrap_or_else(|| "the task failed".to_owned()))
}

/// A task that is waited for; cancelled, if it has not ended by itself.
struct Driven {
    plugin: Arc<Plugin>,
    caller: Option<Arc<str>>,
    cancel: Json,
    has_ended: bool,
}

impl Driven {
    fn new(work: &Work, trip: &Trip<'_>, about: &Object) -> Self {
        let (mut cancel, trace) = (about.clone(), w3c::Outbound::default());
        let server = Generation::Modern;
        Meta { client: &work.client, server, trace: &trace, progress: None, log_level: None, tasks: true }
            .put(&mut cancel);
        let (plugin, caller) = (Arc::clone(trip.plugin), work.known_caller());
        Self { plugin, caller, cancel: cancel.to_json(), has_ended: false }
    }
}

impl Drop for Driven {
    fn drop(&mut self) {
        if self.has_ended || tokio::runtime::Handle::try_current().is_err() {
            return;
        }
        let (plugin, caller) = (Arc::clone(&self.plugin), self.caller.take());
        let ask = own_ask("tasks/cancel", self.cancel.clone(), Arc::new(Nobody));
        tokio::spawn(async move {
            // A server that does not take it lets the task run on.
            let _ = timeout(CANCEL_TIMEOUT, plugin.request(caller.as_deref(), ask)).await;
        });
    }
}

/// The result of a task that a call at an old server became. The server answers once the task has ended, and asks
/// meanwhile.
pub(super) async fn result_of_task(
    lease: &Lease,
    created: Json,
    (pass, upcalls): (Pass, Arc<dyn Upcalls>),
) -> Result<Json, UpstreamError> {
    let Some(id) = created.at(&["task", "taskId"]).filter(|id| id.as_text().is_some()) else { return Ok(created) };
    let mut about = Object::default();
    about.add("taskId", id);
    let about = about.to_json();
    let mut task = OldTask { session: lease.session(), about: about.clone(), has_ended: false };
    let method = "tasks/result".into();
    let ask = Ask { id: next_id(), method, params: Some(about), headers: HeaderMap::new(), pass, upcalls };
    let result = lease.ask(ask).await;
    task.has_ended = matches!(result, Ok(_) | Err(UpstreamError::Refused(_)));
    let Some(mut object) = result.as_ref().ok().and_then(Json::object) else { return result };
    // The task is not the client's.
    if let Some(mut meta) = object.get("_meta").and_then(Json::object) {
        meta.take("io.modelcontextprotocol/related-task");
        object.set("_meta", meta.to_json());
    }
    Ok(object.to_json())
}

/// A task of an old server that is waited for; cancelled, if it has not ended by itself.
struct OldTask {
    session: Arc<UpstreamSession>,
    about: Json,
    has_ended: bool,
}

impl Drop for OldTask {
    fn drop(&mut self) {
        if self.has_ended || tokio::runtime::Handle::try_current().is_err() {
            return;
        }
        let session = Arc::clone(&self.session);
        let ask = own_ask("tasks/cancel", self.about.clone(), Arc::new(Nobody));
        tokio::spawn(async move {
            // A server that does not take it lets the task run on.
            let _ = timeout(CANCEL_TIMEOUT, session.ask(ask)).await;
        });
    }
}

struct Nobody;

#[async_trait]
impl Upcalls for Nobody {
    async fn asked(&self, _: Request) -> Result<Json, RpcError> {
        Err(RpcError::method_not_found("nobody is asked for the sake of this request"))
    }

    async fn notified(&self, _: Notification) {}
}
