//! Every method is governed, in both generations, and no caller hurts another: the attacks of the gateway's rework,
//! each by name.

use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use mcpg::config::TokenHash;

use crate::harness::{Gateway, GatewayConfig, Mcp, Upstream, eventually, fixture_command, plain_http};

const PATIENCE: Duration = Duration::from_secs(60);
const MIB: u64 = 1024 * 1024;

/// A modern request, with headers that say what its body says.
pub(crate) async fn modern(url: &str, method: &str, mut params: Value, capabilities: Value) -> (StatusCode, Value) {
    params["_meta"] = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": capabilities,
        "io.modelcontextprotocol/clientInfo": { "name": "modern-tests", "version": "7" },
    });
    let name = params.get("name").or_else(|| params.get("uri")).and_then(Value::as_str).map(str::to_owned);
    let body = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
    let client = plain_http().build().unwrap();
    let mut request = client.post(url).header(ACCEPT, "application/json").header("mcp-method", method);
    request = request.header("mcp-protocol-version", "2026-07-28");
    if let Some(name) = name {
        request = request.header("mcp-name", name);
    }
    let response = request.json(&body).send().await.unwrap();
    (response.status(), response.json().await.unwrap())
}

#[tokio::test]
async fn a_modern_client_lists_and_calls_the_tools_of_an_old_server() {
    let fixture = Upstream::fixture().await;
    let gateway =
        GatewayConfig::new().http("fix", &fixture.url()).stdio("child", &fixture_command()).audit_file().start().await;
    let (status, discovered) = modern(&gateway.url(), "server/discover", json!({}), json!({})).await;
    assert_eq!(status, StatusCode::OK, "{discovered}");
    assert_eq!(discovered["result"]["supportedVersions"], json!(["2026-07-28"]));
    for plugin in ["fix", "child"] {
        let name = format!("{plugin}__echo");
        eventually("the plugin to be listed", PATIENCE, async || {
            let (_, listed) = modern(&gateway.url(), "tools/list", json!({}), json!({})).await;
            // A plugin that is not up yet is left out; while none is, the list is an error.
            let result = listed.get("result")?;
            assert!(result["ttlMs"].is_u64() && result["cacheScope"] == "private", "{listed}");
            let tools = result["tools"].as_array()?.clone();
            tools.iter().any(|tool| tool["name"] == *name).then_some(())
        })
        .await;
        let call = json!({ "name": name, "arguments": { "message": "hi" } });
        let (status, called) = modern(&gateway.url(), "tools/call", call, json!({})).await;
        assert_eq!(
            (status, &called["result"]["structuredContent"]),
            (StatusCode::OK, &json!({ "message": "hi" })),
            "{called}"
        );
        assert_eq!(called["result"]["resultType"], "complete");
    }
    let permit = gateway.audited("tool.permit", 2).await.remove(0);
    assert_eq!(permit["detail"]["client_name"], "modern-tests");
    assert_eq!(permit["detail"]["protocol_version"], "2026-07-28");
}

#[tokio::test]
async fn a_modern_client_answers_an_old_server_in_the_middle_of_a_call() {
    let fixture = Upstream::fixture().await;
    let gateway = GatewayConfig::new().http("fix", &fixture.url()).audit_file().start().await;
    let url = gateway.plugin_url("fix");
    let call = json!({ "name": "test_elicitation", "arguments": { "message": "who are you" } });
    let (_, asks) = modern(&url, "tools/call", call.clone(), json!({ "elicitation": {} })).await;
    let result = &asks["result"];
    assert_eq!(result["resultType"], "input_required", "{asks}");
    let (key, question) = result["inputRequests"].as_object().unwrap().iter().next().unwrap();
    assert_eq!(question["method"], "elicitation/create");
    let mut retry = call.clone();
    retry["requestState"] = result["requestState"].clone();
    let answer = json!({ "action": "accept", "content": { "username": "ann", "email": "ann@acme.com" } });
    retry["inputResponses"] = json!({ key: answer });
    // For another request the state is invalid.
    let mut other = retry.clone();
    other["arguments"] = json!({ "message": "someone else" });
    let (_, refused) = modern(&url, "tools/call", other, json!({ "elicitation": {} })).await;
    assert_eq!(refused["error"]["data"]["code"], "state_invalid", "{refused}");
    let (_, done) = modern(&url, "tools/call", retry.clone(), json!({ "elicitation": {} })).await;
    assert!(done["result"]["content"][0]["text"].as_str().unwrap().contains("ann"), "{done}");
    // Once.
    let (_, lost) = modern(&url, "tools/call", retry, json!({ "elicitation": {} })).await;
    assert_eq!(lost["error"]["data"]["code"], "call_lost", "{lost}");
    gateway.audited("elicitation.permit", 1).await;
}

#[tokio::test]
async fn a_method_that_mcp_does_not_have_is_refused_in_both_generations() {
    let fixture = Upstream::fixture().await;
    let gateway = GatewayConfig::new().http("fix", &fixture.url()).start().await;
    for url in [gateway.url(), gateway.plugin_url("fix")] {
        let client = Mcp::connect(&url, HeaderMap::new()).await;
        for method in ["no/such/method", "server/discover", "sampling/createMessage"] {
            let error = client.request(method, json!({})).await.error();
            assert_eq!(
                (&error["code"], &error["data"]["code"]),
                (&json!(-32601), &json!("method_refused")),
                "{method}"
            );
        }
        for method in ["no/such/method", "initialize", "ping", "logging/setLevel", "resources/subscribe"] {
            let (status, refused) = modern(&url, method, json!({}), json!({})).await;
            assert_eq!((status, &refused["error"]["code"]), (StatusCode::NOT_FOUND, &json!(-32601)), "{method}");
        }
    }
}

#[tokio::test]
async fn headers_that_differ_from_the_body_are_refused() {
    let fixture = Upstream::fixture().await;
    let gateway = GatewayConfig::new().http("fix", &fixture.url()).start().await;
    let client = plain_http().build().unwrap();
    let meta = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientCapabilities": {},
    });
    let body =
        json!({ "jsonrpc": "2.0", "id": 5, "method": "tools/call", "params": { "name": "fix__echo", "_meta": meta } });
    for (version, method, name, code) in [
        ("2026-07-28", "tools/call", "fix__other", -32020),
        ("2026-07-28", "tools/list", "fix__echo", -32020),
        ("2025-11-25", "tools/call", "fix__echo", -32020),
    ] {
        let request = client.post(gateway.url()).header(ACCEPT, "application/json").header("mcp-method", method);
        let request = request.header("mcp-protocol-version", version).header("mcp-name", name);
        let response = request.json(&body).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::BAD_REQUEST);
        let error: Value = response.json().await.unwrap();
        assert_eq!((&error["error"]["code"], &error["id"]), (&json!(code), &json!(5)), "{error}");
    }
}

#[tokio::test]
async fn names_that_no_plugin_lists_are_no_labels() {
    let fixture = Upstream::fixture().await;
    let gateway = GatewayConfig::new().http("fix", &fixture.url()).start().await;
    gateway.plugins_ready(1).await;
    let client = gateway.client().await;
    client.call("fix__echo", json!({})).await.result();
    for n in 0..20 {
        client.call(&format!("fix__made_up_{n}"), json!({})).await;
    }
    let long = client.call(&format!("fix__{}", "x".repeat(129)), json!({})).await.error();
    assert_eq!(long["code"], -32602);
    let url = format!("http://{}/metrics", gateway.metrics_authority());
    let text = reqwest::get(url).await.unwrap().text().await.unwrap();
    assert!(
        !text.contains("made_up") && text.contains("tool=\"__unknown__\"") && text.contains("tool=\"echo\""),
        "{text}"
    );
}

#[tokio::test]
async fn a_member_that_is_named_twice_decides_nothing() {
    let fixture = Upstream::fixture().await;
    let gateway = GatewayConfig::new().http("fix", &fixture.url()).start().await;
    let client = gateway.client().await;
    for params in [
        r#"{"name":"fix__echo","name":"fix__fail","arguments":{}}"#,
        r#"{"name":"fix__echo","arguments":{"a":1,"\u0061":2}}"#,
    ] {
        let body = format!(r#"{{"jsonrpc":"2.0","id":9,"method":"tools/call","params":{params}}}"#);
        let response = client.post(body.into_bytes(), &HeaderMap::new()).await.unwrap();
        let text = response.text().await.unwrap();
        assert!(text.contains("-32602"), "{text}");
    }
}

/// A request whose body stays a byte short, on a connection of its own.
async fn unfinished(gateway: &Gateway, length: usize) -> TcpStream {
    let authority = gateway.url().trim_start_matches("http://").split('/').next().unwrap().to_owned();
    let mut stream = TcpStream::connect(&authority).await.unwrap();
    let head = format!(
        "POST /mcp HTTP/1.1\r\nhost: {authority}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

#[tokio::test]
async fn a_hundred_bodies_that_never_end_stay_within_the_memory_that_there_is() {
    let config = GatewayConfig::new().stdio("fixture", &fixture_command());
    let identity = json!({ "tokens": [{ "hash": TokenHash::of("t").to_string(), "caller": "service:ci" }] });
    let gateway = config.with(json!({ "limits": { "memory": "32MiB" }, "identity": identity })).start().await;
    let before = gateway.resident_bytes();
    let (length, piece) = (4 * MIB as usize, vec![b' '; 64 * 1024]);
    let mut streams = Vec::new();
    for _ in 0..100 {
        let mut stream = unfinished(&gateway, length).await;
        // A refusal closes the connection before all of it is sent.
        for _ in 0..(length / piece.len() - 1) {
            if stream.write_all(&piece).await.is_err() {
                break;
            }
        }
        streams.push(stream);
    }
    let grown = gateway.resident_bytes().saturating_sub(before);
    assert!(grown < 96 * MIB, "grew by {} MiB", grown / MIB);
    // Somebody else is served meanwhile: one caller has half of it at most.
    let token = HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_static("Bearer t"))]);
    let client = Mcp::connect(&gateway.url(), token).await;
    eventually("a call to be served", PATIENCE, async || {
        client.call("fixture__echo", json!({ "message": "hi" })).await.message.get("result").cloned()
    })
    .await;
}

#[tokio::test]
async fn nobody_without_a_name_has_its_body_read() {
    let fixture = Upstream::fixture().await;
    let identity = json!({
        "anonymous": false, "tokens": [{ "hash": TokenHash::of("t").to_string(), "caller": "service:ci" }],
    });
    let gateway = GatewayConfig::new().http("fix", &fixture.url()).with(json!({ "identity": identity })).start().await;
    let mut stream = unfinished(&gateway, 1_000_000).await;
    let mut answer = vec![0; 12];
    // The refusal comes although nothing of the body was sent.
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer[..], b"HTTP/1.1 401");
}

#[tokio::test]
async fn a_rate_is_refused_as_a_quota_and_changes_while_the_gateway_runs() {
    let fixture = Upstream::fixture().await;
    let rates = json!([{ "name": "slow", "by": ["caller"], "calls": 2, "per": "1h" }]);
    let mut gateway =
        GatewayConfig::new().http("fix", &fixture.url()).with(json!({ "limits": { "rates": rates } })).start().await;
    let client = gateway.client().await;
    for _ in 0..2 {
        client.call("fix__echo", json!({})).await.result();
    }
    let refused = client.call("fix__echo", json!({})).await.error();
    assert_eq!((&refused["code"], &refused["data"]["code"]), (&json!(-32004), &json!("rate_limit")), "{refused}");
    assert!(refused["data"]["retry_after_seconds"].as_u64().is_some_and(|seconds| seconds > 0));
    gateway.reconfigure(json!({ "limits": { "rates": [] } }));
    gateway.rewrite();
    eventually("the rate to be gone", PATIENCE, async || {
        client.call("fix__echo", json!({})).await.message.get("result").cloned()
    })
    .await;
}

#[tokio::test]
async fn a_client_that_takes_json_alone_gets_json() {
    let fixture = Upstream::fixture().await;
    let gateway = GatewayConfig::new().http("fix", &fixture.url()).start().await;
    let client = plain_http().build().unwrap();
    let hello = json!({ "jsonrpc": "2.0", "id": 1, "method": "initialize", "params": { "protocolVersion": "1999-01-01",
            "capabilities": {}, "clientInfo": { "name": "plain", "version": "1" } } });
    for accept in ["application/json", "*/*"] {
        let response = client.post(gateway.url()).header(ACCEPT, accept).json(&hello).send().await.unwrap();
        assert_eq!(response.headers()[CONTENT_TYPE], "application/json");
        let session = response.headers()["mcp-session-id"].clone();
        let opened: Value = response.json().await.unwrap();
        assert_eq!(opened["result"]["protocolVersion"], "2025-11-25", "a version that is not served");
        let call = json!({ "jsonrpc": "2.0", "id": 2, "method": "tools/call",
            "params": { "name": "fix__test_tool_with_logging", "arguments": {} } });
        let request = client.post(gateway.url()).header(ACCEPT, accept).header("mcp-session-id", session);
        let response = request.json(&call).send().await.unwrap();
        if accept == "application/json" {
            let called: Value = response.json().await.unwrap();
            assert_eq!(called["result"]["content"][0]["text"], "Logged three times.", "{called}");
        }
    }
}
