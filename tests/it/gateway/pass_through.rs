//! What goes on between a client and a server beside calls and answers passes through: changed lists, updated
//! resources, cancellations, and streams that break and are taken up again.

use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderValue};
use serde_json::{Value, json};

use crate::harness::{Events, GatewayConfig, Upstream, eventually, fixture_command};

const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_tool_that_appears_is_announced_and_listed() {
    let gateway = GatewayConfig::new().stdio("fixture", &fixture_command()).start().await;
    let client = gateway.client().await;
    let grown = client.call("fixture__grow", json!({})).await;
    // It was said in the middle of a call, so it comes with that call.
    assert!(grown.before.iter().any(|message| message["method"] == "notifications/tools/list_changed"), "{grown:?}");
    assert!(client.tools().await.contains(&"fixture__grown".to_owned()));
    assert_eq!(client.call("fixture__grown", json!({})).await.text(), "grown");
}

#[tokio::test]
async fn an_updated_resource_is_told_to_those_who_subscribed() {
    let fixture = Upstream::fixture().await;
    let gateway = GatewayConfig::new().http("fixture", &fixture.url()).start().await;
    let uri = json!({ "uri": "test://watched-resource" });
    let (subscribed, other) = (gateway.client().await, gateway.client().await);
    let mut events = subscribed.events().await;
    subscribed.request("resources/subscribe", uri.clone()).await.result();
    // It comes with the call that it was said in, or on the stream of its own. What a server says before anybody
    // listens is lost: so again.
    let method = "notifications/resources/updated";
    let updated = eventually("the update", PATIENCE, async || {
        let touched = subscribed.call("fixture__touch", uri.clone()).await;
        assert_eq!(touched.text(), "true");
        match touched.before.into_iter().find(|message| message["method"] == method) {
            Some(update) => Some(update),
            None => tokio::time::timeout(Duration::from_millis(500), events.next(method)).await.ok(),
        }
    });
    assert_eq!(updated.await["params"]["uri"], "test://watched-resource");
    assert_eq!(other.call("fixture__touch", uri).await.text(), "false", "a subscription is of one session alone");
}

#[tokio::test]
async fn a_cancelled_call_is_cancelled_at_the_server() {
    let fixture = Upstream::fixture().await;
    let gateway = GatewayConfig::new().http("fixture", &fixture.url()).start().await;
    let client = gateway.client().await;
    let hang =
        json!({ "jsonrpc": "2.0", "id": "hangs", "method": "tools/call", "params": { "name": "fixture__hang" } });
    let mut hangs = Events::of(client.post(hang.to_string().into_bytes(), &HeaderMap::new()).await.unwrap());
    hangs.next("notifications/message").await;
    client.notify("notifications/cancelled", json!({ "requestId": "hangs", "reason": "had enough" })).await;
    let other = gateway.client().await;
    eventually("the server to see the cancellation", PATIENCE, async || {
        (other.call("fixture__cancellations", json!({})).await.text() == "1").then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_answer_that_the_server_gives_on_a_second_stream_arrives() {
    let fixture = Upstream::fixture().await;
    let gateway = GatewayConfig::new().http("fixture", &fixture.url()).start().await;
    let client = gateway.client().await;
    assert_eq!(client.call("fixture__test_reconnection", json!({})).await.text(), "Reconnected.");
}

#[tokio::test]
async fn a_client_that_loses_its_stream_gets_what_it_missed() {
    let gateway = GatewayConfig::new().stdio("fixture", &fixture_command()).start().await;
    let client = gateway.client().await;
    let call = json!({ "jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": { "name": "fixture__test_tool_with_logging" } });
    let mut response = client.post(call.to_string().into_bytes(), &HeaderMap::new()).await.unwrap();
    // Reads up to the first event that has an id, then hangs up.
    let mut seen = String::new();
    let last = loop {
        let chunk = response.chunk().await.unwrap().expect("the stream ended before an event with an id");
        seen.push_str(&String::from_utf8_lossy(&chunk));
        let whole = seen.rsplit_once('\n').map_or("", |(whole, _)| whole);
        if let Some(id) = whole.lines().find_map(|line| line.strip_prefix("id:")) {
            break id.trim().to_owned();
        }
    };
    drop(response);
    let headers = HeaderMap::from_iter([("last-event-id".parse().unwrap(), HeaderValue::from_str(&last).unwrap())]);
    let mut events = client.events_with(&headers).await;
    let answer = events.find(|message| message["id"] == 7).await;
    assert_eq!(answer["result"]["content"][0]["text"], "Logged three times.");
    let logged = events.seen().iter().filter(|message| message["method"] == "notifications/message").count();
    let before = seen.matches("notifications/message").count();
    assert!(logged + before >= 3, "{logged} after, {before} before: {seen}");
}

#[tokio::test]
async fn names_of_plugins_part_the_tools_of_servers_that_call_them_alike() {
    let config = GatewayConfig::new().stdio("one", &fixture_command()).stdio("two", &fixture_command());
    let gateway = config.start().await;
    gateway.plugins_ready(2).await;
    let client = gateway.client().await;
    let tools = client.tools().await;
    let of = |plugin: &str| tools.iter().filter(|tool| tool.starts_with(plugin)).count();
    assert_eq!((of("one__"), of("two__"), of("one__") * 2), (tools.len() / 2, tools.len() / 2, tools.len()));
    client.call("one__grow", json!({})).await.result();
    assert_eq!(client.call("one__grown", json!({})).await.text(), "grown");
    let error = client.call("two__grown", json!({})).await.error();
    assert_eq!(error["code"], -32602, "{error}");
}

#[tokio::test]
async fn numbers_and_members_that_no_type_knows_arrive_as_they_were_sent() {
    let gateway = GatewayConfig::new().stdio("fixture", &fixture_command()).start().await;
    let arguments = json!({
        "message": "\u{0}\u{7f}\u{2028}", "big": 9_007_199_254_740_991_u64, "small": 1e-7, "zero": 0.1, "nothing": null,
        "deep": { "a": [1, [2, [3, { "b": [] }]]] },
    });
    let result = gateway.client().await.call("fixture__echo", arguments.clone()).await.result();
    assert_eq!(result["structuredContent"], arguments);
    let text: Value = serde_json::from_str(result["content"][0]["text"].as_str().unwrap()).unwrap();
    assert_eq!(text, arguments);
}
