//! A local folder as an object store whose writes survive a power cut.
//!
//! `object_store`'s own local file system never calls fsync, so an object that it reported as written can be empty or
//! gone after the power fails. Here a write is: the bytes to `.staging/<random>`, fsync of that file, link (create if
//! absent) or rename (overwrite) into place, fsync of the folder, and of each folder that had to be made on the way.
//! So an object is seen whole or not at all, and once the call returns it is there for good. Reads, and deletions,
//! which need no such care, go to `object_store`.
//!
//! **A failed fsync of a folder.** The object is in place and the call fails: it may be gone after a power cut. Linux
//! reports such a failure once; the next fsync may succeed without having written anything. So a later success proves
//! nothing by itself: a create that finds the object there does not claim that it is durable, and
//! [`super::Store::settle`] renames the same bytes over it, which gives the next fsync something to write. That also
//! covers an object of another process, which is visible from its link on, before that process has fsynced the folder.
//! The same holds for a folder: the first use of each in a process fsyncs the one above it, by whichever process it was
//! made.
//!
//! Of many small objects that go together the disk's flushes are nearly all of the cost. They are written in one go:
//! all of the files, then an fsync of each, which finds most of the work done by the ones before, and one of each
//! folder.
//!
//! **What is listed** are files whose names can be an object's. Others never fail a listing: names that are not UTF-8
//! or hold control characters, hidden ones (`.nfs…`, `.foo.swp`), editors' backups (`foo~`), and what goes away
//! meanwhile.
//!
//! | file | holds |
//! |---|---|
//! | `durable` | writing files and their folders for good |
//! | `listing` | what a folder holds, as objects |
//! | `upload` | multipart uploads |
//!
//! After a crash `.staging` may hold leftovers; those older than an hour are removed when the folder is opened (a
//! younger one may belong to another process on the same folder).

mod durable;
mod listing;
#[cfg(test)]
mod tests;
mod upload;

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Path as FsPath, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyMode, CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use uuid::Uuid;

use self::durable::{
    Folders, Staged, WriteError, create_root, remove_stale, sync_folder, write_all_durably, write_durably,
};
use self::listing::Walk;
use self::upload::StagedUpload;
use super::StorageError;

const STAGING: &str = ".staging";

/// An object store on a local folder, with fsync.
#[derive(Debug, Clone)]
pub(crate) struct FsyncLocal {
    reads: Arc<LocalFileSystem>,
    root: Arc<PathBuf>,
    folders: Arc<Folders>,
}

impl FsyncLocal {
    /// Opens `root`, making it if it is not there.
    pub(crate) fn open(root: &FsPath) -> io::Result<Self> {
        Self::open_with(root, sync_folder)
    }

    /// The same with another fsync of folders, for tests in which it fails.
    pub(in crate::storage) fn open_with(
        root: &FsPath,
        sync: impl Fn(&FsPath) -> io::Result<()> + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let root = std::path::absolute(root)?;
        create_root(&root)?;
        let staging = root.join(STAGING);
        fs::create_dir_all(&staging)?;
        remove_stale(&staging)?;
        let reads = LocalFileSystem::new_with_prefix(&root).map_err(io::Error::other)?;
        // Paths of objects are below the root as `reads` knows it, without symbolic links.
        let folders = Folders::below(fs::canonicalize(&root)?, Box::new(sync));
        Ok(Self { reads: Arc::new(reads), root: Arc::new(root), folders: Arc::new(folders) })
    }

    /// Where it is.
    pub(super) fn root(&self) -> &FsPath {
        &self.root
    }

    /// Removes an empty folder; one that is not empty, or is gone, is left as it is.
    pub(super) async fn remove_empty_folder(&self, path: &Path) {
        let Ok(folder) = self.reads.path_to_filesystem(path) else { return };
        self.folders.forget(&folder);
        // A leftover folder does no harm.
        drop(tokio::task::spawn_blocking(move || fs::remove_dir(folder)).await);
    }

    /// See [`super::Store::put_all`].
    pub(super) async fn put_all(&self, objects: Vec<(Path, Bytes)>) -> Result<(), StorageError> {
        let staged = |(path, bytes): (Path, Bytes)| {
            let target = self.reads.path_to_filesystem(&path);
            let target = target.map_err(|e| StorageError::failed("write", &path, e))?;
            Ok(Staged { file: self.staging(), target, bytes })
        };
        let objects = objects.into_iter().map(staged).collect::<Result<Vec<_>, StorageError>>()?;
        let (count, folders) = (objects.len(), Arc::clone(&self.folders));
        let written = tokio::task::spawn_blocking(move || write_all_durably(&folders, &objects)).await;
        let written = written.unwrap_or_else(|e| Err(io::Error::other(e)));
        written.map_err(|e| StorageError::failed("write", format!("{count} objects"), e))
    }

    /// A new path to stage a file at.
    fn staging(&self) -> PathBuf {
        self.root.join(STAGING).join(Uuid::new_v4().simple().to_string())
    }

    async fn write(&self, location: &Path, payload: PutPayload, create: bool) -> Result<()> {
        let target = self.reads.path_to_filesystem(location)?;
        let (staged, folders) = (self.staging(), Arc::clone(&self.folders));
        let written =
            tokio::task::spawn_blocking(move || write_durably(&folders, &staged, &target, &payload, create)).await;
        match written {
            Ok(Ok(())) => Ok(()),
            Ok(Err(WriteError::Exists(e))) => {
                Err(Error::AlreadyExists { path: location.to_string(), source: e.into() })
            }
            Ok(Err(WriteError::Failed(e))) => Err(generic(e)),
            Err(e) => Err(generic(e)),
        }
    }

    /// What is below `prefix`, in order of path: all of it, or the files and folders in it alone; of the files those
    /// after `after`.
    async fn entries(
        &self,
        prefix: Option<&Path>,
        recursive: bool,
        after: Option<Path>,
    ) -> Result<(Vec<ObjectMeta>, Vec<Path>)> {
        let prefix = prefix.cloned().unwrap_or_default();
        let folder = match prefix.as_ref() {
            "" => self.root.as_path().to_owned(),
            _ => self.reads.path_to_filesystem(&prefix)?,
        };
        let walk = move || Walk::of(&folder, &prefix, recursive, after);
        tokio::task::spawn_blocking(walk).await.map_err(generic)?.map_err(generic)
    }
}

impl FsyncLocal {
    /// What is below `prefix`, in order of path, but for files up to `after`.
    fn listed(&self, prefix: Option<&Path>, after: Option<Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (store, prefix) = (self.clone(), prefix.cloned());
        stream::once(async move {
            let (objects, _) = store.entries(prefix.as_ref(), true, after).await?;
            Ok::<_, Error>(stream::iter(objects.into_iter().map(Ok)))
        })
        .try_flatten()
        .boxed()
    }
}
fn generic(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Generic { store: "local", source: source.into() }
}
#[async_trait]
impl ObjectStore for FsyncLocal {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let create = match opts.mode {
            PutMode::Overwrite => false,
            PutMode::Create => true,
            PutMode::Update(_) => {
                return Err(Error::NotImplemented {
                    operation: "conditional update".to_owned(),
                    implementer: self.to_string(),
                });
            }
        };
        self.write(location, payload, create).await?;
        Ok(PutResult { e_tag: None, version: None })
    }

    async fn put_multipart_opts(&self, location: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        let (staged, location) = (self.staging(), location.clone());
        let (path, opened) = (staged.clone(), tokio::task::spawn_blocking(move || File::create_new(staged)).await);
        let file = opened.map_err(generic)?.map_err(generic)?;
        Ok(Box::new(StagedUpload { store: self.clone(), location, path, file: Arc::new(file), size: 0 }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.reads.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.reads.delete_stream(locations)
    }

    /// In order of path, as every cloud store lists and Delta's log reader expects.
    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.listed(prefix, None)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        let after = offset.clone();
        self.listed(prefix, Some(offset.clone()))
            .try_filter(move |meta| futures::future::ready(meta.location > after))
            .boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let (objects, common_prefixes) = self.entries(prefix, false, None).await?;
        Ok(ListResult { common_prefixes, objects })
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let bytes = self.get(from).await?.bytes().await?;
        self.write(to, bytes.into(), options.mode == CopyMode::Create).await
    }
}

impl fmt::Display for FsyncLocal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FsyncLocal({})", self.root.display())
    }
}
