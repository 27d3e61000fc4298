//! The gateway as a child process.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use reqwest::header::HeaderMap;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Exposition, Mcp, Program, Server, eventually, free_port, mcpg, plain_http, replace};

/// How long a start may take before it is a failure.
const START: Duration = Duration::from_secs(60);

/// What a gateway is started with. Its ports stay the same over restarts.
///
/// Unless a test says otherwise everyone may do everything, the control plane is away, and traces are exported nowhere.
#[derive(Debug)]
pub(crate) struct GatewayConfig {
    port: u16,
    metrics_port: u16,
    settings: Value,
    environment: Vec<(String, String)>,
    folder: TempDir,
}

impl GatewayConfig {
    /// A gateway without plugins.
    pub(crate) fn new() -> Self {
        let (port, metrics_port) = (free_port(), free_port());
        let settings = json!({
            "listen": format!("127.0.0.1:{port}"),
            "org": "default",
            "workspace": "prod",
            "instance": "gw-1",
            "control_plane": { "url": format!("http://127.0.0.1:{}", free_port()), "spool": { "path": "spool" } },
            "plugins": [],
            "identity": { "anonymous": true },
            "policy": "allow_all",
            "observability": { "metrics": { "listen": format!("127.0.0.1:{metrics_port}") } },
        });
        let folder = TempDir::with_prefix("mcpg-gateway-it-").unwrap();
        Self { port, metrics_port, settings, environment: Vec::new(), folder }
    }

    /// Adds to the settings, or replaces some: objects are merged, everything else is replaced.
    pub(crate) fn with(mut self, settings: Value) -> Self {
        merge(&mut self.settings, settings);
        self
    }

    /// Adds a plugin that is reached over Streamable HTTP.
    pub(crate) fn http(self, name: &str, url: &str) -> Self {
        self.plugin(json!({ "name": name, "url": url }))
    }

    /// Adds a plugin that is a child process, given by its command and arguments.
    pub(crate) fn stdio(self, name: &str, command: &[String]) -> Self {
        let (program, args) = command.split_first().unwrap();
        self.plugin(json!({ "name": name, "command": program, "args": args }))
    }

    /// Adds a plugin, as it stands in the config.
    pub(crate) fn plugin(mut self, plugin: Value) -> Self {
        self.settings["plugins"].as_array_mut().unwrap().push(plugin);
        self
    }

    /// Sends samples and audit events to a control plane, through a spool in the gateway's folder.
    pub(crate) fn control_plane(self, server: &Server) -> Self {
        self.with(json!({ "control_plane": { "url": server.url() } }))
    }

    /// Decides by a Cedar policy file of this text, in place of allowing everything.
    pub(crate) fn policy(self, cedar: &str) -> Self {
        let file = self.path("policies/test.cedar");
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, cedar).unwrap();
        self.with(json!({ "policy": { "files": ["policies/*.cedar"] } }))
    }

    /// Sets an environment variable of the gateway's.
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A path in the gateway's folder, which is also its working folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts it and waits until it serves.
    pub(crate) async fn start(self) -> Gateway {
        let mut gateway = Gateway { program: Program::new("the gateway"), config: self };
        gateway.start().await;
        gateway
    }

    /// Starts it, and does not wait.
    pub(crate) fn spawn(self) -> Gateway {
        let mut gateway = Gateway { program: Program::new("the gateway"), config: self };
        gateway.program.spawn(&mut gateway.config.command());
        gateway
    }

    /// The command that starts it.
    fn command(&self) -> Command {
        let file = self.path("gateway.yaml");
        // JSON is YAML too.
        replace(&file, &serde_json::to_vec_pretty(&self.settings).unwrap());
        let mut command = mcpg();
        command.args(["gateway", "--config"]).arg(&file).current_dir(self.folder.path()).env("RUST_BACKTRACE", "1");
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }
}

/// Merges `more` into `settings`.
fn merge(settings: &mut Value, more: Value) {
    match (settings, more) {
        (Value::Object(settings), Value::Object(more)) => {
            for (key, value) in more {
                merge(settings.entry(key).or_insert(Value::Null), value);
            }
        }
        (settings, more) => *settings = more,
    }
}

/// A gateway that runs, or that was stopped and may be started again on the same folder and ports.
#[derive(Debug)]
pub(crate) struct Gateway {
    program: Program,
    config: GatewayConfig,
}

impl Gateway {
    /// The MCP endpoint of all plugins.
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}/mcp", self.config.port)
    }

    /// The MCP endpoint of one plugin.
    pub(crate) fn plugin_url(&self, plugin: &str) -> String {
        format!("{}/{plugin}", self.url())
    }

    /// The address of its own metrics.
    pub(crate) fn metrics_authority(&self) -> String {
        format!("127.0.0.1:{}", self.config.metrics_port)
    }

    /// Its own metrics.
    pub(crate) async fn metrics(&self) -> Exposition {
        let client = plain_http().build().unwrap();
        let response = client.get(format!("http://{}/metrics", self.metrics_authority())).send().await.unwrap();
        Exposition::parse(&response.error_for_status().unwrap().text().await.unwrap())
    }

    /// A path in its folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.config.path(name)
    }

    /// Its folder: config, policies and spool.
    pub(crate) fn folder(&self) -> &Path {
        self.config.folder.path()
    }

    /// An anonymous client of all plugins.
    pub(crate) async fn client(&self) -> Mcp {
        Mcp::connect(&self.url(), HeaderMap::new()).await
    }

    /// An anonymous client of one plugin.
    pub(crate) async fn plugin_client(&self, plugin: &str) -> Mcp {
        Mcp::connect(&self.plugin_url(plugin), HeaderMap::new()).await
    }

    /// All it has logged, over all its starts.
    pub(crate) fn logs(&self) -> String {
        self.program.logs()
    }

    /// Starts the process and waits until it answers HTTP, whatever it answers.
    pub(crate) async fn start(&mut self) {
        self.program.spawn(&mut self.config.command());
        let client = plain_http().build().unwrap();
        let url = self.url();
        self.program.ready(START, async || client.post(&url).send().await.is_ok()).await;
    }

    /// Waits until so many plugins have become ready, as the log says. A call waits for its plugin by itself; a list of
    /// all plugins leaves out one that is not ready within a few seconds, and what a tool is called is not known before.
    pub(crate) async fn plugins_ready(&self, enough: usize) {
        eventually(&format!("{enough} plugins to be ready"), START, async || {
            (self.logs().matches("the plugin is ready").count() >= enough).then_some(())
        })
        .await;
    }

    /// Writes the settings as they are now, for a gateway that reads some of them while it runs.
    pub(crate) fn rewrite(&self) {
        drop(self.config.command());
    }

    /// Changes the settings that the next start reads.
    pub(crate) fn reconfigure(&mut self, settings: Value) {
        merge(&mut self.config.settings, settings);
    }

    /// Ends it at once, as `kill -9` does.
    pub(crate) fn kill(&mut self) {
        self.program.kill();
    }

    /// Asks it to stop by SIGTERM and waits until it has drained.
    pub(crate) async fn stop(&mut self) -> ExitStatus {
        self.program.terminate();
        self.program.ended().await
    }

    /// Whether the process is alive.
    pub(crate) fn alive(&mut self) -> bool {
        self.program.alive()
    }

    /// Bytes of memory resident now.
    pub(crate) fn resident_bytes(&self) -> u64 {
        self.program.resident_bytes()
    }
}
