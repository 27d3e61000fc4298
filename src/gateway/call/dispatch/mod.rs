//! A request that policy has a say in: decided on, put on the record, sent in the generation that its server speaks,
//! and its result brought back under the permit's obligations.
//!
//! | client | server | how | module |
//! |---|---|---|---|
//! | old | old | on the upstream session of the client's session | `to_old` |
//! | old | modern | one request after the other: what the server asks for is asked of the client in between | `old_to_modern` |
//! | modern | old | on a session of the pool, in a flight that may wait for the client (see `park`) | `modern_to_old` |
//! | modern | modern | one request; what it asks for goes on to the client with the server's state sealed into the gateway's | `to_modern` |
//!
//! All four begin alike (`trip`); requests about a task are in `of_task`, tasks that the gateway waits for in `driven`,
//! what is to be done in `work`.
//!
//! Where the permit obliges to it, the parameters are kept as they are first sent, before they are, and the result or
//! the error as the client gets it, before it does (see `capture`). Each request of a call that waits for its client is
//! kept for itself.
//!
//! Dropping the future cancels the request at its server.

mod answers;
mod driven;
mod modern_to_old;
mod of_task;
mod old_to_modern;
mod to_modern;
mod to_old;
mod trip;
mod work;

use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use tokio::time::{Instant, timeout};

use self::trip::{Answered, Retry, Trip};
pub(crate) use self::work::{Job, JobKind, Work, is_name};
use super::bridge;
use super::calls::{By, Calls, Permit, tree};
use super::error::CallError;
use super::park::Parks;
use super::replay::Replays;
use super::seal::{Binding, digest};
use super::subject::Subject;
use super::tasks::Tasks;
use super::telemetry::{CallRecord, Ties};
use crate::gateway::capture::{CallFacts, Capture, Capturing};
use crate::gateway::message::Json;
use crate::gateway::pass::Pass;
use crate::gateway::policy::SubjectKind;
use crate::gateway::protocol::{Generation, TASKS_EXTENSION};
use crate::gateway::traces::Failure;
use crate::gateway::upstream::{Ask, ListKind, Plugin, Upcalls, UpstreamError, next_id};
use crate::payload;

/// How often a server may ask for more before its call is given up.
const MAX_ROUNDS: u32 = 8;

/// How long a plugin's list is waited for, to know whether a name is one of it.
const LIST_TIMEOUT: Duration = Duration::from_secs(2);

/// Decides on requests, records the decisions and sends what is permitted.
pub(crate) struct Dispatcher {
    pub(crate) calls: Arc<Calls>,
    pub(crate) capture: Capture,
    pub(crate) parks: Arc<Parks>,
    pub(crate) tasks: Tasks,
    pub(crate) replays: Replays,
}

impl Dispatcher {
    /// Does what a request asks for. `server` becomes the generation of the server that was spoken to.
    ///
    /// # Errors
    /// Why it has no result.
    pub(crate) async fn run(
        &self,
        work: &mut Work,
        mut job: Job,
        mut record: Option<&mut CallRecord>,
        server: &mut Option<Generation>,
    ) -> Result<Json, CallError> {
        let plugin = Arc::clone(work.plugin(job.subject.index)?);
        let retry = self.retry(work, &job, &plugin)?;
        let mut ties = work.ties();
        ties.first_invocation_id = retry.state.as_ref().map(|state| state.first);
        let permit = self.decide(work, &job, &plugin, &ties, record.as_deref_mut()).await?;
        // A call that waited for an answer has been counted, once.
        let goes_on = retry.state.is_some() && !retry.is_repeated;
        let _running = self.calls.rate(&work.inbound, plugin.name(), &job.subject, goes_on)?;
        self.settle_name(work, &plugin, &mut job.subject).await;
        if let Some(record) = record.as_deref_mut() {
            record.label(job.subject.label());
        }
        work.spans.about(plugin.name(), job.subject.target());
        let obligations = Arc::clone(&permit.verdict.obligations);
        if obligations.redacts_arguments()
            && let Some(arguments) = &job.arguments
        {
            job.params.set("arguments", obligations.redact_arguments(arguments));
        }
        let patience = obligations.timeout().map_or(plugin.timeout(), |own| own.min(plugin.timeout()));
        let waiting = Instant::now();
        let held = self.calls.turns_within(&plugin, &work.inbound.owner, patience).await?;
        if let Some(record) = record.as_deref_mut() {
            record.started(waiting.elapsed());
        }
        let left = patience.saturating_sub(waiting.elapsed());
        let generation = plugin.generation(work.client.generation, left).await;
        let generation = generation.map_err(|error| CallError::upstream(&error, plugin.name()))?;
        *server = Some(generation);
        let patience = patience.saturating_sub(waiting.elapsed());
        let started_at = record.map_or_else(|| self.calls.telemetry.now(), |record| record.started_at());
        let capturing = self.capture.begin(&CallFacts {
            invocation_id: ties.invocation_id,
            plugin: plugin.name(),
            kind: captured_kind(job.subject.kind),
            tool: &job.subject.captured_as(),
            started_at,
            obligations: &obligations,
        });
        let capturing = capturing.as_ref();
        let trip = Trip { plugin: &plugin, job: &job, permit: &permit, ties, patience, retry, capturing, tasks: false };
        let outcome = match (work.client.generation, generation) {
            (Generation::Old, Generation::Old) => Box::pin(self.old_to_old(work, trip, held)).await,
            (Generation::Old, Generation::Modern) => Box::pin(self.old_to_modern(work, trip, held)).await,
            (Generation::Modern, Generation::Old) => Box::pin(self.modern_to_old(work, trip, held)).await,
            (Generation::Modern, Generation::Modern) => Box::pin(self.modern_to_modern(work, trip, held)).await,
        };
        let ended = self.as_answered(work, &job, &permit, outcome, generation);
        let uri = work.params.text("uri").filter(|_| job.kind != JobKind::Call);
        keep_answer(capturing, work, &ended, (generation, uri.as_deref())).await?;
        ended
    }

    /// What the client gets of what came back, under the permit's obligations.
    fn as_answered(
        &self,
        work: &Work,
        job: &Job,
        permit: &Permit,
        outcome: Result<Answered, CallError>,
        generation: Generation,
    ) -> Result<Json, CallError> {
        let (plugin, obligations) = (work.plugin(job.subject.index)?, &permit.verdict.obligations);
        let redacts = obligations.redacts_result();
        let result = match outcome.map_err(|error| if redacts { error.without_words() } else { error })? {
            Answered::Asks(asks) => return Ok(asks),
            Answered::Result(result) => result,
        };
        if generation == Generation::Modern && is_task(&result) && !takes_tasks(work) {
            // A client that declared no tasks could do nothing with one.
            return Err(CallError::upstream(&UpstreamError::NotMcp, plugin.name()));
        }
        let result = if redacts { obligations.redact_result(&result) } else { result };
        let most = plugin.max_result_bytes();
        let limit = obligations.max_result_bytes().map_or(most, |own| own.min(most));
        if result.len() as u64 > limit {
            return Err(CallError::upstream(&UpstreamError::TooLarge { limit }, plugin.name()));
        }
        if let Some(session) = &work.session {
            for uri in bridge::links(&result) {
                session.remember_link(job.subject.index, &uri);
            }
        }
        let result = if job.kind == JobKind::Call {
            let prefix = work.endpoint.namespaced.then(|| plugin.name());
            self.tasks.remember(work.owner(), (&job.subject, &permit.verdict), prefix, result)
        } else {
            result
        };
        Ok(bridge::result(result, &work.client, generation, job.kind.shape()))
    }

    /// Decides, and puts the decision on the record.
    async fn decide(
        &self,
        work: &Work,
        job: &Job,
        plugin: &Arc<Plugin>,
        ties: &Ties,
        record: Option<&mut CallRecord>,
    ) -> Result<Permit, CallError> {
        let by = By { inbound: &work.inbound, client: &work.client, ties };
        let arguments = if self.calls.policy.looks_at_arguments() { tree(job.arguments.as_ref())? } else { None };
        let details: Vec<(&'static str, &str)> =
            job.details.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let span = work.spans.policy();
        let (verdict, took) = self.calls.decide(by, plugin.name(), &job.subject, arguments.as_ref(), &details);
        span.decided(verdict.decision, &verdict.policy_ids, &verdict.obligations.names());
        if let Some(record) = record {
            record.decided(verdict.decision, took);
        }
        self.calls.permit(by, plugin.name(), &job.subject, verdict, &details).await
    }

    /// Reads what a request brings of an earlier one, before anything else counts.
    fn retry(&self, work: &Work, job: &Job, plugin: &Plugin) -> Result<Retry, CallError> {
        if !work.client.is_modern() || !job.kind.may_ask() {
            return Ok(Retry::default());
        }
        let responses = match work.params.get("inputResponses") {
            None => None,
            Some(responses) => {
                let responses = responses.object().filter(|all| all.iter().all(|(_, answer)| answer.is_object()));
                Some(responses.ok_or_else(|| CallError::invalid("inputResponses is an object of objects"))?)
            }
        };
        let sealed = match work.params.get("requestState") {
            None => return Ok(Retry { responses, ..Retry::default() }),
            Some(state) => state.as_text().ok_or_else(|| CallError::invalid("requestState is a text"))?,
        };
        let binding = self.binding(work, plugin)?;
        let state = self.calls.sealer.open(&sealed, &binding)?;
        let is_repeated = !self.replays.is_first(&sealed, self.calls.limits.answer);
        Ok(Retry { binding: Some(binding), state: Some(state), responses, is_repeated })
    }

    /// What the state of a call is bound to.
    fn binding(&self, work: &Work, plugin: &Plugin) -> Result<Binding, CallError> {
        Ok(Binding {
            caller: work.inbound.owner.to_string(),
            plugin: plugin.name().to_owned(),
            method: work.request.method.to_string(),
            params: digest(&work.params)?,
        })
    }

    /// Finds out whether the plugin lists a name, where nothing it lists is known yet.
    async fn settle_name(&self, work: &Work, plugin: &Arc<Plugin>, subject: &mut Subject) {
        let list = match subject.kind {
            SubjectKind::Tool => ListKind::Tools,
            SubjectKind::Prompt => ListKind::Prompts,
            SubjectKind::Resource | SubjectKind::Plugin => return,
        };
        if subject.listed {
            return;
        }
        if plugin.listed(list).is_empty() {
            // One whose list cannot be had has names that nobody knows.
            let _ = timeout(LIST_TIMEOUT, plugin.list(list, &work.view(subject.index))).await;
        }
        subject.listed = plugin.is_listed(list, &subject.name);
    }
}

/// A request of the gateway's own on a session.
pub(crate) fn own_ask(method: &str, params: Json, upcalls: Arc<dyn Upcalls>) -> Ask {
    let (id, headers) = (next_id(), HeaderMap::new());
    Ask { id, method: method.into(), params: Some(params), headers, upcalls, pass: Pass::own() }
}

fn captured_kind(kind: SubjectKind) -> payload::Kind {
    match kind {
        SubjectKind::Resource => payload::Kind::Resource,
        SubjectKind::Prompt => payload::Kind::Prompt,
        SubjectKind::Tool | SubjectKind::Plugin => payload::Kind::Tool,
    }
}

/// Whether a modern result is a task.
fn is_task(result: &Json) -> bool {
    result.get("resultType").is_some_and(|kind| kind.as_text().as_deref() == Some("task"))
}

/// Whether the client declared that it takes tasks.
fn takes_tasks(work: &Work) -> bool {
    work.client.is_modern() && work.client.declares(&["extensions", TASKS_EXTENSION])
}

/// Keeps a client's answer, where it is to be kept. `server`: its generation; and the URI of the resource that was
/// asked for.
///
/// # Errors
/// When it could not be kept and had to be.
pub(crate) async fn keep_answer(
    capturing: Option<&Capturing>,
    work: &Work,
    ended: &Result<Json, CallError>,
    (server, uri): (Generation, Option<&str>),
) -> Result<(), CallError> {
    let Some(capturing) = capturing else { return Ok(()) };
    let kept = match ended {
        Ok(result) => capturing.response(result).await,
        // Nothing was sent.
        Err(error) if error.is_not_captured() => Ok(()),
        Err(error) => {
            let error = error.clone().into_error(work.client.generation, Some(server), uri);
            capturing.response(&error.to_json()).await
        }
    };
    kept.map_err(|_| CallError::not_captured())
}

/// How a request failed, as far as a span may say.
fn failure(outcome: &Result<Json, UpstreamError>) -> Option<Failure> {
    match outcome {
        Ok(result) if super::telemetry::is_error(result) => Some(Failure::Tool),
        Ok(_) => None,
        Err(UpstreamError::Refused(error)) => Some(Failure::Rpc(error.code)),
        Err(error) => Some(Failure::Kind(error.kind())),
    }
}
