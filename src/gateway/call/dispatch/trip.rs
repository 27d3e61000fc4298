//! A request that was decided on, on its way to its server: what all four ways have in common.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use tokio::sync::mpsc;

use super::work::{Job, Work};
use super::{Dispatcher, failure};
use crate::gateway::call::calls::Permit;
use crate::gateway::call::error::CallError;
use crate::gateway::call::outgoing::Meta;
use crate::gateway::call::scope::{Asked, Scope, ScopeOf};
use crate::gateway::call::seal::{Binding, State};
use crate::gateway::call::telemetry::Ties;
use crate::gateway::call::turns::Held;
use crate::gateway::capture::Capturing;
use crate::gateway::message::{Json, Object};
use crate::gateway::protocol::{Generation, PROGRESS_TOKEN};
use crate::gateway::traces::DispatchSpan;
use crate::gateway::upstream::{Ask, Plugin, Upcalls, UpstreamError, next_id};
use crate::telemetry::w3c;

/// A request that was decided on, on its way.
pub(super) struct Trip<'a> {
    pub(super) plugin: &'a Arc<Plugin>,
    pub(super) job: &'a Job,
    pub(super) permit: &'a Permit,
    pub(super) ties: Ties,
    /// How long the server may work.
    pub(super) patience: Duration,
    pub(super) retry: Retry,
    /// What of it is kept.
    pub(super) capturing: Option<&'a Capturing>,
    /// A modern server may make a task of an old client's call: the gateway waits for it.
    pub(super) tasks: bool,
}

/// What a request brings of an earlier one.
#[derive(Default)]
pub(super) struct Retry {
    pub(super) binding: Option<Binding>,
    pub(super) state: Option<State>,
    pub(super) responses: Option<Object>,
    /// The state was brought before: this is another call.
    pub(super) is_repeated: bool,
}

/// What comes back of a request.
pub(super) enum Answered {
    /// A result of the server's.
    Result(Json),
    /// The gateway's own result, which asks a modern client for more.
    Asks(Json),
}

impl Trip<'_> {
    /// The caller's error for one of the plugin's.
    pub(super) fn failed(&self, error: UpstreamError) -> CallError {
        CallError::upstream(&error, self.plugin.name())
    }

    /// Keeps the parameters that are about to be sent, where they are to be kept.
    pub(super) async fn keep(&self, params: Option<&Json>) -> Result<(), CallError> {
        let Some(capturing) = self.capturing else { return Ok(()) };
        capturing.request(params).await.map_err(|_| CallError::not_captured())
    }

    /// The span of the plugin's work.
    pub(super) fn span(&self, work: &Work) -> DispatchSpan {
        work.spans.dispatch(self.plugin.name(), self.job.subject.target(), &self.plugin.described())
    }

    /// Waits for an outcome as long as the server may work.
    pub(super) async fn within(
        &self,
        scope: &Scope,
        outcome: impl Future<Output = Result<Json, UpstreamError>>,
    ) -> Result<Json, UpstreamError> {
        tokio::select! {
            outcome = outcome => outcome,
            () = scope.overdue(self.patience) => Err(UpstreamError::TimedOut { after: self.patience }),
        }
    }
}

impl Dispatcher {
    /// What comes for the sake of a trip from now on, and where its questions go if `parks`: its client cannot be
    /// asked.
    pub(super) fn scope(
        &self,
        work: &Work,
        trip: &Trip<'_>,
        held: Held,
        parks: bool,
    ) -> (Arc<Scope>, Option<mpsc::Receiver<Asked>>) {
        let of = ScopeOf {
            calls: Arc::clone(&self.calls),
            inbound: Arc::clone(&work.inbound),
            client: Arc::clone(&work.client),
            plugin: Arc::clone(trip.plugin),
            subject: trip.job.subject.clone(),
            namespaced: work.endpoint.namespaced,
        };
        let leg = work.leg(trip.ties.clone(), trip.permit.verdict.clone());
        Scope::new(of, leg, (next_id(), Some(held)), parks)
    }

    /// The request to the server, with parameters of its generation.
    pub(super) fn ask(
        &self,
        work: &Work,
        trip: &Trip<'_>,
        scope: &Arc<Scope>,
        (server, params): (Generation, &Object),
        trace: &w3c::Outbound,
    ) -> Ask {
        self.ask_for(work, trip, scope, (server, &work.request.method, params), trace)
    }

    /// A request to the server for the sake of the trip.
    fn ask_for(
        &self,
        work: &Work,
        trip: &Trip<'_>,
        scope: &Arc<Scope>,
        (server, method, params): (Generation, &str, &Object),
        trace: &w3c::Outbound,
    ) -> Ask {
        let mut params = params.clone();
        let wants_progress = work.params.get("_meta").is_some_and(|meta| meta.get(PROGRESS_TOKEN).is_some());
        let id = scope.id();
        let level = work.session.as_ref().and_then(|session| session.log_level());
        let progress = wants_progress.then_some(id);
        Meta { client: &work.client, server, trace, progress, log_level: level.as_ref(), tasks: trip.tasks }
            .put(&mut params);
        let mut headers = HeaderMap::new();
        trace.put_headers(&mut headers);
        let params = (!params.is_empty() || work.request.params.is_some()).then(|| params.to_json());
        let upcalls: Arc<dyn Upcalls> = Arc::clone(scope) as Arc<dyn Upcalls>;
        Ask { id, method: method.into(), params, headers, upcalls, pass: trip.permit.pass() }
    }

    /// One request to a modern server, and its result. `keep`: its parameters are those that are kept of the call.
    pub(super) async fn exchange(
        &self,
        work: &Work,
        trip: &Trip<'_>,
        scope: &Arc<Scope>,
        (params, keep): (&Object, bool),
    ) -> Result<Json, CallError> {
        self.exchange_for(work, trip, scope, (&work.request.method, params, keep)).await
    }

    /// The same with another method, for the sake of the trip.
    pub(super) async fn exchange_for(
        &self,
        work: &Work,
        trip: &Trip<'_>,
        scope: &Arc<Scope>,
        (method, params, keep): (&str, &Object, bool),
    ) -> Result<Json, CallError> {
        let span = trip.span(work);
        let ask = self.ask_for(work, trip, scope, (Generation::Modern, method, params), span.outbound());
        if keep {
            trip.keep(ask.params.as_ref()).await?;
        }
        let caller = work.known_caller();
        let outcome = trip.within(scope, trip.plugin.request(caller.as_deref(), ask)).await;
        span.end(failure(&outcome));
        // An error that asks to open pages is of the old versions; of a modern server it would be a way around its
        // questions.
        outcome.map_err(|error| trip.failed(error).without_elicitations())
    }
}
