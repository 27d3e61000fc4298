//! Who sees a payload, and what the ledger says of it.

use mcpg::payload::Direction;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    ALICE, BOB, GATEWAY, OPERATOR, OTHER, SERVICE, body, config, entries, flushed, note, now, refused, send, stored,
    tokens, told, view,
};
use crate::issuer::{Issuer, Signer};

#[tokio::test]
async fn a_person_with_the_role_sees_it_once_the_ledger_says_so_and_nobody_else_does() {
    let server = config("").start().await;
    let call = stored(&server, "{\"q\":\"what was asked\"}", "{\"r\":\"what was answered\"}").await;
    let as_of = |token: &str| server.client().with_token(token);
    refused(&view(&as_of(BOB), call, "curious").await, 403, "role_missing");
    refused(&view(&as_of(SERVICE), call, "a robot").await, 403, "person_required");
    refused(&view(&as_of(OPERATOR), call, "all orgs are mine").await, 403, "role_missing");
    refused(&view(&as_of(OTHER), call, "another org").await, 404, "org_not_found");
    refused(&view(&as_of("nobody"), call, "who").await, 401, "token_unknown");
    for reason in ["", "no", "\u{7}bell", &"x".repeat(501)] {
        refused(&view(&as_of(ALICE), call, reason).await, 400, "reason_required");
    }
    assert!(entries(&server, "payload.viewed").await.is_empty(), "nobody has seen anything");
    let answer = view(&as_of(ALICE), call, "incident 4711").await.ok();
    for (name, value) in [
        ("cache-control", "no-store"),
        ("x-content-type-options", "nosniff"),
        ("content-security-policy", "default-src 'none'; sandbox"),
    ] {
        assert_eq!(answer.header(name), value);
    }
    let seen = answer.json();
    assert_eq!(seen["request"]["text"], "{\"q\":\"what was asked\"}");
    let viewed = entries(&server, "payload.viewed").await;
    assert_eq!(viewed.len(), 1);
    assert_eq!((&viewed[0]["actor"], &viewed[0]["reason"]), (&json!("user:alice@acme"), &json!("incident 4711")));
    assert_eq!((&viewed[0]["invocation_id"], &viewed[0]["seq"]), (&json!(call), &seen["ledger_seq"]));
    let denied = told(&server, "payload.view_denied", 4).await;
    let reasons: Vec<&Value> = denied.iter().map(|entry| &entry["reason"]).collect();
    for why in ["role_missing", "person_required", "reason_required"] {
        assert!(reasons.contains(&&json!(why)), "{reasons:?}");
    }
    refused(&view(&as_of(ALICE), Uuid::now_v7(), "no such call").await, 404, "not_captured");
}

#[tokio::test]
async fn an_operator_and_a_shared_token_see_it_where_the_org_says_so() {
    let server = config(", payloads: { operator_view: true, shared_tokens: true }").start().await;
    let call = stored(&server, "1", "2").await;
    for token in [OPERATOR, SERVICE] {
        view(&server.client().with_token(token), call, "as the org allows").await.ok();
    }
    let actors: Vec<Value> =
        entries(&server, "payload.viewed").await.into_iter().map(|entry| entry["actor"].clone()).collect();
    assert_eq!(actors, [json!("user:root@ops"), json!("service:service")]);
}

#[tokio::test]
async fn more_than_thirty_a_minute_are_refused() {
    let server = config("").start().await;
    let call = stored(&server, "1", "2").await;
    view(&server.client(), call, "the first").await.ok();
    let (mut seen, mut is_refused) = (1, false);
    // Two at a time, of which one is the thirtieth and the other is not. Two minutes may lie within the requests.
    while !is_refused {
        let client = server.client();
        let (one, other) = tokio::join!(view(&client, call, "again"), view(&client, call, "and again"));
        for answer in [one, other] {
            if answer.status.is_success() {
                seen += 1;
            } else {
                refused(&answer, 429, "too_many_views");
                is_refused = true;
            }
        }
        assert!(seen <= 60, "{seen}");
    }
    assert!(seen >= 30, "{seen}");
    let viewed = entries(&server, "payload.viewed").await;
    assert_eq!(viewed.len(), seen);
    let minute = |entry: &serde_json::Value| entry["recorded_at"].as_str().unwrap()[..16].to_owned();
    for entry in &viewed {
        let in_its_minute = viewed.iter().filter(|other| minute(other) == minute(entry)).count();
        assert!(in_its_minute <= 30, "{in_its_minute} at {}", minute(entry));
    }
}

/// A store that was changed: what opens is what the ledger has the hash of, or nothing.
#[tokio::test]
async fn a_record_that_was_swapped_in_the_store_is_not_shown() {
    let mut server = config("").start().await;
    let call = stored(&server, "{\"q\":1}", "{\"r\":1}").await;
    flushed(&server, 2).await;
    assert!(server.stop().await.success());
    let folder = server.storage().join("orgs/default/tool_invocation_payloads");
    let script = "tamper_payload.py";
    let changed = crate::harness::python(script, &[folder.to_str().unwrap()]).await;
    assert_eq!(changed, json!({ "swapped": 1 }));
    server.start().await;
    let answer = view(&server.client(), call, "after a thief").await;
    refused(&answer, 500, "record_damaged");
    let failed = entries(&server, "payload.view_failed").await;
    assert_eq!(failed.len(), 1, "{failed:?}");
    assert!(!answer.text().contains("\"q\""));
}

/// Of two records of one direction the first counts; the other is reported.
#[tokio::test]
async fn of_two_records_the_first_counts_and_the_other_is_told_of() {
    let server = config("").start().await;
    let (note, call) = (note(&server).await, Uuid::now_v7());
    let gateway = server.client().with_token(GATEWAY);
    send(&gateway, body(&note, &[(call, Direction::Request, "the first")]), None).await.ok();
    flushed(&server, 1).await;
    // The first is not in memory any more.
    crate::harness::eventually("the second to be taken", super::PATIENCE, async || {
        let answer = send(&gateway, body(&note, &[(call, Direction::Request, "the second")]), None).await;
        answer.status.is_success().then_some(())
    })
    .await;
    let seen = view(&server.client(), call, "which of the two").await.ok().json();
    assert_eq!(seen["request"]["text"], "the first");
    assert_eq!(entries(&server, "payload.conflict").await.len(), 1);
}

/// The time of a login is to be known: a token that does not say it counts as an old one.
#[tokio::test]
async fn a_json_web_token_shows_payloads_within_an_hour_of_its_persons_login() {
    let signer = Signer::ed25519("e", 1);
    let issuer = Issuer::start(&[&signer]).await;
    let identity = format!(
        "identity:\n  jwt: {{ issuer: 'https://id.example', audience: mcpg-api, jwks_url: '{}' }}\n  grants:\n\
         \x20 - {{ claim: groups, value: security, org: default, roles: [read, payload] }}\n",
        issuer.jwks_url()
    );
    let server = config("").with(&identity).start().await;
    let call = stored(&server, "1", "2").await;
    let ago = |seconds: i64| now().timestamp() - seconds;
    let as_of = |times: Value| {
        let mut claims = json!({ "iss": "https://id.example", "aud": "mcpg-api", "sub": "carol@acme", "exp": ago(-600),
            "groups": ["security"] });
        claims.as_object_mut().unwrap().extend(times.as_object().unwrap().clone());
        server.client().with_token(&signer.sign(&claims))
    };
    for old in [json!({}), json!({ "iat": ago(3_700) }), json!({ "auth_time": ago(3_700), "iat": ago(10) })] {
        let answer = view(&as_of(old.clone()), call, "an old login").await;
        refused(&answer, 401, "login_again");
        assert!(answer.header("www-authenticate").contains("max_age"), "{old}");
    }
    assert!(entries(&server, "payload.viewed").await.is_empty());
    for recent in [json!({ "iat": ago(10) }), json!({ "auth_time": ago(3_500), "iat": ago(10) })] {
        view(&as_of(recent), call, "a recent login").await.ok();
    }
    let denied = told(&server, "payload.view_denied", 1).await;
    assert_eq!((&denied[0]["actor"], &denied[0]["reason"]), (&json!("user:carol@acme"), &json!("login_again")));
}

/// What was captured while the org was entitled is shown to nobody once it is not, and the ledger says who asked.
#[tokio::test]
async fn an_entitlement_that_was_withdrawn_ends_views_and_exports() {
    let mut server = config("").start().await;
    let call = stored(&server, "1", "2").await;
    assert!(server.stop().await.success());
    server.reconfigure(&["orgs: [{ name: default, tier: enterprise }, { name: other, tier: enterprise }]", &tokens()]);
    server.start().await;
    refused(&view(&server.client(), call, "as before").await, 403, "not_entitled");
    let export = "payloads/export?from=2026-01-01T00:00:00Z&to=2036-01-01T00:00:00Z&reason=as%20before";
    refused(&server.client().get(export).await, 403, "not_entitled");
    let denied = told(&server, "payload.view_denied", 2).await;
    assert!(denied.iter().all(|entry| entry["reason"] == "not_entitled"), "{denied:?}");
    assert!(entries(&server, "payload.viewed").await.is_empty());
}

/// A view reads the records that count, and of the others no more than their rows.
#[tokio::test]
async fn however_many_records_of_a_call_there_are_the_first_is_shown() {
    let server = config("").start().await;
    let (note, call) = (note(&server).await, Uuid::now_v7());
    let gateway = server.client().with_token(GATEWAY);
    for (rows, text) in (1..).zip(["the first", "the second", "the third"]) {
        crate::harness::eventually("it to be taken", super::PATIENCE, async || {
            let payloads = [(call, Direction::Request, text), (Uuid::now_v7(), Direction::Request, "of another call")];
            let answer = send(&gateway, body(&note, &payloads), None).await;
            answer.status.is_success().then_some(())
        })
        .await;
        flushed(&server, 2 * rows).await;
    }
    for _ in 0..2 {
        let seen = view(&server.client(), call, "which of the three").await.ok().json();
        assert_eq!((&seen["request"]["text"], seen.get("response")), (&json!("the first"), None));
    }
    assert_eq!(entries(&server, "payload.conflict").await.len(), 2, "each is reported once");
}
