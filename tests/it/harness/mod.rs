//! What every test stands on: the real program as a child process, a client that speaks its API, samples and a loader
//! with a ledger of what was acknowledged, and the other programs that the results are compared with.

mod alertmanager;
mod audit;
mod cases;
mod client;
mod cluster;
mod collector;
mod disk;
mod exposition;
mod fleet;
mod gateway;
mod ledger;
mod load;
mod mcp;
mod process;
mod program;
mod prometheus;
pub(crate) mod proxy;
mod python;
pub(crate) mod s3;
mod sample;
mod server;
mod shim;
mod upstream;

pub(crate) use alertmanager::Alertmanager;
pub(crate) use cases::{cases, yaml};
pub(crate) use client::{Answer, Client};
pub(crate) use cluster::{Cluster, Folder, assert_sound, verify_ledger};
pub(crate) use collector::{Collector, Span};
pub(crate) use disk::Disk;
pub(crate) use exposition::Exposition;
pub(crate) use fleet::{Account, Batch, Fleet, Running, assert_recovers, org_names, vkeys};
pub(crate) use gateway::{Gateway, GatewayConfig};
pub(crate) use ledger::Ledger;
pub(crate) use load::Load;
pub(crate) use mcp::{Events, Mcp};
pub(crate) use process::{Logs, free_port, mcpg, replace, run, run_with_input, tool};
pub(crate) use program::Program;
pub(crate) use prometheus::{Prometheus, newest, with_native_histograms};
pub(crate) use python::{python, python_command};
pub(crate) use sample::{Sample, arrow_stream, ndjson, now};
pub(crate) use server::{Config, Server, Started};
pub(crate) use shim::{Call, EEXIST, EIO, ESTALE, Happened, Rule, Shim, clock_ahead};
pub(crate) use upstream::{Upstream, airline_command, client_script, fixture_command, modern_command, node, npm};

use std::time::{Duration, Instant};

use tokio::sync::{Mutex, MutexGuard};

/// Whether the run is the long one, `make soak`: as much of everything as the issue asks for, not as CI has time for.
pub(crate) fn is_soak() -> bool {
    std::env::var("MCPG_SOAK").is_ok_and(|value| value == "1")
}

/// A client of plain HTTP on this machine: without proxies, and without the system's authorities, which take long to read.
pub(crate) fn plain_http() -> reqwest::ClientBuilder {
    reqwest::Client::builder().no_proxy().tls_certs_only([])
}

/// Held by tests that load both cores or that measure: they run one at a time.
pub(crate) async fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::const_new(());
    ALONE.lock().await
}

/// Asks again and again until the answer is `Some`; fails the test, saying `what` was waited for, after `patience`.
pub(crate) async fn eventually<T>(what: &str, patience: Duration, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(began.elapsed() < patience, "waited {} s in vain for {what}", patience.as_secs());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The nearest-rank quantile: the least value that at least `q` of the sorted values do not exceed.
pub(crate) fn exact_quantile(sorted: &[f64], q: f64) -> f64 {
    let rank = (q * sorted.len() as f64).ceil().max(1.0) as usize;
    sorted[rank - 1]
}

/// Asserts that `got` is within `share` of `expected`.
#[track_caller]
pub(crate) fn assert_close(got: f64, expected: f64, share: f64, what: &str) {
    let distance = (got - expected).abs();
    assert!(distance <= expected.abs() * share, "{what}: got {got}, expected {expected} within {} %", share * 100.0);
}
