//! Sessions: ten thousand at once within bounded memory, an end to each, and a limit on all.

use futures::StreamExt;
use mcpg::config::TokenHash;
use reqwest::StatusCode;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use serde_json::json;

use crate::harness::{GatewayConfig, Mcp, Upstream, alone, fixture_command};

const SESSIONS: usize = 10_000;
/// What a session may hold of the gateway's memory when nothing goes on in it, in an unoptimised build.
const BYTES_A_SESSION: u64 = 48 * 1024;

#[tokio::test]
async fn ten_thousand_sessions_stay_within_the_gateways_memory() {
    let _alone = alone().await;
    let gateway = GatewayConfig::new().stdio("fixture", &fixture_command()).start().await;
    let first = gateway.client().await;
    first.call("fixture__echo", json!({ "message": "hi" })).await.result();
    let before = gateway.resident_bytes();
    let opened = futures::stream::iter(0..SESSIONS).map(|_| first.another());
    let sessions: Vec<Mcp> = opened.buffer_unordered(32).collect().await;
    let grown = gateway.resident_bytes().saturating_sub(before);
    let each = grown / SESSIONS as u64;
    assert!(each < BYTES_A_SESSION, "{each} bytes a session, {} MiB in all", grown >> 20);
    // The first and the last of them work as the only one did.
    for session in [&first, sessions.last().unwrap()] {
        assert_eq!(session.call("fixture__echo", json!({ "message": "hi" })).await.text(), r#"{"message":"hi"}"#);
    }
}

#[tokio::test]
async fn a_session_that_was_ended_is_no_more() {
    let gateway = GatewayConfig::new().stdio("fixture", &fixture_command()).start().await;
    let client = gateway.client().await;
    let id = client.session_id();
    assert!(client.close().await.is_success());
    let other = Mcp::without_session(&gateway.url());
    let headers = HeaderMap::from_iter([("mcp-session-id".parse().unwrap(), id)]);
    let ping = json!({ "jsonrpc": "2.0", "id": 1, "method": "ping" }).to_string().into_bytes();
    assert_eq!(other.post(ping, &headers).await.unwrap().status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_session_of_one_endpoint_is_none_of_another() {
    let config = GatewayConfig::new().stdio("one", &fixture_command()).stdio("two", &fixture_command());
    let gateway = config.start().await;
    let id = gateway.plugin_client("one").await.session_id();
    let other = Mcp::without_session(&gateway.plugin_url("two"));
    let headers = HeaderMap::from_iter([("mcp-session-id".parse().unwrap(), id)]);
    let list = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/list" }).to_string().into_bytes();
    assert_eq!(other.post(list, &headers).await.unwrap().status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_session_past_the_limit_is_refused_until_another_ends() {
    let config = GatewayConfig::new().stdio("fixture", &fixture_command());
    let gateway = config.with(json!({ "limits": { "sessions": 2 } })).start().await;
    let (one, _two) = (gateway.client().await, gateway.client().await);
    let (status, text) = Mcp::try_connect(&gateway.url(), HeaderMap::new()).await.expect_err("a third session");
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{text}");
    assert!(one.close().await.is_success());
    gateway.client().await.call("fixture__echo", json!({ "message": "hi" })).await.result();
}

#[tokio::test]
async fn a_web_page_of_another_host_is_refused() {
    let fixture = Upstream::fixture().await;
    let gateway = GatewayConfig::new().http("fixture", &fixture.url()).start().await;
    for (name, value) in [("host", "evil.example.com"), ("origin", "https://evil.example.com")] {
        let headers = HeaderMap::from_iter([(name.parse().unwrap(), HeaderValue::from_static(value))]);
        let (status, _) = Mcp::try_connect(&gateway.url(), headers).await.expect_err("a session");
        assert_eq!(status, StatusCode::FORBIDDEN, "{name}");
    }
}

#[tokio::test]
async fn a_caller_with_all_sessions_of_a_plugin_keeps_nobody_else_out() {
    let plugin = json!({ "name": "fixture", "command": fixture_command()[0], "args": fixture_command()[1..], "max_sessions": 2 });
    let tokens = ["greedy", "other"]
        .map(|caller| json!({ "hash": TokenHash::of(caller).to_string(), "caller": format!("service:{caller}") }));
    let identity = json!({ "anonymous": false, "tokens": tokens });
    let gateway = GatewayConfig::new().plugin(plugin).with(json!({ "identity": identity })).start().await;
    let as_caller = |caller: &str| {
        HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_str(&format!("Bearer {caller}")).unwrap())])
    };
    let first = Mcp::connect(&gateway.url(), as_caller("greedy")).await;
    let second = Mcp::connect(&gateway.url(), as_caller("greedy")).await;
    for session in [&first, &second] {
        session.call("fixture__echo", json!({ "message": "hi" })).await.result();
    }
    let third = Mcp::connect(&gateway.url(), as_caller("greedy")).await;
    let refused = third.call("fixture__echo", json!({ "message": "hi" })).await.error();
    assert_eq!(refused["data"]["code"], "session_limit", "its own sessions are not old enough to make room: {refused}");
    let other = Mcp::connect(&gateway.url(), as_caller("other")).await;
    other.call("fixture__echo", json!({ "message": "hi" })).await.result();
}
