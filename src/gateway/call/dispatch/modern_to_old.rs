//! Requests of modern clients to old servers: on a session of the pool, in a flight that may wait for the client (see
//! [`park`](crate::gateway::call::park)).

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::json;
use tokio::time::timeout;
use uuid::Uuid;

use super::trip::{Answered, Trip};
use super::work::{JobKind, Work};
use super::{Dispatcher, MAX_ROUNDS, driven, failure, own_ask};
use crate::gateway::call::bridge::{self, Input, MAX_INPUTS};
use crate::gateway::call::calls::Calls;
use crate::gateway::call::error::CallError;
use crate::gateway::call::park::{Flight, Landed};
use crate::gateway::call::scope::{Scope, severity};
use crate::gateway::call::seal::Waiting;
use crate::gateway::call::table::{self, Question, ServerNote};
use crate::gateway::call::telemetry::{CallRecord, Ties};
use crate::gateway::call::turns::Held;
use crate::gateway::message::{Json, Notification, Object, Request, RpcError};
use crate::gateway::protocol::{Generation, META_LOG_LEVEL};
use crate::gateway::upstream::{Plugin, Upcalls, UpstreamError};
use crate::telemetry::w3c;

/// Which leg of a call it is: its number, and the id of the first.
type LegOf = (u32, Uuid);

impl Dispatcher {
    pub(super) async fn modern_to_old(
        &self,
        work: &mut Work,
        trip: Trip<'_>,
        held: Held,
    ) -> Result<Answered, CallError> {
        let span = trip.span(work);
        let leg_of: LegOf = match &trip.retry.state {
            Some(state) => (state.round + 1, state.first),
            None => (0, trip.ties.invocation_id),
        };
        let mut flight = match trip.retry.state.as_ref().map(|state| &state.waiting) {
            Some(Waiting::Parked { node, park }) => {
                let is_here = *node == self.calls.sealer.node();
                let taken = is_here.then(|| self.parks.take(*park, &work.inbound.owner)).flatten();
                let mut flight = taken.ok_or_else(CallError::call_lost)?;
                flight.scope.go_on(work.leg(trip.ties.clone(), trip.permit.verdict.clone()));
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
                    let error = match outcome.map_err(|error| trip.failed(error)) {
                        Ok(result) => return Ok(Answered::Result(result)),
                        Err(error) => error,
                    };
                    if !error.asks_to_open_pages() {
                        return Err(error);
                    }
                    return match error.elicitations(MAX_INPUTS) {
                        None => Err(error.without_elicitations()),
                        Some(asked) => self.pages(work, &trip, &flight.scope, asked, leg_of).await.map(Answered::Asks),
                    };
                }
                Landed::Asks => {
                    let questions = open_questions(&flight);
                    if questions.is_empty() {
                        flight.answer(&Object::default());
                        continue;
                    }
                    match self.park(work, &trip, flight, &questions, leg_of) {
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
        held: Held,
        trace: &w3c::Outbound,
    ) -> Result<Flight, CallError> {
        let (scope, asked) = self.scope(work, trip, held, true);
        let Some(asked) = asked else { return Err(trip.failed(UpstreamError::Broken)) };
        let mut params = trip.job.params.clone();
        // To the server this is a call like any other. A task of the older kind is made only where the tool cannot run
        // without.
        for name in ["inputResponses", "requestState", "task"] {
            params.take(name);
        }
        let as_task = trip.job.kind == JobKind::Call && trip.plugin.runs_as_task(&trip.job.subject.name);
        if as_task {
            let ttl = u64::try_from(trip.patience.as_millis()).unwrap_or(u64::MAX);
            params.set("task", Json::of(&json!({ "ttl": ttl })));
        }
        let strangers = Unattributed {
            calls: Arc::clone(&self.calls),
            plugin: Arc::clone(trip.plugin),
            caller: work.known_caller(),
        };
        let lease = timeout(trip.patience, trip.plugin.lease(work.pool_key(), Arc::new(strangers))).await;
        let lease = lease.unwrap_or(Err(UpstreamError::TimedOut { after: trip.patience }));
        let lease = lease.map_err(|error| trip.failed(error))?;
        let ask = self.ask(work, trip, &scope, (Generation::Old, &params), trace);
        trip.keep(ask.params.as_ref()).await?;
        let level = work.params.get("_meta").and_then(|meta| meta.get(META_LOG_LEVEL));
        let level = level.filter(|level| level.as_text().is_some_and(|level| severity(&level).is_some()));
        let own = level.filter(|_| lease.opened().at(&["capabilities", "logging"]).is_some()).map(|level| {
            let mut params = Object::default();
            params.add("level", level);
            own_ask("logging/setLevel", params.to_json(), Arc::clone(&scope) as Arc<dyn Upcalls>)
        });
        let wants_stream = work.client.answers_questions();
        let (pass, upcalls) = (trip.permit.pass(), Arc::clone(&scope) as Arc<dyn Upcalls>);
        Ok(Flight::start(scope, asked, async move {
            let stream = wants_stream.then(|| lease.want_stream());
            if stream.is_some() {
                lease.stream_opened().await;
            }
            if let Some(own) = own {
                // A server that refuses the level sends what it likes, and it is filtered here.
                let _ = lease.ask(own).await;
            }
            let result = lease.ask(ask).await?;
            if as_task { driven::result_of_task(&lease, result, (pass, upcalls)).await } else { Ok(result) }
        }))
    }

    /// Lays a flight down until its client comes back with answers.
    fn park(
        &self,
        work: &Work,
        trip: &Trip<'_>,
        flight: Flight,
        questions: &[Input],
        (round, first): LegOf,
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
        scope: &Scope,
        asked: Vec<Json>,
        (round, first): LegOf,
    ) -> Result<Json, CallError> {
        if !work.client.declares(&["elicitation", "url"]) {
            let needed = json!({ "elicitation": { "url": {} } });
            return Err(CallError::missing_capability("the server asks to open a page", &needed));
        }
        let mut inputs = Vec::new();
        for one in asked {
            let method = "elicitation/create";
            if !matches!(scope.may_ask(Question::Elicit, method, Some(&one)).await, Ok(None)) {
                return Err(CallError::questions_denied());
            }
            let Some(mut params) = scope.worded(Question::Elicit, Some(one)).and_then(|one| one.object()) else {
                continue;
            };
            let key = params.take("elicitationId");
            let key = key.as_ref().and_then(Json::as_text).map_or_else(|| format!("q{}", inputs.len()), Into::into);
            inputs.push(Input { key: key.into(), method: method.into(), params: Some(params.to_json()) });
        }
        self.sealed(work, trip, &inputs, Vec::new(), (None, round, first))
    }
}

/// What the client is to be asked.
fn open_questions(flight: &Flight) -> Vec<Input> {
    let question = |(key, method, params): (&str, &str, Option<&Json>)| Input {
        key: key.into(),
        method: method.into(),
        params: params.cloned(),
    };
    flight.questions().map(question).collect()
}

/// What a pooled session's server says that belongs to no call. Nobody can be asked; a changed list goes to the listens
/// of the caller whose session it is.
struct Unattributed {
    calls: Arc<Calls>,
    plugin: Arc<Plugin>,
    caller: Option<Arc<str>>,
}

#[async_trait]
impl Upcalls for Unattributed {
    async fn asked(&self, _: Request) -> Result<Json, RpcError> {
        self.calls.refused("question");
        Err(RpcError::method_not_found("the client can be asked within a call only"))
    }

    async fn notified(&self, notification: Notification) {
        if let Some(ServerNote::ListChanged(kind)) = table::server_notification(&notification.method)
            && let Some(caller) = &self.caller
        {
            self.plugin.list_changed_for(caller, kind).await;
        }
    }
}
