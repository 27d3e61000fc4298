//! Logins by a real provider.

use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use reqwest::{Method, StatusCode, Url};
use serde_json::{Value, json};

use super::browser::Browser;
use super::entries;
use super::provider::{SECRET, provided};
use crate::harness::{Client, eventually, plain_http};

#[tokio::test]
async fn a_person_logs_in_does_what_the_claims_open_and_logs_out() {
    let (server, provider) = provided("").await;
    let (base, browser) = (server.url(), Browser::new());
    let nobody = browser.me(&base).await;
    assert_eq!((nobody.status, nobody.problem().as_str()), (StatusCode::UNAUTHORIZED, "token_missing"));
    assert_eq!(nobody.json()["login"], true, "the page learns that there is a provider");

    let (url, _) = browser.log_in(&base, "alice", "/ledger?org=acme").await;
    assert_eq!(url.as_str(), format!("{base}/ledger?org=acme"));
    let me = browser.me(&base).await.ok();
    assert_eq!(me.header("cache-control"), "no-store");
    let me = me.json();
    assert_eq!(
        (&me["actor"], &me["person"], &me["way"]),
        (&json!("user:alice@acme.example"), &json!(true), &json!("session"))
    );
    let orgs = json!([{ "org": "acme", "roles": ["read", "payload"] }, { "org": "umbrella", "roles": ["read"] }]);
    assert_eq!(me["orgs"], orgs, "by her group and by her verified address");
    assert!(me["auth_time"].is_string() && me["expires"].is_string() && me["ends"].is_string());
    let host = Url::parse(&base).unwrap().host_str().unwrap().to_owned();
    assert_eq!(browser.cookies(&host), [format!("mcpg-{}", Url::parse(&base).unwrap().port().unwrap())]);

    let query = json!({ "query": "SELECT count(*) AS n FROM tool_invocations" });
    let sql = |org: &str| format!("{base}/v1/orgs/{org}/sql");
    browser.fetch(Method::POST, &sql("acme"), Some(query.clone())).await.ok();
    let prune = browser.fetch(Method::POST, &format!("{base}/v1/orgs/acme/audit/prune?dry_run=true"), None).await;
    assert_eq!((prune.status, prune.problem().as_str()), (StatusCode::FORBIDDEN, "role_missing"));
    eventually("the refusal to be in the ledger", Duration::from_secs(60), async || {
        let refused = entries(&server, "acme", "operator.request_refused").await;
        refused.iter().any(|entry| entry["actor"] == "user:alice@acme.example").then_some(())
    })
    .await;

    for org in ["acme", "umbrella"] {
        let started = entries(&server, org, "operator.session_started").await;
        assert_eq!(started.len(), 1, "{org}");
        assert_eq!(started[0]["actor"], "user:alice@acme.example");
        let detail = &started[0]["detail"];
        assert_eq!(
            (&detail["by"], &detail["issuer"], &detail["subject"]),
            (&json!("oidc"), &json!(provider.issuer()), &json!("alice"))
        );
    }

    let thief = browser.stolen();
    thief.me(&base).await.ok();
    let out = browser.fetch(Method::DELETE, &format!("{base}/v1/session"), None).await;
    assert_eq!(out.status, StatusCode::NO_CONTENT);
    assert!(browser.cookies(&host).is_empty());
    assert_eq!(thief.me(&base).await.problem(), "session_ended", "a copied cookie does not outlive the logout");
    let stolen = thief.fetch(Method::POST, &sql("acme"), Some(query)).await;
    assert_eq!((stolen.status, stolen.problem().as_str()), (StatusCode::UNAUTHORIZED, "session_ended"));
    assert_eq!(entries(&server, "acme", "operator.session_ended").await.len(), 1);
    assert!(!server.logs().contains(SECRET), "no secret is logged");
}

#[tokio::test]
async fn a_person_of_one_org_finds_no_other() {
    let (server, _provider) = provided("").await;
    let (base, browser) = (server.url(), Browser::new());
    browser.log_in(&base, "ursula", "/").await;
    let me = browser.me(&base).await.ok().json();
    assert_eq!(me["orgs"], json!([{ "org": "umbrella", "roles": ["read"] }]));
    let get = async |org: &str| browser.fetch(Method::GET, &format!("{base}/v1/orgs/{org}/metrics"), None).await;
    assert_eq!(get("umbrella").await.status, StatusCode::OK);
    let (other, none) = (get("acme").await, get("nowhere").await);
    assert_eq!((other.status, other.problem().as_str()), (StatusCode::NOT_FOUND, "org_not_found"));
    assert_eq!(other.text(), none.text());
}

#[tokio::test]
async fn an_operator_of_the_fleet_is_told_of_in_every_ledger_and_ends_others_sessions() {
    let (server, _provider) = provided("").await;
    let base = server.url();
    let (olga, alice) = (Browser::new(), Browser::new());
    olga.log_in(&base, "olga", "/").await;
    alice.log_in(&base, "alice", "/").await;
    for org in ["acme", "umbrella"] {
        let started = entries(&server, org, "operator.session_started").await;
        assert!(started.iter().any(|entry| entry["actor"] == "user:olga@fleet.example"), "{org}");
    }
    let revoke = |org: &str| format!("{base}/v1/orgs/{org}/sessions/revoke");
    let refused = alice.fetch(Method::POST, &revoke("acme"), Some(json!({}))).await;
    assert_eq!(refused.problem(), "role_missing");
    let whom = json!({ "caller": "user:alice@acme.example" });
    olga.fetch(Method::POST, &revoke("acme"), Some(whom)).await.ok();

    let in_org = async |browser: &Browser, org: &str| {
        browser.fetch(Method::GET, &format!("{base}/v1/orgs/{org}/metrics"), None).await.status
    };
    assert_eq!(in_org(&alice, "acme").await, StatusCode::UNAUTHORIZED);
    assert_eq!(in_org(&alice, "umbrella").await, StatusCode::OK, "one org's operator ends nothing in another");
    assert_eq!(in_org(&olga, "acme").await, StatusCode::OK, "a caller's sessions are that caller's");
    let me = alice.me(&base).await.ok().json();
    assert_eq!(me["orgs"], json!([{ "org": "umbrella", "roles": ["read"] }]));
    let revoked = entries(&server, "acme", "operator.sessions_revoked").await;
    assert_eq!(
        (&revoked[0]["actor"], &revoked[0]["target"]),
        (&json!("user:olga@fleet.example"), &json!("user:alice@acme.example"))
    );

    alice.log_in(&base, "alice", "/").await;
    assert_eq!(in_org(&alice, "acme").await, StatusCode::OK, "a new login begins a new session");
    server.client().with_org("acme").send(Method::POST, "sessions/revoke", &[], b"{}".to_vec()).await.unwrap().ok();
    assert_eq!(in_org(&alice, "acme").await, StatusCode::UNAUTHORIZED);
    assert_eq!(in_org(&olga, "acme").await, StatusCode::UNAUTHORIZED, "all of the org's, the operator's own too");
}

#[tokio::test]
async fn who_is_not_to_come_in_is_told_so_and_gets_no_session() {
    let (server, mut provider) = provided("").await;
    let base = server.url();
    for (name, code) in [("stranger", "no_access"), ("mallory", "login_invalid")] {
        let browser = Browser::new();
        let (url, _) = browser.log_in(&base, name, "/").await;
        assert_eq!(url.as_str(), format!("{base}/?login_error={code}"), "{name}");
        assert_eq!(browser.me(&base).await.status, StatusCode::UNAUTHORIZED, "{name}");
    }
    let browser = Browser::new();
    for evil in ["//evil.example", "/\\evil.example", "https://evil.example/", "/\t/evil.example"] {
        let mut url = Url::parse(&format!("{base}/v1/session/login")).unwrap();
        url.query_pairs_mut().append_pair("return_to", evil);
        let answer = browser.first(url.as_str(), &base).await;
        assert_eq!(
            (answer.status, answer.problem().as_str()),
            (StatusCode::BAD_REQUEST, "invalid_parameter"),
            "{evil:?}"
        );
    }
    // A link that somebody else made, to log the browser in as themselves.
    let forged = format!("{base}/v1/session/callback?code=x&state=y&iss=z");
    let answer = browser.first(&forged, "https://evil.example").await;
    assert_eq!(answer.header("location"), format!("{base}/?login_error=login_expired"));
    let begun = browser.first(&format!("{base}/v1/session/login"), &base).await;
    let at = Url::parse(begun.header("location")).unwrap();
    let state = at.query_pairs().find(|(name, _)| name == "state").unwrap().1.into_owned();
    let other = format!("{base}/v1/session/callback?code=x&state={state}&iss=https%3A%2F%2Fother.example");
    let answer = browser.first(&other, "https://other.example").await;
    assert_eq!(answer.header("location"), format!("{base}/?login_error=login_mismatch"));
    let again = browser.first(&other, "https://other.example").await;
    assert_eq!(again.header("location"), format!("{base}/?login_error=login_expired"), "a login comes back once");
    provider.kill();
    let away = browser.first(&format!("{base}/v1/session/login"), &base).await;
    assert!(away.status.is_redirection(), "what is known of the provider stays in use");
}

#[tokio::test]
async fn a_login_that_asks_afresh_gets_another_time_of_login() {
    let (server, _provider) = provided("").await;
    let (base, browser) = (server.url(), Browser::new());
    browser.log_in(&base, "alice", "/").await;
    let time = async || browser.me(&base).await.ok().json()["auth_time"].as_str().unwrap().to_owned();
    let first = time().await;
    // A person who is logged in at the provider is asked for nothing when they come again …
    let (url, _) = browser.follow(&format!("{base}/v1/session/login"), Some(&base)).await;
    assert_eq!(url.as_str(), format!("{base}/"));
    assert_eq!(time().await, first);
    // … unless the login is to be fresh. A second must pass for the two logins to differ.
    eventually("another time of login", Duration::from_secs(60), async || {
        let at = browser.follow(&format!("{base}/v1/session/login?prompt=login"), Some(&base)).await;
        assert!(at.1.text().contains(r#"value="login""#), "the provider asks");
        browser.through(at, "alice").await;
        (time().await != first).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_session_that_lasted_as_long_as_one_may_goes_by_the_provider_again_without_a_question() {
    let (server, _provider) = provided("session: { idle: 10s, absolute: 11s }").await;
    let (base, browser) = (server.url(), Browser::new());
    browser.log_in(&base, "alice", "/").await;
    // In use to the end.
    let code = browser.until_over(&base).await;
    assert_eq!(code, "session_expired");
    let silent = browser.first(&format!("{base}/v1/session/login"), &base).await;
    assert!(silent.header("location").contains("prompt=none"), "{}", silent.header("location"));
    let (url, _) = browser.follow(&format!("{base}/v1/session/login?return_to=/lag"), Some(&base)).await;
    assert_eq!(url.as_str(), format!("{base}/lag"));
    browser.me(&base).await.ok();
}

/// An ID token says who logged in here; it is no key to the API.
#[tokio::test]
async fn an_id_token_sent_as_a_bearer_token_opens_nothing() {
    let (server, provider) = provided("").await;
    let (base, browser) = (server.url(), Browser::new());
    // The test is the client itself, to see the token.
    let verifier = "a".repeat(43);
    let challenge = BASE64_URL_SAFE_NO_PAD.encode(<sha2::Sha256 as sha2::Digest>::digest(&verifier));
    let redirect = format!("{base}/v1/session/callback");
    let mut url = Url::parse(&format!("{}/auth", provider.issuer())).unwrap();
    url.query_pairs_mut().extend_pairs([
        ("response_type", "code"),
        ("client_id", "mcpg"),
        ("redirect_uri", &redirect),
        ("scope", "openid email groups"),
        ("code_challenge", &challenge),
        ("code_challenge_method", "S256"),
        ("nonce", "n"),
    ]);
    let at = browser.follow(url.as_str(), None).await;
    let (end, _) = browser.through(at, "alice").await;
    assert_eq!(end.as_str(), format!("{base}/?login_error=login_expired"), "the control plane began no such login");
    // The code went to the control plane, which took no token for it: the provider gives another one without a
    // question.
    let mut at = Url::parse(url.as_str()).unwrap();
    let code = loop {
        let answer = browser.first(at.as_str(), provider.issuer()).await;
        at = at.join(answer.header("location")).unwrap();
        if let Some((_, code)) = at.query_pairs().find(|(name, _)| name == "code") {
            break code.into_owned();
        }
    };
    let form = url::form_urlencoded::Serializer::new(String::new())
        .extend_pairs([
            ("grant_type", "authorization_code"),
            ("code", &code),
            ("redirect_uri", &redirect),
            ("code_verifier", &verifier),
        ])
        .finish();
    let http = plain_http().build().unwrap();
    let request = http.post(format!("{}/token", provider.issuer())).basic_auth("mcpg", Some(SECRET));
    let request = request.header("content-type", "application/x-www-form-urlencoded").body(form);
    let tokens: Value = request.send().await.unwrap().json().await.unwrap();
    let id_token = tokens["id_token"].as_str().unwrap();
    let answer = Client::new(&base).with_org("acme").with_token(id_token).get("metrics").await;
    assert_eq!((answer.status, answer.problem().as_str()), (StatusCode::UNAUTHORIZED, "token_invalid"));
    assert!(answer.text().contains("another audience"), "{}", answer.text());
    assert!(!server.logs().contains(id_token));
}

#[tokio::test]
async fn a_configuration_in_which_an_id_token_would_open_the_api_is_refused() {
    let yaml = "public_url: https://mcpg.example\nidentity:\n  jwt: { issuer: 'https://id.example', audience: mcpg, jwks_url: 'https://id.example/k' }\n\
                \x20 oidc: { issuer: 'https://id.example', client_id: mcpg }\n  grants: [{ claim: g, value: v, org: default, roles: [read] }]\n";
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cp.yaml");
    std::fs::write(&file, yaml).unwrap();
    let output = crate::harness::run(crate::harness::mcpg().args(["config", "check"]).arg(&file));
    let told = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(!output.status.success() && told.contains("identity.oidc.client_id"), "{told}");
}
