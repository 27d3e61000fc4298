//! The control plane as a child process.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::{Client, Program, Shim, free_port, mcpg, replace};

/// How long a start may take before it is a failure: it holds the replay of what the test wrote.
const START: Duration = Duration::from_secs(90);

/// How long a drain of many orgs may take on a busy machine.
const LONG_DRAIN: Duration = Duration::from_secs(240);

/// What a control plane is started with. Its port stays the same over restarts.
#[derive(Debug)]
pub(crate) struct Config {
    port: u16,
    storage: PathBuf,
    /// The setting `storage`, where that is not the folder.
    bucket: Option<String>,
    extra: String,
    token: Option<String>,
    environment: Vec<(&'static str, OsString)>,
    folder: TempDir,
}

impl Config {
    /// A control plane on a folder of its own.
    pub(crate) fn new() -> Self {
        let folder = TempDir::with_prefix("mcpg-it-").unwrap();
        let storage = folder.path().join("store");
        let environment = Vec::new();
        Self { port: free_port(), storage, bucket: None, extra: String::new(), token: None, environment, folder }
    }

    /// Where it will be reached.
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The same, on a store that is there already or is shared.
    pub(crate) fn on(storage: &Path) -> Self {
        Self { storage: storage.to_owned(), ..Self::new() }
    }

    /// The same on a bucket, which the setting `storage` names; see [`super::s3::Bucket::yaml`].
    pub(crate) fn on_bucket(self, storage: &str) -> Self {
        Self { bucket: Some(storage.to_owned()), ..self }
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

    /// Has its file-system calls go through a shim.
    pub(crate) fn shim(self, shim: &Shim) -> Self {
        self.environment(shim.environment())
    }

    /// Adds variables to its environment.
    pub(crate) fn environment(mut self, variables: Vec<(&'static str, OsString)>) -> Self {
        self.environment.extend(variables);
        self
    }

    /// Starts it and waits until it is ready.
    pub(crate) async fn start(self) -> Server {
        let mut server = self.server();
        server.start().await;
        server
    }

    /// One that has not been started.
    pub(crate) fn server(self) -> Server {
        Server { program: Program::new("the control plane"), config: self }
    }
}

/// How a start went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Started {
    /// It serves.
    Ready,
    /// It refused to start.
    Ended(ExitStatus),
    /// It runs, and is not ready.
    Waits,
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

    /// Starts the process and waits until it is ready, has ended by itself, or neither after `patience`.
    pub(crate) async fn try_start(&mut self, patience: Duration) -> Started {
        self.spawn();
        let began = Instant::now();
        let client = self.client();
        loop {
            if client.ready().await.is_some() {
                return Started::Ready;
            }
            if !self.alive() {
                return Started::Ended(self.ended().await);
            }
            if began.elapsed() > patience {
                return Started::Waits;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Puts these variables in the environment of the next start, in place of those before.
    pub(crate) fn set_environment(&mut self, variables: Vec<(&'static str, OsString)>) {
        self.config.environment = variables;
    }

    /// Starts the process, and does not wait.
    pub(crate) fn spawn(&mut self) {
        let file = self.rewrite();
        let mut command = mcpg();
        command.args(["control-plane", "--config"]).arg(&file).current_dir(self.config.folder.path());
        command.envs(self.config.environment.iter().map(|(name, value)| (name, value)));
        self.program.spawn(command.env("RUST_BACKTRACE", "1"));
    }

    /// Writes the config file as it is to be, under a process that may run.
    pub(crate) fn rewrite(&self) -> PathBuf {
        let file = self.config.folder.path().join("control-plane.yaml");
        let (port, extra) = (self.config.port, &self.config.extra);
        let folder = || format!("{{ url: \"file://{}\" }}", self.config.storage.display());
        let storage = self.config.bucket.clone().unwrap_or_else(folder);
        replace(&file, format!("listen: 127.0.0.1:{port}\nstorage: {storage}\n{extra}").as_bytes());
        file
    }

    /// Ends it at once, as `kill -9` does.
    pub(crate) fn kill(&mut self) {
        self.program.kill();
    }

    /// Stops the process where it is, as SIGSTOP does.
    pub(crate) fn pause(&self) {
        self.program.pause();
    }

    /// Lets it go on.
    pub(crate) fn resume(&self) {
        self.program.resume();
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

    /// Asks it to stop by SIGTERM and waits until it has ended, with everything flushed or not.
    pub(crate) async fn stop_however_long(&mut self) -> ExitStatus {
        self.terminate();
        self.program.ended_within(LONG_DRAIN).await
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
