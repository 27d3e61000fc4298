//! A collector of traces: a real receiver of OTLP over gRPC, which tells what it took.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Program, eventually, free_port, python_command};

/// How long a start may take, and spans to arrive, before it is a failure.
const PATIENCE: Duration = Duration::from_secs(30);

/// The collector.
#[derive(Debug)]
pub(crate) struct Collector {
    program: Program,
    port: u16,
}

/// A span that it took. Ids are hex; there is no parent where `parent` is empty.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Span {
    pub(crate) trace: String,
    pub(crate) span: String,
    pub(crate) parent: String,
    pub(crate) name: String,
    /// `SERVER`, `CLIENT`, `INTERNAL`.
    pub(crate) kind: String,
    /// `UNSET`, `OK`, `ERROR`.
    pub(crate) status: String,
    /// The spans that it links to.
    pub(crate) links: Vec<String>,
    pub(crate) attributes: Map<String, Value>,
    /// The attributes of who sent it.
    pub(crate) emitter: Map<String, Value>,
    /// The `authorization` that it was sent with.
    pub(crate) authorization: Option<String>,
}

impl Span {
    /// Who made it.
    pub(crate) fn service(&self) -> &str {
        self.emitter["service.name"].as_str().unwrap()
    }
}

impl Collector {
    /// Starts it and waits until it takes spans.
    pub(crate) async fn start() -> Self {
        let mut collector = Self { program: Program::new("the collector"), port: free_port() };
        collector.program.spawn(python_command("otlp_sink.py").arg(collector.port.to_string()));
        // It prints `ready` once it listens.
        eventually("the collector to listen", PATIENCE, async || {
            collector.program.logs().contains("ready").then_some(())
        })
        .await;
        collector
    }

    /// Host and port.
    pub(crate) fn authority(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Its endpoint for OTLP over gRPC.
    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.authority())
    }

    /// All spans so far.
    pub(crate) fn spans(&self) -> Vec<Span> {
        let logs = self.program.logs();
        logs.lines().filter(|line| line.starts_with('{')).map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// All spans, once there are enough of those that match.
    pub(crate) async fn spans_with(&self, what: &str, enough: usize, matches: impl Fn(&Span) -> bool) -> Vec<Span> {
        eventually(what, PATIENCE, async || {
            let spans = self.spans();
            (spans.iter().filter(|span| matches(span)).count() >= enough).then_some(spans)
        })
        .await
    }
}
