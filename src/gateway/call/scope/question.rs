//! What a server asks of the client in the middle of a call.
//!
//! A question passes only if the client declared that it answers it and policy permits it; the decision is on the
//! record before the client is asked. While the client is asked, the call gives its turns back and its time does not
//! run; a question that is withdrawn lets the time run again. A person who does not answer within `limits.answer` has
//! cancelled.

use serde_json::json;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};
use url::Url;

use super::{Asked, Scope};
use crate::gateway::call::table::Question;
use crate::gateway::call::uri::MAX_URI;
use crate::gateway::message::{Json, Object, RpcError};
use crate::gateway::policy::{Action, Question as PolicyQuestion, Verdict};

/// Fields of a form whose names are recorded; of one with many more none is.
const MAX_NAMES: usize = 32;
const MAX_FIELDS: usize = 1_024;

impl Scope {
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
