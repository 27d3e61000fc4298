//! The official conformance suite of MCP, all its server scenarios: against the fixture server itself, and through the gateway.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{GatewayConfig, Upstream, fixture_command, node, npm, run};

/// The scenarios that this version of the suite has for servers.
const SCENARIOS: usize = 32;
/// The checks in them that a server passes or fails.
const CHECKS: usize = 44;

/// What the suite said of each check: `scenario/check` and `SUCCESS`, `WARNING` or `FAILURE`.
type Verdicts = BTreeMap<String, String>;

/// Runs all server scenarios against an endpoint.
async fn suite(url: &str) -> Verdicts {
    let folder = TempDir::with_prefix("mcpg-conformance-").unwrap();
    let mut command = node(&npm("conformance"));
    command.args(["server", "--suite", "all", "--url", url, "--output-dir"]).arg(folder.path());
    let output = tokio::task::spawn_blocking(move || run(&mut command)).await.unwrap();
    let scenarios: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(scenarios.len(), SCENARIOS, "not every scenario ran: {said}");
    scenarios.iter().flat_map(|scenario| verdicts(scenario)).collect()
}

/// The verdicts that one scenario wrote into its folder, `server-<scenario>-<time>`.
fn verdicts(folder: &Path) -> Vec<(String, String)> {
    let name = folder.file_name().unwrap().to_str().unwrap().strip_prefix("server-").unwrap();
    let scenario = &name[..name.len() - "-2026-01-01T00-00-00-000Z".len()];
    let checks: Vec<Value> = serde_json::from_slice(&std::fs::read(folder.join("checks.json")).unwrap()).unwrap();
    let judged = checks.iter().filter(|check| check["status"] != "INFO");
    judged
        .map(|check| {
            let id = check["id"].as_str().unwrap();
            let status = check["status"].as_str().unwrap();
            let why = check["errorMessage"].as_str().map(|why| format!(": {why}")).unwrap_or_default();
            (format!("{scenario}/{id}"), format!("{status}{why}"))
        })
        .collect()
}

#[track_caller]
fn assert_all_passed(verdicts: &Verdicts) {
    let failed: Vec<_> = verdicts.iter().filter(|(_, status)| status.starts_with("FAILURE")).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    let passed = verdicts.values().filter(|status| *status == "SUCCESS").count();
    assert!(passed >= CHECKS, "{passed} checks of {CHECKS} passed: {verdicts:#?}");
}

#[tokio::test]
async fn the_fixture_server_itself_conforms() {
    let fixture = Upstream::fixture().await;
    assert_all_passed(&suite(&fixture.url()).await);
}

#[tokio::test]
async fn the_gateway_conforms_before_an_upstream_over_http() {
    let fixture = Upstream::fixture().await;
    let gateway = GatewayConfig::new().http("fixture", &fixture.url()).start().await;
    assert_all_passed(&suite(&gateway.plugin_url("fixture")).await);
}

#[tokio::test]
async fn the_gateway_conforms_before_an_upstream_over_stdio() {
    let gateway = GatewayConfig::new().stdio("fixture", &fixture_command()).start().await;
    assert_all_passed(&suite(&gateway.plugin_url("fixture")).await);
}

#[tokio::test]
async fn the_suite_says_the_same_of_server_everything_with_the_gateway_before_it() {
    let everything = Upstream::everything().await;
    let gateway = GatewayConfig::new().http("everything", &everything.url()).start().await;
    let directly = suite(&everything.url()).await;
    let through = suite(&gateway.plugin_url("everything")).await;
    let differ: Vec<_> = directly.keys().filter(|check| through.get(*check) != directly.get(*check)).collect();
    // The server leaves itself open to DNS rebinding, and says to no client of this age how to resume a stream. The gateway does better.
    let better = [
        "dns-rebinding-protection/localhost-host-rebinding-rejected",
        "server-sse-polling/server-sse-priming-event",
        "server-sse-polling/server-sse-retry-field",
    ];
    assert_eq!(differ, better, "{through:#?}");
    assert!(better.iter().all(|check| through[*check] == "SUCCESS"), "{through:#?}");
}
