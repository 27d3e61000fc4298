//! The control plane's own events: what it did itself stands in the ledgers, who did it, and no secret.

use reqwest::StatusCode;
use serde_json::{Value, json};

use super::chain::{SOON, column, emit, entries, post, sealed, verify, vkey};
use crate::harness::{Client, Config, Server, eventually, mcpg, run_with_input};

const READER: &str = "reader-token-of-the-ledger-tests";
const OPERATOR: &str = "operator-token-of-the-ledger-tests";

fn hash(token: &str) -> String {
    let output = run_with_input(mcpg().args(["token", "hash"]), format!("{token}\n").as_bytes());
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn tokens(lines: &[(&str, &str, &str, &str)]) -> String {
    let lines = lines.iter().map(|(name, token, org, roles)| {
        format!("\n  - {{ name: {name}, hash: \"{}\", org: \"{org}\", roles: [{roles}] }}", hash(token))
    });
    format!("tokens:{}", lines.collect::<String>())
}

/// What the control plane says of itself.
async fn own(client: &Client) -> Vec<Value> {
    entries(client, "action_prefix=operator.").await
}

#[tokio::test]
async fn starts_and_stops_stand_in_every_orgs_ledger_before_anything_else_does() {
    let mut server = Config::new().with("orgs: [{ name: default }, { name: acme }]").start().await;
    for org in ["default", "acme"] {
        let entries = entries(&server.client().with_org(org), "").await;
        let expected = ["operator.started", "operator.config_loaded", "operator.org_made"];
        assert_eq!(column(&entries, "action"), expected, "{org}");
        assert!(
            column(&entries, "actor").iter().all(|actor| actor.starts_with("system:control-plane@")),
            "{entries:?}"
        );
    }
    emit(&server.client(), 3).await;
    assert!(server.stop().await.success());
    server.start().await;
    let client = server.client();
    assert_eq!(
        column(&own(&client).await, "action")[3..],
        ["operator.stopped"],
        "nothing has changed, and it is not used"
    );
    emit(&client, 1).await;
    let after = own_of(&client, 5).await;
    assert_eq!(column(&after, "action")[3..], ["operator.stopped", "operator.started"], "it is used");
    assert_ne!(after[3]["actor"], after[4]["actor"], "each start is a node of its own");
    server.kill();
    server.start().await;
    emit(&client, 1).await;
    assert_eq!(column(&own_of(&client, 6).await, "action")[5..], ["operator.started"], "a kill leaves no stop");
    sealed(&client).await;
    verify(&server, "default", &[&vkey(&client).await]).await;
}

/// What the control plane says of itself, once there are so many entries of it.
async fn own_of(client: &Client, count: usize) -> Vec<Value> {
    eventually("the start to be recorded", SOON, async || {
        let own = own(client).await;
        (own.len() >= count).then_some(own)
    })
    .await
}

async fn configured(orgs: &str, tokens: &str, rest: &str) -> Server {
    Config::new().with(orgs).with(tokens).with(rest).token(OPERATOR).start().await
}

#[tokio::test]
async fn what_changed_in_the_configuration_is_told_by_name_and_no_secret_with_it() {
    let operator = ("operator", OPERATOR, "*", "read, ingest, operator");
    let before = tokens(&[operator, ("reader", READER, "default", "read"), ("left", "left-token", "default", "read")]);
    let secret = "telemetry: { otlp: { headers: { x-canary: canary-header } } }";
    let mut server = configured("orgs: [{ name: default, tier: pro }, { name: acme }]", &before, secret).await;
    let client = server.client();
    let made: Vec<_> = entries(&client, "action=operator.token_made").await;
    assert_eq!(column(&made, "target"), ["left", "operator", "reader"]);
    assert!(server.stop().await.success());

    let after =
        tokens(&[operator, ("reader", "another-token", "default", "read"), ("new", "new-token", "default", "read")]);
    let orgs = "orgs: [{ name: default, tier: team }, { name: acme }]";
    server.reconfigure(&[orgs, &after, secret, "flush: { interval: 7s }"]);
    server.start().await;
    let all = own(&client).await;
    let changes = &all[all.iter().rposition(|entry| entry["action"] == "operator.config_loaded").unwrap() + 1..];
    let told: Vec<_> =
        changes.iter().map(|e| (e["action"].as_str().unwrap(), e["target"].as_str().unwrap_or(""))).collect();
    assert_eq!(
        told,
        [
            ("operator.config_changed", ""),
            ("operator.org_changed", "default"),
            ("operator.token_revoked", "left"),
            ("operator.token_made", "new"),
            ("operator.token_changed", "reader"),
        ]
    );
    assert_eq!(changes[0]["detail"], json!({ "keys": ["flush.interval"] }));
    assert_eq!(changes[1]["detail"]["before"]["tier"], "pro");
    assert_eq!(changes[1]["detail"]["now"]["tier"], "team");

    let acme = own(&client.with_org("acme")).await;
    let text = format!("{all:?}{acme:?}");
    for secret in ["canary-header", READER, OPERATOR, "another-token", &hash(READER), &hash(OPERATOR)] {
        assert!(!text.contains(secret), "{secret} stands in a ledger");
    }
    assert!(!format!("{acme:?}").contains("reader"), "acme's ledger names the tokens of another org");
}

#[tokio::test]
async fn refused_requests_are_told_of_once_and_then_counted() {
    let tokens =
        tokens(&[("operator", OPERATOR, "*", "read, ingest, operator"), ("reader", READER, "default", "read")]);
    let mut server = configured("orgs: [{ name: default }, { name: acme }]", &tokens, "").await;
    let (operator, reader) = (server.client(), server.client().with_token(READER));
    let refused = async || entries(&operator, "action=operator.request_refused").await;
    assert_eq!(post(&reader, "audit/hold", &json!({ "reason": "x" })).await.status, StatusCode::FORBIDDEN);
    let told =
        eventually("the first refusal", SOON, async || Some(refused().await).filter(|told| !told.is_empty())).await;
    assert_eq!((told[0]["actor"].as_str(), told[0]["decision"].as_str()), (Some("service:reader"), Some("deny")));
    assert_eq!(told[0]["target"], "POST /v1/orgs/{org}/audit/hold");
    for _ in 0..40 {
        assert_eq!(post(&reader, "audit/hold", &json!({ "reason": "x" })).await.status, StatusCode::FORBIDDEN);
    }
    // A caller who asks for another org's data is recorded in the ledger of its own.
    assert_eq!(reader.with_org("acme").get("audit").await.status, StatusCode::NOT_FOUND);
    assert!(server.stop().await.success());
    server.start().await;
    let told = refused().await;
    let counts: u64 = told.iter().map(|entry| entry["detail"]["count"].as_u64().unwrap()).sum();
    assert_eq!((told.len(), counts), (3, 42), "{told:?}");
    assert!(entries(&operator.with_org("acme"), "action=operator.request_refused").await.is_empty());
}

#[tokio::test]
async fn no_emitter_speaks_for_the_control_plane_or_the_ledger() {
    let server = Config::new().start().await;
    let client = server.client();
    for (actor, action) in [
        ("system:control-plane@1", "tool.permit"),
        ("user:a", "ledger.release"),
        ("user:a", "operator.started"),
        ("service:ci", "operator.token_made"),
        ("service:ci", "operator.gateway"),
        ("user:a", "payload.viewed"),
    ] {
        let good = json!({ "actor": "user:a", "action": "tool.permit" });
        let refused = post(&client, "audit", &json!([good, { "actor": actor, "action": action }])).await;
        assert_eq!((refused.status, &*refused.problem()), (StatusCode::BAD_REQUEST, "invalid_event"), "{action}");
        let errors = refused.json()["errors"].clone();
        assert_eq!((errors.as_array().unwrap().len(), &errors[0]["row"]), (1, &json!(1)), "{action}: {errors}");
    }
    for action in ["operator.gateway_started", "operator.policy_reloaded", "payloads.x", "operators.x", "plugin.ready"]
    {
        post(&client, "audit", &json!({ "actor": "system:gateway", "action": action })).await.ok();
    }
}

#[tokio::test]
async fn every_event_is_stamped_with_the_token_that_it_came_in_by() {
    let event = |detail: Value| json!({ "actor": "user:a", "action": "tool.permit", "detail": detail });
    let listed =
        tokens(&[("operator", OPERATOR, "*", "read, ingest, operator"), ("NAME", READER, "default", "read, ingest")]);
    let server = configured("", &listed.replace("NAME", r#""ci \"1\"\u001b""#), "").await;
    let (client, ci) = (server.client(), server.client().with_token(READER));
    post(&client, "audit", &event(json!({ "a": { "submitted_by": "me" } }))).await.ok();
    post(&ci, "audit", &json!([event(Value::Null), event(json!({}))])).await.ok();
    let refused = post(&client, "audit", &event(json!({ "submitted_by": "operator" }))).await;
    assert_eq!((refused.status, &*refused.problem()), (StatusCode::BAD_REQUEST, "invalid_event"));
    let told = entries(&client, "action=tool.permit").await;
    let details: Vec<_> = told.iter().map(|entry| entry["detail"].clone()).collect();
    let name = json!({ "submitted_by": "ci \"1\"\u{1b}" });
    assert_eq!(details, [json!({ "a": { "submitted_by": "me" }, "submitted_by": "operator" }), name.clone(), name]);
    assert!(own(&client).await.iter().all(|entry| entry["detail"]["submitted_by"].is_null()), "its own are stamped");
    sealed(&client).await;
    verify(&server, "default", &[&vkey(&client).await]).await;
}

#[tokio::test]
async fn without_tokens_nothing_is_stamped() {
    let server = Config::new().start().await;
    let client = server.client();
    post(&client, "audit", &json!({ "actor": "user:a", "action": "tool.permit", "detail": { "a": 1 } })).await.ok();
    assert_eq!(entries(&client, "action=tool.permit").await[0]["detail"], json!({ "a": 1 }));
    let stamped = json!({ "actor": "user:a", "action": "tool.permit", "detail": { "submitted_by": "x" } });
    assert_eq!(&*post(&client, "audit", &stamped).await.problem(), "invalid_event");
}

#[tokio::test]
async fn a_refused_token_with_control_characters_in_its_name_reaches_a_sound_ledger() {
    let listed = tokens(&[("operator", OPERATOR, "*", "read, ingest, operator"), ("NAME", READER, "default", "read")]);
    let server = configured("", &listed.replace("NAME", r#""read\ner\u001b[2J\u007f""#), "").await;
    let (operator, reader) = (server.client(), server.client().with_token(READER));
    let made = entries(&operator, "action=operator.token_made").await;
    assert!(column(&made, "target").contains(&"read\\u000aer\\u001b[2J\\u007f"), "{made:?}");
    assert_eq!(post(&reader, "audit/hold", &json!({ "reason": "x" })).await.status, StatusCode::FORBIDDEN);
    let refused = eventually("the refusal", SOON, async || {
        Some(entries(&operator, "action=operator.request_refused").await).filter(|told| !told.is_empty())
    })
    .await;
    assert_eq!(refused[0]["actor"], "service:read\\u000aer\\u001b[2J\\u007f");
    sealed(&operator).await;
    verify(&server, "default", &[&vkey(&operator).await]).await;
}
