//! What plugins ask the client of a session, and where what belongs to one of its requests goes.
//!
//! A question goes out on a stream, under an id of the session's own, and is answered by a response of the client. It
//! is withdrawn when the future that asks is dropped, and fails when the client has been without a connection for
//! longer than a stream can be resumed. Progress of an answer is passed on under the token that the plugin gave. At
//! most
//! [`MAX_QUESTIONS`] are unanswered at once; none outlives its session.

use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::json;
use tokio::sync::oneshot;
use tokio::time::interval;

use super::{REMEMBERED, Session};
use crate::gateway::call::client::Outlet;
use crate::gateway::downstream::streams::{STANDALONE, StreamNumber};
use crate::gateway::message::{Id, Json, Notification, Object, Response, RpcError, encode};
use crate::gateway::protocol::PROGRESS_TOKEN;

/// Requests of servers that a client may have to answer at once; more are refused.
const MAX_QUESTIONS: usize = 64;

/// The longest id of an elicitation that is remembered: a server makes it up.
const MAX_ELICITATION_ID: usize = 512;

/// How often it is checked whether an asked client is still connected.
const CONNECTION_CHECK: Duration = Duration::from_secs(1);

/// A question that the client has not answered yet.
pub(super) struct Question {
    answer: oneshot::Sender<Result<Json, RpcError>>,
    /// The plugin that asks, and the token that it gave for progress, if it did; the client is given the question's id
    /// in its place.
    index: usize,
    token: Option<Json>,
}

impl Session {
    /// The client answers what it was asked.
    pub(in crate::gateway::downstream) fn answered(&self, response: Response) {
        let Some(Id::Number(id)) = response.id else { return };
        if let Some(question) = self.state.lock().asked.remove(&id) {
            // Ignore the error: the question was withdrawn.
            let _ = question.answer.send(response.outcome);
        }
    }

    /// The progress that the client makes with a question: the plugin that asked it, and the notification's parameters.
    pub(in crate::gateway::downstream) fn progress(&self, params: &Object) -> Option<(usize, Json)> {
        let id = params.get(PROGRESS_TOKEN)?.read::<i64>()?;
        let (index, token) = {
            let state = self.state.lock();
            let question = state.asked.get(&id)?;
            (question.index, question.token.clone()?)
        };
        let mut passed = params.clone();
        passed.retain(|name, _| matches!(name, PROGRESS_TOKEN | "progress" | "total" | "message"));
        passed.set(PROGRESS_TOKEN, token);
        Some((index, passed.to_json()))
    }

    /// Where what belongs to the request on `stream` goes.
    pub(in crate::gateway::downstream) fn outlet(&self, stream: StreamNumber) -> Arc<dyn Outlet> {
        Arc::new(SessionOutlet { session: Weak::clone(&self.this), stream })
    }

    /// Whether the client was given this elicitation by URL.
    pub(in crate::gateway::downstream) fn was_given(&self, elicitation: &str) -> bool {
        self.state.lock().elicitations.iter().any(|known| **known == *elicitation)
    }

    /// Asks the client on behalf of the plugin at `index`. Dropping the future tells it that the answer is not wanted
    /// any more.
    async fn ask(
        &self,
        index: usize,
        (method, mut params): (&str, Option<Json>),
        stream: StreamNumber,
    ) -> Result<Json, RpcError> {
        let (answer, mut answered) = oneshot::channel();
        let token = params.as_ref().and_then(|params| params.at(&["_meta", PROGRESS_TOKEN]));
        let id = {
            let mut state = self.state.lock();
            if state.asked.len() >= MAX_QUESTIONS {
                return Err(RpcError::internal("the client has too many requests to answer"));
            }
            state.last_asked += 1;
            let id = state.last_asked;
            state.asked.insert(id, Question { answer, index, token: token.clone() });
            id
        };
        if token.is_some() {
            params = params.map(|params| with_token(&params, id));
        }
        let mut asking = Asking { session: self, id, stream, answered: false };
        if !self.send(stream, encode(Some(&Id::Number(id)), method, params.as_ref()), true) {
            return Err(RpcError::internal("the client takes no questions on this request, and listens nowhere else"));
        }
        let mut check = interval(CONNECTION_CHECK);
        let outcome = loop {
            tokio::select! {
                outcome = &mut answered => break outcome,
                _ = check.tick() => {
                    if self.streams.alone(stream) >= self.resume {
                        return Err(RpcError::internal("the client has no connection any more"));
                    }
                }
            }
        };
        asking.answered = true;
        outcome.unwrap_or_else(|_| Err(RpcError::internal("the client's session ended")))
    }
}

/// The parameters of a question with another token for its progress.
fn with_token(params: &Json, token: i64) -> Json {
    let Some(mut object) = params.object() else { return params.clone() };
    let mut meta = object.get("_meta").and_then(Json::object).unwrap_or_default();
    meta.set(PROGRESS_TOKEN, Json::of(&token));
    object.set("_meta", meta.to_json());
    object.to_json()
}

/// A question to the client; unanswered at its end, it is withdrawn.
struct Asking<'a> {
    session: &'a Session,
    id: i64,
    stream: StreamNumber,
    answered: bool,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if !self.answered && self.session.state.lock().asked.remove(&self.id).is_some() {
            let params = Some(Json::of(&json!({ "requestId": self.id })));
            let cancelled = Notification { method: "notifications/cancelled".into(), params };
            self.session.notify(&cancelled, self.stream);
        }
    }
}

/// What belongs to one request of a session, on its way to the client.
struct SessionOutlet {
    session: Weak<Session>,
    stream: StreamNumber,
}

#[async_trait]
impl Outlet for SessionOutlet {
    fn notify(&self, notification: Notification) {
        if let Some(session) = self.session.upgrade() {
            session.notify(&notification, self.stream);
        }
    }

    async fn ask(&self, index: usize, method: &str, params: Option<Json>) -> Result<Json, RpcError> {
        match self.session.upgrade() {
            Some(session) => session.ask(index, (method, params), self.stream).await,
            None => Err(RpcError::internal("the client's session ended")),
        }
    }

    fn gave_elicitation(&self, id: &str) {
        if let Some(session) = self.session.upgrade().filter(|_| id.len() <= MAX_ELICITATION_ID) {
            let mut state = session.state.lock();
            if state.elicitations.len() >= REMEMBERED {
                state.elicitations.pop_front();
            }
            state.elicitations.push_back(id.into());
        }
    }

    fn was_given(&self, id: &str) -> bool {
        self.session.upgrade().is_some_and(|session| session.was_given(id))
    }
}

/// The stream of what belongs to no request.
pub(in crate::gateway::downstream) fn no_request(session: &Arc<Session>) -> Arc<dyn Outlet> {
    session.outlet(STANDALONE)
}
