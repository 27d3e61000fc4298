//! An object store that remembers that an operation on it failed.
//!
//! Delta's libraries read and parse in one call, and not every error of theirs keeps what caused it. Who calls them
//! over this store knows all the same whether an error may come of a read that failed: then nothing is known of what is
//! stored.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result,
};

/// An object store that remembers whether an operation failed.
#[derive(Debug, Clone)]
pub(super) struct Watched {
    inner: Arc<dyn ObjectStore>,
    failures: Failures,
}

/// How many operations have failed.
#[derive(Debug, Clone, Default)]
pub(super) struct Failures(Arc<AtomicU64>);

impl Failures {
    /// The number so far. Where it is greater after a call than before it, something failed meanwhile.
    pub(super) fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Takes note of what is a failure of the store, and no answer.
    fn note<T>(&self, outcome: Result<T>) -> Result<T> {
        use Error::{AlreadyExists, NotFound, NotModified, Precondition};
        if let Err(e) = &outcome
            && !matches!(e, NotFound { .. } | AlreadyExists { .. } | Precondition { .. } | NotModified { .. })
        {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
        outcome
    }

    fn note_all<T: 'static>(&self, stream: BoxStream<'static, Result<T>>) -> BoxStream<'static, Result<T>> {
        let failures = self.clone();
        stream.map(move |outcome| failures.note(outcome)).boxed()
    }
}

impl Watched {
    pub(super) fn new(inner: Arc<dyn ObjectStore>) -> Self {
        Self { inner, failures: Failures::default() }
    }

    pub(super) fn failures(&self) -> Failures {
        self.failures.clone()
    }
}

impl fmt::Display for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl ObjectStore for Watched {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        self.failures.note(self.inner.put_opts(location, payload, opts).await)
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.failures.note(self.inner.put_multipart_opts(location, opts).await)
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let got = self.failures.note(self.inner.get_opts(location, options).await)?;
        // A read of the body may fail as well, of a file too.
        let GetResult { meta, range, attributes, .. } = &got;
        let (meta, range, attributes) = (meta.clone(), range.clone(), attributes.clone());
        let payload = GetResultPayload::Stream(self.failures.note_all(got.into_stream()));
        Ok(GetResult { payload, meta, range, attributes })
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.failures.note(self.inner.get_ranges(location, ranges).await)
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.failures.note_all(self.inner.delete_stream(locations))
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.failures.note_all(self.inner.list(prefix))
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.failures.note_all(self.inner.list_with_offset(prefix, offset))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.failures.note(self.inner.list_with_delimiter(prefix).await)
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.failures.note(self.inner.copy_opts(from, to, options).await)
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.failures.note(self.inner.rename_opts(from, to, options).await)
    }
}
