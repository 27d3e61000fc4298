//! A local folder as an object store whose writes survive a power cut.
//!
//! `object_store`'s own local file system never calls fsync, so an object that it reported as written can be empty or
//! gone after the power fails. Here a write is: the bytes to `.staging/<random>`, fsync of that file, link (create if
//! absent) or rename (overwrite) into place, fsync of the folder, and of each folder that had to be made on the way.
//! So an object is seen whole or not at all, and once the call returns it is there for good. Reads, and deletions,
//! which need no such care, go to `object_store`.
//!
//! Of many small objects that go together the disk's flushes are nearly all of the cost. They are written in one go: all of the
//! files, then an fsync of each, which finds most of the work done by the ones before, and one of each folder.
//!
//! After a crash `.staging` may hold leftovers; those older than an hour are removed when the folder is opened (a
//! younger one may belong to another process on the same folder).

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path as FsPath, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyMode, CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};
use uuid::Uuid;

use super::StorageError;

const STAGING: &str = ".staging";
/// Files that are open at once while many objects are written.
const OPEN_AT_ONCE: usize = 128;
const STALE: Duration = Duration::from_secs(3600);

/// See the module's doc.
#[derive(Debug, Clone)]
pub(crate) struct FsyncLocal {
    reads: Arc<LocalFileSystem>,
    root: Arc<PathBuf>,
}

impl FsyncLocal {
    /// Opens `root`, making it if it is not there.
    pub(crate) fn open(root: &FsPath) -> io::Result<Self> {
        let root = std::path::absolute(root)?;
        create_dir_durably(&root)?;
        let staging = root.join(STAGING);
        fs::create_dir_all(&staging)?;
        remove_stale(&staging)?;
        let reads = LocalFileSystem::new_with_prefix(&root).map_err(io::Error::other)?;
        Ok(Self { reads: Arc::new(reads), root: Arc::new(root) })
    }

    /// See [`super::Store::put_all`].
    pub(super) async fn put_all(&self, objects: Vec<(Path, Bytes)>) -> Result<(), StorageError> {
        let staged = |(path, bytes): (Path, Bytes)| {
            let target = self.reads.path_to_filesystem(&path);
            let target = target.map_err(|e| StorageError::failed("write", &path, e))?;
            Ok(Staged { file: self.staging(), target, bytes })
        };
        let objects = objects.into_iter().map(staged).collect::<Result<Vec<_>, StorageError>>()?;
        let count = objects.len();
        let written = tokio::task::spawn_blocking(move || write_all_durably(&objects)).await;
        let written = written.unwrap_or_else(|e| Err(io::Error::other(e)));
        written.map_err(|e| StorageError::failed("write", format!("{count} objects"), e))
    }

    /// A new path to stage a file at.
    fn staging(&self) -> PathBuf {
        self.root.join(STAGING).join(Uuid::new_v4().simple().to_string())
    }

    async fn write(&self, location: &Path, payload: PutPayload, create: bool) -> Result<()> {
        let target = self.reads.path_to_filesystem(location)?;
        let staged = self.staging();
        let written = tokio::task::spawn_blocking(move || write_durably(&staged, &target, &payload, create)).await;
        match written {
            Ok(Ok(())) => Ok(()),
            Ok(Err(e)) if create && e.kind() == io::ErrorKind::AlreadyExists => {
                Err(Error::AlreadyExists { path: location.to_string(), source: e.into() })
            }
            Ok(Err(e)) => Err(generic(e)),
            Err(e) => Err(generic(e)),
        }
    }
}

fn generic(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Generic { store: "local", source: source.into() }
}

fn write_durably(staged: &FsPath, target: &FsPath, payload: &PutPayload, create: bool) -> io::Result<()> {
    let folder = target.parent().ok_or_else(|| io::Error::other("object path has no folder"))?;
    create_dir_durably(folder)?;
    let placed = (|| {
        let mut file = File::create_new(staged)?;
        for chunk in payload {
            file.write_all(chunk)?;
        }
        file.sync_all()?;
        if create {
            fs::hard_link(staged, target)?;
            fs::remove_file(staged)
        } else {
            fs::rename(staged, target)
        }
    })();
    if let Err(e) = placed {
        // The staged file is of no use to anyone; what matters to the caller is why the write failed.
        let _ = fs::remove_file(staged);
        return Err(e);
    }
    File::open(folder)?.sync_all()
}

/// One of many objects on its way.
#[derive(Debug)]
struct Staged {
    file: PathBuf,
    target: PathBuf,
    bytes: Bytes,
}

fn write_all_durably(objects: &[Staged]) -> io::Result<()> {
    let placed = place_all(objects);
    if placed.is_err() {
        // Those that are in place already are no longer staged.
        objects.iter().for_each(|staged| drop(fs::remove_file(&staged.file)));
    }
    placed
}

fn place_all(objects: &[Staged]) -> io::Result<()> {
    let mut folders = BTreeSet::new();
    for folder in objects.iter().filter_map(|staged| staged.target.parent()) {
        if folders.insert(folder) {
            create_dir_durably(folder)?;
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
    folders.into_iter().try_for_each(|folder| File::open(folder)?.sync_all())
}

/// Makes `folder` and what is missing above it; each new entry is fsynced in its parent.
fn create_dir_durably(folder: &FsPath) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    if let Some(parent) = folder.parent() {
        create_dir_durably(parent)?;
        match fs::create_dir(folder) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            // Made by us or, a moment ago, by another: it must be on disk before anything in it counts.
            _ => File::open(parent)?.sync_all()?,
        }
    }
    if folder.is_dir() { Ok(()) } else { Err(io::Error::new(io::ErrorKind::NotADirectory, "a file is in its place")) }
}

fn remove_stale(staging: &FsPath) -> io::Result<()> {
    for entry in fs::read_dir(staging)? {
        let entry = entry?;
        let age = entry.metadata().and_then(|m| m.modified()).map(|at| at.elapsed().unwrap_or_default());
        if matches!(age, Ok(age) if age > STALE) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
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
        Ok(Box::new(BufferedUpload { store: self.clone(), location: location.clone(), parts: Vec::new() }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.reads.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.reads.delete_stream(locations)
    }

    /// In order of path, as every cloud store lists and Delta's log reader expects.
    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let unordered = self.reads.list(prefix);
        stream::once(async move {
            let mut all: Vec<_> = unordered.try_collect().await?;
            all.sort_unstable_by(|a: &ObjectMeta, b| a.location.cmp(&b.location));
            Ok::<_, Error>(stream::iter(all.into_iter().map(Ok)))
        })
        .try_flatten()
        .boxed()
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        let offset = offset.clone();
        self.list(prefix).try_filter(move |meta| futures::future::ready(meta.location > offset)).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.reads.list_with_delimiter(prefix).await
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

/// A multipart upload that is written in one piece when it completes. Only Delta's checkpoints come this way; they are
/// small against the memory that making them takes.
#[derive(Debug)]
struct BufferedUpload {
    store: FsyncLocal,
    location: Path,
    parts: Vec<Bytes>,
}

#[async_trait]
impl MultipartUpload for BufferedUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        self.parts.extend(data);
        Box::pin(futures::future::ready(Ok(())))
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let payload = std::mem::take(&mut self.parts).into_iter().collect();
        self.store.write(&self.location, payload, false).await?;
        Ok(PutResult { e_tag: None, version: None })
    }

    async fn abort(&mut self) -> Result<()> {
        self.parts.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt;
    use object_store::path::Path;
    use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode};

    use super::{FsyncLocal, STAGING};

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
    async fn a_listing_is_in_order_of_path() {
        let folder = tempfile::tempdir().unwrap();
        let store = FsyncLocal::open(folder.path()).unwrap();
        for n in [3, 1, 2] {
            store.put(&Path::from(format!("d/{n:020}")), "x".into()).await.unwrap();
        }
        let listed: Vec<_> = store.list(Some(&Path::from("d"))).try_collect().await.unwrap();
        assert!(listed.is_sorted_by(|a, b| a.location < b.location) && listed.len() == 3);
    }
}
