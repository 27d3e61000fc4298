//! A request that policy has a say in: decided on, put on the record, sent in the generation that its server speaks, and its result
//! brought back under the permit's obligations.
//!
//! | client | server | how |
//! |---|---|---|
//! | old | old | on the upstream session of the client's session |
//! | old | modern | one request after the other: what the server asks for is asked of the client in between |
//! | modern | old | on a session of the pool, in a flight that may wait for the client (see `park`) |
//! | modern | modern | one request; what it asks for goes on to the client with the server's state sealed into the gateway's |
//!
//! Where the permit obliges to it, the parameters are kept as they are first sent, before they are, and the result or the error as the client gets
//! it, before it does (see `capture`). Each request of a call that waits for its client is kept for itself.
//!
//! Dropping the future cancels the request at its server.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;
use http::HeaderMap;
use rand::RngExt;
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};

use super::bridge::{self, Input, InputRequired};
use super::calls::{By, Calls, Permit, tree};
use super::client::{Client, ClientSession, Endpoint, Inbound, Outlet};
use super::error::CallError;
use super::outgoing::{self, Meta};
use super::park::{Flight, Landed, Parks};
use super::scope::{Leg, Scope, ScopeParts, severity};
use super::seal::{Binding, State, Waiting, digest};
use super::subject::{MAX_NAME, Subject};
use super::table;
use super::tasks::{Owner, Tasks};
use super::telemetry::{CallRecord, Ties, is_input_required};
use crate::gateway::capture::{CallFacts, Capture, Capturing};
use crate::gateway::message::{Json, Notification, Object, Request, RpcError};
use crate::gateway::policy::SubjectKind;
use crate::gateway::protocol::{Generation, LATEST_OLD, META_LOG_LEVEL, PROGRESS_TOKEN};
use crate::gateway::traces::{Failure, RequestSpans};
use crate::gateway::upstream::{Ask, ListKind, Plugin, PoolKey, Upcalls, UpstreamError, View, next_id};
use crate::payload;

/// How often a server may ask for more before its call is given up.
const MAX_ROUNDS: u32 = 8;

/// How long a plugin's list is waited for, to know whether a name is one of it.
const LIST_PATIENCE: Duration = Duration::from_secs(2);

/// A request, and whose it is.
pub(crate) struct Work {
    pub(crate) inbound: Arc<Inbound>,
    pub(crate) client: Arc<Client>,
    pub(crate) endpoint: Endpoint,
    /// The session of a client of an old version.
    pub(crate) session: Option<Arc<dyn ClientSession>>,
    pub(crate) request: Request,
    /// Its parameters.
    pub(crate) params: Object,
    /// Where what comes before its answer goes.
    pub(crate) outlet: Arc<dyn Outlet>,
    pub(crate) spans: RequestSpans,
}

impl Work {
    pub(crate) fn plugin(&self, index: usize) -> Result<&Arc<Plugin>, CallError> {
        self.endpoint.plugins.get(index).ok_or_else(|| CallError::unknown("plugin"))
    }

    /// What ties its records together.
    pub(crate) fn ties(&self) -> Ties {
        Ties {
            request_id: Arc::clone(&self.inbound.request_id),
            trace_id: self.spans.trace_id(),
            span_id: self.spans.span_id(),
            invocation_id: self.inbound.invocation_id,
            first_invocation_id: None,
        }
    }

    /// The caller, where it is known by name: what is kept by caller is kept for nobody else.
    pub(crate) fn known_caller(&self) -> Option<Arc<str>> {
        self.inbound.known.then(|| Arc::clone(&self.inbound.owner))
    }

    /// Whose tasks it may ask for.
    pub(crate) fn owner(&self) -> Owner<'_> {
        Owner { caller: &self.inbound.owner, session: self.session.as_ref().map(|session| session.id()) }
    }

    /// What the lists of a plugin may depend on, for this client.
    pub(crate) fn view(&self, index: usize) -> View {
        View {
            client: self.client.generation,
            version: self.client.version.clone(),
            capabilities: self.client.capabilities.clone(),
            client_info: self.client.info.clone(),
            caller: self.known_caller(),
            session: self.session.as_ref().and_then(|session| session.open_upstream(index)),
            meta: Json::empty_object(),
            headers: HeaderMap::new(),
        }
    }

    /// What belongs to the request goes here.
    fn leg(&self) -> Leg {
        let meta = self.params.get("_meta").and_then(Json::object).unwrap_or_default();
        let level = self.client.is_modern().then(|| {
            let level = meta.text(META_LOG_LEVEL).and_then(|level| severity(&level));
            // Without a level no log message is wanted.
            level.unwrap_or(usize::MAX)
        });
        Leg { outlet: Arc::clone(&self.outlet), token: meta.get(PROGRESS_TOKEN).cloned(), level }
    }
}

/// What a request does, as far as its way depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum JobKind {
    Call,
    Prompt,
    Read,
    Subscribe,
    Complete,
    Method,
}

impl JobKind {
    /// Whether its result may ask for more.
    fn may_ask(self) -> bool {
        matches!(self, Self::Call | Self::Prompt | Self::Read)
    }

    fn shape(self) -> bridge::Kind {
        if self == Self::Read { bridge::Kind::Cacheable } else { bridge::Kind::Plain }
    }
}

/// What is to be done with a request.
pub(crate) struct Job {
    pub(crate) kind: JobKind,
    pub(crate) subject: Subject,
    /// The parameters, with the plugin's own names.
    pub(crate) params: Object,
    /// The arguments, an object.
    pub(crate) arguments: Option<Json>,
    pub(crate) details: Vec<(&'static str, String)>,
}

/// What comes back of a request.
enum Answered {
    /// A result of the server's.
    Result(Json),
    /// The gateway's own result, which asks a modern client for more.
    Asks(Json),
}

/// A request that was decided on, on its way.
struct Trip<'a> {
    plugin: &'a Arc<Plugin>,
    job: &'a Job,
    permit: &'a Permit,
    ties: Ties,
    /// How long the server may work.
    patience: Duration,
    retry: Retry,
    /// What of it is kept.
    capturing: Option<&'a Capturing>,
}

impl Trip<'_> {
    /// Keeps the parameters that are about to be sent, where they are to be kept.
    async fn keep(&self, params: Option<&Json>) -> Result<(), CallError> {
        let Some(capturing) = self.capturing else { return Ok(()) };
        capturing.request(params).await.map_err(|_| CallError::not_captured())
    }
}

/// What a request brings of an earlier one.
#[derive(Default)]
struct Retry {
    binding: Option<Binding>,
    state: Option<State>,
    responses: Option<Object>,
}

/// See the module's doc.
pub(crate) struct Dispatcher {
    pub(crate) calls: Arc<Calls>,
    pub(crate) capture: Capture,
    pub(crate) parks: Arc<Parks>,
    pub(crate) tasks: Tasks,
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
        // A call that waited for an answer has been counted.
        let _running = match retry.state {
            None => Some(self.calls.rate(&work.inbound, plugin.name(), job.subject.label())?),
            Some(_) => None,
        };
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
        let upstream = |error: UpstreamError| CallError::upstream(&error, plugin.name());
        let left = patience.saturating_sub(waiting.elapsed());
        let generation = plugin.generation(work.client.generation, left).await.map_err(upstream)?;
        *server = Some(generation);
        let patience = patience.saturating_sub(waiting.elapsed());
        let started_at = record.map_or_else(|| self.calls.telemetry.now(), |record| record.started_at());
        let kind = match job.subject.kind {
            SubjectKind::Resource => payload::Kind::Resource,
            SubjectKind::Prompt => payload::Kind::Prompt,
            SubjectKind::Tool | SubjectKind::Plugin => payload::Kind::Tool,
        };
        let capturing = self.capture.begin(&CallFacts {
            invocation_id: ties.invocation_id,
            plugin: plugin.name(),
            kind,
            tool: &job.subject.captured_as(),
            started_at,
            obligations: &obligations,
        });
        let capturing = capturing.as_ref();
        let trip = Trip { plugin: &plugin, job: &job, permit: &permit, ties, patience, retry, capturing };
        let outcome = match (work.client.generation, generation) {
            (Generation::Old, Generation::Old) => Box::pin(self.old_to_old(work, trip, held)).await,
            (Generation::Old, Generation::Modern) => Box::pin(self.old_to_modern(work, trip, held)).await,
            (Generation::Modern, Generation::Old) => Box::pin(self.modern_to_old(work, trip, held)).await,
            (Generation::Modern, Generation::Modern) => Box::pin(self.modern_to_modern(work, trip, held)).await,
        };
        let ended = self.told(work, &job, &permit, outcome, generation);
        let uri = work.params.text("uri").filter(|_| job.kind != JobKind::Call);
        keep_answer(capturing, work, &ended, (generation, uri.as_deref())).await?;
        ended
    }

    /// What the client is told of what came back, under the permit's obligations.
    fn told(
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
        let state = match work.params.get("requestState") {
            None => return Ok(Retry { responses, ..Retry::default() }),
            Some(state) => state.as_text().ok_or_else(|| CallError::invalid("requestState is a text"))?,
        };
        let binding = self.binding(work, plugin)?;
        let state = self.calls.sealer.open(&state, &binding)?;
        Ok(Retry { binding: Some(binding), state: Some(state), responses })
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
            let _ = timeout(LIST_PATIENCE, plugin.list(list, &work.view(subject.index))).await;
        }
        subject.listed = plugin.is_listed(list, &subject.name);
    }

    /// A scope for a trip. `parks`: its client cannot be asked.
    fn scope(
        &self,
        work: &Work,
        trip: &Trip<'_>,
        held: super::turns::Held,
        parks: bool,
    ) -> (Arc<Scope>, Option<tokio::sync::mpsc::Receiver<super::scope::Asked>>) {
        let parts = ScopeParts {
            calls: Arc::clone(&self.calls),
            inbound: Arc::clone(&work.inbound),
            client: Arc::clone(&work.client),
            plugin: Arc::clone(trip.plugin),
            subject: trip.job.subject.clone(),
            verdict: trip.permit.verdict.clone(),
            namespaced: work.endpoint.namespaced,
            id: next_id(),
            ties: trip.ties.clone(),
            leg: work.leg(),
            turns: Some(held),
        };
        Scope::new(parts, parks)
    }

    /// The request to the server, with parameters of its generation.
    fn ask(
        &self,
        work: &Work,
        trip: &Trip<'_>,
        scope: &Arc<Scope>,
        (server, params): (Generation, &Object),
        trace: &crate::telemetry::w3c::Outbound,
    ) -> Ask {
        let mut params = params.clone();
        let wants_progress = work.params.get("_meta").is_some_and(|meta| meta.get(PROGRESS_TOKEN).is_some());
        let id = scope.id();
        let level = work.session.as_ref().and_then(|session| session.log_level());
        let progress = wants_progress.then_some(id);
        Meta { client: &work.client, server, trace, progress, log_level: level.as_ref() }.put(&mut params);
        let mut headers = HeaderMap::new();
        trace.put_headers(&mut headers);
        let params = (!params.is_empty() || work.request.params.is_some()).then(|| params.to_json());
        let upcalls: Arc<dyn Upcalls> = Arc::clone(scope) as Arc<dyn Upcalls>;
        Ask { id, method: work.request.method.clone(), params, headers, upcalls, pass: trip.permit.pass() }
    }

    async fn old_to_old(
        &self,
        work: &mut Work,
        trip: Trip<'_>,
        held: super::turns::Held,
    ) -> Result<Answered, CallError> {
        let plugin = trip.plugin;
        let upstream = |error: UpstreamError| CallError::upstream(&error, plugin.name());
        let (scope, _) = self.scope(work, &trip, held, false);
        let index = trip.job.subject.index;
        let Some(client) = work.session.clone() else { return Err(upstream(UpstreamError::Broken)) };
        let span = work.spans.dispatch(plugin.name(), trip.job.subject.target(), &plugin.described());
        let ask = self.ask(work, &trip, &scope, (Generation::Old, &trip.job.params), span.outbound());
        trip.keep(ask.params.as_ref()).await?;
        let _redacting = scope.redacts().then(|| Redacting::begin(&client, index));
        let asking = async {
            let session = client.upstream(index).await?;
            // What the server asks may come on a stream of its own.
            let _stream = work.client.answers_questions().then(|| session.want_stream());
            session.ask(ask).await
        };
        let outcome = tokio::select! {
            outcome = asking => outcome,
            () = scope.overdue(trip.patience) => Err(UpstreamError::TimedOut { after: trip.patience }),
        };
        span.end(failure(&outcome));
        scope.rest();
        match outcome.map_err(upstream) {
            Ok(result) => {
                let uri = &trip.job.subject.name;
                if trip.job.kind == JobKind::Subscribe {
                    client.subscribed(index, uri, true);
                }
                Ok(Answered::Result(result))
            }
            Err(error) => Err(self.elicitations(&scope, error).await),
        }
    }

    /// An old server's error that asks its client to open pages: as it is where policy permits each of them, else without them.
    async fn elicitations(&self, scope: &Arc<Scope>, error: CallError) -> CallError {
        let Some(asked) = error.elicitations() else { return error };
        for one in asked.items().unwrap_or_default() {
            let may = scope.may_ask(table::Question::Elicit, "elicitation/create", Some(&one)).await;
            if !matches!(may, Ok(None)) {
                return error.without_data();
            }
            scope.worded(table::Question::Elicit, Some(one));
        }
        error
    }

    async fn old_to_modern(
        &self,
        work: &mut Work,
        trip: Trip<'_>,
        held: super::turns::Held,
    ) -> Result<Answered, CallError> {
        let plugin = trip.plugin;
        let upstream = |error: UpstreamError| CallError::upstream(&error, plugin.name());
        let (scope, _) = self.scope(work, &trip, held, false);
        let subject = &trip.job.subject;
        if trip.job.kind == JobKind::Subscribe {
            let Some(client) = &work.session else { return Err(upstream(UpstreamError::Broken)) };
            trip.keep(Some(&trip.job.params.to_json())).await?;
            let listening = timeout(trip.patience, client.listen(subject.index, &subject.name));
            let after = trip.patience;
            let granted = listening.await.unwrap_or(Err(UpstreamError::TimedOut { after })).map_err(upstream)?;
            scope.rest();
            return if granted {
                Ok(Answered::Result(Json::empty_object()))
            } else {
                Err(CallError::invalid("the server grants no subscription to this resource"))
            };
        }
        let caller = work.known_caller();
        let mut params = trip.job.params.clone();
        // A receiver that declared no tasks ignores it.
        params.take("task");
        for round in 0..=MAX_ROUNDS {
            scope.renumber(next_id());
            let span = work.spans.dispatch(plugin.name(), subject.target(), &plugin.described());
            let ask = self.ask(work, &trip, &scope, (Generation::Modern, &params), span.outbound());
            if round == 0 {
                trip.keep(ask.params.as_ref()).await?;
            }
            let outcome = tokio::select! {
                outcome = plugin.request(caller.as_deref(), ask) => outcome,
                () = scope.overdue(trip.patience) => Err(UpstreamError::TimedOut { after: trip.patience }),
            };
            span.end(failure(&outcome));
            let result = outcome.map_err(upstream)?;
            if !is_input_required(&result) {
                scope.rest();
                return Ok(Answered::Result(result));
            }
            let not_mcp = || upstream(UpstreamError::NotMcp);
            let asks = InputRequired::read(&result).filter(|_| trip.job.kind.may_ask()).ok_or_else(not_mcp)?;
            if round == MAX_ROUNDS {
                break;
            }
            if asks.requests.is_empty() {
                let pause = rand::rng().random_range(50..=250);
                sleep(Duration::from_millis(pause)).await;
                params.take("inputResponses");
            } else {
                let answers = self.answers(&scope, asks.requests, not_mcp).await?;
                params.set("inputResponses", answers.to_json());
            }
            match asks.state {
                Some(state) => params.set("requestState", Json::text(&state)),
                None => drop(params.take("requestState")),
            }
        }
        Err(CallError::unending(plugin.name()))
    }

    /// What an old client answers to what a modern server asks for.
    async fn answers(
        &self,
        scope: &Arc<Scope>,
        requests: Vec<Input>,
        not_mcp: impl Fn() -> CallError,
    ) -> Result<Object, CallError> {
        let mut questions = Vec::with_capacity(requests.len());
        for request in requests {
            let question = table::server_request(&request.method).ok_or_else(&not_mcp)?;
            questions.push((question, request));
        }
        let asked = questions.into_iter().map(|(question, Input { key, method, params })| async move {
            match scope.may_ask(question, &method, params.as_ref()).await {
                // Declined in the client's place, or no question that it may be asked.
                Ok(Some(answer)) => (key, question, Ok(Some(answer)), false),
                Err(_) => (key, question, Ok(None), false),
                Ok(None) => (key, question, scope.ask(question, method, params).await.map(Some), true),
            }
        });
        let (mut answers, mut was_asked) = (Object::default(), false);
        for (key, question, answer, asked) in join_all(asked).await {
            was_asked |= asked;
            match (answer, question) {
                (Ok(Some(answer)), _) => answers.set(&key, answer),
                (Ok(None), _) => {}
                // There is no place for an error among the answers.
                (Err(_), table::Question::Elicit) => answers.set(&key, Json::of(&json!({ "action": "cancel" }))),
                (Err(error), _) => {
                    return Err(CallError::upstream(&UpstreamError::Refused(error), scope.plugin.name()));
                }
            }
        }
        if was_asked { Ok(answers) } else { Err(CallError::questions_denied()) }
    }

    async fn modern_to_old(
        &self,
        work: &mut Work,
        trip: Trip<'_>,
        held: super::turns::Held,
    ) -> Result<Answered, CallError> {
        let plugin = trip.plugin;
        let upstream = |error: UpstreamError| CallError::upstream(&error, plugin.name());
        let span = work.spans.dispatch(plugin.name(), trip.job.subject.target(), &plugin.described());
        let (round, first) = match &trip.retry.state {
            Some(state) => (state.round + 1, state.first),
            None => (0, trip.ties.invocation_id),
        };
        let mut flight = match trip.retry.state.as_ref().map(|state| &state.waiting) {
            Some(Waiting::Parked { node, park }) => {
                let taken =
                    (*node == self.calls.sealer.node()).then(|| self.parks.take(*park, &work.inbound.owner)).flatten();
                let mut flight = taken.ok_or_else(CallError::call_lost)?;
                flight.scope.go_on(work.leg(), trip.ties.clone());
                flight.answer(&trip.retry.responses.clone().unwrap_or_default());
                // The call takes its own turns again once its questions are answered.
                drop(held);
                flight
            }
            Some(Waiting::Server { .. }) | None => self.take_off(work, &trip, held, span.outbound()).await?,
        };
        loop {
            match flight.land(trip.patience).await {
                Landed::Ended(outcome) => {
                    span.end(failure(&outcome));
                    flight.scope.rest();
                    let error = match outcome.map_err(upstream) {
                        Ok(result) => return Ok(Answered::Result(result)),
                        Err(error) => error,
                    };
                    return match error.elicitations() {
                        None => Err(error),
                        Some(asked) => {
                            self.pages(work, &trip, &flight.scope, &asked, (round, first)).await.map(Answered::Asks)
                        }
                    };
                }
                Landed::Asks => {
                    let questions: Vec<Input> = flight
                        .questions()
                        .map(|(key, method, params)| Input {
                            key: key.into(),
                            method: method.into(),
                            params: params.cloned(),
                        })
                        .collect();
                    if questions.is_empty() {
                        flight.answer(&Object::default());
                        continue;
                    }
                    match self.park(work, &trip, flight, &questions, (round, first)) {
                        Ok(result) => {
                            span.end(None);
                            return Ok(Answered::Asks(result));
                        }
                        Err(mut back) => {
                            back.refuse();
                            flight = back;
                        }
                    }
                }
            }
        }
    }

    /// Sends a modern client's request to an old server, in a flight.
    async fn take_off(
        &self,
        work: &Work,
        trip: &Trip<'_>,
        held: super::turns::Held,
        trace: &crate::telemetry::w3c::Outbound,
    ) -> Result<Flight, CallError> {
        let plugin = trip.plugin;
        let upstream = |error: UpstreamError| CallError::upstream(&error, plugin.name());
        let (scope, asked) = self.scope(work, trip, held, true);
        let Some(asked) = asked else { return Err(upstream(UpstreamError::Broken)) };
        let mut params = trip.job.params.clone();
        // To the server this is a call like any other.
        for name in ["inputResponses", "requestState"] {
            params.take(name);
        }
        let key = PoolKey {
            caller: work.known_caller(),
            version: LATEST_OLD.into(),
            capabilities: outgoing::old_capabilities(&work.client),
            client_info: outgoing::client_info(&work.client),
        };
        let strangers: Arc<dyn Upcalls> = Arc::new(Unattributed { calls: Arc::clone(&self.calls) });
        let lease = timeout(trip.patience, plugin.lease(key, strangers)).await;
        let lease = lease.unwrap_or(Err(UpstreamError::TimedOut { after: trip.patience })).map_err(upstream)?;
        let level = work.params.get("_meta").and_then(|meta| meta.get(META_LOG_LEVEL));
        let ask = self.ask(work, trip, &scope, (Generation::Old, &params), trace);
        trip.keep(ask.params.as_ref()).await?;
        let own = level.filter(|_| lease.opened().at(&["capabilities", "logging"]).is_some()).map(|level| {
            let mut params = Object::default();
            params.add("level", level);
            own_ask("logging/setLevel", params.to_json(), Arc::clone(&scope) as Arc<dyn Upcalls>)
        });
        let wants_stream = work.client.answers_questions();
        Ok(Flight::start(scope, asked, async move {
            let _stream = wants_stream.then(|| lease.want_stream());
            if let Some(own) = own {
                // A server that refuses the level sends what it likes, and it is filtered here.
                let _ = lease.ask(own).await;
            }
            lease.ask(ask).await
        }))
    }

    /// Lays a flight down until its client comes back with answers.
    fn park(
        &self,
        work: &Work,
        trip: &Trip<'_>,
        flight: Flight,
        questions: &[Input],
        (round, first): (u32, uuid::Uuid),
    ) -> Result<Json, Flight> {
        let Ok(binding) = trip.retry.binding.clone().map_or_else(|| self.binding(work, trip.plugin), Ok) else {
            return Err(flight);
        };
        let (telemetry, answer) = (&self.calls.telemetry, self.calls.limits.answer);
        let park = telemetry.random.uuid();
        let waiting = Waiting::Parked { node: self.calls.sealer.node(), park };
        let sealed =
            if round < MAX_ROUNDS { self.calls.sealer.seal(binding, waiting, (round, first), answer) } else { None };
        let Some(sealed) = sealed else { return Err(flight) };
        let ties = Ties { invocation_id: telemetry.id(), first_invocation_id: Some(first), ..trip.ties.clone() };
        let by = (&work.inbound, &work.client, None);
        let abandoned = CallRecord::begin(telemetry, by, &ties, trip.plugin.name(), trip.job.subject.label());
        let most = usize::try_from(trip.plugin.settings().sessions() / 2).unwrap_or(usize::MAX).max(1);
        let whose = (&work.inbound.owner, trip.plugin.name(), most);
        self.parks.park(park, flight, whose, abandoned, answer)?;
        Ok(bridge::input_required(questions, Some(&sealed)))
    }

    /// An old server's error that asks to open pages, as a modern client is asked.
    async fn pages(
        &self,
        work: &Work,
        trip: &Trip<'_>,
        scope: &Arc<Scope>,
        asked: &Json,
        (round, first): (u32, uuid::Uuid),
    ) -> Result<Json, CallError> {
        if !work.client.declares(&["elicitation", "url"]) {
            let needed = json!({ "elicitation": { "url": {} } });
            return Err(CallError::missing_capability("the server asks to open a page", &needed));
        }
        let mut inputs = Vec::new();
        for one in asked.items().unwrap_or_default() {
            let method = "elicitation/create";
            if !matches!(scope.may_ask(table::Question::Elicit, method, Some(&one)).await, Ok(None)) {
                return Err(CallError::questions_denied());
            }
            let Some(mut params) = scope.worded(table::Question::Elicit, Some(one)).and_then(|one| one.object()) else {
                continue;
            };
            let key = params.take("elicitationId");
            let key = key.as_ref().and_then(Json::as_text).map_or_else(|| format!("q{}", inputs.len()), Into::into);
            inputs.push(Input { key: key.into(), method: method.into(), params: Some(params.to_json()) });
        }
        self.sealed(work, trip, &inputs, Vec::new(), (None, round, first))
    }

    /// The questions of a server that keeps no call, with its state sealed.
    fn sealed(
        &self,
        work: &Work,
        trip: &Trip<'_>,
        inputs: &[Input],
        declined: Vec<String>,
        (state, round, first): (Option<String>, u32, uuid::Uuid),
    ) -> Result<Json, CallError> {
        let binding = trip.retry.binding.clone().map_or_else(|| self.binding(work, trip.plugin), Ok)?;
        let asked = inputs.iter().map(|input| input.key.to_string()).collect();
        let waiting = Waiting::Server { state, asked, declined };
        let sealed = self.calls.sealer.seal(binding, waiting, (round, first), self.calls.limits.answer);
        let too_large = || CallError::upstream(&UpstreamError::NotMcp, trip.plugin.name());
        Ok(bridge::input_required(inputs, Some(&sealed.ok_or_else(too_large)?)))
    }

    async fn modern_to_modern(
        &self,
        work: &mut Work,
        trip: Trip<'_>,
        held: super::turns::Held,
    ) -> Result<Answered, CallError> {
        let plugin = trip.plugin;
        let upstream = |error: UpstreamError| CallError::upstream(&error, plugin.name());
        let (scope, _) = self.scope(work, &trip, held, false);
        let mut params = trip.job.params.clone();
        let (mut round, mut first) = (0, trip.ties.invocation_id);
        if let Some(state) = &trip.retry.state {
            (round, first) = (state.round + 1, state.first);
            let Waiting::Server { state, asked, declined } = &state.waiting else { return Err(CallError::call_lost()) };
            let mut responses = trip.retry.responses.clone().unwrap_or_default();
            responses.retain(|key, _| asked.iter().any(|known| known == key));
            for key in declined {
                responses.set(key, Json::of(&json!({ "action": "decline" })));
            }
            match responses.is_empty() {
                true => drop(params.take("inputResponses")),
                false => params.set("inputResponses", responses.to_json()),
            }
            match state {
                Some(state) => params.set("requestState", Json::text(state)),
                None => drop(params.take("requestState")),
            }
        }
        let caller = work.known_caller();
        let span = work.spans.dispatch(plugin.name(), trip.job.subject.target(), &plugin.described());
        let ask = self.ask(work, &trip, &scope, (Generation::Modern, &params), span.outbound());
        trip.keep(ask.params.as_ref()).await?;
        let outcome = tokio::select! {
            outcome = plugin.request(caller.as_deref(), ask) => outcome,
            () = scope.overdue(trip.patience) => Err(UpstreamError::TimedOut { after: trip.patience }),
        };
        span.end(failure(&outcome));
        scope.rest();
        let result = outcome.map_err(upstream)?;
        if !is_input_required(&result) {
            return Ok(Answered::Result(result));
        }
        let not_mcp = || upstream(UpstreamError::NotMcp);
        let asks = InputRequired::read(&result).filter(|_| trip.job.kind.may_ask()).ok_or_else(not_mcp)?;
        if round >= MAX_ROUNDS * 4 {
            return Err(CallError::unending(plugin.name()));
        }
        let (mut inputs, mut declined, asked) = (Vec::new(), Vec::new(), !asks.requests.is_empty());
        for Input { key, method, params } in asks.requests {
            let question = table::server_request(&method).ok_or_else(not_mcp)?;
            match scope.may_ask(question, &method, params.as_ref()).await {
                Ok(None) => inputs.push(Input { params: scope.worded(question, params), key, method }),
                Ok(Some(_)) => declined.push(key.into()),
                Err(_) => {}
            }
        }
        if asked && inputs.is_empty() {
            return Err(CallError::questions_denied());
        }
        self.sealed(work, &trip, &inputs, declined, (asks.state, round, first)).map(Answered::Asks)
    }
}

/// A request of the gateway's own on a session.
pub(crate) fn own_ask(method: &str, params: Json, upcalls: Arc<dyn Upcalls>) -> Ask {
    Ask {
        id: next_id(),
        method: method.into(),
        params: Some(params),
        headers: HeaderMap::new(),
        upcalls,
        pass: crate::gateway::pass::Pass::own(),
    }
}

/// Whether a name of a tool or a prompt may be looked at: no longer than a name may be, unless the plugin lists it.
pub(crate) fn is_name(subject: &Subject) -> bool {
    subject.listed || subject.name.chars().nth(MAX_NAME).is_none()
}

/// That a call whose result is redacted is under way.
struct Redacting {
    session: Arc<dyn ClientSession>,
    index: usize,
}

impl Redacting {
    fn begin(session: &Arc<dyn ClientSession>, index: usize) -> Self {
        session.redacting(index, true);
        Self { session: Arc::clone(session), index }
    }
}

impl Drop for Redacting {
    fn drop(&mut self) {
        self.session.redacting(self.index, false);
    }
}

/// What a pooled session's server says that belongs to no call: nobody can be asked, and nobody is told.
struct Unattributed {
    calls: Arc<Calls>,
}

#[async_trait]
impl Upcalls for Unattributed {
    async fn asked(&self, _: Request) -> Result<Json, RpcError> {
        self.calls.refused("question");
        Err(RpcError::method_not_found("the client can be asked within a call only"))
    }

    async fn told(&self, _: Notification) {}
}

/// Keeps what a client is told, where it is to be kept. `server`: its generation; and the URI of the resource that was asked for.
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

impl Dispatcher {
    /// What is kept of a request about a task.
    pub(crate) fn capture_of_task(&self, work: &Work, plugin: &Plugin, task: &super::tasks::Task) -> Option<Capturing> {
        self.capture.begin(&CallFacts {
            invocation_id: work.inbound.invocation_id,
            plugin: plugin.name(),
            kind: payload::Kind::Task,
            tool: &task.subject.captured_as(),
            started_at: self.calls.telemetry.now(),
            obligations: &task.verdict.obligations,
        })
    }

    /// A request about a task, to the server that works on it.
    ///
    /// # Errors
    /// Why there is no answer.
    pub(crate) async fn of_task(
        &self,
        work: &mut Work,
        plugin: &Arc<Plugin>,
        (task, capturing): (&super::tasks::Task, Option<&Capturing>),
        permit: &Permit,
        server: &mut Option<Generation>,
    ) -> Result<Json, CallError> {
        let upstream = |error: UpstreamError| CallError::upstream(&error, plugin.name());
        let generation = work.client.generation;
        *server = Some(generation);
        let held = self.calls.turns_within(plugin, &work.inbound.owner, plugin.timeout()).await?;
        let mut params = work.params.clone();
        params.set("taskId", Json::text(&task.id));
        let job =
            Job { kind: JobKind::Method, subject: task.subject.clone(), params, arguments: None, details: Vec::new() };
        let (ties, patience) = (work.ties(), plugin.timeout());
        let trip = Trip { plugin, job: &job, permit, ties, patience, retry: Retry::default(), capturing };
        match generation {
            Generation::Old => match self.old_to_old(work, trip, held).await? {
                Answered::Result(result) | Answered::Asks(result) => Ok(result),
            },
            Generation::Modern => {
                let (scope, _) = self.scope(work, &trip, held, false);
                let caller = work.known_caller();
                let span = work.spans.dispatch(plugin.name(), task.subject.target(), &plugin.described());
                let ask = self.ask(work, &trip, &scope, (generation, &job.params), span.outbound());
                trip.keep(ask.params.as_ref()).await?;
                let outcome = tokio::select! {
                    outcome = plugin.request(caller.as_deref(), ask) => outcome,
                    () = scope.overdue(patience) => Err(UpstreamError::TimedOut { after: patience }),
                };
                span.end(failure(&outcome));
                let result = outcome.map_err(upstream)?;
                let Some(mut object) = result.object() else { return Ok(result) };
                let Some(requests) = object.get("inputRequests").and_then(Json::object) else { return Ok(result) };
                let mut permitted = Object::default();
                for (key, request) in requests.iter() {
                    let method = request.get("method");
                    let method = method.as_ref().and_then(Json::as_text).unwrap_or_default();
                    let Some(question) = table::server_request(&method) else { continue };
                    if matches!(scope.may_ask(question, &method, request.get("params").as_ref()).await, Ok(None)) {
                        permitted.add(key, request.clone());
                    }
                }
                object.set("inputRequests", permitted.to_json());
                Ok(object.to_json())
            }
        }
    }
}
