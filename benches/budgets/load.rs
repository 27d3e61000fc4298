//! Load by the program's own load generator, in a process of its own, so that its processor time is separate from the
//! server's.

use std::process::Stdio;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::process::Command;

use super::Result;
use super::process::ended_children_cpu_seconds;

/// A load to put on a server.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    /// `arrow`, `ndjson` or `json`.
    pub(crate) format: &'static str,
    /// Connections that send at a time.
    pub(crate) connections: u32,
    /// Samples a batch.
    pub(crate) batch: u32,
    /// Samples a second; none: as fast as they are acknowledged.
    pub(crate) rate: Option<u32>,
    /// When to stop.
    pub(crate) until: Until,
}

/// When a load ends.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Until {
    /// After a time.
    Elapsed(Duration),
    /// After a number of samples.
    Sent(u64),
}

/// What came of a load.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
pub(crate) struct Outcome {
    /// Samples acknowledged.
    pub(crate) samples: u64,
    /// Samples acknowledged a second.
    pub(crate) samples_per_second: f64,
    /// Seconds from the first sending to the last acknowledgement.
    pub(crate) seconds: f64,
    /// Time until a batch was acknowledged: median, ms.
    pub(crate) ack_p50_ms: f64,
    /// The same, 99th percentile.
    pub(crate) ack_p99_ms: f64,
    /// Attempts beyond the first.
    pub(crate) retries: u64,
    failed_batches: u64,
    first_failure: Option<String>,
    /// Processor time of the load generator, seconds.
    #[serde(default)]
    pub(crate) generator_cpu_seconds: f64,
}

impl Load {
    /// Runs it against the server at `url`, to its end. No other child process may end meanwhile.
    ///
    /// # Errors
    /// When a batch was never acknowledged, or the load generator fails.
    pub(crate) async fn run(&self, url: &str) -> Result<Outcome> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mcpg"));
        command.args(["loadgen", "--json", "--org", "default", "--url", url, "--format", self.format]);
        command.args(["--connections", &self.connections.to_string(), "--batch", &self.batch.to_string()]);
        command.args(["--rate", &self.rate.unwrap_or(0).to_string()]);
        match self.until {
            Until::Elapsed(time) => command.args(["--duration", &time.as_secs_f64().to_string()]),
            Until::Sent(samples) => command.args(["--total", &samples.to_string()]),
        };
        let before = ended_children_cpu_seconds()?;
        let output = command.env_remove("MCPG_TOKEN").stdin(Stdio::null()).kill_on_drop(true).output().await?;
        let generator_cpu_seconds = ended_children_cpu_seconds()? - before;
        let complaint = || String::from_utf8_lossy(&output.stderr).into_owned();
        let outcome: Outcome = serde_json::from_slice(&output.stdout)
            .map_err(|error| format!("the load generator ended with {}, {error}: {}", output.status, complaint()))?;
        match &outcome.first_failure {
            Some(why) => Err(format!("{} batches were never acknowledged: {why}", outcome.failed_batches).into()),
            None if !output.status.success() => {
                Err(format!("the load generator ended with {}: {}", output.status, complaint()).into())
            }
            None => Ok(Outcome { generator_cpu_seconds, ..outcome }),
        }
    }
}
