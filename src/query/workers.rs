//! The threads that queries run on.
//!
//! They are apart from the threads that take samples in, so that a query that keeps a thread busy delays no
//! acknowledgement. Their stacks are deep, because planning and evaluating an expression recurse as deep as it is
//! nested; the guard bounds that depth, and the stacks hold it many times over.

use tokio::runtime::{Builder, Handle, Runtime};

/// Stack of a thread. Only pages that are touched cost memory.
const STACK_BYTES: usize = 64 << 20;

/// A runtime of its own.
#[derive(Debug)]
pub(super) struct Workers(Option<Runtime>);

impl Workers {
    /// Starts `threads` threads, at least one.
    pub(super) fn start(threads: usize) -> std::io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(threads.max(1))
            .thread_name("mcpg-sql")
            .thread_stack_size(STACK_BYTES)
            .enable_all()
            .build()?;
        Ok(Self(Some(runtime)))
    }

    /// Where to spawn; `None` only while the workers are being dropped.
    pub(super) fn handle(&self) -> Option<&Handle> {
        self.0.as_ref().map(Runtime::handle)
    }
}

impl Drop for Workers {
    /// Does not wait: a runtime that waits may not be dropped from asynchronous code.
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
