//! `mcpg demo`: everything on one machine, and all three streams live within seconds.

use std::net::TcpListener;
use std::process::ExitStatus;
use std::time::Duration;

use reqwest::header::HeaderMap;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{Client, Collector, Mcp, Program, eventually, free_port, mcpg, run};

/// How long live data may take, on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A demo on ports of its own.
struct Demo {
    program: Program,
    folder: TempDir,
    ports: [u16; 3],
    more: Vec<String>,
}

impl Demo {
    fn new(more: &[&str]) -> Self {
        let ports = [free_port(), free_port(), free_port()];
        let folder = TempDir::with_prefix("mcpg-demo-it-").unwrap();
        Self {
            program: Program::new("the demo"),
            folder,
            ports,
            more: more.iter().map(|&flag| flag.to_owned()).collect(),
        }
    }

    /// Starts it and waits until it says what to try.
    async fn start(&mut self) {
        let mut command = mcpg();
        command.arg("demo").args(&self.more).current_dir(self.folder.path());
        for (flag, port) in ["--listen", "--gateway", "--gateway-metrics"].iter().zip(self.ports) {
            command.args([*flag, &format!("127.0.0.1:{port}")]);
        }
        let introductions = |demo: &Self| demo.program.logs().matches("prometheus.yml").count();
        let before = introductions(self);
        self.program.spawn(&mut command);
        eventually("the demo to introduce itself", PATIENCE, async || (introductions(self) > before).then_some(()))
            .await;
    }

    fn client(&self) -> Client {
        Client::new(&self.url())
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports[0])
    }

    fn mcp_url(&self) -> String {
        format!("http://127.0.0.1:{}/mcp", self.ports[1])
    }

    /// Ctrl-C.
    async fn stop(&mut self) -> ExitStatus {
        self.program.interrupt();
        self.program.ended().await
    }
}

/// The newest audit entry of an action, once there is one.
async fn audited(client: &Client, action: &str) -> Value {
    eventually(action, PATIENCE, async || {
        client.get(&format!("audit?action={action}&limit=1")).await.ok().json()["entries"]
            .as_array()
            .unwrap()
            .first()
            .cloned()
    })
    .await
}

#[tokio::test]
async fn all_three_streams_are_live_and_a_client_of_ones_own_can_join() {
    let collector = Collector::start().await;
    let mut demo = Demo::new(&["--rate", "40", "--otlp", &collector.endpoint()]);
    demo.start().await;
    let client = demo.client();

    let told = demo.program.logs();
    let dashboard = told.find(&format!("The dashboard: {}/", demo.url())).expect("the dashboard's address");
    assert!(told.find("listening on").is_some_and(|at| dashboard < at), "it comes first:\n{told}");
    for url in [
        format!("{}/v1/orgs/default/metrics", demo.url()),
        demo.mcp_url(),
        format!("http://127.0.0.1:{}/metrics", demo.ports[2]),
    ] {
        assert!(told.contains(&url), "{url} is not in\n{told}");
    }

    // Stream 1: the fleet's metrics, the samples in SQL, the gateway's own metrics.
    eventually("calls, errors and denials of several tools", PATIENCE, async || {
        let metrics = client.metrics().await;
        let tools = metrics.sum_by("mcpg_tool_calls_total", &["plugin", "tool"]).len();
        let all =
            ["mcpg_tool_errors_total", "mcpg_tool_denials_total"].iter().all(|family| metrics.total(family) > 0.0);
        (tools >= 10 && all).then_some(())
    })
    .await;
    // It is called seldom: the denials that were waited for may have been another tool's.
    let outcomes = eventually("calls of the tool that is denied", PATIENCE, async || {
        let rows = client.sql("SELECT DISTINCT outcome FROM tool_invocations WHERE tool = 'delete_repo'").await;
        (!rows.is_empty()).then_some(rows)
    })
    .await;
    assert_eq!(outcomes, [[json!("policy_denied")]]);
    let own = Client::new(&format!("http://127.0.0.1:{}", demo.ports[2]));
    eventually("calls in the gateway's own metrics", PATIENCE, async || {
        own.get("/metrics").await.ok().text().contains("list_repos").then_some(())
    })
    .await;

    // Stream 2: traces at the collector.
    let is_call = |span: &crate::harness::Span| span.kind == "SERVER" && span.name == "tools/call list_repos";
    collector.spans_with("a span of a call", 1, is_call).await;

    // Stream 3: the ledger, which verifies.
    assert_eq!(audited(&client, "tool.deny").await["decision"], "deny");
    let permitted = audited(&client, "tool.permit").await;
    let actor = permitted["actor"].as_str().unwrap();
    assert!(actor == "anonymous" || actor.split(':').count() == 2, "{permitted}");
    let obliged = audited(&client, "tool.permit_with_obligations").await;
    assert!(!obliged["obligations"].as_array().unwrap().is_empty(), "{obliged}");

    let vkey = run(mcpg().args(["audit", "vkey", "--url", &demo.url(), "--org", "default"]));
    let vkey = String::from_utf8(vkey.stdout).unwrap();
    let verified =
        run(mcpg().args(["audit", "verify", "--url", &demo.url(), "--org", "default", "--vkey", vkey.trim()]));
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stderr));

    // A client of one's own, without a token.
    let mine = Mcp::connect(&demo.mcp_url(), HeaderMap::new()).await;
    let tools = mine.tools().await;
    assert!(tools.contains(&"github__list_repos".to_owned()), "{tools:?}");
    assert!(!tools.contains(&"github__delete_repo".to_owned()), "what is denied is not listed");
    let repos = mine.call("github__list_repos", json!({ "owner": "acme" })).await.result();
    assert_eq!(repos["structuredContent"]["repos"][0], "acme/web");

    assert!(demo.stop().await.success(), "Ctrl-C drains");
}

#[tokio::test]
async fn a_demo_that_is_started_again_goes_on_where_it_was() {
    let mut demo = Demo::new(&["--rate", "40"]);
    demo.start().await;
    eventually("the first calls", PATIENCE, async || (demo.client().count().await > 20).then_some(())).await;
    assert!(demo.stop().await.success());
    let policy = demo.folder.path().join("mcpg-data/demo/policy.cedar");
    assert!(policy.exists());

    demo.start().await;
    let before = demo.client().count().await;
    assert!(before > 20, "{before} samples are left");
    eventually("more calls", PATIENCE, async || (demo.client().count().await > before + 20).then_some(())).await;
    assert!(demo.stop().await.success());
}

#[test]
fn an_address_that_is_taken_is_told_with_the_flag_that_chooses_another() {
    for flag in ["--listen", "--gateway", "--gateway-metrics"] {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let folder = TempDir::new().unwrap();
        let mut command = mcpg();
        command.arg("demo").current_dir(folder.path());
        for each in ["--listen", "--gateway", "--gateway-metrics"] {
            let port = if each == flag { taken.local_addr().unwrap().port() } else { free_port() };
            command.args([each, &format!("127.0.0.1:{port}")]);
        }
        let output = run(&mut command);
        let complaint = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{complaint}");
        assert!(complaint.contains(&format!("choose another with {flag}:")), "{complaint}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing has started");
    }
}
