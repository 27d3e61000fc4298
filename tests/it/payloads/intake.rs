//! What is taken in, and what is not.

use mcpg::payload::Direction;
use reqwest::StatusCode;
use serde_json::json;
use uuid::Uuid;

use super::{ALICE, GATEWAY, OPERATOR, OTHER, body, config, entries, flushed, note, refused, send, stored, view};
use crate::harness::Server;

async fn server() -> Server {
    config("").start().await
}

#[tokio::test]
async fn what_was_acknowledged_is_on_the_ledger_in_sql_and_opens_before_and_after_a_flush_and_a_kill() {
    let mut server = server().await;
    let call = stored(&server, "{\"q\":1}", "{\"r\":2}").await;
    for round in 0..3 {
        let seen = view(&server.client(), call, "a round").await.ok().json();
        assert_eq!(
            (&seen["request"]["text"], &seen["response"]["text"]),
            (&json!("{\"q\":1}"), &json!("{\"r\":2}")),
            "{seen}"
        );
        assert!(seen["ledger_seq"].as_u64().is_some(), "{seen}");
        match round {
            0 => flushed(&server, 2).await,
            _ => {
                server.kill();
                server.start().await;
            }
        }
    }
    let captured = entries(&server, "payload.captured").await;
    assert_eq!(captured.len(), 1, "one entry for both directions");
    assert_eq!(captured[0]["invocation_id"], json!(call));
    assert_eq!(captured[0]["detail"]["submitted_by"], "gateway");
    let rows = server
        .client()
        .sql("SELECT direction, record_hash, ledger_seq, epoch FROM tool_invocation_payloads ORDER BY 1")
        .await;
    assert_eq!(rows.len(), 2, "{rows:?}");
    for row in &rows {
        assert_eq!(captured[0]["detail"][row[0].as_str().unwrap()], row[1]);
        assert_eq!(captured[0]["seq"], row[2]);
    }
    let all = server.client().sql("SELECT * FROM tool_invocation_payloads").await;
    assert_eq!(all[0].len(), 17, "neither of the binaries: {all:?}");
    for hidden in ["record", "envelope", "record_bytes"] {
        let query = format!("SELECT {hidden} FROM tool_invocation_payloads");
        let answer = server.client().sql_as(&query, json!([]), "application/json").await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{hidden}");
    }
}

#[tokio::test]
async fn a_batch_is_taken_once_and_whole_or_not_at_all() {
    let server = server().await;
    let (note, call, other) = (note(&server).await, Uuid::now_v7(), Uuid::now_v7());
    let gateway = server.client().with_token(GATEWAY);
    let sealed = body(&note, &[(call, Direction::Request, "one")]);
    assert_eq!(send(&gateway, sealed.clone(), Some("k")).await.ok().json()["duplicate"], false);
    assert_eq!(send(&gateway, sealed.clone(), Some("k")).await.ok().json()["duplicate"], true);
    // Other bytes of the same call and direction, while the first are in memory; with them a record that is sound.
    let mut both = body(&note, &[(other, Direction::Request, "sound")]);
    both.extend(body(&note, &[(call, Direction::Request, "another")]));
    refused(&send(&gateway, both, None).await, 422, "payload_conflict");
    let mut cut = body(&note, &[(other, Direction::Response, "sound")]);
    cut.truncate(cut.len() - 1);
    refused(&send(&gateway, cut, None).await, 400, "invalid_payload");
    refused(&send(&gateway, sealed[4 + 1_300..].to_vec(), None).await, 400, "invalid_payload");
    assert_eq!(server.client().number("SELECT count(*) FROM tool_invocation_payloads").await, 1);
    refused(&view(&server.client(), other, "nothing there").await, 404, "not_captured");
}

#[tokio::test]
async fn what_is_not_entitled_or_sealed_to_another_key_is_refused() {
    let server = server().await;
    let mut note = note(&server).await;
    let gateway = server.client().with_token(GATEWAY);
    let call = Uuid::now_v7();
    refused(&server.client().with_token(OTHER).with_org("other").get("payload-keys").await, 403, "not_entitled");
    let theirs = body(&note, &[(call, Direction::Request, "x")]);
    refused(&send(&gateway.with_token(OTHER).with_org("other"), theirs.clone(), None).await, 403, "not_entitled");
    // Another org's.
    assert_eq!(send(&gateway.with_org("other"), theirs, None).await.status, StatusCode::NOT_FOUND);
    // A key that the ledger does not name.
    let key = mcpg::payload::KeyPair::random(mcpg::payload::Suite::XWing).unwrap();
    note.epochs.values_mut().for_each(|public| *public = key.public().clone());
    refused(&send(&gateway, body(&note, &[(call, Direction::Request, "x")]), None).await, 422, "epoch_unknown");
    // Readers send nothing, and an emitter writes no entry in the control plane's name.
    let answer = send(&server.client().with_token(ALICE), Vec::new(), None).await;
    refused(&answer, 403, "role_missing");
    let forged = json!({ "action": "payload.viewed", "actor": "user:alice@acme" }).to_string();
    let headers = [(reqwest::header::CONTENT_TYPE, "application/x-ndjson")];
    let answer = gateway.send(reqwest::Method::POST, "audit", &headers, forged.into_bytes()).await.unwrap();
    refused(&answer, 400, "invalid_event");
    assert!(server.client().with_token(OPERATOR).get("payload-keys").await.status.is_success());
}
