//! Who may do what: tokens, roles, and orgs that do not know of each other.

use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, HeaderName};
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::harness::{Answer, Client, Config, Sample, Server, eventually, mcpg, ndjson, run_with_input};

const READER: &str = "reader-token-of-the-default-org";
const EMITTER: &str = "emitter-token-of-the-default-org";
const OTHER: &str = "token-of-the-org-acme";
const OPERATOR: &str = "operator-token-of-all-orgs";

fn hash(token: &str) -> String {
    let output = run_with_input(mcpg().args(["token", "hash"]), format!("{token}\n").as_bytes());
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

async fn server() -> Server {
    let token = |name: &str, token: &str, org: &str, roles: &str| {
        format!("  - {{ name: {name}, hash: \"{}\", org: \"{org}\", roles: [{roles}] }}\n", hash(token))
    };
    let tokens = [
        token("reader", READER, "default", "read"),
        token("emitter", EMITTER, "default", "ingest"),
        token("other", OTHER, "acme", "read, ingest"),
        token("operator", OPERATOR, "*", "read, ingest, operator"),
    ];
    let config = Config::new().with("orgs: [{ name: default }, { name: acme, tier: enterprise }]");
    config.with(&format!("tokens:\n{}", tokens.concat())).token(READER).start().await
}

async fn post_sample(client: &Client) -> Answer {
    let body = ndjson(&[Sample::new("github", "list_repos", 5.0)]);
    client.try_post("application/x-ndjson", None, None, body).await.unwrap()
}

async fn select(client: &Client) -> Answer {
    client.sql_as("SELECT count(*) FROM tool_invocations", json!([]), "application/json").await
}

#[tokio::test]
async fn without_a_token_there_is_nothing_to_be_had() {
    let server = server().await;
    for client in [Client::new(&server.url()), Client::new(&server.url()).with_token("wrong")] {
        for answer in [post_sample(&client).await, select(&client).await, client.get("metrics").await] {
            assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
            assert!(answer.header("www-authenticate").starts_with("Bearer"), "{:?}", answer.headers);
            answer.problem();
        }
    }
}

#[tokio::test]
async fn health_and_the_own_metrics_need_no_token() {
    let server = server().await;
    let anyone = Client::new(&server.url());
    for path in ["/healthz", "/readyz", "/metrics", "/openapi.json"] {
        assert_eq!(anyone.get(path).await.status, StatusCode::OK, "{path}");
    }
}

#[tokio::test]
async fn a_role_opens_its_own_doors_only() {
    let server = server().await;
    let (reader, emitter) = (server.client(), server.client().with_token(EMITTER));
    assert_eq!(post_sample(&emitter).await.status, StatusCode::OK);
    assert_eq!(select(&reader).await.status, StatusCode::OK);
    assert_eq!(reader.get("metrics").await.status, StatusCode::OK);
    for refused in [post_sample(&reader).await, select(&emitter).await, emitter.get("metrics").await] {
        assert_eq!(refused.status, StatusCode::FORBIDDEN);
        refused.problem();
    }
}

#[tokio::test]
async fn another_org_is_as_unknown_as_one_that_is_not() {
    let server = server().await;
    let reader = server.client();
    let bare = |answer: Answer| {
        assert_eq!(answer.status, StatusCode::NOT_FOUND);
        let code = answer.problem();
        (code, answer.text().replace("acme", "ORG").replace("nowhere", "ORG"))
    };
    let (acme, nowhere) = (reader.with_org("acme"), reader.with_org("nowhere"));
    assert_eq!(bare(select(&acme).await), bare(select(&nowhere).await));
    assert_eq!(bare(post_sample(&acme).await), bare(post_sample(&nowhere).await));
    assert_eq!(bare(acme.get("metrics").await), bare(nowhere.get("metrics").await));
}

#[tokio::test]
async fn a_token_of_one_org_sees_that_org_alone() {
    let server = server().await;
    assert_eq!(post_sample(&server.client().with_token(EMITTER)).await.status, StatusCode::OK);
    let other = server.client().with_org("acme").with_token(OTHER);
    assert_eq!(other.count().await, 0);
    assert_eq!(other.metrics().await.total("mcpg_tool_calls_total"), 0.0);
    assert_eq!(post_sample(&other).await.status, StatusCode::OK);
    assert_eq!(server.client().count().await, 1);
}

#[tokio::test]
async fn an_operators_token_works_in_every_org() {
    let server = server().await;
    for org in ["default", "acme"] {
        let operator = server.client().with_token(OPERATOR).with_org(org);
        assert_eq!(post_sample(&operator).await.status, StatusCode::OK);
        assert_eq!(operator.count().await, 1);
    }
}

#[tokio::test]
async fn an_authorization_header_of_another_kind_is_refused() {
    let server = server().await;
    let anyone = Client::new(&server.url());
    let authorization = HeaderName::from_static("authorization");
    for value in ["Basic cmVhZGVyOg==", "Bearer", "Bearer ", READER, "bearer\treader"] {
        let answer = anyone.send(Method::GET, "metrics", &[(authorization.clone(), value)], Vec::new()).await.unwrap();
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{value:?}");
    }
}

#[tokio::test]
async fn no_token_is_ever_logged() {
    let server = server().await;
    select(&server.client()).await;
    select(&Client::new(&server.url()).with_token("a-wrong-token-of-someone")).await;
    let headers = [(CONTENT_TYPE, "application/json")];
    let query = b"{\"query\": \"SELECT 1\"}".to_vec();
    server.client().send(Method::POST, "sql", &headers, query).await.unwrap();
    for secret in [READER, EMITTER, OTHER, OPERATOR, "a-wrong-token-of-someone"] {
        assert!(!server.logs().contains(secret), "{secret} stands in the log");
    }
}

#[tokio::test]
async fn tokens_follow_the_file_without_a_restart() {
    let token = |token: &str, more: &str| {
        format!("tokens: [{{ name: reader, hash: \"{}\", org: default, roles: [read]{more} }}]", hash(token))
    };
    let mut server = Config::new().with(&token(READER, "")).token(READER).start().await;
    assert_eq!(select(&server.client()).await.status, StatusCode::OK);
    let both = token("another-token", &format!(", previous_hash: \"{}\"", hash(READER)));
    server.reconfigure(&[&both]);
    server.rewrite();
    let new = server.client().with_token("another-token");
    eventually("the new token to be taken", Duration::from_secs(60), async || {
        (select(&new).await.status == StatusCode::OK).then_some(())
    })
    .await;
    assert_eq!(select(&server.client()).await.status, StatusCode::OK, "the one before is taken too");
    server.reconfigure(&[&token("another-token", ", expires: 2020-01-01T00:00:00Z")]);
    server.rewrite();
    eventually("the old token to be refused", Duration::from_secs(60), async || {
        (select(&server.client()).await.status == StatusCode::UNAUTHORIZED).then_some(())
    })
    .await;
    assert_eq!(select(&new).await.problem(), "token_expired");
    let own = server.client().get("/metrics").await.ok().text();
    assert!(own.contains("mcpg_cp_token_last_used_timestamp_seconds{token=\"reader\"}"), "{own}");
}
