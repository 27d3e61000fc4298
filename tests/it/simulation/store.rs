//! An object store in memory that does one thing wrong, at one write, and can die as a process does.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use tokio::sync::watch;

/// What goes wrong at the write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// It fails, and nothing is written.
    Refused,
    /// It is written, and the answer is an error all the same.
    AnswerLost,
    /// A part of it is written, and the answer is an error. Delta's own log is spared: its format supposes that a
    /// commit is seen whole or not at all.
    Torn,
    /// It takes a minute.
    Slow,
    /// The process dies before it: this and all that comes after fails.
    DiesBefore,
    /// The process dies after it.
    DiesAfter,
}

impl Fault {
    pub(super) const ALL: [Self; 6] =
        [Self::Refused, Self::AnswerLost, Self::Torn, Self::Slow, Self::DiesBefore, Self::DiesAfter];
}

/// One process's view of the shared objects.
#[derive(Debug)]
pub(super) struct FaultyStore {
    objects: Arc<InMemory>,
    writes: AtomicUsize,
    fault: Option<(usize, Fault)>,
    dead: AtomicBool,
    frozen: watch::Sender<bool>,
}

impl FaultyStore {
    /// A process on `objects` that meets `fault` at its write of that number, counted from 0.
    pub(super) fn new(objects: &Arc<InMemory>, fault: Option<(usize, Fault)>) -> Arc<Self> {
        let objects = Arc::clone(objects);
        Arc::new(Self {
            objects,
            writes: AtomicUsize::new(0),
            fault,
            dead: AtomicBool::new(false),
            frozen: watch::Sender::new(false),
        })
    }

    /// Writes tried so far.
    pub(super) fn writes(&self) -> usize {
        self.writes.load(Ordering::SeqCst)
    }

    pub(super) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::SeqCst)
    }

    /// The process dies: nothing it still tries reaches the store.
    pub(super) fn die(&self) {
        self.dead.store(true, Ordering::SeqCst);
    }

    /// The process is stopped, as by SIGSTOP, until it is thawed: whatever it tries waits.
    pub(super) fn freeze(&self) {
        self.frozen.send_replace(true);
    }

    pub(super) fn thaw(&self) {
        self.frozen.send_replace(false);
    }

    async fn alive(&self) -> Result<()> {
        self.frozen.subscribe().wait_for(|frozen| !frozen).await.unwrap();
        if self.is_dead() { Err(fault("the process is dead")) } else { Ok(()) }
    }

    /// Counts a write, and says what goes wrong with it.
    fn next_fault(&self) -> Option<Fault> {
        let number = self.writes.fetch_add(1, Ordering::SeqCst);
        self.fault.filter(|(at, _)| *at == number).map(|(_, fault)| fault)
    }
}

fn fault(reason: &'static str) -> Error {
    Error::Generic { store: "faulty", source: reason.into() }
}

impl fmt::Display for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FaultyStore({:?})", self.fault)
    }
}

#[async_trait]
impl ObjectStore for FaultyStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        self.alive().await?;
        match self.next_fault() {
            None => self.objects.put_opts(location, payload, opts).await,
            Some(Fault::Refused) => Err(fault("refused")),
            Some(Fault::AnswerLost) => {
                self.objects.put_opts(location, payload, opts).await?;
                Err(fault("the answer was lost"))
            }
            Some(Fault::Torn) if location.as_ref().contains("_delta_log") => Err(fault("refused")),
            Some(Fault::Torn) => {
                let whole: Vec<u8> = payload.iter().flatten().copied().collect();
                self.objects.put_opts(location, whole[..whole.len() * 2 / 3].to_vec().into(), opts).await?;
                Err(fault("torn"))
            }
            Some(Fault::Slow) => {
                tokio::time::sleep(Duration::from_secs(60)).await;
                self.alive().await?;
                self.objects.put_opts(location, payload, opts).await
            }
            Some(Fault::DiesBefore) => {
                self.die();
                Err(fault("the process is dead"))
            }
            Some(Fault::DiesAfter) => {
                self.objects.put_opts(location, payload, opts).await?;
                self.die();
                Err(fault("the process is dead"))
            }
        }
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.alive().await?;
        self.objects.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.alive().await?;
        self.objects.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let objects = Arc::clone(&self.objects);
        let dead = self.is_dead();
        locations
            .and_then(move |path| {
                let objects = Arc::clone(&objects);
                async move {
                    if dead {
                        return Err(fault("the process is dead"));
                    }
                    objects.delete(&path).await.map(|()| path)
                }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        if self.is_dead() {
            return futures::stream::once(async { Err(fault("the process is dead")) }).boxed();
        }
        self.objects.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.alive().await?;
        self.objects.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.alive().await?;
        self.objects.copy_opts(from, to, options).await
    }
}
