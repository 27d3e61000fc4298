//! Durable ingest over HTTP, as fast as it goes, at 1, 8 and 64 connections.
//!
//! A new control plane with its defaults for each run, so that no run pays for another's flushes. Every acknowledgement
//! counted here was given after an fsync. The rate is what the load generator saw acknowledged. The server's processor
//! time is taken from before the load until the last sample lies in the tables, so "a core" includes rollups, encoding
//! and commits, and not only what was done before the acknowledgement.

use std::time::Duration;

use serde_json::json;

use super::Result;
use super::figures::readable;
use super::load::{Load, Outcome, Until};
use super::options::Options;
use super::report::{Budget, Finding, say};
use super::server::Home;

/// How long each run lasts.
const PERIOD: Duration = Duration::from_secs(10);
const CONNECTIONS: [u32; 3] = [1, 8, 64];
/// Samples a batch: what a busy gateway collects in a second.
const ARROW_BATCH: u32 = 5_000;
const NDJSON_BATCH: u32 = 1_000;
/// The share of what one core encodes that Arrow batches should reach.
const SHARE_OF_ENCODE: f64 = 0.7;
/// NDJSON samples a second, for each core that the server takes.
const NDJSON_PER_CORE: f64 = 250_000.0;

/// Measures it; `encode_limit` in samples a second.
///
/// # Errors
/// When a server does not start or a batch is not acknowledged.
pub(crate) async fn measure(options: &Options, encode_limit: Option<f64>) -> Result<Vec<Finding>> {
    let encode_limit = encode_limit.ok_or("the encode limit could not be measured, and a budget is a share of it")?;
    let mut findings = Vec::new();
    for connections in CONNECTIONS {
        let run = Run::of(options, "arrow", connections, ARROW_BATCH).await?;
        let rate = run.outcome.samples_per_second;
        let note = format!("{} % of the encode limit; {}", readable(100.0 * rate / encode_limit), run.note());
        let what = format!("durable ingest over HTTP, Arrow, {}", plural(connections));
        let budget = Budget::AtLeast(SHARE_OF_ENCODE * encode_limit);
        findings.push(Finding::new("ingest", what, rate, "samples/s").budget(budget).note(note).detail(run.detail()));
    }
    for connections in CONNECTIONS {
        let run = Run::of(options, "ndjson", connections, NDJSON_BATCH).await?;
        let note = format!("{} samples/s; {}", readable(run.outcome.samples_per_second), run.note());
        let what = format!("durable ingest over HTTP, NDJSON, {}, for each core of the server", plural(connections));
        let budget = Budget::AtLeast(NDJSON_PER_CORE);
        let finding = Finding::new("ingest", what, run.per_core(), "samples/s");
        findings.push(finding.budget(budget).note(note).detail(run.detail()));
    }
    Ok(findings)
}

fn plural(connections: u32) -> String {
    if connections == 1 { "1 connection".to_owned() } else { format!("{connections} connections") }
}

struct Run {
    connections: u32,
    batch: u32,
    outcome: Outcome,
    /// Processor time of the server while the load lasted, and until all was flushed; seconds.
    loaded_cpu: f64,
    whole_cpu: f64,
    refusals: f64,
}

impl Run {
    async fn of(options: &Options, format: &'static str, connections: u32, batch: u32) -> Result<Self> {
        say(&format!("ingest: {format}, {}", plural(connections)));
        let home = Home::new("")?;
        let server = home.start().await?;
        let until = Until::Elapsed(options.period(PERIOD));
        let idle_cpu = server.cpu_seconds()?;
        let outcome = Load { format, connections, batch, rate: None, until }.run(server.url()).await?;
        let loaded_cpu = server.cpu_seconds()? - idle_cpu;
        server.flushed().await?;
        let whole_cpu = server.cpu_seconds()? - idle_cpu;
        let stored = server.number("SELECT count(*) FROM tool_invocations").await?;
        if stored != outcome.samples {
            return Err(format!("{} samples were acknowledged and {stored} are stored", outcome.samples).into());
        }
        let refusals = server.metric("mcpg_cp_buffer_refusals_total").await?;
        server.kill().await?;
        Ok(Self { connections, batch, outcome, loaded_cpu, whole_cpu, refusals })
    }

    /// Samples that a core of the server brings into the tables in a second.
    fn per_core(&self) -> f64 {
        self.outcome.samples as f64 / self.whole_cpu
    }

    fn note(&self) -> String {
        let Outcome { seconds, ack_p50_ms, ack_p99_ms, generator_cpu_seconds, retries, .. } = &self.outcome;
        format!(
            "acknowledged in {} ms p50, {} ms p99; batches of {}, {} sent again; server on {} cores ({} samples/s a core, flushing \
             included), load generator on {}",
            readable(*ack_p50_ms),
            readable(*ack_p99_ms),
            readable(f64::from(self.batch)),
            readable(*retries as f64),
            readable(self.loaded_cpu / seconds),
            readable(self.per_core()),
            readable(generator_cpu_seconds / seconds)
        )
    }

    fn detail(&self) -> serde_json::Value {
        json!({
            "connections": self.connections, "batch": self.batch, "load": self.outcome, "server_cpu_seconds_under_load": self.loaded_cpu,
            "server_cpu_seconds_until_flushed": self.whole_cpu, "samples_per_server_core_second": self.per_core(),
            "refused_for_memory": self.refusals,
        })
    }
}
