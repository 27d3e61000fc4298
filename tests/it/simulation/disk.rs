//! What lies on the simulated store: objects with versions and times, all of it a function of what was done to it.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::StreamExt;
use object_store::path::Path;
use object_store::{
    Attributes, Error, GetOptions, GetResult, GetResultPayload, ListResult, ObjectMeta, PutMode, PutResult, Result,
};
use parking_lot::Mutex;

/// An object.
#[derive(Debug, Clone)]
pub(super) struct Object {
    pub(super) bytes: Bytes,
    pub(super) version: u64,
    modified: DateTime<Utc>,
}

/// All objects of a moment.
pub(super) type Image = BTreeMap<Path, Object>;

/// The objects on the simulated store.
#[derive(Debug, Default)]
pub(super) struct Disk {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    objects: Image,
    versions: u64,
}

fn absent(path: &Path) -> Error {
    Error::NotFound { path: path.to_string(), source: "no such object".into() }
}

impl Disk {
    /// A disk with the objects of an image.
    pub(super) fn of(image: &Image) -> Self {
        let versions = image.values().map(|object| object.version).max().unwrap_or(0);
        Self { inner: Mutex::new(Inner { objects: image.clone(), versions }) }
    }

    /// All objects as they are now.
    pub(super) fn image(&self) -> Image {
        self.inner.lock().objects.clone()
    }

    pub(super) fn put(&self, path: &Path, bytes: Bytes, mode: &PutMode, modified: DateTime<Utc>) -> Result<PutResult> {
        let mut inner = self.inner.lock();
        let found = inner.objects.get(path).map(|object| object.version.to_string());
        match mode {
            PutMode::Overwrite => {}
            PutMode::Create if found.is_some() => {
                return Err(Error::AlreadyExists { path: path.to_string(), source: "it is there".into() });
            }
            PutMode::Create => {}
            PutMode::Update(expected) if found.is_none() || found != expected.e_tag => {
                return Err(Error::Precondition { path: path.to_string(), source: "another version is there".into() });
            }
            PutMode::Update(_) => {}
        }
        inner.versions += 1;
        let version = inner.versions;
        inner.objects.insert(path.clone(), Object { bytes, version, modified });
        Ok(PutResult { e_tag: Some(version.to_string()), version: None })
    }

    pub(super) fn get(&self, path: &Path, options: &GetOptions) -> Result<GetResult> {
        let object = self.inner.lock().objects.get(path).cloned().ok_or_else(|| absent(path))?;
        let meta = meta(path, &object);
        options.check_preconditions(&meta)?;
        let range = match &options.range {
            Some(range) => range
                .as_range(meta.size)
                .map_err(|e| Error::Generic { store: "simulated", source: e.to_string().into() })?,
            None => 0..meta.size,
        };
        let bytes = object.bytes.slice(range.start as usize..range.end as usize);
        let payload = GetResultPayload::Stream(futures::stream::once(async { Ok(bytes) }).boxed());
        Ok(GetResult { payload, meta, range, attributes: Attributes::default() })
    }

    /// The bytes under a path.
    pub(super) fn bytes(&self, path: &Path) -> Option<Bytes> {
        self.inner.lock().objects.get(path).map(|object| object.bytes.clone())
    }

    /// The bytes under a path, with their version.
    pub(super) fn versioned(&self, path: &Path) -> Option<(Bytes, u64)> {
        self.inner.lock().objects.get(path).map(|object| (object.bytes.clone(), object.version))
    }

    pub(super) fn delete(&self, path: &Path) -> Result<()> {
        self.inner.lock().objects.remove(path).map(drop).ok_or_else(|| absent(path))
    }

    /// What lies under a folder, in order of path.
    pub(super) fn list(&self, folder: Option<&Path>, after: Option<&Path>) -> Vec<ObjectMeta> {
        let inner = self.inner.lock();
        let from = match (after, folder) {
            (Some(after), _) => Bound::Excluded(after),
            (None, Some(folder)) => Bound::Included(folder),
            (None, None) => Bound::Unbounded,
        };
        let found = inner.objects.range::<Path, _>((from, Bound::Unbounded));
        let under = |path: &Path| {
            folder.is_none_or(|folder| path.prefix_match(folder).is_some_and(|mut rest| rest.next().is_some()))
        };
        found.filter(|(path, _)| under(path)).map(|(path, object)| meta(path, object)).collect()
    }

    /// Objects and folders that lie directly in a folder.
    pub(super) fn list_folder(&self, folder: Option<&Path>) -> ListResult {
        let root = Path::default();
        let folder = folder.unwrap_or(&root);
        let (mut objects, mut folders) = (Vec::new(), std::collections::BTreeSet::new());
        for meta in self.list(Some(folder), None) {
            let mut rest = meta.location.prefix_match(folder).into_iter().flatten();
            let first = rest.next();
            let is_deeper = rest.next().is_some();
            drop(rest);
            match first {
                Some(part) if is_deeper => drop(folders.insert(folder.clone().join(part))),
                _ => objects.push(meta),
            }
        }
        ListResult { objects, common_prefixes: folders.into_iter().collect() }
    }
}

fn meta(path: &Path, object: &Object) -> ObjectMeta {
    ObjectMeta {
        location: path.clone(),
        last_modified: object.modified,
        size: object.bytes.len() as u64,
        e_tag: Some(object.version.to_string()),
        version: None,
    }
}

/// Puts an object into an image, as somebody with access to the store does.
pub(super) fn plant(image: &mut Image, path: &Path, bytes: Bytes) {
    let version = image.values().map(|object| object.version).max().unwrap_or(0) + 1;
    let modified = image.get(path).or_else(|| image.values().next()).map_or(DateTime::UNIX_EPOCH, |o| o.modified);
    image.insert(path.clone(), Object { bytes, version, modified });
}

#[test]
fn a_folder_lists_what_lies_in_it_alone() {
    let disk = Disk::default();
    for path in ["a/1", "a/2/x", "ab/1", "b"] {
        disk.put(&Path::from(path), Bytes::new(), &PutMode::Create, DateTime::UNIX_EPOCH).unwrap();
    }
    let names = |found: Vec<ObjectMeta>| found.into_iter().map(|meta| meta.location.to_string()).collect::<Vec<_>>();
    assert_eq!(names(disk.list(Some(&Path::from("a")), None)), ["a/1", "a/2/x"]);
    assert_eq!(names(disk.list(Some(&Path::from("a")), Some(&Path::from("a/1")))), ["a/2/x"]);
    let folder = disk.list_folder(Some(&Path::from("a")));
    assert_eq!(names(folder.objects), ["a/1"]);
    assert_eq!(folder.common_prefixes, [Path::from("a/2")]);
}

#[test]
fn an_update_needs_the_version_that_is_there() {
    let (disk, path) = (Disk::default(), Path::from("a"));
    let put = |mode| disk.put(&path, Bytes::new(), &mode, DateTime::UNIX_EPOCH);
    let first = put(PutMode::Create).unwrap();
    assert!(matches!(put(PutMode::Create), Err(Error::AlreadyExists { .. })));
    put(PutMode::Update(first.clone().into())).unwrap();
    assert!(matches!(put(PutMode::Update(first.into())), Err(Error::Precondition { .. })));
}
