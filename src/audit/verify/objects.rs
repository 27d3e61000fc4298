//! A ledger in an object store that is not a folder of this machine. Nothing is ever written there.

use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{Error, GetOptions, GetRange, GetResult, ObjectStore};
use tokio::runtime::Handle;

use super::source::{Blob, SMALL, Source, SourceError};
use super::spool;

/// Objects that are read at once.
const AT_ONCE: usize = 32;

/// A [`Source`] over an object store.
#[derive(Debug)]
pub struct Objects {
    objects: Arc<dyn ObjectStore>,
    /// The path of the ledger.
    root: String,
    runtime: Handle,
}

impl Objects {
    /// The ledger under `root`, read by means of `runtime`, which must not be the caller's own thread.
    pub fn new(objects: Arc<dyn ObjectStore>, root: String, runtime: Handle) -> Self {
        Self { objects, root, runtime }
    }

    fn path(&self, path: &str) -> Path {
        Path::from(format!("{}/{path}", self.root))
    }

    async fn get(&self, path: &str, range: Option<GetRange>) -> Result<Option<GetResult>, SourceError> {
        match self.objects.get_opts(&self.path(path), GetOptions { range, ..GetOptions::default() }).await {
            Ok(found) => Ok(Some(found)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(SourceError::new(path, error)),
        }
    }

    async fn small(&self, path: &str) -> Result<Option<Bytes>, SourceError> {
        let Some(found) = self.get(path, Some(GetRange::Bounded(0..SMALL))).await? else { return Ok(None) };
        found.bytes().await.map(Some).map_err(|error| SourceError::new(path, error))
    }
}

impl Source for Objects {
    fn list(&self, folder: &str) -> Result<Vec<String>, SourceError> {
        let path = self.path(folder);
        let names =
            self.objects.list(Some(&path)).map_ok(|meta| meta.location.filename().unwrap_or_default().to_owned());
        self.runtime.block_on(names.try_collect()).map_err(|error| SourceError::new(folder, error))
    }

    fn open(&self, path: &str) -> Result<Option<Blob>, SourceError> {
        let open = async {
            let Some(found) = self.get(path, None).await? else { return Ok(None) };
            spool::keep(found.into_stream()).await.map(Some).map_err(|error| SourceError::new(path, error))
        };
        self.runtime.block_on(open)
    }

    fn read(&self, paths: &[String]) -> Result<Vec<Option<Bytes>>, SourceError> {
        let reads = futures::stream::iter(paths).map(|path| self.small(path));
        self.runtime.block_on(reads.buffered(AT_ONCE).try_collect())
    }
}
