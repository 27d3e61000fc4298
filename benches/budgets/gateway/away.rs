//! Whether a collector that is away, or that takes connections and never answers, makes a call slower (invariant I8).
//!
//! Three gateways that differ in their collector alone run at once, and a call through each takes its turn. More calls
//! are made than spans may wait, so that with the two that take none the queue is full for most of them.

use std::net::Ipv4Addr;

use serde_json::json;
use tokio::net::TcpListener;

use super::client::Client;
use super::process::Gateway;
use super::upstream::Upstream;
use super::{CALLS, Observed, Result, SECTION, WARM_UP, micros, settings};
use crate::figures::{quantile, readable};
use crate::options::Options;
use crate::report::{Finding, say};

/// Measures it.
///
/// # Errors
/// When a gateway does not start, or a call fails.
pub(super) async fn measure(
    options: &Options,
    upstream: &Upstream,
    observed: &Observed,
    findings: &mut Vec<Finding>,
) -> Result<()> {
    say("gateway: latency, collector there, away, and hanging");
    let freed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let nobody = format!("http://{}", freed.local_addr()?);
    drop(freed);
    // The kernel completes connections to it, and nobody ever reads from them.
    let hanging = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let silent = format!("http://{}", hanging.local_addr()?);

    let (mut gateways, mut clients) = (Vec::new(), Vec::new());
    for collector in [observed.collector.url(), &nobody, &silent] {
        let gateway = Gateway::start(&settings(upstream, Some((&observed.control_plane, collector)))).await?;
        clients.push(Client::open(gateway.url()).await?);
        gateways.push(gateway);
    }
    let mut times = vec![Vec::new(); clients.len()];
    let warm_up = options.count(WARM_UP);
    for number in 0..warm_up + options.count(CALLS) {
        for (client, times) in clients.iter().zip(&mut times) {
            let took = client.timed_call().await?;
            if number >= warm_up {
                times.push(micros(took));
            }
        }
    }
    for gateway in gateways {
        gateway.kill().await?;
    }
    let Some((there, others)) = times.split_first() else { return Ok(()) };
    for (name, times) in ["away", "hanging"].into_iter().zip(others) {
        for (quantile_name, q) in [("p50", 0.5), ("p99", 0.99)] {
            let (with, without) = (quantile(there, q), quantile(times, q));
            let what = format!("a call with the collector {name}, less one with it there, {quantile_name}");
            let note = format!("{} µs and {} µs", readable(without), readable(with));
            findings.push(Finding::new(SECTION, what, without - with, "µs").note(note).detail(json!({ "us": times })));
        }
    }
    Ok(())
}
