//! What is recorded of a call: the same in all three streams.
//!
//! The sample, the audit entry of the decision and the request's span have the same trace, span, invocation and request
//! ids. They say how a call went, and nothing of what was in it: of an error's text only the hash is kept, and that in
//! the sample alone (invariant I6). Recording never fails a call nor makes it wait, except that a decision is on the
//! record before anything is dispatched: in memory where audit may fail, durably where it may not (invariant I8).
//!
//! A call that is given up, since its client cancelled it or the gateway stops, is recorded like any other when its
//! future is dropped.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use opentelemetry::trace::{SpanId, TraceId};
use serde_json::{Map, Value};
use tokio::time::Instant;
use uuid::{Builder, Uuid};

use super::client::{Client, Inbound};
use super::error::CallError;
use super::subject::Subject;
use crate::config::OnFailure;
use crate::gateway::export::{AuditEvent, CallSample, Emitters, ErrorHash, NotRecorded};
use crate::gateway::identity::Caller;
use crate::gateway::message::{Id, Json, RpcError, encode_response};
use crate::gateway::metrics::GatewayMetrics;
use crate::gateway::pass::{self, Recorded};
use crate::gateway::policy::{Action, Verdict};
use crate::gateway::traces::{Answer, Failure};
use crate::model::{Clock, Decision, Outcome, Random};

/// Who does what no caller does.
const GATEWAY: &str = "system:gateway";

/// The streams that calls, and the gateway's own steps, are recorded in.
#[derive(Clone)]
pub(crate) struct CallTelemetry {
    pub(crate) emitters: Emitters,
    pub(crate) metrics: Arc<GatewayMetrics>,
    pub(crate) on_failure: OnFailure,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) random: Arc<dyn Random>,
}

/// What ties the records of one request together.
#[derive(Debug, Clone)]
pub(crate) struct Ties {
    pub(crate) request_id: Arc<str>,
    pub(crate) trace_id: TraceId,
    pub(crate) span_id: SpanId,
    pub(crate) invocation_id: Uuid,
    /// That of the first leg, where this is a later one of a call that waited for an answer.
    pub(crate) first_invocation_id: Option<Uuid>,
}

impl CallTelemetry {
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

    /// Policy decided.
    pub(crate) fn decided(&self, decision: Decision, took: Duration) {
        self.metrics.policy.decided(decision);
        self.metrics.policy.seconds.observe(took);
    }

    /// Puts a decision on the record, before anything is dispatched.
    pub(crate) async fn record(
        &self,
        (caller, client, ties): (&Caller, &Client, &Ties),
        plugin: &str,
        subject: &Subject,
        verdict: &Verdict,
        details: &[(&'static str, &str)],
    ) -> Result<Recorded, NotRecorded> {
        let (target, action) = (subject.ledger_target(plugin), subject.ledger_action(verdict.decision));
        let obligations = verdict.obligations.names();
        let mut detail = self_reported(client);
        let text = |text: &str| Value::from(text);
        detail.extend(details.iter().map(|(name, value)| ((*name).to_owned(), text(value))));
        if let Some(sent) = subject.sent_as() {
            detail.insert("sent_uri".to_owned(), Value::from(sent));
        }
        if let Some(first) = ties.first_invocation_id {
            detail.insert("first_invocation_id".to_owned(), Value::from(first.to_string()));
        }
        let of_a_call =
            matches!(subject.action, Action::CallTool | Action::Sample | Action::Elicit | Action::ListRoots);
        let event = AuditEvent {
            target: Some(&target),
            decision: Some(verdict.decision),
            policy_ids: &verdict.policy_ids,
            obligations: &obligations,
            reason: verdict.reason.as_deref(),
            request_id: Some(&ties.request_id),
            trace_id: ties.trace_id,
            span_id: ties.span_id,
            invocation_id: of_a_call.then_some(ties.invocation_id),
            detail: (!detail.is_empty()).then_some(&detail),
            ..AuditEvent::new(self.id(), self.now(), caller.name().as_str(), &action)
        };
        pass::record(&self.emitters, self.on_failure, &event).await
    }

    /// Notifies whom a permit obliges to: a line of the log, to be routed from there.
    pub(crate) fn notify(&self, caller: &Caller, ties: &Ties, plugin: &str, subject: &Subject, verdict: &Verdict) {
        let notify = verdict.obligations.notify();
        if notify.is_empty() {
            return;
        }
        let (target, policies) = (subject.ledger_target(plugin), verdict.policy_ids.join(", "));
        let caller = caller.name().as_str();
        tracing::warn!(
            target: "mcpg::notify",
            notify = notify.join(", "),
            caller,
            tool = target,
            policies,
            trace_id = %ties.trace_id,
            request_id = &*ties.request_id,
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

/// What a client says of itself, for a ledger entry's detail.
fn self_reported(client: &Client) -> Map<String, Value> {
    let said = [
        ("client_name", client.name.as_deref()),
        ("client_version", client.software.as_deref()),
        ("protocol_version", Some(&*client.version)),
    ];
    said.into_iter().filter_map(|(name, value)| Some((name.to_owned(), Value::from(value?)))).collect()
}

/// One call of a tool, as far as it has got.
pub(crate) struct CallRecord {
    telemetry: CallTelemetry,
    plugin: Box<str>,
    tool: Box<str>,
    inbound: Arc<Inbound>,
    client: Arc<Client>,
    ties: Ties,
    session_id: Option<Arc<str>>,
    started_at: DateTime<Utc>,
    began: Instant,
    policy_us: Option<u64>,
    queue_us: Option<u64>,
    decision: Option<Decision>,
    ended: bool,
}

impl CallRecord {
    /// A call begins. `plugin` and `tool` are labels.
    pub(crate) fn begin(
        telemetry: &CallTelemetry,
        (inbound, client, session_id): (&Arc<Inbound>, &Arc<Client>, Option<&Arc<str>>),
        ties: &Ties,
        plugin: &str,
        tool: &str,
    ) -> Self {
        Self {
            telemetry: telemetry.clone(),
            plugin: plugin.into(),
            tool: tool.into(),
            inbound: Arc::clone(inbound),
            client: Arc::clone(client),
            ties: ties.clone(),
            session_id: session_id.cloned(),
            started_at: telemetry.now(),
            began: Instant::now(),
            policy_us: None,
            queue_us: None,
            decision: None,
            ended: false,
        }
    }

    pub(crate) fn decided(&mut self, decision: Decision, took: Duration) {
        self.decision = Some(decision);
        self.policy_us = Some(micros(took));
    }

    /// When the work on it began, as far as it has.
    pub(crate) fn started_at(&self) -> DateTime<Utc> {
        self.started_at
    }

    /// The work on it begins: what came before was waiting for a turn.
    pub(crate) fn started(&mut self, waited: Duration) {
        self.queue_us = Some(micros(waited));
        self.started_at = self.telemetry.now();
        self.began = Instant::now();
    }

    /// It ended, with this outcome, code and error, and an answer so large.
    pub(crate) fn end(
        mut self,
        outcome: Outcome,
        error_code: Option<&'static str>,
        error: Option<ErrorHash>,
        bytes: u64,
    ) {
        self.emit(outcome, error_code, error, Some(bytes));
    }

    /// The tool's label, once it is known whether the plugin lists it.
    pub(crate) fn label(&mut self, tool: &str) {
        self.tool = tool.into();
    }

    /// It is recorded elsewhere, or not at all.
    pub(crate) fn forget(mut self) {
        self.ended = true;
    }

    /// It ended, and its answer reached no client.
    pub(crate) fn abandoned(mut self, code: &'static str) {
        self.emit(Outcome::ClientError, Some(code), None, None);
    }

    fn emit(
        &mut self,
        outcome: Outcome,
        error_code: Option<&'static str>,
        error_hash: Option<ErrorHash>,
        response_bytes: Option<u64>,
    ) {
        self.ended = true;
        let took = self.began.elapsed();
        self.telemetry.metrics.calls.ended(&self.plugin, &self.tool, outcome, took);
        let inbound = &self.inbound;
        self.telemetry.emitters.sample(&CallSample {
            invocation_id: self.ties.invocation_id,
            plugin: &self.plugin,
            tool: &self.tool,
            started_at: self.started_at,
            arrived_at: inbound.arrived_at,
            duration_ms: took.as_secs_f64() * 1e3,
            outcome,
            error_code,
            error_hash,
            request_id: Some(&self.ties.request_id),
            session_id: self.session_id.as_deref(),
            trace_id: self.ties.trace_id,
            span_id: self.ties.span_id,
            caller: Some(inbound.caller.name().as_str()),
            decision: self.decision,
            request_bytes: Some(inbound.bytes),
            response_bytes,
            client_name: self.client.name.as_deref(),
            client_version: self.client.software.as_deref(),
            protocol_version: Some(&self.client.version),
            identity_us: Some(inbound.identity_us),
            policy_us: self.policy_us,
            queue_us: self.queue_us,
        });
    }
}

impl Drop for CallRecord {
    fn drop(&mut self) {
        if !self.ended {
            self.emit(Outcome::ClientError, Some("CANCELLED"), None, None);
        }
    }
}

/// Whole microseconds.
pub(crate) fn micros(took: Duration) -> u64 {
    u64::try_from(took.as_micros()).unwrap_or(u64::MAX)
}

/// The answer to a request, as bytes, and what may be said of it.
pub(crate) struct Reply {
    /// The whole response.
    pub(crate) body: Bytes,
    /// The code of its error, if it is one.
    pub(crate) code: Option<i64>,
    pub(crate) outcome: Option<Outcome>,
    pub(crate) error_code: Option<&'static str>,
    pub(crate) failure: Option<Failure>,
}

impl Reply {
    /// The answer to a request that is no call.
    pub(crate) fn new(id: &Id, outcome: &Result<Json, RpcError>) -> Self {
        let code = outcome.as_ref().err().map(|error| error.code);
        let body = encode_response(Some(id), outcome);
        Self { body, code, outcome: None, error_code: None, failure: code.map(Failure::Rpc) }
    }

    /// What the request's span says of it.
    pub(crate) fn as_answer(&self) -> Answer<'_> {
        Answer { outcome: self.outcome, error_code: self.error_code, failure: self.failure }
    }
}

/// How a call ended, for its record and its span.
pub(crate) struct Ended {
    pub(crate) outcome: Outcome,
    pub(crate) error_code: Option<&'static str>,
    pub(crate) error: Option<ErrorHash>,
    pub(crate) failure: Option<Failure>,
}

impl Ended {
    /// How it ended, by its result or error.
    pub(crate) fn of(ended: &Result<Json, CallError>) -> Self {
        match ended {
            Err(error) => Self {
                outcome: error.outcome,
                error_code: Some(error.code),
                error: Some(ErrorHash::of(error.text())),
                failure: Some(error.failure),
            },
            Ok(result) if is_error(result) => Self {
                outcome: Outcome::ServerError,
                error_code: Some("TOOL_ERROR"),
                error: Some(ErrorHash::of(&tool_text(result))),
                failure: Some(Failure::Tool),
            },
            Ok(result) => Self {
                outcome: Outcome::Ok,
                error_code: is_input_required(result).then_some("INPUT_REQUIRED"),
                error: None,
                failure: None,
            },
        }
    }
}

/// Whether a tool says of itself that it failed.
pub(crate) fn is_error(result: &Json) -> bool {
    result.get("isError").is_some_and(|is_error| is_error.is_true())
}

/// Whether a modern result asks for more.
pub(crate) fn is_input_required(result: &Json) -> bool {
    result.get("resultType").is_some_and(|kind| kind.as_text().as_deref() == Some("input_required"))
}

/// What a tool that failed says.
fn tool_text(result: &Json) -> String {
    let blocks = result.get("content").and_then(|content| content.items()).unwrap_or_default();
    let text = blocks.iter().find_map(|block| Some(block.get("text")?.as_text()?.into_owned()));
    text.unwrap_or_default()
}
