//! One call under way at a server: what comes for its sake, on its way to the client.
//!
//! The obligations of the permit follow the call wherever something of it comes out: progress and log messages lose
//! their words where the result is redacted, and what the server asks of the client is decided on and recorded like
//! what clients ask of servers. While the client is asked, the call gives its turns back and its time does not run.
//!
//! A question to a client of an old version goes out on the call's stream. A modern client cannot be asked in the
//! middle of a call: its questions are handed to the task that waits for the call's result (see `park`), which ends the
//! request with them.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};
use url::Url;

use super::calls::Calls;
use super::client::{Client, Inbound, Outlet};
use super::subject::Subject;
use super::table::{self, Question, ServerNote};
use super::telemetry::Ties;
use super::turns::Held;
use super::uri::MAX_URI;
use crate::gateway::message::{Json, Notification, Object, Request, RpcError};
use crate::gateway::policy::redaction::WITHHELD;
use crate::gateway::policy::{Action, Question as PolicyQuestion, Verdict};
use crate::gateway::protocol::PROGRESS_TOKEN;
use crate::gateway::upstream::{Plugin, Upcalls};

/// The levels of log messages, the least severe first.
const LEVELS: [&str; 8] = ["debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"];

/// Questions of one call that may wait for a modern client at once.
const QUESTIONS: usize = 32;

/// Progress and log messages, and their bytes, that one call may send.
const MAX_NOTES: u32 = 10_000;
const MAX_NOTE_BYTES: usize = 8 << 20;

/// Fields of a form whose names are recorded; of one with many more none is.
const MAX_NAMES: usize = 32;
const MAX_FIELDS: usize = 1_024;

/// How severe a level is; `None`: there is no such level.
pub(crate) fn severity(level: &str) -> Option<usize> {
    LEVELS.into_iter().position(|known| known == level)
}

/// What a scope is of, from the call's first leg to its last.
pub(crate) struct ScopeOf {
    pub(crate) calls: Arc<Calls>,
    pub(crate) inbound: Arc<Inbound>,
    pub(crate) client: Arc<Client>,
    pub(crate) plugin: Arc<Plugin>,
    pub(crate) subject: Subject,
    /// Whether the client sees all plugins as one server.
    pub(crate) namespaced: bool,
}

/// One request of the client for the sake of the call: where what comes goes, and under which permit. A call that
/// waited for an answer goes on for the request that brought it.
pub(crate) struct Leg {
    pub(crate) outlet: Arc<dyn Outlet>,
    /// The client's own progress token.
    pub(crate) token: Option<Json>,
    /// How severe a log message must be to be sent. `None`: of whatever level, the server filters. Over the last: none
    /// is wanted.
    pub(crate) level: Option<usize>,
    pub(crate) ties: Ties,
    pub(crate) verdict: Verdict,
}

/// A question that a modern client has to be asked.
pub(crate) struct Asked {
    pub(crate) method: Box<str>,
    pub(crate) params: Option<Json>,
    pub(crate) answer: oneshot::Sender<Result<Json, RpcError>>,
}

/// A call that is dispatched. See the module's doc.
pub(crate) struct Scope {
    of: ScopeOf,
    /// The request's id at the server, which is its progress token there.
    id: AtomicI64,
    state: Mutex<State>,
    wake: Notify,
    questions: Option<mpsc::Sender<Asked>>,
}

struct State {
    leg: Leg,
    turns: Option<Held>,
    progress: f64,
    notes: u32,
    note_bytes: usize,
    /// How long the server has been at work, and since when it is.
    worked: Duration,
    since: Option<Instant>,
    /// Questions that are out.
    asking: u32,
}

impl Scope {
    /// A call that begins now, under this id at the server and with these turns. `parks`: its client cannot be asked,
    /// so that questions go to the receiver.
    pub(crate) fn new(
        of: ScopeOf,
        leg: Leg,
        (id, turns): (i64, Option<Held>),
        parks: bool,
    ) -> (Arc<Self>, Option<mpsc::Receiver<Asked>>) {
        let (questions, asked) = parks.then(|| mpsc::channel(QUESTIONS)).unzip();
        let state = State {
            leg,
            turns,
            progress: f64::NEG_INFINITY,
            notes: 0,
            note_bytes: 0,
            worked: Duration::ZERO,
            since: Some(Instant::now()),
            asking: 0,
        };
        let (id, state) = (AtomicI64::new(id), Mutex::new(state));
        (Arc::new(Self { of, id, state, wake: Notify::new(), questions }), asked)
    }

    pub(crate) fn plugin(&self) -> &Plugin {
        &self.of.plugin
    }

    /// The request's id at the server.
    pub(crate) fn id(&self) -> i64 {
        self.id.load(Ordering::Relaxed)
    }

    /// The call goes on as another request to its server.
    pub(crate) fn renumber(&self, id: i64) {
        self.id.store(id, Ordering::Relaxed);
    }

    /// Whether the result is redacted, so that no free text of the server may pass.
    pub(crate) fn redacts(&self) -> bool {
        self.state.lock().leg.verdict.obligations.redacts_result()
    }

    /// From now on what comes goes to another request of the same client.
    pub(crate) fn go_on(&self, leg: Leg) {
        let mut state = self.state.lock();
        state.leg = leg;
        state.progress = f64::NEG_INFINITY;
    }

    fn ties(&self) -> Ties {
        self.state.lock().leg.ties.clone()
    }

    fn outlet(&self) -> Arc<dyn Outlet> {
        Arc::clone(&self.state.lock().leg.outlet)
    }

    /// Ready once the server has been at work for `limit`. The time while the client is asked does not count.
    pub(crate) async fn overdue(&self, limit: Duration) {
        loop {
            let woken = self.wake.notified();
            let left = {
                let state = self.state.lock();
                let worked = state.worked + state.since.map_or(Duration::ZERO, |since| since.elapsed());
                state.since.map(|_| limit.saturating_sub(worked))
            };
            match left {
                Some(Duration::ZERO) => return,
                Some(left) => {
                    tokio::select! {
                        () = sleep(left) => {}
                        () = woken => {}
                    }
                }
                None => woken.await,
            }
        }
    }

    /// The client is asked from now on: the turns are given back, and time stands still.
    fn pause(&self) {
        let turns = {
            let mut state = self.state.lock();
            state.asking += 1;
            if let Some(since) = state.since.take() {
                state.worked += since.elapsed();
            }
            state.turns.take()
        };
        drop(turns);
        self.wake.notify_waiters();
    }

    /// The client is asked no more, or one question less: the call takes its turns again, before its caller's other
    /// requests.
    async fn resume(&self) {
        let is_last = {
            let mut state = self.state.lock();
            state.asking = state.asking.saturating_sub(1);
            state.asking == 0
        };
        if !is_last {
            return;
        }
        let turns = self.of.calls.turns(&self.of.plugin, &self.of.inbound.owner, true).await;
        {
            let mut state = self.state.lock();
            if state.asking == 0 {
                state.turns = Some(turns);
                state.since = Some(Instant::now());
            }
        }
        self.wake.notify_waiters();
    }

    /// Gives the turns back: the call is over, or waits for its client.
    pub(crate) fn rest(&self) {
        let turns = self.state.lock().turns.take();
        drop(turns);
    }

    fn notify(&self, method: &str, params: Option<Json>) {
        let outlet = {
            let mut state = self.state.lock();
            state.notes = state.notes.saturating_add(1);
            state.note_bytes = state.note_bytes.saturating_add(params.as_ref().map_or(0, Json::len));
            if state.notes > MAX_NOTES || state.note_bytes > MAX_NOTE_BYTES {
                self.of.calls.refused("notification");
                return;
            }
            Arc::clone(&state.leg.outlet)
        };
        outlet.notify(Notification { method: method.into(), params });
    }

    fn progress(&self, params: &mut Object) -> Option<Json> {
        // Some servers write the number as text.
        let token = params.get(PROGRESS_TOKEN)?;
        let id = self.id();
        let is_ours = token.read::<i64>() == Some(id) || token.as_text().is_some_and(|text| text.parse() == Ok(id));
        let progress: f64 = params.get("progress")?.read()?;
        let mut state = self.state.lock();
        let token = state.leg.token.clone()?;
        if !is_ours || progress <= state.progress {
            return None;
        }
        state.progress = progress;
        drop(state);
        params.set(PROGRESS_TOKEN, token);
        if self.redacts() {
            params.retain(|name, _| matches!(name, PROGRESS_TOKEN | "progress" | "total"));
        }
        Some(params.to_json())
    }

    fn log(&self, params: &mut Object) -> Option<Json> {
        if let Some(least) = self.state.lock().leg.level {
            let level = params.text("level")?;
            if severity(&level)? < least {
                return None;
            }
        }
        if self.redacts() {
            params.retain(|name, _| name == "level");
            params.set("data", Json::text(WITHHELD));
        }
        Some(params.to_json())
    }

    /// Decides on what a server asks of the client, and puts the decision on the record.
    ///
    /// # Errors
    /// The answer to the server, where the client is not asked.
    pub(crate) async fn may_ask(
        &self,
        question: Question,
        method: &str,
        params: Option<&Json>,
    ) -> Result<Option<Json>, RpcError> {
        let refused = |text: &str| RpcError::method_not_found(text);
        if !params.is_none_or(Json::is_unambiguous) {
            let text = "a question names no member twice, and is not nested too deeply";
            return Err(RpcError::invalid_params(text));
        }
        let object = params.and_then(Json::object).unwrap_or_default();
        let url = object.text("url").map(std::borrow::Cow::into_owned).unwrap_or_default();
        let mode = if object.text("mode").as_deref() == Some("url") { "url" } else { "form" };
        let declared = match question {
            Question::Sample => {
                self.of.client.declares(&["sampling"])
                    && (!object.has("tools") || self.of.client.declares(&["sampling", "tools"]))
            }
            Question::ListRoots => self.of.client.declares(&["roots"]),
            Question::Elicit if mode == "url" => {
                self.of.client.knows("2025-11-25") && self.of.client.declares(&["elicitation", "url"])
            }
            Question::Elicit => {
                // An empty object means forms.
                self.of.client.knows("2025-06-18")
                    && self.of.client.declares(&["elicitation"])
                    && (!self.of.client.declares(&["elicitation", "url"])
                        || self.of.client.declares(&["elicitation", "form"]))
            }
        };
        if !declared {
            return Err(refused("the client did not declare that it answers this"));
        }
        let host = if mode == "url" && question == Question::Elicit {
            Some(
                elicitation_host(&url)
                    .ok_or_else(|| RpcError::invalid_params("the URL is no https address of at most 8 KiB"))?,
            )
        } else {
            None
        };
        let mut details = vec![("method", method)];
        if question == Question::Elicit {
            details.push(("mode", mode));
        }
        if let Some(host) = &host {
            details.push(("url_host", host));
        }
        let fields = (question == Question::Elicit && mode == "form").then(|| field_names(&object));
        let denial = || match question {
            Question::Elicit => Ok(Some(Json::of(&json!({ "action": "decline" })))),
            Question::Sample | Question::ListRoots => Err(refused("denied by policy")),
        };
        if !self.decide(question.action(), &details, fields.as_deref()).await? {
            return denial();
        }
        Ok(None)
    }

    /// Whether what a server asks for is permitted.
    async fn decide(
        &self,
        action: Action,
        details: &[(&'static str, &str)],
        fields: Option<&str>,
    ) -> Result<bool, RpcError> {
        let subject = self.of.subject.asked(action);
        let policy = &self.of.calls.policy;
        let verdict = if policy.names(action) {
            let begun = Instant::now();
            let verdict = policy.decide(&PolicyQuestion {
                subject: subject.kind,
                details,
                keep: subject.listed,
                ..PolicyQuestion::new(&self.of.inbound.caller, action, self.of.plugin.name(), &subject.canonical)
            });
            self.of.calls.telemetry.decided(verdict.decision, begun.elapsed());
            verdict
        } else if self.redacts() {
            let reason = "the result of the call is redacted, and no policy permits by name what the server asks";
            Verdict { reason: Some(reason.to_owned()), ..self.state.lock().leg.verdict.denied() }
        } else {
            // It follows the call that it is asked for.
            self.state.lock().leg.verdict.follow()
        };
        let mut details = details.to_vec();
        if let Some(fields) = fields {
            details.push(("fields", fields));
        }
        let ties = self.ties();
        let recorded = self.of.calls.telemetry.record(
            (&self.of.inbound.caller, &*self.of.client, &ties),
            self.of.plugin.name(),
            &subject,
            &verdict,
            &details,
        );
        if recorded.await.is_err() {
            return Err(RpcError::internal("the decision on this question could not be recorded"));
        }
        Ok(verdict.is_permit())
    }

    /// A question in the words in which the client is asked it.
    pub(crate) fn worded(&self, question: Question, params: Option<Json>) -> Option<Json> {
        if question == Question::Elicit
            && let Some(id) = params.as_ref().and_then(|params| params.get("elicitationId"))
            && let Some(id) = id.as_text()
        {
            self.outlet().gave_elicitation(&id);
        }
        if !self.of.namespaced {
            return params;
        }
        let mut object = params.as_ref()?.object()?;
        match question {
            // The client knows one server, the gateway: its person has to see who asks.
            Question::Elicit => {
                let message = object.text("message").unwrap_or_default();
                let message = format!("[{}] {message}", self.of.plugin.name());
                object.set("message", Json::text(&message));
            }
            // "This server" would be all plugins.
            Question::Sample => {
                let asks_for_more = object.text("includeContext").is_some_and(|context| context != "none");
                if asks_for_more {
                    object.take("includeContext");
                }
            }
            Question::ListRoots => return params,
        }
        Some(object.to_json())
    }

    /// Asks the client, however it can be asked.
    async fn put(&self, method: Box<str>, params: Option<Json>) -> Result<Json, RpcError> {
        let gone = || RpcError::internal("the client is gone");
        match &self.questions {
            None => self.outlet().ask(self.of.subject.index, &method, params).await,
            Some(questions) => {
                let (answer, answered) = oneshot::channel();
                questions.send(Asked { method, params, answer }).await.map_err(|_| gone())?;
                answered.await.map_err(|_| gone())?
            }
        }
    }

    /// Asks the client a permitted question, and waits for a person at most as long as `limits.answer` says.
    pub(crate) async fn ask(
        &self,
        question: Question,
        method: Box<str>,
        params: Option<Json>,
    ) -> Result<Json, RpcError> {
        let params = self.worded(question, params);
        self.pause();
        let mut pausing = Pausing(Some(self));
        let answered = timeout(self.of.calls.limits.answer, self.put(method, params)).await;
        pausing.0 = None;
        self.resume().await;
        match (answered, question) {
            (Ok(answered), _) => answered,
            (Err(_), Question::Elicit) => Ok(Json::of(&json!({ "action": "cancel" }))),
            (Err(_), Question::Sample | Question::ListRoots) => Err(RpcError::internal("nobody answered in time")),
        }
    }
}

/// A question that is out; withdrawn, the call's time runs again.
struct Pausing<'a>(Option<&'a Scope>);

impl Drop for Pausing<'_> {
    fn drop(&mut self) {
        if let Some(scope) = self.0 {
            let mut state = scope.state.lock();
            state.asking = state.asking.saturating_sub(1);
            if state.asking == 0 {
                // It goes on without a turn: nobody waits here any more who could take one.
                state.since = Some(Instant::now());
            }
            drop(state);
            scope.wake.notify_waiters();
        }
    }
}

#[async_trait]
impl Upcalls for Scope {
    async fn asked(&self, request: Request) -> Result<Json, RpcError> {
        let Some(question) = table::server_request(&request.method) else {
            self.of.calls.refused("question");
            return Err(RpcError::method_not_found("clients are not asked this through the gateway"));
        };
        if let Some(answer) = self.may_ask(question, &request.method, request.params.as_ref()).await? {
            return Ok(answer);
        }
        self.ask(question, request.method, request.params).await
    }

    async fn notified(&self, notification: Notification) {
        let Notification { method, params } = notification;
        let mut object = params.as_ref().and_then(Json::object).unwrap_or_default();
        let sent = match table::server_notification(&method) {
            Some(ServerNote::Progress) => self.progress(&mut object),
            Some(ServerNote::Message) => self.log(&mut object),
            // Of the session, not of the call: modern clients hear of them on a stream of their own.
            Some(ServerNote::ListChanged(_)) if !self.of.client.is_modern() => {
                self.notify(&method, None);
                None
            }
            Some(ServerNote::ElicitationComplete) if !self.of.client.is_modern() => {
                let outlet = self.outlet();
                let id = object.text("elicitationId");
                id.is_some_and(|id| outlet.was_given(&id)).then(|| object.to_json())
            }
            Some(ServerNote::Updated) if !self.of.client.is_modern() => {
                let update = std::mem::take(&mut object);
                self.of.calls.updated(&self.of.inbound.caller, self.of.plugin.name(), update)
            }
            // A task's state is its owner's, and the session's to tell.
            Some(_) => None,
            None => {
                self.of.calls.refused("notification");
                None
            }
        };
        if let Some(params) = sent {
            self.notify(&method, Some(params));
        }
    }
}

/// The host that an elicitation's URL leads to. `None`: it is too long, or not over TLS, nor on the client's own
/// machine.
fn elicitation_host(url: &str) -> Option<String> {
    let url = Url::parse(url).ok().filter(|_| url.len() <= MAX_URI)?;
    let host = url.host_str()?.to_owned();
    let is_local = matches!(&*host, "localhost" | "127.0.0.1" | "[::1]");
    (url.scheme() == "https" || (url.scheme() == "http" && is_local)).then_some(host)
}

/// The names of the fields that a form asks for, so that the ledger shows who asks for a password.
fn field_names(params: &Object) -> String {
    let properties = params.get("requestedSchema").and_then(|schema| schema.get("properties"));
    let properties = properties.filter(|properties| properties.has_at_most(MAX_FIELDS));
    let properties = properties.and_then(|properties| properties.object()).unwrap_or_default();
    let names: Vec<String> =
        properties.iter().take(MAX_NAMES).map(|(name, _)| name.chars().take(64).collect()).collect();
    names.join(", ")
}
