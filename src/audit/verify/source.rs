//! Where the files of a ledger are read from: a store's folder, a control plane, a bundle.
//!
//! A source gives files by their path under `orgs/<org>/audit/`. It is not trusted in anything: not in its lists, not
//! in its bytes. All calls block, since verifying is work for threads.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::reader::{ChunkReader, Length};

/// The most that is read of a file of a small form: a checkpoint, a tile. A larger one is not of that form.
pub(super) const SMALL: u64 = 1 << 16;

/// A file that cannot be read, though it may be there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path} cannot be read: {reason}")]
pub struct SourceError {
    /// The file or folder.
    pub path: String,
    /// Why.
    pub reason: String,
}

impl SourceError {
    /// That `path` cannot be read, and why.
    pub fn new(path: impl Into<String>, reason: impl ToString) -> Self {
        Self { path: path.into(), reason: reason.to_string() }
    }
}

/// A place that the files of a ledger are read from.
pub trait Source: Send + Sync {
    /// The names of the files in `folder`, which is `segments` or `checkpoints`, in any order; none where there is no
    /// folder.
    ///
    /// # Errors
    /// When it cannot be listed.
    fn list(&self, folder: &str) -> Result<Vec<String>, SourceError>;

    /// Files that [`Source::list`] has left out, since they do not belong to a ledger.
    fn passed_over(&self) -> Vec<String> {
        Vec::new()
    }

    /// A file of any length, if it is there.
    ///
    /// # Errors
    /// When it cannot be opened.
    fn open(&self, path: &str) -> Result<Option<Blob>, SourceError>;

    /// Small files, each if it is there; of one that is too long to be a tile or a checkpoint, the beginning.
    ///
    /// # Errors
    /// When one that is there cannot be read.
    fn read(&self, paths: &[String]) -> Result<Vec<Option<Bytes>>, SourceError>;

    /// One small file.
    ///
    /// # Errors
    /// As [`Source::read`].
    fn read_one(&self, path: &str) -> Result<Option<Bytes>, SourceError> {
        Ok(self.read(&[path.to_owned()])?.into_iter().next().flatten())
    }
}

/// A file of any length, that is read where it is needed and not held in memory.
#[derive(Debug, Clone)]
pub struct Blob {
    file: Arc<File>,
    start: u64,
    length: u64,
}

impl Blob {
    /// A whole file.
    ///
    /// # Errors
    /// When its length is not known.
    pub fn of(file: File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        Ok(Self { file: Arc::new(file), start: 0, length })
    }

    /// A part of a file.
    pub(super) fn within(file: Arc<File>, start: u64, length: u64) -> Self {
        Self { file, start, length }
    }

    /// How many bytes it has.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Reads it from its beginning on.
    pub fn reader(&self) -> impl Read + use<> {
        self.from(0)
    }

    fn from(&self, place: u64) -> BufReader<Section> {
        let place = place.min(self.length);
        let section = Section { file: Arc::clone(&self.file), at: self.start + place, end: self.start + self.length };
        BufReader::new(section)
    }
}

/// What is left of a part of a file.
#[derive(Debug)]
pub struct Section {
    file: Arc<File>,
    at: u64,
    end: u64,
}

impl Read for Section {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let wanted = into.len().min(left);
        let read = self.file.read_at(into.get_mut(..wanted).unwrap_or_default(), self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

impl Length for Blob {
    fn len(&self) -> u64 {
        self.length
    }
}

impl ChunkReader for Blob {
    type T = BufReader<Section>;

    fn get_read(&self, start: u64) -> ParquetResult<Self::T> {
        Ok(self.from(start))
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<Bytes> {
        // The length comes from the file itself, so it is held against what there is before memory is asked for.
        if start.checked_add(length as u64).is_none_or(|end| end > self.length) {
            return Err(ParquetError::EOF(format!("{length} bytes at {start} reach beyond its end")));
        }
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, self.start + start)?;
        Ok(bytes.into())
    }
}
