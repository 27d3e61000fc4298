//! A store in memory in which the operations of a test fail in turn, or something happens before one.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, StreamExt};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use parking_lot::Mutex;

/// What comes before a write of a path that holds a text.
type Hook = (String, BoxFuture<'static, ()>);

#[derive(Default)]
struct Inner {
    /// Operations so far.
    operations: usize,
    /// The one that fails, and whether it is done all the same.
    fails: Option<(usize, bool)>,
    hook: Option<Hook>,
    /// Whether nothing may be deleted.
    keeps_all: bool,
    /// Paths that were read.
    read: BTreeSet<Path>,
}

/// A store in memory whose operations fail or wait as a test says.
#[derive(Clone)]
pub(super) struct Played {
    objects: Arc<InMemory>,
    inner: Arc<Mutex<Inner>>,
}

impl fmt::Debug for Played {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Played")
    }
}

impl fmt::Display for Played {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Played")
    }
}

fn failed() -> Error {
    Error::Generic { store: "test", source: std::io::Error::from_raw_os_error(5).into() }
}

impl Played {
    pub(super) fn over(objects: &Arc<InMemory>) -> Self {
        Self { objects: Arc::clone(objects), inner: Arc::default() }
    }

    /// Has the operation after so many fail, before or after it is done.
    pub(super) fn fail(&self, after: usize, is_done: bool) {
        let mut inner = self.inner.lock();
        let at = inner.operations + after;
        inner.fails = Some((at, is_done));
    }

    /// Refuses every deletion, or no more.
    pub(super) fn keep_all(&self, keeps_all: bool) {
        self.inner.lock().keeps_all = keeps_all;
    }

    /// Whether the operation that is to fail has come.
    pub(super) fn has_failed(&self) -> bool {
        self.inner.lock().fails.is_none()
    }

    pub(super) fn heal(&self) {
        self.inner.lock().fails = None;
    }

    /// The paths that were read since the last time.
    pub(super) fn read(&self) -> BTreeSet<Path> {
        std::mem::take(&mut self.inner.lock().read)
    }

    /// Has something happen before the next write of a path that holds a text.
    pub(super) fn before(&self, path: &str, hook: BoxFuture<'static, ()>) {
        self.inner.lock().hook = Some((path.to_owned(), hook));
    }

    fn turn(&self) -> Option<bool> {
        let mut inner = self.inner.lock();
        inner.operations += 1;
        let fails = inner.fails.filter(|(at, _)| inner.operations > *at);
        if fails.is_some() {
            inner.fails = None;
        }
        fails.map(|(_, is_done)| is_done)
    }

    async fn hooked(&self, path: &Path) {
        let hook = {
            let mut inner = self.inner.lock();
            let is_it = inner.hook.as_ref().is_some_and(|(text, _)| path.as_ref().contains(text.as_str()));
            if is_it { inner.hook.take() } else { None }
        };
        if let Some((_, hook)) = hook {
            hook.await;
        }
    }

    fn listed(&self, listed: BoxStream<'static, Result<ObjectMeta>>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.turn() {
            Some(_) => stream::iter([Err(failed())]).boxed(),
            None => listed,
        }
    }
}

#[async_trait]
impl ObjectStore for Played {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        self.hooked(location).await;
        match self.turn() {
            Some(false) => Err(failed()),
            Some(true) => self.objects.put_opts(location, payload, opts).await.and(Err(failed())),
            None => self.objects.put_opts(location, payload, opts).await,
        }
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        match self.turn() {
            Some(_) => Err(failed()),
            None => self.objects.put_multipart_opts(location, opts).await,
        }
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.lock().read.insert(location.clone());
        if self.turn().is_some() { Err(failed()) } else { self.objects.get_opts(location, options).await }
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.inner.lock().read.insert(location.clone());
        if self.turn().is_some() { Err(failed()) } else { self.objects.get_ranges(location, ranges).await }
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        match self.turn() {
            Some(_) => stream::iter([Err(failed())]).boxed(),
            None if self.inner.lock().keeps_all => stream::iter([Err(failed())]).boxed(),
            None => self.objects.delete_stream(locations),
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.listed(self.objects.list(prefix))
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.listed(self.objects.list_with_offset(prefix, offset))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        if self.turn().is_some() { Err(failed()) } else { self.objects.list_with_delimiter(prefix).await }
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        if self.turn().is_some() { Err(failed()) } else { self.objects.copy_opts(from, to, options).await }
    }
}
