//! Requests of old clients to modern servers: one request after the other, and what the server asks for is asked of the
//! client in between.

use std::time::Duration;

use rand::RngExt;
use tokio::time::{sleep, timeout};

use super::answers::answers;
use super::trip::{Answered, Trip};
use super::work::{JobKind, Work};
use super::{Dispatcher, MAX_ROUNDS, is_task};
use crate::gateway::call::bridge::InputRequired;
use crate::gateway::call::error::CallError;
use crate::gateway::call::scope::Scope;
use crate::gateway::call::telemetry::is_input_required;
use crate::gateway::call::turns::Held;
use crate::gateway::message::Json;
use crate::gateway::upstream::{UpstreamError, next_id};

/// How long to wait before a server that asks for nothing but its state is asked again, in milliseconds.
const STATE_ONLY_PAUSE: std::ops::RangeInclusive<u64> = 50..=250;

impl Dispatcher {
    pub(super) async fn old_to_modern(
        &self,
        work: &mut Work,
        mut trip: Trip<'_>,
        held: Held,
    ) -> Result<Answered, CallError> {
        let (scope, _) = self.scope(work, &trip, held, false);
        if trip.job.kind == JobKind::Subscribe {
            return listen(work, &trip, &scope).await;
        }
        let mut params = trip.job.params.clone();
        // Words of the modern version, which an old client has no say in; and tasks are ignored by a server that
        // declared none.
        for name in ["inputResponses", "requestState", "task"] {
            params.take(name);
        }
        for round in 0..=MAX_ROUNDS {
            scope.renumber(next_id());
            let mut result = self.exchange(work, &trip, &scope, (&params, round == 0)).await;
            if !trip.tasks && result.as_ref().is_err_and(CallError::needs_tasks) {
                // The tool can only run as a task, and said so before it did anything.
                trip.tasks = true;
                scope.renumber(next_id());
                result = self.exchange(work, &trip, &scope, (&params, false)).await;
            }
            let mut result = result?;
            if trip.tasks && is_task(&result) {
                result = self.drive(work, &trip, &scope, result).await?;
            }
            if !is_input_required(&result) {
                scope.rest();
                return Ok(Answered::Result(result));
            }
            let not_mcp = || trip.failed(UpstreamError::NotMcp);
            let asks = InputRequired::read(&result).filter(|_| trip.job.kind.may_ask()).ok_or_else(not_mcp)?;
            if round == MAX_ROUNDS {
                break;
            }
            if asks.requests.is_empty() {
                let pause = rand::rng().random_range(STATE_ONLY_PAUSE);
                sleep(Duration::from_millis(pause)).await;
                params.take("inputResponses");
            } else {
                params.set("inputResponses", answers(&scope, asks.requests, not_mcp).await?.to_json());
            }
            match asks.state {
                Some(state) => params.set("requestState", Json::text(&state)),
                None => drop(params.take("requestState")),
            }
        }
        Err(CallError::unending(trip.plugin.name()))
    }
}

/// Subscribes to a resource.
async fn listen(work: &Work, trip: &Trip<'_>, scope: &Scope) -> Result<Answered, CallError> {
    let subject = &trip.job.subject;
    let Some(client) = &work.session else { return Err(trip.failed(UpstreamError::Broken)) };
    trip.keep(Some(&trip.job.params.to_json())).await?;
    let listening = timeout(trip.patience, client.listen(subject.index, &subject.name));
    let granted = listening.await.unwrap_or(Err(UpstreamError::TimedOut { after: trip.patience }));
    scope.rest();
    match granted.map_err(|error| trip.failed(error))? {
        true => Ok(Answered::Result(Json::empty_object())),
        false => Err(CallError::invalid("the server grants no subscription to this resource")),
    }
}
