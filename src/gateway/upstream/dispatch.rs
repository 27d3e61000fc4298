//! What a server sends, to whom it belongs.
//!
//! | from the server | goes to |
//! |---|---|
//! | an answer | who waits for it, once |
//! | progress | the request whose token it has |
//! | a question, a log message | the request on whose stream it came; else the only request under way; else the session |
//! | a changed list, an updated resource, the end of an elicitation, the state of a task | the session |
//! | any other notification | the request on whose stream it came, else the session |
//! | something of a subscription (modern) | the subscription that it names |
//! | a withdrawn question | the question's answering ends |
//! | `ping` | answered at once |
//!
//! A question that came on a request's own stream ends with that request. How many a server may have open at once is
//! bounded; what it asks beyond that holds up what it sends next, until it has taken the refusal.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use super::{Upcalls, UpstreamError};
use crate::gateway::message::{Id, Json, Message, Notification, Request, Response, RpcError, encode, encode_response};
use crate::gateway::protocol::{Generation, META_SUBSCRIPTION, PROGRESS_TOKEN};

/// Questions a server may have open at once; more are refused.
const MAX_QUESTIONS: usize = 64;

/// Answers that are not JSON-RPC errors about one request, but the end of all.
pub(super) type Outcome = Result<Json, UpstreamError>;

/// The way back to the server.
#[async_trait]
pub(super) trait Outbox: Send + Sync + 'static {
    /// Sends a whole message, without waiting for more than its delivery.
    async fn send(&self, message: Bytes);
}

/// Hands each message of a server to the request or session that it belongs to.
pub(super) struct Dispatch {
    plugin: Arc<str>,
    is_modern: AtomicBool,
    pending: Mutex<HashMap<i64, Waiter>>,
    /// Who hears what belongs to no request.
    session: Mutex<Vec<(i64, Arc<dyn Upcalls>)>>,
    answering: Mutex<HashMap<Id, Answering>>,
    lists_changed: AtomicBool,
    /// A protocol violation was logged already.
    violated: AtomicBool,
}

struct Waiter {
    answer: oneshot::Sender<Outcome>,
    upcalls: Arc<dyn Upcalls>,
    /// It is a subscription, which a server may end.
    listens: bool,
}

struct Answering {
    task: AbortHandle,
    /// The request on whose stream the question came.
    request: Option<i64>,
}

impl Dispatch {
    pub(super) fn new(plugin: Arc<str>, generation: Generation) -> Self {
        Self {
            plugin,
            is_modern: AtomicBool::new(generation == Generation::Modern),
            pending: Mutex::default(),
            session: Mutex::default(),
            answering: Mutex::default(),
            lists_changed: AtomicBool::new(false),
            violated: AtomicBool::new(false),
        }
    }

    /// The server turned out to be of the modern generation.
    pub(super) fn speak_modern(&self) {
        self.is_modern.store(true, Ordering::Relaxed);
    }

    fn is_modern(&self) -> bool {
        self.is_modern.load(Ordering::Relaxed)
    }

    /// Adds who hears what belongs to no request, under a number to remove it by.
    pub(super) fn add_listener(&self, number: i64, upcalls: Arc<dyn Upcalls>) {
        self.session.lock().push((number, upcalls));
    }

    pub(super) fn remove_listener(&self, number: i64) {
        self.session.lock().retain(|(known, _)| *known != number);
    }

    /// Whether the server said that a list of this session changed.
    pub(super) fn lists_changed(&self) -> bool {
        self.lists_changed.load(Ordering::Relaxed)
    }

    /// The answer to the request `id` of this method is waited for from now on.
    pub(super) fn wait(&self, id: i64, method: &str, upcalls: Arc<dyn Upcalls>) -> oneshot::Receiver<Outcome> {
        let (answer, answered) = oneshot::channel();
        let listens = method == "subscriptions/listen";
        self.pending.lock().insert(id, Waiter { answer, upcalls, listens });
        answered
    }

    /// Nobody waits any more: whether somebody did. Questions that came on its stream end.
    pub(super) fn forget(&self, id: i64) -> bool {
        self.answering.lock().retain(|_, answering| {
            let ends = answering.request == Some(id);
            if ends {
                answering.task.abort();
            }
            !ends
        });
        self.pending.lock().remove(&id).is_some()
    }

    /// Whether nothing is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.pending.lock().is_empty() && self.answering.lock().is_empty()
    }

    /// Gives an outcome to who waits for it, if anybody does.
    pub(super) fn settle(&self, id: i64, outcome: Outcome) {
        let waiter = self.pending.lock().remove(&id);
        if let Some(waiter) = waiter {
            // Ignore the error: the receiver was dropped.
            let _ = waiter.answer.send(outcome);
        }
    }

    /// Ends everything: there will be no answers, and none are wanted.
    pub(super) fn end(&self, error: &UpstreamError) {
        let pending = std::mem::take(&mut *self.pending.lock());
        for waiter in pending.into_values() {
            let _ = waiter.answer.send(Err(error.clone()));
        }
        for (_, answering) in self.answering.lock().drain() {
            answering.task.abort();
        }
    }

    /// Takes a message in; `stream` is the request on whose stream it came.
    pub(super) async fn receive(self: &Arc<Self>, message: Message, stream: Option<i64>, outbox: &Arc<dyn Outbox>) {
        match message {
            Message::Response(response) => self.answered(response, stream),
            Message::Request(request) if self.is_modern() => {
                self.violation(&request.method);
            }
            Message::Request(request) => self.asked(request, stream, outbox).await,
            Message::Notification(notification) => self.notified(notification, stream).await,
        }
    }

    fn answered(&self, response: Response, stream: Option<i64>) {
        let id = response.id.as_ref().and_then(Id::as_number);
        let id = match stream {
            // A server that cannot read a request cannot name it in its error.
            Some(stream) if id == Some(stream) || response.outcome.is_err() => Some(stream),
            _ => id,
        };
        if let Some(id) = id {
            self.settle(id, response.outcome.map_err(UpstreamError::Refused));
        }
    }

    fn violation(&self, method: &str) {
        if !self.violated.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                plugin = &*self.plugin,
                method = known_question(method),
                "the server sends requests, which servers of 2026-07-28 must not; they are ignored"
            );
        }
    }

    /// Answers a question in a task of its own, so that what comes next is not held up; unless there are too many, or
    /// one of its id.
    async fn asked(self: &Arc<Self>, request: Request, stream: Option<i64>, outbox: &Arc<dyn Outbox>) {
        let id = request.id.clone();
        let refusal = {
            let answering = self.answering.lock();
            if answering.contains_key(&id) {
                Some(RpcError::invalid_request("a request of this id is being answered"))
            } else if answering.len() >= MAX_QUESTIONS {
                Some(RpcError::internal("the client has too many requests to answer"))
            } else {
                None
            }
        };
        if let Some(refusal) = refusal {
            outbox.send(encode_response(Some(&id), &Err(refusal))).await;
            return;
        }
        let (dispatch, outbox) = (Arc::clone(self), Arc::clone(outbox));
        let upcalls = self.upcalls(stream);
        let mut answering = self.answering.lock();
        let task = tokio::spawn(async move {
            let id = request.id.clone();
            let outcome = match upcalls {
                _ if &*request.method == "ping" => Ok(Json::empty_object()),
                Some(upcalls) => upcalls.asked(request).await,
                None => Err(RpcError::method_not_found("nobody is there to answer")),
            };
            outbox.send(encode_response(Some(&id), &outcome)).await;
            dispatch.answering.lock().remove(&id);
        });
        answering.insert(id, Answering { task: task.abort_handle(), request: stream });
    }

    async fn notified(&self, notification: Notification, stream: Option<i64>) {
        let params = notification.params.as_ref();
        match &*notification.method {
            "notifications/cancelled" => {
                let id = params.and_then(|params| Id::read(&params.get("requestId")?));
                let Some(id) = id else { return };
                if let Some(answering) = self.answering.lock().remove(&id) {
                    answering.task.abort();
                }
                if self.is_modern()
                    && let Some(id) = id.as_number()
                    && self.is_subscription(id)
                {
                    // A server ends a subscription so on a pipe, where there is no stream to close. It ends nothing
                    // else so.
                    self.settle(id, Ok(Json::empty_object()));
                }
            }
            "notifications/progress" => {
                let token = params.and_then(|params| Id::read(&params.get(PROGRESS_TOKEN)?)?.as_number());
                if let Some(upcalls) = token.and_then(|token| self.of_request(token)) {
                    upcalls.notified(notification).await;
                }
            }
            _ if self.is_modern() => self.notified_by_modern(notification, stream).await,
            method if is_of_session(method) => {
                if method.ends_with("/list_changed") {
                    self.lists_changed.store(true, Ordering::Relaxed);
                }
                self.notify_session(notification).await;
            }
            "notifications/message" => {
                if let Some(upcalls) = self.upcalls(stream) {
                    upcalls.notified(notification).await;
                }
            }
            _ => match stream.and_then(|stream| self.of_request(stream)) {
                Some(upcalls) => upcalls.notified(notification).await,
                None => self.notify_session(notification).await,
            },
        }
    }

    /// On a pipe only what names its subscription, or can be of one request alone, can be attributed.
    async fn notified_by_modern(&self, mut notification: Notification, stream: Option<i64>) {
        let subscription = notification.params.as_ref().and_then(|params| params.at(&["_meta", META_SUBSCRIPTION]));
        if let Some(id) = subscription.and_then(|id| Id::read(&id)?.as_number()) {
            if let Some(upcalls) = self.of_request(id) {
                notification.params = notification.params.as_ref().map(without_subscription);
                upcalls.notified(notification).await;
            }
            return;
        }
        let upcalls = stream.and_then(|stream| self.of_request(stream)).or_else(|| self.of_only());
        if let Some(upcalls) = upcalls {
            upcalls.notified(notification).await;
        }
    }

    async fn notify_session(&self, notification: Notification) {
        let listeners = self.session.lock().clone();
        for (_, upcalls) in listeners {
            upcalls.notified(notification.clone()).await;
        }
    }

    fn is_subscription(&self, id: i64) -> bool {
        self.pending.lock().get(&id).is_some_and(|waiter| waiter.listens)
    }

    fn of_request(&self, id: i64) -> Option<Arc<dyn Upcalls>> {
        self.pending.lock().get(&id).map(|waiter| Arc::clone(&waiter.upcalls))
    }

    fn of_only(&self) -> Option<Arc<dyn Upcalls>> {
        let pending = self.pending.lock();
        let mut waiters = pending.values();
        match (waiters.next(), waiters.next()) {
            (Some(only), None) => Some(Arc::clone(&only.upcalls)),
            _ => None,
        }
    }

    fn upcalls(&self, stream: Option<i64>) -> Option<Arc<dyn Upcalls>> {
        let of_request = match stream {
            Some(stream) => self.of_request(stream),
            None => self.of_only(),
        };
        of_request.or_else(|| self.session.lock().first().map(|(_, upcalls)| Arc::clone(upcalls)))
    }
}

/// The parameters of a notification without the id of the subscription it came by, which is the gateway's own.
pub(super) fn without_subscription(params: &Json) -> Json {
    let Some(mut object) = params.object() else { return params.clone() };
    let Some(mut meta) = object.get("_meta").and_then(Json::object) else { return params.clone() };
    meta.take(META_SUBSCRIPTION);
    if meta.is_empty() {
        object.take("_meta");
    } else {
        object.set("_meta", meta.to_json());
    }
    object.to_json()
}

/// The notification that cancels a request.
pub(super) fn cancelled(id: i64) -> Bytes {
    let params = Json::of(&serde_json::json!({ "requestId": id }));
    encode(None, "notifications/cancelled", Some(&params))
}

/// Notifications that are about the session and not about a request, on whichever stream they come.
fn is_of_session(method: &str) -> bool {
    matches!(
        method,
        "notifications/tools/list_changed"
            | "notifications/prompts/list_changed"
            | "notifications/resources/list_changed"
            | "notifications/resources/updated"
            | "notifications/elicitation/complete"
            | "notifications/tasks/status"
    )
}

/// A method for the log: one that is known, since a server may name it as it likes.
fn known_question(method: &str) -> &'static str {
    ["sampling/createMessage", "elicitation/create", "roots/list", "ping"]
        .into_iter()
        .find(|known| *known == method)
        .unwrap_or("other")
}
