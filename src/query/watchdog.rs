//! Stops queries when the process as a whole grows past its bound (invariant I7).
//!
//! The engine's memory pool counts what sorts, groups and hash tables hold; it does not count scans, window buffers and batches on
//! their way. What the system says the process holds is the truth, so while queries run a thread reads it twenty times a
//! second, and past the bound stops the youngest query, then the next, until the process is within it again.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

const PERIOD: Duration = Duration::from_millis(50);

/// Reads the resident size of the process in bytes; `None` where the system does not tell.
pub(super) type ReadResident = fn() -> Option<u64>;

#[derive(Debug, Default)]
struct Watched {
    running: Vec<(u64, CancellationToken)>,
    next: u64,
    closed: bool,
}

#[derive(Debug, Default)]
struct Shared {
    watched: Mutex<Watched>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Watched> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
    /// Starts to watch for a resident size above `bound` bytes.
    pub(super) fn start(bound: u64, resident: ReadResident) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let watching = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("mcpg-sql-memory".to_owned())
            .spawn(move || watch(&watching, bound, resident))?;
        Ok(Self(shared))
    }

    /// Puts a query under watch.
    pub(super) fn enter(&self) -> Ticket {
        let stop = CancellationToken::new();
        let mut watched = self.0.lock();
        let id = watched.next;
        watched.next += 1;
        watched.running.push((id, stop.clone()));
        drop(watched);
        self.0.changed.notify_one();
        Ticket { shared: Arc::clone(&self.0), id, stop }
    }

    /// How many queries run.
    pub(super) fn running(&self) -> usize {
        self.0.lock().running.len()
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.0.lock().closed = true;
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
        self.shared.lock().running.retain(|(id, _)| *id != self.id);
    }
}

fn watch(shared: &Shared, bound: u64, resident: ReadResident) {
    let mut watched = shared.lock();
    while !watched.closed {
        if watched.running.is_empty() {
            watched = shared.changed.wait(watched).unwrap_or_else(PoisonError::into_inner);
            continue;
        }
        watched = shared.changed.wait_timeout(watched, PERIOD).unwrap_or_else(PoisonError::into_inner).0;
        let Some(bytes) = resident().filter(|bytes| *bytes > bound) else { continue };
        if let Some((_, youngest)) = watched.running.iter().rev().find(|(_, stop)| !stop.is_cancelled()) {
            tracing::warn!(
                resident_bytes = bytes,
                bound,
                "stopping the youngest query: the process is past its memory bound"
            );
            youngest.cancel();
        }
    }
}

/// What Linux says the process holds in memory.
pub(super) fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kilobytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Watchdog, resident_bytes};

    #[tokio::test]
    async fn past_the_bound_the_youngest_query_is_stopped_first() {
        let watchdog = Watchdog::start(10, || Some(11)).unwrap();
        let elder = watchdog.enter();
        let younger = watchdog.enter();
        tokio::time::timeout(Duration::from_secs(5), younger.stopped()).await.unwrap();
        tokio::time::timeout(Duration::from_secs(5), elder.stopped()).await.unwrap();
    }

    #[tokio::test]
    async fn within_the_bound_nothing_is_stopped() {
        let watchdog = Watchdog::start(12, || Some(11)).unwrap();
        let ticket = watchdog.enter();
        tokio::time::timeout(Duration::from_millis(300), ticket.stopped()).await.unwrap_err();
        assert_eq!(watchdog.running(), 1);
        drop(ticket);
        assert_eq!(watchdog.running(), 0);
    }

    #[test]
    fn the_system_tells_the_resident_size() {
        assert!(resident_bytes().unwrap() > 1 << 20);
    }
}
