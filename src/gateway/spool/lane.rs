//! A lane as calls and senders see it.

use std::future::Future;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::oneshot;
use tokio::task::{block_in_place, spawn_blocking};
use tokio::time::timeout;

use super::flusher::Flusher;
use super::journal::{Batch, Journal};
use super::sealed::Sealed;
use super::{NotRecorded, SentUnder, SpoolError};

/// How long the disk may take to make a record durable before that counts as failed.
const DURABLE_WITHIN: Duration = Duration::from_secs(5);

/// Runs what writes to the disk so that other calls of this thread go on while the disk hangs: they would wait for it in
/// the runtime, where no other thread takes them over.
fn aside<T>(write: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => block_in_place(write),
        _ => write(),
    }
}

/// A lane of the spool. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Lane {
    journal: Arc<Journal>,
    /// Ends with the last of them.
    _keeper: Arc<Flusher>,
}

impl Lane {
    /// A lane with a flusher; `yields` is the lane that makes room for it.
    pub(super) fn start(journal: Arc<Journal>, yields: Option<Arc<Journal>>) -> Result<Self, SpoolError> {
        journal.show();
        let flusher = Flusher::start(Arc::clone(&journal), yields)
            .map_err(SpoolError::io("start the flusher of", Path::new(journal.name.as_str())))?;
        Ok(Self { journal, _keeper: Arc::new(flusher) })
    }

    /// Records a payload; written when this returns, unless the disk is slow. Never waits for the disk's fsync.
    ///
    /// # Errors
    /// When there is no room.
    pub(crate) fn append(&self, payload: &[u8]) -> Result<(), NotRecorded> {
        aside(|| self.journal.append(payload, None))
    }

    /// Records a payload, and is ready once it is durable.
    ///
    /// # Errors
    /// When it is not, or may not be.
    pub(crate) fn append_durably(&self, payload: &[u8]) -> impl Future<Output = Result<(), NotRecorded>> + use<> {
        let (waiter, outcome) = oneshot::channel();
        let appended = aside(|| self.journal.append(payload, Some(waiter)));
        async move {
            appended?;
            match timeout(DURABLE_WITHIN, outcome).await {
                Ok(Ok(result)) => result,
                Ok(Err(_)) => Err(NotRecorded::Stopping),
                Err(_) => Err(NotRecorded::Late),
            }
        }
    }

    /// The oldest batch, as soon as there is one. It stays at its place until [`Lane::done`] or [`Lane::set_aside`];
    /// [`Lane::put_back`] says that it will be asked for again.
    pub(crate) async fn oldest(&self) -> Sealed {
        loop {
            let ready = self.journal.ready.notified();
            if let Some(sealed) = self.journal.take_oldest() {
                return sealed;
            }
            self.journal.wake();
            ready.await;
        }
    }

    /// What a batch holds.
    pub(crate) async fn read(&self, sealed: &Sealed) -> io::Result<Batch> {
        let (journal, sealed) = (Arc::clone(&self.journal), sealed.clone());
        spawn_blocking(move || journal.read(&sealed)).await.map_err(io::Error::other)?
    }

    /// What a batch is sent under: the same at each attempt, but for what is known to be acknowledged before it.
    pub(crate) fn sent_under(&self, sealed: &Sealed) -> SentUnder {
        self.journal.sent_under(sealed)
    }

    /// The lane of an emitter that batches are numbered in.
    pub(crate) fn index(&self) -> u16 {
        self.journal.name.index()
    }

    /// The receiver has acknowledged a batch.
    pub(crate) fn acknowledge(&self, sealed: &Sealed) {
        self.journal.acknowledge(sealed);
    }

    /// Has the batch in hand sent under a new emitter id from now on.
    ///
    /// # Errors
    /// When the disk refuses; it then keeps its number.
    pub(crate) async fn renew(&self, sealed: &Sealed) -> io::Result<()> {
        let (journal, sealed) = (Arc::clone(&self.journal), sealed.clone());
        spawn_blocking(move || journal.renew(&sealed)).await.map_err(io::Error::other)?
    }

    /// The batch stays; it is asked for again later.
    pub(crate) fn put_back(&self) {
        self.journal.put_back();
    }

    /// The batch was delivered: it goes.
    pub(crate) async fn done(&self, sealed: &Sealed) {
        let (journal, sealed) = (Arc::clone(&self.journal), sealed.clone());
        self.off_the_runtime(move || journal.done(&sealed)).await;
    }

    /// The batch goes into the quarantine.
    pub(crate) async fn set_aside(&self, sealed: &Sealed) {
        let (journal, sealed) = (Arc::clone(&self.journal), sealed.clone());
        self.off_the_runtime(move || journal.set_aside(&sealed)).await;
    }

    /// Seals what there is, so that it can be delivered before a stop.
    pub(crate) async fn seal_now(&self) {
        let journal = Arc::clone(&self.journal);
        self.off_the_runtime(move || journal.seal_now()).await;
    }

    /// Whether nothing waits to be delivered.
    pub(crate) fn is_empty(&self) -> bool {
        self.journal.is_empty()
    }

    /// Makes durable what was recorded.
    pub(crate) async fn sync(&self) {
        let journal = Arc::clone(&self.journal);
        self.off_the_runtime(move || journal.sync_all()).await;
    }

    async fn off_the_runtime(&self, work: impl FnOnce() + Send + 'static) {
        if spawn_blocking(work).await.is_err() {
            tracing::error!("work on the spool ended by a panic");
        }
    }
}
