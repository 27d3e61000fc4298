//! What happened in a life, line by line, each at its virtual time: what a failure is printed with, and what two runs
//! of one seed are compared by.

use std::fmt::Write as _;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use tracing_subscriber::fmt::MakeWriter;

#[derive(Debug, Clone)]
struct Line {
    at: u64,
    text: String,
    /// Whether it is the program's own log, which may hold what is of no consequence.
    is_log: bool,
}

/// The trace of a life; clones write to the same one.
#[derive(Debug, Clone, Default)]
pub(super) struct Trace(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    lines: Vec<Line>,
    now: u64,
}

impl Trace {
    pub(super) fn tell(&self, at: u64, text: String) {
        let mut inner = self.0.lock();
        inner.now = at;
        inner.lines.push(Line { at, text, is_log: false });
    }

    /// The lines that must be the same each time. Of one millisecond, in alphabetical order: what a library does on
    /// threads of its own is done at no exact moment of it.
    pub(super) fn canonical(&self) -> Vec<String> {
        let inner = self.0.lock();
        let mut lines: Vec<_> =
            inner.lines.iter().filter(|line| !line.is_log).map(|line| (line.at, &line.text)).collect();
        lines.sort();
        lines.into_iter().map(|(at, text)| format!("{} {text}", time(at))).collect()
    }

    /// All lines, in the order in which they were noted.
    pub(super) fn print(&self) -> String {
        let mut out = String::new();
        for line in &self.0.lock().lines {
            let _ = writeln!(out, "{} {}", time(line.at), line.text);
        }
        out
    }
}

fn time(at: u64) -> String {
    format!("{:>6}.{:03}", at / 1_000, at % 1_000)
}

impl io::Write for Trace {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut inner = self.0.lock();
        let text = format!("  log: {}", String::from_utf8_lossy(bytes).trim_end());
        let at = inner.now;
        inner.lines.push(Line { at, text, is_log: true });
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Trace {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}
