//! A collector: a real receiver of OTLP, over gRPC or HTTP, plain or over TLS, which tells what it took.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tempfile::TempDir;

use super::{Program, eventually, free_port, python_command};

/// How long a start may take, and spans to arrive, before it is a failure.
const PATIENCE: Duration = Duration::from_secs(60);

/// The collector.
#[derive(Debug)]
pub(crate) struct Collector {
    program: Program,
    port: u16,
    /// Where its certificates are, where it is spoken to over TLS.
    certificates: Option<TempDir>,
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

/// A point of a metric that it took.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Point {
    pub(crate) metric: String,
    /// A histogram's is how many it counts.
    pub(crate) value: f64,
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
    /// One that is spoken to over gRPC. Starts it and waits until it takes what it is sent.
    pub(crate) async fn start() -> Self {
        Self::plain("grpc").await
    }

    /// One that is spoken to by `protocol`, as the configuration names it.
    pub(crate) async fn plain(protocol: &str) -> Self {
        Self::run(protocol, None).await
    }

    /// The same over TLS, with a certificate of an authority of its own.
    pub(crate) async fn over_tls(protocol: &str) -> Self {
        Self::run(protocol, Some(TempDir::with_prefix("mcpg-collector-").unwrap())).await
    }

    async fn run(protocol: &str, certificates: Option<TempDir>) -> Self {
        let mut collector = Self { program: Program::new("the collector"), port: free_port(), certificates };
        let mut command = python_command("otlp_sink.py");
        command.arg(collector.port.to_string()).arg(protocol);
        command.args(collector.certificates.as_ref().map(TempDir::path));
        collector.program.spawn(&mut command);
        // It prints `ready` once it listens.
        eventually("the collector to listen", PATIENCE, async || {
            collector.program.logs().contains("ready").then_some(())
        })
        .await;
        collector
    }

    /// The file with the authority of its certificate.
    pub(crate) fn authority_file(&self) -> PathBuf {
        self.certificates.as_ref().unwrap().path().join("ca.pem")
    }

    /// Host and port.
    pub(crate) fn authority(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Its endpoint for OTLP.
    pub(crate) fn endpoint(&self) -> String {
        let scheme = if self.certificates.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.authority())
    }

    fn told<T: DeserializeOwned>(&self, begin: &str) -> Vec<T> {
        let logs = self.program.logs();
        logs.lines().filter(|line| line.starts_with(begin)).map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// All spans so far.
    pub(crate) fn spans(&self) -> Vec<Span> {
        self.told("{\"trace\"")
    }

    /// All points of metrics so far.
    pub(crate) fn points(&self) -> Vec<Point> {
        self.told("{\"metric\"")
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
