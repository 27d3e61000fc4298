//! Writing a file of any size: rows go in batch by batch, and the bytes that are done come out, so that no more than a
//! row group is in memory.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::errors::ParquetError;

use super::super::StorageError;
use super::layout::{Purpose, properties};
use super::stats::Counts;

/// A Parquet file that is being written.
pub struct FileWriter {
    schema: SchemaRef,
    writer: ArrowWriter<Vec<u8>>,
    counts: Counts,
}

impl std::fmt::Debug for FileWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileWriter").field("rows", &self.counts.rows()).finish_non_exhaustive()
    }
}

/// The end of a file.
#[derive(Debug)]
pub struct Finished {
    /// The bytes after those that came out before.
    pub bytes: Vec<u8>,
    /// Delta's statistics, JSON.
    pub stats: String,
    /// Rows in it.
    pub rows: usize,
}

fn failed(e: ParquetError) -> StorageError {
    StorageError::failed("encode", "a Parquet file", e)
}

impl FileWriter {
    /// A file of rows with these stored columns.
    ///
    /// # Errors
    /// When Parquet does not take the schema.
    pub fn new(schema: &SchemaRef, purpose: Purpose) -> Result<Self, StorageError> {
        let properties = properties(schema, purpose)?;
        let writer = ArrowWriter::try_new(Vec::new(), Arc::clone(schema), Some(properties)).map_err(failed)?;
        Ok(Self { schema: Arc::clone(schema), writer, counts: Counts::default() })
    }

    /// Adds rows.
    ///
    /// # Errors
    /// When they are of another schema, or Parquet cannot encode them.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<(), StorageError> {
        self.counts.add(batch);
        self.writer.write(batch).map_err(failed)
    }

    /// Takes the bytes that are done.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(self.writer.inner_mut())
    }

    /// Bytes that wait to be taken.
    pub fn done(&self) -> usize {
        self.writer.inner().len()
    }

    /// About how many bytes the file would have if it ended here.
    pub fn size(&self) -> usize {
        self.writer.bytes_written() + self.writer.in_progress_size()
    }

    /// Ends the file.
    ///
    /// # Errors
    /// When Parquet cannot encode what is left.
    pub fn finish(mut self) -> Result<Finished, StorageError> {
        let metadata = self.writer.finish().map_err(failed)?;
        let stats = self.counts.stats(&self.schema, metadata.row_groups().iter()).to_string();
        Ok(Finished { bytes: self.take(), stats, rows: self.counts.rows() })
    }
}
