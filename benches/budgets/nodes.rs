//! Batches acknowledged a second, and how long each takes, with one, two and three nodes on one store: on a folder, and
//! in a bucket whose service takes 30 ms longer for each request.
//!
//! Each node has a load generator of its own: 16 connections that send batches of 100 samples, as fast as they are
//! acknowledged. All share two cores with the nodes and the bucket's service, so a third node adds what it adds on such
//! a machine, and no more.

use std::path::Path;
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;

use super::Result;
use super::figures::readable;
use super::load::{Load, Outcome, Until};
use super::options::Options;
use super::report::{Finding, say};
use super::s3::Remote;
use super::server::{Home, Server};

const NODES: [usize; 3] = [1, 2, 3];
const CONNECTIONS: u32 = 16;
const BATCH: u32 = 100;
const PERIOD: Duration = Duration::from_secs(15);
/// What a remote store takes for a request.
const DELAY: Duration = Duration::from_millis(30);

/// Measures it.
///
/// # Errors
/// When a node does not start, a batch is not acknowledged, or nodes differ in what they have.
pub(crate) async fn measure(options: &Options) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for count in NODES {
        let folder = TempDir::with_prefix("mcpg-budgets-store-")?;
        let storage = format!("{{ url: \"file://{}\" }}", folder.path().join("store").display());
        findings.push(run(options, count, &storage, folder.path(), "a folder").await?);
    }
    let remote = Remote::start(DELAY).await?;
    for count in NODES {
        let folder = TempDir::with_prefix("mcpg-budgets-key-")?;
        let what = format!("a bucket at {} ms a request", DELAY.as_millis());
        let finding = run(options, count, &remote.storage(&format!("nodes-{count}")), folder.path(), &what).await?;
        let requests: u64 = remote.take().values().map(|count| count.requests).sum();
        findings.push(finding.also(format!("{} requests in all", readable(requests as f64))));
    }
    Ok(findings)
}

async fn run(options: &Options, count: usize, storage: &str, folder: &Path, where_to: &str) -> Result<Finding> {
    let what =
        format!("batches acknowledged a second, {count} {} on {where_to}", if count == 1 { "node" } else { "nodes" });
    say(&format!("nodes: {what}"));
    let mut homes = Vec::new();
    let mut nodes: Vec<Server> = Vec::new();
    for _ in 0..count {
        let home = Home::sharing(storage, &folder.join("ledger.key"), "")?;
        nodes.push(home.start().await?);
        homes.push(home);
    }
    let until = Until::Elapsed(options.period(PERIOD));
    let load = Load { format: "arrow", connections: CONNECTIONS, batch: BATCH, rate: None, until };
    let runs = nodes.iter().map(|node| load.run(node.url()));
    let outcomes: Vec<Outcome> = futures::future::try_join_all(runs).await?;
    let sent: u64 = outcomes.iter().map(|outcome| outcome.samples).sum();
    for node in &nodes {
        let found = node.number("SELECT count(*) FROM tool_invocations").await?;
        if found != sent {
            return Err(format!("{sent} samples were acknowledged, and a node has {found}").into());
        }
    }
    for node in nodes {
        node.kill().await?;
    }
    let rate: f64 = outcomes.iter().map(|outcome| outcome.samples_per_second).sum::<f64>() / f64::from(BATCH);
    let worst = |of: fn(&Outcome) -> f64| outcomes.iter().map(of).fold(0.0, f64::max);
    let note = format!(
        "acknowledged in {} ms p50, {} ms p99, at the slowest node; {CONNECTIONS} connections a node, batches of {BATCH}",
        readable(worst(|outcome| outcome.ack_p50_ms)),
        readable(worst(|outcome| outcome.ack_p99_ms)),
    );
    Ok(Finding::new("nodes", what, rate, "batches/s").note(note).detail(json!({ "nodes": count, "load": outcomes })))
}
