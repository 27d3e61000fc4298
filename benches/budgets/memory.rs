//! Resident memory of the control plane at 50,000 samples a second for a minute, with its defaults.

use std::time::Duration;

use serde_json::json;
use tokio::time::sleep;

use super::Result;
use super::figures::{median, mib, readable};
use super::load::{Load, Outcome, Until};
use super::options::Options;
use super::report::{Budget, Finding, say};
use super::server::{Home, Server};

/// Samples a second.
const RATE: u32 = 50_000;
const BATCH: u32 = 1_000;
const PERIOD: Duration = Duration::from_secs(60);
/// How often the resident memory is looked at, beside the kernel's own account of the peak.
const LOOK: Duration = Duration::from_millis(200);
/// Under 1 GiB.
const LIMIT_MIB: f64 = 1024.0;

/// Measures it.
///
/// # Errors
/// When the server does not start or a batch is not acknowledged.
pub(crate) async fn measure(options: &Options) -> Result<Vec<Finding>> {
    Ok(vec![run(options, "arrow", "Arrow").await?, run(options, "ndjson", "NDJSON").await?])
}

/// Waits for a load, and looks at the server's resident memory meanwhile, MiB.
async fn watched(server: &Server, load: impl Future<Output = Result<Outcome>>) -> Result<(Outcome, Vec<f64>)> {
    let mut load = std::pin::pin!(load);
    let mut resident = Vec::new();
    loop {
        tokio::select! {
            outcome = &mut load => return Ok((outcome?, resident)),
            () = sleep(LOOK) => resident.push(mib(server.memory()?.resident)),
        }
    }
}

async fn run(options: &Options, format: &'static str, name: &str) -> Result<Finding> {
    let period = options.period(PERIOD);
    say(&format!("memory: {format} for {} s", period.as_secs()));
    let home = Home::new("")?;
    let server = home.start().await?;
    let idle = server.memory()?.resident;
    let load = Load { format, connections: 8, batch: BATCH, rate: Some(RATE), until: Until::Elapsed(period) };
    let (outcome, resident) = watched(&server, load.run(server.url())).await?;
    server.flushed().await?;
    let peak = mib(server.memory()?.peak);
    server.kill().await?;
    let note = format!(
        "median {} MiB, {} MiB before the load; {} samples/s for {} s; acknowledged in {} ms p50, {} ms p99; {} batches sent again",
        readable(median(&resident)),
        readable(mib(idle)),
        readable(outcome.samples_per_second),
        readable(outcome.seconds),
        readable(outcome.ack_p50_ms),
        readable(outcome.ack_p99_ms),
        readable(outcome.retries as f64)
    );
    let finding = Finding::new("memory", format!("peak resident memory at 50,000 samples/s, {name}"), peak, "MiB")
        .budget(Budget::AtMost(LIMIT_MIB))
        .note(note)
        .detail(json!({ "load": outcome, "resident_mib_every_200_ms": resident }));
    // A load that fell behind its rate is not the load that the budget is for.
    let kept_up = outcome.samples_per_second >= 0.98 * f64::from(RATE);
    Ok(if kept_up {
        finding
    } else {
        finding.only(format!("at {} samples/s only", readable(outcome.samples_per_second)))
    })
}
