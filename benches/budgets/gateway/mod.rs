//! What the gateway costs: the time it adds to a call, the calls that a core carries, the memory of its sessions; with
//! all three streams on, and with all of them off.
//!
//! The gateway is the real program. The MCP server behind it, the client before it and the collector of its traces are
//! in this process; the control plane is the real program too. All of them share the machine's cores. A call is a small
//! one that the server answers at once, so that what is measured is the way there and back. Calls directly to the
//! server and through the gateway take turns, so that whatever else the machine does is in both. With the streams on,
//! every call must afterwards be in the control plane, and spans at the collector. What a collector that does not
//! answer does to a call is measured by itself (`away`).

mod away;
mod client;
mod collector;
mod process;
mod upstream;

use std::time::Duration;

use futures::stream::{self, StreamExt};
use serde_json::json;
use tokio::time::{Instant, sleep};

use self::client::Client;
use self::collector::Collector;
use self::process::Gateway;
use self::upstream::Upstream;
use super::Result;
use super::figures::{mib, quantile, readable};
use super::options::Options;
use super::report::{Budget, Finding, say};
use super::server::{Home, Server};

const SECTION: &str = "gateway";
/// Calls of each kind, one after the other, and those before that are not timed.
const CALLS: u64 = 20_000;
const WARM_UP: u64 = 1_000;
/// Clients that call at once, and for how long.
const CLIENTS: usize = 64;
const PERIOD: Duration = Duration::from_secs(10);
const SESSIONS: u64 = 10_000;
/// Sessions that are opened at once.
const OPENING: usize = 64;
/// The budgets of the time added, µs.
const LIMIT_P50_US: f64 = 200.0;
const LIMIT_P99_US: f64 = 1_000.0;
/// How long the last samples may take to the control plane.
const PATIENCE: Duration = Duration::from_secs(120);

/// Measures it.
///
/// # Errors
/// When a program does not start, a call fails, or a call is not on record.
pub(crate) async fn measure(options: &Options) -> Result<Vec<Finding>> {
    let upstream = Upstream::start().await?;
    let mut findings = Vec::new();
    let off = run(options, &upstream, None, &mut findings).await?;
    let home = Home::new("")?;
    let observed = Observed { control_plane: home.start().await?, collector: Collector::start().await? };
    let on = run(options, &upstream, Some(&observed), &mut findings).await?;
    away::measure(options, &upstream, &observed, &mut findings).await?;
    observed.control_plane.kill().await?;
    let note = "processor time of the gateway for a call, on less off".to_owned();
    findings.push(Finding::new(SECTION, "cost of all three streams a call", on - off, "µs").note(note));
    Ok(findings)
}

/// Where the three streams go.
struct Observed {
    control_plane: Server,
    collector: Collector,
}

/// Measures one gateway; gives back its processor time for a call, µs.
async fn run(
    options: &Options,
    upstream: &Upstream,
    observed: Option<&Observed>,
    findings: &mut Vec<Finding>,
) -> Result<f64> {
    let streams = if observed.is_some() { "streams on" } else { "streams off" };
    let to = observed.map(|observed| (&observed.control_plane, observed.collector.url()));
    let gateway = Gateway::start(&settings(upstream, to)).await?;
    let (direct, through) = (Client::open(upstream.url()).await?, Client::open(gateway.url()).await?);

    say(&format!("gateway: latency, {streams}"));
    let (mut directly, mut by_gateway) = (Vec::new(), Vec::new());
    let warm_up = options.count(WARM_UP);
    for number in 0..warm_up + options.count(CALLS) {
        let times = (direct.timed_call().await?, through.timed_call().await?);
        if number >= warm_up {
            directly.push(micros(times.0));
            by_gateway.push(micros(times.1));
        }
    }
    let mut calls = by_gateway.len() as u64 + warm_up;
    for (name, q, limit) in [("p50", 0.5, LIMIT_P50_US), ("p99", 0.99, LIMIT_P99_US)] {
        let (without, with) = (quantile(&directly, q), quantile(&by_gateway, q));
        let note = format!("{} µs through it, {} µs directly", readable(with), readable(without));
        let finding = Finding::new(SECTION, format!("added latency, {name}, {streams}"), with - without, "µs");
        let finding = finding.budget(Budget::AtMost(limit)).note(note);
        findings.push(finding.detail(json!({ "direct_us": directly, "gateway_us": by_gateway })));
    }

    say(&format!("gateway: calls/s, {streams}"));
    let period = options.period(PERIOD);
    let (at_best, _) = as_many_as_possible(&direct, period).await?;
    let before = gateway.cpu_seconds()?;
    let (rate, made) = as_many_as_possible(&through, period).await?;
    let cpu = gateway.cpu_seconds()? - before;
    calls += made;
    let note = format!(
        "{} calls/s by {CLIENTS} clients at once, {} directly; client, server and control plane share the cores",
        readable(rate),
        readable(at_best)
    );
    findings.push(
        Finding::new(SECTION, format!("calls a second and core, {streams}"), made as f64 / cpu, "calls/s").note(note),
    );

    say(&format!("gateway: sessions, {streams}"));
    let before = gateway.memory()?.resident;
    let count = options.count(SESSIONS);
    let sessions: Vec<Result<Client>> = stream::iter(0..count)
        .map(|_| async {
            let session = through.another().await?;
            session.timed_call().await?;
            Ok(session)
        })
        .buffer_unordered(OPENING)
        .collect()
        .await;
    let sessions = sessions.into_iter().collect::<Result<Vec<_>>>()?;
    calls += count;
    let memory = gateway.memory()?;
    let each = memory.resident.saturating_sub(before) as f64 / count as f64 / 1024.0;
    let note =
        format!("{} sessions, each with a session of its own at the server and one call made", readable(count as f64));
    findings.push(Finding::new(SECTION, format!("memory a session, {streams}"), each, "KiB").note(note));
    let what = format!("resident memory at {} sessions, {streams}", readable(count as f64));
    let note = format!("{} MiB before them", readable(mib(before)));
    findings.push(Finding::new(SECTION, what, mib(memory.resident), "MiB").note(note));
    drop(sessions);

    if let Some(observed) = observed {
        on_record(observed, calls).await?;
    }
    gateway.kill().await?;
    Ok(cpu / made as f64 * 1e6)
}

/// The gateway's configuration, as JSON, which is YAML too; with the streams to a control plane and a collector's URL,
/// or off.
fn settings(upstream: &Upstream, to: Option<(&Server, &str)>) -> serde_json::Value {
    let (control_plane, observability) = match to {
        None => {
            let off = json!({ "enabled": false });
            (json!({ "spool": { "path": "spool" } }), json!({ "metrics": off, "otlp": off, "audit": off }))
        }
        Some((control_plane, collector)) => (
            json!({ "spool": { "path": "spool" }, "url": control_plane.url() }),
            json!({
                "metrics": { "listen": "127.0.0.1:0" },
                "otlp": { "endpoint": collector, "protocol": "http", "sample_rate": 1.0 },
            }),
        ),
    };
    json!({
        "listen": "127.0.0.1:0",
        "plugins": [{ "name": "bench", "url": upstream.url(), "max_sessions": 2 * SESSIONS, "max_concurrency": 1024 }],
        "identity": { "anonymous": true },
        "policy": "allow_all",
        "control_plane": control_plane,
        "observability": observability,
        "limits": { "sessions": 2 * SESSIONS },
    })
}

/// Calls by many clients at once, each as soon as it has its answer: calls a second, and calls.
async fn as_many_as_possible(like: &Client, period: Duration) -> Result<(f64, u64)> {
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(like.another().await?);
    }
    let began = Instant::now();
    let calling = clients.iter().map(|client| async move {
        let mut calls = 0_u64;
        while began.elapsed() < period {
            client.timed_call().await?;
            calls += 1;
        }
        Ok::<_, super::Error>(calls)
    });
    let calls: u64 = futures::future::try_join_all(calling).await?.into_iter().sum();
    Ok((calls as f64 / began.elapsed().as_secs_f64(), calls))
}

/// Waits until every call has come to the control plane, and sees that the collector has got spans.
async fn on_record(Observed { control_plane, collector }: &Observed, calls: u64) -> Result<()> {
    let began = Instant::now();
    loop {
        let stored = control_plane.number("SELECT count(*) FROM tool_invocations").await?;
        if stored == calls {
            break;
        }
        if began.elapsed() > PATIENCE {
            return Err(format!("{calls} calls were made and {stored} samples came to the control plane").into());
        }
        sleep(Duration::from_millis(250)).await;
    }
    if collector.batches() == 0 {
        return Err("no spans came to the collector".into());
    }
    Ok(())
}

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}
