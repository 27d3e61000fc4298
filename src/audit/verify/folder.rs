//! A ledger in a folder of this machine: a `file://` store, or an unpacked bundle. Nothing is ever written there.
//!
//! On NFS a file that is deleted while a program has it open is renamed to `.nfs` and hexadecimal digits by the client,
//! and goes when it is closed. Such names are left out of lists, and named in the verdict.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use parking_lot::Mutex;

use super::source::{Blob, SMALL, Source, SourceError};

/// A [`Source`] over a local folder.
#[derive(Debug)]
pub struct Folder {
    root: PathBuf,
    passed_over: Mutex<BTreeSet<String>>,
}

impl Folder {
    /// The folder that holds `checkpoint`, `segments/` and so on.
    ///
    /// # Errors
    /// When there is no such folder.
    pub fn open(root: &Path) -> Result<Self, SourceError> {
        match fs::metadata(root) {
            Ok(found) if found.is_dir() => Ok(Self { root: root.to_owned(), passed_over: Mutex::default() }),
            Ok(_) => Err(SourceError::new(root.display().to_string(), "it is no folder")),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                Err(SourceError::new(root.display().to_string(), "there is no ledger here: no such folder"))
            }
            Err(error) => Err(SourceError::new(root.display().to_string(), error)),
        }
    }

    fn file(&self, path: &str) -> Result<Option<File>, SourceError> {
        match File::open(self.root.join(path)) {
            Ok(file) => Ok(Some(file)),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(SourceError::new(path, error)),
        }
    }
}

/// A file in a folder's place is no folder, so what would be in it is not there.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

/// Whether an NFS client gives this name to a deleted file that is still open.
fn is_deleted_on_nfs(name: &str) -> bool {
    name.strip_prefix(".nfs").is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

impl Source for Folder {
    fn list(&self, folder: &str) -> Result<Vec<String>, SourceError> {
        let failed = |error| SourceError::new(folder, error);
        let found = match fs::read_dir(self.root.join(folder)) {
            Ok(found) => found,
            Err(error) if is_absent(&error) => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut names = Vec::new();
        for entry in found {
            let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
            if is_deleted_on_nfs(&name) {
                self.passed_over.lock().insert(format!("{folder}/{name}"));
            } else {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn passed_over(&self) -> Vec<String> {
        self.passed_over.lock().iter().cloned().collect()
    }

    fn open(&self, path: &str) -> Result<Option<Blob>, SourceError> {
        let Some(file) = self.file(path)? else { return Ok(None) };
        Blob::of(file).map(Some).map_err(|error| SourceError::new(path, error))
    }

    fn read(&self, paths: &[String]) -> Result<Vec<Option<Bytes>>, SourceError> {
        let read = |path: &String| {
            let Some(file) = self.file(path)? else { return Ok(None) };
            let mut bytes = Vec::new();
            match file.take(SMALL).read_to_end(&mut bytes) {
                Ok(_) => Ok(Some(bytes.into())),
                Err(error) if error.kind() == ErrorKind::IsADirectory => Ok(None),
                Err(error) => Err(SourceError::new(path, error)),
            }
        };
        paths.iter().map(read).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{Folder, Source};

    #[test]
    fn what_nfs_keeps_of_a_deleted_file_is_left_out_and_named_and_nothing_else_is() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("segments")).unwrap();
        for name in [".nfs00000000000a1b2c00000001", ".nfs", ".nfs-x", "0-1.parquet"] {
            std::fs::write(root.path().join("segments").join(name), b"x").unwrap();
        }
        let folder = Folder::open(root.path()).unwrap();
        let mut names = folder.list("segments").unwrap();
        names.sort_unstable();
        assert_eq!(names, [".nfs", ".nfs-x", "0-1.parquet"]);
        assert_eq!(folder.passed_over(), ["segments/.nfs00000000000a1b2c00000001"]);
    }
}
