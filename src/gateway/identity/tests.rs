//! Identity as a specification: real tokens, signed here, against keys that a local issuer serves.

#[path = "../../../tests/fixtures/jwt/issuer.rs"]
mod issuer;

use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use chrono::{DateTime, Utc};
use http::HeaderMap;
use http::header::AUTHORIZATION;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

use self::issuer::{Issuer, Signer};

use super::{Caller, Identity, Unidentified};
use crate::config::{Gateway, TokenHash};
use crate::model::Clock;

const NOW: i64 = 1_800_000_000;

#[derive(Debug)]
struct Still;

impl Clock for Still {
    fn now(&self) -> DateTime<Utc> {
        DateTime::from_timestamp(NOW, 0).unwrap()
    }
}

/// Identity that trusts an issuer; `more` are further settings of it.
fn trusted(issuer: &Issuer, more: &str) -> Identity {
    identity(&format!("{{issuer: me, audience: mcpg, jwks_url: '{}'{more}}}", issuer.jwks_url()))
}

fn identity(jwt: &str) -> Identity {
    let text = format!("plugins: [{{name: a, command: a}}]\nidentity:\n  jwt: {jwt}\n");
    let settings = Gateway::parse("f", &text, &|_| None).unwrap();
    Identity::start(&settings.identity, Arc::new(Still)).unwrap()
}

fn claims() -> Value {
    json!({ "iss": "me", "aud": "mcpg", "sub": "alice@acme", "exp": NOW + 600 })
}

fn with(changes: Value) -> Value {
    let mut claims = claims();
    for (name, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
            value => claims[name] = value.clone(),
        }
    }
    claims
}

fn bearer(token: &str) -> HeaderMap {
    HeaderMap::from_iter([(AUTHORIZATION, format!("Bearer {token}").parse().unwrap())])
}

async fn who(identity: &Identity, token: &str) -> Result<String, Unidentified> {
    identity.identify(&bearer(token)).await.map(|caller| caller.name().to_string())
}

fn tokens(anonymous: bool) -> Identity {
    let hash = TokenHash::of("s3cret");
    let text = format!(
        "plugins: [{{name: a, command: a}}]\nidentity:\n  anonymous: {anonymous}\n  tokens:\n  - {{hash: '{hash}', \
         caller: 'service:ci', groups: [b, a, b]}}\n"
    );
    let settings = Gateway::parse("f", &text, &|_| None).unwrap();
    Identity::start(&settings.identity, Arc::new(Still)).unwrap()
}

#[tokio::test]
async fn a_configured_token_is_of_its_caller_in_its_groups() {
    let caller = tokens(false).identify(&bearer("s3cret")).await.unwrap();
    assert_eq!(caller.name().as_str(), "service:ci");
    assert_eq!(caller.groups(), ["a", "b"]);
}

#[tokio::test]
async fn without_a_token_one_is_anonymous_or_nobody() {
    assert_eq!(tokens(true).identify(&HeaderMap::new()).await, Ok(Caller::anonymous()));
    let nobody = tokens(false).identify(&HeaderMap::new()).await.unwrap_err();
    assert_eq!(nobody, Unidentified::Missing);
    assert_eq!(
        (nobody.status(), nobody.challenge().unwrap()),
        (StatusCode::UNAUTHORIZED, r#"Bearer realm="mcpg""#.parse().unwrap())
    );
}

#[tokio::test]
async fn a_bad_token_is_nobodys_also_where_anonymous_callers_are_taken() {
    let identity = tokens(true);
    let odd = ["Bearer wrong", "Bearer", "Bearer ", "Basic s3cret", "s3cret", "Bearer a.b.c", "Bearer \u{e9}"];
    for value in odd {
        let headers = HeaderMap::from_iter([(AUTHORIZATION, http::HeaderValue::from_bytes(value.as_bytes()).unwrap())]);
        let refused = identity.identify(&headers).await.unwrap_err();
        assert!(matches!(refused, Unidentified::Invalid(_)), "{value}: {refused:?}");
        assert!(refused.challenge().unwrap().to_str().unwrap().contains("error=\"invalid_token\""));
    }
    let mut two = bearer("s3cret");
    two.append(AUTHORIZATION, "Bearer s3cret".parse().unwrap());
    assert!(matches!(identity.identify(&two).await, Err(Unidentified::Invalid(_))));
    assert!(matches!(who(&identity, &"x".repeat(20_000)).await, Err(Unidentified::Invalid("the token is too long"))));
}

#[tokio::test]
async fn the_hash_of_a_token_is_no_token() {
    assert!(who(&tokens(false), &TokenHash::of("s3cret").to_string()).await.is_err());
}

#[tokio::test]
async fn a_signed_token_is_of_the_caller_that_its_claims_name() {
    let signers = [Signer::rsa("r", Algorithm::RS256), Signer::p256("p"), Signer::ed25519("e", 1)];
    let issuer = Issuer::start(&[&signers[0], &signers[1], &signers[2]]).await;
    let identity = trusted(&issuer, "");
    for signer in &signers {
        assert_eq!(who(&identity, &signer.sign(&claims())).await.as_deref(), Ok("user:alice@acme"), "{}", signer.id);
    }
    assert_eq!(issuer.fetches(), 1, "one fetch serves them all");
}

#[tokio::test]
async fn an_rsa_key_signs_by_either_scheme_unless_its_issuer_says_which() {
    let pss = Signer::rsa("r", Algorithm::PS256);
    let issuer = Issuer::start(&[&pss]).await;
    let identity = trusted(&issuer, "");
    assert!(who(&identity, &pss.sign(&claims())).await.is_ok());
    let pkcs1 = Signer::rsa("r", Algorithm::RS256);
    assert!(who(&identity, &pkcs1.sign(&claims())).await.is_err());
}

#[tokio::test]
async fn the_claims_of_name_and_groups_are_chosen_by_the_settings() {
    let signer = Signer::ed25519("e", 1);
    let issuer = Issuer::start(&[&signer]).await;
    let identity = trusted(&issuer, ", kind: service, caller_claim: client, caller_prefix: 'ci/', groups_claim: scope");
    let token = signer.sign(&with(json!({ "client": "build", "scope": "write read" })));
    let caller = identity.identify(&bearer(&token)).await.unwrap();
    assert_eq!(
        (caller.name().as_str(), caller.groups()),
        ("service:ci/build", &["read".to_owned(), "write".to_owned()][..])
    );
}

#[tokio::test]
async fn a_token_holds_only_with_its_issuer_audience_time_and_name() {
    let signer = Signer::ed25519("e", 1);
    let issuer = Issuer::start(&[&signer]).await;
    let identity = trusted(&issuer, ", leeway: 30s");
    for good in [
        json!({ "aud": ["other", "mcpg"] }),
        json!({ "exp": NOW - 29 }),
        json!({ "exp": (NOW + 1) as f64 + 0.5 }),
        json!({ "nbf": NOW + 30 }),
    ] {
        assert!(who(&identity, &signer.sign(&with(good.clone()))).await.is_ok(), "{good}");
    }
    for (bad, why) in [
        (json!({ "iss": "you" }), "the token's issuer is not trusted here"),
        (json!({ "iss": null }), "the token's issuer is not trusted here"),
        (json!({ "iss": ["me", "you"] }), "the token's issuer is not trusted here"),
        (json!({ "aud": "other" }), "the token is for another audience"),
        (json!({ "aud": null }), "the token is for another audience"),
        (json!({ "exp": null }), "the token has no time of expiry"),
        (json!({ "exp": "tomorrow" }), "the token has no time of expiry"),
        (json!({ "exp": NOW - 30 }), "the token has expired"),
        (json!({ "nbf": NOW + 31 }), "the token is not valid yet"),
        (json!({ "nbf": "soon" }), "the token's nbf is no time"),
        (json!({ "sub": null }), "the token does not name its caller"),
        (json!({ "sub": " " }), "the token does not name its caller"),
        (json!({ "sub": "a\nb" }), "the token's name of its caller is too long, or has control characters"),
        (json!({ "groups": vec!["g"; 257] }), "the token names too many groups, or too long ones"),
    ] {
        assert_eq!(who(&identity, &signer.sign(&with(bad.clone()))).await, Err(Unidentified::Invalid(why)), "{bad}");
    }
}

#[tokio::test]
async fn a_signature_that_is_forged_shared_or_absent_is_refused() {
    let signer = Signer::ed25519("e", 1);
    let issuer = Issuer::start(&[&signer]).await;
    let identity = trusted(&issuer, "");
    let sound = signer.sign(&claims());
    assert!(who(&identity, &sound).await.is_ok());
    let parts: Vec<_> = sound.split('.').collect();
    let encode = |text: &str| base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, text);
    let forged_claims = format!("{}.{}.{}", parts[0], encode(&with(json!({ "sub": "root" })).to_string()), parts[2]);
    let other_key = Signer::ed25519("e", 2).sign(&claims());
    let none = format!("{}.{}.", encode(r#"{"alg":"none","kid":"e"}"#), parts[1]);
    // The public key, taken for a shared secret: the classic confusion of algorithms.
    let published = signer.jwk()["x"].as_str().unwrap().to_owned();
    let mut header = Header::new(Algorithm::HS256);
    header.kid = Some("e".to_owned());
    let shared = jsonwebtoken::encode(&header, &claims(), &EncodingKey::from_secret(published.as_bytes())).unwrap();
    let mut header = signer.header();
    header.crit = Some(vec!["b64".to_owned()]);
    let critical = jsonwebtoken::encode(&header, &claims(), &signer.key).unwrap();
    for token in
        [forged_claims, other_key, none, shared, critical, format!("{sound}x"), format!("{}.{}.", parts[0], parts[1])]
    {
        assert!(matches!(who(&identity, &token).await, Err(Unidentified::Invalid(_))), "{token}");
    }
}

#[tokio::test]
async fn a_key_that_is_not_known_is_fetched_once_an_interval() {
    let (old, new) = (Signer::ed25519("old", 1), Signer::ed25519("new", 2));
    let issuer = Issuer::start(&[&old]).await;
    let identity = trusted(&issuer, ", jwks_min_interval: 50ms");
    assert!(who(&identity, &old.sign(&claims())).await.is_ok());
    issuer.publish(&[&old, &new]);
    tokio::time::sleep(Duration::from_millis(60)).await;
    assert!(who(&identity, &new.sign(&claims())).await.is_ok());
    let fetches = issuer.fetches();
    let unknown = Signer::ed25519("unknown", 3).sign(&claims());
    let identity = trusted(&issuer, ", jwks_min_interval: 1h");
    for _ in 0..20 {
        assert_eq!(who(&identity, &unknown).await, Err(Unidentified::Invalid("the token's issuer has no such key")));
    }
    assert!(issuer.fetches() <= fetches + 2);
}

#[tokio::test]
async fn a_withdrawn_key_ends_the_tokens_that_it_signed() {
    let (old, new) = (Signer::ed25519("old", 1), Signer::ed25519("new", 2));
    let issuer = Issuer::start(&[&old]).await;
    let identity = trusted(&issuer, ", jwks_min_interval: 1ms");
    let token = old.sign(&claims());
    assert!(who(&identity, &token).await.is_ok());
    issuer.publish(&[&new]);
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert!(who(&identity, &new.sign(&claims())).await.is_ok());
    assert!(who(&identity, &token).await.is_err());
}

#[tokio::test]
async fn while_the_issuer_is_away_its_last_keys_stay_in_use() {
    let signer = Signer::ed25519("e", 1);
    let issuer = Issuer::start(&[&signer]).await;
    let identity = trusted(&issuer, ", jwks_min_interval: 1ms, jwks_lifetime: 1s");
    assert!(who(&identity, &signer.sign(&claims())).await.is_ok());
    issuer.goes_away();
    assert!(who(&identity, &Signer::ed25519("x", 2).sign(&claims())).await.is_err());
    assert!(who(&identity, &signer.sign(&with(json!({ "sub": "bob" })))).await.is_ok());
}

#[tokio::test]
async fn an_issuer_that_was_never_there_is_no_verdict_on_the_token() {
    let signer = Signer::ed25519("e", 1);
    let issuer = Issuer::start(&[&signer]).await;
    issuer.goes_away();
    let refused = who(&trusted(&issuer, ""), &signer.sign(&claims())).await.unwrap_err();
    assert_eq!((refused, refused.status().as_u16()), (Unidentified::Unavailable, 503));
}

#[tokio::test]
async fn keys_that_cannot_verify_a_signature_are_passed_over() {
    let signer = Signer::p256("good");
    let issuer = Issuer::start(&[]).await;
    let mut encryption = signer.jwk();
    (encryption["use"], encryption["kid"]) = ("enc".into(), "enc".into());
    let shared = json!({ "kty": "oct", "kid": "oct", "k": "AAAA" });
    let small = json!({ "kty": "RSA", "kid": "small", "n": "AQAB", "e": "AQAB" });
    let keys = json!({ "keys": [encryption, shared, small, { "kty": "new" }, 7, signer.jwk()] });
    issuer.answers(StatusCode::OK, &keys.to_string());
    let identity = trusted(&issuer, ", jwks_min_interval: 1ms");
    assert!(who(&identity, &signer.sign(&claims())).await.is_ok());
    assert!(who(&identity, &Signer::p256("enc").sign(&claims())).await.is_err());
}

#[tokio::test]
async fn an_answer_of_an_issuer_is_read_up_to_a_bound() {
    let signer = Signer::p256("p");
    let issuer = Issuer::start(&[]).await;
    let keys = json!({ "keys": [signer.jwk()], "padding": "x".repeat(300 << 10) });
    issuer.answers(StatusCode::OK, &keys.to_string());
    assert_eq!(who(&trusted(&issuer, ""), &signer.sign(&claims())).await, Err(Unidentified::Unavailable));
}

#[tokio::test]
async fn no_token_is_in_any_debug_output_or_refusal() {
    let signer = Signer::ed25519("e", 1);
    let issuer = Issuer::start(&[&signer]).await;
    let identity = trusted(&issuer, "");
    let token = signer.sign(&with(json!({ "groups": ["canary"] })));
    let caller = identity.identify(&bearer(&token)).await.unwrap();
    let refused = who(&identity, "canary.canary.canary").await.unwrap_err();
    let shown = format!("{identity:?}{caller:?}{refused:?}{refused}{:?}", refused.challenge());
    assert!(!shown.contains(&token) && !shown.contains("canary"), "{shown}");
}
