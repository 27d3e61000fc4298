//! Servers as they are in the wild: each recovers by itself, the log says why in a sentence, and no other plugin
//! notices.

use std::path::Path;
use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::HeaderMap;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::harness::{Config, Gateway, GatewayConfig, Mcp, Program, eventually, free_port, plain_http, python_command};

const PATIENCE: Duration = Duration::from_secs(60);

/// A plugin that is an unruly server of this kind on a pipe, named by it.
fn unruly(kind: &str) -> Value {
    let command = python_command("unruly_server.py");
    let script = command.get_args().next().unwrap().to_str().unwrap().to_owned();
    json!({ "name": kind, "command": command.get_program().to_str().unwrap(), "args": [script, "stdio", kind] })
}

/// An unruly server over HTTP.
struct Unruly {
    program: Program,
    kind: &'static str,
    port: u16,
}

impl Unruly {
    async fn start(kind: &'static str) -> Self {
        let mut server = Self { program: Program::new("an unruly server"), kind, port: free_port() };
        server.start_again().await;
        server
    }

    async fn start_again(&mut self) {
        let port = self.port.to_string();
        self.program.spawn(python_command("unruly_server.py").args(["http", self.kind, &port]));
        let client = plain_http().build().unwrap();
        let url = self.url();
        self.program.ready(PATIENCE, async || client.get(&url).send().await.is_ok()).await;
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}/mcp", self.port)
    }
}

/// Waits until a tool answers with the arguments it got.
async fn well(client: &Mcp, tool: &str) {
    eventually(&format!("{tool} to answer"), PATIENCE, async || {
        let answer = client.call(tool, json!({ "message": "hé" })).await.message;
        answer.get("result").cloned()
    })
    .await;
}

async fn before(plugin: Value) -> (Gateway, Mcp) {
    let gateway = GatewayConfig::new().plugin(plugin).plugin(unruly("sound")).start().await;
    let client = gateway.client().await;
    well(&client, "sound__echo").await;
    (gateway, client)
}

async fn logged(gateway: &Gateway, sentence: &str) {
    eventually(&format!("the log to say: {sentence}"), PATIENCE, async || {
        gateway.logs().contains(sentence).then_some(())
    })
    .await;
}

#[tokio::test]
async fn hung_plugin() {
    // It accepts connections and never answers. Its own timeout is an hour: a caller that waits for it does not end.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/mcp", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((connection, _)) = listener.accept().await {
            kept.push(connection);
        }
    });
    let (gateway, client) = before(json!({ "name": "hung", "url": url, "timeout": "1h" })).await;
    for _ in 0..2 {
        let mut tools = client.another().await.tools().await;
        tools.sort();
        assert_eq!(tools, ["sound__break", "sound__echo"]);
    }
    eventually("the plugin to be known as down", PATIENCE, async || {
        let error = client.call("hung__echo", json!({})).await.message["error"].clone();
        error["message"].as_str().is_some_and(|text| text.contains("hung")).then_some(())
    })
    .await;
    drop(gateway);
}

#[tokio::test]
async fn leaked_processes() {
    let folder = tempfile::tempdir().unwrap();
    let launcher = folder.path().join("launcher");
    let server = python_command("unruly_server.py");
    let script = server.get_args().next().unwrap().to_str().unwrap().to_owned();
    let program = server.get_program().to_str().unwrap();
    let mark = folder.path().display().to_string();
    // As npx, uvx and docker do it: the server is a process of its own, and does not end when its input does.
    std::fs::write(&launcher, format!("#!/bin/sh\n{program} {script} stdio stays {mark}\nexit\n")).unwrap();
    let plugin = json!({ "name": "t", "command": "/bin/sh", "args": [launcher.display().to_string()] });
    let mut gateway = GatewayConfig::new().plugin(plugin).start().await;
    let running = || processes_with(&mark);
    let client = gateway.client().await;
    well(&client, "t__echo").await;
    let of_gateway = running();
    for _ in 0..3 {
        let another = client.another().await;
        well(&another, "t__echo").await;
        another.close().await;
    }
    client.close().await;
    eventually("the sessions' processes to end", PATIENCE, async || (running() < of_gateway).then_some(())).await;
    gateway.stop().await;
    eventually("the gateway's own to end", PATIENCE, async || (running() == 0).then_some(())).await;
}

/// How many processes have this text among their arguments.
fn processes_with(text: &str) -> usize {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let has = |path: &Path| {
        let arguments = std::fs::read(path.join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&arguments).split('\0').any(|argument| argument == text)
    };
    processes.filter(|process| has(&process.path())).count()
}

#[tokio::test]
async fn restarted_400() {
    let mut server = Unruly::start("forgets").await;
    let (gateway, client) = before(json!({ "name": "forgets", "url": server.url() })).await;
    well(&client, "forgets__echo").await;
    server.program.kill();
    server.start_again().await;
    // The session that is open goes on: its next call finds a new session with the server.
    eventually("the open session to go on", PATIENCE, async || {
        client.call("forgets__echo", json!({ "a": 1 })).await.message.get("result").cloned()
    })
    .await;
    assert!(client.tools().await.contains(&"forgets__echo".to_owned()));
    logged(&gateway, "the server has forgotten a session").await;
}

#[tokio::test]
async fn numbers_altered() {
    let (_gateway, client) = before(unruly("numbers")).await;
    for number in ["9007199254740993", "123456789012345678901234567890", "1000000000000000000001"] {
        let body = format!(
            r#"{{"jsonrpc":"2.0","id":77,"method":"tools/call","params":{{"name":"numbers__echo","arguments":{{"n":{number}}}}}}}"#
        );
        let text = client.post(body.into_bytes(), &HeaderMap::new()).await.unwrap().text().await.unwrap();
        assert!(text.contains(&format!(r#"{{\"n\": {number}}}"#)), "{number}: {text}");
    }
    // What Python cannot read as a number of this size comes back as it says it: the call itself is one.
    let body =
        r#"{"jsonrpc":"2.0","id":78,"method":"tools/call","params":{"name":"numbers__echo","arguments":{"n":1E400}}}"#;
    let text = client.post(body.into(), &HeaderMap::new()).await.unwrap().text().await.unwrap();
    assert!(text.contains("Infinity"), "{text}");
}

#[tokio::test]
async fn redirect_as_5xx() {
    let server = Unruly::start("redirects").await;
    let plane = Config::new().start().await;
    let config = GatewayConfig::new().plugin(json!({ "name": "r", "url": server.url() })).control_plane(&plane);
    let mut gateway = config.start().await;
    let client = gateway.client().await;
    let error = client.call("r__echo", json!({})).await.error();
    assert!(error["message"].as_str().unwrap().contains('r'), "{error}");
    let to = format!("to=\"{}/\"", server.url());
    eventually("the log to say where to", PATIENCE, async || {
        let logs = gateway.logs();
        (logs.contains("the server redirects") && (logs.contains(&to) || logs.contains(&server.url()))).then_some(())
    })
    .await;
    assert!(!gateway.logs().contains("hunter2"), "a query may be a secret");
    let query = "SELECT count(*) FROM tool_invocations WHERE error_code = 'UPSTREAM_REDIRECT'";
    eventually("the sample of the call", PATIENCE, async || (plane.client().number(query).await >= 1).then_some(()))
        .await;
    assert!(gateway.stop().await.success());
    assert_eq!(plane.client().number(query).await, 1);
}

#[tokio::test]
async fn answers_that_are_no_jsonrpc() {
    let (_gateway, client) = before(unruly("sound2")).await;
    for body in
        [r#"{"jsonrpc":"2.0","id":null,"method":"ping"}"#, r#"{"jsonrpc":"2.0","id":1,"method":"ping","params":[1]}"#]
    {
        let response = client.post(body.into(), &HeaderMap::new()).await.unwrap();
        let status = response.status();
        let error: Value = response.json().await.unwrap_or_else(|_| panic!("{body}: {status} is no JSON"));
        assert!(error["error"]["code"].is_i64(), "{body}: {status} {error}");
    }
    for accept in ["*/*", "application/json"] {
        let mut headers = HeaderMap::new();
        headers.insert("accept", accept.parse().unwrap());
        let response = client.post(br#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#.to_vec(), &headers).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{accept}");
        assert!(response.text().await.unwrap().contains(r#""result":{}"#), "{accept}");
    }
}

#[tokio::test]
async fn completion_of_anothers_template() {
    let config = GatewayConfig::new().plugin(unruly("first")).plugin(unruly("second"));
    let gateway = config.start().await;
    let client = gateway.client().await;
    well(&client, "first__echo").await;
    well(&client, "second__echo").await;
    let params = json!({ "ref": { "type": "ref/resource", "uri": "second://{name}" }, "argument": { "name": "name", "value": "s" } });
    eventually("the template's own plugin to be asked", PATIENCE, async || {
        let answer = client.request("completion/complete", params.clone()).await.message;
        (answer["result"]["completion"]["values"] == json!(["second"])).then_some(())
    })
    .await;
}

#[tokio::test]
async fn other_encodings_chatter_and_indented_messages() {
    for (kind, sentence) in [
        ("utf-16", "does not write UTF-8"),
        ("latin-1", "does not write UTF-8"),
        ("chatter", "lines that are no MCP messages"),
        ("pretty", "does not write one message a line"),
    ] {
        let (gateway, client) = before(unruly(kind)).await;
        well(&client, &format!("{kind}__echo")).await;
        logged(&gateway, sentence).await;
    }
}

#[tokio::test]
async fn half_a_line_and_a_line_without_end() {
    let mut long = unruly("long-line");
    long["max_result_bytes"] = json!("1MiB");
    for plugin in [unruly("half-line"), long] {
        let name = plugin["name"].as_str().unwrap().to_owned();
        let (_gateway, client) = before(plugin).await;
        well(&client, &format!("{name}__echo")).await;
        let error = client.call(&format!("{name}__break"), json!({})).await.error();
        assert!(error["message"].as_str().unwrap().contains(&name), "{error}");
        well(&client, &format!("{name}__echo")).await;
        well(&client, "sound__echo").await;
    }
}

#[tokio::test]
async fn cursors_that_stay_or_circle() {
    for kind in ["cursor-stays", "cursor-circles"] {
        let (gateway, client) = before(unruly(kind)).await;
        gateway.plugins_ready(2).await;
        let tools = client.tools().await;
        assert!(tools.contains(&format!("{kind}__echo")) && tools.contains(&"sound__echo".to_owned()), "{tools:?}");
        logged(&gateway, "its cursors go in a circle").await;
    }
}
