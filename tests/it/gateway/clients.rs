//! The clients that people use, through the gateway: the official Python SDK, FastMCP, and the inspector.

use serde_json::{Value, json};

use crate::harness::{GatewayConfig, Upstream, fixture_command, node, npm, python, run};

/// What a session of the Python SDK should see, apart from the lists of names.
fn expected_session() -> Value {
    let text = |text: &str| json!({ "error": false, "text": [text] });
    json!({
        "resources": ["test://static-binary", "test://static-text", "test://watched-resource"],
        "templates": ["test://template/{id}/data"],
        "echo": text(r#"{"message":"hi"}"#),
        "fails": { "error": true, "text": ["This tool intentionally returns an error for testing"] },
        "sampling": text("LLM response: heard: how are you"),
        "elicitation": text(r#"User response: action=accept, content={"email":"my email","username":"my username"}"#),
        "roots": text(r#"[{"uri":"file:///home/user/project","name":"project"}]"#),
        "logging": text("Logged three times."),
        "progress": text("Done."),
        "resource": r#"{"id":"123","templateTest":true,"data":"Data for ID: 123"}"#,
        "prompt": "Prompt with arguments: arg1='a', arg2='b'",
        "completion": ["paris", "park", "party"],
        "logs": [["info", "Tool execution started"], ["info", "Tool processing data"], ["info", "Tool execution completed"]],
        "progressed": [[0.0, 100.0], [50.0, 100.0], [100.0, 100.0]],
    })
}

#[track_caller]
fn assert_whole_session(mut seen: Value, prefix: &str) {
    for list in ["tools", "prompts"] {
        let names: Vec<String> = serde_json::from_value(seen[list].take()).unwrap();
        assert!(names.len() >= 4 && names.iter().all(|name| name.starts_with(prefix)), "{list}: {names:?}");
        seen.as_object_mut().unwrap().remove(list);
    }
    assert_eq!(seen, expected_session());
}

#[tokio::test]
async fn the_python_sdk_does_all_it_can_with_one_plugin() {
    let fixture = Upstream::fixture().await;
    let gateway = GatewayConfig::new().http("fixture", &fixture.url()).start().await;
    for mode in ["auto", "legacy"] {
        assert_whole_session(python("mcp_session.py", &[&gateway.plugin_url("fixture"), mode]).await, "");
    }
}

#[tokio::test]
async fn the_python_sdk_does_all_it_can_with_all_plugins_at_one_endpoint() {
    let fixture = Upstream::fixture().await;
    let gateway = GatewayConfig::new().http("fixture", &fixture.url()).start().await;
    gateway.plugins_ready(1).await;
    for mode in ["auto", "legacy"] {
        let seen = python("mcp_session.py", &[&gateway.url(), mode, "fixture__"]).await;
        assert_whole_session(seen, "fixture__");
    }
}

#[tokio::test]
async fn fastmcp_lists_and_calls_tools_of_two_plugins() {
    let everything = Upstream::everything().await;
    let gateway =
        GatewayConfig::new().http("every", &everything.url()).stdio("fixture", &fixture_command()).start().await;
    gateway.plugins_ready(2).await;
    let seen = python("fastmcp_session.py", &[&gateway.url(), "fixture__echo", r#"{"message": "hi"}"#]).await;
    let tools: Vec<&str> = seen["tools"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    assert!(tools.contains(&"every__get-sum") && tools.contains(&"fixture__echo"), "{tools:?}");
    assert_eq!(seen["structured"], json!({ "message": "hi" }));
}

#[tokio::test]
async fn the_inspector_lists_and_calls_tools() {
    let fixture = Upstream::fixture().await;
    let gateway = GatewayConfig::new().http("fixture", &fixture.url()).start().await;
    gateway.plugins_ready(1).await;
    let listed = inspect(&gateway.url(), &["--method", "tools/list"]).await;
    assert!(listed["tools"].as_array().unwrap().iter().any(|tool| tool["name"] == "fixture__echo"), "{listed}");
    let call = ["--method", "tools/call", "--tool-name", "fixture__echo", "--tool-arg", "message=hi"];
    let called = inspect(&gateway.url(), &call).await;
    assert_eq!(called["structuredContent"], json!({ "message": "hi" }));
}

/// What the inspector's command line prints.
async fn inspect(url: &str, args: &[&str]) -> Value {
    let home = tempfile::TempDir::with_prefix("mcpg-inspector-").unwrap();
    let mut command = node(&npm("mcp-inspector"));
    command.args(["--cli", url, "--transport", "http"]).args(args).env("HOME", home.path());
    let output = tokio::task::spawn_blocking(move || run(&mut command)).await.unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("the inspector printed no JSON: {e}: {complaint}"))
}
