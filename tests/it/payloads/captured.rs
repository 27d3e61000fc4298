//! Capture by a real gateway: what the view shows is what went to the plugin and to the caller, and a canary put into
//! it is found nowhere else.

use std::time::Duration;

use mcpg::payload::Direction;
use reqwest::header::HeaderMap;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{ALICE, GATEWAY, PATIENCE, config, entries, flushed, note, view};
use crate::gateway::governed::modern;
use crate::harness::{Gateway, GatewayConfig, Mcp, Server, Upstream, eventually, python};

const CANARY: &str = "canary-51c9";

/// Captures all that the fixture server is asked, but takes a password out.
const POLICY: &str = r#"
    @id("all") permit(principal, action, resource);
    @id("captured") @capture_payload("true") @redact("/password")
    permit(principal, action == Action::"call_tool", resource == Tool::"fix/echo");
    @id("failures") @capture_payload("response")
    permit(principal, action == Action::"call_tool", resource == Tool::"fix/fail");
"#;

/// A gateway that knows the org's keys, where the org may have some. Its start waits for them no longer than some
/// seconds, and what captures is denied until they are known.
async fn gateway(server: &Server, fixture: &Upstream, policy: &str, more: Value) -> Gateway {
    // That makes the keys, which a busy machine takes its time for.
    note(server).await;
    let has_keys = more.get("org").is_none();
    let gateway = GatewayConfig::new()
        .http("fix", &fixture.url())
        .control_plane(server)
        .policy(policy)
        .with(json!({ "control_plane": { "token": GATEWAY } }))
        .with(more)
        .start()
        .await;
    eventually("the keys to be known", PATIENCE, async || {
        (!has_keys || gateway.path("spool/payload-keys.note").exists()).then_some(())
    })
    .await;
    gateway.plugins_ready(1).await;
    gateway
}

/// What a metric of the spool says of payloads.
async fn of_payloads(gateway: &Gateway, family: &str) -> f64 {
    let streams = gateway.metrics().await.sum_by(family, &["stream"]);
    streams.get(&vec!["payloads".to_owned()]).copied().unwrap_or_default()
}

/// The calls of the org so far, once there are so many payloads: id and tool, oldest first.
async fn captured(server: &Server, rows: i64) -> Vec<(Uuid, String, String)> {
    eventually(&format!("{rows} payloads"), PATIENCE, async || {
        let found = server
            .client()
            .sql("SELECT invocation_id, tool, direction FROM tool_invocation_payloads ORDER BY started_at, direction")
            .await;
        (found.len() as i64 >= rows).then_some(found)
    })
    .await
    .into_iter()
    .map(|row| {
        let text = |at: usize| row[at].as_str().unwrap().to_owned();
        (text(0).parse().unwrap(), text(1), text(2))
    })
    .collect()
}

#[tokio::test]
async fn what_a_policy_captures_is_seen_by_people_and_found_nowhere_else() {
    let fixture = Upstream::fixture().await;
    let mut server = config("").with("telemetry: { log: { level: trace } }").start().await;
    let mut gateway = gateway(&server, &fixture, POLICY, json!({ "telemetry": { "log": { "level": "trace" } } })).await;
    let client = Mcp::connect(&gateway.url(), HeaderMap::new()).await;
    let arguments = json!({ "message": format!("{CANARY} ünd"), "password": format!("{CANARY}-password") });
    let result = client.call("fix__echo", arguments).await.result();
    let failed = client.call("fix__fail", json!({ "message": format!("{CANARY}-failure") })).await.result();
    let rows = captured(&server, 3).await;
    let echo = rows.iter().find(|row| row.1 == "echo").unwrap().0;
    let seen = view(&server.client(), echo, "to see").await.ok().json();
    let params: Value = serde_json::from_str(seen["request"]["text"].as_str().unwrap()).unwrap();
    assert_eq!(params["name"], "echo");
    assert_eq!(
        params["arguments"],
        json!({ "message": format!("{CANARY} ünd") }),
        "the password did not go to the plugin"
    );
    assert_eq!(seen["request"]["redactions"], json!(["/password"]));
    let answered: Value = serde_json::from_str(seen["response"]["text"].as_str().unwrap()).unwrap();
    assert_eq!(answered, result);
    let fail = rows.iter().find(|row| row.1 == "fail").unwrap().0;
    let seen = view(&server.client(), fail, "to see").await.ok().json();
    assert!(seen.get("request").is_none(), "a response alone: {seen}");
    assert_eq!(serde_json::from_str::<Value>(seen["response"]["text"].as_str().unwrap()).unwrap(), failed);
    flushed(&server, 3).await;
    let metrics = server.client().get("metrics").await.text() + &server.client().get("/metrics").await.text();
    assert_eq!(of_payloads(&gateway, "mcpg_gateway_delivered_total").await, 3.0);
    assert!(gateway.stop().await.success());
    assert!(server.stop().await.success());
    for (place, text) in
        [("metrics", metrics), ("the gateway's log", gateway.logs()), ("the control plane's log", server.logs())]
    {
        assert!(!text.contains(CANARY), "{place}");
    }
    for folder in [server.storage(), gateway.folder()] {
        assert_eq!(python("search.py", &[folder.to_str().unwrap(), CANARY]).await, json!([]), "{folder:?}");
    }
}

#[tokio::test]
async fn a_policy_that_captures_denies_where_the_org_is_not_entitled() {
    let fixture = Upstream::fixture().await;
    let server = config("").start().await;
    let other = json!({ "org": "other", "control_plane": { "token": super::OTHER } });
    let gateway = gateway(&server, &fixture, POLICY, other).await;
    let client = Mcp::connect(&gateway.url(), HeaderMap::new()).await;
    let error = client.call("fix__echo", json!({ "message": "x" })).await.error();
    assert!(error["message"].as_str().unwrap().contains("capture_payload"), "{error}");
    client.call("fix__count", json!({ "text": "abc" })).await.result();
    assert!(entries(&server, "payload.captured").await.is_empty());
}

/// Captures whatever it permits, lists too.
const ALL: &str = r#"@id("all") @capture_payload("true") permit(principal, action, resource);"#;

/// What was captured of the calls of a kind and a tool: its requests and its responses.
async fn seen(server: &Server, kind: &str, tool: &str, calls: usize) -> Vec<(Value, Value)> {
    let sql = format!(
        "SELECT DISTINCT invocation_id, started_at FROM tool_invocation_payloads \
         WHERE kind = '{kind}' AND tool = '{tool}' AND direction = 'response' ORDER BY started_at"
    );
    let rows = eventually(&format!("{calls} captured calls of {tool}"), PATIENCE, async || {
        let rows = server.client().sql(&sql).await;
        (rows.len() >= calls).then_some(rows)
    })
    .await;
    let mut found = Vec::new();
    for row in rows {
        let answer = view(&server.client(), row[0].as_str().unwrap().parse().unwrap(), "to see").await.ok().json();
        let read = |direction: &str| serde_json::from_str(answer[direction]["text"].as_str().unwrap()).unwrap();
        found.push((read("request"), read("response")));
    }
    found
}

/// Clients and servers of both generations; tools, prompts, resources, and errors.
#[tokio::test]
async fn what_goes_to_the_plugin_and_to_the_caller_is_captured_in_both_generations() {
    let (old, new) = (Upstream::fixture().await, Upstream::modern().await);
    let server = config("").start().await;
    let gateway = GatewayConfig::new()
        .http("old", &old.url())
        .http("new", &new.url())
        .control_plane(&server)
        .policy(ALL)
        .with(json!({ "control_plane": { "token": GATEWAY } }))
        .start()
        .await;
    eventually("both plugins to be listed", PATIENCE, async || {
        let (_, listed) = modern(&gateway.url(), "tools/list", json!({}), json!({})).await;
        let tools = listed["result"]["tools"].as_array()?.clone();
        ["old__echo", "new__echo"].iter().all(|name| tools.iter().any(|tool| tool["name"] == *name)).then_some(())
    })
    .await;
    let client = Mcp::connect(&gateway.url(), HeaderMap::new()).await;
    let mut told = Vec::new();
    for plugin in ["old", "new"] {
        let arguments = json!({ "message": format!("to {plugin}") });
        told.push(client.call(&format!("{plugin}__echo"), arguments.clone()).await.result());
        let call = json!({ "name": format!("{plugin}__echo"), "arguments": arguments });
        told.push(modern(&gateway.url(), "tools/call", call, json!({})).await.1["result"].clone());
    }
    let echoes = seen(&server, "tool", "echo", 4).await;
    for result in told {
        let at = echoes.iter().find(|(_, response)| *response == result);
        let (request, _) = at.unwrap_or_else(|| panic!("{result} is not among {echoes:?}"));
        assert_eq!((&request["name"], &request["arguments"]["message"].is_string()), (&json!("echo"), &true));
    }
    let versions = |(request, _): &(Value, Value)| request["_meta"]["io.modelcontextprotocol/protocolVersion"].clone();
    let modern_requests = echoes.iter().map(versions).filter(|version| *version == "2026-07-28").count();
    assert_eq!(modern_requests, 2, "the requests are as they went to the plugins: {echoes:?}");
    let params = json!({ "name": "old__test_simple_prompt" });
    let prompt = client.request("prompts/get", params).await.result();
    let seen_prompt = seen(&server, "prompt", "test_simple_prompt", 1).await.remove(0);
    assert_eq!((&seen_prompt.0["name"], &seen_prompt.1), (&json!("test_simple_prompt"), &prompt));
    let at_old = Mcp::connect(&gateway.plugin_url("old"), HeaderMap::new()).await;
    let uri = "test://static-text";
    let resource = at_old.request("resources/read", json!({ "uri": uri })).await.result();
    let seen_resource = seen(&server, "resource", uri, 1).await.remove(0);
    assert_eq!((&seen_resource.0["uri"], &seen_resource.1), (&json!(uri), &resource));
    let error = at_old.request("resources/read", json!({ "uri": "test://nowhere" })).await.error();
    assert_eq!(seen(&server, "resource", "test://nowhere", 1).await[0].1, error);
}

/// A call that its server works on as a task: what is asked about the task is captured as well.
#[tokio::test]
async fn the_result_of_a_task_is_captured() {
    let fixture = Upstream::fixture().await;
    let server = config("").start().await;
    let gateway = gateway(&server, &fixture, ALL, json!({})).await;
    let client = Mcp::connect(&gateway.plugin_url("fix"), HeaderMap::new()).await;
    let call = json!({ "name": "long_job", "arguments": { "ms": 1, "label": "it" }, "task": { "ttl": 60_000 } });
    let task = client.request("tools/call", call).await.result()["task"]["taskId"].clone();
    let result = client.request("tasks/result", json!({ "taskId": task })).await.result();
    assert_eq!(result["content"][0]["text"], "done: it");
    let (request, response) = seen(&server, "task", "long_job", 1).await.remove(0);
    assert_eq!((&request["taskId"], &response), (&task, &result));
    assert_eq!(seen(&server, "tool", "long_job", 1).await[0].1["task"]["taskId"], task);
}

/// Both killed again and again: what was acknowledged opens, and nothing is there twice.
#[tokio::test(flavor = "multi_thread")]
async fn killed_under_capture_nothing_that_is_there_fails_to_open_and_nothing_is_there_twice() {
    let fixture = Upstream::fixture().await;
    let mut server = config("").start().await;
    let mut gateway = gateway(&server, &fixture, POLICY, json!({})).await;
    let mut sent = 0;
    for round in 0..10 {
        let client = Mcp::connect(&gateway.url(), HeaderMap::new()).await;
        for _ in 0..4 {
            client.call("fix__echo", json!({ "message": format!("call {sent}") })).await.result();
            sent += 1;
        }
        if round % 2 == 0 {
            server.kill();
            server.start().await;
        } else {
            gateway.kill();
            gateway.start().await;
        }
    }
    // What a kill of the gateway may take is what it had not sealed yet; all else arrives.
    let rows = eventually("the spool to be empty", PATIENCE, async || {
        if of_payloads(&gateway, "mcpg_gateway_spool_records").await > 0.0 {
            return None;
        }
        Some(captured(&server, 1).await)
    })
    .await;
    // Both directions of the calls before each kill of the control plane, at least.
    assert!(rows.len() >= 40, "{} of {sent} calls", rows.len());
    let mut once: Vec<_> = rows.iter().map(|row| (row.0, row.2.clone())).collect();
    once.sort();
    once.dedup();
    assert_eq!(once.len(), rows.len(), "nothing is there twice");
    for row in rows.iter().step_by(7) {
        view(&server.client(), row.0, "does it open").await.ok();
    }
}

/// With `on_failure: closed` there is no call of which the payloads cannot be kept.
#[tokio::test]
async fn closed_means_kept_or_refused() {
    let fixture = Upstream::fixture().await;
    let server = config("").start().await;
    let closed = json!({ "payloads": { "on_failure": "closed" } });
    let mut gateway = gateway(&server, &fixture, POLICY, closed).await;
    let client = Mcp::connect(&gateway.url(), HeaderMap::new()).await;
    client.call("fix__echo", json!({ "message": "kept before it is answered" })).await.result();
    // Killed at once: what the caller was answered is in the spool.
    gateway.kill();
    gateway.start().await;
    let rows = captured(&server, 2).await;
    let directions: Vec<&str> = rows.iter().map(|row| row.2.as_str()).collect();
    assert_eq!(directions, [Direction::Request.as_str(), Direction::Response.as_str()]);
    let seen = view(&server.client().with_token(ALICE), rows[0].0, "kept").await.ok().json();
    assert!(seen["request"]["text"].as_str().unwrap().contains("kept before"));
}

/// A share, and a cap: what is beyond is cut off and marked.
#[tokio::test]
async fn a_payload_is_cut_at_its_cap_and_a_share_of_none_keeps_none() {
    let fixture = Upstream::fixture().await;
    let server = config("").start().await;
    let capped =
        gateway(&server, &fixture, POLICY, json!({ "payloads": { "plugins": { "fix": { "max_bytes": "1KiB" } } } }))
            .await;
    let client = Mcp::connect(&capped.url(), HeaderMap::new()).await;
    client.call("fix__echo", json!({ "message": "long ".repeat(1_000) })).await.result();
    let rows = captured(&server, 2).await;
    let seen = view(&server.client(), rows[0].0, "how much").await.ok().json();
    assert_eq!(
        (seen["request"]["truncated"].as_bool(), seen["request"]["text"].as_str().map(str::len)),
        (Some(true), Some(1_024))
    );
    let none = gateway(&server, &fixture, POLICY, json!({ "payloads": { "sample": 0.0 } })).await;
    let client = Mcp::connect(&none.url(), HeaderMap::new()).await;
    client.call("fix__echo", json!({ "message": "not kept" })).await.result();
    tokio::time::timeout(Duration::from_secs(90), async {
        // The sample of the call arrives, and no payload of it.
        while server.client().number("SELECT count(*) FROM tool_invocations WHERE tool = 'echo'").await < 2 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await
    .unwrap();
    assert_eq!(server.client().number("SELECT count(*) FROM tool_invocation_payloads").await, 2);
}
