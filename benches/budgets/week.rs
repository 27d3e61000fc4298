//! A week of fifty orgs of three sizes, by a clock that the bench moves: live files, stored bytes a sample, Delta's log,
//! memory, and the processor time that keeping the tables takes.
//!
//! Each org is flushed every half hour of that week in place of every ten seconds, since a week of those are three
//! million flushes: what one org's day of them comes to is the section `aged`.

use std::fmt::Write as _;
use std::path::Path;

use chrono::TimeDelta;
use futures::future::try_join_all;
use serde_json::{Value, json};

use super::Result;
use super::aged::written;
use super::clock::{MovedClock, next_day};
use super::figures::{mib, readable};
use super::options::Options;
use super::report::{Budget, Finding, say};
use super::samples::{ARROW, GATEWAYS, SEED, arrow_stream};
use super::server::{Home, Server, folder_bytes};

/// Of each size its name, how many orgs have it, and samples of a flush.
const SIZES: [Size; 3] = [
    Size { name: "small", orgs: 30, rows: 1 },
    Size { name: "medium", orgs: 15, rows: 40 },
    Size { name: "large", orgs: 5, rows: 2_000 },
];
const FLUSHES_A_DAY: u64 = 48;
const DAYS: u64 = 7;
/// Flushes from one look at the tables to the next.
const FLUSHES_A_LOOK: u64 = 2;
const TABLES: [&str; 3] = ["tool_invocations", "tool_usage_hourly", "tool_usage_daily"];
const FILES_A_DAY: f64 = 12.0;

struct Size {
    name: &'static str,
    orgs: u64,
    rows: u64,
}

impl Size {
    fn names(&self) -> impl Iterator<Item = String> + use<'_> {
        (0..self.orgs).map(|org| format!("{}-{org}", self.name))
    }
}

/// Measures it.
///
/// # Errors
/// When a server does not start, refuses samples or does not flush them.
pub(crate) async fn measure(options: &Options) -> Result<Vec<Finding>> {
    let flushes = options.count(FLUSHES_A_DAY * DAYS);
    let days = flushes.div_ceil(FLUSHES_A_DAY);
    let mut settings = "flush: { interval: 160ms, max_rows: 1 }\nmaintenance: { interval: 1h }\norgs:\n".to_owned();
    for name in SIZES.iter().flat_map(Size::names) {
        let _ = writeln!(settings, "  - {{ name: {name} }}");
    }
    let (clock, begins, home) = (MovedClock::new()?, next_day(), Home::new(&settings)?);
    clock.set(begins)?;
    let server = home.start_in(&clock.environment()).await?;
    let mut fleet = mcpg::demo::Fleet::new(SEED, GATEWAYS);
    let (mut now, mut sent, mut upkeep, mut resident) = (begins, 0, [0.0; SIZES.len()], Vec::new());
    for flush in 0..flushes {
        let from = now;
        now = from + TimeDelta::days(1) / i32::try_from(FLUSHES_A_DAY)?;
        clock.set(now)?;
        let mut posts = Vec::new();
        for size in &SIZES {
            for name in size.names() {
                let batch = fleet.batch((flush % GATEWAYS as u64) as usize, from, now, usize::try_from(size.rows)?)?;
                let (poster, body) = (server.poster(&name, "invocations"), arrow_stream(&batch)?);
                posts.push(async move { poster.post(ARROW, &flush.to_string(), body).await });
                sent += size.rows;
            }
        }
        try_join_all(posts).await?;
        written(&server, sent).await?;
        if flush % FLUSHES_A_LOOK == FLUSHES_A_LOOK - 1 {
            look_after(&server, &mut upkeep).await?;
        }
        if flush % FLUSHES_A_DAY == FLUSHES_A_DAY - 1 {
            resident.push(mib(server.memory()?.resident));
            say(&format!("… {} of {days} days", flush / FLUSHES_A_DAY + 1));
        }
    }
    clock.set(now + TimeDelta::hours(3))?;
    look_after(&server, &mut upkeep).await?;
    let mut most = (0.0, String::new());
    for name in SIZES.iter().flat_map(Size::names) {
        let storage = server.json(&format!("/v1/orgs/{name}/storage")).await?;
        let files = |table: &&str| storage.pointer(&format!("/tables/{table}/files")).and_then(Value::as_u64);
        let a_day = TABLES.iter().filter_map(files).sum::<u64>() as f64 / days as f64;
        if a_day > most.0 {
            most = (a_day, name);
        }
    }
    server.drain().await?;
    clock.set(now + TimeDelta::hours(28))?;
    let server = home.start_in(&clock.environment()).await?;
    look_after(&server, &mut upkeep).await?;
    server.drain().await?;

    let all: Vec<String> = resident.iter().map(|mib| readable(*mib)).collect();
    let detail = json!({ "resident_mib_by_day": resident, "samples": sent, "flushes_an_org": flushes });
    let files = Finding::new("week", "live files an org and day, at most of 50 orgs", most.0, "files");
    let note = format!("all tables of {}; resident MiB day by day: {}", most.1, all.join(", "));
    let mut findings = vec![files.budget(Budget::AtMost(FILES_A_DAY)).note(note).detail(detail)];
    for (size, upkeep) in SIZES.iter().zip(upkeep) {
        let (mut bytes, mut log) = (0, 0);
        for name in size.names() {
            let org = home.store().join("orgs").join(&name);
            bytes += folder_bytes(&org)?;
            log += files_of(&org.join("tool_invocations/_delta_log"))?;
        }
        let samples = (size.orgs * size.rows * flushes) as f64;
        let what = format!("stored bytes a sample after a week, {} orgs ({} samples a flush)", size.name, size.rows);
        let note = format!("{} files in Delta's log of samples, an org", readable(log as f64 / size.orgs as f64));
        findings.push(Finding::new("week", what, bytes as f64 / samples, "bytes").note(note));
        let what = format!("upkeep of a {} org's week, processor time", size.name);
        let note = format!("{} s a million samples", readable(upkeep / samples * 1e6));
        findings.push(Finding::new("week", what, upkeep / size.orgs as f64, "s").note(note));
    }
    Ok(findings)
}

/// Has the tables of all orgs looked after, and adds the processor time that it took, by size.
async fn look_after(server: &Server, upkeep: &mut [f64; SIZES.len()]) -> Result<()> {
    for (size, upkeep) in SIZES.iter().zip(upkeep) {
        for name in size.names() {
            *upkeep += server.compact(&name).await?;
        }
    }
    Ok(())
}

fn files_of(folder: &Path) -> Result<usize> {
    Ok(std::fs::read_dir(folder)?.count())
}
