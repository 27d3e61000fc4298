//! Policies in force at a real gateway: what is denied is not called, not listed, and on the record; each obligation is
//! met; changes need no restart.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Gateway, GatewayConfig, Upstream, eventually, mcpg, run};

/// How long a changed policy may take to be in force.
const RELOAD: Duration = Duration::from_secs(60);

const DENIED: i64 = -32003;

/// A gateway before the fixture server, which is ready, with these policies.
async fn governed(fixture: &Upstream, cedar: &str) -> Gateway {
    let gateway = GatewayConfig::new().http("fix", &fixture.url()).policy(cedar).audit_file().start().await;
    gateway.plugins_ready(1).await;
    gateway
}

/// Replaces the policy file as an editor does.
fn rewrite(gateway: &Gateway, cedar: &str) {
    let (file, beside) = (gateway.path("policies/test.cedar"), gateway.path("policies/next"));
    std::fs::write(&beside, cedar).unwrap();
    std::fs::rename(beside, file).unwrap();
}

#[tokio::test]
async fn a_denied_tool_is_not_called_not_listed_and_on_the_record() {
    let fixture = Upstream::fixture().await;
    let gateway = governed(
        &fixture,
        r#"@id("most") permit(principal, action, resource);
           @id("no-count") forbid(principal, action, resource == Tool::"fix/count");"#,
    )
    .await;
    let client = gateway.client().await;
    let tools = client.tools().await;
    assert!(tools.contains(&"fix__echo".to_owned()) && !tools.contains(&"fix__count".to_owned()), "{tools:?}");
    assert!(!gateway.plugin_client("fix").await.tools().await.contains(&"count".to_owned()));

    let error = client.call("fix__count", json!({ "text": "abc" })).await.error();
    assert_eq!((&error["code"], &error["data"]["policy_ids"]), (&json!(DENIED), &json!(["no-count"])), "{error}");
    assert_eq!(
        client.call("fix__echo", json!({ "message": "hi" })).await.result()["structuredContent"]["message"],
        "hi"
    );

    let denied = gateway.audited("tool.deny", 1).await.remove(0);
    assert_eq!(denied["target"], "fix/count");
    assert_eq!(denied["actor"], "anonymous");
    assert_eq!(denied["decision"], "deny");
    assert_eq!(denied["policy_ids"], json!(["no-count"]));
    assert_eq!(denied["reason"], "forbidden by no-count");
    let permitted = gateway.audited("tool.permit", 1).await.remove(0);
    assert_eq!((&permitted["target"], &permitted["policy_ids"]), (&json!("fix/echo"), &json!(["most"])));
}

#[tokio::test]
async fn what_no_policy_permits_is_denied() {
    let fixture = Upstream::fixture().await;
    let policy = r#"permit(principal in Group::"ops", action, resource);"#;
    let gateway = governed(&fixture, policy).await;
    let client = gateway.client().await;
    assert_eq!(client.tools().await, Vec::<String>::new());
    assert_eq!(client.call("fix__echo", json!({})).await.error()["code"], DENIED);
    let read = client.request("resources/read", json!({ "uri": "test://static-text" })).await.error();
    assert_eq!(read["code"], DENIED, "{read}");
}

#[tokio::test]
async fn a_policy_may_look_at_the_arguments() {
    let fixture = Upstream::fixture().await;
    let gateway = governed(
        &fixture,
        r#"permit(principal, action == Action::"call_tool", resource == Tool::"fix/echo")
           when { context.arguments.text.hasTag("/to/owner") && context.arguments.text.getTag("/to/owner") == "acme" };"#,
    )
    .await;
    let client = gateway.client().await;
    assert_eq!(client.tools().await, ["fix__echo"]);
    client.call("fix__echo", json!({ "to": { "owner": "acme" } })).await.result();
    for other in [json!({ "to": { "owner": "evil" } }), json!({ "to": ["acme"] }), json!({})] {
        assert_eq!(client.call("fix__echo", other).await.error()["code"], DENIED);
    }
}

#[tokio::test]
async fn what_is_redacted_reaches_neither_the_plugin_nor_the_caller() {
    let fixture = Upstream::fixture().await;
    let gateway = governed(
        &fixture,
        r#"@redact("/token, result:/users/*/email")
           permit(principal, action == Action::"call_tool", resource == Tool::"fix/echo");
           @redact("result:/email")
           permit(principal, action == Action::"call_tool", resource)
           when { ["huge", "fail"].contains(resource.name) };"#,
    )
    .await;
    let client = gateway.client().await;
    let users = json!([{ "name": "ann", "email": "ann@acme.com" }]);
    let result = client.call("fix__echo", json!({ "token": "t0ken", "users": users })).await.result();
    // The fixture returns what it was sent, as structured content and as text.
    let seen = json!({ "users": [{ "name": "ann", "email": "[redacted]" }] });
    assert_eq!(result["structuredContent"], seen);
    let text: Value = serde_json::from_str(result["content"][0]["text"].as_str().unwrap()).unwrap();
    assert_eq!(text, seen);
    // A text that is no JSON could hold anything.
    let withheld = client.call("fix__huge", json!({ "bytes": 10 })).await.text();
    assert!(withheld.starts_with("[withheld"), "{withheld}");
    let error = client.call("fix__fail", json!({ "message": "ann@acme.com", "rpc": true })).await.error();
    assert!(error["code"] == -32000 && !error.to_string().contains("ann@acme.com"), "{error}");
    let recorded = gateway.audited("tool.permit_with_obligations", 2).await.remove(0);
    assert_eq!(recorded["obligations"], json!(["redact:/token", "redact:result:/users/*/email"]));
}

#[tokio::test]
async fn a_result_that_is_too_large_or_too_late_is_an_error() {
    let fixture = Upstream::fixture().await;
    let gateway = governed(
        &fixture,
        r#"@max_result_bytes("1KiB") permit(principal, action, resource == Tool::"fix/huge");
           @timeout_ms("5000") permit(principal, action, resource == Tool::"fix/sleep");"#,
    )
    .await;
    let client = gateway.client().await;
    client.call("fix__huge", json!({ "bytes": 100 })).await.result();
    client.call("fix__huge", json!({ "bytes": 5_000 })).await.error();
    client.call("fix__sleep", json!({ "ms": 1 })).await.result();
    client.call("fix__sleep", json!({ "ms": 80_000 })).await.error();
}

#[tokio::test]
async fn whom_a_policy_names_is_notified_in_the_log() {
    let fixture = Upstream::fixture().await;
    let gateway =
        governed(&fixture, r#"@id("watched") @notify("security") permit(principal, action, resource);"#).await;
    gateway.client().await.call("fix__echo", json!({ "message": "hi" })).await.result();
    let line = eventually("the notice", RELOAD, async || {
        gateway.logs().lines().find(|line| line.contains("mcpg::notify")).map(str::to_owned)
    })
    .await;
    for part in ["security", "anonymous", "fix/echo", "watched"] {
        assert!(line.contains(part), "{part} is not in {line}");
    }
    assert!(!line.contains("hi\""), "{line}");
}

#[tokio::test]
async fn an_obligation_that_cannot_be_met_denies() {
    let fixture = Upstream::fixture().await;
    let gateway = governed(&fixture, r#"@capture_payload("true") permit(principal, action, resource);"#).await;
    let client = gateway.client().await;
    assert_eq!(client.tools().await, Vec::<String>::new());
    let error = client.call("fix__echo", json!({})).await.error();
    assert!(error["message"].as_str().unwrap().contains("capture_payload"), "{error}");
    let denied = gateway.audited("tool.deny", 1).await.remove(0);
    assert_eq!(denied["obligations"], json!(["capture_payload"]));
}

#[tokio::test]
async fn a_changed_policy_is_in_force_without_a_restart_and_within_a_session() {
    let fixture = Upstream::fixture().await;
    let gateway = governed(&fixture, r#"@id("all") permit(principal, action, resource);"#).await;
    let client = gateway.client().await;
    client.call("fix__echo", json!({})).await.result();
    rewrite(&gateway, r#"@id("none") forbid(principal, action, resource);"#);
    eventually("the new policy", RELOAD, async || {
        client.call("fix__echo", json!({})).await.message.get("error").map(|error| error["data"]["policy_ids"].clone())
    })
    .await;
    let reloaded = gateway.audited("operator.policy_reloaded", 1).await.remove(0);
    assert_eq!(reloaded["detail"]["policies"], 1, "{reloaded}");

    rewrite(&gateway, r#"@redcat("/x") permit(principal, action, resource);"#);
    gateway.audited("operator.policy_rejected", 1).await;
    assert_eq!(client.call("fix__echo", json!({})).await.error()["data"]["policy_ids"], json!(["none"]));
    eventually("the log to have the fault and its place", RELOAD, async || {
        gateway.logs().contains("test.cedar:1:1: test.cedar:1: @redcat").then_some(())
    })
    .await;
}

#[test]
fn a_faulty_policy_is_told_with_its_place_and_nothing_starts() {
    let folder = tempfile::tempdir().unwrap();
    let policies = folder.path().join("p.cedar");
    std::fs::write(&policies, "permit(principal, action, resource)\nwhen { principal.mail == \"a\" };\n").unwrap();
    let config = folder.path().join("gateway.yaml");
    let settings = json!({
        "listen": "127.0.0.1:0", "plugins": [{ "name": "a", "url": "http://127.0.0.1:9/mcp" }],
        "identity": { "anonymous": true }, "policy": { "files": [policies] },
        "observability": { "metrics": { "listen": "127.0.0.1:0" } },
        "control_plane": { "spool": { "path": folder.path().join("spool") } },
    });
    std::fs::write(&config, settings.to_string()).unwrap();
    let fault = format!("{}:2:8: p.cedar:1: attribute `mail`", policies.display());
    let checked = run(mcpg().args(["config", "check"]).arg(&config));
    assert_eq!(checked.status.code(), Some(1));
    assert!(String::from_utf8(checked.stdout).unwrap().starts_with(&fault));
    let started = run(mcpg().args(["gateway", "--config"]).arg(&config));
    assert_eq!(started.status.code(), Some(2));
    assert!(String::from_utf8(started.stderr).unwrap().contains(&fault));
}

#[test]
fn the_example_policies_of_the_documentation_are_sound() {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/policy.md")).unwrap();
    let blocks: Vec<_> = text.split("```cedar\n").skip(1).filter_map(|rest| rest.split_once("```")).collect();
    assert!(blocks.len() >= 3, "the page has examples");
    let folder = tempfile::tempdir().unwrap();
    for (number, (block, _)) in blocks.iter().enumerate() {
        std::fs::write(folder.path().join(format!("{number}.cedar")), block).unwrap();
    }
    let config = folder.path().join("gateway.yaml");
    let settings = json!({
        "plugins": [{ "name": "a", "url": "http://127.0.0.1:9/mcp" }], "identity": { "anonymous": true },
        "policy": { "files": [folder.path().join("*.cedar")] },
    });
    std::fs::write(&config, settings.to_string()).unwrap();
    let checked = run(mcpg().args(["config", "check"]).arg(&config));
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
}
