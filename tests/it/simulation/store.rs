//! The store as one process of a node sees it: operations that fail, are late, or never come to an end because the
//! process does.

use std::collections::HashMap;
use std::fmt;
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use object_store::path::Path;
use object_store::{
    CopyMode, CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

use super::disk::Disk;
use super::faults::{Asked, Cause, Fault, Luck, Operation};
use super::sea::Sea;

/// The longest that an operation takes where nothing goes wrong, in milliseconds; deletes may overtake each other for
/// longer.
const USUAL: u64 = 8;
const USUAL_DELETE: u64 = 40;

/// One process of a node, and its access to the store.
#[derive(Clone)]
pub(super) struct Process(Arc<Inner>);

struct Inner {
    sea: Arc<Sea>,
    node: usize,
    process: u64,
    numbers: AtomicU64,
    again: Mutex<HashMap<(Operation, Path), u64>>,
    luck: Mutex<Luck>,
    /// Until then whatever it asks waits, as after SIGSTOP, in milliseconds of virtual time.
    frozen_until: AtomicU64,
    dead: watch::Sender<bool>,
    /// Whether nothing is to go wrong with what this process asks.
    spared: AtomicBool,
}

/// An operation, with what goes wrong with it.
struct Turn {
    what: String,
    fault: Option<Fault>,
    due: u64,
    key: u64,
}

impl Process {
    /// A process of a node; of node 0's, number 0 is the first.
    pub(super) fn new(sea: &Arc<Sea>, node: usize, process: u64) -> Self {
        Self(Arc::new(Inner {
            sea: Arc::clone(sea),
            node,
            process,
            numbers: AtomicU64::new(0),
            again: Mutex::default(),
            luck: Mutex::default(),
            frozen_until: AtomicU64::new(0),
            dead: watch::Sender::new(false),
            spared: AtomicBool::new(false),
        }))
    }

    pub(super) fn sea(&self) -> &Arc<Sea> {
        &self.0.sea
    }

    /// The process is killed. What it has sent may be done yet, and nobody learns of it.
    pub(super) fn die(&self) {
        if !self.0.dead.send_replace(true) {
            self.tell("is dead");
        }
    }

    pub(super) fn is_dead(&self) -> bool {
        *self.0.dead.borrow()
    }

    /// Waits until the process is killed.
    pub(super) async fn died(&self) {
        // The sender is in `self`.
        let _ = self.0.dead.subscribe().wait_for(|dead| *dead).await;
    }

    /// Stops the process for so long, wherever it is between two operations or within one.
    pub(super) fn freeze(&self, pause: Duration) {
        self.tell(&format!("is frozen for {pause:?}"));
        self.0.frozen_until.fetch_max(self.sea().now() + pause.as_millis() as u64, Ordering::Relaxed);
    }

    pub(super) fn thaw(&self) {
        self.0.frozen_until.store(0, Ordering::Relaxed);
    }

    /// Spares it from faults from now on.
    pub(super) fn spare(&self) {
        self.0.spared.store(true, Ordering::Relaxed);
    }

    pub(super) fn tell(&self, what: &str) {
        self.sea().tell(format!("node {}.{} {what}", self.0.node, self.0.process));
    }

    /// Notes that something is asked for, and finds what goes wrong with it.
    fn ask(&self, operation: Operation, path: &Path) -> Turn {
        let sea = self.sea();
        sea.count();
        let number = self.0.numbers.fetch_add(1, Ordering::Relaxed);
        let again = {
            let mut again = self.0.again.lock();
            let count = again.entry((operation, path.clone())).or_default();
            std::mem::replace(count, *count + 1)
        };
        let asked = Asked { node: self.0.node, process: self.0.process, operation, path, number, again };
        let spared = self.0.spared.load(Ordering::Relaxed);
        let fault = if spared { None } else { sea.weather().fault(sea.seed, &asked, &mut self.0.luck.lock()) };
        let key = asked.draw(sea.seed, "turn");
        let usual = if operation == Operation::Delete { USUAL_DELETE } else { USUAL };
        let took = 1 + key % usual;
        let now = sea.now();
        let slow = match fault {
            Some(Fault::Slow(pause)) => pause.as_millis() as u64,
            _ => 0,
        };
        Turn { what: format!("{} {path}", operation.name()), fault, due: now + took + slow, key }
    }

    /// Waits for a moment at which the process runs, at `due` at the earliest.
    async fn wait(&self, mut due: u64, key: u64) {
        loop {
            due = due.max(self.0.frozen_until.load(Ordering::Relaxed));
            self.sea().turn(due, key).await;
            if self.0.frozen_until.load(Ordering::Relaxed) <= self.sea().now() {
                return;
            }
        }
    }

    /// Waits as long as an answer takes to be seen.
    async fn see(&self, turn: &Turn) {
        if !self.sea().is_here() {
            return;
        }
        if let Some(Fault::Stuck(pause)) = turn.fault {
            self.wait(self.sea().now() + pause.as_millis() as u64, turn.key).await;
        } else if self.0.frozen_until.load(Ordering::Relaxed) > self.sea().now() {
            self.wait(0, turn.key).await;
        }
        if self.is_dead() {
            pending::<()>().await;
        }
    }

    fn told<T>(&self, turn: &Turn, outcome: Result<T>, say: impl FnOnce(&T) -> String) -> Result<T> {
        let said = match &outcome {
            Ok(value) => say(value),
            Err(Error::NotFound { .. }) => "absent".to_owned(),
            Err(Error::AlreadyExists { .. }) => "exists".to_owned(),
            Err(Error::Precondition { .. }) => "another version".to_owned(),
            Err(e) => e.to_string(),
        };
        let fault = turn.fault.map(|fault| format!(" [{fault:?}]")).unwrap_or_default();
        self.tell(&format!("{} → {said}{fault}", turn.what));
        outcome
    }

    /// Something that changes the store. It goes on when the caller does not wait any more.
    async fn change<T: Send + 'static>(
        &self,
        operation: Operation,
        path: &Path,
        change: impl FnOnce(&Disk) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let turn = self.ask(operation, path);
        let (process, path) = (self.clone(), path.clone());
        if !self.sea().is_here() {
            // On a thread of a library's: at once.
            let outcome = if self.is_dead() { Err(Cause::Reset.error(&path)) } else { change(&self.sea().disk) };
            return self.told(&turn, outcome, |_| "done".to_owned());
        }
        let (answer, answered) = oneshot::channel();
        tokio::spawn(async move {
            match turn.fault {
                Some(Fault::Late(cause, sooner, later)) => {
                    let now = process.sea().now();
                    process.wait(now + sooner.as_millis() as u64, turn.key).await;
                    process.told(&turn, Err(cause.error(&path)), |()| String::new()).unwrap_err();
                    // The caller may not wait any more.
                    let _ = answer.send(Err(cause.error(&path)));
                    process.sea().turn(now + later.as_millis() as u64, turn.key).await;
                    let outcome = change(&process.sea().disk);
                    let _ = process.told(&turn, outcome, |_| "done, late".to_owned());
                }
                _ => {
                    let outcome = process.changed(operation, &path, &turn, change).await;
                    let _ = answer.send(outcome);
                }
            }
        });
        match answered.await {
            Ok(outcome) => {
                self.alive().await;
                outcome
            }
            Err(_) => pending().await,
        }
    }

    async fn changed<T>(
        &self,
        operation: Operation,
        path: &Path,
        turn: &Turn,
        change: impl FnOnce(&Disk) -> Result<T>,
    ) -> Result<T> {
        let disk = &self.sea().disk;
        self.wait(turn.due, turn.key).await;
        // What a process had sent when it was killed is done or is not.
        if self.is_dead() && turn.key.is_multiple_of(2) {
            pending::<()>().await;
        }
        let done = |_: &T| "done".to_owned();
        let exists = || match operation {
            Operation::Create => Error::AlreadyExists { path: path.to_string(), source: "409".into() },
            _ => Error::Precondition { path: path.to_string(), source: "412".into() },
        };
        let outcome = match turn.fault {
            Some(Fault::Refused(cause)) => self.told(turn, Err(cause.error(path)), done),
            Some(Fault::NotDoneExists) => self.told(turn, Err(exists()), done),
            Some(Fault::AnswerLost(cause)) => self.told(turn, change(disk), done).and(Err(cause.error(path))),
            Some(Fault::DoneExists) => self.told(turn, change(disk), done).and(Err(exists())),
            Some(Fault::DiesBefore) => {
                self.die();
                pending().await
            }
            Some(Fault::DiesAfter) => {
                drop(self.told(turn, change(disk), done));
                self.die();
                pending().await
            }
            _ => self.told(turn, change(disk), done),
        };
        self.see(turn).await;
        outcome
    }

    /// Something that reads the store.
    async fn read<T>(
        &self,
        operation: Operation,
        path: &Path,
        read: impl FnOnce(&Disk) -> Result<T>,
        say: impl FnOnce(&T) -> String,
    ) -> Result<(T, Option<Fault>)> {
        let turn = self.ask(operation, path);
        let is_here = self.sea().is_here();
        if is_here {
            self.wait(turn.due, turn.key).await;
            self.alive().await;
        }
        if matches!(turn.fault, Some(Fault::DiesBefore | Fault::DiesAfter)) {
            self.die();
        }
        if self.is_dead() {
            if is_here {
                pending::<()>().await;
            }
            return Err(Cause::Reset.error(path));
        }
        let outcome = match turn.fault {
            Some(Fault::Refused(cause)) => self.told(&turn, Err(cause.error(path)), say),
            _ => self.told(&turn, read(&self.sea().disk), say),
        };
        self.see(&turn).await;
        outcome.map(|value| (value, turn.fault))
    }

    /// A process that was killed does nothing any more.
    async fn alive(&self) {
        if self.is_dead() {
            pending::<()>().await;
        }
    }
}

/// What is left of an answer that ends in the middle.
fn cut<T: Clone>(items: &[T], fault: Option<Fault>, path: &Path) -> Vec<Result<T>> {
    let half = items.len() / 2;
    match fault {
        Some(Fault::Short) => items[..half].iter().cloned().map(Ok).collect(),
        Some(Fault::Broken(cause)) => items[..half].iter().cloned().map(Ok).chain([Err(cause.error(path))]).collect(),
        _ => items.iter().cloned().map(Ok).collect(),
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Process({}.{})", self.0.node, self.0.process)
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

#[async_trait]
impl ObjectStore for Process {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let (path, bytes, mode, sea) = (location.clone(), Bytes::from(payload), opts.mode, Arc::clone(self.sea()));
        let operation = Operation::of_put(&mode);
        self.change(operation, location, move |disk| disk.put(&path, bytes, &mode, sea.wall())).await
    }

    async fn put_multipart_opts(&self, location: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Ok(Box::new(Upload { process: self.clone(), path: location.clone(), parts: Vec::new() }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let say = |found: &GetResult| format!("{} bytes", found.range.end - found.range.start);
        let (found, fault) = self.read(Operation::Get, location, |disk| disk.get(location, &options), say).await?;
        if options.head || !matches!(fault, Some(Fault::Short | Fault::Broken(_))) {
            return Ok(found);
        }
        let (meta, range, attributes) = (found.meta.clone(), found.range.clone(), found.attributes.clone());
        let bytes = found.bytes().await?;
        let halves = [bytes.slice(..bytes.len() / 2), bytes.slice(bytes.len() / 2..)];
        let payload = GetResultPayload::Stream(stream::iter(cut(&halves, fault, location)).boxed());
        Ok(GetResult { payload, meta, range, attributes })
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let process = self.clone();
        // All that is asked for at once is under way at once, and is done in any order.
        let deleted = locations.map(move |path| {
            let process = process.clone();
            async move {
                let path = path?;
                let of = path.clone();
                process.change(Operation::Delete, &path, move |disk| disk.delete(&of)).await.map(|()| path)
            }
        });
        deleted.buffered(1_000).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.listed(prefix.cloned(), None)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.listed(prefix.cloned(), Some(offset.clone()))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let path = prefix.cloned().unwrap_or_default();
        let list = |disk: &Disk| Ok(disk.list_folder(prefix));
        let say = |found: &ListResult| format!("{} objects", found.objects.len());
        match self.read(Operation::List, &path, list, say).await? {
            (_, Some(Fault::Broken(cause))) => Err(cause.error(&path)),
            (found, _) => Ok(found),
        }
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let mode = match options.mode {
            CopyMode::Overwrite => PutMode::Overwrite,
            CopyMode::Create => PutMode::Create,
        };
        let (from, path, sea) = (from.clone(), to.clone(), Arc::clone(self.sea()));
        let copy = move |disk: &Disk| {
            let bytes = disk
                .bytes(&from)
                .ok_or_else(|| Error::NotFound { path: from.to_string(), source: "no such object".into() })?;
            disk.put(&path, bytes, &mode, sea.wall()).map(drop)
        };
        self.change(Operation::Put, to, copy).await
    }
}

impl Process {
    fn listed(&self, folder: Option<Path>, after: Option<Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let process = self.clone();
        let listed = async move {
            let path = folder.clone().unwrap_or_default();
            let list = |disk: &Disk| Ok(disk.list(folder.as_ref(), after.as_ref()));
            let say = |found: &Vec<ObjectMeta>| format!("{} objects", found.len());
            match process.read(Operation::List, &path, list, say).await {
                Ok((found, fault)) => cut(&found, fault, &path),
                Err(e) => vec![Err(e)],
            }
        };
        stream::once(listed).flat_map(stream::iter).boxed()
    }
}

/// An upload in parts, which becomes an object when it is complete.
#[derive(Debug)]
struct Upload {
    process: Process,
    path: Path,
    parts: Vec<PutPayload>,
}

#[async_trait]
impl MultipartUpload for Upload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        self.parts.push(data);
        Box::pin(async { Ok(()) })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let whole: PutPayload = self.parts.iter().flat_map(PutPayload::iter).cloned().collect();
        self.process.put_opts(&self.path, whole, PutOptions::default()).await
    }

    async fn abort(&mut self) -> Result<()> {
        self.parts.clear();
        Ok(())
    }
}
