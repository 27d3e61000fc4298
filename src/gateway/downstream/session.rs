//! One session of a client of an old version: its streams, its sessions with the plugins, and what either side waits
//! for.
//!
//! A session belongs to the caller who opened it; to anybody else it does not exist. It ends when the client says so,
//! after a while without use, or with the gateway; its sessions with plugins, and requests under way, end with it.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::oneshot;
use tokio::time::{Instant, interval};
use tokio_util::sync::CancellationToken;

use super::streams::{STANDALONE, StreamNumber, Streams};
use crate::gateway::budget::{Budget, Charge};
use crate::gateway::call::client::{Client, ClientSession, Endpoint, Outlet};
use crate::gateway::call::dispatch::own_ask;
use crate::gateway::call::outgoing::Meta;
use crate::gateway::call::uri::MAX_URI;
use crate::gateway::identity::Caller;
use crate::gateway::message::{Id, Json, Notification, Object, Response, RpcError, encode};
use crate::gateway::protocol::{Generation, PROGRESS_TOKEN};
use crate::gateway::upstream::{Listening, StreamGuard, Upcalls, UpstreamError, UpstreamSession};
use crate::telemetry::w3c;

/// Requests of servers that a client may have to answer at once; more are refused.
const ASKED: usize = 64;

/// Links to resources, elicitations and subscriptions that are remembered, each; all are charged to the session's
/// owner.
const REMEMBERED: usize = 256;

/// The longest id of an elicitation that is remembered: a server makes it up.
const MAX_ELICITATION_ID: usize = 512;

/// How often it is looked whether an asked client is still there.
const CONNECTION_CHECK: Duration = Duration::from_secs(1);

/// What makes the other end of a session's upstream sessions: whatever a plugin says that belongs to no call.
pub(super) trait Listener: Send + Sync + 'static {
    fn upcalls(&self, session: &Arc<Session>, index: usize) -> Arc<dyn Upcalls>;
}

/// One session of a client.
pub(crate) struct Session {
    pub(super) id: Arc<str>,
    /// Whose it is.
    pub(super) caller: Caller,
    pub(super) owner: Arc<str>,
    pub(super) known: bool,
    pub(super) endpoint: Endpoint,
    pub(super) client: Arc<Client>,
    /// What its client opened it with; the plugins hear the same.
    initialize: Json,
    pub(super) streams: Streams,
    /// The session with each plugin, once it is needed.
    upstreams: Box<[Upstream]>,
    state: Mutex<State>,
    budget: Arc<Budget>,
    /// How long a client that is asked may be without a connection.
    resume: Duration,
    listener: Arc<dyn Listener>,
    this: Weak<Session>,
    /// Over.
    pub(super) closed: CancellationToken,
}

#[derive(Default)]
struct Upstream {
    session: tokio::sync::Mutex<Option<Arc<UpstreamSession>>>,
    /// The same, for those who only look.
    open: Mutex<Weak<UpstreamSession>>,
    /// Keeps its stream open while the client listens.
    stream: Mutex<Option<StreamGuard>>,
    /// The subscriptions at a modern server.
    listening: tokio::sync::Mutex<Option<Listening>>,
    /// Calls under way whose result is redacted.
    redacting: AtomicUsize,
}

struct State {
    /// What the client is asked, by the id it is asked under.
    asked: HashMap<i64, Question>,
    last_asked: i64,
    /// The client's requests under way.
    requests: HashMap<Id, CancellationToken>,
    log_level: Option<Json>,
    links: VecDeque<Remembered>,
    subscriptions: VecDeque<Remembered>,
    elicitations: VecDeque<Remembered>,
    used: Instant,
}

/// A URI or an id that is remembered, the plugin it is of, and what it is charged.
struct Remembered {
    text: Box<str>,
    index: usize,
    _charge: Charge,
}

/// A question that the client has not answered yet.
struct Question {
    answer: oneshot::Sender<Result<Json, RpcError>>,
    /// The plugin that asks, and the token that it gave for progress, if it did; the client is given the question's id
    /// in its place.
    index: usize,
    token: Option<Json>,
}

/// What a session is made of.
pub(super) struct SessionParts {
    pub(super) id: Arc<str>,
    pub(super) caller: Caller,
    pub(super) owner: Arc<str>,
    pub(super) known: bool,
    pub(super) endpoint: Endpoint,
    pub(super) client: Arc<Client>,
    pub(super) initialize: Json,
    pub(super) budget: Arc<Budget>,
    pub(super) resume: Duration,
    pub(super) listener: Arc<dyn Listener>,
}

impl Session {
    pub(super) fn new(parts: SessionParts) -> Arc<Self> {
        let upstreams = parts.endpoint.plugins.iter().map(|_| Upstream::default()).collect();
        let state = State {
            asked: HashMap::new(),
            last_asked: 0,
            requests: HashMap::new(),
            log_level: None,
            links: VecDeque::new(),
            subscriptions: VecDeque::new(),
            elicitations: VecDeque::new(),
            used: Instant::now(),
        };
        Arc::new_cyclic(|this| Self {
            id: parts.id,
            caller: parts.caller,
            owner: parts.owner,
            known: parts.known,
            endpoint: parts.endpoint,
            client: parts.client,
            initialize: parts.initialize,
            streams: Streams::default(),
            upstreams,
            state: Mutex::new(state),
            budget: parts.budget,
            resume: parts.resume,
            listener: parts.listener,
            this: Weak::clone(this),
            closed: CancellationToken::new(),
        })
    }

    /// It is used now.
    pub(super) fn touch(&self) {
        self.state.lock().used = Instant::now();
    }

    /// When it was used last; `None`: something is under way, or a connection of its client is open.
    pub(super) fn unused_since(&self) -> Option<Instant> {
        let since = {
            let state = self.state.lock();
            state.requests.is_empty().then_some(state.used)?
        };
        (!self.streams.in_use()).then_some(since)
    }

    /// The sessions with plugins that are open, with the plugins' indexes.
    pub(super) fn open_upstreams(&self) -> Vec<(usize, Arc<UpstreamSession>)> {
        let open = self.upstreams.iter().enumerate();
        open.filter_map(|(index, upstream)| Some((index, upstream.open.lock().upgrade()?)))
            .filter(|(_, session)| !session.is_closed())
            .collect()
    }

    /// The client listens, or does not any more: so do the sessions with plugins.
    pub(super) fn listens(&self, listens: bool) {
        for upstream in &self.upstreams {
            let session = upstream.open.lock().upgrade().filter(|_| listens);
            *upstream.stream.lock() = session.map(|session| session.want_stream());
        }
    }

    /// A request of the client is under way; the token says when it is cancelled. `None`: its id is in use.
    pub(super) fn begin(&self, id: &Id) -> Option<CancellationToken> {
        let token = self.closed.child_token();
        let mut state = self.state.lock();
        state.used = Instant::now();
        match state.requests.entry(id.clone()) {
            std::collections::hash_map::Entry::Occupied(_) => None,
            std::collections::hash_map::Entry::Vacant(entry) => Some(entry.insert(token).clone()),
        }
    }

    pub(super) fn finish(&self, id: &Id) {
        let mut state = self.state.lock();
        state.requests.remove(id);
        state.used = Instant::now();
        if state.requests.is_empty() {
            // A session that rests holds no more than it has to.
            state.requests.shrink_to_fit();
        }
    }

    /// The client does not want the answer any more.
    pub(super) fn cancel(&self, id: &Id) {
        if let Some(request) = self.state.lock().requests.remove(id) {
            request.cancel();
        }
    }

    /// The client answers what it was asked.
    pub(super) fn answered(&self, response: Response) {
        let Some(Id::Number(id)) = response.id else { return };
        if let Some(question) = self.state.lock().asked.remove(&id) {
            // Ignore the error: the question was withdrawn.
            let _ = question.answer.send(response.outcome);
        }
    }

    /// The progress that the client makes with a question: the plugin that asked it, and the notification's parameters.
    pub(super) fn progress(&self, params: &Object) -> Option<(usize, Json)> {
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

    /// Ends it.
    pub(super) async fn close(&self) {
        self.closed.cancel();
        self.state.lock().asked.clear();
        for upstream in &self.upstreams {
            drop(upstream.stream.lock().take());
            drop(upstream.listening.lock().await.take());
            drop(upstream.session.lock().await.take());
        }
    }

    /// Where what belongs to the request on `stream` goes.
    pub(super) fn outlet(&self, stream: StreamNumber) -> Arc<dyn Outlet> {
        Arc::new(SessionOutlet { session: Weak::clone(&self.this), stream })
    }

    /// Notifies the client.
    pub(super) fn notify(&self, notification: &Notification, stream: StreamNumber) {
        self.send(stream, encode(None, &notification.method, notification.params.as_ref()), false);
    }

    /// A message, charged to the session's owner for as long as it waits. Without memory for it, it is dropped.
    fn send(&self, stream: StreamNumber, message: Bytes, needed: bool) -> bool {
        let Ok(charge) = self.budget.charge(&self.owner, message.len()) else { return false };
        self.streams.send(stream, charge.hold(one_line(message)), needed)
    }

    /// Whether a call whose result is redacted is under way at the plugin.
    pub(super) fn is_redacting(&self, index: usize) -> bool {
        self.upstreams.get(index).is_some_and(|upstream| upstream.redacting.load(Ordering::Relaxed) > 0)
    }

    /// Whether the client was given this elicitation by URL.
    pub(super) fn was_given(&self, elicitation: &str) -> bool {
        self.state.lock().elicitations.iter().any(|known| *known.text == *elicitation)
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
            if state.asked.len() >= ASKED {
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

    /// What is to be remembered, charged to the session's owner. `None`: there is no memory for it.
    fn remembered(&self, text: &str, index: usize) -> Option<Remembered> {
        let charge = self.budget.charge(&self.owner, text.len() + size_of::<Remembered>()).ok()?;
        Some(Remembered { text: text.into(), index, _charge: charge })
    }

    fn remember(list: &mut VecDeque<Remembered>, new: Option<Remembered>) {
        let Some(new) = new else { return };
        list.retain(|known| known.text != new.text);
        if list.len() >= REMEMBERED {
            list.pop_front();
        }
        list.push_back(new);
    }

    /// Opens the subscriptions at a modern server anew, with all that the client is subscribed to there, and one more
    /// or one less. Whether that one is granted.
    async fn relisten(&self, index: usize, uri: &str, there: bool) -> Result<bool, UpstreamError> {
        let (Some(upstream), Some(plugin)) = (self.upstreams.get(index), self.endpoint.plugins.get(index)) else {
            return Err(UpstreamError::Unreachable);
        };
        let Some(this) = self.this.upgrade().filter(|_| !self.closed.is_cancelled()) else {
            return Err(UpstreamError::Broken);
        };
        // One after the other: each takes over what the one before it has.
        let mut listening = upstream.listening.lock().await;
        let mut uris: Vec<String> = {
            let state = self.state.lock();
            let known = state.subscriptions.iter().filter(|known| known.index == index && *known.text != *uri);
            known.map(|known| known.text.to_string()).collect()
        };
        if there {
            uris.push(uri.to_owned());
        } else {
            self.subscribed(index, uri, false);
        }
        if uris.is_empty() {
            listening.take();
            return Ok(false);
        }
        let filter = Json::of(&json!({ "resourceSubscriptions": uris }));
        let trace = w3c::Outbound::default();
        let meta = Meta {
            client: &self.client,
            server: Generation::Modern,
            trace: &trace,
            progress: None,
            log_level: None,
            tasks: false,
        };
        let caller = self.known.then_some(&*self.owner);
        // The new one is there before the old one goes.
        let new = plugin.listen(caller, filter, meta.alone(), self.listener.upcalls(&this, index)).await?;
        let granted: Vec<String> =
            new.granted().get("resourceSubscriptions").and_then(|all| all.read()).unwrap_or_default();
        *listening = Some(new);
        let is_granted = there && granted.iter().any(|known| known == uri);
        if is_granted {
            self.subscribed(index, uri, true);
        }
        Ok(is_granted)
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

/// A message without line breaks.
fn one_line(message: Bytes) -> Vec<u8> {
    let is_break = |byte: &u8| matches!(byte, b'\n' | b'\r');
    if message.iter().any(is_break) {
        message.iter().copied().filter(|byte| !is_break(byte)).collect()
    } else {
        message.into()
    }
}

#[async_trait]
impl ClientSession for Session {
    fn id(&self) -> &Arc<str> {
        &self.id
    }

    async fn upstream(&self, index: usize) -> Result<Arc<UpstreamSession>, UpstreamError> {
        let (Some(upstream), Some(plugin)) = (self.upstreams.get(index), self.endpoint.plugins.get(index)) else {
            return Err(UpstreamError::Unreachable);
        };
        let mut slot = upstream.session.lock().await;
        if let Some(session) = slot.as_ref().filter(|session| !session.is_closed()) {
            return Ok(Arc::clone(session));
        }
        // A session that has ended must not open another.
        let Some(this) = self.this.upgrade().filter(|_| !self.closed.is_cancelled()) else {
            return Err(UpstreamError::Broken);
        };
        let died = slot.take().is_some();
        let upcalls = self.listener.upcalls(&this, index);
        let session = plugin.connect(&self.owner, self.initialize.clone(), Arc::clone(&upcalls)).await?;
        if died {
            plugin.reconnected();
        }
        let level = self.state.lock().log_level.clone();
        if let Some(level) = level.filter(|_| session.opened().at(&["capabilities", "logging"]).is_some()) {
            let mut params = Object::default();
            params.add("level", level);
            // A server that refuses the level sends what it likes.
            let _ = session.ask(own_ask("logging/setLevel", params.to_json(), upcalls)).await;
        }
        *upstream.open.lock() = Arc::downgrade(&session);
        if self.streams.listens() {
            *upstream.stream.lock() = Some(session.want_stream());
            session.stream_opened().await;
        }
        *slot = Some(Arc::clone(&session));
        Ok(session)
    }

    fn open_upstream(&self, index: usize) -> Option<Arc<UpstreamSession>> {
        self.upstreams.get(index)?.open.lock().upgrade().filter(|session| !session.is_closed())
    }

    async fn listen(&self, index: usize, uri: &str) -> Result<bool, UpstreamError> {
        self.relisten(index, uri, true).await
    }

    async fn unlisten(&self, index: usize, uri: &str) -> Result<(), UpstreamError> {
        self.relisten(index, uri, false).await.map(drop)
    }

    fn log_level(&self) -> Option<Json> {
        self.state.lock().log_level.clone()
    }

    fn set_log_level(&self, level: &str) {
        // Bytes of its own: those of the request are charged to the caller for as long as any part of them is there.
        self.state.lock().log_level = Some(Json::text(level));
    }

    fn remember_link(&self, index: usize, uri: &str) {
        if uri.len() <= MAX_URI {
            let new = self.remembered(uri, index);
            Self::remember(&mut self.state.lock().links, new);
        }
    }

    fn linked(&self, uri: &str) -> Option<usize> {
        self.state.lock().links.iter().find(|known| *known.text == *uri).map(|known| known.index)
    }

    fn subscribed(&self, index: usize, uri: &str, there: bool) {
        if there {
            let new = self.remembered(uri, index);
            Self::remember(&mut self.state.lock().subscriptions, new);
        } else {
            self.state.lock().subscriptions.retain(|known| *known.text != *uri);
        }
    }

    fn subscription(&self, uri: &str) -> Option<usize> {
        self.state.lock().subscriptions.iter().find(|known| *known.text == *uri).map(|known| known.index)
    }

    fn redacting(&self, index: usize, begins: bool) {
        if let Some(upstream) = self.upstreams.get(index) {
            if begins {
                upstream.redacting.fetch_add(1, Ordering::Relaxed);
            } else {
                upstream.redacting.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
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
            let new = session.remembered(id, 0);
            Session::remember(&mut session.state.lock().elicitations, new);
        }
    }

    fn was_given(&self, id: &str) -> bool {
        self.session.upgrade().is_some_and(|session| session.was_given(id))
    }
}

/// The stream of what belongs to no request.
pub(super) fn no_request(session: &Arc<Session>) -> Arc<dyn Outlet> {
    session.outlet(STANDALONE)
}
