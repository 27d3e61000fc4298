//! Requests of old clients to old servers: on the upstream session of the client's own session.

use std::sync::Arc;

use super::trip::{Answered, Trip};
use super::work::{JobKind, Work};
use super::{Dispatcher, failure};
use crate::gateway::call::bridge::MAX_INPUTS;
use crate::gateway::call::client::ClientSession;
use crate::gateway::call::error::CallError;
use crate::gateway::call::scope::Scope;
use crate::gateway::call::table::Question;
use crate::gateway::call::turns::Held;
use crate::gateway::message::Json;
use crate::gateway::protocol::Generation;
use crate::gateway::upstream::UpstreamError;

impl Dispatcher {
    pub(super) async fn old_to_old(&self, work: &mut Work, trip: Trip<'_>, held: Held) -> Result<Answered, CallError> {
        let (scope, _) = self.scope(work, &trip, held, false);
        let index = trip.job.subject.index;
        let Some(client) = work.session.clone() else { return Err(trip.failed(UpstreamError::Broken)) };
        let span = trip.span(work);
        let ask = self.ask(work, &trip, &scope, (Generation::Old, &trip.job.params), span.outbound());
        trip.keep(ask.params.as_ref()).await?;
        let _redacting = scope.redacts().then(|| Redacting::begin(&client, index));
        let asking = async {
            let session = client.upstream(index).await?;
            // What the server asks may come on a stream of its own.
            let stream = work.client.answers_questions().then(|| session.want_stream());
            if stream.is_some() {
                session.stream_opened().await;
            }
            session.ask(ask).await
        };
        let outcome = trip.within(&scope, asking).await;
        span.end(failure(&outcome));
        scope.rest();
        match outcome.map_err(|error| trip.failed(error)) {
            Ok(result) => {
                if trip.job.kind == JobKind::Subscribe {
                    client.subscribed(index, &trip.job.subject.name, true);
                }
                Ok(Answered::Result(result))
            }
            Err(error) => Err(elicitations(&scope, error).await),
        }
    }
}

/// An error that asks its client to open pages: as the client is asked, where policy permits each of them; else without
/// them.
async fn elicitations(scope: &Scope, error: CallError) -> CallError {
    if !error.asks_to_open_pages() {
        return error;
    }
    let Some(asked) = error.elicitations(MAX_INPUTS) else { return error.without_elicitations() };
    let mut worded = Vec::with_capacity(asked.len());
    for one in asked {
        let may = scope.may_ask(Question::Elicit, "elicitation/create", Some(&one)).await;
        let Some(one) = matches!(may, Ok(None)).then(|| scope.worded(Question::Elicit, Some(one))).flatten() else {
            return error.without_elicitations();
        };
        worded.push(one);
    }
    error.with_elicitations(&Json::array(&worded))
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
