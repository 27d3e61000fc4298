//! What is told of a call: one story in all three streams.
//!
//! The sample, the audit entry of the decision and the request's span have the same trace, span, invocation and request
//! ids. They say how a call went, and nothing of what was in it: of an error's text only the hash is kept, and that in the
//! sample alone (invariant I6). Telling never fails a call nor makes it wait, except that a decision is on the record
//! before anything is dispatched: in memory where audit may fail, durably where it may not (invariant I8).
//!
//! A call that is given up, since its client cancelled it or the gateway stops, is told like any other when its future
//! is dropped.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use opentelemetry::trace::{SpanId, TraceId};
use rmcp::model::{ErrorCode, ErrorData};
use serde_json::{Map, Value, json};
use tokio::time::Instant;
use url::Url;
use uuid::{Builder, Uuid};

use super::call::{Reply, Subject, Work};
use super::emit::{AuditEvent, CallSample, Emitters, ErrorHash, NotRecorded};
use super::identity::Caller;
use super::message::response;
use super::metrics::GatewayMetrics;
use super::policy::{Action, Verdict};
use super::traces::Failure;
use super::upstream::UpstreamFault;
use crate::config::OnFailure;
use crate::model::{Clock, Decision, Outcome, Random};

/// Who does what no caller does.
const GATEWAY: &str = "system:gateway";

/// JSON-RPC's codes for calls that the gateway itself refuses; of the range that the standard leaves to implementations.
const DENIED: ErrorCode = ErrorCode(-32003);
const QUOTA: ErrorCode = ErrorCode(-32004);
const NOT_ON_RECORD: ErrorCode = ErrorCode(-32005);

/// Plugin and tool of a call that names none.
pub(crate) const UNKNOWN: &str = "__unknown__";

/// The streams that calls, and the gateway's own steps, are told in.
#[derive(Clone)]
pub(crate) struct Telling {
    pub(crate) emitters: Emitters,
    pub(crate) metrics: Arc<GatewayMetrics>,
    pub(crate) on_failure: OnFailure,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) random: Arc<dyn Random>,
}

impl Telling {
    pub(crate) fn now(&self) -> DateTime<Utc> {
        self.clock.now()
    }

    /// A new id, version 7: it sorts by time.
    pub(crate) fn id(&self) -> Uuid {
        let random = self.random.uuid().into_bytes();
        let mut bits = [0; 10];
        // A version 4 id is random but for its version and variant, which are not among these.
        bits.iter_mut().zip(random.iter().rev()).for_each(|(bit, random)| *bit = *random);
        let milliseconds = u64::try_from(self.now().timestamp_millis()).unwrap_or(0);
        Builder::from_unix_timestamp_millis(milliseconds, &bits).into_uuid()
    }

    /// A call begins.
    pub(crate) fn begin(&self, work: &Work<'_>, plugin: &str, tool: &str) -> Story {
        let inbound = work.inbound;
        Story {
            telling: self.clone(),
            plugin: plugin.to_owned(),
            tool: tool.to_owned(),
            caller: inbound.caller.clone(),
            request_id: Arc::clone(&inbound.request_id),
            invocation_id: inbound.invocation_id,
            session_id: Arc::clone(&work.session.id),
            trace_id: work.spans.trace_id(),
            span_id: work.spans.span_id(),
            arrived_at: inbound.arrived_at,
            started_at: self.now(),
            began: Instant::now(),
            request_bytes: inbound.bytes,
            decision: None,
            ended: false,
        }
    }

    /// Policy decided.
    pub(crate) fn decided(&self, decision: Decision, took: Duration) {
        self.metrics.policy.decided(decision);
        self.metrics.policy.seconds.observe(took);
    }

    /// Puts a decision on the record, before anything is dispatched.
    pub(crate) async fn record(
        &self,
        work: &Work<'_>,
        plugin: &str,
        subject: Subject<'_>,
        verdict: &Verdict,
    ) -> Result<(), NotRecorded> {
        let target = target(plugin, subject);
        let obligations = verdict.obligations.names();
        let inbound = work.inbound;
        let event = AuditEvent {
            target: Some(&target),
            decision: Some(verdict.decision),
            policy_ids: &verdict.policy_ids,
            obligations: &obligations,
            reason: verdict.reason.as_deref(),
            request_id: Some(&inbound.request_id),
            trace_id: work.spans.trace_id(),
            span_id: work.spans.span_id(),
            invocation_id: (subject.action == Action::CallTool).then_some(inbound.invocation_id),
            ..AuditEvent::new(self.id(), self.now(), inbound.caller.name().as_str(), action(subject, verdict.decision))
        };
        match self.on_failure {
            OnFailure::Closed => self.emitters.audit(&event).await,
            OnFailure::Open => {
                self.emitters.audit_soon(&event);
                Ok(())
            }
        }
    }

    /// Notifies whom a permit obliges to: a line of the log, to be routed from there.
    pub(crate) fn notify(&self, work: &Work<'_>, plugin: &str, subject: Subject<'_>, verdict: &Verdict) {
        let notify = verdict.obligations.notify();
        if notify.is_empty() {
            return;
        }
        let (target, policies) = (target(plugin, subject), verdict.policy_ids.join(", "));
        let caller = work.inbound.caller.name().as_str();
        tracing::warn!(
            target: "mcpg::notify",
            notify = notify.join(", "),
            caller,
            tool = target,
            policies,
            trace_id = %work.spans.trace_id(),
            request_id = &*work.inbound.request_id,
            "notify {}: {caller} called {target}",
            notify.join(", "),
        );
    }

    /// A step that no caller took.
    pub(crate) fn step(&self, action: &'static str, target: Option<&str>, detail: Option<&Map<String, Value>>) {
        let event = AuditEvent { target, detail, ..AuditEvent::new(self.id(), self.now(), GATEWAY, action) };
        self.emitters.audit_soon(&event);
    }
}

/// The name of a decision in the ledger.
fn action(subject: Subject<'_>, decision: Decision) -> &'static str {
    match (subject.action, decision) {
        (Action::CallTool, Decision::Permit) => "tool.permit",
        (Action::CallTool, Decision::Deny) => "tool.deny",
        (Action::CallTool, Decision::PermitWithObligations) => "tool.permit_with_obligations",
        (Action::ReadResource, Decision::Permit) => "resource.permit",
        (Action::ReadResource, Decision::Deny) => "resource.deny",
        (Action::ReadResource, Decision::PermitWithObligations) => "resource.permit_with_obligations",
        (Action::GetPrompt, Decision::Permit) => "prompt.permit",
        (Action::GetPrompt, Decision::Deny) => "prompt.deny",
        (Action::GetPrompt, Decision::PermitWithObligations) => "prompt.permit_with_obligations",
    }
}

/// What was asked for, as the ledger has it.
fn target(plugin: &str, subject: Subject<'_>) -> String {
    match subject.action {
        Action::CallTool | Action::GetPrompt => format!("{plugin}/{}", subject.name),
        Action::ReadResource => format!("{plugin}/{}", place(subject.name)),
    }
}

/// Where a resource is, without what its URI may hold beside that: credentials, a query, a fragment.
fn place(uri: &str) -> String {
    let Ok(mut url) = Url::parse(uri) else { return "resource".to_owned() };
    url.set_query(None);
    url.set_fragment(None);
    if !url.username().is_empty() || url.password().is_some() {
        // A URI that cannot have credentials has none to take away.
        let _ = url.set_username("");
        let _ = url.set_password(None);
    }
    url.into()
}

/// One call, as far as it has got.
pub(crate) struct Story {
    telling: Telling,
    plugin: String,
    tool: String,
    caller: Caller,
    request_id: Arc<str>,
    invocation_id: Uuid,
    session_id: Arc<str>,
    trace_id: TraceId,
    span_id: SpanId,
    arrived_at: DateTime<Utc>,
    started_at: DateTime<Utc>,
    began: Instant,
    request_bytes: u64,
    decision: Option<Decision>,
    ended: bool,
}

impl Story {
    pub(crate) fn decided(&mut self, decision: Decision) {
        self.decision = Some(decision);
    }

    /// The work on it begins: what came before was waiting.
    pub(crate) fn started(&mut self) {
        self.started_at = self.telling.now();
        self.began = Instant::now();
    }

    /// It ended: tells so, and makes the answer.
    pub(crate) fn end(mut self, work: &Work<'_>, ended: Result<Value, Ending>) -> Reply {
        let (outcome, error_code, failure, text, answer) = match ended {
            Ok(result) if is_error(&result) => {
                let text = ErrorHash::of(tool_text(&result));
                (Outcome::ServerError, Some("TOOL_ERROR"), Some(Failure::Tool), Some(text), Ok(result))
            }
            Ok(result) => (Outcome::Ok, None, None, None, Ok(result)),
            Err(ending) => {
                let text = ErrorHash::of(&ending.error.message);
                (ending.outcome, Some(ending.code), Some(ending.failure), Some(text), Err(ending.error))
            }
        };
        let (message, bytes) = response(&work.request.id, answer);
        self.tell(outcome, error_code, text, Some(bytes));
        Reply { message, bytes, outcome: Some(outcome), error_code, failure }
    }

    fn tell(
        &mut self,
        outcome: Outcome,
        error_code: Option<&'static str>,
        error_hash: Option<ErrorHash>,
        response_bytes: Option<u64>,
    ) {
        self.ended = true;
        let took = self.began.elapsed();
        self.telling.metrics.calls.ended(&self.plugin, &self.tool, outcome, took);
        self.telling.emitters.sample(&CallSample {
            invocation_id: self.invocation_id,
            plugin: &self.plugin,
            tool: &self.tool,
            started_at: self.started_at,
            arrived_at: self.arrived_at,
            duration_ms: took.as_secs_f64() * 1e3,
            outcome,
            error_code,
            error_hash,
            request_id: Some(&self.request_id),
            session_id: Some(&self.session_id),
            trace_id: self.trace_id,
            span_id: self.span_id,
            caller: Some(self.caller.name().as_str()),
            decision: self.decision,
            request_bytes: Some(self.request_bytes),
            response_bytes,
        });
    }
}

impl Drop for Story {
    fn drop(&mut self) {
        if !self.ended {
            self.tell(Outcome::ClientError, Some("CANCELLED"), None, None);
        }
    }
}

/// Why a call has no result.
pub(crate) struct Ending {
    error: ErrorData,
    outcome: Outcome,
    code: &'static str,
    failure: Failure,
}

impl Ending {
    /// What the caller is told.
    pub(crate) fn into_error(self) -> ErrorData {
        self.error
    }

    fn refused(error: ErrorData, outcome: Outcome, code: &'static str) -> Self {
        let failure = Failure::Rpc(error.code.0.into());
        Self { error, outcome, code, failure }
    }

    pub(crate) fn unknown_tool() -> Self {
        let error = ErrorData::invalid_params("there is no such tool", None);
        Self::refused(error, Outcome::ClientError, "UNKNOWN_TOOL")
    }

    pub(crate) fn bad_arguments() -> Self {
        let error = ErrorData::invalid_params("the arguments of a tool are an object", None);
        Self::refused(error, Outcome::ClientError, "INVALID_PARAMS")
    }

    /// Policy says no. The caller is told by which policies, so that their author can be asked.
    pub(crate) fn denied(verdict: &Verdict) -> Self {
        let text = match &verdict.reason {
            None => "denied by policy".to_owned(),
            Some(reason) => format!("denied by policy: {reason}"),
        };
        let data = json!({ "policy_ids": verdict.policy_ids });
        Self::refused(ErrorData::new(DENIED, text, Some(data)), Outcome::PolicyDenied, "POLICY_DENIED")
    }

    pub(crate) fn not_recorded() -> Self {
        let text = "the decision on this call could not be recorded, and without a record there is no call; try again";
        Self::refused(ErrorData::new(NOT_ON_RECORD, text, None), Outcome::ServerError, "AUDIT_UNAVAILABLE")
    }

    pub(crate) fn no_room(most: u64) -> Self {
        let text = format!("{most} calls are under way, as many as the gateway takes; try again later");
        Self::refused(ErrorData::new(QUOTA, text, None), Outcome::QuotaExceeded, "CALL_LIMIT")
    }

    /// The plugin did not answer with a result.
    pub(crate) fn fault(fault: &UpstreamFault, plugin: &str) -> Self {
        let failure = match fault {
            UpstreamFault::Refused(error) => Failure::Rpc(error.code.0.into()),
            _ => Failure::Kind(fault.kind()),
        };
        Self { error: fault.to_error(plugin), outcome: fault.outcome(), code: fault.code(), failure }
    }
}

/// Whether a tool says of itself that it failed.
pub(crate) fn is_error(result: &Value) -> bool {
    result.get("isError").and_then(Value::as_bool) == Some(true)
}

/// What a tool that failed says.
fn tool_text(result: &Value) -> &str {
    let content = result.get("content").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    content.iter().find_map(|block| block.get("text")?.as_str()).unwrap_or_default()
}
