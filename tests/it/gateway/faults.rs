//! Upstreams and clients that misbehave: each ends in a clear JSON-RPC error or HTTP status, and the gateway goes on.

use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::HeaderMap;
use serde_json::json;

use crate::harness::{Gateway, GatewayConfig, Mcp, Upstream, eventually, fixture_command, free_port};

const PATIENCE: Duration = Duration::from_secs(60);
const MIB: u64 = 1024 * 1024;

/// Waits until the plugin `fixture` answers again.
async fn well_again(client: &Mcp) {
    eventually("the plugin to answer again", PATIENCE, async || {
        client.call("fixture__echo", json!({ "message": "hi" })).await.message.get("result").cloned()
    })
    .await;
}

/// That a call ended in an error that names the plugin.
#[track_caller]
fn assert_names_the_plugin(error: &serde_json::Value) {
    assert!(error["message"].as_str().is_some_and(|text| text.contains("fixture")), "{error}");
}

/// That the gateway's memory has hardly grown.
#[track_caller]
fn assert_kept_little(gateway: &Gateway, before: u64) {
    let grown = gateway.resident_bytes().saturating_sub(before);
    assert!(grown < 64 * MIB, "grew by {} MiB", grown / MIB);
}

#[tokio::test]
async fn a_child_that_dies_in_mid_call_ends_the_call_and_is_started_again() {
    let gateway = GatewayConfig::new().stdio("fixture", &fixture_command()).start().await;
    let client = gateway.client().await;
    assert_names_the_plugin(&client.call("fixture__die", json!({})).await.error());
    well_again(&client).await;
}

#[tokio::test]
async fn a_server_that_dies_in_mid_call_ends_the_call_and_is_found_again() {
    let mut fixture = Upstream::fixture().await;
    let gateway = GatewayConfig::new().http("fixture", &fixture.url()).start().await;
    let client = gateway.client().await;
    assert_names_the_plugin(&client.call("fixture__die", json!({})).await.error());
    fixture.ended().await;
    assert_names_the_plugin(&client.call("fixture__echo", json!({ "message": "hi" })).await.error());
    fixture.start().await;
    well_again(&client).await;
}

#[tokio::test]
async fn a_plugin_that_is_not_there_takes_nothing_from_the_others() {
    let config = GatewayConfig::new()
        .http("absent", &format!("http://127.0.0.1:{}/mcp", free_port()))
        .stdio("broken", &["/nonexistent/mcp-server".to_owned()])
        .stdio("fixture", &fixture_command());
    let gateway = config.start().await;
    let client = gateway.client().await;
    well_again(&client).await;
    assert!(client.tools().await.iter().all(|tool| tool.starts_with("fixture__")));
    for plugin in ["absent", "broken"] {
        let error = client.call(&format!("{plugin}__echo"), json!({})).await.error();
        assert!(error["message"].as_str().unwrap().contains(plugin), "{error}");
    }
}

#[tokio::test]
async fn a_server_that_announces_another_size_than_it_sends_ends_in_an_error() {
    let fixture = Upstream::fixture().await;
    let gateway = GatewayConfig::new().http("fixture", &fixture.url()).start().await;
    let client = gateway.client().await;
    for announced in [1_000_000, 10, 0] {
        let lie = client.call("fixture__lie_about_size", json!({ "announced": announced })).await;
        assert_names_the_plugin(&lie.error());
        well_again(&client).await;
    }
}

#[tokio::test]
async fn a_server_that_answers_garbage_ends_in_an_error() {
    let fixture = Upstream::fixture().await;
    let gateway = GatewayConfig::new().http("fixture", &fixture.url()).start().await;
    let client = gateway.client().await;
    assert_names_the_plugin(&client.call("fixture__garbage", json!({})).await.error());
    well_again(&client).await;
}

#[tokio::test]
async fn an_answer_to_another_request_is_not_taken_for_the_answer() {
    let fixture = Upstream::fixture().await;
    let gateway = GatewayConfig::new().http("fixture", &fixture.url()).start().await;
    let client = gateway.client().await;
    assert_names_the_plugin(&client.call("fixture__answer_another", json!({})).await.error());
    well_again(&client).await;
}

#[tokio::test]
async fn a_child_that_prints_garbage_is_still_heard() {
    let gateway = GatewayConfig::new().stdio("fixture", &fixture_command()).start().await;
    let client = gateway.client().await;
    assert_eq!(client.call("fixture__garbage", json!({})).await.text(), "answered after garbage");
}

#[tokio::test]
async fn a_result_that_is_too_large_is_refused_whichever_way_it_comes() {
    let fixture = Upstream::fixture().await;
    let command = fixture_command();
    let config = GatewayConfig::new()
        .plugin(json!({ "name": "fixture", "url": fixture.url(), "max_result_bytes": "1MiB" }))
        .plugin(
            json!({ "name": "fixture-child", "command": command[0], "args": command[1..], "max_result_bytes": "1MiB" }),
        );
    let gateway = config.start().await;
    let client = gateway.client().await;
    let before = gateway.resident_bytes();
    for plugin in ["fixture", "fixture-child"] {
        let tool = format!("{plugin}__huge");
        assert_eq!(client.call(&tool, json!({ "bytes": MIB / 2 })).await.text().len() as u64, MIB / 2);
        let error = client.call(&tool, json!({ "bytes": 32 * MIB })).await.error();
        assert_names_the_plugin(&error);
        assert_eq!(
            client.call(&format!("{plugin}__echo"), json!({ "message": "hi" })).await.text(),
            r#"{"message":"hi"}"#
        );
    }
    assert_kept_little(&gateway, before);
}

#[tokio::test]
async fn a_call_that_takes_too_long_times_out_and_is_cancelled_at_the_server() {
    let fixture = Upstream::fixture().await;
    let plugin = json!({ "name": "fixture", "url": fixture.url(), "timeout": "5s" });
    let gateway = GatewayConfig::new().plugin(plugin).start().await;
    let client = gateway.client().await;
    well_again(&client).await;
    assert_names_the_plugin(&client.call("fixture__hang", json!({})).await.error());
    eventually("the server to see the cancellation", PATIENCE, async || {
        let told = client.call("fixture__cancellations", json!({})).await.message;
        (told["result"]["content"][0]["text"] == "1").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_body_of_a_hundred_megabytes_is_refused_and_not_kept() {
    let (gateway, client) = before_fixture().await;
    let before = gateway.resident_bytes();
    let message = "x".repeat(100 * 1000 * 1000);
    let call = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": { "name": "fixture__count", "arguments": { "text": message } } });
    // The answer may come before all of the body was sent: then the rest breaks off.
    if let Ok(response) = client.post(call.to_string().into_bytes(), &HeaderMap::new()).await {
        assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
    }
    assert_kept_little(&gateway, before);
    well_again(&client).await;
}

#[tokio::test]
async fn a_large_body_within_the_limit_arrives_whole() {
    let (_gateway, client) = before_fixture().await;
    let text = "ü".repeat(1_500_000);
    assert_eq!(client.call("fixture__count", json!({ "text": text })).await.text(), "3000000");
}

#[tokio::test]
async fn garbage_from_a_client_is_a_parse_error() {
    let (_gateway, client) = before_fixture().await;
    for garbage in [&b"{\"jsonrpc\": \"2.0\", \"id\": "[..], b"\xff\xfe\x00", b"", b"null", b"42", b"[]", b"{}"] {
        let response = client.post(garbage.to_vec(), &HeaderMap::new()).await.unwrap();
        let shown = String::from_utf8_lossy(garbage);
        assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{shown}");
        let error: serde_json::Value = response.json().await.unwrap();
        let code = &error["error"]["code"];
        assert!(*code == -32700 || *code == -32600, "{shown}: {error}");
    }
    well_again(&client).await;
}

#[tokio::test]
async fn json_nested_without_end_is_refused() {
    let (mut gateway, client) = before_fixture().await;
    let deep = "[".repeat(500_000);
    let body = format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"fixture__echo","arguments":{{"a":{deep}"#
    );
    let response = client.post(body.into_bytes(), &HeaderMap::new()).await.unwrap();
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    assert!(gateway.alive());
    well_again(&client).await;
}

async fn before_fixture() -> (Gateway, Mcp) {
    let gateway = GatewayConfig::new().stdio("fixture", &fixture_command()).start().await;
    let client = gateway.client().await;
    well_again(&client).await;
    (gateway, client)
}
