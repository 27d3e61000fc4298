//! Every client with every server: the Python, TypeScript and Rust SDKs, each speaking the revisions up to 2025-11-25,
//! 2026-07-28, or what it finds, against servers that speak one generation each, over HTTP and stdio, with the gateway
//! between them: 288 cells.
//!
//! A client is a program that does eight things with each server it is given and prints what came of each. Cells that
//! are not `ok` are in `expected`, each with its reason, and the page `docs/gateway.md` has the same table.

mod expected;
mod rust;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use mcpg::config::TokenHash;
use reqwest::header::ACCEPT;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use self::expected::{EXCEPTIONS, SECTION, expected};
use crate::harness::{
    Gateway, GatewayConfig, Upstream, client_script, eventually, fixture_command, modern_command, node, plain_http,
    python_command, run,
};

/// How long a scenario may take until it has failed.
const PATIENCE: Duration = Duration::from_secs(60);

const SDKS: [&str; 3] = ["Python", "TypeScript", "Rust"];
const MODES: [&str; 3] = ["old", "modern", "auto"];
const UPSTREAMS: [&str; 4] = ["old-http", "modern-http", "old-stdio", "modern-stdio"];
const SCENARIOS: [&str; 8] = [
    "tool call",
    "progress",
    "elicitation",
    "sampling",
    "resource subscription",
    "task",
    "cancellation",
    "tools/list_changed",
];

/// What came of each scenario at each server.
type Verdicts = BTreeMap<String, BTreeMap<String, String>>;

/// A server that a client is to visit.
#[derive(Debug, Clone)]
struct Target {
    name: String,
    url: String,
    token: Option<String>,
}

/// How long a scenario may take: set lower while working on the gateway, when many fail.
fn patience() -> Duration {
    let told = std::env::var("MCPG_MATRIX_PATIENCE_MS").ok().and_then(|ms| ms.parse().ok());
    told.map_or(PATIENCE, Duration::from_millis)
}

/// Has the client of an SDK do everything with each of the targets.
async fn visit(sdk: &str, mode: &str, targets: Vec<Target>) -> Verdicts {
    let mut command = match sdk {
        "Python" => python_command("matrix_client.py"),
        "TypeScript" => node(&client_script("matrix.mjs")),
        _ => return rust::visit(mode, &targets, patience()).await,
    };
    let targets = targets.iter().map(|Target { name, url, token }| json!({ "name": name, "url": url, "token": token }));
    let patience = u64::try_from(patience().as_millis()).unwrap();
    let request = json!({ "mode": mode, "targets": targets.collect::<Vec<_>>(), "patience_ms": patience });
    command.arg(request.to_string());
    printed(command).await
}

/// The JSON that a client prints.
async fn printed(mut command: Command) -> Verdicts {
    let output = tokio::task::spawn_blocking(move || run(&mut command)).await.unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("the client printed no verdicts: {e}: {complaint}"))
}

/// The caller that a client is: pooled sessions are one caller's, and no client is to see what another one's session
/// saw.
fn caller(sdk: &str, mode: &str) -> String {
    format!("service:{}-{mode}", sdk.to_lowercase())
}

/// A gateway before the four servers, with a token for each client.
struct Between {
    gateway: Gateway,
    _upstreams: [Upstream; 2],
}

impl Between {
    async fn start() -> Self {
        let (old, modern) = (Upstream::fixture().await, Upstream::modern().await);
        let callers = SDKS.iter().flat_map(|sdk| MODES.iter().map(|mode| caller(sdk, mode)));
        let tokens = callers.map(|caller| json!({ "hash": TokenHash::of(&caller).to_string(), "caller": caller }));
        let gateway = GatewayConfig::new()
            .http("old-http", &old.url())
            .http("modern-http", &modern.url())
            .stdio("old-stdio", &fixture_command())
            .stdio("modern-stdio", &modern_command())
            .with(json!({ "identity": { "anonymous": false, "tokens": tokens.collect::<Vec<_>>() } }))
            .start()
            .await;
        let between = Self { gateway, _upstreams: [old, modern] };
        for plugin in UPSTREAMS {
            between.ready(plugin).await;
        }
        between
    }

    /// Waits until a plugin is up: a client that comes before that is refused, and no cell is about that.
    async fn ready(&self, plugin: &str) {
        let client = plain_http().build().unwrap();
        let initialize = json!({ "jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
            "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": { "name": "ready", "version": "1" },
        } });
        eventually(&format!("{plugin} to be up"), PATIENCE, async || {
            let request = client.post(self.gateway.plugin_url(plugin)).bearer_auth(caller(SDKS[0], MODES[0]));
            let request = request.header(ACCEPT, "application/json").json(&initialize);
            let answer: Value = request.send().await.ok()?.json().await.ok()?;
            answer.get("result").is_some().then_some(())
        })
        .await;
    }

    fn targets(&self, sdk: &str, mode: &str) -> Vec<Target> {
        let target = |name: &&str| Target {
            name: (*name).to_owned(),
            url: self.gateway.plugin_url(name),
            token: Some(caller(sdk, mode)),
        };
        UPSTREAMS.iter().map(target).collect()
    }
}

/// All cells of one SDK, its three modes at once; fails with each cell that is not as expected.
async fn assert_cells(sdk: &'static str) {
    let between = Between::start().await;
    let mut modes = JoinSet::new();
    for mode in MODES {
        let targets = between.targets(sdk, mode);
        modes.spawn(async move { (mode, visit(sdk, mode, targets).await) });
    }
    let mut wrong = Vec::new();
    let mut cells = 0;
    while let Some(visited) = modes.join_next().await {
        let (mode, verdicts) = visited.unwrap();
        for (upstream, scenario) in UPSTREAMS.iter().flat_map(|upstream| SCENARIOS.map(|scenario| (upstream, scenario)))
        {
            let verdict = &verdicts[*upstream][scenario];
            cells += 1;
            if let Err(why) = expected(sdk, mode, upstream, scenario).holds(verdict) {
                wrong.push(format!("{sdk}, {mode} client, {upstream}, {scenario}: {why}"));
            }
        }
    }
    wrong.sort();
    let count = wrong.len();
    let logs = between.gateway.logs();
    assert!(wrong.is_empty(), "{count} of {cells} cells:\n{}\n{logs}", wrong.join("\n"));
}

#[tokio::test]
#[ignore = "minutes each: make matrix"]
async fn the_python_sdk_has_everything_of_every_server() {
    assert_cells("Python").await;
}

#[tokio::test]
#[ignore = "minutes each: make matrix"]
async fn the_typescript_sdk_has_everything_of_every_server() {
    assert_cells("TypeScript").await;
}

#[tokio::test]
#[ignore = "minutes each: make matrix"]
async fn the_rust_sdk_has_everything_of_every_server() {
    assert_cells("Rust").await;
}

/// What an SDK has of a server of its own generation without a gateway between them.
async fn assert_direct(sdk: &'static str) {
    let (old, modern) = (Upstream::fixture().await, Upstream::modern().await);
    let target = |name: &str, url: String| Target { name: name.to_owned(), url, token: None };
    let targets = [target("old-http", old.url()), target("modern-http", modern.url())];
    let mut wrong = Vec::new();
    for (mode, spoken) in [("old", &targets[..1]), ("modern", &targets[1..]), ("auto", &targets[..])] {
        let verdicts = visit(sdk, mode, spoken.to_vec()).await;
        for (name, scenario) in spoken.iter().flat_map(|target| SCENARIOS.map(|scenario| (&target.name, scenario))) {
            let verdict = &verdicts[name][scenario];
            // What an SDK that speaks both generations lacks of the older one: the matrix has no such cell, the gateway
            // speaks both.
            let lacks =
                scenario == "task" && name == "old-http" && (sdk == "Rust" || (sdk, mode) == ("Python", "auto"));
            if (verdict == "ok") == lacks {
                wrong.push(format!("{sdk}, {mode} client, {name}, {scenario}: {verdict}"));
            }
        }
    }
    // A server of one generation does not speak the other: else the gateway would have nothing to bridge.
    for (mode, foreign) in [("old", &targets[1..]), ("modern", &targets[..1])] {
        let verdicts = visit(sdk, mode, foreign.to_vec()).await;
        let met = verdicts[&foreign[0].name].iter().filter(|(_, verdict)| *verdict == "ok");
        wrong.extend(met.map(|(scenario, _)| format!("{sdk}, {mode} client, {}, {scenario}: ok", foreign[0].name)));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn the_clients_have_everything_of_servers_of_their_generation() {
    for sdk in SDKS {
        assert_direct(sdk).await;
    }
}

#[test]
fn the_page_names_each_cell_that_is_not_possible() {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/gateway.md")).unwrap();
    let (_, section) = page.split_once(SECTION).unwrap_or_else(|| panic!("docs/gateway.md has no section {SECTION}"));
    let section = section.split("\n## ").next().unwrap();
    let rows: Vec<_> =
        section.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| client ")).collect();
    let ours: Vec<_> = EXCEPTIONS.iter().map(|exception| exception.row()).collect();
    assert_eq!(rows, ours, "the table of docs/gateway.md, and what the test expects");
}

#[test]
fn every_exception_is_of_the_matrix() {
    let cells = || {
        let clients = SDKS.into_iter().flat_map(|sdk| MODES.map(|mode| (sdk, mode)));
        let pairs = clients.flat_map(|(sdk, mode)| UPSTREAMS.map(|upstream| (sdk, mode, upstream)));
        pairs.flat_map(|(sdk, mode, upstream)| SCENARIOS.map(|scenario| (sdk, mode, upstream, scenario)))
    };
    assert_eq!(cells().count(), 288);
    for exception in EXCEPTIONS {
        let covered = cells().filter(|cell| exception.covers(cell.0, cell.1, cell.2, cell.3));
        assert!(covered.count() > 0, "{exception:?} is of no cell");
    }
}
