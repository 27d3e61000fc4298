//! A folder as a store, and one whose fsync fails.

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
    let after: Vec<_> = store.list_with_offset(Some(&Path::from("d")), &Path::from("d/1")).try_collect().await.unwrap();
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
