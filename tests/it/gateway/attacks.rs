//! Attacks from outside, each by name: what a hostile client or server tries, and that nothing comes of it.

use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::HeaderMap;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::governed::modern;
use crate::harness::{GatewayConfig, Mcp, Upstream, eventually, plain_http};

const PATIENCE: Duration = Duration::from_secs(60);
const MIB: u64 = 1024 * 1024;

#[tokio::test]
async fn a_name_that_is_no_text_reaches_no_server() {
    // A server in JavaScript takes ["echo"] for "echo", and policy would have decided on another name.
    let fixture = Upstream::fixture().await;
    let gateway = GatewayConfig::new().http("fix", &fixture.url()).audit_file().start().await;
    let client = gateway.plugin_client("fix").await;
    client.call("echo", json!({})).await.result();
    for name in [json!(["echo"]), json!(null), json!(7)] {
        let error = client.request("tools/call", json!({ "name": name, "arguments": {} })).await.error();
        assert_eq!(error["code"], -32602, "{error}");
        let error = client.request("prompts/get", json!({ "name": name })).await.error();
        assert_eq!(error["code"], -32602, "{error}");
    }
    let argument = json!({ "name": "arg1", "value": "p" });
    for reference in [
        json!({ "type": "ref/prompt", "name": "test_prompt_with_arguments", "uri": "test://template/{id}/data" }),
        json!({ "type": "ref/prompt", "uri": "test://template/{id}/data" }),
        json!({ "type": "ref/resource", "name": "test_prompt_with_arguments" }),
        json!({ "type": "ref/prompt", "name": ["test_prompt_with_arguments"] }),
    ] {
        let params = json!({ "ref": reference, "argument": argument });
        let error = client.request("completion/complete", params).await.error();
        assert_eq!(error["code"], -32602, "{error}");
    }
    assert_eq!(gateway.audited("tool.permit", 1).await.len(), 1, "the one call that names a tool");
}

#[tokio::test]
async fn members_without_number_take_no_memory() {
    let fixture = Upstream::fixture().await;
    let gateway = GatewayConfig::new().http("fix", &fixture.url()).start().await;
    let client = gateway.client().await;
    client.call("fix__echo", json!({})).await.result();
    let before = gateway.resident_bytes();
    let many = "\"\":1,".repeat(600_000);
    let items = "1,".repeat(1_500_000);
    let bodies = [
        format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{{many}"name":"fix__hang"}}}}"#),
        format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"x":{{{many}"":1}},"name":"fix__hang"}}}}"#
        ),
        format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"_meta":{{{many}"":1}},"name":"fix__hang"}}}}"#
        ),
        format!("[{items}1]"),
    ];
    for body in bodies {
        for _ in 0..4 {
            let response = client.post(body.clone().into_bytes(), &HeaderMap::new()).await.unwrap();
            assert_eq!(response.status(), StatusCode::BAD_REQUEST);
        }
    }
    let grown = gateway.resident_bytes().saturating_sub(before);
    assert!(grown < 64 * MIB, "grew by {} MiB", grown / MIB);
    // Arguments may be as many as they are.
    let arguments = format!("{{{}\"z\":1}}", (0..2_000).map(|n| format!("\"a{n}\":1,")).collect::<String>());
    let body = format!(
        r#"{{"jsonrpc":"2.0","id":9,"method":"tools/call","params":{{"name":"fix__echo","arguments":{arguments}}}}}"#
    );
    let text = client.post(body.into_bytes(), &HeaderMap::new()).await.unwrap().text().await.unwrap();
    assert!(text.contains("\"a1999\":1"), "{text}");
}

#[tokio::test]
async fn a_client_that_does_not_read_keeps_nobody_from_its_turn() {
    let fixture = Upstream::fixture().await;
    let plugin = json!({ "name": "fix", "url": fixture.url(), "max_concurrency": 1 });
    let gateway = GatewayConfig::new().plugin(plugin).start().await;
    let client = gateway.client().await;
    client.call("fix__echo", json!({})).await.result();
    let authority = gateway.url().trim_start_matches("http://").split('/').next().unwrap().to_owned();
    let meta = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientCapabilities": {},
        "io.modelcontextprotocol/logLevel": "debug",
    });
    let arguments = json!({ "messages": 600, "bytes": 16_384 });
    let params = json!({ "name": "flood", "arguments": arguments, "_meta": meta });
    let body = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params }).to_string();
    let head = format!(
        "POST /mcp/fix HTTP/1.1\r\nhost: {authority}\r\ncontent-type: application/json\r\naccept: text/event-stream\r\n\
         mcp-protocol-version: 2026-07-28\r\nmcp-method: tools/call\r\nmcp-name: flood\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let mut stream = TcpStream::connect(&authority).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body.as_bytes()).await.unwrap();
    // It has begun; from now on nothing is read.
    stream.read_exact(&mut [0; 64]).await.unwrap();
    tokio::time::timeout(PATIENCE / 2, client.call("fix__echo", json!({}))).await.expect("a turn").result();
    drop(stream);
}

#[tokio::test]
async fn a_state_that_is_brought_again_counts_as_another_call() {
    let server = Upstream::modern().await;
    let rates = json!([{ "name": "few", "by": [], "calls": 2, "per": "1h" }]);
    let config = GatewayConfig::new().http("m", &server.url()).with(json!({ "limits": { "rates": rates } }));
    let gateway = config.start().await;
    let url = gateway.plugin_url("m");
    let asks = json!({ "elicitation": {} });
    let mut call = json!({ "name": "test_input_required_result_elicitation", "arguments": {} });
    let (_, asked) = modern(&url, "tools/call", call.clone(), asks.clone()).await;
    let (key, _) =
        asked["result"]["inputRequests"].as_object().unwrap_or_else(|| panic!("{asked}")).iter().next().unwrap();
    call["inputResponses"] = json!({ key: { "action": "accept", "content": { "name": "ann" } } });
    call["requestState"] = asked["result"]["requestState"].clone();
    // Its own retry is not counted again, the second time it is, and a third is over the limit.
    for _ in 0..2 {
        let (_, answered) = modern(&url, "tools/call", call.clone(), asks.clone()).await;
        assert!(answered["result"].is_object(), "{answered}");
    }
    let (_, refused) = modern(&url, "tools/call", call, asks).await;
    assert_eq!(refused["error"]["data"]["code"], "rate_limit", "{refused}");
}

#[tokio::test]
async fn an_old_client_brings_no_answers_that_it_was_not_asked_for() {
    let server = Upstream::modern().await;
    let gateway = GatewayConfig::new().http("m", &server.url()).audit_file().start().await;
    let client = gateway.plugin_client("m").await;
    // Without elicitation it cannot be asked; that it answers all the same would get it past the question.
    let answer = json!({ "action": "accept", "content": { "name": "eve" } });
    let keys = ["user_name", "name", "q1", "elicitation", "input"];
    let responses: serde_json::Map<_, _> = keys.iter().map(|key| ((*key).to_owned(), answer.clone())).collect();
    let params = json!({
        "name": "test_input_required_result_elicitation", "arguments": {},
        "inputResponses": responses, "requestState": "made up",
    });
    let reply = client.request("tools/call", params).await.message.to_string();
    assert!(!reply.contains("eve"), "{reply}");
}

/// How many messages of a kind were refused.
async fn refused(authority: &str, kind: &str) -> f64 {
    let text = reqwest::get(format!("http://{authority}/metrics")).await.unwrap().text().await.unwrap();
    let line = text.lines().find(|line| line.starts_with("mcpg_gateway_messages_refused_total") && line.contains(kind));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0.0)
}

#[tokio::test]
async fn progress_with_a_question_that_was_never_asked_goes_nowhere() {
    let (one, other) = (Upstream::fixture().await, Upstream::fixture().await);
    let gateway = GatewayConfig::new().http("one", &one.url()).http("other", &other.url()).start().await;
    let client = gateway.client().await;
    for tool in ["one__echo", "other__echo"] {
        client.call(tool, json!({})).await.result();
    }
    let before = refused(&gateway.metrics_authority(), "notification").await;
    client.notify("notifications/progress", json!({ "progressToken": 1, "progress": 1, "message": "secret" })).await;
    client.notify("notifications/progress", json!({ "progressToken": "x", "progress": 1 })).await;
    eventually("both to be refused", PATIENCE, async || {
        (refused(&gateway.metrics_authority(), "notification").await >= before + 2.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn sessions_that_set_a_log_level_hold_none_of_the_requests_memory() {
    // Each kept a share of what its request was charged, until all of it was used up.
    let fixture = Upstream::fixture().await;
    let config = GatewayConfig::new().http("fix", &fixture.url()).with(json!({ "limits": { "memory": "16MiB" } }));
    let gateway = config.start().await;
    let mut sessions = Vec::new();
    for _ in 0..200 {
        let client = gateway.client().await;
        client.request("logging/setLevel", json!({ "level": "error" })).await.result();
        sessions.push(client);
    }
}

#[tokio::test]
async fn a_cursor_that_is_null_is_none() {
    let fixture = Upstream::fixture().await;
    let gateway = GatewayConfig::new().http("fix", &fixture.url()).start().await;
    let client = gateway.plugin_client("fix").await;
    let listed = client.request("tools/list", json!({ "cursor": null })).await.result();
    assert!(listed["tools"].as_array().is_some_and(|tools| !tools.is_empty()), "{listed}");
    assert_eq!(client.request("tools/list", json!({ "cursor": "made-up" })).await.error()["code"], -32602);
}

#[tokio::test]
async fn initializes_that_wait_for_a_plugin_take_no_more_sessions_than_there_are() {
    let fixture = Upstream::fixture().await;
    let config = GatewayConfig::new().http("fix", &fixture.url()).with(json!({ "limits": { "sessions": 3 } }));
    let gateway = config.spawn();
    let url = gateway.plugin_url("fix");
    let http = plain_http().build().unwrap();
    eventually("the gateway to serve", PATIENCE, async || http.get(&url).send().await.ok()).await;
    let opening: Vec<_> = (0..12)
        .map(|_| {
            let url = url.clone();
            tokio::spawn(async move { Mcp::try_connect(&url, HeaderMap::new()).await.is_ok() })
        })
        .collect();
    let mut opened = 0;
    for one in opening {
        opened += usize::from(one.await.unwrap());
    }
    assert!((1..=3).contains(&opened), "{opened} sessions");
}
