//! A start with 100, 1,000 and 10,000 orgs, each of which has samples, a ledger and a state: from starting the process
//! until the first request of an org is answered, and the memory that an org takes which nobody asks for.

use std::fmt::Write as _;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Result;
use super::figures::{ms, readable};
use super::options::Options;
use super::report::{Budget, Finding, say};
use super::samples::{one, one_event};
use super::server::Home;

const ORGS: [u64; 3] = [100, 1_000, 10_000];
const SENDERS: u64 = 16;
const SECONDS: f64 = 10.0;
const BYTES_AN_IDLE_ORG: f64 = 2_048.0;

/// Measures it.
///
/// # Errors
/// When a server does not start, or lacks what was sent.
pub(crate) async fn measure(options: &Options) -> Result<Vec<Finding>> {
    let (mut findings, mut least) = (Vec::new(), None);
    for whole in ORGS {
        let orgs = options.count(whole);
        say(&format!("start: {orgs} orgs"));
        let home = Home::new(&settings(orgs))?;
        fill(&home, orgs).await?;
        let began = Instant::now();
        let server = home.start().await?;
        let ready = ms(server.ready_after);
        let answer = server.text(&format!("/v1/orgs/org-{}/metrics", orgs - 1)).await?;
        let took = began.elapsed().as_secs_f64();
        if !answer.contains("mcpg_tool_calls_total") {
            return Err(format!("org-{} has lost its samples over a restart", orgs - 1).into());
        }
        let resident = server.memory()?.resident;
        server.kill().await?;
        let (few, base) = *least.get_or_insert((orgs, resident));
        let mut finding =
            Finding::new("start", format!("first request answered after a start, {whole} orgs"), took, "s");
        let mut note = format!("{orgs} orgs; ready after {} ms", readable(ready));
        if whole == 10_000 {
            finding = finding.budget(Budget::AtMost(SECONDS));
        }
        if orgs > few {
            let each = resident.saturating_sub(base) as f64 / (orgs - few) as f64;
            // Writing to a string cannot fail.
            let _ = write!(note, "; {} MiB resident", readable(super::figures::mib(resident)));
            let what = format!("memory of an idle org, of {whole}");
            let idle = Finding::new("start", what, each, "B").note(format!("above a start with {few} orgs"));
            findings.push(if whole == 10_000 { idle.budget(Budget::AtMost(BYTES_AN_IDLE_ORG)) } else { idle });
        }
        findings.push(finding.note(note).detail(json!({ "orgs": orgs, "ready_ms": ready, "resident": resident })));
    }
    Ok(findings)
}

fn settings(orgs: u64) -> String {
    let mut yaml = "orgs:\n".to_owned();
    for org in 0..orgs {
        let _ = writeln!(yaml, "  - {{ name: org-{org} }}");
    }
    yaml
}

/// Gives each org a sample and an audit event, and has all of it flushed.
async fn fill(home: &Home, orgs: u64) -> Result<()> {
    let server = Arc::new(home.start().await?);
    let mut senders = JoinSet::new();
    for lane in 0..SENDERS {
        let (server, sample, event) = (Arc::clone(&server), one().to_string(), one_event().to_string());
        senders.spawn(async move {
            for org in (lane..orgs).step_by(SENDERS as usize) {
                for (resource, body) in [("invocations", &sample), ("audit", &event)] {
                    let poster = server.poster(&format!("org-{org}"), resource);
                    poster.post("application/x-ndjson", resource, Bytes::from(body.clone())).await?;
                }
            }
            Ok::<_, super::Error>(())
        });
    }
    while let Some(sent) = senders.join_next().await {
        sent??;
    }
    Arc::into_inner(server).ok_or("a sender has not ended")?.drain().await
}
