//! People in a real browser: in by a token and by the provider, out again; an org that is not theirs; a session that an
//! operator ends; a payload that is seen once. What is looked for is in `people.mjs`.

use std::path::Path;

use mcpg::payload::Direction;
use mcpg::payload::note::KeyNote;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use uuid::Uuid;

use super::provider::Provider;
use super::{EMITTER, OPERATOR, READER, entries, tokens_without, with_tokens};
use crate::harness::{Config, Sample, node, run};
use crate::payloads;

const ORGS: &str = "orgs: [{ name: acme, tier: enterprise, entitlements: [payload_capture] }, { name: umbrella }]";
const TRACE: &str = "0123456789abcdef0123456789abcdef";
/// A payload that would be more than text to a careless page.
const PAYLOAD: &str = r#"{"q":"<img src=x onerror=alert(1)>","link":"https://evil.example/"}"#;

/// Runs the parts that are named.
async fn in_a_browser(given: Value) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/door/people.mjs");
    let ended = tokio::task::spawn_blocking(move || run(node(&script).arg(given.to_string()))).await.unwrap();
    let (out, errors) = (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
    assert!(ended.status.success(), "{out}\n{errors}");
}

/// What a page asks by itself is no use of a session.
#[tokio::test]
async fn a_page_that_nobody_touches_does_not_keep_its_session() {
    let server = with_tokens().with("session: { idle: 15s, absolute: 1h }").start().await;
    let pictures = Path::new(env!("CARGO_TARGET_TMPDIR")).join("people-idle");
    in_a_browser(json!({ "url": server.url(), "pictures": pictures, "parts": ["idle"], "reader": READER })).await;
}

#[tokio::test]
async fn people_come_in_see_what_is_theirs_and_are_gone_when_they_leave() {
    let config = Config::new();
    let base = config.url();
    let provider = Provider::start(&base).await;
    let traces = "telemetry: { trace_url: 'https://traces.example/trace/{trace_id}?span={span_id}' }";
    let config = config.with(ORGS).with(&tokens_without(&[])).with(&provider.settings(&base)).with(traces);
    let server = config.token(OPERATOR).start().await;
    let gateway = server.client().with_token(EMITTER).with_org("acme");
    let sample =
        Sample::new("github", "search_code", 12.0).with("caller", "user:bob@acme").with("trace_id", TRACE).json();
    let call: Uuid = sample["invocation_id"].as_str().unwrap().parse().unwrap();
    let headers = [(reqwest::header::CONTENT_TYPE, "application/json")];
    gateway.send(Method::POST, "invocations", &headers, sample.to_string().into_bytes()).await.unwrap().ok();
    let note: mcpg::audit::note::Note = gateway.get("payload-keys").await.ok().text().parse().unwrap();
    let note = KeyNote::read(&note.text).unwrap();
    let sealed = payloads::body(&note, &[(call, Direction::Request, PAYLOAD)]);
    assert_eq!(payloads::send(&gateway, sealed, None).await.status, StatusCode::OK);

    let pictures = Path::new(env!("CARGO_TARGET_TMPDIR")).join("people");
    let parts = ["byToken", "byProvider", "byHostileLink"];
    let given = json!({ "url": base, "pictures": pictures, "parts": parts, "reader": READER, "operator": OPERATOR, "call": call,
        "payload": PAYLOAD, "trace": format!("https://traces.example/trace/{TRACE}?span=") });
    in_a_browser(given).await;
    let viewed = entries(&server, "acme", "payload.viewed").await;
    assert_eq!(viewed.len(), 1, "{viewed:?}");
    assert_eq!(
        (&viewed[0]["actor"], &viewed[0]["reason"]),
        (&json!("user:alice@acme.example"), &json!("incident 4711, as asked for by bob"))
    );
    assert!(!server.logs().contains("evil.example"), "nothing of a payload is logged");
}
