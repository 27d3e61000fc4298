//! A ledger in a folder of this machine: a `file://` store, or an unpacked bundle. Nothing is ever written there.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::source::{Blob, SMALL, Source, SourceError};

/// See the module's doc.
#[derive(Debug)]
pub struct Folder {
    root: PathBuf,
}

impl Folder {
    /// The folder that holds `checkpoint`, `segments/` and so on.
    ///
    /// # Errors
    /// When there is no such folder.
    pub fn open(root: &Path) -> Result<Self, SourceError> {
        match fs::metadata(root) {
            Ok(found) if found.is_dir() => Ok(Self { root: root.to_owned() }),
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

impl Source for Folder {
    fn list(&self, folder: &str) -> Result<Vec<String>, SourceError> {
        let failed = |error| SourceError::new(folder, error);
        let found = match fs::read_dir(self.root.join(folder)) {
            Ok(found) => found,
            Err(error) if is_absent(&error) => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        found.map(|entry| Ok(entry.map_err(failed)?.file_name().to_string_lossy().into_owned())).collect()
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
