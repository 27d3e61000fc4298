//! Which generation is spoken with a server.

use std::time::Duration;

use axum::response::Response;
use serde_json::json;

use super::{Got, INITIALIZE, Server, error, http_plugin, initialized, monitored, plugin, result, shell, status};
use crate::gateway::protocol::Generation::{self, Modern, Old};

const PATIENCE: Duration = Duration::from_secs(60);

fn discovery(got: &Got) -> Response {
    result(
        got,
        &json!({
            "resultType": "complete", "supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}, "ttlMs": 0,
            "cacheScope": "private", "_meta": {"io.modelcontextprotocol/serverInfo": {"name": "m", "version": "1"}},
        }),
    )
}

/// What is spoken with such a server for an old and for a modern client.
async fn spoken(server: &Server) -> (Generation, Generation) {
    let plugin = http_plugin(server);
    let _monitor = monitored(&plugin);
    (plugin.generation(Old, PATIENCE).await.unwrap(), plugin.generation(Modern, PATIENCE).await.unwrap())
}

#[tokio::test]
async fn a_client_s_own_generation_is_spoken_where_the_server_has_it() {
    let modern = Server::start(|got| match got.asks().as_str() {
        "server/discover" => discovery(got),
        _ => error(got, 404, -32601, "Method not found"),
    })
    .await;
    assert_eq!(spoken(&modern).await, (Modern, Modern));
    let dual = Server::start(|got| match got.asks().as_str() {
        "server/discover" => discovery(got),
        "initialize" => initialized(got, "s1"),
        _ => status(202),
    })
    .await;
    assert_eq!(spoken(&dual).await, (Old, Modern));
    for refuse in
        [|_: &Got| status(400), |got: &Got| error(got, 200, -32601, "no"), |got: &Got| result(got, &json!({}))]
    {
        let old = Server::start(move |got| match got.asks().as_str() {
            "server/discover" => refuse(got),
            "initialize" => initialized(got, "s1"),
            _ => status(202),
        })
        .await;
        assert_eq!(spoken(&old).await, (Old, Old));
    }
}

#[tokio::test]
async fn the_probe_is_a_whole_modern_request_and_an_old_client_alone_makes_a_modern_server_be_initialized() {
    let server = Server::start(|got| match got.asks().as_str() {
        "server/discover" => discovery(got),
        "tools/list" => {
            result(got, &json!({"resultType": "complete", "tools": [], "ttlMs": 0, "cacheScope": "public"}))
        }
        _ => error(got, 404, -32601, "Method not found"),
    })
    .await;
    let plugin = http_plugin(&server);
    let _monitor = monitored(&plugin);
    assert_eq!(plugin.generation(Modern, PATIENCE).await.unwrap(), Modern);
    let offer = plugin.offered(PATIENCE).await.unwrap();
    assert_eq!((offer.generation, plugin.is_up()), (Modern, Some(true)));
    assert_eq!(offer.server_info.as_ref().unwrap().value().unwrap()["name"], "m");
    super::eventually("its tools to be read", || server.asked("tools/list").pop()).await;
    for got in server.got() {
        let meta = &got.message()["params"]["_meta"];
        assert_eq!(meta["io.modelcontextprotocol/protocolVersion"], "2026-07-28", "{}", got.asks());
        assert_eq!(got.header("mcp-protocol-version"), Some("2026-07-28"), "{}", got.asks());
        assert_eq!(got.header("mcp-method"), Some(&*got.asks()));
        assert_ne!(got.asks(), "initialize");
    }
}

#[tokio::test]
async fn what_is_no_evidence_is_no_verdict() {
    for code in [401, 503] {
        let server = Server::start(move |_| status(code)).await;
        let plugin = http_plugin(&server);
        let _monitor = monitored(&plugin);
        assert!(plugin.generation(Old, PATIENCE).await.is_err(), "{code}");
        assert_eq!(plugin.is_up(), Some(false));
        assert!(server.asked("initialize").is_empty(), "{code}");
    }
}

#[tokio::test]
async fn a_child_is_probed_and_one_that_ends_at_the_probe_is_started_again() {
    let modern = r#"server/discover) result '{"resultType":"complete","supportedVersions":["2026-07-28"],"capabilities":{}}' ;;"#;
    for (script, spoken) in [
        (shell(modern), Modern),
        (shell(INITIALIZE), Old),
        (shell(&format!("{INITIALIZE} server/discover) result '{{}}' ;;")), Old),
        (shell(&format!("{INITIALIZE} server/discover) exit 1 ;;")), Old),
        (shell(&format!("{INITIALIZE} server/discover) error -32602; exit 1 ;;")), Old),
    ] {
        let plugin = plugin(script.clone());
        let _monitor = monitored(&plugin);
        assert_eq!(plugin.generation(Modern, PATIENCE).await.unwrap(), spoken, "{script}");
        assert!(plugin.offered(PATIENCE).await.is_some(), "{script}");
    }
}

#[tokio::test]
async fn a_setting_decides_before_the_probe() {
    let server = Server::start(|got| match got.asks().as_str() {
        "server/discover" => discovery(got),
        "initialize" => initialized(got, "s1"),
        _ => status(202),
    })
    .await;
    let settings = |generation| json!({ "url": server.url, "generation": generation });
    assert_eq!(plugin(settings("old")).generation(Modern, PATIENCE).await.unwrap(), Old);
    assert_eq!(plugin(settings("modern")).generation(Old, PATIENCE).await.unwrap(), Modern);
    // A server that cannot be discovered is used as it is said to be.
    let mute = Server::start(|got| error(got, 404, -32601, "Method not found")).await;
    let plugin = plugin(json!({ "url": mute.url, "generation": "modern" }));
    let _monitor = monitored(&plugin);
    assert_eq!(plugin.offered(PATIENCE).await.unwrap().generation, Modern);
}
