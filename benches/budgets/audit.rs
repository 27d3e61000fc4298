//! The audit ledger: what it takes in, what that costs on the store, how fast it is verified, and how fast a proof is
//! given.
//!
//! The ledger is made by posting events over HTTP to a control plane with its defaults, as gateways do: NDJSON in
//! batches of a thousand, nearly every column filled, from this process to another one on the same machine. It is
//! sealed when a signed head covers the last of them. Everything after is measured on that ledger, which a whole run
//! makes ten million entries long.

use std::fmt::Write as _;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::Result;
use super::figures::{mib, ms, quantile, readable};
use super::options::Options;
use super::process::ended_children_cpu_seconds;
use super::report::{Budget, Finding, say};
use super::server::{Home, Server, folder_bytes};

const ENTRIES: u64 = 10_000_000;
const BATCH: u64 = 1_000;
const CONNECTIONS: u64 = 8;
/// Bodies that are made beforehand and sent again and again: the control plane gives each event an id and a salt of its
/// own.
const BODIES: u64 = 32;
const PROOFS: u64 = 500;
const ORGS: u64 = 1_000;
/// How long a head may be waited for.
const PATIENCE: Duration = Duration::from_secs(300);
const APPEND_PER_CORE: f64 = 200_000.0;
const VERIFY_PER_CORE: f64 = 500_000.0;

/// Measures it.
///
/// # Errors
/// When a server does not start, refuses an event for good, or a ledger is not sound.
pub(crate) async fn measure(options: &Options) -> Result<Vec<Finding>> {
    let home = Home::new("")?;
    let server = home.start().await?;
    let entries = options.count(ENTRIES).next_multiple_of(BATCH * CONNECTIONS);
    let mut findings = vec![append(&server, entries).await?];
    findings.push(proofs(&server, options.count(PROOFS), entries).await?);
    let vkey = server.text("/v1/orgs/default/audit/vkey").await?.trim().to_owned();
    server.drain().await?;
    findings.push(stored_bytes(&home)?);
    findings.extend(verify(&home, &vkey).await?);
    findings.push(many_orgs(options.count(ORGS)).await?);
    Ok(findings)
}

/// A body of events as gateways send them.
fn body(number: u64) -> Bytes {
    let mut text = String::new();
    for n in number * BATCH..(number + 1) * BATCH {
        let event = json!({
            "occurred_at": format!("2026-10-01T10:{:02}:{:02}.{:06}Z", n / 60_000 % 60, n / 1_000 % 60, n * 997 % 1_000_000),
            "actor": format!("user:person{:03}@acme", n % 500), "action": if n % 20 == 0 { "tool.deny" } else { "tool.permit" },
            "target": format!("github/list_things_{}", n % 300), "decision": if n % 20 == 0 { "deny" } else { "permit" },
            "policy_ids": [format!("policy-{}", n % 9)], "workspace": "prod", "instance": format!("gw-{}", n % 4),
            "request_id": format!("req-{n:010}"), "trace_id": format!("{:032x}", u128::from(n + 1) * 0x9e37_79b9_7f4a_7c15_f39c),
            "span_id": format!("{:016x}", (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            "invocation_id": format!("01933b7e-0000-7000-8000-{n:012x}"), "emitter_seq": n,
            "detail": { "tool": "list_things", "arguments_bytes": n % 4_000 },
        });
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{event}");
    }
    text.into()
}

async fn append(server: &Server, entries: u64) -> Result<Finding> {
    say(&format!("audit: {} events", readable(entries as f64)));
    let bodies: Arc<Vec<Bytes>> = Arc::new((0..BODIES).map(body).collect());
    let (idle_cpu, began, next) = (server.cpu_seconds()?, Instant::now(), Arc::new(AtomicU64::new(0)));
    let mut senders = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let (poster, bodies, next) = (server.poster("default", "audit"), Arc::clone(&bodies), Arc::clone(&next));
        senders.spawn(async move {
            let mut times = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number * BATCH >= entries {
                    return Ok::<_, super::Error>(times);
                }
                let body = bodies.get((number % BODIES) as usize).cloned().unwrap_or_default();
                let sent = Instant::now();
                poster.post("application/x-ndjson", &format!("bench-{number}"), body).await?;
                times.push(ms(sent.elapsed()));
            }
        });
    }
    let mut times = Vec::new();
    while let Some(sent) = senders.join_next().await {
        times.extend(sent??);
    }
    let acknowledged = began.elapsed().as_secs_f64();
    sealed(server, "default", entries).await?;
    let (seconds, cpu) = (began.elapsed().as_secs_f64(), server.cpu_seconds()? - idle_cpu);
    let per_core = entries as f64 / cpu;
    let note = format!(
        "{} events; {}/s acknowledged, {}/s until a head covered the last; acknowledged in {} ms p50, {} ms p99; server on {} cores; {} \
         connections, batches of {}, NDJSON; {} MiB resident",
        readable(entries as f64),
        readable(entries as f64 / acknowledged),
        readable(entries as f64 / seconds),
        readable(quantile(&times, 0.5)),
        readable(quantile(&times, 0.99)),
        readable(cpu / seconds),
        CONNECTIONS,
        readable(BATCH as f64),
        readable(mib(server.memory()?.peak))
    );
    let detail = json!({ "entries": entries, "seconds_acknowledged": acknowledged, "seconds_sealed": seconds, "server_cpu_seconds": cpu });
    let what = "audit events acknowledged and sealed, for each core of the server";
    Ok(Finding::new("audit", what, per_core, "entries/s")
        .budget(Budget::AtLeast(APPEND_PER_CORE))
        .note(note)
        .detail(detail))
}

/// Waits until a signed head covers so many entries.
async fn sealed(server: &Server, org: &str, entries: u64) -> Result<()> {
    let began = Instant::now();
    let path = format!("/v1/orgs/{org}/audit/checkpoint");
    loop {
        let size = server.text(&path).await.ok().and_then(|head| head.lines().nth(1)?.parse::<u64>().ok());
        if size.is_some_and(|size| size >= entries) {
            return Ok(());
        }
        if began.elapsed() > PATIENCE {
            return Err(format!("no head of {org} covers {entries} entries; the newest covers {size:?}").into());
        }
        sleep(Duration::from_millis(50)).await;
    }
}

async fn proofs(server: &Server, count: u64, entries: u64) -> Result<Finding> {
    let mut random = SmallRng::seed_from_u64(7);
    let mut times = Vec::new();
    for _ in 0..count {
        let seq = random.random_range(0..entries);
        let began = Instant::now();
        let proof: Value = serde_json::from_str(&server.text(&format!("/v1/orgs/default/audit/{seq}/proof")).await?)?;
        times.push(ms(began.elapsed()));
        if proof.get("seq").and_then(Value::as_u64) != Some(seq) {
            return Err(format!("a proof of another entry than {seq}: {proof}").into());
        }
    }
    let note = format!(
        "{} ms p50; {} random entries of {}, one after the other over HTTP, each checked by the server against the head",
        readable(quantile(&times, 0.5)),
        readable(count as f64),
        readable(entries as f64)
    );
    Ok(Finding::new("audit", "inclusion proof, p99", quantile(&times, 0.99), "ms")
        .note(note)
        .detail(json!({ "ms": times })))
}

fn stored_bytes(home: &Home) -> Result<Finding> {
    let ledger = home.store().join("orgs/default/audit");
    let size = newest_size(home)?;
    let (segments, tiles) = (folder_bytes(&ledger.join("segments"))?, folder_bytes(&ledger.join("tile"))?);
    let each = |bytes: u64| bytes as f64 / size as f64;
    let note = format!(
        "{} of segments, {} of tiles and bundles; {} entries in {} segments",
        readable(each(segments)),
        readable(each(tiles)),
        readable(size as f64),
        std::fs::read_dir(ledger.join("segments"))?.count()
    );
    Ok(Finding::new("audit", "bytes an entry in the store", each(segments + tiles), "B").note(note))
}

fn newest_size(home: &Home) -> Result<u64> {
    let head = std::fs::read_to_string(home.store().join("orgs/default/audit/checkpoint"))?;
    Ok(head.lines().nth(1).ok_or("a head without a size")?.parse()?)
}

/// Verifies with the real program, on all cores, and held to one.
async fn verify(home: &Home, vkey: &str) -> Result<Vec<Finding>> {
    let size = newest_size(home)?;
    let mut findings = Vec::new();
    for (what, pin) in [("verify on one core", true), ("verify on all cores", false)] {
        say(&format!("audit: {what}"));
        let program = env!("CARGO_BIN_EXE_mcpg");
        let mut command = if pin { Command::new("taskset") } else { Command::new(program) };
        if pin {
            command.args(["-c", "0", program]);
        }
        command.args(["audit", "verify", "--org", "default", "--vkey", vkey, "--store"]).arg(home.store());
        let (cpu, began) = (ended_children_cpu_seconds()?, Instant::now());
        let output = command.stdin(Stdio::null()).output().await?;
        let (seconds, cpu) = (began.elapsed().as_secs_f64(), ended_children_cpu_seconds()? - cpu);
        if !output.status.success() {
            return Err(format!("the ledger is not sound: {}", String::from_utf8_lossy(&output.stderr)).into());
        }
        let note = format!(
            "{} entries in {} s, on {} cores",
            readable(size as f64),
            readable(seconds),
            readable(cpu / seconds)
        );
        let finding = Finding::new("audit", what, size as f64 / seconds, "entries/s").note(note);
        findings.push(if pin { finding.budget(Budget::AtLeast(VERIFY_PER_CORE)) } else { finding });
    }
    Ok(findings)
}

/// A second in which each of many orgs gets one entry.
async fn many_orgs(count: u64) -> Result<Finding> {
    say(&format!("audit: {count} orgs"));
    let orgs: Vec<String> = (0..count).map(|n| format!("  - {{ name: org-{n} }}")).collect();
    let home = Home::new(&format!("orgs:\n{}", orgs.join("\n")))?;
    let server = home.start().await?;
    // What an org gets at the start is sealed first.
    sleep(Duration::from_secs(5)).await;
    let event = Bytes::from_static(
        b"{\"actor\":\"user:alice@acme\",\"action\":\"tool.permit\",\"target\":\"github/list_repos\"}\n",
    );
    let mut sizes = Vec::new();
    for n in 0..count {
        sizes.push(server.text(&format!("/v1/orgs/org-{n}/audit/checkpoint")).await.map_or(0, |head| size_of(&head)));
    }
    let (idle, watched) = (server.cpu_seconds()?, Instant::now());
    sleep(Duration::from_secs(2)).await;
    let idle = (server.cpu_seconds()? - idle) / watched.elapsed().as_secs_f64();
    let (cpu, began) = (server.cpu_seconds()?, Instant::now());
    let mut senders = JoinSet::new();
    for lane in 0..CONNECTIONS {
        let posters: Vec<_> =
            (lane..count).step_by(CONNECTIONS as usize).map(|n| server.poster(&format!("org-{n}"), "audit")).collect();
        let event = event.clone();
        senders.spawn(async move {
            for poster in posters {
                poster.post("application/x-ndjson", "one", event.clone()).await?;
            }
            Ok::<_, super::Error>(())
        });
    }
    while let Some(sent) = senders.join_next().await {
        sent??;
    }
    let acknowledged = began.elapsed().as_secs_f64();
    let last = count.saturating_sub(1);
    for (n, size) in sizes.iter().enumerate() {
        sealed(&server, &format!("org-{n}"), size + 1).await?;
    }
    let seconds = began.elapsed().as_secs_f64();
    let cpu = server.cpu_seconds()? - cpu - idle * seconds;
    let bytes = folder_bytes(&home.store().join(format!("orgs/org-{last}/audit")))?;
    server.kill().await?;
    let note = format!(
        "{count} orgs with one entry each: all acknowledged after {} s, all under a signed head after {} s; idle {} cores; {} bytes of \
         files an org by then",
        readable(acknowledged),
        readable(seconds),
        readable(idle),
        readable(bytes as f64)
    );
    let finding =
        Finding::new("audit", "processor time of a second with 1,000 orgs of one entry each", cpu, "s").note(note);
    Ok(if count < ORGS { finding.only(format!("with {count} orgs")) } else { finding })
}

fn size_of(head: &str) -> u64 {
    head.lines().nth(1).and_then(|size| size.parse().ok()).unwrap_or(0)
}
