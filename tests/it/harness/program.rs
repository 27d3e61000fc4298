//! A program that a test starts, listens to, looks at and ends: by its own id, and in any case when the test is over.

use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::{Logs, eventually};

/// How long a drain may take before it is a failure: longer than the program gives itself, so that it says why.
const DRAIN: Duration = Duration::from_secs(150);

/// How long its last lines may take to be read once it has ended.
const LAST_LINES: Duration = Duration::from_secs(10);

/// A child process, or the place of one that has not started yet or has ended.
#[derive(Debug)]
pub(crate) struct Program {
    name: &'static str,
    child: Option<Child>,
    logs: Logs,
}

impl Program {
    /// The place of a program, by the name that failures call it.
    pub(crate) fn new(name: &'static str) -> Self {
        Self { name, child: None, logs: Logs::default() }
    }

    /// All it wrote, over all its starts.
    pub(crate) fn logs(&self) -> String {
        self.logs.text()
    }

    /// Starts it, and does not wait.
    pub(crate) fn spawn(&mut self, command: &mut Command) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        let piped = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = piped.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        self.logs.follow(child.stdout.take().unwrap());
        self.logs.follow(child.stderr.take().unwrap());
        self.child = Some(child);
    }

    /// Waits until it is ready; fails if it ends before, or after `patience`.
    pub(crate) async fn ready(&mut self, patience: Duration, mut ready: impl AsyncFnMut() -> bool) {
        let began = Instant::now();
        while !ready().await {
            if let Some(status) = self.child.as_mut().unwrap().try_wait().unwrap() {
                panic!("{} ended with {status} while starting:\n{}", self.name, self.logs.tail());
            }
            let waited = began.elapsed();
            assert!(waited < patience, "{} is not ready after {waited:?}:\n{}", self.name, self.logs.tail());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Ends it at once, as `kill -9` does.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().unwrap_or_else(|| panic!("{} does not run", self.name));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Sends SIGTERM.
    pub(crate) fn terminate(&self) {
        self.signal("-TERM");
    }

    /// Sends SIGINT, as Ctrl-C on a terminal does.
    pub(crate) fn interrupt(&self) {
        self.signal("-INT");
    }

    /// Sends SIGSTOP.
    pub(crate) fn pause(&self) {
        self.signal("-STOP");
    }

    /// Sends SIGCONT.
    pub(crate) fn resume(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").args([name, &self.pid().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// Waits until it has ended by itself.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        self.ended_within(DRAIN).await
    }

    /// Waits until it has ended by itself, and all that it wrote was read; fails after `patience`.
    pub(crate) async fn ended_within(&mut self, patience: Duration) -> ExitStatus {
        let what = format!("{} to end", self.name);
        let status = eventually(&what, patience, async || self.child.as_mut().unwrap().try_wait().unwrap()).await;
        self.child = None;
        // Children of its own may have its streams, and outlive it.
        let ended = Instant::now();
        while !self.logs.are_whole() && ended.elapsed() < LAST_LINES {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
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

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().unwrap_or_else(|| panic!("{} does not run", self.name)).id()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.kill());
            drop(child.wait());
        }
        if std::thread::panicking() {
            eprintln!("--- the last lines of {} ---\n{}", self.name, self.logs.tail());
        }
    }
}
