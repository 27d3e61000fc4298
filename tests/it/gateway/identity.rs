//! Who calls, at a real gateway: tokens, JSON Web Tokens of an issuer whose keys change, anonymous callers, and nobody.

use std::time::Duration;

use jsonwebtoken::Algorithm;
use mcpg::config::TokenHash;
use mcpg::model::{Clock, SystemClock};
use reqwest::StatusCode;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use serde_json::{Value, json};

use crate::harness::{Gateway, GatewayConfig, Mcp, Upstream, eventually, plain_http};
use crate::issuer::{Issuer, Signer};

/// How long new keys may take to be known.
const ROTATION: Duration = Duration::from_secs(60);

fn bearer(token: &str) -> HeaderMap {
    HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::try_from(format!("Bearer {token}")).unwrap())])
}

fn claims(more: Value) -> Value {
    let mut claims = json!({
        "iss": "https://id.example", "aud": "mcpg", "sub": "alice@acme", "exp": SystemClock.now().timestamp() + 600,
    });
    claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    claims
}

/// A gateway that trusts an issuer and a token, and tells who calls in its audit file.
async fn trusting(fixture: &Upstream, issuer: &Issuer) -> Gateway {
    let identity = json!({
        "anonymous": false,
        "tokens": [{ "hash": TokenHash::of("t0ken").to_string(), "caller": "service:ci" }],
        "jwt": {
            "issuer": "https://id.example", "audience": "mcpg", "jwks_url": issuer.jwks_url(), "jwks_min_interval": "100ms",
        },
    });
    GatewayConfig::new().http("fix", &fixture.url()).with(json!({ "identity": identity })).audit_file().start().await
}

/// The status of an attempt to open a session, and its challenge.
async fn refusal(gateway: &Gateway, headers: HeaderMap) -> (StatusCode, String) {
    let hello = json!({ "jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {} });
    let client = plain_http().build().unwrap();
    let response = client.post(gateway.url()).headers(headers).json(&hello).send().await.unwrap();
    let challenge = response.headers().get(WWW_AUTHENTICATE).map(|value| value.to_str().unwrap().to_owned());
    (response.status(), challenge.unwrap_or_default())
}

#[tokio::test]
async fn a_caller_is_who_its_token_says_on_the_record_too() {
    let fixture = Upstream::fixture().await;
    let signer = Signer::rsa("r", Algorithm::RS256);
    let issuer = Issuer::start(&[&signer]).await;
    let gateway = trusting(&fixture, &issuer).await;
    for (token, caller) in [("t0ken".to_owned(), "service:ci"), (signer.sign(&claims(json!({}))), "user:alice@acme")] {
        let client = Mcp::connect(&gateway.url(), bearer(&token)).await;
        client.call("fix__echo", json!({})).await.result();
        client.close().await;
        let actors = gateway.audited("tool.permit", 1).await;
        eventually("the call to be on the record", ROTATION, async || {
            gateway.audit("tool.permit").iter().any(|event| event["actor"] == caller).then_some(())
        })
        .await;
        assert!(!actors.is_empty());
    }
}

#[tokio::test]
async fn nobody_gets_a_challenge() {
    let fixture = Upstream::fixture().await;
    let issuer = Issuer::start(&[&Signer::p256("p")]).await;
    let gateway = trusting(&fixture, &issuer).await;
    assert_eq!(
        refusal(&gateway, HeaderMap::new()).await,
        (StatusCode::UNAUTHORIZED, r#"Bearer realm="mcpg""#.to_owned())
    );
    let expired = Signer::p256("p").sign(&claims(json!({ "exp": SystemClock.now().timestamp() - 600 })));
    let other = Signer::p256("p").sign(&claims(json!({ "aud": "other" })));
    for (token, why) in [
        ("wrong", "no such token"),
        (expired.as_str(), "has expired"),
        (other.as_str(), "another audience"),
        (&TokenHash::of("t0ken").to_string(), "no such token"),
    ] {
        let (status, challenge) = refusal(&gateway, bearer(token)).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED);
        assert!(challenge.contains("invalid_token") && challenge.contains(why), "{challenge}");
        assert!(!challenge.contains(token), "{challenge}");
    }
}

#[tokio::test]
async fn an_issuer_changes_its_keys_while_the_gateway_runs() {
    let fixture = Upstream::fixture().await;
    let (old, new) = (Signer::ed25519("old", 1), Signer::ed25519("new", 2));
    let issuer = Issuer::start(&[&old]).await;
    let gateway = trusting(&fixture, &issuer).await;
    let of_old = bearer(&old.sign(&claims(json!({}))));
    let session = Mcp::connect(&gateway.url(), of_old.clone()).await;
    issuer.publish(&[&new]);
    let of_new = bearer(&new.sign(&claims(json!({}))));
    eventually("the new key to be known", ROTATION, async || {
        Mcp::try_connect(&gateway.url(), of_new.clone()).await.ok().map(drop)
    })
    .await;
    // The key that was withdrawn has no say any more, not even in the session that it opened.
    assert_eq!(refusal(&gateway, of_old).await.0, StatusCode::UNAUTHORIZED);
    let call = json!({ "jsonrpc": "2.0", "id": 9, "method": "tools/list" }).to_string().into_bytes();
    assert_eq!(session.post(call, &HeaderMap::new()).await.unwrap().status(), StatusCode::UNAUTHORIZED);

    issuer.goes_away();
    Mcp::connect(&gateway.url(), of_new).await.call("fix__echo", json!({})).await.result();
}

#[tokio::test]
async fn a_session_is_its_callers_alone() {
    let fixture = Upstream::fixture().await;
    let signer = Signer::ed25519("e", 1);
    let issuer = Issuer::start(&[&signer]).await;
    let gateway = trusting(&fixture, &issuer).await;
    let mut session = Mcp::connect(&gateway.url(), bearer("t0ken")).await;
    session.call("fix__echo", json!({})).await.result();
    session.act_as(&bearer(&signer.sign(&claims(json!({})))));
    let call = json!({ "jsonrpc": "2.0", "id": 9, "method": "tools/list" }).to_string().into_bytes();
    assert_eq!(session.post(call, &HeaderMap::new()).await.unwrap().status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn groups_of_a_token_are_what_policies_see() {
    let fixture = Upstream::fixture().await;
    let signer = Signer::ed25519("e", 1);
    let issuer = Issuer::start(&[&signer]).await;
    let identity = json!({
        "jwt": { "issuer": "https://id.example", "audience": "mcpg", "jwks_url": issuer.jwks_url() },
    });
    let policy = r#"permit(principal in Group::"ops", action, resource);"#;
    let config = GatewayConfig::new().http("fix", &fixture.url()).policy(policy);
    let gateway = config.with(json!({ "identity": identity })).start().await;
    gateway.plugins_ready(1).await;
    for (groups, listed) in [(json!(["dev", "ops"]), true), (json!(["dev"]), false)] {
        let token = signer.sign(&claims(json!({ "groups": groups })));
        let tools = Mcp::connect(&gateway.url(), bearer(&token)).await.tools().await;
        assert_eq!(!tools.is_empty(), listed, "{tools:?}");
    }
}
