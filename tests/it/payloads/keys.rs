//! The life of keys: one key of an epoch however many nodes make it, published under the ledger's key alone, destroyed
//! when its time is over.

use std::path::Path;

use chrono::TimeDelta;
use mcpg::payload::Direction;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    DAY, GATEWAY, OPERATOR, PATIENCE, body, body_at, config, entries, flushed, not_at_midnight, note, now, refused,
    send, stored, told, view,
};
use crate::harness::{Config, Server, assert_sound, clock_ahead, eventually};

fn wrapped_keys(server: &Server) -> Vec<String> {
    let folder = server.storage().join("payload-keys/default");
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .map(|entries| entries.flatten().map(|entry| entry.file_name().into_string().unwrap()).collect())
        .unwrap_or_default();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_that_make_keys_at_once_make_the_same() {
    not_at_midnight().await;
    let first = config(", payloads: { plugins: { github: 7d } }").server();
    let kek = tempfile::tempdir().unwrap();
    let keys =
        format!("payload_keys: {{ file: {0}/kek }}\naudit: {{ key_file: {0}/ledger.key }}", kek.path().display());
    let node = |storage: &Path| {
        let orgs = "orgs: [{ name: default, tier: enterprise, entitlements: [payload_capture], payloads: { plugins: { github: 7d } } }, { name: other }]";
        Config::on(storage).with(orgs).with(&super::tokens()).with(&keys).token(super::ALICE)
    };
    let storage = first.storage().to_owned();
    let mut nodes = vec![node(&storage).start().await];
    nodes.push(node(&storage).start().await);
    nodes.push(node(&storage).start().await);
    let (a, b, c) = tokio::join!(note(&nodes[0]), note(&nodes[1]), note(&nodes[2]));
    assert_eq!(a.epochs.len(), 16, "two periods, eight days");
    assert_eq!((&a.epochs, &a.plugins), (&b.epochs, &c.plugins));
    assert_eq!(a.epochs, c.epochs);
    let made = entries(&nodes[0], "payload.key_created").await;
    assert_eq!(made.len(), 16, "each is said once");
    for entry in &made {
        let epoch = entry["detail"]["epoch"].as_str().unwrap().parse().unwrap();
        assert_eq!(entry["detail"]["key_id"], json!(a.epochs[&epoch].id().to_string()));
    }
    // Each of them opens what was sealed to it, whichever node made the key.
    let call = stored(&nodes[1], "1", "2").await;
    for node in &nodes {
        view(&node.client(), call, "on each node").await.ok();
    }
}

/// A thief with write access puts a key of his own in the store: it is never signed, and never opens anything.
#[tokio::test]
async fn a_key_that_was_swapped_in_the_store_is_never_signed() {
    not_at_midnight().await;
    let server = config("").start().await;
    let before = note(&server).await;
    let names = wrapped_keys(&server);
    assert_eq!(names.len(), 8);
    let folder = server.storage().join("payload-keys/default");
    // Another epoch's key under today's name, and rubbish under tomorrow's.
    std::fs::copy(folder.join(&names[7]), folder.join(&names[0])).unwrap();
    std::fs::write(folder.join(&names[1]), b"{}").unwrap();
    assert_eq!(note(&server).await.epochs, before.epochs, "the ledger says which key it is");
    let call = Uuid::now_v7();
    send(&server.client().with_token(GATEWAY), body(&before, &[(call, Direction::Request, "x")]), None).await.ok();
    refused(&view(&server.client(), call, "with a swapped key").await, 500, "record_damaged");
}

/// The clock moves past the period: keys and rows go, the ledger says so and verifies, and nobody brings them back.
#[tokio::test]
async fn after_its_period_the_key_is_gone_and_the_ledger_says_so() {
    not_at_midnight().await;
    let mut server = config(", retention: { payloads: 2d }").with("maintenance: { interval: 1s }").start().await;
    let call = stored(&server, "{\"q\":\"for two days\"}", "{}").await;
    let (today, sealed) = (now(), note(&server).await);
    flushed(&server, 2).await;
    view(&server.client(), call, "while there is a key").await.ok();
    let operator = server.client().with_token(OPERATOR);
    operator.send(reqwest::Method::POST, "payload-keys/rotate", &[], Vec::new()).await.unwrap().ok();
    assert!(server.stop().await.success());
    server.set_environment(clock_ahead(4 * DAY));
    server.start().await;
    let destroyed = told(&server, "payload.key_destroyed", 2).await;
    let epochs: Vec<&Value> = destroyed.iter().map(|entry| &entry["detail"]["epoch"]).collect();
    let of_today = format!("{}.2d", today.date_naive());
    let ours = destroyed.iter().find(|entry| entry["detail"]["epoch"] == json!(of_today));
    let ours = ours.unwrap_or_else(|| panic!("{of_today} is not among {epochs:?}"));
    assert_eq!((&ours["detail"]["records"], &ours["detail"]["versions_deleted"]), (&json!(2), &json!(1)));
    assert_eq!(ours["detail"]["kek_versions"], json!(["file:1", "file:2"]), "all that ever wrapped it");
    assert!(!wrapped_keys(&server).contains(&of_today));
    refused(&view(&server.client(), call, "too late").await, 410, "key_destroyed");
    // Sent by a gateway that was away for longer than the epoch lives.
    let late = body_at(&sealed, today, &[(Uuid::now_v7(), Direction::Request, "late")]);
    refused(&send(&server.client().with_token(GATEWAY), late, None).await, 422, "key_destroyed");
    eventually("the rows to go", PATIENCE, async || {
        (server.client().number("SELECT count(*) FROM tool_invocation_payloads").await == 0).then_some(())
    })
    .await;
    // A node with a clock that is days slow revives nothing: the log is ahead of it.
    server.stop().await;
    server.set_environment(clock_ahead(0));
    server.start().await;
    let slow = note(&server).await;
    assert!(
        slow.epochs.keys().all(|epoch| epoch.date() > today.date_naive() + TimeDelta::days(2)),
        "{:?}",
        slow.epochs.keys()
    );
    assert!(!wrapped_keys(&server).contains(&of_today));
    let vkey = server.client().get("audit/vkey").await.ok().text();
    let storage = server.storage().to_owned();
    assert!(server.stop().await.success());
    assert_sound(&storage, "default", vkey.trim()).await;
}

/// Which orgs' keys are due, and which ledger records it, with an org that is not due for another reason beside it.
#[tokio::test]
async fn a_legal_hold_keeps_the_keys_of_what_it_keeps_until_it_is_released() {
    not_at_midnight().await;
    let two_days = ", retention: { payloads: 2d }";
    let orgs = format!(
        "orgs:\n  - {{ name: default, tier: enterprise, entitlements: [payload_capture]{two_days} }}\n\
         \x20 - {{ name: other, tier: enterprise, entitlements: [payload_capture]{two_days} }}"
    );
    let config = Config::new().with(&orgs).with(&super::tokens()).with("flush: { interval: 300ms }");
    let mut server = config.token(super::ALICE).start().await;
    let call = stored(&server, "{\"q\":\"evidence\"}", "{}").await;
    let other = server.client().with_token(super::OTHER).with_org("other");
    other.get("payload-keys").await.ok();
    let operator = server.client().with_token(OPERATOR);
    let json = [(reqwest::header::CONTENT_TYPE, "application/json")];
    let ask = async |path: &str| {
        let body = json!({ "reason": "case 12" }).to_string().into_bytes();
        operator.send(reqwest::Method::POST, path, &json, body).await.unwrap().ok();
    };
    ask("audit/hold").await;
    assert!(server.stop().await.success());
    server.set_environment(clock_ahead(4 * DAY));
    server.start().await;
    // Orgs are gone through by name, so the one on hold came first.
    eventually("the other org's keys to be destroyed", PATIENCE, async || {
        let told = other.get("audit?action=payload.key_destroyed").await.ok().json();
        (told["entries"].as_array().unwrap().len() >= 2).then_some(())
    })
    .await;
    assert!(entries(&server, "payload.key_destroying").await.is_empty());
    assert_eq!(wrapped_keys(&server).len(), 8);
    view(&server.client(), call, "evidence of case 12").await.ok();
    ask("audit/release").await;
    told(&server, "payload.key_destroyed", 2).await;
    // The rows are released with the keys, and may have gone already.
    let late = view(&server.client(), call, "too late").await;
    assert!([404, 410].contains(&late.status.as_u16()), "{}", late.text());
}

/// What can be restored of a removed org are its rows: no key outlives its period by the grace.
#[tokio::test]
async fn a_removed_orgs_keys_live_no_longer_than_their_period() {
    not_at_midnight().await;
    let mut server = config(", retention: { payloads: 2d }").start().await;
    let first = note(&server).await.epochs.keys().next().unwrap().to_string();
    let operator = server.client().with_token(OPERATOR);
    operator.send(reqwest::Method::DELETE, "/v1/orgs/default", &[], Vec::new()).await.unwrap().ok();
    assert!(wrapped_keys(&server).contains(&first));
    assert!(server.stop().await.success());
    server.set_environment(clock_ahead(4 * DAY));
    server.start().await;
    eventually("the key to go", PATIENCE, async || (!wrapped_keys(&server).contains(&first)).then_some(())).await;
    operator.send(reqwest::Method::POST, "/v1/orgs/default/restore", &[], Vec::new()).await.unwrap().ok();
    let told = told(&server, "payload.key_destroyed", 1).await;
    assert!(told.iter().any(|entry| entry["detail"]["epoch"] == json!(first)), "{told:?}");
}

#[tokio::test]
async fn the_keys_of_an_org_that_is_not_configured_any_more_are_destroyed_in_their_time() {
    not_at_midnight().await;
    let mut server = config(", retention: { payloads: 2d }").start().await;
    let first = note(&server).await.epochs.keys().next().unwrap().to_string();
    assert_eq!(wrapped_keys(&server).len(), 8);
    assert!(server.stop().await.success());
    server.reconfigure(&["orgs: [{ name: elsewhere }]"]);
    server.set_environment(clock_ahead(4 * DAY));
    server.start().await;
    eventually("the key to go", PATIENCE, async || (!wrapped_keys(&server).contains(&first)).then_some(())).await;
    let left = wrapped_keys(&server);
    assert!(!left.is_empty() && left.len() < 8, "those whose time is not over are there: {left:?}");
}
