//! The official server-everything answers the same with the gateway before it, byte for byte of JSON.

use serde_json::{Value, json};

use crate::harness::{GatewayConfig, Mcp, Upstream};

/// Requests whose answers depend on nothing but themselves.
fn requests() -> Vec<(&'static str, Value)> {
    let call = |tool: &str, arguments: Value| ("tools/call", json!({ "name": tool, "arguments": arguments }));
    let data = "data:text/plain;base64,aGVsbG8=";
    vec![
        ("ping", json!({})),
        ("tools/list", json!({})),
        ("prompts/list", json!({})),
        ("resources/list", json!({})),
        ("resources/templates/list", json!({})),
        ("logging/setLevel", json!({ "level": "error" })),
        call("echo", json!({ "message": "grüße, 世界" })),
        call("echo", json!({})),
        call("no-such-tool", json!({})),
        call("get-sum", json!({ "a": 0.1, "b": 12_345_678_901_234_567_890_u64 })),
        call("get-sum", json!({ "a": "one", "b": 2 })),
        call("get-tiny-image", json!({})),
        call("get-annotated-message", json!({ "messageType": "error", "includeImage": true })),
        call("get-structured-content", json!({ "location": "Chicago" })),
        call("get-resource-links", json!({ "count": 3 })),
        call("gzip-file-as-resource", json!({ "name": "a.gz", "data": data, "outputType": "resourceLink" })),
        ("prompts/get", json!({ "name": "simple-prompt" })),
        ("prompts/get", json!({ "name": "args-prompt", "arguments": { "city": "Paris" } })),
        ("prompts/get", json!({ "name": "no-such-prompt" })),
        ("resources/read", json!({ "uri": "demo://resource/static/document/features.md" })),
        ("resources/read", json!({ "uri": "demo://no/such/resource" })),
        (
            "completion/complete",
            json!({ "ref": { "type": "ref/prompt", "name": "completable-prompt" }, "argument": { "name": "department", "value": "E" } }),
        ),
    ]
}

/// All answers, in order.
async fn answers(client: &Mcp) -> Vec<Value> {
    let mut answers = Vec::new();
    for (method, params) in requests() {
        let mut answer = client.request(method, params.clone()).await.message;
        answer["asked"] = json!([method, params]);
        answers.push(answer);
    }
    answers
}

#[tokio::test]
async fn every_answer_is_the_same_both_ways() {
    let everything = Upstream::everything().await;
    let gateway = GatewayConfig::new().http("everything", &everything.url()).start().await;
    let directly = Mcp::connect(&everything.url(), Default::default()).await;
    let through = gateway.plugin_client("everything").await;
    for (through, directly) in answers(&through).await.into_iter().zip(answers(&directly).await) {
        assert_eq!(through, directly);
    }
}

#[tokio::test]
async fn the_server_says_the_same_of_itself_both_ways() {
    let everything = Upstream::everything().await;
    let gateway = GatewayConfig::new().http("everything", &everything.url()).start().await;
    let directly = Mcp::connect(&everything.url(), Default::default()).await.server;
    let through = gateway.plugin_client("everything").await.server;
    for member in ["protocolVersion", "instructions"] {
        assert_eq!(through[member], directly[member], "{member}");
    }
    for capability in ["tools", "prompts", "resources", "logging", "completions"] {
        assert_eq!(through["capabilities"][capability], directly["capabilities"][capability], "{capability}");
    }
}
