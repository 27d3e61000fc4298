//! The control plane as a child process.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::{Client, Logs, eventually, free_port, mcpg};

/// How long a start may take before it is a failure: it holds the replay of what the test wrote.
const START: Duration = Duration::from_secs(90);
/// How long a drain may take before it is a failure.
const DRAIN: Duration = Duration::from_secs(60);

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
        let mut server = Server { logs: Logs::default(), child: None, config: self };
        server.start().await;
        server
    }
}

/// A control plane that runs, or that was stopped and may be started again on the same folder and port.
#[derive(Debug)]
pub(crate) struct Server {
    config: Config,
    child: Option<Child>,
    logs: Logs,
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
        self.logs.text()
    }

    /// A client of the org `default`.
    pub(crate) fn client(&self) -> Client {
        let client = Client::new(&self.url());
        match &self.config.token {
            Some(token) => client.with_token(token),
            None => client,
        }
    }

    /// Starts the process and waits until it is ready to serve.
    pub(crate) async fn start(&mut self) {
        self.spawn();
        let client = self.client();
        let began = std::time::Instant::now();
        while client.ready().await.is_none() {
            if let Some(status) = self.child.as_mut().unwrap().try_wait().unwrap() {
                panic!("the control plane ended with {status} while starting:\n{}", self.logs.tail());
            }
            assert!(began.elapsed() < START, "not ready after {} s:\n{}", START.as_secs(), self.logs.tail());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Starts the process, and does not wait.
    pub(crate) fn spawn(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        let file = self.config.folder.path().join("control-plane.yaml");
        let (port, storage, extra) = (self.config.port, self.config.storage.display(), &self.config.extra);
        std::fs::write(&file, format!("listen: 127.0.0.1:{port}\nstorage: {{ url: \"file://{storage}\" }}\n{extra}"))
            .unwrap();
        let mut child = mcpg()
            .args(["control-plane", "--config"])
            .arg(&file)
            .current_dir(self.config.folder.path())
            .env("RUST_BACKTRACE", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        self.logs.follow(child.stdout.take().unwrap());
        self.logs.follow(child.stderr.take().unwrap());
        self.child = Some(child);
    }

    /// Ends it at once, as `kill -9` does.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().expect("it does not run");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Sends SIGTERM.
    pub(crate) fn terminate(&self) {
        let status = Command::new("kill").args(["-TERM", &self.pid().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// Asks it to stop by SIGTERM and waits until it has drained.
    pub(crate) async fn stop(&mut self) -> ExitStatus {
        self.terminate();
        self.ended().await
    }

    /// Waits until it has ended by itself.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let status =
            eventually("the control plane to end", DRAIN, async || self.child.as_mut().unwrap().try_wait().unwrap());
        let status = status.await;
        self.child = None;
        status
    }

    /// Whether the process is alive.
    pub(crate) fn alive(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_none())
    }

    /// Bytes of memory resident now.
    pub(crate) fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    fn pid(&self) -> u32 {
        self.child.as_ref().expect("it does not run").id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.kill());
            drop(child.wait());
        }
        if std::thread::panicking() {
            eprintln!("--- the control plane's last lines ---\n{}", self.logs.tail());
        }
    }
}
