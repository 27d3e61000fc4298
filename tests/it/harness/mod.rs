//! What every test stands on: the real program as a child process, a client that speaks its API, samples and a loader with a
//! ledger of what was acknowledged, and the other programs that the results are compared with.

mod audit;
mod cases;
mod client;
mod collector;
mod disk;
mod exposition;
mod gateway;
mod ledger;
mod load;
mod mcp;
mod process;
mod program;
mod prometheus;
mod python;
mod sample;
mod server;
mod upstream;

pub(crate) use cases::cases;
pub(crate) use client::{Answer, Client};
pub(crate) use collector::{Collector, Span};
pub(crate) use disk::Disk;
pub(crate) use exposition::Exposition;
pub(crate) use gateway::{Gateway, GatewayConfig};
pub(crate) use ledger::Ledger;
pub(crate) use load::Load;
pub(crate) use mcp::{Events, Mcp};
pub(crate) use process::{Logs, free_port, mcpg, run, run_with_input, tool};
pub(crate) use program::Program;
pub(crate) use prometheus::Prometheus;
pub(crate) use python::{python, python_command};
pub(crate) use sample::{Sample, arrow_stream, ndjson, now};
pub(crate) use server::{Config, Server};
pub(crate) use upstream::{Upstream, airline_command, fixture_command, node, npm};

use std::time::{Duration, Instant};

use tokio::sync::{Mutex, MutexGuard};

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
