//! Requests and subscriptions of the modern generation.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;

use super::{Client, Server, ask, error, events, eventually, http_plugin, monitored, plugin, result, shell};
use crate::gateway::message::Json;
use crate::gateway::upstream::{ListKind, UpstreamError};

const PARAMS: &str = r#"{"name":"q","arguments":{"region":"eu","n":1E400},"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}"#;
const DISCOVER: &str =
    r#"server/discover) result '{"resultType":"complete","supportedVersions":["2026-07-28"],"capabilities":{}}' ;;"#;

#[tokio::test]
async fn a_request_has_its_headers_from_its_body_and_a_changed_schema_is_read_again_once() {
    let lists = Arc::new(AtomicUsize::new(0));
    let read = Arc::clone(&lists);
    let server = Server::start(move |got| match got.asks().as_str() {
        "server/discover" => result(got, &json!({"supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}})),
        "tools/list" => {
            // The annotation is there from the second reading on.
            let annotated = read.fetch_add(1, Ordering::SeqCst) > 0;
            let region =
                if annotated { json!({"type": "string", "x-mcp-header": "Region"}) } else { json!({"type": "string"}) };
            let tool = json!({"name": "q", "inputSchema": {"type": "object", "properties": {"region": region}}});
            result(got, &json!({"resultType": "complete", "tools": [tool], "ttlMs": 300_000, "cacheScope": "public"}))
        }
        _ if got.header("mcp-param-region") != Some("eu") => error(got, 400, -32020, "Header mismatch"),
        _ => result(got, &json!({"resultType": "complete", "content": []})),
    })
    .await;
    let (plugin, client) = (http_plugin(&server), Arc::new(Client::default()));
    let _monitor = monitored(&plugin);
    eventually("its tools to be known", || plugin.is_listed(ListKind::Tools, "q").then_some(())).await;
    let answer = plugin.request(Some("a"), ask("tools/call", PARAMS, &client)).await;
    assert!(answer.is_ok(), "{answer:?}");
    let calls = server.asked("tools/call");
    assert_eq!(calls.len(), 2, "refused unread, and sent once more");
    assert_eq!((calls[1].header("mcp-name"), calls[1].header("mcp-method")), (Some("q"), Some("tools/call")));
    assert!(calls[1].text.contains("1E400"), "{}", calls[1].text);
    plugin.request(Some("a"), ask("tools/call", PARAMS, &client)).await.unwrap();
    assert_eq!(server.asked("tools/call").len(), 3, "the headers are known now");
}

#[tokio::test]
async fn what_a_server_tells_comes_before_the_answer_and_a_lost_stream_is_a_lost_call() {
    let server = Server::start(|got| {
        let note = json!({"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progressToken": 1, "progress": 1}});
        let question = json!({"jsonrpc": "2.0", "id": 1, "method": "roots/list"});
        let answer = json!({"jsonrpc": "2.0", "id": got.message()["id"], "result": {"resultType": "input_required"}});
        match got.message()["params"]["lost"].as_bool() {
            Some(true) => events(format!("id: 1\ndata: {note}\n\n")),
            _ => events(format!("data: {note}\n\ndata: {question}\n\ndata: {answer}\n\n")),
        }
    })
    .await;
    let (plugin, client) = (http_plugin(&server), Arc::new(Client::default()));
    let answer = plugin.request(None, ask("prompts/get", "{}", &client)).await.unwrap();
    assert_eq!(answer.as_bytes(), br#"{"resultType":"input_required"}"#);
    assert_eq!(*client.heard.lock(), ["notifications/progress"], "a modern server asks no questions");
    let lost = plugin.request(None, ask("prompts/get", r#"{"lost":true}"#, &client)).await;
    assert!(matches!(lost, Err(UpstreamError::Broken)));
    assert_eq!(server.got().len(), 2, "neither resumed nor sent again");
}

#[tokio::test]
async fn a_result_of_an_unknown_type_is_no_answer() {
    let server = Server::start(|got| result(got, &json!({"resultType": "later"}))).await;
    let (plugin, client) = (http_plugin(&server), Arc::new(Client::default()));
    let answer = plugin.request(None, ask("tools/call", PARAMS, &client)).await;
    assert!(matches!(answer, Err(UpstreamError::NotMcp)));
}

#[tokio::test]
async fn a_subscription_begins_with_its_acknowledgement_and_tells_without_its_own_id() {
    let server = Server::start(|got| {
        let id = &got.message()["id"];
        let tagged = |method: &str, more: serde_json::Value| {
            let mut params = json!({"_meta": {"io.modelcontextprotocol/subscriptionId": id}});
            params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            json!({"jsonrpc": "2.0", "method": method, "params": params})
        };
        let granted = json!({"notifications": {"toolsListChanged": true}});
        let end = json!({"jsonrpc": "2.0", "id": id, "result": {"resultType": "complete"}});
        events(format!(
            "data: {}\n\ndata: {}\n\ndata: {end}\n\n",
            tagged("notifications/subscriptions/acknowledged", granted),
            tagged("notifications/tools/list_changed", json!({})),
        ))
    })
    .await;
    let (plugin, client) = (http_plugin(&server), Arc::new(Client::default()));
    let filter = Json::of(&json!({"toolsListChanged": true, "promptsListChanged": true}));
    let listening = plugin.listen(Some("a"), filter, Json::empty_object(), client.clone()).await.unwrap();
    assert_eq!(listening.granted().as_bytes(), br#"{"toolsListChanged":true}"#);
    assert!(listening.ended().await, "the server said so");
    assert_eq!(*client.heard.lock(), ["notifications/tools/list_changed"]);
}

#[tokio::test]
async fn a_modern_child_serves_many_requests_of_a_caller_in_one_process() {
    let script =
        shell(&format!(r#"{DISCOVER} tools/call) result "{{\"resultType\":\"complete\",\"pid\":$$}}" ;; hang) ;;"#));
    let (plugin, client) = (plugin(script), Arc::new(Client::default()));
    let _monitor = monitored(&plugin);
    plugin.offered(std::time::Duration::from_secs(60)).await.unwrap();
    let mut pids = Vec::new();
    for caller in ["a", "a", "b"] {
        let answer = plugin.request(Some(caller), ask("tools/call", PARAMS, &client)).await.unwrap();
        pids.push(answer.value().unwrap()["pid"].as_i64().unwrap());
    }
    assert_eq!(pids[0], pids[1]);
    assert_ne!(pids[0], pids[2], "another caller has another process");
}
