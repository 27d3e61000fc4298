//! Requests of modern clients to modern servers: one request, and what it asks for goes on to the client with the
//! server's state sealed into the gateway's.

use serde_json::json;
use uuid::Uuid;

use super::trip::{Answered, Trip};
use super::work::Work;
use super::{Dispatcher, MAX_ROUNDS};
use crate::gateway::call::bridge::{self, Input, InputRequired};
use crate::gateway::call::error::CallError;
use crate::gateway::call::seal::Waiting;
use crate::gateway::call::table;
use crate::gateway::call::telemetry::is_input_required;
use crate::gateway::call::turns::Held;
use crate::gateway::message::{Json, Object};
use crate::gateway::upstream::UpstreamError;

/// How often a modern client may be asked for one call.
const MAX_LEGS: u32 = MAX_ROUNDS * 4;

impl Dispatcher {
    pub(super) async fn modern_to_modern(
        &self,
        work: &mut Work,
        trip: Trip<'_>,
        held: Held,
    ) -> Result<Answered, CallError> {
        let (scope, _) = self.scope(work, &trip, held, false);
        let mut params = trip.job.params.clone();
        let (mut round, mut first) = (0, trip.ties.invocation_id);
        if let Some(state) = &trip.retry.state {
            (round, first) = (state.round + 1, state.first);
            let Waiting::Server { state, asked, declined } = &state.waiting else { return Err(CallError::call_lost()) };
            bring(&mut params, trip.retry.responses.clone().unwrap_or_default(), (state.as_deref(), asked, declined));
        }
        let result = self.exchange(work, &trip, &scope, (&params, true)).await?;
        scope.rest();
        if !is_input_required(&result) {
            return Ok(Answered::Result(result));
        }
        let not_mcp = || trip.failed(UpstreamError::NotMcp);
        let asks = InputRequired::read(&result).filter(|_| trip.job.kind.may_ask()).ok_or_else(not_mcp)?;
        if round >= MAX_LEGS {
            return Err(CallError::unending(trip.plugin.name()));
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

    /// The questions of a server that keeps no call, with its state sealed.
    pub(super) fn sealed(
        &self,
        work: &Work,
        trip: &Trip<'_>,
        inputs: &[Input],
        declined: Vec<String>,
        (state, round, first): (Option<String>, u32, Uuid),
    ) -> Result<Json, CallError> {
        let binding = trip.retry.binding.clone().map_or_else(|| self.binding(work, trip.plugin), Ok)?;
        let asked = inputs.iter().map(|input| input.key.to_string()).collect();
        let waiting = Waiting::Server { state, asked, declined };
        let sealed = self.calls.sealer.seal(binding, waiting, (round, first), self.calls.limits.answer);
        let sealed = sealed.ok_or_else(|| trip.failed(UpstreamError::NotMcp))?;
        Ok(bridge::input_required(inputs, Some(&sealed)))
    }
}

/// Puts into the parameters what a client brings back: the answers to what it was asked, and the server's own state.
fn bring(params: &mut Object, mut responses: Object, (state, asked, declined): (Option<&str>, &[String], &[String])) {
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
