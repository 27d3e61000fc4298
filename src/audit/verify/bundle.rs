//! A ledger in one file, as `mcpg audit export` makes it: a tar archive whose members are `checkpoint`,
//! `checkpoints/…`, `segments/…` and `tile/…`. It is read where it lies; only the members' places are held in memory.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::source::{Blob, SMALL, Source, SourceError};

/// A bundle that is open for reading.
#[derive(Debug)]
pub struct Bundle {
    file: Arc<File>,
    /// Where each member's bytes begin, and how many they are.
    members: HashMap<String, (u64, u64)>,
}

/// Why a file is no bundle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// It cannot be read.
    #[error(transparent)]
    Unreadable(#[from] SourceError),
    /// It is no archive, or a damaged one.
    #[error("{0}")]
    Damaged(String),
}

impl Bundle {
    /// Looks through the archive `path` for its members. An archive of a whole store's folder will do as well: only
    /// what is under `prefix`, which ends in a slash, or not under it at all, counts.
    ///
    /// # Errors
    /// When it cannot be read, or is no tar archive, or has a member twice.
    pub fn open(path: &Path, prefix: &str) -> Result<Self, BundleError> {
        let unreadable = |error: std::io::Error| SourceError::new(path.display().to_string(), error);
        let damaged = |error: std::io::Error| BundleError::Damaged(format!("it is no sound tar archive: {error}"));
        let file = File::open(path).map_err(unreadable)?;
        let length = file.metadata().map_err(unreadable)?.len();
        let mut members = HashMap::new();
        let mut archive = tar::Archive::new(file.try_clone().map_err(unreadable)?);
        for entry in archive.entries_with_seek().map_err(damaged)? {
            let entry = entry.map_err(damaged)?;
            if !entry.header().entry_type().is_file() {
                continue;
            }
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let name = name.strip_prefix("./").unwrap_or(&name);
            let name = name.strip_prefix(prefix).unwrap_or(name).to_owned();
            let place = (entry.raw_file_position(), entry.size());
            if place.0.checked_add(place.1).is_none_or(|end| end > length) {
                return Err(BundleError::Damaged(format!("it is cut off: {name} reaches beyond its end")));
            }
            if members.insert(name.clone(), place).is_some() {
                return Err(BundleError::Damaged(format!("it has {name} twice")));
            }
        }
        Ok(Self { file: Arc::new(file), members })
    }

    fn blob(&self, path: &str) -> Option<Blob> {
        let (start, length) = self.members.get(path)?;
        Some(Blob::within(Arc::clone(&self.file), *start, *length))
    }
}

impl Source for Bundle {
    fn list(&self, folder: &str) -> Result<Vec<String>, SourceError> {
        let names = self.members.keys().filter_map(|path| path.strip_prefix(folder)?.strip_prefix('/'));
        Ok(names.filter(|name| !name.contains('/')).map(str::to_owned).collect())
    }

    fn open(&self, path: &str) -> Result<Option<Blob>, SourceError> {
        Ok(self.blob(path))
    }

    fn read(&self, paths: &[String]) -> Result<Vec<Option<Bytes>>, SourceError> {
        let read = |path: &String| {
            let Some(blob) = self.blob(path) else { return Ok(None) };
            let mut bytes = Vec::new();
            let outcome = blob.reader().take(SMALL).read_to_end(&mut bytes);
            outcome.map(|_| Some(bytes.into())).map_err(|error| SourceError::new(path, error))
        };
        paths.iter().map(read).collect()
    }
}
