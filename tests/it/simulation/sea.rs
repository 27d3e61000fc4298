//! What all nodes of a life share: the disk, virtual time, the order in which the store does what it is asked, the
//! trace.
//!
//! Every operation takes a few milliseconds that follow from the seed and from what the operation is, and one operation
//! at most is done in each millisecond. So the order in which a node's tasks ask plays no part, and all orders come to
//! pass.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::ThreadId;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::disk::Disk;
use super::faults::Weather;
use super::trace::Trace;

/// The wall clock's time at the beginning of each life.
pub(super) const BEGAN: i64 = 1_700_000_000_000_000;
/// Operations after which a life counts as one that never ends.
const MOST_OPERATIONS: u64 = 400_000;

/// What the nodes of a life share.
#[derive(Debug)]
pub(super) struct Sea {
    pub(super) seed: u64,
    pub(super) disk: Disk,
    pub(super) trace: Trace,
    weather: Mutex<Weather>,
    began: Instant,
    runtime: Handle,
    thread: ThreadId,
    queue: Mutex<BTreeMap<(u64, u64, u64), oneshot::Sender<()>>>,
    tickets: AtomicU64,
    operations: AtomicU64,
    asked: Notify,
}

impl Sea {
    /// A sea over a disk. To be called in the life that it is for.
    pub(super) fn new(seed: u64, disk: Disk, trace: Trace) -> Arc<Self> {
        let sea = Arc::new(Self {
            seed,
            disk,
            trace,
            weather: Mutex::default(),
            began: Instant::now(),
            runtime: Handle::current(),
            thread: std::thread::current().id(),
            queue: Mutex::default(),
            tickets: AtomicU64::new(0),
            operations: AtomicU64::new(0),
            asked: Notify::new(),
        });
        tokio::spawn(Arc::clone(&sea).give_turns());
        sea
    }

    /// Virtual time since the beginning, in milliseconds.
    pub(super) fn now(&self) -> u64 {
        // The thread of another runtime has another clock.
        let _entered = (!self.is_here()).then(|| self.runtime.enter());
        self.began.elapsed().as_millis() as u64
    }

    /// The wall clock's time.
    pub(super) fn wall(&self) -> DateTime<Utc> {
        DateTime::from_timestamp_micros(BEGAN).unwrap() + TimeDelta::milliseconds(self.now() as i64)
    }

    /// Whether this is the thread of the life, on which virtual time can pass. Delta's reader asks from threads of its
    /// own, while time stands still: it cannot be made to wait.
    pub(super) fn is_here(&self) -> bool {
        std::thread::current().id() == self.thread
    }

    pub(super) fn tell(&self, text: String) {
        self.trace.tell(self.now(), text);
    }

    pub(super) fn weather(&self) -> Weather {
        self.weather.lock().clone()
    }

    pub(super) fn set_weather(&self, weather: Weather) {
        *self.weather.lock() = weather;
    }

    /// How much has been asked of the store.
    pub(super) fn operations(&self) -> u64 {
        self.operations.load(Ordering::Relaxed)
    }

    pub(super) fn count(&self) {
        let count = self.operations.fetch_add(1, Ordering::Relaxed);
        assert!(count < MOST_OPERATIONS, "the store was asked {count} times: this never ends");
    }

    /// Waits until it is this operation's turn, at `due` or soon after.
    pub(super) async fn turn(&self, due: u64, key: u64) {
        let (sender, receiver) = oneshot::channel();
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        self.queue.lock().insert((due.max(self.now() + 1), key, ticket), sender);
        self.asked.notify_one();
        // The sender lives as long as the runtime does.
        let _ = receiver.await;
    }

    /// When the last of what has been asked will be done.
    pub(super) fn last_due(&self) -> Option<u64> {
        self.queue.lock().last_key_value().map(|((due, ..), _)| *due)
    }

    async fn give_turns(self: Arc<Self>) {
        let mut last = 0;
        loop {
            let first = self.queue.lock().first_key_value().map(|((due, ..), _)| *due);
            let Some(due) = first else {
                self.asked.notified().await;
                continue;
            };
            let due = due.max(last + 1);
            if due > self.now() {
                let at = self.began + Duration::from_millis(due);
                tokio::select! {
                    biased;
                    () = tokio::time::sleep_until(at) => {}
                    () = self.asked.notified() => {}
                }
                continue;
            }
            let first = self.queue.lock().pop_first();
            if let Some((_, turn)) = first {
                last = self.now();
                // One who does not wait any more has been killed, or has stopped waiting for what it read.
                let _ = turn.send(());
            }
        }
    }
}
