//! An object store that reads each object in one version alone: the one that was verified.
//!
//! Who has read an object and found it right [pins](Pinned::pin) it. From then on it is read if it is still that
//! version, by its ETag, and otherwise the read fails and the pin is gone: the object must be made sure of anew. What
//! was never pinned cannot be read, and nothing can be written.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use parking_lot::RwLock;

/// An object store that reads each pinned object in that version only.
#[derive(Debug)]
pub(crate) struct Pinned {
    inner: Arc<dyn ObjectStore>,
    pins: RwLock<HashMap<Path, ObjectMeta>>,
}

impl Pinned {
    /// Nothing of `inner` is pinned yet.
    pub(crate) fn new(inner: Arc<dyn ObjectStore>) -> Self {
        Self { inner, pins: RwLock::default() }
    }

    /// From now on the object is read in this version alone.
    pub(crate) fn pin(&self, meta: ObjectMeta) {
        self.pins.write().insert(meta.location.clone(), meta);
    }

    /// The version that an object is pinned to.
    pub(crate) fn pin_of(&self, path: &Path) -> Option<ObjectMeta> {
        self.pins.read().get(path).cloned()
    }

    fn read_only(&self) -> Error {
        Error::NotImplemented { operation: "a write".to_owned(), implementer: self.to_string() }
    }
}

impl fmt::Display for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "objects that were made sure of, in {}", self.inner)
    }
}

#[async_trait]
impl ObjectStore for Pinned {
    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let Some(pin) = self.pin_of(location) else {
            return Err(Error::Precondition {
                path: location.to_string(),
                source: "nobody has made sure of it".into(),
            });
        };
        let got = self.inner.get_opts(location, options.with_if_match(pin.e_tag)).await;
        if matches!(got, Err(Error::Precondition { .. } | Error::NotFound { .. })) {
            self.pins.write().remove(location);
        }
        got
    }

    async fn put_opts(&self, _: &Path, _: PutPayload, _: PutOptions) -> Result<PutResult> {
        Err(self.read_only())
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Err(self.read_only())
    }

    fn delete_stream(&self, _: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        stream::iter([Err(self.read_only())]).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        Err(self.read_only())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::memory::InMemory;
    use object_store::path::Path;
    use object_store::{Error, ObjectStore, ObjectStoreExt};

    use super::Pinned;

    #[tokio::test]
    async fn an_object_is_read_in_the_version_that_was_made_sure_of_and_in_no_other() {
        let (inner, path) = (Arc::new(InMemory::new()), Path::from("a"));
        inner.put(&path, "one".into()).await.unwrap();
        let pinned = Pinned::new(Arc::clone(&inner) as Arc<dyn ObjectStore>);
        assert!(matches!(pinned.get(&path).await, Err(Error::Precondition { .. })));
        pinned.pin(inner.head(&path).await.unwrap());
        assert_eq!(pinned.get_range(&path, 1..3).await.unwrap(), "ne");
        inner.put(&path, "two".into()).await.unwrap();
        assert!(matches!(pinned.get_ranges(&path, &[0..1, 1..2]).await, Err(Error::Precondition { .. })));
        assert_eq!(pinned.pin_of(&path), None);
        pinned.pin(inner.head(&path).await.unwrap());
        assert_eq!(pinned.get(&path).await.unwrap().bytes().await.unwrap(), "two");
        inner.delete(&path).await.unwrap();
        assert!(matches!(pinned.get(&path).await, Err(Error::NotFound { .. })));
        assert_eq!(pinned.pin_of(&path), None);
    }

    #[tokio::test]
    async fn nothing_is_written_through_it() {
        let pinned = Pinned::new(Arc::new(InMemory::new()));
        let path = Path::from("a");
        assert!(matches!(pinned.put(&path, "x".into()).await, Err(Error::NotImplemented { .. })));
        assert!(matches!(pinned.delete(&path).await, Err(Error::NotImplemented { .. })));
        assert!(matches!(pinned.copy(&path, &path).await, Err(Error::NotImplemented { .. })));
    }
}
