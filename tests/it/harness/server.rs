//! The control plane as a child process.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use tempfile::TempDir;

use super::{Client, Program, free_port, mcpg};

/// How long a start may take before it is a failure: it holds the replay of what the test wrote.
const START: Duration = Duration::from_secs(90);

/// What a control plane is started with. Its port stays the same over restarts.
#[derive(Debug)]
pub(crate) struct Config {
    port: u16,
    storage: PathBuf,
    extra: String,
    token: Option<String>,
    folder: TempDir,
}

impl Config {
    /// A control plane on a folder of its own.
    pub(crate) fn new() -> Self {
        let folder = TempDir::with_prefix("mcpg-it-").unwrap();
        let storage = folder.path().join("store");
        Self { port: free_port(), storage, extra: String::new(), token: None, folder }
    }

    /// The same, on a store that is there already or is shared.
    pub(crate) fn on(storage: &Path) -> Self {
        Self { storage: storage.to_owned(), ..Self::new() }
    }

    /// Adds lines of YAML to the config file.
    pub(crate) fn with(mut self, yaml: &str) -> Self {
        writeln!(self.extra, "{yaml}").unwrap();
        self
    }

    /// The token that the harness itself asks with.
    pub(crate) fn token(mut self, token: &str) -> Self {
        self.token = Some(token.to_owned());
        self
    }

    /// Starts it and waits until it is ready.
    pub(crate) async fn start(self) -> Server {
        let mut server = Server { program: Program::new("the control plane"), config: self };
        server.start().await;
        server
    }
}

/// A control plane that runs, or that was stopped and may be started again on the same folder and port.
#[derive(Debug)]
pub(crate) struct Server {
    program: Program,
    config: Config,
}

impl Server {
    /// Its base URL.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.authority())
    }

    /// Its address, as Prometheus takes it for a target.
    pub(crate) fn authority(&self) -> String {
        format!("127.0.0.1:{}", self.config.port)
    }

    /// The folder of its store.
    pub(crate) fn storage(&self) -> &Path {
        &self.config.storage
    }

    /// All it has logged, over all its starts.
    pub(crate) fn logs(&self) -> String {
        self.program.logs()
    }

    /// A client of the org `default`.
    pub(crate) fn client(&self) -> Client {
        let client = Client::new(&self.url());
        match &self.config.token {
            Some(token) => client.with_token(token),
            None => client,
        }
    }

    /// Puts these lines of YAML in the config file in place of those before; the next start reads it.
    pub(crate) fn reconfigure(&mut self, lines: &[&str]) {
        self.config.extra = lines.join("\n") + "\n";
    }

    /// Starts the process and waits until it is ready to serve.
    pub(crate) async fn start(&mut self) {
        self.spawn();
        let client = self.client();
        self.program.ready(START, async || client.ready().await.is_some()).await;
    }

    /// Starts the process, and does not wait.
    pub(crate) fn spawn(&mut self) {
        let file = self.config.folder.path().join("control-plane.yaml");
        let (port, storage, extra) = (self.config.port, self.config.storage.display(), &self.config.extra);
        std::fs::write(&file, format!("listen: 127.0.0.1:{port}\nstorage: {{ url: \"file://{storage}\" }}\n{extra}"))
            .unwrap();
        let mut command = mcpg();
        command.args(["control-plane", "--config"]).arg(&file).current_dir(self.config.folder.path());
        self.program.spawn(command.env("RUST_BACKTRACE", "1"));
    }

    /// Ends it at once, as `kill -9` does.
    pub(crate) fn kill(&mut self) {
        self.program.kill();
    }

    /// Sends SIGTERM.
    pub(crate) fn terminate(&self) {
        self.program.terminate();
    }

    /// Asks it to stop by SIGTERM and waits until it has drained.
    pub(crate) async fn stop(&mut self) -> ExitStatus {
        self.terminate();
        self.ended().await
    }

    /// Waits until it has ended by itself.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
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
