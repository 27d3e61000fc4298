//! Opening the object store that a URL names.

use std::path::{Path as FsPath, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use url::Url;

use super::StorageError;
use super::local::FsyncLocal;

/// Objects that are put at once, of many that go together.
const AT_ONCE: usize = 16;

/// An opened object store: everything durable is in it, under paths relative to the URL it was opened with.
#[derive(Debug, Clone)]
pub struct Store {
    objects: Arc<dyn ObjectStore>,
    /// The same where it is a local folder, which can take many objects together.
    local: Option<FsyncLocal>,
    url: String,
}

impl Store {
    /// Opens the store that `url` names: `file:///path`, a bare path, or `memory://` (gone with the process).
    ///
    /// A local folder is made if it is not there, and every object written to it is fsynced with its folder.
    ///
    /// # Errors
    /// [`StorageError::Unusable`] when the URL is of no known kind or its folder cannot be made or written.
    pub fn open(url: &str) -> Result<Self, StorageError> {
        let unusable = |reason: String| StorageError::Unusable { url: url.to_owned(), reason };
        let folder = match Url::parse(url) {
            Ok(parsed) => match parsed.scheme() {
                "file" => parsed.to_file_path().map_err(|()| unusable("not an absolute file:/// path".to_owned()))?,
                "memory" => return Ok(Self::new(Arc::new(InMemory::new()), url)),
                scheme => {
                    return Err(unusable(format!(
                        "scheme {scheme}:// is not supported; use file:///folder or memory://"
                    )));
                }
            },
            Err(_) => PathBuf::from(url),
        };
        let local = FsyncLocal::open(&folder).map_err(|e| unusable(format!("cannot use the folder: {e}")))?;
        Ok(Self { local: Some(local.clone()), ..Self::new(Arc::new(local), url) })
    }

    /// A store over `objects`, for tests that inject faults and for stores that were opened elsewhere.
    pub fn new(objects: Arc<dyn ObjectStore>, url: &str) -> Self {
        Self { objects, local: None, url: url.to_owned() }
    }

    /// Writes objects that are independent of each other, over whatever is there. Once it returns, all are there for good; after
    /// an error or a crash any of them may be.
    ///
    /// # Errors
    /// [`StorageError::Failed`] with the first that could not be written.
    pub async fn put_all(&self, objects: Vec<(Path, Bytes)>) -> Result<(), StorageError> {
        if let Some(local) = &self.local {
            return local.put_all(objects).await;
        }
        let puts = objects.into_iter().map(async |(path, bytes)| {
            let put = self.objects.put(&path, bytes.into()).await;
            put.map(drop).map_err(|e| StorageError::failed("write", &path, e))
        });
        stream::iter(puts).buffer_unordered(AT_ONCE).try_collect().await
    }

    /// The objects, by path relative to the store's URL.
    pub fn objects(&self) -> &Arc<dyn ObjectStore> {
        &self.objects
    }

    /// The URL that it was opened with, for messages.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The error that what is stored here does not fit the configuration, and why.
    pub fn unusable(&self, reason: impl ToString) -> StorageError {
        StorageError::Unusable { url: self.url.clone(), reason: reason.to_string() }
    }

    /// The `file://` URL of a local folder, made absolute against the current directory.
    ///
    /// # Errors
    /// [`StorageError::Unusable`] when there is no current directory.
    pub fn url_of_folder(folder: &FsPath) -> Result<String, StorageError> {
        let unusable = |reason: String| StorageError::Unusable { url: folder.display().to_string(), reason };
        let absolute = std::path::absolute(folder).map_err(|e| unusable(e.to_string()))?;
        let url = Url::from_file_path(&absolute).map_err(|()| unusable("not an absolute path".to_owned()))?;
        Ok(url.into())
    }
}

#[cfg(test)]
mod tests {
    use super::Store;

    #[test]
    fn a_scheme_that_is_not_supported_is_refused_by_name() {
        let message = Store::open("ftp://host/x").unwrap_err().to_string();
        assert!(message.contains("ftp://") && message.contains("file:///"), "{message}");
    }

    #[test]
    fn a_file_in_the_folders_place_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let message = Store::open(file.path().to_str().unwrap()).unwrap_err().to_string();
        assert!(message.contains("cannot use the folder"), "{message}");
    }
}
