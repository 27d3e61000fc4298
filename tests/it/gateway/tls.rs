//! Plugins and control planes over TLS, with a certificate of an authority that the system trusts.

use std::path::Path;
use std::time::Duration;

use mcpg::config::TokenHash;
use reqwest::Url;
use serde_json::json;
use tempfile::TempDir;

use crate::harness::{Config, GatewayConfig, Program, Upstream, eventually, free_port, python_command};

const PATIENCE: Duration = Duration::from_secs(60);

/// What takes TLS off before a server.
struct Front {
    _program: Program,
    /// The server's URL over TLS.
    url: Url,
    folder: TempDir,
}

impl Front {
    async fn before(url: &str) -> Self {
        let (mut program, port) = (Program::new("what takes TLS off"), free_port());
        let (folder, mut url) = (TempDir::with_prefix("mcpg-tls-").unwrap(), Url::parse(url).unwrap());
        let target = url.port().unwrap().to_string();
        program.spawn(python_command("tls_front.py").args([&port.to_string(), &target]).arg(folder.path()));
        eventually("it to listen", PATIENCE, async || program.logs().contains("ready").then_some(())).await;
        url.set_scheme("https").unwrap();
        url.set_port(Some(port)).unwrap();
        Self { _program: program, url, folder }
    }

    fn authority(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("ca.pem")).unwrap()
    }
}

fn trusting(config: GatewayConfig, file: &Path, fronts: &[&Front]) -> GatewayConfig {
    std::fs::write(file, fronts.iter().map(|front| front.authority()).collect::<String>()).unwrap();
    config.env("SSL_CERT_FILE", file.to_str().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_and_its_telemetry_go_over_tls() {
    // A request without a token would have to name the control plane's own port.
    let hash = TokenHash::of("of-the-gateway");
    let tokens = format!("tokens: [{{ name: gateway, hash: {hash}, org: default, roles: [ingest, read] }}]");
    let (everything, server) = (Upstream::everything().await, Config::new().with(&tokens).start().await);
    let (plugin, plane) = (Front::before(&everything.url()).await, Front::before(&server.url()).await);
    let config = GatewayConfig::new().http("everything", plugin.url.as_str());
    let config = config.with(json!({ "control_plane": { "url": plane.url.as_str(), "token": "of-the-gateway" } }));
    let file = config.path("authorities.pem");
    let gateway = trusting(config, &file, &[&plugin, &plane]).start().await;
    gateway.client().await.call("everything__echo", json!({ "message": "hi" })).await.result();
    let client = server.client().with_token("of-the-gateway");
    for query in
        ["SELECT count(*) FROM tool_invocations", "SELECT count(*) FROM audit_log WHERE action = 'tool.permit'"]
    {
        eventually(query, PATIENCE, async || (client.number(query).await == 1).then_some(())).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_impostor_is_asked_nothing_and_the_caller_is_told_so() {
    let everything = Upstream::everything().await;
    let (plugin, other) = (Front::before(&everything.url()).await, Front::before(&everything.url()).await);
    let config = GatewayConfig::new().http("everything", plugin.url.as_str());
    let file = config.path("authorities.pem");
    let gateway = trusting(config, &file, &[&other]).start().await;
    let client = gateway.client().await;
    let error = client.call("everything__echo", json!({ "message": "hi" })).await.error();
    assert_eq!(error["code"], -32001, "{error}");
}
