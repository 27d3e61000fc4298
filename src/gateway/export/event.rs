//! An audit event: one step that the ledger has to know.
//!
//! In the spool an event is one JSON object with the fields of the contract's audit table; its number in the spool is
//! its `emitter_seq`, put in when the event is sent. Numbers are given when an event is recorded, one after the other
//! over all restarts: a hole proves that an event was lost before the ledger had it.

use std::borrow::Cow;

use chrono::{DateTime, SecondsFormat, Utc};
use opentelemetry::trace::{SpanId, TraceId};
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::sample::{Hex, valid};
use super::text;
use crate::model::Decision;

/// One step that the ledger has to know. Workspace, instance and `emitter_seq` are added by the emitters.
#[derive(Debug, Clone)]
pub struct AuditEvent<'a> {
    /// The event's own id, version 7.
    pub event_id: Uuid,
    /// When it happened.
    pub occurred_at: DateTime<Utc>,
    /// Who did it: a caller, or `system:gateway`.
    pub actor: &'a str,
    /// What was done, dotted: `tool.permit`, `plugin.started`, `operator.policy_reloaded`.
    pub action: &'a str,
    /// What it was done to: `github/list_repos`.
    pub target: Option<&'a str>,
    /// What policy decided.
    pub decision: Option<Decision>,
    /// The policies that decided.
    pub policy_ids: &'a [String],
    /// What the permit was bound to.
    pub obligations: &'a [String],
    /// Why, in words of the policy's author.
    pub reason: Option<&'a str>,
    /// The id of the JSON-RPC request.
    pub request_id: Option<&'a str>,
    /// The trace it belongs to; an invalid one counts as `None`.
    pub trace_id: TraceId,
    /// The span of the call; an invalid one counts as `None`.
    pub span_id: SpanId,
    /// The call's own id: the same in its sample.
    pub invocation_id: Option<Uuid>,
    /// More of it. Never an argument, a result, a token or the text of an error (invariant I6).
    pub detail: Option<&'a Map<String, Value>>,
}

impl<'a> AuditEvent<'a> {
    /// A step of the gateway's own, with nothing else said of it yet.
    pub fn new(event_id: Uuid, occurred_at: DateTime<Utc>, actor: &'a str, action: &'a str) -> Self {
        Self {
            event_id,
            occurred_at,
            actor,
            action,
            target: None,
            decision: None,
            policy_ids: &[],
            obligations: &[],
            reason: None,
            request_id: None,
            trace_id: TraceId::INVALID,
            span_id: SpanId::INVALID,
            invocation_id: None,
            detail: None,
        }
    }
}

/// An event as the spool holds it.
#[derive(Debug, Serialize)]
struct Record<'a> {
    event_id: Uuid,
    occurred_at: Time,
    actor: Cow<'a, str>,
    action: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    decision: Option<Decision>,
    #[serde(skip_serializing_if = "<[String]>::is_empty", serialize_with = "text::listed")]
    policy_ids: &'a [String],
    #[serde(skip_serializing_if = "<[String]>::is_empty", serialize_with = "text::listed")]
    obligations: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<Cow<'a, str>>,
    workspace: &'a str,
    instance: &'a str,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "text::optional")]
    request_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<Hex<TraceId>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    span_id: Option<Hex<SpanId>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    invocation_id: Option<Uuid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a Map<String, Value>>,
}

/// A time in the form of the ledger.
#[derive(Debug)]
struct Time(DateTime<Utc>);

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0.to_rfc3339_opts(SecondsFormat::Micros, true))
    }
}

/// The event as a record of the spool.
///
/// # Errors
/// When it cannot be written as JSON, which would be a fault of this module.
pub(super) fn record(event: &AuditEvent<'_>, workspace: &str, instance: &str) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&Record {
        event_id: event.event_id,
        occurred_at: Time(event.occurred_at),
        actor: if event.actor.is_empty() { Cow::Borrowed("?") } else { text::bounded(event.actor, text::TEXT) },
        action: event.action,
        target: event.target.map(|target| text::bounded(target, text::TARGET)),
        decision: event.decision,
        policy_ids: event.policy_ids,
        obligations: event.obligations,
        reason: event.reason.map(|reason| text::bounded_bytes(reason, text::PROSE_BYTES, true)),
        workspace,
        instance,
        request_id: event.request_id,
        trace_id: valid(event.trace_id, TraceId::INVALID),
        span_id: valid(event.span_id, SpanId::INVALID),
        invocation_id: event.invocation_id,
        detail: event.detail,
    })
}

/// Adds a record to a body of NDJSON, with its number as `emitter_seq` and, where given, its org.
pub(super) fn push_line(body: &mut Vec<u8>, record: &[u8], number: u64, org: Option<&str>) {
    // A record is an object of at least two members, so there is one before the closing brace.
    body.extend_from_slice(record.strip_suffix(b"}").unwrap_or(record));
    body.extend_from_slice(b",\"emitter_seq\":");
    body.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
    if let Some(org) = org {
        // The name of an org needs no escaping.
        body.extend_from_slice(b",\"org\":\"");
        body.extend_from_slice(org.as_bytes());
        body.push(b'"');
    }
    body.extend_from_slice(b"}\n");
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use opentelemetry::trace::{SpanId, TraceId};
    use serde_json::{Value, json};
    use uuid::Uuid;

    use super::{AuditEvent, push_line, record};
    use crate::model::Decision;

    #[test]
    fn a_line_has_the_fields_of_the_contract_and_its_number() {
        let policies = ["allow-reads".to_owned()];
        let detail = json!({"rule": 3});
        let event = AuditEvent {
            target: Some("github/list_repos"),
            decision: Some(Decision::Permit),
            policy_ids: &policies,
            reason: Some("readers may"),
            request_id: Some("req-1"),
            trace_id: TraceId::from(42),
            span_id: SpanId::from(43),
            invocation_id: Some(Uuid::from_u128(7)),
            detail: detail.as_object(),
            ..AuditEvent::new(
                Uuid::from_u128(9),
                DateTime::from_timestamp_micros(1_800_000_000_000_001).unwrap(),
                "user:alice",
                "tool.permit",
            )
        };
        let mut body = Vec::new();
        push_line(&mut body, &record(&event, "prod", "gw-1").unwrap(), 12, Some("acme"));
        assert_eq!(
            serde_json::from_slice::<Value>(&body).unwrap(),
            json!({
                "event_id": "00000000-0000-0000-0000-000000000009",
                "occurred_at": "2027-01-15T08:00:00.000001Z",
                "actor": "user:alice", "action": "tool.permit", "target": "github/list_repos",
                "decision": "permit", "policy_ids": ["allow-reads"], "reason": "readers may",
                "workspace": "prod", "instance": "gw-1", "request_id": "req-1",
                "trace_id": "0000000000000000000000000000002a", "span_id": "000000000000002b",
                "invocation_id": "00000000-0000-0000-0000-000000000007",
                "detail": {"rule": 3}, "emitter_seq": 12, "org": "acme",
            })
        );
        assert!(body.ends_with(b"}\n") && body.iter().filter(|byte| **byte == b'\n').count() == 1);
    }

    #[test]
    fn what_is_absent_is_left_out() {
        let event = AuditEvent::new(Uuid::nil(), DateTime::UNIX_EPOCH, "", "plugin.started");
        let record: Value = serde_json::from_slice(&record(&event, "prod", "gw-1").unwrap()).unwrap();
        let mut names: Vec<_> = record.as_object().unwrap().keys().collect();
        names.sort();
        assert_eq!(names, ["action", "actor", "event_id", "instance", "occurred_at", "workspace"]);
        assert_eq!(record["actor"], "?");
    }
}
