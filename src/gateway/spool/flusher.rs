//! The thread that keeps one lane: it writes what calls left behind, fsyncs for many at once, seals, deletes.
//!
//! It is a thread of its own, not a task, since a slow disk would hold up whatever else ran beside it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use super::journal::Journal;

/// The flusher while it runs.
#[derive(Debug)]
pub(super) struct Flusher {
    thread: Option<JoinHandle<()>>,
    journal: Arc<Journal>,
    stop: Arc<AtomicBool>,
}

impl Flusher {
    /// Starts to keep `journal`; `yields` is the lane whose records make room for it.
    pub(super) fn start(journal: Arc<Journal>, yields: Option<Arc<Journal>>) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let name = format!("spool-{}", journal.name.as_str());
        let kept = Arc::clone(&journal);
        let thread = thread::Builder::new().name(name).spawn(move || {
            loop {
                let rest = kept.tend(yields.as_deref());
                if stopped.load(Ordering::Acquire) {
                    kept.tend(yields.as_deref());
                    return kept.sync_all();
                }
                thread::park_timeout(rest);
            }
        })?;
        // A journal has one flusher.
        let _ = journal.flusher.set(thread.thread().clone());
        Ok(Self { thread: Some(thread), journal, stop })
    }
}

impl Drop for Flusher {
    /// Ends the thread; what was recorded is durable then, or said not to be.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.journal.wake();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the spool's flusher ended by a panic");
        }
    }
}
