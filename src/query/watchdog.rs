//! Stops queries when they together hold more than they may (invariant I7).
//!
//! The engine's memory pool bounds what sorts, groups and hash tables hold, and refuses more; batches on their way it
//! does not see. So while queries run a thread adds up, twenty times a second, what each of them holds of both, and
//! past the bound stops the query that holds the most, and waits until it has ended before it looks again. What the
//! process holds for anything else is not counted: no query is stopped for samples that wait to be flushed.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use prometheus::IntGauge;
use tokio_util::sync::CancellationToken;

use super::usage::Usage;

const PERIOD: Duration = Duration::from_millis(50);

#[derive(Debug)]
struct Query {
    id: u64,
    usage: Arc<Usage>,
    stop: CancellationToken,
}

#[derive(Debug, Default)]
struct Watched {
    running: Vec<Query>,
    next: u64,
    closed: bool,
    shown: Option<IntGauge>,
}

impl Watched {
    fn show(&self) {
        if let Some(gauge) = &self.shown {
            gauge.set(i64::try_from(self.running.len()).unwrap_or(i64::MAX));
        }
    }
}

#[derive(Debug, Default)]
struct Shared {
    watched: Mutex<Watched>,
    changed: Condvar,
}

/// The thread that watches.
#[derive(Debug)]
pub(super) struct Watchdog(Arc<Shared>);

/// One running query under watch; dropped, it is no longer.
#[derive(Debug)]
pub(super) struct Ticket {
    shared: Arc<Shared>,
    id: u64,
    stop: CancellationToken,
}

impl Watchdog {
    /// Starts to watch for more than `bound` bytes, and to call `each` as often as it looks.
    pub(super) fn start(bound: u64, each: impl Fn() + Send + 'static) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let watching = Arc::clone(&shared);
        std::thread::Builder::new().name("mcpg-sql-memory".to_owned()).spawn(move || watch(&watching, bound, &each))?;
        Ok(Self(shared))
    }

    /// Puts a query under watch.
    pub(super) fn enter(&self, usage: Arc<Usage>) -> Ticket {
        let stop = CancellationToken::new();
        let mut watched = self.0.watched.lock();
        let id = watched.next;
        watched.next += 1;
        watched.running.push(Query { id, usage, stop: stop.clone() });
        watched.show();
        drop(watched);
        self.0.changed.notify_one();
        Ticket { shared: Arc::clone(&self.0), id, stop }
    }

    /// Has a gauge say how many queries run.
    pub(super) fn show(&self, gauge: IntGauge) {
        let mut watched = self.0.watched.lock();
        watched.shown = Some(gauge);
        watched.show();
    }

    /// How many queries run.
    pub(super) fn running(&self) -> usize {
        self.0.watched.lock().running.len()
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.0.watched.lock().closed = true;
        self.0.changed.notify_one();
    }
}

impl Ticket {
    /// Returns when the query has to stop.
    pub(super) async fn stopped(&self) {
        self.stop.cancelled().await;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut watched = self.shared.watched.lock();
        watched.running.retain(|query| query.id != self.id);
        watched.show();
    }
}

fn watch(shared: &Shared, bound: u64, each: &dyn Fn()) {
    let mut watched = shared.watched.lock();
    while !watched.closed {
        if watched.running.is_empty() {
            shared.changed.wait(&mut watched);
            continue;
        }
        shared.changed.wait_for(&mut watched, PERIOD);
        each();
        let held = watched.running.iter().map(|query| query.usage.bytes()).fold(0, usize::saturating_add);
        let is_stopping = watched.running.iter().any(|query| query.stop.is_cancelled());
        if held as u64 <= bound || is_stopping {
            continue;
        }
        if let Some(largest) = watched.running.iter().max_by_key(|query| query.usage.bytes()) {
            tracing::warn!(
                bytes = held,
                bound,
                of_it = largest.usage.bytes(),
                "stopping the largest query: together they hold too much"
            );
            largest.stop.cancel();
        }
    }
}

/// What Linux says the process holds in memory.
#[cfg(test)]
pub(super) fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kilobytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::{Usage, Watchdog};

    fn holding(bytes: usize) -> Arc<Usage> {
        let usage = Usage::default();
        usage.flows(0, bytes);
        Arc::new(usage)
    }

    #[tokio::test]
    async fn past_the_bound_the_largest_query_is_stopped_and_the_next_only_once_it_has_ended() {
        let watchdog = Watchdog::start(10, || ()).unwrap();
        let small = watchdog.enter(holding(4));
        let large = watchdog.enter(holding(8));
        let middle = watchdog.enter(holding(7));
        tokio::time::timeout(Duration::from_secs(60), large.stopped()).await.unwrap();
        tokio::time::timeout(Duration::from_millis(300), middle.stopped()).await.unwrap_err();
        drop(large);
        tokio::time::timeout(Duration::from_secs(60), middle.stopped()).await.unwrap();
        drop(middle);
        tokio::time::timeout(Duration::from_millis(300), small.stopped()).await.unwrap_err();
    }

    #[tokio::test]
    async fn within_the_bound_nothing_is_stopped_however_large_the_process_is() {
        let watchdog = Watchdog::start(12, || ()).unwrap();
        let ticket = watchdog.enter(holding(12));
        tokio::time::timeout(Duration::from_millis(300), ticket.stopped()).await.unwrap_err();
        assert_eq!(watchdog.running(), 1);
        drop(ticket);
        assert_eq!(watchdog.running(), 0);
    }
}
