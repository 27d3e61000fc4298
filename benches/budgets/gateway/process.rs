//! The gateway under measurement: the real program as a child process.

use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::super::process::{self, Memory};
use super::super::{Error, Result};

const PATIENCE: Duration = Duration::from_secs(60);

/// A gateway that runs; its folder is removed when it is dropped.
#[derive(Debug)]
pub(super) struct Gateway {
    child: Child,
    url: String,
    folder: TempDir,
}

impl Gateway {
    /// Starts it and waits until it serves.
    ///
    /// # Errors
    /// When it ends, or does not serve in time.
    pub(super) async fn start(settings: &Value) -> Result<Self> {
        let folder = TempDir::with_prefix("mcpg-budgets-")?;
        std::fs::write(folder.path().join("gateway.yaml"), settings.to_string())?;
        let mut child = Command::new(env!("CARGO_BIN_EXE_mcpg"))
            .args(["gateway", "--config", "gateway.yaml"])
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(folder.path().join("log"))?)
            .kill_on_drop(true)
            .spawn()?;
        let stdout = child.stdout.take().ok_or("no standard output")?;
        let mut lines = BufReader::new(stdout).lines();
        let url = loop {
            let line = timeout(PATIENCE, lines.next_line()).await??.ok_or_else(|| complaint(&folder))?;
            if let Some(url) = line.trim().strip_prefix("listening on ") {
                // Of the one plugin, whose tools have their own names there.
                break format!("{url}/bench");
            }
        };
        Ok(Self { child, url, folder })
    }

    /// The MCP endpoint of the plugin.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Seconds of processor time it took so far.
    ///
    /// # Errors
    /// When it has ended.
    pub(super) fn cpu_seconds(&self) -> Result<f64> {
        process::cpu_seconds(self.pid()?)
    }

    /// The memory it holds.
    ///
    /// # Errors
    /// When it has ended.
    pub(super) fn memory(&self) -> Result<Memory> {
        process::memory(self.pid()?)
    }

    /// Ends it at once.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub(super) async fn kill(mut self) -> Result<()> {
        Ok(self.child.kill().await?)
    }

    fn pid(&self) -> Result<u32> {
        self.child.id().ok_or_else(|| complaint(&self.folder))
    }
}

/// That it ended, with the last lines of its log.
fn complaint(folder: &TempDir) -> Error {
    let log = std::fs::read_to_string(folder.path().join("log")).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    let tail = lines.get(lines.len().saturating_sub(10)..).unwrap_or_default().join("\n");
    format!("the gateway ended; its log ends with\n{tail}").into()
}
