//! Stored bytes a sample once a table is a day old: flushed every ten seconds of a clock that the bench moves, merged every
//! minute of it, as it is by default, then left alone until what was merged may be deleted. The whole folder of the org
//! counts: tables, Delta's log, states.
//!
//! At ten samples a second it is a whole day. At more it is as many hours as can be had in minutes: files of a flush are
//! larger then and those of a day full, so that hours more change little.

use std::time::Duration;

use chrono::TimeDelta;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::Result;
use super::clock::{MovedClock, next_day};
use super::figures::readable;
use super::options::Options;
use super::report::{Budget, Finding, say};
use super::samples::{ARROW, GATEWAYS, SEED, arrow_stream};
use super::server::{Home, Server, folder_bytes};

/// Samples a second, and how many flushes of ten seconds each.
const SIZES: [(u64, u64); 4] = [(10, 8_640), (100, 2_160), (1_000, 720), (50_000, 12)];
/// Seconds from one flush to the next, and flushes from one look at the tables to the next.
const FLUSH: i64 = 10;
const FLUSHES_A_LOOK: u64 = 6;
/// Samples of a body at most.
const BODY_ROWS: u64 = 10_000;
/// How often it is asked whether a flush is over.
const POLL: Duration = Duration::from_millis(5);
const PATIENCE: Duration = Duration::from_secs(180);
const BYTES_A_SAMPLE: f64 = 80.0;

/// Measures it.
///
/// # Errors
/// When a server does not start, refuses samples or does not flush them.
pub(crate) async fn measure(options: &Options) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for (rate, flushes) in SIZES {
        findings.push(one(rate, options.count(flushes), flushes).await?);
    }
    Ok(findings)
}

/// Waits until so many samples were written to tables.
///
/// # Errors
/// When that takes too long.
pub(crate) async fn written(server: &Server, samples: u64) -> Result<()> {
    let began = Instant::now();
    while server.metric("mcpg_cp_flush_rows_total").await? < samples as f64 {
        if began.elapsed() > PATIENCE {
            return Err("samples are not flushed in time".into());
        }
        sleep(POLL).await;
    }
    Ok(())
}

async fn one(rate: u64, flushes: u64, whole: u64) -> Result<Finding> {
    say(&format!("aged: {rate} samples/s, {flushes} flushes"));
    let rows = rate * FLUSH.unsigned_abs();
    let bodies = rows.div_ceil(BODY_ROWS);
    // A flush is due as soon as all that ten seconds bring is there.
    let interval = if bodies > 1 { "1h" } else { "160ms" };
    let settings = format!("flush: {{ interval: {interval}, max_rows: {rows} }}\nmaintenance: {{ interval: 1h }}");
    let (clock, begins, home) = (MovedClock::new()?, next_day(), Home::new(&settings)?);
    clock.set(begins)?;
    let server = home.start_in(&clock.environment()).await?;
    let mut fleet = mcpg::demo::Fleet::new(SEED, GATEWAYS);
    let (mut now, mut upkeep) = (begins, 0.0);
    for flush in 0..flushes {
        let from = now;
        now = from + TimeDelta::seconds(FLUSH);
        clock.set(now)?;
        for body in 0..bodies {
            let gateway = ((flush * bodies + body) % GATEWAYS as u64) as usize;
            let batch = fleet.batch(gateway, from, now, usize::try_from(rows / bodies)?)?;
            server.post("default", ARROW, &format!("{flush}-{body}"), arrow_stream(&batch)?).await?;
        }
        written(&server, (flush + 1) * (rows / bodies) * bodies).await?;
        if flush % FLUSHES_A_LOOK == FLUSHES_A_LOOK - 1 {
            upkeep += server.compact("default").await?;
        }
        if flush % 1_000 == 999 {
            say(&format!("… {} of {flushes} flushes", flush + 1));
        }
    }
    let samples = flushes * (rows / bodies) * bodies;
    let org = home.store().join("orgs/default");
    let at_the_end = folder_bytes(&org)?;
    // Two hours after its end a day is merged, a day later its parts are deleted, by a node that looks for them anew.
    clock.set(begins + TimeDelta::hours(27))?;
    upkeep += server.compact("default").await?;
    let merged = server.json("/v1/orgs/default/storage").await?;
    server.drain().await?;
    clock.set(begins + TimeDelta::hours(52))?;
    let server = home.start_in(&clock.environment()).await?;
    upkeep += server.compact("default").await?;
    let count = server.number("SELECT count(*) FROM tool_invocations").await?;
    if count != samples {
        return Err(format!("{samples} samples were sent, and {count} are there").into());
    }
    server.drain().await?;
    let bytes = folder_bytes(&org)?;
    let files = |table: &str| merged.pointer(&format!("/tables/{table}/files")).and_then(Value::as_u64);
    let samples_files = files("tool_invocations").unwrap_or_default();
    let hours = (flushes * FLUSH.unsigned_abs()) as f64 / 3_600.0;
    let finding = Finding::new("aged", format!("stored bytes a sample, aged, {rate} samples/s"), bytes as f64 / samples as f64, "bytes")
        .budget(Budget::AtMost(BYTES_A_SAMPLE))
        .note(format!(
            "{samples} samples of {} h in {flushes} flushes; {} bytes a sample before what was merged is deleted; {samples_files} files of samples; \
             upkeep {} CPU s a million samples",
            readable(hours),
            readable(at_the_end as f64 / samples as f64),
            readable(upkeep / samples as f64 * 1e6),
        ))
        .detail(json!({ "samples": samples, "flushes": flushes, "bytes": bytes, "bytes_at_the_end": at_the_end, "merged": merged, "upkeep_cpu_seconds": upkeep }));
    Ok(if whole == 8_640 { finding } else { finding.only(format!("over {} h", readable(hours))) })
}
