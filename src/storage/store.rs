//! The object store that everything durable is in: opened by its settings, and its operations.
//!
//! | operation | on a remote store | an error or `Unknown` means |
//! |---|---|---|
//! | `create`, `swap` | one request, never repeated | it may have happened, may happen later, or never |
//! | `put`, `put_all`, `delete`, `delete_all` | repeated with backoff, 45 s | the same; trying again is safe |
//! | `get`, `head`, `list` | repeated with backoff, 45 s | nothing is known |
//!
//! [`Store::objects`] is for libraries (Delta, DataFusion). It repeats what is idempotent and never a conditional
//! write. So a commit of Delta's that fails may have happened, and its table must be read to know.

use std::path::Path as FsPath;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{Error, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutPayload, UpdateVersion};
use url::Url;

use super::local::FsyncLocal;
use super::transport::{RequestCounts, Requests};
use super::{StorageError, s3};
use crate::config::{Storage, StorageUrl};

/// Objects that are put at once, of many that go together.
const AT_ONCE: usize = 16;
/// An object above this is written in parts where the store is remote. One that is written whole is there at once or
/// not at all, in one request.
const MAX_WHOLE: usize = 64 << 20;
/// The size of a part, but for the last.
const PART: usize = 16 << 20;
/// Parts that are written at once.
const PARTS_AT_ONCE: usize = 4;

/// How a conditional write ended.
#[derive(Debug)]
pub enum Created {
    /// The object is there, durably, with the bytes that were given.
    Won,
    /// The store says that the condition did not hold: another object is there, or has another version. It says nothing
    /// about who wrote that, nor whether it is there for good, and it may be wrong: a proxy may have repeated the
    /// request, and lost to its own first attempt; and S3 answers 409 while another write of the object is under way
    /// that may fail yet, so that nothing is there. Reading the object back tells; absent, the same bytes may be
    /// created again.
    Exists,
    /// The store failed. The object may be there, may come to be there later, or may never be. On a folder it may be
    /// there and yet be gone after a power cut: [`Store::settle`].
    Unknown(StorageError),
}

/// What lies under a name after [`Store::ensure`].
#[derive(Debug)]
pub enum Ensured {
    /// The bytes that were given, durably, by any writer.
    Same,
    /// Other bytes, which were not touched.
    Other(Bytes),
}

/// An opened object store: everything durable is in it, under paths relative to the URL it was opened with.
#[derive(Debug, Clone)]
pub struct Store {
    objects: Arc<dyn ObjectStore>,
    /// The same, for conditional writes: one attempt each.
    conditional: Arc<dyn ObjectStore>,
    kind: Kind,
    url: String,
}

#[derive(Debug, Clone)]
enum Kind {
    /// A local folder, which can take many objects together.
    Folder(FsyncLocal),
    /// A service that is reached over the network, and the requests that it was sent.
    Remote(Arc<Requests>),
    /// Memory, or what a test brings along.
    Other,
}

impl Store {
    /// Opens the store that `url` names: `file:///path`, a bare path, `s3://bucket/prefix` with all else from the
    /// environment, or `memory://` (gone with the process).
    ///
    /// # Errors
    /// See [`Store::open_with`].
    pub fn open(url: &str) -> Result<Self, StorageError> {
        let parsed = url.parse::<StorageUrl>();
        // The message repeats the URL, without what may be a secret in it.
        let parsed = parsed.map_err(|e| StorageError::Unusable { url: "URL".to_owned(), reason: e.to_string() })?;
        Self::open_with(&parsed.into())
    }

    /// Opens the store that the settings name.
    ///
    /// A local folder is made if it is not there, and every object written to it is fsynced with its folder. Of a
    /// remote store nothing is requested yet: [`Store::probe`] tells whether it is there and does what it must.
    ///
    /// # Errors
    /// [`StorageError::Unusable`] when the folder cannot be made or written, or the settings are of no use.
    pub fn open_with(settings: &Storage) -> Result<Self, StorageError> {
        let url = settings.url.to_string();
        let unusable = |reason: String| StorageError::Unusable { url: url.clone(), reason };
        match &settings.url {
            StorageUrl::Memory => Ok(Self::new(Arc::new(InMemory::new()), &url)),
            StorageUrl::Folder(folder) => {
                let local = FsyncLocal::open(folder).map_err(|e| unusable(format!("cannot use the folder: {e}")))?;
                Ok(Self::on_folder(local, &url))
            }
            StorageUrl::S3 { bucket, prefix } => {
                let bucket = s3::open(settings, bucket, prefix).map_err(unusable)?;
                let kind = Kind::Remote(bucket.requests);
                Ok(Self { objects: bucket.objects, conditional: bucket.conditional, kind, url })
            }
        }
    }

    /// A store over `objects`, for tests that inject faults and for stores that were opened elsewhere.
    pub fn new(objects: Arc<dyn ObjectStore>, url: &str) -> Self {
        Self { conditional: Arc::clone(&objects), objects, kind: Kind::Other, url: url.to_owned() }
    }

    /// A store on a folder.
    pub(super) fn on_folder(local: FsyncLocal, url: &str) -> Self {
        Self { kind: Kind::Folder(local.clone()), ..Self::new(Arc::new(local), url) }
    }

    /// Reads an object; none if it is absent.
    ///
    /// # Errors
    /// [`StorageError::Failed`] with what the store says.
    pub async fn get(&self, path: &Path) -> Result<Option<Bytes>, StorageError> {
        Ok(self.get_versioned(path).await?.map(|(bytes, _)| bytes))
    }

    /// Reads an object with the version that [`Store::swap`] compares; none if it is absent.
    ///
    /// # Errors
    /// [`StorageError::Failed`] with what the store says.
    pub async fn get_versioned(&self, path: &Path) -> Result<Option<(Bytes, UpdateVersion)>, StorageError> {
        let version = |meta: ObjectMeta| UpdateVersion { e_tag: meta.e_tag, version: meta.version };
        Ok(self.get_whole(path).await?.map(|(bytes, meta)| (bytes, version(meta))))
    }

    /// Reads an object, with what the store says of that version of it; none if it is absent.
    ///
    /// # Errors
    /// [`StorageError::Failed`] with what the store says.
    pub(crate) async fn get_whole(&self, path: &Path) -> Result<Option<(Bytes, ObjectMeta)>, StorageError> {
        let failed = |e| StorageError::failed("read", path, e);
        match self.objects.get(path).await {
            Ok(found) => {
                let meta = found.meta.clone();
                let size = meta.size;
                let bytes = found.bytes().await.map_err(failed)?;
                // What did not arrive whole is no finding about the object.
                if bytes.len() as u64 != size {
                    let reason = format!("{} of its {size} bytes arrived", bytes.len());
                    return Err(StorageError::failed("read", path, reason));
                }
                Ok(Some((bytes, meta)))
            }
            Err(Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(failed(e)),
        }
    }

    /// What the store says of an object without reading it; none if it is absent.
    ///
    /// # Errors
    /// [`StorageError::Failed`] with what the store says.
    pub async fn head(&self, path: &Path) -> Result<Option<ObjectMeta>, StorageError> {
        match self.objects.head(path).await {
            Ok(found) => Ok(Some(found)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(StorageError::failed("look for", path, e)),
        }
    }

    /// Writes an object over whatever is there.
    ///
    /// # Errors
    /// [`StorageError::Failed`] with what the store says; the write may have happened, or happen later.
    pub async fn put(&self, path: &Path, bytes: Bytes) -> Result<(), StorageError> {
        self.put_object(path, bytes).await.map_err(|e| StorageError::failed("write", path, e))
    }

    async fn put_object(&self, path: &Path, bytes: Bytes) -> Result<(), Error> {
        match self.kind {
            Kind::Remote(_) if bytes.len() > MAX_WHOLE => self.put_in_parts(path, bytes).await,
            _ => self.objects.put(path, bytes.into()).await.map(drop),
        }
    }

    /// Writes a large object in parts, which are seen together once the last is there.
    async fn put_in_parts(&self, path: &Path, bytes: Bytes) -> Result<(), Error> {
        let mut upload = self.objects.put_multipart(path).await?;
        let mut parts = Vec::new();
        let mut rest = bytes.clone();
        while !rest.is_empty() {
            let part = rest.split_to(PART.min(rest.len()));
            parts.push(upload.put_part(part.into()));
        }
        let written = match stream::iter(parts).buffer_unordered(PARTS_AT_ONCE).try_collect::<()>().await {
            Ok(()) => upload.complete().await.map(drop),
            Err(e) => {
                // Parts that cannot be removed are: the bucket's lifecycle rule for uploads that were not completed.
                drop(upload.abort().await);
                return Err(e);
            }
        };
        match written {
            // The request to put the parts together is repeated after a lost answer; then there is no such upload any
            // more.
            Err(e @ Error::NotFound { .. }) => match self.objects.get(path).await?.bytes().await? == bytes {
                true => Ok(()),
                false => Err(e),
            },
            written => written,
        }
    }

    /// Creates an object if it is absent, in one attempt that is not repeated.
    pub async fn create(&self, path: &Path, payload: PutPayload) -> Created {
        self.conditional(path, payload, PutMode::Create, "create").await
    }

    /// Writes an object if it still has the version that was read, or is still absent where that is `None`; in one
    /// attempt. Only where [`Store::can_swap`].
    pub async fn swap(&self, path: &Path, read: Option<UpdateVersion>, bytes: Bytes) -> Created {
        let mode = read.map_or(PutMode::Create, PutMode::Update);
        self.conditional(path, bytes.into(), mode, "swap").await
    }

    async fn conditional(&self, path: &Path, payload: PutPayload, mode: PutMode, action: &'static str) -> Created {
        let update = matches!(mode, PutMode::Update(_));
        match self.conditional.put_opts(path, payload, mode.into()).await {
            Ok(_) => Created::Won,
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Created::Exists,
            // A store may say "not found" of an update of what is absent. Of a create it means the bucket.
            Err(Error::NotFound { .. }) if update => Created::Exists,
            Err(e) => Created::Unknown(StorageError::failed(action, path, e)),
        }
    }

    /// Whether the store has compare-and-swap. A folder has none: a rename that lands late would take it back.
    pub fn can_swap(&self) -> bool {
        !matches!(self.kind, Kind::Folder(_))
    }

    /// Whether requests cross a network, cost money and take tens of milliseconds.
    pub fn is_remote(&self) -> bool {
        matches!(self.kind, Kind::Remote(_))
    }

    /// The requests that were sent to a remote store, each attempt counted; none on a folder and in memory.
    pub fn requests(&self) -> Option<RequestCounts> {
        match &self.kind {
            Kind::Remote(requests) => Some(requests.counts()),
            Kind::Folder(_) | Kind::Other => None,
        }
    }

    /// Where the folder is, of a store that is one.
    pub fn folder_path(&self) -> Option<&FsPath> {
        self.folder().map(FsyncLocal::root)
    }

    pub(super) fn folder(&self) -> Option<&FsyncLocal> {
        match &self.kind {
            Kind::Folder(local) => Some(local),
            Kind::Remote(_) | Kind::Other => None,
        }
    }

    /// Creates an object whose bytes are a function of its name, or finds that it is there. What is there is not
    /// touched.
    ///
    /// # Errors
    /// [`StorageError::Failed`] when its fate is not known; trying again is safe.
    pub async fn ensure(&self, path: &Path, bytes: Bytes) -> Result<Ensured, StorageError> {
        let unknown = match self.create(path, bytes.clone().into()).await {
            Created::Won => return Ok(Ensured::Same),
            Created::Exists => None,
            Created::Unknown(e) => Some(e),
        };
        match self.get(path).await? {
            Some(found) if found == bytes => self.settle(path, found).await.map(|()| Ensured::Same),
            Some(found) => Ok(Ensured::Other(found)),
            None => Err(unknown.unwrap_or_else(|| {
                StorageError::failed("create", path, "the store says that it exists, and that it does not")
            })),
        }
    }

    /// Makes sure that an object which was read back, and holds just these bytes, will be there for good. A folder
    /// whose fsync failed once may say yes the next time without having done anything, and an object of another process
    /// can be seen before that process has fsynced its folder: so on a folder the same bytes are put in their own place
    /// again. An object that is deleted meanwhile may come back that way.
    ///
    /// # Errors
    /// [`StorageError::Failed`] when that is not sure.
    pub async fn settle(&self, path: &Path, bytes: Bytes) -> Result<(), StorageError> {
        match self.kind {
            Kind::Folder(_) => self.put(path, bytes).await,
            Kind::Remote(_) | Kind::Other => Ok(()),
        }
    }

    /// Deletes an object; it may be gone already.
    ///
    /// # Errors
    /// [`StorageError::Failed`] with what the store says.
    pub async fn delete(&self, path: &Path) -> Result<(), StorageError> {
        self.delete_all(vec![path.clone()]).await
    }

    /// Deletes objects, in bulk where the store can; each may be gone already.
    ///
    /// # Errors
    /// [`StorageError::Failed`] with the first that could not be deleted.
    pub async fn delete_all(&self, paths: Vec<Path>) -> Result<(), StorageError> {
        let mut deleted = self.objects.delete_stream(stream::iter(paths.into_iter().map(Ok)).boxed());
        while let Some(one) = deleted.next().await {
            match one {
                Ok(_) | Err(Error::NotFound { .. }) => {}
                Err(e) => return Err(StorageError::failed("delete", self.url(), e)),
            }
        }
        Ok(())
    }

    /// What lies under a folder, in order of path. On a folder of the file system, files whose names cannot be objects'
    /// are passed over; others that are not ours (an operator's notes) are listed, and readers must expect them.
    ///
    /// # Errors
    /// [`StorageError::Failed`] with what the store says.
    pub async fn list(&self, folder: &Path) -> Result<Vec<ObjectMeta>, StorageError> {
        let listed = self.objects.list(Some(folder)).try_collect::<Vec<_>>().await;
        let mut found = listed.map_err(|e| StorageError::failed("list", folder, e))?;
        found.sort_unstable_by(|a, b| a.location.cmp(&b.location));
        Ok(found)
    }

    /// Writes objects that are independent of each other, over whatever is there. Once it returns, all are there for
    /// good; after an error or a crash any of them may be.
    ///
    /// # Errors
    /// [`StorageError::Failed`] with the first that could not be written.
    pub async fn put_all(&self, objects: Vec<(Path, Bytes)>) -> Result<(), StorageError> {
        if let Kind::Folder(local) = &self.kind {
            return local.put_all(objects).await;
        }
        let puts = objects.into_iter().map(async |(path, bytes)| self.put(&path, bytes).await);
        stream::iter(puts).buffer_unordered(AT_ONCE).try_collect().await
    }

    /// The objects, by path relative to the store's URL. What is idempotent is repeated for a bounded time; a
    /// conditional write is sent once, and one that fails may have happened.
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
    use std::fmt;
    use std::sync::Arc;

    use async_trait::async_trait;
    use bytes::Bytes;
    use futures::stream::{self, BoxStream, StreamExt};
    use object_store::memory::InMemory;
    use object_store::path::Path;
    use object_store::{
        CopyOptions, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
        PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
    };

    use super::Store;

    /// A store whose reads end in the middle, without an error.
    #[derive(Debug)]
    struct Short(InMemory);

    impl fmt::Display for Short {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("Short")
        }
    }

    #[async_trait]
    impl ObjectStore for Short {
        async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
            self.0.put_opts(location, payload, opts).await
        }

        async fn put_multipart_opts(
            &self,
            location: &Path,
            opts: PutMultipartOptions,
        ) -> Result<Box<dyn MultipartUpload>> {
            self.0.put_multipart_opts(location, opts).await
        }

        async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
            let mut got = self.0.get_opts(location, options).await?;
            got.payload = GetResultPayload::Stream(stream::iter([Ok(Bytes::from_static(b"ha"))]).boxed());
            Ok(got)
        }

        fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
            self.0.delete_stream(locations)
        }

        fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
            self.0.list(prefix)
        }

        async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
            self.0.list_with_delimiter(prefix).await
        }

        async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
            self.0.copy_opts(from, to, options).await
        }
    }

    /// Rule L9: damage is found in bytes that arrived whole.
    #[tokio::test]
    async fn a_read_that_ends_in_the_middle_is_a_failure_and_no_finding() {
        let store = Store::new(Arc::new(Short(InMemory::new())), "memory://");
        let path = Path::from("wal/1");
        store.put(&path, "half".into()).await.unwrap();
        let failed = store.get(&path).await.unwrap_err();
        assert!(!failed.is_damage() && failed.to_string().contains("2 of its 4 bytes arrived"), "{failed}");
    }

    #[test]
    fn a_scheme_that_is_not_supported_is_refused_by_name() {
        let message = Store::open("ftp://host/x").unwrap_err().to_string();
        assert!(message.contains("ftp://") && message.contains("file:///") && message.contains("s3://"), "{message}");
    }

    #[test]
    fn a_file_in_the_folders_place_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let message = Store::open(file.path().to_str().unwrap()).unwrap_err().to_string();
        assert!(message.contains("cannot use the folder"), "{message}");
    }
}
