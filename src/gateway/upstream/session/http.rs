//! A session over Streamable HTTP.
//!
//! Each message is an exchange of its own. The answer to a request comes as its exchange's body, or on its exchange's
//! event stream after what the server tells and asks for the request's sake. A stream that ends before the answer is
//! resumed with `Last-Event-ID`, if the server gave its events ids; without, the request is lost. It is never sent
//! again: it may have had effects. Only a request that the server refused unread, since it has forgotten the session,
//! is ([`super::recovery`]).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::stream::Wanted;
use crate::gateway::message::{Id, Json, Message, encode};
use crate::gateway::protocol::{LAST_EVENT_HEADER, SESSION_HEADER, VERSION_HEADER};
use crate::gateway::upstream::dispatch::{Dispatch, Outbox, Outcome, cancelled};
use crate::gateway::upstream::http::{Content, EventStream, ExchangeError, Failure, HttpServer, Reply};
use crate::gateway::upstream::{Ask, Upcalls, UpstreamError, next_id};

/// How long a message that expects no answer may take.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// How often resuming a stream may fail in a row.
const MAX_RESUMPTIONS: usize = 5;

/// How long to wait before a stream is resumed: unless the server says, at least, and at most.
pub(super) const RESUME_AFTER: Duration = Duration::from_secs(1);
const MIN_RESUME: Duration = Duration::from_millis(50);
const MAX_RESUME: Duration = Duration::from_secs(60);

/// One session over Streamable HTTP.
pub(in crate::gateway::upstream) struct HttpSession {
    pub(super) server: Arc<HttpServer>,
    /// The parameters of `initialize`, for when the server has forgotten the session.
    pub(super) initialize: Json,
    pub(super) established: RwLock<Established>,
    /// What the server answered to `initialize`, the last time.
    pub(super) opened: RwLock<Json>,
    pub(super) reopening: tokio::sync::Mutex<()>,
    pub(super) dispatch: Arc<Dispatch>,
    /// What is said to the server again in a new session.
    pub(super) remembered: Mutex<Remembered>,
    pub(super) wanted: Mutex<Wanted>,
    /// Whether the stream for what belongs to no request is open.
    pub(super) is_streaming: watch::Sender<bool>,
    pub(super) closed: CancellationToken,
    pub(super) retry: (Duration, Duration),
    pub(super) tasks: TaskTracker,
    permit: Mutex<Option<OwnedSemaphorePermit>>,
}

pub(super) struct HttpSessionParts {
    pub(super) server: Arc<HttpServer>,
    pub(super) initialize: Json,
    pub(super) dispatch: Arc<Dispatch>,
    pub(super) retry: (Duration, Duration),
    pub(super) permit: Option<OwnedSemaphorePermit>,
    pub(super) tasks: TaskTracker,
}

/// What the messages of a session have in common.
#[derive(Clone, Default)]
pub(super) struct Established {
    /// Counts the sessions that the server was opened anew with.
    pub(super) number: u64,
    /// The version, and the session's id if the server gave one.
    pub(super) headers: HeaderMap,
}

impl Established {
    pub(super) fn has_session(&self) -> bool {
        self.headers.contains_key(SESSION_HEADER)
    }
}

/// The state of a session that the client made, and that a new one lacks.
#[derive(Default)]
pub(super) struct Remembered {
    pub(super) level: Option<Json>,
    pub(super) subscriptions: BTreeSet<Box<str>>,
    /// The bytes of their URIs.
    bytes: usize,
}

/// The most subscriptions that are remembered, and the bytes of their URIs: clients choose both.
const MAX_SUBSCRIPTIONS: usize = 1_024;
const MAX_SUBSCRIBED_BYTES: usize = 128 << 10;

impl Remembered {
    fn subscribe(&mut self, uri: Option<Box<str>>) {
        let Some(uri) = uri else { return };
        let has_room = self.subscriptions.len() < MAX_SUBSCRIPTIONS && self.bytes + uri.len() <= MAX_SUBSCRIBED_BYTES;
        let length = uri.len();
        if has_room && self.subscriptions.insert(uri) {
            self.bytes += length;
        }
    }

    fn unsubscribe(&mut self, uri: &str) {
        if self.subscriptions.remove(uri) {
            self.bytes = self.bytes.saturating_sub(uri.len());
        }
    }
}

impl HttpSession {
    /// Opens a session; beside it, what the server answered to `initialize`.
    pub(super) async fn open(parts: HttpSessionParts) -> Result<(Arc<Self>, Json), UpstreamError> {
        let session = Arc::new(Self {
            server: parts.server,
            initialize: parts.initialize,
            established: RwLock::default(),
            opened: RwLock::new(Json::empty_object()),
            reopening: tokio::sync::Mutex::default(),
            dispatch: parts.dispatch,
            remembered: Mutex::default(),
            wanted: Mutex::default(),
            is_streaming: watch::Sender::new(false),
            closed: CancellationToken::new(),
            retry: parts.retry,
            tasks: parts.tasks,
            permit: Mutex::new(parts.permit),
        });
        let opened = session.establish().await?;
        Ok((session, opened))
    }

    /// Initializes a session with the server, and makes it the one that is used.
    pub(super) async fn establish(self: &Arc<Self>) -> Result<Json, UpstreamError> {
        let ask = Ask::own("initialize", Some(self.initialize.clone()));
        let answered = self.dispatch.wait(ask.id, &ask.method, ask.upcalls);
        let _waiting = Waiting { session: self, id: ask.id, headers: None };
        let body = encode(Some(&Id::Number(ask.id)), &ask.method, ask.params.as_ref());
        let mut reply = self.server.post(HeaderMap::new(), body).await?;
        let mut headers = HeaderMap::new();
        if let Some(id) = reply.session.take() {
            headers.insert(SESSION_HEADER, id);
        }
        let opened = self.settle(ask.id, answered, reply, &headers).await?;
        let version = opened.get("protocolVersion").ok_or(UpstreamError::NotMcp)?;
        let version = version.as_text().and_then(|version| HeaderValue::from_str(&version).ok());
        headers.insert(VERSION_HEADER, version.ok_or(UpstreamError::NotMcp)?);
        {
            let mut established = self.established.write();
            *established = Established { number: established.number + 1, headers: headers.clone() };
        }
        *self.opened.write() = opened.clone();
        self.post_quietly(headers, encode(None, "notifications/initialized", None)).await;
        Ok(opened)
    }

    pub(super) fn established(&self) -> Established {
        self.established.read().clone()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }

    pub(super) fn closed(&self) -> impl Future<Output = ()> + Send + use<> {
        self.closed.clone().cancelled_owned()
    }

    /// Ends it, with `DELETE`; it counts against the limit until then.
    pub(super) fn close(self: &Arc<Self>) {
        if self.closed.is_cancelled() {
            return;
        }
        self.closed.cancel();
        self.dispatch.end(&UpstreamError::Broken);
        self.wanted.lock().stop();
        let (established, permit) = (self.established(), self.permit.lock().take());
        if established.has_session() && tokio::runtime::Handle::try_current().is_ok() {
            let server = Arc::clone(&self.server);
            self.tasks.spawn(async move {
                if !matches!(timeout(SEND_TIMEOUT, server.delete(established.headers)).await, Ok(Ok(()))) {
                    tracing::debug!(plugin = &**server.plugin(), "a session with the server did not end well");
                }
                drop(permit);
            });
        }
    }

    pub(super) async fn ask(self: &Arc<Self>, ask: Ask) -> Outcome {
        let Ask { id, method, params, headers, upcalls, .. } = ask;
        let body = encode(Some(&Id::Number(id)), &method, params.as_ref());
        let mut outcome = self.attempt((id, &method), &body, &headers, Arc::clone(&upcalls)).await;
        if let Err((established, error)) = &outcome
            && let Some(is_unread) = self.forgotten(established, error).await
        {
            self.reopen(established.number).await?;
            if is_unread {
                outcome = self.attempt((id, &method), &body, &headers, upcalls).await;
            }
        }
        match outcome {
            Ok(result) => {
                self.remember(&method, params.as_ref());
                Ok(result)
            }
            Err((_, failure)) => Err(failure.into()),
        }
    }

    /// Sends a request in the session as it is now, and waits for the answer.
    async fn attempt(
        self: &Arc<Self>,
        (id, method): (i64, &str),
        body: &Bytes,
        headers: &HeaderMap,
        upcalls: Arc<dyn Upcalls>,
    ) -> Result<Json, (Established, Failure)> {
        let established = self.established();
        if self.is_closed() {
            return Err((established, Failure::Upstream(UpstreamError::Broken)));
        }
        let answered = self.dispatch.wait(id, method, upcalls);
        let mut waiting = Waiting { session: self, id, headers: Some(established.headers.clone()) };
        let mut all = headers.clone();
        all.extend(established.headers.clone());
        let outcome = match self.server.post(all, body.clone()).await {
            Ok(reply) => {
                let outcome = self.settle(id, answered, reply, &established.headers).await;
                outcome.map_err(Failure::Upstream)
            }
            Err(error) => Err(Failure::Exchange(error)),
        };
        // What the server has answered or refused needs no cancelling; what was only given up on does.
        if !matches!(outcome, Err(Failure::Upstream(UpstreamError::TooLarge { .. } | UpstreamError::Broken))) {
            waiting.headers = None;
        }
        outcome.map_err(|failure| (established, failure))
    }

    /// Takes the answer from wherever it comes.
    async fn settle(
        self: &Arc<Self>,
        id: i64,
        mut answered: oneshot::Receiver<Outcome>,
        reply: Reply,
        headers: &HeaderMap,
    ) -> Outcome {
        let outbox: Arc<dyn Outbox> = Arc::clone(self) as Arc<dyn Outbox>;
        match reply.content {
            Content::Messages(messages) => {
                for message in messages {
                    let is_of_another = matches!(&message, Message::Response(response) if response.outcome.is_ok()
                        && response.id.as_ref().is_none_or(|found| !found.is(id)));
                    if !is_of_another {
                        self.dispatch.receive(message, Some(id), &outbox).await;
                    }
                }
                answered.try_recv().unwrap_or(Err(UpstreamError::NotMcp))
            }
            Content::Nothing => {
                // The server took it, and answers on the stream for what belongs to no request.
                let _stream = self.want_stream();
                answered.await.unwrap_or(Err(UpstreamError::Broken))
            }
            Content::Events(events) => self.follow(id, answered, events, headers, &outbox).await,
        }
    }

    /// Reads the stream of a request to the answer, resuming it as often as it takes.
    async fn follow(
        self: &Arc<Self>,
        id: i64,
        mut answered: oneshot::Receiver<Outcome>,
        mut events: Box<EventStream>,
        headers: &HeaderMap,
        outbox: &Arc<dyn Outbox>,
    ) -> Outcome {
        let (mut last_event, mut after) = (None, RESUME_AFTER);
        loop {
            tokio::select! {
                biased;
                outcome = &mut answered => {
                    events.drain();
                    return outcome.unwrap_or(Err(UpstreamError::Broken));
                }
                arrived = events.next() => match arrived {
                    Some(arrived) => {
                        after = arrived.retry.unwrap_or(after).clamp(MIN_RESUME, MAX_RESUME);
                        last_event = arrived.id.or(last_event);
                        match arrived.messages {
                            Ok(messages) => {
                                for message in messages {
                                    self.dispatch.receive(message, Some(id), outbox).await;
                                }
                            }
                            Err(error @ (ExchangeError::TooLarge { .. } | ExchangeError::Upstream(_))) => return Err(error.into()),
                            // Chatter on a stream; the answer may still come.
                            Err(_) => tracing::debug!(plugin = &**self.server.plugin(), "an event is no MCP message"),
                        }
                    }
                    None => {
                        let last_event = last_event.as_deref().ok_or(UpstreamError::Broken)?;
                        let resumed = tokio::select! {
                            biased;
                            outcome = &mut answered => return outcome.unwrap_or(Err(UpstreamError::Broken)),
                            resumed = self.resume(last_event, after, headers) => resumed,
                        };
                        events = resumed?;
                    }
                }
            }
        }
    }

    /// Opens a stream again, after the event that was seen last.
    async fn resume(
        &self,
        last_event: &str,
        after: Duration,
        headers: &HeaderMap,
    ) -> Result<Box<EventStream>, UpstreamError> {
        let mut headers = headers.clone();
        let last_event = HeaderValue::from_str(last_event).map_err(|_| UpstreamError::NotMcp)?;
        headers.insert(LAST_EVENT_HEADER, last_event);
        let mut wait = after;
        for _ in 0..MAX_RESUMPTIONS {
            sleep(wait).await;
            match self.server.get(headers.clone()).await {
                Ok(events) => return Ok(events),
                Err(ExchangeError::Unreachable | ExchangeError::Broken) => {}
                Err(ExchangeError::Refused(refusal)) if refusal.status >= 500 || refusal.status == 429 => {}
                // It does not know the stream any more, or cannot resume any: the answer is lost.
                Err(_) => return Err(UpstreamError::Broken),
            }
            wait = wait.saturating_mul(2).min(self.retry.1.max(after));
        }
        Err(UpstreamError::Broken)
    }

    pub(super) async fn notify(&self, message: Bytes) {
        self.post_quietly(self.established().headers, message).await;
    }

    /// Sends a message that expects no answer. What the server says to it does not matter.
    pub(super) async fn post_quietly(&self, headers: HeaderMap, message: Bytes) {
        if !matches!(timeout(SEND_TIMEOUT, self.server.post(headers, message)).await, Ok(Ok(_))) {
            tracing::debug!(plugin = &**self.server.plugin(), "the server did not take a notification");
        }
    }

    /// Keeps what would have to be said again in a new session.
    fn remember(&self, method: &str, params: Option<&Json>) {
        let uri = || params.and_then(|params| params.get("uri")?.as_text().map(Box::<str>::from));
        let mut remembered = self.remembered.lock();
        match method {
            "logging/setLevel" => remembered.level = params.cloned(),
            "resources/subscribe" => remembered.subscribe(uri()),
            "resources/unsubscribe" => {
                if let Some(uri) = uri() {
                    remembered.unsubscribe(&uri);
                }
            }
            _ => {}
        }
    }
}

#[async_trait]
impl Outbox for HttpSession {
    async fn send(&self, message: Bytes) {
        self.notify(message).await;
    }
}

/// Forgets its request when it is dropped, and cancels it if it is not answered.
struct Waiting<'a> {
    session: &'a Arc<HttpSession>,
    id: i64,
    /// Those of the session it was sent in; none: it must not be cancelled.
    headers: Option<HeaderMap>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.session.dispatch.forget(self.id);
        if let Some(headers) = self.headers.take()
            && !self.session.is_closed()
            && tokio::runtime::Handle::try_current().is_ok()
        {
            let (session, message) = (Arc::clone(self.session), cancelled(self.id));
            self.session.tasks.spawn(async move { session.post_quietly(headers, message).await });
        }
    }
}

/// The parameters of a request about one resource.
pub(super) fn about_resource(uri: &str) -> Json {
    Json::of(&serde_json::json!({ "uri": uri }))
}

/// A request without anything that is needed, to see whether a session is still known.
pub(super) fn ping() -> Bytes {
    encode(Some(&Id::Number(next_id())), "ping", None)
}

#[cfg(test)]
mod tests {
    use super::{MAX_SUBSCRIBED_BYTES, Remembered};

    #[test]
    fn subscriptions_are_remembered_within_bounds() {
        let mut remembered = Remembered::default();
        for n in 0..100 {
            remembered.subscribe(Some(format!("{n:08}{}", "x".repeat(8_000)).into()));
        }
        assert_eq!(remembered.subscriptions.len(), MAX_SUBSCRIBED_BYTES / 8_008);
        let first = remembered.subscriptions.first().unwrap().clone();
        remembered.subscribe(Some(first.clone()));
        remembered.unsubscribe(&first);
        remembered.unsubscribe(&first);
        assert_eq!(remembered.bytes, remembered.subscriptions.iter().map(|uri| uri.len()).sum::<usize>());
    }
}
