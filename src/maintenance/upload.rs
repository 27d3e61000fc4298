//! Putting a file into the store as it is written: whole where it is small, else in parts of one size.

use bytes::{Bytes, BytesMut};
use object_store::path::Path;
use object_store::{Error, MultipartUpload, ObjectStoreExt};

use crate::storage::{StorageError, Store};

/// The size of a part, but for the last.
pub(super) const PART: usize = 8 << 20;

/// A file on its way into the store.
pub(super) struct Upload {
    store: Store,
    path: Path,
    waiting: BytesMut,
    parts: Option<Box<dyn MultipartUpload>>,
    size: u64,
}

impl Upload {
    /// Of a file that no one else writes, since its name is random.
    pub(super) fn new(store: &Store, path: Path) -> Self {
        Self { store: store.clone(), path, waiting: BytesMut::new(), parts: None, size: 0 }
    }

    fn failed(&self, e: Error) -> StorageError {
        StorageError::failed("write", &self.path, e)
    }

    /// Adds bytes.
    pub(super) async fn write(&mut self, bytes: Bytes) -> Result<(), StorageError> {
        self.size += bytes.len() as u64;
        self.waiting.extend_from_slice(&bytes);
        while self.waiting.len() > PART {
            let part = self.waiting.split_to(PART).freeze();
            self.part(part).await?;
        }
        Ok(())
    }

    async fn part(&mut self, bytes: Bytes) -> Result<(), StorageError> {
        if self.parts.is_none() {
            let begun = self.store.objects().put_multipart(&self.path).await;
            self.parts = Some(begun.map_err(|e| self.failed(e))?);
        }
        let Some(parts) = &mut self.parts else { return Ok(()) };
        if let Err(e) = parts.put_part(bytes.into()).await {
            // Parts that cannot be removed are: the bucket's lifecycle rule for uploads that were not completed.
            drop(parts.abort().await);
            return Err(self.failed(e));
        }
        Ok(())
    }

    /// Ends the file. Once it returns, the file is there for good. Gives its size.
    pub(super) async fn finish(mut self) -> Result<u64, StorageError> {
        let last = self.waiting.split().freeze();
        if self.parts.is_none() {
            self.store.put(&self.path, last).await?;
            return Ok(self.size);
        }
        self.part(last).await?;
        let Some(parts) = &mut self.parts else { return Ok(self.size) };
        match parts.complete().await {
            Ok(_) => Ok(self.size),
            // The request to put the parts together is repeated after a lost answer; then there is no such upload any
            // more.
            Err(e @ Error::NotFound { .. }) => match self.store.head(&self.path).await? {
                Some(found) if found.size == self.size => Ok(self.size),
                _ => Err(self.failed(e)),
            },
            Err(e) => Err(self.failed(e)),
        }
    }
}
