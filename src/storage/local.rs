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
//! The same holds for a folder: the first use of each in a process fsyncs the one above it, whoever made it.
//!
//! Of many small objects that go together the disk's flushes are nearly all of the cost. They are written in one go:
//! all of the files, then an fsync of each, which finds most of the work done by the ones before, and one of each
//! folder.
//!
//! **What is listed** are files whose names can be an object's. Others never fail a listing: names that are not UTF-8
//! or hold control characters, hidden ones (`.nfs…`, `.foo.swp`), editors' backups (`foo~`), and what goes away
//! meanwhile.
//!
//! After a crash `.staging` may hold leftovers; those older than an hour are removed when the folder is opened (a
//! younger one may belong to another process on the same folder).

use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::fs::{self, File, Metadata};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path as FsPath, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyMode, CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};
use parking_lot::Mutex;
use uuid::Uuid;

use super::StorageError;

const STAGING: &str = ".staging";
/// Files that are open at once while many objects are written.
const OPEN_AT_ONCE: usize = 128;
const STALE: Duration = Duration::from_secs(3600);
/// Folders remembered as durable; past it all are forgotten, and fsynced once more as they are used.
const MAX_KNOWN_FOLDERS: usize = 1 << 14;
/// How deep folders are listed. Nothing of ours is deeper than ten; a link to a folder above would never end.
const MAX_DEPTH: usize = 32;

/// See the module's doc.
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
    pub(super) fn open_with(
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
        let walk = move || {
            let mut walk = Walk { recursive, after, objects: Vec::new(), folders: Vec::new() };
            walk.folder(&folder, &prefix, MAX_DEPTH)?;
            Ok(walk)
        };
        let walked: io::Result<Walk> = tokio::task::spawn_blocking(walk).await.map_err(generic)?;
        let Walk { mut objects, mut folders, .. } = walked.map_err(generic)?;
        objects.sort_unstable_by(|a, b| a.location.cmp(&b.location));
        folders.sort_unstable();
        Ok((objects, folders))
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

fn sync_folder(folder: &FsPath) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

type SyncFolder = Box<dyn Fn(&FsPath) -> io::Result<()> + Send + Sync>;

/// The folders of a store, and which of them are known to be there for good.
struct Folders {
    known: Mutex<HashSet<PathBuf>>,
    root: PathBuf,
    sync: SyncFolder,
}

impl fmt::Debug for Folders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Folders").field("root", &self.root).finish_non_exhaustive()
    }
}

impl Folders {
    fn below(root: PathBuf, sync: SyncFolder) -> Self {
        Self { known: Mutex::new(HashSet::new()), root, sync }
    }

    /// Makes what is written into `folder` from now on there for good as far as the folder goes: makes it and what is
    /// missing above it, and fsyncs each entry's folder once a process, since whoever made it may not have done so.
    fn ensure(&self, folder: &FsPath) -> io::Result<()> {
        if folder == self.root || (self.known.lock().contains(folder) && folder.is_dir()) {
            return Ok(());
        }
        if let Some(parent) = folder.parent() {
            self.ensure(parent)?;
            match fs::create_dir(folder) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
                _ => {}
            }
            if let Err(e) = (self.sync)(parent) {
                // The next fsync may succeed without writing the entry; made anew, it is written. One that holds
                // something by now cannot be removed, and stays unknown.
                let _ = fs::remove_dir(folder);
                return Err(e);
            }
        }
        if !folder.is_dir() {
            return Err(io::Error::new(io::ErrorKind::NotADirectory, "a file is in its place"));
        }
        let mut known = self.known.lock();
        if known.len() >= MAX_KNOWN_FOLDERS {
            known.clear();
        }
        known.insert(folder.to_owned());
        Ok(())
    }

    fn forget(&self, folder: &FsPath) {
        self.known.lock().remove(folder);
    }
}

/// Why an object was not written.
#[derive(Debug)]
enum WriteError {
    /// It was to be created, and another is in its place.
    Exists(io::Error),
    /// It may be in place all the same, if not for good.
    Failed(io::Error),
}

impl From<io::Error> for WriteError {
    fn from(e: io::Error) -> Self {
        Self::Failed(e)
    }
}

fn write_durably(
    folders: &Folders,
    staged: &FsPath,
    target: &FsPath,
    payload: &PutPayload,
    create: bool,
) -> Result<(), WriteError> {
    let folder = target.parent().ok_or_else(|| io::Error::other("object path has no folder"))?;
    folders.ensure(folder)?;
    let written = (|| {
        let mut file = File::create_new(staged)?;
        for chunk in payload {
            file.write_all(chunk)?;
        }
        file.sync_all()
    })();
    let placed = match written {
        Err(e) => Err(e.into()),
        Ok(()) if create => fs::hard_link(staged, target).map_err(|e| match e.kind() {
            io::ErrorKind::AlreadyExists => WriteError::Exists(e),
            _ => WriteError::Failed(e),
        }),
        Ok(()) => fs::rename(staged, target).map_err(WriteError::Failed),
    };
    if create || placed.is_err() {
        // The staged name is of no use any more. Whether it goes away matters to nobody: it is looked for at the next
        // start.
        let _ = fs::remove_file(staged);
    }
    placed?;
    Ok((folders.sync)(folder)?)
}

/// One of many objects on its way.
#[derive(Debug)]
struct Staged {
    file: PathBuf,
    target: PathBuf,
    bytes: Bytes,
}

fn write_all_durably(folders: &Folders, objects: &[Staged]) -> io::Result<()> {
    let placed = place_all(folders, objects);
    if placed.is_err() {
        // Those that are in place already are no longer staged.
        objects.iter().for_each(|staged| drop(fs::remove_file(&staged.file)));
    }
    placed
}

fn place_all(folders: &Folders, objects: &[Staged]) -> io::Result<()> {
    let mut touched = BTreeSet::new();
    for folder in objects.iter().filter_map(|staged| staged.target.parent()) {
        if touched.insert(folder) {
            folders.ensure(folder)?;
        }
    }
    for together in objects.chunks(OPEN_AT_ONCE) {
        let write = |staged: &Staged| {
            let mut file = File::create_new(&staged.file)?;
            file.write_all(&staged.bytes).map(|()| file)
        };
        let files = together.iter().map(write).collect::<io::Result<Vec<_>>>()?;
        files.iter().try_for_each(File::sync_all)?;
        together.iter().try_for_each(|staged| fs::rename(&staged.file, &staged.target))?;
    }
    touched.into_iter().try_for_each(|folder| (folders.sync)(folder))
}

/// Makes the store's own folder and what is missing above it; each new entry is fsynced in its parent.
fn create_root(folder: &FsPath) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    if let Some(parent) = folder.parent() {
        create_root(parent)?;
        match fs::create_dir(folder) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            // Made by us or, a moment ago, by another: it must be on disk before anything in it counts.
            _ => sync_folder(parent)?,
        }
    }
    if folder.is_dir() { Ok(()) } else { Err(io::Error::new(io::ErrorKind::NotADirectory, "a file is in its place")) }
}

fn remove_stale(staging: &FsPath) -> io::Result<()> {
    for entry in fs::read_dir(staging)? {
        let entry = entry?;
        let age = entry.metadata().and_then(|m| m.modified()).map(|at| at.elapsed().unwrap_or_default());
        if matches!(age, Ok(age) if age > STALE) {
            match fs::remove_file(entry.path()) {
                // Another process on the same folder was faster.
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
    }
    Ok(())
}

/// Reads folders.
#[derive(Debug)]
struct Walk {
    recursive: bool,
    /// Files up to here are passed over, before it is asked what they are.
    after: Option<Path>,
    objects: Vec<ObjectMeta>,
    folders: Vec<Path>,
}

impl Walk {
    /// Adds what is in `folder`, which is at `path` of the store. One that is not there, or is no folder, holds
    /// nothing.
    fn folder(&mut self, folder: &FsPath, path: &Path, depth: usize) -> io::Result<()> {
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(()),
            Err(e) => return Err(e),
        };
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let Some(location) = name.to_str().and_then(|name| object_path(path, name)) else { continue };
            let is_before = self.after.as_ref().is_some_and(|after| location <= *after);
            if is_before && entry.file_type().is_ok_and(|of| of.is_file()) {
                continue;
            }
            let file = folder.join(&name);
            let metadata = match fs::metadata(&file) {
                Ok(metadata) => metadata,
                // Gone meanwhile, or a symbolic link to nowhere.
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(e),
            };
            if metadata.is_file() {
                self.objects.push(object_meta(location, &metadata)?);
            } else if metadata.is_dir() && !self.recursive {
                self.folders.push(location);
            } else if metadata.is_dir() && depth > 0 {
                self.folder(&file, &location, depth - 1)?;
            }
        }
        Ok(())
    }
}

/// The path of what is called `name` in a folder; none if no object can be.
fn object_path(folder: &Path, name: &str) -> Option<Path> {
    let staged = name.rsplit_once('#').is_some_and(|(_, n)| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
    if name.starts_with('.') || name.ends_with('~') || staged {
        return None;
    }
    let whole = if folder.as_ref().is_empty() { name.to_owned() } else { format!("{folder}/{name}") };
    Path::parse(&whole).ok().filter(|path| path.as_ref() == whole)
}

fn object_meta(location: Path, metadata: &Metadata) -> io::Result<ObjectMeta> {
    let modified = metadata.modified()?;
    let micros = modified.duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
    Ok(ObjectMeta {
        location,
        last_modified: modified.into(),
        size: metadata.len(),
        // In the form that reads give it.
        e_tag: Some(format!("{:x}-{micros:x}-{:x}", metadata.ino(), metadata.len())),
        version: None,
    })
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

/// A multipart upload: parts are written to a staged file as they come, which is fsynced and put in its place when it
/// completes.
#[derive(Debug)]
struct StagedUpload {
    store: FsyncLocal,
    location: Path,
    path: PathBuf,
    file: Arc<File>,
    size: u64,
}

#[async_trait]
impl MultipartUpload for StagedUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (file, mut at) = (Arc::clone(&self.file), self.size);
        self.size += data.content_length() as u64;
        let write = move || {
            for chunk in &data {
                file.write_all_at(chunk, at)?;
                at += chunk.len() as u64;
            }
            io::Result::Ok(())
        };
        Box::pin(async move { tokio::task::spawn_blocking(write).await.map_err(generic)?.map_err(generic) })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let target = self.store.reads.path_to_filesystem(&self.location)?;
        let (folders, file, staged) = (Arc::clone(&self.store.folders), Arc::clone(&self.file), self.path.clone());
        let place = move || {
            let folder = target.parent().ok_or_else(|| io::Error::other("object path has no folder"))?;
            folders.ensure(folder)?;
            file.sync_all()?;
            fs::rename(&staged, &target)?;
            (folders.sync)(folder)
        };
        tokio::task::spawn_blocking(place).await.map_err(generic)?.map_err(generic)?;
        Ok(PutResult { e_tag: None, version: None })
    }

    async fn abort(&mut self) -> Result<()> {
        let staged = self.path.clone();
        tokio::task::spawn_blocking(move || fs::remove_file(staged)).await.map_err(generic)?.map_err(generic)
    }
}

impl Drop for StagedUpload {
    fn drop(&mut self) {
        // Of one that was completed the staged name is gone; of any other it is of no use, and looked for at the next
        // start.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::MetadataExt;
    use std::path::PathBuf;
    use std::sync::Arc;

    use futures::TryStreamExt;
    use object_store::path::Path;
    use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode};
    use parking_lot::Mutex;
    use tempfile::TempDir;

    use super::{FsyncLocal, STAGING};
    use crate::storage::{Created, Ensured, Store};

    #[tokio::test]
    async fn of_two_creations_one_wins_and_its_bytes_stay() {
        let folder = tempfile::tempdir().unwrap();
        let store = FsyncLocal::open(folder.path()).unwrap();
        let path = Path::from("a/b/1");
        store.put_opts(&path, "first".into(), PutMode::Create.into()).await.unwrap();
        let second = store.put_opts(&path, "second".into(), PutMode::Create.into()).await;
        assert!(matches!(second, Err(Error::AlreadyExists { .. })), "{second:?}");
        assert_eq!(store.get(&path).await.unwrap().bytes().await.unwrap(), "first");
    }

    #[tokio::test]
    async fn nothing_is_left_in_staging_whether_a_write_succeeds_or_fails() {
        let folder = tempfile::tempdir().unwrap();
        let store = FsyncLocal::open(folder.path()).unwrap();
        let path = Path::from("a");
        store.put(&path, "x".into()).await.unwrap();
        store.put_opts(&path, "y".into(), PutMode::Create.into()).await.unwrap_err();
        assert_eq!(std::fs::read_dir(folder.path().join(STAGING)).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn many_objects_are_written_together_over_what_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let store = FsyncLocal::open(folder.path()).unwrap();
        store.put(&Path::from("a/7"), "old".into()).await.unwrap();
        let objects = (0..300).map(|n| (Path::from(format!("a/{n}")), n.to_string().into()));
        store.put_all(objects.collect()).await.unwrap();
        for n in [0, 7, 299] {
            assert_eq!(store.get(&Path::from(format!("a/{n}"))).await.unwrap().bytes().await.unwrap(), n.to_string());
        }
        assert_eq!(std::fs::read_dir(folder.path().join(STAGING)).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn of_many_objects_one_that_cannot_be_written_is_an_error_and_nothing_is_left_in_staging() {
        let folder = tempfile::tempdir().unwrap();
        let store = FsyncLocal::open(folder.path()).unwrap();
        store.put(&Path::from("a"), "a file, no folder".into()).await.unwrap();
        let objects = [("b", "1"), ("a/c", "2")].map(|(path, text)| (Path::from(path), text.into()));
        store.put_all(objects.into()).await.unwrap_err();
        assert_eq!(std::fs::read_dir(folder.path().join(STAGING)).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn parts_in_any_order_become_one_object_and_an_upload_that_is_dropped_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let store = FsyncLocal::open(folder.path()).unwrap();
        let path = Path::from("d/large");
        let mut upload = store.put_multipart(&path).await.unwrap();
        let (one, two) = (upload.put_part("abc".into()), upload.put_part("defg".into()));
        two.await.unwrap();
        one.await.unwrap();
        assert!(store.head(&path).await.is_err(), "it is there when it is whole");
        upload.complete().await.unwrap();
        assert_eq!(store.get(&path).await.unwrap().bytes().await.unwrap(), "abcdefg");
        let mut dropped = store.put_multipart(&Path::from("d/other")).await.unwrap();
        dropped.put_part("x".into()).await.unwrap();
        drop((upload, dropped));
        assert_eq!(fs::read_dir(folder.path().join(STAGING)).unwrap().count(), 0);
        assert_eq!(listed(&store, "d").await, ["d/large"]);
    }

    async fn listed(store: &FsyncLocal, prefix: &str) -> Vec<String> {
        let found: Vec<_> = store.list(Some(&Path::from(prefix))).try_collect().await.unwrap();
        found.into_iter().map(|meta| meta.location.to_string()).collect()
    }

    #[tokio::test]
    async fn a_listing_is_in_order_of_path() {
        let folder = tempfile::tempdir().unwrap();
        let store = FsyncLocal::open(folder.path()).unwrap();
        for name in ["d/3", "d/1", "d/2/x", "d-e/1", "e"] {
            store.put(&Path::from(name), "x".into()).await.unwrap();
        }
        assert_eq!(listed(&store, "d").await, ["d/1", "d/2/x", "d/3"]);
        assert_eq!(listed(&store, "").await, ["d-e/1", "d/1", "d/2/x", "d/3", "e"]);
        assert_eq!(listed(&store, "d/1").await, [""; 0]);
        assert_eq!(listed(&store, "absent").await, [""; 0]);
        let one_level = store.list_with_delimiter(Some(&Path::from("d"))).await.unwrap();
        assert_eq!(one_level.common_prefixes, [Path::from("d/2")]);
        assert_eq!(one_level.objects.len(), 2);
        let after: Vec<_> =
            store.list_with_offset(Some(&Path::from("d")), &Path::from("d/1")).try_collect().await.unwrap();
        assert_eq!(after.len(), 2);
    }

    #[tokio::test]
    async fn a_listing_says_of_an_object_what_a_read_says() {
        let folder = tempfile::tempdir().unwrap();
        let store = FsyncLocal::open(folder.path()).unwrap();
        store.put(&Path::from("d/1"), "abc".into()).await.unwrap();
        let listed: Vec<_> = store.list(Some(&Path::from("d"))).try_collect().await.unwrap();
        assert_eq!(listed, [store.head(&Path::from("d/1")).await.unwrap()]);
    }

    #[tokio::test]
    async fn names_that_are_no_objects_never_fail_a_listing() {
        let folder = tempfile::tempdir().unwrap();
        let store = FsyncLocal::open(folder.path()).unwrap();
        store.put(&Path::from("wal/1"), "x".into()).await.unwrap();
        let wal = folder.path().join("wal");
        for name in [".nfs000000000001", ".1.swp", "1~", "a\nb", "1#7"] {
            fs::write(wal.join(name), "stray").unwrap();
        }
        fs::write(wal.join(std::ffi::OsStr::from_bytes(b"\xff\xfe")), "stray").unwrap();
        std::os::unix::fs::symlink("/nowhere/at/all", wal.join("dangling")).unwrap();
        std::os::unix::fs::symlink(&wal, wal.join("loop")).unwrap();
        let found = listed(&store, "wal").await;
        assert_eq!(found.iter().filter(|path| !path.starts_with("wal/loop")).collect::<Vec<_>>(), ["wal/1"]);
    }

    /// A folder whose fsyncs fail while `failing` says so, and which of its folders were fsynced.
    #[derive(Clone, Default)]
    struct Disk {
        failing: Arc<Mutex<usize>>,
        synced: Arc<Mutex<Vec<PathBuf>>>,
    }

    impl Disk {
        fn open(&self, folder: &TempDir) -> FsyncLocal {
            let disk = self.clone();
            FsyncLocal::open_with(folder.path(), move |folder| {
                let mut failing = disk.failing.lock();
                if *failing > 0 {
                    *failing -= 1;
                    return Err(io::Error::from_raw_os_error(5));
                }
                disk.synced.lock().push(folder.to_owned());
                Ok(())
            })
            .unwrap()
        }

        fn fail(&self, times: usize) {
            *self.failing.lock() = times;
        }

        fn synced(&self) -> Vec<PathBuf> {
            std::mem::take(&mut *self.synced.lock())
        }
    }

    #[tokio::test]
    async fn a_create_whose_folder_was_not_fsynced_is_unknown_and_then_exists_and_only_settling_makes_it_sure() {
        let (folder, disk) = (tempfile::tempdir().unwrap(), Disk::default());
        let store = Store::on_folder(disk.open(&folder), "test");
        let path = Path::from("wal/1");
        store.put(&Path::from("wal/0"), "x".into()).await.unwrap();
        disk.fail(1);
        let first = store.create(&path, "bytes".into()).await;
        assert!(matches!(first, Created::Unknown(_)), "{first:?}");
        let again = store.create(&path, "bytes".into()).await;
        assert!(matches!(again, Created::Exists), "{again:?}");
        // Nothing has been fsynced since, and nothing was claimed.
        disk.synced();
        disk.fail(1);
        store.settle(&path, "bytes".into()).await.unwrap_err();
        let file = folder.path().join("wal/1");
        let before = fs::metadata(&file).unwrap().ino();
        store.settle(&path, "bytes".into()).await.unwrap();
        assert_ne!(fs::metadata(&file).unwrap().ino(), before, "the same bytes were put in their place anew");
        assert_eq!(disk.synced(), [fs::canonicalize(folder.path()).unwrap().join("wal")]);
    }

    #[tokio::test]
    async fn ensure_makes_sure_of_what_it_finds() {
        let (folder, disk) = (tempfile::tempdir().unwrap(), Disk::default());
        let store = Store::on_folder(disk.open(&folder), "test");
        let path = Path::from("a/1");
        // Another process has linked the object into place and has fsynced nothing yet.
        fs::create_dir(folder.path().join("a")).unwrap();
        fs::write(folder.path().join("a/1"), "bytes").unwrap();
        assert!(matches!(store.ensure(&path, "bytes".into()).await, Ok(Ensured::Same)));
        let root = fs::canonicalize(folder.path()).unwrap();
        assert_eq!(disk.synced(), [root.clone(), root.join("a")], "its folder, and the folder that holds that");
        disk.fail(1);
        store.ensure(&path, "bytes".into()).await.unwrap_err();
        // Both the create and the settling after it fail; then the settling alone is left to do.
        disk.fail(2);
        store.ensure(&Path::from("a/2"), "bytes".into()).await.unwrap_err();
        disk.fail(1);
        store.ensure(&Path::from("a/3"), "bytes".into()).await.unwrap();
        assert!(matches!(store.ensure(&path, "other".into()).await, Ok(Ensured::Other(found)) if found == "bytes"));
    }

    #[tokio::test]
    async fn a_folder_whose_entry_was_not_fsynced_is_not_taken_for_durable() {
        let (folder, disk) = (tempfile::tempdir().unwrap(), Disk::default());
        let store = disk.open(&folder);
        disk.fail(1);
        store.put(&Path::from("a/1"), "x".into()).await.unwrap_err();
        store.put(&Path::from("a/1"), "x".into()).await.unwrap();
        let root = fs::canonicalize(folder.path()).unwrap();
        assert_eq!(disk.synced(), [root.clone(), root.join("a")]);
        store.put(&Path::from("a/2"), "x".into()).await.unwrap();
        assert_eq!(disk.synced(), [root.join("a")], "once a process is enough");
    }

    #[tokio::test]
    async fn many_objects_whose_folder_was_not_fsynced_are_put_in_place_anew() {
        let (folder, disk) = (tempfile::tempdir().unwrap(), Disk::default());
        let store = disk.open(&folder);
        store.put(&Path::from("a/0"), "x".into()).await.unwrap();
        let objects = || vec![(Path::from("a/1"), "1".into()), (Path::from("a/2"), "2".into())];
        disk.fail(1);
        store.put_all(objects()).await.unwrap_err();
        let inode = || fs::metadata(folder.path().join("a/1")).unwrap().ino();
        let before = inode();
        disk.synced();
        store.put_all(objects()).await.unwrap();
        assert_ne!(inode(), before);
        assert_eq!(disk.synced().len(), 1);
    }
}
