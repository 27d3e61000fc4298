//! One request's way through the gateway, and one call's story.
//!
//! Who asks is known when a request gets here ([`super::mcp::Inbound`]). A call of a tool is then decided on, and only what
//! is permitted is dispatched:
//!
//! ```text
//! policy ─▶ its decision is on the record ─▶ a turn at the plugin ─▶ its session ─▶ the tool ─▶ what may be told of the result
//! ```

use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use rmcp::model::{ErrorData, RequestId, ServerJsonRpcMessage};
use serde_json::{Map, Value};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};

use super::mcp::{Inbound, Session};
use super::message::{Request, response, size};
use super::policy::{Action, Policy, Question, Verdict};
use super::story::{Ending, Story, Telling, UNKNOWN, is_error};
use super::traces::{Answer, Failure, RequestSpans, Target};
use super::upstream::{Ask, Plugin, StreamNumber, UpstreamFault};
use crate::model::Outcome;

/// How often an overdue call is looked at while its client is asked something.
const LOOK: Duration = Duration::from_millis(500);

/// A request, and whose it is.
pub(crate) struct Work<'a> {
    pub(crate) session: &'a Arc<Session>,
    pub(crate) inbound: &'a Arc<Inbound>,
    pub(crate) request: &'a Request,
    /// Where its response, and what comes in between, goes.
    pub(crate) stream: StreamNumber,
    pub(crate) spans: RequestSpans,
}

impl<'a> Work<'a> {
    pub(crate) fn plugin(&self, index: usize) -> Option<&'a Arc<Plugin>> {
        self.session.endpoint.plugins.get(index)
    }

    /// Asks the plugin at `index`, within `patience`: opens a session with it where there is none, and passes the trace on.
    /// Whoever asks has a turn. While the client is asked something in between, it is the client that is waited for, and
    /// that takes as long as it takes a person.
    pub(crate) async fn ask(
        &self,
        index: usize,
        target: Target<'_>,
        params: Option<Value>,
        patience: Duration,
    ) -> Result<Value, UpstreamFault> {
        let plugin = self.plugin(index).ok_or(UpstreamFault::Unreachable)?;
        let dispatch = self.spans.dispatch(plugin.name(), target, &plugin.described());
        let (mut headers, mut params) = (HeaderMap::new(), params);
        dispatch.outbound().put_headers(&mut headers);
        put_meta(&mut params, |meta| dispatch.outbound().put_meta(meta));
        let method = self.request.method.clone();
        let asking = async {
            let link = self.session.link(index).await?;
            link.ask(Ask { method, params, headers, stream: Some(self.stream) }).await
        };
        let overdue = async {
            sleep(patience).await;
            while self.session.is_asked(self.stream) {
                sleep(LOOK).await;
            }
        };
        let outcome = tokio::select! {
            outcome = asking => outcome,
            () = overdue => Err(UpstreamFault::TimedOut { after: patience }),
        };
        dispatch.end(failure(&outcome));
        outcome
    }
}

/// Puts the trace's fields into `params._meta`, and leaves parameters without any as they are.
fn put_meta(params: &mut Option<Value>, put: impl FnOnce(&mut Map<String, Value>)) {
    let mut fields = Map::new();
    if let Some(Value::Object(meta)) = params.as_mut().and_then(|params| params.get_mut("_meta")) {
        put(meta);
        return;
    }
    put(&mut fields);
    if fields.is_empty() {
        return;
    }
    let params = params.get_or_insert_with(|| Value::Object(Map::new()));
    if let Value::Object(params) = params {
        params.insert("_meta".to_owned(), Value::Object(fields));
    }
}

/// How a request failed, as far as a span may say.
fn failure(outcome: &Result<Value, UpstreamFault>) -> Option<Failure> {
    match outcome {
        Ok(result) if is_error(result) => Some(Failure::Tool),
        Ok(_) => None,
        Err(UpstreamFault::Refused(error)) => Some(Failure::Rpc(error.code.0.into())),
        Err(fault) => Some(Failure::Kind(fault.kind())),
    }
}

/// The answer to a request, and what may be told of it.
pub(crate) struct Reply {
    pub(crate) message: ServerJsonRpcMessage,
    pub(crate) bytes: u64,
    pub(crate) outcome: Option<Outcome>,
    pub(crate) error_code: Option<&'static str>,
    pub(crate) failure: Option<Failure>,
}

impl Reply {
    /// The answer to a request that is no call.
    pub(crate) fn plain(id: &RequestId, outcome: Result<Value, ErrorData>) -> Self {
        let failure = outcome.as_ref().err().map(|error| Failure::Rpc(error.code.0.into()));
        let (message, bytes) = response(id, outcome);
        Self { message, bytes, outcome: None, error_code: None, failure }
    }

    /// What the request's span says of it.
    pub(crate) fn told(&self) -> Answer<'_> {
        Answer { outcome: self.outcome, error_code: self.error_code, failure: self.failure }
    }
}

/// What a request is for, where policy has a say in it.
#[derive(Clone, Copy)]
pub(crate) struct Subject<'a> {
    pub(crate) action: Action,
    /// The plugin's index.
    pub(crate) index: usize,
    /// What the plugin calls it: a tool's or a prompt's name, a resource's URI.
    pub(crate) name: &'a str,
}

impl<'a> Subject<'a> {
    fn target(self) -> Target<'a> {
        match self.action {
            Action::CallTool => Target::Tool(self.name),
            Action::GetPrompt => Target::Prompt(self.name),
            Action::ReadResource => Target::Unnamed,
        }
    }
}

/// Requests that policy has a say in.
pub(crate) struct Calls {
    pub(crate) policy: Arc<Policy>,
    pub(crate) telling: Telling,
    /// Calls that may be under way at once.
    pub(crate) room: Semaphore,
    pub(crate) most: u64,
}

impl Calls {
    /// Whether the caller may see that there is something.
    pub(crate) fn may_list(&self, inbound: &Inbound, action: Action, plugin: &str, name: &str) -> bool {
        self.policy.may_list(&inbound.caller, action, plugin, name)
    }

    /// A call of the tool `target`: the plugin's index, and what the plugin calls it.
    pub(crate) async fn tool(&self, work: &mut Work<'_>, target: Option<(usize, &str)>) -> Reply {
        let known = target.and_then(|(index, name)| Some((index, work.plugin(index)?, name)));
        let Some((index, plugin, name)) = known else {
            let story = self.telling.begin(work, UNKNOWN, UNKNOWN);
            return story.end(work, Err(Ending::unknown_tool()));
        };
        let mut story = self.telling.begin(work, plugin.name(), name);
        let subject = Subject { action: Action::CallTool, index, name };
        let ended = self.governed(work, subject, Some(&mut story)).await;
        story.end(work, ended)
    }

    /// Decides, puts the decision on the record, and dispatches what is permitted.
    pub(crate) async fn governed(
        &self,
        work: &mut Work<'_>,
        subject: Subject<'_>,
        mut story: Option<&mut Story>,
    ) -> Result<Value, Ending> {
        let plugin = work.plugin(subject.index).ok_or_else(Ending::unknown_tool)?;
        let mut arguments = match work.request.params.as_ref().and_then(|params| params.get("arguments")) {
            None | Some(Value::Null) => None,
            Some(Value::Object(arguments)) => Some(arguments.clone()),
            Some(_) => return Err(Ending::bad_arguments()),
        };
        let verdict = self.policy_says(work, plugin.name(), subject, arguments.as_ref());
        if let Some(story) = &mut story {
            story.decided(verdict.decision);
        }
        work.spans.about(plugin.name(), subject.target());
        if self.telling.record(work, plugin.name(), subject, &verdict).await.is_err() {
            return Err(Ending::not_recorded());
        }
        if !verdict.is_permit() {
            return Err(Ending::denied(&verdict));
        }
        self.telling.notify(work, plugin.name(), subject, &verdict);
        let Ok(_room) = self.room.try_acquire() else {
            return Err(Ending::no_room(self.most));
        };
        let obligations = &verdict.obligations;
        if let Some(arguments) = &mut arguments {
            obligations.redact_arguments(arguments);
        }
        let patience = obligations.timeout().map_or(plugin.timeout(), |own| own.min(plugin.timeout()));
        let limit =
            obligations.max_result_bytes().map_or(plugin.max_result_bytes(), |own| own.min(plugin.max_result_bytes()));
        let fault = |fault: UpstreamFault| Ending::fault(&fault, plugin.name());
        let waiting = Instant::now();
        let _turn = plugin.turn(patience).await.map_err(fault)?;
        if let Some(story) = &mut story {
            story.started();
        }
        let params = restated(work.request.params.as_ref(), subject, arguments);
        let left = patience.saturating_sub(waiting.elapsed());
        let asked = work.ask(subject.index, subject.target(), params, left).await;
        let asked = if obligations.redacts_result() { asked.map_err(UpstreamFault::without_words) } else { asked };
        let mut result = asked.map_err(fault)?;
        obligations.redact_result(&mut result);
        if size(&result) > limit {
            return Err(fault(UpstreamFault::TooLarge { limit }));
        }
        Ok(result)
    }

    fn policy_says(
        &self,
        work: &Work<'_>,
        plugin: &str,
        subject: Subject<'_>,
        arguments: Option<&Map<String, Value>>,
    ) -> Verdict {
        let span = work.spans.policy();
        let (action, name) = (subject.action, subject.name);
        let begun = Instant::now();
        let verdict = self.policy.decide(&Question { caller: &work.inbound.caller, action, plugin, name, arguments });
        self.telling.decided(verdict.decision, begun.elapsed());
        span.decided(verdict.decision, &verdict.policy_ids, &verdict.obligations.names());
        verdict
    }
}

/// The parameters of a request, with the plugin's own name and the arguments as they are to be sent.
fn restated(params: Option<&Value>, subject: Subject<'_>, arguments: Option<Map<String, Value>>) -> Option<Value> {
    let mut params = params.cloned()?;
    let members = params.as_object_mut()?;
    if subject.action != Action::ReadResource {
        members.insert("name".to_owned(), Value::from(subject.name));
    }
    if let Some(arguments) = arguments {
        members.insert("arguments".to_owned(), Value::Object(arguments));
    }
    Some(params)
}
