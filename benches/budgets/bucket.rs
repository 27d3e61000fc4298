//! What an org costs in a bucket: requests and bytes of a day, from counted ones.
//!
//! A control plane with its defaults on SeaweedFS, behind a proxy that counts. *Busy* is a batch of 10 samples and one
//! of 10 audit events a second; *idle* is an org of which nothing comes. What the node asks whether orgs are busy or
//! not, such as whether the log has grown, is counted by itself and taken off.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use tempfile::TempDir;
use tokio::time::{Instant, interval, sleep};

use super::Result;
use super::figures::{mib, readable};
use super::options::Options;
use super::report::{Budget, Finding, say};
use super::s3::{Count, Remote};
use super::samples::{one, one_event};
use super::server::{Home, Server};

/// How long each state is counted: several flushes, segments and checkpoints.
const PERIOD: Duration = Duration::from_secs(180);
/// What a start, a first flush and the last of a load still write comes before what is counted.
const SETTLE: Duration = Duration::from_secs(75);
const DAY: f64 = 86_400.0;
const IDLE_ORGS: usize = 20;

/// Measures it.
///
/// # Errors
/// When the server does not start or refuses a batch.
pub(crate) async fn measure(options: &Options) -> Result<Vec<Finding>> {
    let remote = Remote::start(Duration::ZERO).await?;
    let folder = TempDir::with_prefix("mcpg-budgets-key-")?;
    let orgs: Vec<_> = (0..=IDLE_ORGS).map(|org| format!("{{ name: org-{org} }}")).collect();
    let yaml = format!("orgs: [{}]", orgs.join(", "));
    let home = Home::sharing(&remote.storage("prod"), &folder.path().join("ledger.key"), &yaml)?;
    let server = home.start().await?;
    let (period, settle) = (options.period(PERIOD), options.period(SETTLE));
    say("bucket: a node without a loaded org");
    sleep(settle).await;
    remote.take();
    sleep(period).await;
    let alone = remote.take();
    say(&format!("bucket: {IDLE_ORGS} idle orgs"));
    for org in 1..=IDLE_ORGS {
        send(&server, &format!("org-{org}"), 0).await?;
    }
    sleep(settle).await;
    remote.take();
    sleep(period).await;
    let idle = remote.take();
    say("bucket: a busy org");
    remote.take();
    let (began, mut second, mut sent) = (Instant::now(), interval(Duration::from_secs(1)), 0);
    while began.elapsed() < period {
        second.tick().await;
        send(&server, "org-0", sent).await?;
        sent += 1;
    }
    // What was sent in that time, however late it is stored.
    sleep(settle).await;
    let busy = remote.take();
    server.kill().await?;
    let days = period.as_secs_f64() / DAY;
    let settled = (period + settle).as_secs_f64() / period.as_secs_f64();
    let over = |counts: &BTreeMap<String, Count>, share: f64, orgs: f64| {
        (sum(counts).requests as f64 - share * sum(&alone).requests as f64) / days / orgs
    };
    let note = |counts: &BTreeMap<String, Count>| {
        let mut text = String::new();
        for (kind, count) in counts {
            // Writing to a string cannot fail.
            let _ = write!(text, "{kind} {}; ", readable(count.requests as f64));
        }
        format!(
            "{text}{} MiB sent, {} MiB received, in {} s",
            readable(mib(sum(counts).sent)),
            readable(mib(sum(counts).received)),
            readable(period.as_secs_f64())
        )
    };
    let each_idle = over(&idle, 1.0, IDLE_ORGS as f64).max(0.0);
    let finding = |what: &str, value: f64, unit, counts: &BTreeMap<String, Count>| {
        Finding::new("bucket", what, value, unit).note(note(counts)).detail(json!({ "kinds": kinds(counts) }))
    };
    let bytes = mib(sum(&busy).sent) / days;
    Ok(vec![
        finding("requests a day of a node without a loaded org", sum(&alone).requests as f64 / days, "", &alone),
        finding("requests an idle org and day, beside the node's", each_idle, "", &idle).budget(Budget::AtMost(0.0)),
        finding("requests a busy org and day, beside the node's", over(&busy, settled, 1.0), "", &busy),
        finding("written for a busy org and day", bytes, "MiB", &busy),
    ])
}

fn sum(counts: &BTreeMap<String, Count>) -> Count {
    counts.values().fold(Count::default(), |sum, count| Count {
        requests: sum.requests + count.requests,
        sent: sum.sent + count.sent,
        received: sum.received + count.received,
    })
}

fn kinds(counts: &BTreeMap<String, Count>) -> BTreeMap<&str, [u64; 3]> {
    counts.iter().map(|(kind, count)| (kind.as_str(), [count.requests, count.sent, count.received])).collect()
}

async fn send(server: &Server, org: &str, number: u64) -> Result<()> {
    for (resource, body) in [("invocations", lines(one)), ("audit", lines(one_event))] {
        server.poster(org, resource).post("application/x-ndjson", &format!("{resource}-{number}"), body).await?;
    }
    Ok(())
}

/// Ten of these.
fn lines(one: fn() -> serde_json::Value) -> Bytes {
    let mut body = String::new();
    for _ in 0..10 {
        // Writing to a string cannot fail.
        let _ = writeln!(body, "{}", one());
    }
    body.into()
}
