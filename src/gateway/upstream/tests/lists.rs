//! Lists that are kept.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ::http::HeaderMap;
use serde_json::{Value, json};

use super::{INITIALIZE, Server, eventually, http_plugin, initialized, monitored, plugin, result, shell, status};
use crate::gateway::message::Json;
use crate::gateway::protocol::Generation;
use crate::gateway::upstream::{ListKind, UpstreamError, View};

fn view(client: Generation, capabilities: &Value, caller: Option<&str>) -> View {
    View {
        client,
        version: if client == Generation::Old { "2025-11-25".into() } else { "2026-07-28".into() },
        capabilities: Json::of(capabilities),
        client_info: None,
        caller: caller.map(Into::into),
        session: None,
        pool_key: None,
        meta: Json::empty_object(),
        headers: HeaderMap::new(),
    }
}

/// An old server whose tools depend on what the client can, and are one more with each reading.
async fn server() -> (Server, Arc<AtomicUsize>) {
    let (given, read) = (AtomicUsize::new(0), Arc::new(AtomicUsize::new(0)));
    let readings = Arc::clone(&read);
    let server = Server::start(move |got| match got.asks().as_str() {
        "initialize" => {
            let can = if got.message()["params"]["capabilities"].get("roots").is_some() { "roots" } else { "none" };
            initialized(got, &format!("{can}-{}", given.fetch_add(1, Ordering::SeqCst)))
        }
        "tools/list" => {
            let number = readings.fetch_add(1, Ordering::SeqCst);
            let can = got.header("mcp-session-id").unwrap().split('-').next().unwrap().to_owned();
            result(got, &json!({"tools": [{"name": format!("{can}-{number}")}, {"name": "echo", "x": 1.10}]}))
        }
        "ping" => result(got, &json!({})),
        _ => status(202),
    })
    .await;
    (server, read)
}

#[tokio::test]
async fn a_list_is_read_once_for_each_set_of_capabilities() {
    let (server, read) = server().await;
    let plugin = http_plugin(&server);
    let _monitor = monitored(&plugin);
    plugin.offered(Duration::from_secs(60)).await.unwrap();
    eventually("its tools to be known", || plugin.is_listed(ListKind::Tools, "echo").then_some(())).await;
    let none = plugin.list(ListKind::Tools, &view(Generation::Old, &json!({}), None)).await.unwrap();
    let roots = view(Generation::Old, &json!({"roots": {}}), Some("a"));
    let first = plugin.list(ListKind::Tools, &roots).await.unwrap();
    let again = plugin.list(ListKind::Tools, &roots).await.unwrap();
    assert!(none.items[0].name.starts_with("none-") && first.items[0].name.starts_with("roots-"));
    assert!(Arc::ptr_eq(&first, &again), "it is kept");
    assert_eq!(read.load(Ordering::SeqCst), 2);
    assert_eq!(first.items[1].raw.as_bytes(), br#"{"name":"echo","x":1.1}"#);
    assert!(plugin.is_listed(ListKind::Tools, &first.items[0].name) && !plugin.is_listed(ListKind::Tools, "other"));
    assert!(plugin.list(ListKind::Prompts, &roots).await.unwrap().items.is_empty(), "it has none");
}

#[tokio::test]
async fn a_list_that_changed_is_read_again_and_that_is_told() {
    let script = shell(&format!(
        r#"{}
        tools/list) n=$((n + 1)); result "{{\"tools\":[{{\"name\":\"t$n\"}}]}}"
            [ $n = 1 ] && say '{{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}}' ;;"#,
        INITIALIZE.replace(r#""tools":{}"#, r#""tools":{"listChanged":true}"#)
    ));
    let plugin = plugin(script);
    let (_monitor, changes) = monitored(&plugin);
    eventually("the new list", || plugin.is_listed(ListKind::Tools, "t2").then_some(())).await;
    eventually("the change to be told", || changes.of_all.lock().contains(&ListKind::Tools).then_some(())).await;
}

#[tokio::test]
async fn a_plugin_that_is_down_costs_nobody_time() {
    let plugin = plugin(json!({ "url": "http://127.0.0.1:1/mcp" }));
    let _monitor = monitored(&plugin);
    eventually("it to be known as down", || (plugin.is_up() == Some(false)).then_some(())).await;
    let listed = plugin.list(ListKind::Tools, &view(Generation::Old, &json!({}), None)).await;
    assert!(matches!(listed, Err(UpstreamError::Unreachable)));
}

#[tokio::test]
async fn a_private_list_of_one_caller_is_not_shown_to_another() {
    let server = Server::start(|got| match got.asks().as_str() {
        "server/discover" => {
            result(got, &json!({"supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}, "prompts": {}}}))
        }
        "tools/list" => result(got, &json!({"tools": [], "ttlMs": 300_000, "cacheScope": "private"})),
        "prompts/list" => result(got, &json!({"prompts": [], "ttlMs": 300_000, "cacheScope": "public"})),
        _ => super::error(got, 404, -32601, "no"),
    })
    .await;
    let plugin = http_plugin(&server);
    let _monitor = monitored(&plugin);
    plugin.offered(Duration::from_secs(60)).await.unwrap();
    eventually("the gateway's own lists", || (!plugin.listed(ListKind::Prompts).is_empty()).then_some(())).await;
    let (tools, prompts) = (server.asked("tools/list").len(), server.asked("prompts/list").len());
    for caller in ["a", "a", "b"] {
        let view = view(Generation::Modern, &json!({}), Some(caller));
        plugin.list(ListKind::Tools, &view).await.unwrap();
        plugin.list(ListKind::Prompts, &view).await.unwrap();
    }
    assert_eq!(server.asked("tools/list").len() - tools, 2, "one for each caller");
    assert_eq!(server.asked("prompts/list").len() - prompts, 0, "one for all");
}
