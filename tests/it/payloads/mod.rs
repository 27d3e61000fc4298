//! Sealed payloads, end to end: captured by a gateway, sealed, stored, seen by people alone, shredded.

mod captured;
mod format;
mod intake;
mod kek;
mod keys;
mod places;
mod view;

use std::time::Duration;

use chrono::{DateTime, Utc};
use mcpg::config::TokenHash;
use mcpg::model::{Clock, SystemClock};
use mcpg::payload::note::KeyNote;
use mcpg::payload::{Content, Direction, Envelope, Epoch, Header, Kind, Recipients, Sealer, frames};
use reqwest::header::{CONTENT_TYPE, HeaderName};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::{Answer, Client, Config, Server, eventually};

pub(crate) const GATEWAY: &str = "token-of-the-gateway";
pub(crate) const ALICE: &str = "token-of-alice";
pub(crate) const BOB: &str = "token-of-bob-who-lacks-the-role";
pub(crate) const SERVICE: &str = "token-of-a-service";
pub(crate) const OPERATOR: &str = "token-of-the-operator";
pub(crate) const OTHER: &str = "token-of-another-org";

/// Seconds of a day.
pub(crate) const DAY: i64 = 86_400;

pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// The tokens that the tests use, as they stand in a config.
pub(crate) fn tokens() -> String {
    let token = |name: &str, token: &str, org: &str, roles: &str, caller: &str| {
        let caller = if caller.is_empty() { String::new() } else { format!(", caller: \"{caller}\"") };
        format!(
            "  - {{ name: {name}, hash: \"{}\", org: \"{org}\", roles: [{roles}]{caller} }}\n",
            TokenHash::of(token)
        )
    };
    let all = [
        token("gateway", GATEWAY, "default", "ingest", ""),
        token("alice", ALICE, "default", "read, payload", "user:alice@acme"),
        token("bob", BOB, "default", "read", "user:bob@acme"),
        token("service", SERVICE, "default", "read, payload", ""),
        token("operator", OPERATOR, "*", "ingest, read, payload, operator", "user:root@ops"),
        token("other", OTHER, "other", "ingest, read, payload", "user:mallory@other"),
    ];
    format!("tokens:\n{}", all.concat())
}

/// A control plane whose org `default` may capture, with more of the org's settings.
pub(crate) fn config(org: &str) -> Config {
    let orgs = format!(
        "orgs:\n  - {{ name: default, tier: enterprise, entitlements: [payload_capture]{org} }}\n  - {{ name: other, tier: enterprise }}"
    );
    Config::new().with(&orgs).with(&tokens()).with("flush: { interval: 300ms }").token(ALICE)
}

pub(crate) fn now() -> DateTime<Utc> {
    SystemClock.now()
}

/// Waits until midnight is past, if it is near: each day has a key of its own, and the tests that call this count keys.
pub(crate) async fn not_at_midnight() {
    let left = u64::try_from(DAY - now().timestamp().rem_euclid(DAY)).unwrap();
    if left < 180 {
        tokio::time::sleep(Duration::from_secs(left + 1)).await;
    }
}

/// The org's key note.
pub(crate) async fn note(server: &Server) -> KeyNote {
    let answer = server.client().with_token(GATEWAY).get("payload-keys").await.ok();
    let note: mcpg::audit::note::Note = answer.text().parse().unwrap();
    let vkey: mcpg::audit::note::VKey = server.client().get("audit/vkey").await.ok().text().trim().parse().unwrap();
    vkey.verify(&note).unwrap();
    KeyNote::read(&note.text).unwrap()
}

/// A call to seal.
pub(crate) fn header(call: Uuid, direction: Direction, epoch: Epoch, at: DateTime<Utc>) -> Header {
    Header {
        org: "default".parse().unwrap(),
        workspace: "prod".to_owned(),
        instance: "gw-1".to_owned(),
        plugin: "github".to_owned(),
        kind: Kind::Tool,
        tool: "search_code".to_owned(),
        invocation_id: call,
        direction,
        epoch,
        started_at: at,
        content_type: "application/json".to_owned(),
        redactions: Vec::new(),
        truncated_from: None,
    }
}

/// A body of frames: an envelope for the note's key of today, and these payloads under it.
pub(crate) fn body(note: &KeyNote, payloads: &[(Uuid, Direction, &str)]) -> Vec<u8> {
    body_at(note, now(), payloads)
}

pub(crate) fn body_at(note: &KeyNote, at: DateTime<Utc>, payloads: &[(Uuid, Direction, &str)]) -> Vec<u8> {
    let epoch = note.epoch(at.date_naive(), "github").unwrap();
    let recipients = Recipients { epoch: note.epochs[&epoch].clone(), tenant: note.recipient.clone() };
    let (envelope, key) = Envelope::seal(&note.org, epoch, &recipients).unwrap();
    let sealer = Sealer::new(&envelope, key);
    let mut out = Vec::new();
    frames::push(&mut out, envelope.bytes());
    for (call, direction, text) in payloads {
        let mut header = header(*call, *direction, epoch, at);
        header.org = note.org.clone();
        let (content, _) = Content::new(text.as_bytes().to_vec(), 1 << 20);
        frames::push(&mut out, &sealer.seal(&header, &content, true).unwrap());
    }
    out
}

/// Sends frames.
pub(crate) async fn send(client: &Client, body: Vec<u8>, key: Option<&str>) -> Answer {
    let mut headers = vec![(CONTENT_TYPE, frames::MEDIA)];
    headers.extend(key.map(|key| (HeaderName::from_static("idempotency-key"), key)));
    client.send(Method::POST, "payloads", &headers, body).await.unwrap()
}

/// Asks to see a call.
pub(crate) async fn view(client: &Client, call: Uuid, reason: &str) -> Answer {
    let headers = [(CONTENT_TYPE, "application/json")];
    let path = format!("invocations/{call}/payloads/view");
    client.send(Method::POST, &path, &headers, json!({ "reason": reason }).to_string().into_bytes()).await.unwrap()
}

/// The entries of an action, oldest first.
pub(crate) async fn entries(server: &Server, action: &str) -> Vec<Value> {
    let path = format!("audit?action={action}&order=asc&limit=1000");
    server.client().get(&path).await.ok().json()["entries"].as_array().unwrap().clone()
}

/// Waits until there are so many entries of an action.
pub(crate) async fn told(server: &Server, action: &str, enough: usize) -> Vec<Value> {
    eventually(&format!("{enough} entries {action}"), PATIENCE, async || {
        let found = entries(server, action).await;
        (found.len() >= enough).then_some(found)
    })
    .await
}

/// Stores a request and a response of a new call.
pub(crate) async fn stored(server: &Server, request: &str, response: &str) -> Uuid {
    let (note, call) = (note(server).await, Uuid::now_v7());
    let payloads = [(call, Direction::Request, request), (call, Direction::Response, response)];
    let answer = send(&server.client().with_token(GATEWAY), body(&note, &payloads), None).await.ok();
    assert_eq!(answer.json(), json!({ "accepted": 2, "duplicate": false }));
    call
}

/// Waits until nothing of payloads is in the log alone: the table has so many rows in files.
pub(crate) async fn flushed(server: &Server, rows: u64) {
    eventually("the payloads' table", PATIENCE, async || {
        let folder = server.storage().join("orgs/default/tool_invocation_payloads/_delta_log");
        let mut found = 0;
        for file in std::fs::read_dir(folder).ok()?.flatten() {
            let text = std::fs::read_to_string(file.path()).unwrap_or_default();
            for line in text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
                let stats = line["add"]["stats"].as_str().and_then(|stats| serde_json::from_str::<Value>(stats).ok());
                found += stats.and_then(|stats| stats["numRecords"].as_u64()).unwrap_or(0);
            }
        }
        (found >= rows).then_some(())
    })
    .await;
}

#[track_caller]
pub(crate) fn refused(answer: &Answer, status: u16, code: &str) {
    assert_eq!(
        (answer.status, answer.problem().as_str()),
        (StatusCode::from_u16(status).unwrap(), code),
        "{}",
        answer.text()
    );
}
