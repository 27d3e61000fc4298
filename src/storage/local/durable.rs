//! Putting files in their place for good: each is fsynced, and so is its folder, see [`super`].

use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path as FsPath, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use object_store::PutPayload;
use parking_lot::Mutex;

/// Files that are open at once while many objects are written.
const OPEN_AT_ONCE: usize = 128;
/// Folders remembered as durable; past it all are forgotten, and fsynced once more as they are used.
const MAX_KNOWN_FOLDERS: usize = 1 << 14;
/// A staged file of this age is a leftover.
const STALE: Duration = Duration::from_secs(3600);

/// Fsyncs a folder.
pub(super) fn sync_folder(folder: &FsPath) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

type SyncFolder = Box<dyn Fn(&FsPath) -> io::Result<()> + Send + Sync>;

/// The folders of a store, and which of them are known to be there for good.
pub(super) struct Folders {
    known: Mutex<HashSet<PathBuf>>,
    root: PathBuf,
    pub(super) sync: SyncFolder,
}

impl fmt::Debug for Folders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Folders").field("root", &self.root).finish_non_exhaustive()
    }
}

impl Folders {
    /// Those below a root.
    pub(super) fn below(root: PathBuf, sync: SyncFolder) -> Self {
        Self { known: Mutex::new(HashSet::new()), root, sync }
    }

    /// Makes what is written into `folder` from now on there for good as far as the folder goes: makes it and what is
    /// missing above it, and fsyncs each entry's folder once a process, since the process that made it may not have
    /// done so.
    pub(super) fn ensure(&self, folder: &FsPath) -> io::Result<()> {
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

    /// Takes a folder for unknown.
    pub(super) fn forget(&self, folder: &FsPath) {
        self.known.lock().remove(folder);
    }
}

/// Why an object was not written.
#[derive(Debug)]
pub(super) enum WriteError {
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

/// Writes one object for good.
pub(super) fn write_durably(
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
        // The staged name is of no use any more. Whether it is deleted does not matter: it is looked for at the next
        // start.
        let _ = fs::remove_file(staged);
    }
    placed?;
    Ok((folders.sync)(folder)?)
}

/// One of many objects on its way.
#[derive(Debug)]
pub(super) struct Staged {
    pub(super) file: PathBuf,
    pub(super) target: PathBuf,
    pub(super) bytes: Bytes,
}

/// Writes many objects for good, in one go.
pub(super) fn write_all_durably(folders: &Folders, objects: &[Staged]) -> io::Result<()> {
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
pub(super) fn create_root(folder: &FsPath) -> io::Result<()> {
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

/// Removes the leftovers of a crash.
pub(super) fn remove_stale(staging: &FsPath) -> io::Result<()> {
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
