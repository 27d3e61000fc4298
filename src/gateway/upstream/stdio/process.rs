//! A child process and all that it starts: they form a process group, and end together.
//!
//! The child gets the environment that a program needs to run (a fixed list of variables) and what its plugin
//! configures, never the gateway's own: that holds tokens which are no plugin's business. Its standard error is not
//! read: it may say anything, payloads included, and the gateway's log must not (invariant I6).
//!
//! `command` is often a launcher (`npx`, `uvx`, a shell script) whose server outlives it. So the group is what is
//! ended: its input is closed, which tells a server to stop; what has not ended soon gets SIGTERM, then SIGKILL.
//! Dropped by a panic, the group is killed; a gateway that is killed with -9 leaves it with a closed input. A process
//! that makes a session of its own (`setsid`) is out of reach.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::{Instant, sleep, timeout};

use crate::gateway::upstream::UpstreamError;

/// Variables of the gateway's environment that a child gets.
const INHERITED: [&str; 15] = [
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "TERM",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
    "TMPDIR",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "SSL_CERT_FILE",
];

/// How long a child may take to end once its input is closed, and what is left of its group once it got SIGTERM.
const EXIT_TIMEOUT: Duration = Duration::from_secs(2);
const TERM_TIMEOUT: Duration = Duration::from_secs(1);

/// How often it is looked whether the group is empty.
const POLL: Duration = Duration::from_millis(20);

/// A running child process and its process group.
pub(super) struct Process {
    child: Child,
    /// Its group, as long as it may hold anything.
    group: Option<Pid>,
}

impl Process {
    /// Starts the program. `command` says which, with its arguments, folder and configured variables.
    pub(super) fn start(mut command: Command) -> Result<(Self, ChildStdin, ChildStdout), UpstreamError> {
        let configured: Vec<_> = command
            .as_std()
            .get_envs()
            .filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())))
            .collect();
        command.env_clear();
        for name in INHERITED {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command.envs(configured);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        // A Ctrl-C on the terminal is the gateway's, which then ends its children in order.
        command.process_group(0).kill_on_drop(true);
        let mut child = command.spawn().map_err(|_| UpstreamError::Unreachable)?;
        let group = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        let pipes = (child.stdin.take(), child.stdout.take());
        let process = Self { child, group };
        match pipes {
            (Some(input), Some(output)) => Ok((process, input, output)),
            _ => Err(UpstreamError::Unreachable),
        }
    }

    /// Waits until the child itself, which may be a launcher, has ended. Can be dropped and called again.
    pub(super) async fn exited(&mut self) -> Option<ExitStatus> {
        self.child.wait().await.ok()
    }

    /// Ends all of it. Its input is closed by now.
    pub(super) async fn end(mut self) {
        let exited = timeout(EXIT_TIMEOUT, self.child.wait()).await.is_ok();
        if exited && self.is_empty() {
            return;
        }
        self.signal(Signal::TERM);
        let deadline = Instant::now() + TERM_TIMEOUT;
        while Instant::now() < deadline {
            // Reaps the child, so that the group can become empty.
            let exited = matches!(self.child.try_wait(), Ok(Some(_)));
            if exited && self.is_empty() {
                return;
            }
            sleep(POLL).await;
        }
        self.signal(Signal::KILL);
        if timeout(TERM_TIMEOUT, self.child.wait()).await.is_err() {
            tracing::warn!("a child process could not be ended");
        }
        self.group = None;
    }

    /// Whether nothing is left in the group, once the child itself was waited for. The number of a group with anything
    /// in it is not given to another; of an empty one it is not asked again.
    fn is_empty(&mut self) -> bool {
        let empty = self.group.is_none_or(|group| test_kill_process_group(group).is_err());
        if empty {
            self.group = None;
        }
        empty
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = self.group {
            // Ignore the error: the group has ended by itself.
            let _ = kill_process_group(group, signal);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustix::process::Pid;
    use tokio::io::{AsyncBufReadExt, BufReader};
    use tokio::process::Command;

    use super::Process;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    /// Whether a process of the group runs. One that was not waited for yet does not.
    fn runs(group: Pid) -> bool {
        let group = group.as_raw_nonzero().to_string();
        std::fs::read_dir("/proc").unwrap().flatten().any(|process| {
            let stat = std::fs::read_to_string(process.path().join("stat")).unwrap_or_default();
            // Behind the name, which may hold anything: state, parent, group.
            let mut fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
            let (state, of) = (fields.next(), fields.nth(1));
            of == Some(&*group) && state != Some("Z")
        })
    }

    async fn gone(group: Pid) {
        for _ in 0..3_000 {
            if !runs(group) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("a process of the group lives on");
    }

    #[tokio::test]
    async fn what_a_launcher_started_ends_with_it() {
        // The launcher ends at once; what it started ignores its input's end, and SIGTERM.
        for script in ["sleep 1000 & exit", "trap '' TERM; (trap '' TERM; sleep 1000) & sleep 1000", "sleep 1000"] {
            let (process, input, output) = Process::start(shell(script)).unwrap();
            let group = process.group.unwrap();
            while !runs(group) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            drop((input, output));
            process.end().await;
            gone(group).await;
        }
    }

    #[tokio::test]
    async fn a_dropped_process_is_killed_with_its_group() {
        let (process, _input, _output) = Process::start(shell("sleep 1000 & sleep 1000")).unwrap();
        let group = process.group.unwrap();
        drop(process);
        gone(group).await;
    }

    #[tokio::test]
    async fn a_child_sees_its_own_variables_and_none_of_the_gateways() {
        // CARGO is set wherever tests run; it stands for a secret of the gateway's environment.
        let mut command = shell("echo \"[$OWN][$CARGO]\"");
        command.env("OWN", "mine");
        let (process, _input, output) = Process::start(command).unwrap();
        let line = BufReader::new(output).lines().next_line().await.unwrap();
        assert_eq!(line.as_deref(), Some("[mine][]"));
        process.end().await;
    }

    #[test]
    fn a_program_that_does_not_exist_is_an_error() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let started = runtime.block_on(async { Process::start(Command::new("/nowhere/at-all")) });
        assert!(started.is_err());
    }
}
