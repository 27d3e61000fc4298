//! Sessions by a token: what they do, and how they end.

use std::time::Duration;

use reqwest::{Method, StatusCode, Url};
use serde_json::json;

use super::browser::Browser;
use super::{ALICE, EMITTER, ORGS, READER, entries, tokens_without, with_tokens};
use crate::harness::eventually;

#[tokio::test]
async fn a_pasted_token_begins_a_session_that_does_what_the_token_does() {
    let server = with_tokens().start().await;
    let (base, browser) = (server.url(), Browser::new());
    let begun = browser.paste(&base, READER).await.ok();
    assert_eq!((&begun.json()["actor"], &begun.json()["way"]), (&json!("service:reader"), &json!("token_session")));
    let cookie = begun.header("set-cookie");
    for attribute in ["Path=/", "HttpOnly", "SameSite=Strict"] {
        assert!(cookie.contains(attribute), "{cookie}");
    }
    assert!(!cookie.contains(READER) && !cookie.contains("Secure"), "{cookie}");
    let get = async |path: &str| browser.fetch(Method::GET, &format!("{base}/v1/orgs/acme/{path}"), None).await;
    assert_eq!(get("metrics").await.status, StatusCode::OK);
    assert_eq!(get("storage").await.problem(), "role_missing");
    let started = entries(&server, "acme", "operator.session_started").await;
    assert_eq!((&started[0]["actor"], &started[0]["detail"]["token"]), (&json!("service:reader"), &json!("reader")));
    assert!(entries(&server, "umbrella", "operator.session_started").await.is_empty());

    let person = Browser::new();
    let begun = person.paste(&base, ALICE).await.ok().json();
    assert_eq!((&begun["actor"], &begun["person"]), (&json!("user:alice@acme.example"), &json!(true)));
    person.fetch(Method::POST, &format!("{base}/v1/orgs/acme/audit/prune?dry_run=true"), None).await.ok();
    assert!(!server.logs().contains(READER) && !server.logs().contains(ALICE));
}

#[tokio::test]
async fn what_is_no_token_for_people_begins_no_session() {
    let server = with_tokens().start().await;
    let (base, browser) = (server.url(), Browser::new());
    let emitter = browser.paste(&base, EMITTER).await;
    assert_eq!((emitter.status, emitter.problem().as_str()), (StatusCode::FORBIDDEN, "session_refused"));
    let wrong = browser.paste(&base, "wrong").await;
    assert_eq!((wrong.status, wrong.problem().as_str()), (StatusCode::UNAUTHORIZED, "token_unknown"));
    let odd = browser.fetch(Method::POST, &format!("{base}/v1/session"), Some(json!({ "tokens": READER }))).await;
    assert_eq!((odd.status, odd.problem().as_str()), (StatusCode::BAD_REQUEST, "invalid_request"));
    assert!(!odd.text().contains(READER));
    let login = browser.first(&format!("{base}/v1/session/login"), &base).await;
    assert_eq!((login.status, login.problem().as_str()), (StatusCode::NOT_FOUND, "login_not_configured"));
    assert_eq!(browser.me(&base).await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_tokens_session_ends_with_the_token() {
    let mut server = with_tokens().start().await;
    let (base, browser) = (server.url(), Browser::new());
    browser.paste(&base, READER).await.ok();
    browser.me(&base).await.ok();
    server.reconfigure(&[ORGS, &tokens_without(&["reader"])]);
    server.rewrite();
    assert_eq!(browser.until_over(&base).await, "session_ended");
    eventually("the ledger to record the token that is gone", Duration::from_secs(60), async || {
        let revoked = entries(&server, "acme", "operator.token_revoked").await;
        revoked.iter().any(|entry| entry["target"] == "reader").then_some(())
    })
    .await;
    assert!(
        entries(&server, "umbrella", "operator.token_revoked").await.is_empty(),
        "it concerns the orgs that it opened"
    );
}

#[tokio::test]
async fn a_session_that_nobody_uses_ends_and_says_so() {
    let server = with_tokens().with("session: { idle: 1s, absolute: 1h }").start().await;
    let (base, browser) = (server.url(), Browser::new());
    eventually("a session to be left idle", Duration::from_secs(60), async || {
        browser.paste(&base, READER).await.ok();
        tokio::time::sleep(Duration::from_millis(1_100)).await;
        let answer = browser.me(&base).await;
        (answer.status == StatusCode::UNAUTHORIZED && answer.problem() == "session_expired").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_session_in_use_is_renewed_and_one_that_was_ended_is_not() {
    let server = with_tokens().with("session: { idle: 30s, absolute: 1h }").start().await;
    let (base, browser) = (server.url(), Browser::new());
    let first = browser.paste(&base, READER).await.ok().json()["expires"].as_str().unwrap().to_owned();
    eventually("the session to be renewed", Duration::from_secs(60), async || {
        let me = browser.me(&base).await.ok().json();
        (me["expires"].as_str().unwrap() > first.as_str()).then_some(())
    })
    .await;
    let thief = browser.stolen();
    let out = browser.fetch(Method::DELETE, &format!("{base}/v1/session"), None).await;
    assert_eq!(out.status, StatusCode::NO_CONTENT);
    let answer = thief.me(&base).await;
    assert_eq!((answer.problem().as_str(), answer.header("set-cookie")), ("session_ended", ""));
    let again = browser.fetch(Method::DELETE, &format!("{base}/v1/session"), None).await;
    assert_eq!(again.status, StatusCode::NO_CONTENT, "who has no session is logged out");
}

/// A caller with a bad token is refused, also where a cookie would let it in.
#[tokio::test]
async fn a_bad_bearer_token_never_falls_back_to_the_cookie() {
    let server = with_tokens().start().await;
    let (base, browser) = (server.url(), Browser::new());
    browser.paste(&base, READER).await.ok();
    let url = format!("{base}/v1/orgs/acme/metrics");
    for bad in ["Bearer wrong", "Basic x", "Bearer a.b.c"] {
        let answer = browser.fetch_with(Method::GET, &url, &[("authorization", bad)], None).await;
        assert_eq!((answer.status, answer.problem().as_str()), (StatusCode::UNAUTHORIZED, "token_unknown"), "{bad}");
    }
}

#[tokio::test]
async fn there_is_no_session_over_plain_http_but_on_loopback() {
    let server = with_tokens().with("allowed_hosts: [mcpg.internal]").start().await;
    let base = server.url();
    let there = format!("http://mcpg.internal:{}", Url::parse(&base).unwrap().port().unwrap());
    let browser = Browser::new().balanced_to(&base);
    let refused = browser.paste(&there, READER).await;
    assert_eq!((refused.status, refused.problem().as_str()), (StatusCode::FORBIDDEN, "tls_required"));
    assert!(browser.cookies("mcpg.internal").is_empty());
    // Behind a proxy that speaks TLS, the public URL says so.
    let server = with_tokens().with("public_url: https://mcpg.example").start().await;
    let behind = Browser::new().balanced_to(&server.url());
    let begun = behind.paste("https://mcpg.example", READER).await.ok();
    let cookie = begun.header("set-cookie").to_owned();
    assert!(cookie.starts_with("__Host-mcpg=") && cookie.contains("; Secure"), "{cookie}");
    behind.me("https://mcpg.example").await.ok();
    let elsewhere = behind.me(&server.url()).await;
    assert_eq!(elsewhere.problem(), "token_missing", "a cookie is of its origin");
}
