//! Child processes: found, started, listened to, and ended by their own id.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// The lines that a child wrote so far, on both of its streams.
#[derive(Debug, Clone, Default)]
pub(crate) struct Logs {
    lines: Arc<Mutex<Vec<String>>>,
    /// Streams that have not ended.
    open: Arc<AtomicUsize>,
}

impl Logs {
    /// Reads a stream of the child until it ends, on a thread of its own.
    pub(crate) fn follow(&self, stream: impl Read + Send + 'static) {
        let (lines, open) = (Arc::clone(&self.lines), Arc::clone(&self.open));
        open.fetch_add(1, Ordering::SeqCst);
        std::thread::spawn(move || {
            for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
                lines.lock().unwrap().push(String::from_utf8_lossy(&line).into_owned());
            }
            open.fetch_sub(1, Ordering::SeqCst);
        });
    }

    /// Whether every stream was read to its end: the last lines of a child that has ended come a moment later.
    pub(crate) fn are_whole(&self) -> bool {
        self.open.load(Ordering::SeqCst) == 0
    }

    /// All lines so far.
    pub(crate) fn text(&self) -> String {
        self.lines.lock().unwrap().join("\n")
    }

    /// The last lines, for a failure's message.
    pub(crate) fn tail(&self) -> String {
        let lines = self.lines.lock().unwrap();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

/// A loopback port that nothing listens on, from below the range that outgoing connections take theirs from.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let base = 20_000 + u16::try_from(std::process::id() % 97).unwrap() * 100;
    (0..2_000)
        .map(|_| base + NEXT.fetch_add(1, Ordering::Relaxed) % 2_000)
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("no free port on loopback")
}

/// The program under test: the one of this build, or the one that `MCPG_TEST_BINARY` names (a release build, say).
pub(crate) fn mcpg() -> Command {
    Command::new(std::env::var_os("MCPG_TEST_BINARY").unwrap_or_else(|| env!("CARGO_BIN_EXE_mcpg").into()))
}

/// Writes a file in one step: a process that follows it finds what was there before or all of what is new.
pub(crate) fn replace(file: &Path, bytes: &[u8]) {
    let new = file.with_extension("new");
    std::fs::write(&new, bytes).unwrap();
    std::fs::rename(new, file).unwrap();
}

/// The path of a program the tests need.
pub(crate) fn tool(name: &str) -> PathBuf {
    let path = std::env::var("PATH").unwrap_or_default();
    std::env::split_paths(&format!("{path}:/usr/sbin:/sbin"))
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
        .unwrap_or_else(|| panic!("{name} is not installed: run `make test` or tests/setup.sh"))
}

/// Runs a command to its end.
pub(crate) fn run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{command:?}: {e}"))
}

/// Runs a command to its end, with `input` on its standard input.
pub(crate) fn run_with_input(command: &mut Command, input: &[u8]) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // A child that reads nothing breaks the pipe: its answer is what the test looks at.
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}
