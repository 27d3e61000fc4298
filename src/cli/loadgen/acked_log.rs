//! `--acked-log`: which batches were acknowledged, so that a test that kills the server knows which samples must be
//! there.
//!
//! Each batch is logged after its acknowledgement and not before, as a line
//! `key ⇥ samples ⇥ first invocation_id ⇥ accepted|duplicate`; the ids of a batch count up from the first.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::LoadgenError;

/// The log of acknowledged batches.
pub(super) struct AckedLog {
    path: PathBuf,
    file: Mutex<File>,
}

impl AckedLog {
    pub(super) fn open(path: &Path) -> Result<Self, LoadgenError> {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .map_err(|cause| LoadgenError::AckedLog { path: path.to_owned(), cause })?;
        Ok(Self { path: path.to_owned(), file: Mutex::new(file) })
    }

    /// Appends a line in one write, so that a kill leaves whole lines.
    pub(super) fn append(&self, line: &str) -> Result<(), LoadgenError> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.write_all(line.as_bytes()).map_err(|cause| LoadgenError::AckedLog { path: self.path.clone(), cause })
    }
}
