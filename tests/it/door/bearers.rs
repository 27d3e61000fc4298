//! JSON Web Tokens as bearer tokens of the API.

use jsonwebtoken::Algorithm;
use reqwest::StatusCode;
use serde_json::{Value, json};

use super::entries;
use super::{OPERATOR, ORGS, tokens_without};
use crate::harness::{Answer, Client, Config, Sample, Server, ndjson};
use crate::issuer::{Issuer, Signer};

fn now() -> u64 {
    crate::harness::now().timestamp().cast_unsigned()
}

fn claims(changes: Value) -> Value {
    let mut claims = json!({ "iss": "https://id.example", "aud": "mcpg-api", "sub": "alice@acme", "exp": now() + 600,
        "groups": ["readers"] });
    for (name, value) in changes.as_object().unwrap() {
        claims[name] = value.clone();
    }
    claims
}

async fn trusting(issuer: &Issuer) -> Server {
    let identity = format!(
        "identity:\n  jwt: {{ issuer: 'https://id.example', audience: mcpg-api, jwks_url: '{}', jwks_min_interval: 100ms }}\n  grants:\n\
         \x20 - {{ claim: groups, value: readers, org: acme, roles: [read] }}\n\
         \x20 - {{ claim: groups, value: emitters, org: acme, roles: [ingest] }}\n",
        issuer.jwks_url()
    );
    Config::new().with(ORGS).with(&tokens_without(&[])).with(&identity).token(OPERATOR).start().await
}

fn as_bearer(server: &Server, token: &str) -> Client {
    Client::new(&server.url()).with_org("acme").with_token(token)
}

async fn send(client: &Client, batch: &[Sample]) -> Answer {
    client.try_post("application/x-ndjson", None, None, ndjson(batch)).await.unwrap()
}

#[tokio::test]
async fn a_signed_token_opens_what_the_grants_say_of_its_claims() {
    let signers = [Signer::rsa("r", Algorithm::RS256), Signer::ed25519("e", 1)];
    let issuer = Issuer::start(&[&signers[0], &signers[1]]).await;
    let server = trusting(&issuer).await;
    let batch = [Sample::new("github", "list_repos", 5.0)];
    for signer in &signers {
        let reader = as_bearer(&server, &signer.sign(&claims(json!({}))));
        assert_eq!(reader.get("metrics").await.status, StatusCode::OK);
        assert_eq!(send(&reader, &batch).await.problem(), "role_missing");
        let (other, none) =
            (reader.with_org("umbrella").get("metrics").await, reader.with_org("nowhere").get("metrics").await);
        assert_eq!((other.status, other.text()), (StatusCode::NOT_FOUND, none.text()));
    }
    let both = as_bearer(&server, &signers[0].sign(&claims(json!({ "groups": "emitters" }))));
    assert_eq!(send(&both, &batch).await.status, StatusCode::OK, "a claim may be a text");
    assert_eq!(both.get("metrics").await.problem(), "role_missing");
    let stranger = as_bearer(&server, &signers[0].sign(&claims(json!({ "groups": [] }))));
    assert_eq!(stranger.get("metrics").await.problem(), "org_not_found");
    let me = as_bearer(&server, &signers[0].sign(&claims(json!({})))).get("/v1/session").await.ok().json();
    assert_eq!((&me["actor"], &me["way"], &me["person"]), (&json!("user:alice@acme"), &json!("jwt"), &json!(true)));
    assert_eq!(as_bearer(&server, OPERATOR).get("metrics").await.status, StatusCode::OK, "configured tokens stay");
}

#[tokio::test]
async fn what_they_send_and_run_bears_their_name_in_the_ledger() {
    let signer = Signer::ed25519("e", 1);
    let issuer = Issuer::start(&[&signer]).await;
    let server = trusting(&issuer).await;
    let emitter = as_bearer(&server, &signer.sign(&claims(json!({ "groups": ["emitters"] }))));
    let event = json!({ "actor": "service:ci", "action": "tool.permit" }).to_string();
    let headers = [(reqwest::header::CONTENT_TYPE, "application/x-ndjson")];
    emitter.send(reqwest::Method::POST, "audit", &headers, event.into_bytes()).await.unwrap().ok();
    let sent = entries(&server, "acme", "tool.permit").await;
    assert_eq!(sent[0]["detail"]["submitted_by"], "user:alice@acme");
}

#[tokio::test]
async fn a_token_that_is_expired_of_another_audience_or_key_opens_nothing() {
    let (signer, other, unknown) = (Signer::ed25519("e", 1), Signer::ed25519("e", 2), Signer::ed25519("x", 3));
    let issuer = Issuer::start(&[&signer]).await;
    let server = trusting(&issuer).await;
    let sound = signer.sign(&claims(json!({})));
    assert_eq!(as_bearer(&server, &sound).get("metrics").await.status, StatusCode::OK);
    for (token, why) in [
        (signer.sign(&claims(json!({ "exp": now() - 60 }))), "expired"),
        (signer.sign(&claims(json!({ "aud": "mcpg" }))), "another audience"),
        (signer.sign(&claims(json!({ "nbf": now() + 600 }))), "not valid yet"),
        (signer.sign(&claims(json!({ "sub": null }))), "does not name its caller"),
        (other.sign(&claims(json!({}))), "signature"),
        (unknown.sign(&claims(json!({}))), "no such key"),
    ] {
        let answer = as_bearer(&server, &token).get("metrics").await;
        assert_eq!((answer.status, answer.problem().as_str()), (StatusCode::UNAUTHORIZED, "token_invalid"), "{why}");
        assert!(answer.text().contains(why), "{}", answer.text());
        assert!(answer.header("www-authenticate").contains("invalid_token"));
        assert!(!server.logs().contains(&token));
    }
    let elsewhere = signer.sign(&claims(json!({ "iss": "https://other.example" })));
    assert_eq!(as_bearer(&server, &elsewhere).get("metrics").await.problem(), "token_unknown");
    issuer.publish(&[&other]);
    crate::harness::eventually("the withdrawn key to be known", std::time::Duration::from_secs(60), async || {
        // A token of a key that is not known has the keys fetched.
        as_bearer(&server, &unknown.sign(&claims(json!({})))).get("metrics").await;
        let ended = as_bearer(&server, &sound).get("metrics").await.status == StatusCode::UNAUTHORIZED;
        ended.then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_issuer_that_was_never_there_is_no_verdict_on_a_token() {
    let signer = Signer::ed25519("e", 1);
    let issuer = Issuer::start(&[&signer]).await;
    issuer.goes_away();
    let server = trusting(&issuer).await;
    let answer = as_bearer(&server, &signer.sign(&claims(json!({})))).get("metrics").await;
    assert_eq!((answer.status, answer.problem().as_str()), (StatusCode::SERVICE_UNAVAILABLE, "issuer_unavailable"));
    assert!(!answer.header("retry-after").is_empty());
    assert_eq!(as_bearer(&server, OPERATOR).get("metrics").await.status, StatusCode::OK);
}
