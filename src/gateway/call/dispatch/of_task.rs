//! Requests about a task, to the server that works on it.

use std::sync::Arc;

use super::Dispatcher;
use super::trip::{Answered, Retry, Trip};
use super::work::{Job, JobKind, Work};
use crate::gateway::call::bridge::MAX_INPUTS;
use crate::gateway::call::calls::Permit;
use crate::gateway::call::error::CallError;
use crate::gateway::call::scope::Scope;
use crate::gateway::call::table;
use crate::gateway::call::tasks::Task;
use crate::gateway::capture::{CallFacts, Capturing};
use crate::gateway::message::{Json, Object};
use crate::gateway::protocol::Generation;
use crate::gateway::upstream::{Plugin, UpstreamError};
use crate::payload;

impl Dispatcher {
    /// What is kept of a request about a task.
    pub(crate) fn capture_of_task(&self, work: &Work, plugin: &Plugin, task: &Task) -> Option<Capturing> {
        self.capture.begin(&CallFacts {
            invocation_id: work.inbound.invocation_id,
            plugin: plugin.name(),
            kind: payload::Kind::Task,
            tool: &task.subject.captured_as(),
            started_at: self.calls.telemetry.now(),
            obligations: &task.verdict.obligations,
        })
    }

    /// A request about a task.
    ///
    /// # Errors
    /// Why there is no answer.
    pub(crate) async fn of_task(
        &self,
        work: &mut Work,
        plugin: &Arc<Plugin>,
        (task, capturing): (&Task, Option<&Capturing>),
        permit: &Permit,
        server: &mut Option<Generation>,
    ) -> Result<Json, CallError> {
        let generation = work.client.generation;
        *server = Some(generation);
        let own = task.verdict.obligations.timeout();
        let patience = own.map_or(plugin.timeout(), |own| own.min(plugin.timeout()));
        let held = self.calls.turns_within(plugin, &work.inbound.owner, patience).await?;
        let mut params = work.params.clone();
        params.set("taskId", Json::text(&task.id));
        if let Some(responses) = params.get("inputResponses").cloned() {
            // Only what was asked of it is answered.
            let mut responses = responses.object().unwrap_or_default();
            responses.retain(|key, _| task.asked.iter().any(|known| **known == *key));
            params.set("inputResponses", responses.to_json());
        }
        let job =
            Job { kind: JobKind::Method, subject: task.subject.clone(), params, arguments: None, details: Vec::new() };
        let (ties, retry) = (work.ties(), Retry::default());
        let trip = Trip { plugin, job: &job, permit, ties, patience, retry, capturing, tasks: false };
        if generation == Generation::Old {
            return match self.old_to_old(work, trip, held).await? {
                Answered::Result(result) | Answered::Asks(result) => Ok(result),
            };
        }
        let (scope, _) = self.scope(work, &trip, held, false);
        let result = self.exchange(work, &trip, &scope, (&job.params, true)).await?;
        scope.rest();
        self.permitted(work, task, &scope, result).await.ok_or_else(|| trip.failed(UpstreamError::NotMcp))
    }

    /// What a modern server says of a task, with the questions that its client may be asked. `None`: it asks too much.
    async fn permitted(&self, work: &Work, task: &Task, scope: &Scope, result: Json) -> Option<Json> {
        let Some(requests) = result.get("inputRequests") else { return Some(result) };
        let requests = requests.has_at_most(MAX_INPUTS).then(|| requests.object()).flatten()?;
        let mut object = result.object()?;
        let (mut permitted, mut asked) = (Object::default(), Vec::new());
        for (key, request) in requests.iter() {
            let method = request.get("method");
            let method = method.as_ref().and_then(Json::as_text).unwrap_or_default();
            let Some(question) = table::server_request(&method) else { continue };
            let params = request.get("params");
            if !matches!(scope.may_ask(question, &method, params.as_ref()).await, Ok(None)) {
                continue;
            }
            let mut request = request.object().unwrap_or_default();
            if let Some(params) = scope.worded(question, params) {
                request.set("params", params);
            }
            permitted.add(key, request.to_json());
            asked.push(key.into());
        }
        self.tasks.asks(work.owner(), &task.client_id, asked);
        object.set("inputRequests", permitted.to_json());
        Some(object.to_json())
    }
}
