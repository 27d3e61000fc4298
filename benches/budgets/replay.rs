//! How long a restart takes after kill -9 with a million samples acknowledged and none flushed.
//!
//! From starting the process until `/readyz` says 200. The flush is put off so far that the million lies in the log
//! alone, which no server with its defaults lets happen; the same start on an empty store says what of the time is no
//! replay.

use serde_json::json;

use super::Result;
use super::figures::{median, mib, ms, readable};
use super::load::{Load, Until};
use super::options::Options;
use super::report::{Finding, say};
use super::server::{Home, folder_bytes};

const SAMPLES: u64 = 1_000_000;
const BATCH: u32 = 1_000;
/// Restarts, each after a kill -9.
const RESTARTS: usize = 5;
/// A flush comes by time, number, bytes, or when half of the memory for samples is taken: none of them may happen here.
const NO_FLUSH: &str =
    "flush: { interval: 1h, max_rows: 100000000, max_bytes: 64GiB }\nlimits: { buffer_bytes: 64GiB }";

/// Measures it.
///
/// # Errors
/// When the server does not start, or has lost a sample or flushed one.
pub(crate) async fn measure(options: &Options) -> Result<Vec<Finding>> {
    let home = Home::new(NO_FLUSH)?;
    let mut server = home.start().await?;
    let empty = ms(server.ready_after);
    let samples = options.count(SAMPLES);
    say(&format!("replay: {samples} samples"));
    let load = Load { format: "arrow", connections: 8, batch: BATCH, rate: None, until: Until::Sent(samples) };
    let sent = load.run(server.url()).await?.samples;
    let (mut times, mut objects) = (Vec::new(), 0.0);
    for restart in 1..=RESTARTS {
        if server.metric("mcpg_cp_flush_rows_total").await? > 0.0 {
            return Err("samples were flushed, so there is less to replay".into());
        }
        server.kill().await?;
        server = home.start().await?;
        times.push(ms(server.ready_after));
        objects = server.metric("mcpg_cp_replay_objects").await?;
        let stored = server.number("SELECT count(*) FROM tool_invocations").await?;
        if stored != sent {
            return Err(
                format!("{sent} samples were acknowledged and {stored} are there after restart {restart}").into()
            );
        }
    }
    let log = folder_bytes(&home.store().join("wal"))?;
    let resident = server.memory()?.resident;
    server.kill().await?;
    let per_million = (median(&times) - empty).max(0.0) * 1e6 / sent as f64 / 1e3;
    let note = format!(
        "{} samples in {} objects, {} MiB of log; ready after {} ms, on an empty store after {} ms; {} MiB resident afterwards",
        readable(sent as f64),
        readable(objects),
        readable(mib(log)),
        readable(median(&times)),
        readable(empty),
        readable(mib(resident))
    );
    let detail = json!({ "samples": sent, "objects": objects, "log_bytes": log, "ready_ms": times, "ready_on_empty_store_ms": empty });
    Ok(vec![
        Finding::new("replay", "replay after kill -9, a million samples", per_million, "s").note(note).detail(detail),
    ])
}
