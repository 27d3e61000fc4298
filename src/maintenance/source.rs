//! One input of a merge: its rows in order, a row group of bytes and a batch of rows in memory at a time.
//!
//! Bytes are asked of the store on the runtime, and decoded on a thread that may block: [`Source::next`] says when it
//! needs bytes. A small file is read whole, in one request. A file that does not say that its rows are in order (one of
//! an older version) is put in order batch by batch: it then lies less well in the outcome, and is there all the same.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{ArrayRef, new_null_array};
use arrow::compute::cast;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use arrow::row::Rows;
use bytes::{Buf, Bytes};
use object_store::ObjectStoreExt;
use object_store::path::Path;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
};
use parquet::errors::ParquetError;
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader};
use parquet::file::reader::{ChunkReader, Length};

use super::merge::read_rows;
use super::plan::row_bytes;
use crate::storage::parquet::{Keys, sorted, taken};
use crate::storage::table::LiveFile;
use crate::storage::{StorageError, Store};

/// A file of at most so many bytes is read whole.
const WHOLE: u64 = 4 << 20;
/// What is read first of the end of a larger one: most footers are smaller.
const FOOTER: u64 = 64 << 10;

/// A part of a file.
#[derive(Debug, Clone)]
pub(super) struct Piece {
    from: u64,
    bytes: Bytes,
    file_size: u64,
}

impl Piece {
    fn slice(&self, start: u64, length: usize) -> parquet::errors::Result<Bytes> {
        let at = start.checked_sub(self.from).and_then(|at| usize::try_from(at).ok());
        match at.filter(|at| at.saturating_add(length) <= self.bytes.len()) {
            Some(at) => Ok(self.bytes.slice(at..at + length)),
            None => Err(ParquetError::EOF(format!("{length} bytes at {start} are outside of what was read"))),
        }
    }
}

impl Length for Piece {
    fn len(&self) -> u64 {
        self.file_size
    }
}

impl ChunkReader for Piece {
    type T = bytes::buf::Reader<Bytes>;

    fn get_read(&self, start: u64) -> parquet::errors::Result<Self::T> {
        let end = self.from + self.bytes.len() as u64;
        let length = usize::try_from(end.saturating_sub(start)).unwrap_or(0);
        Ok(self.slice(start, length)?.reader())
    }

    fn get_bytes(&self, start: u64, length: usize) -> parquet::errors::Result<Bytes> {
        self.slice(start, length)
    }
}

/// Rows in order, with what they are compared by.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) batch: RecordBatch,
    pub(super) keys: Option<Rows>,
}

/// What a source has next.
#[derive(Debug)]
pub(super) enum Next {
    /// Rows.
    Rows(Head),
    /// None before these bytes of the file are there: see [`Source::give`].
    Needs(Range<u64>),
    /// None any more.
    End,
}

/// One input of a merge, read in order.
pub(super) struct Source {
    pub(super) path: Path,
    size: u64,
    metadata: ArrowReaderMetadata,
    is_sorted: bool,
    /// The stored columns of the table.
    schema: SchemaRef,
    /// Rows of a batch.
    rows: usize,
    whole: Option<Piece>,
    group: usize,
    reader: Option<ParquetRecordBatchReader>,
    piece: Option<Piece>,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source").field("path", &self.path.as_ref()).finish_non_exhaustive()
    }
}

impl Source {
    /// Opens a file of a table with these stored columns.
    pub(super) async fn open(store: &Store, file: &LiveFile, schema: SchemaRef) -> Result<Self, StorageError> {
        let (path, size) = (file.data.path.clone(), file.data.size);
        let damaged = |e: ParquetError| StorageError::damaged(&path, e);
        let from = if size <= WHOLE { 0 } else { size - FOOTER.min(size) };
        let mut piece = Piece { from, bytes: read(store, &path, from..size).await?, file_size: size };
        let mut reader = ParquetMetaDataReader::new().with_page_index_policy(PageIndexPolicy::Skip);
        let metadata = loop {
            match reader.try_parse_sized(&piece.bytes, size) {
                Ok(()) => break reader.finish().map_err(damaged)?,
                Err(ParquetError::NeedMoreData(more)) if piece.from > 0 => {
                    let from = size.saturating_sub(more as u64).min(piece.from.saturating_sub(1));
                    piece = Piece { from, bytes: read(store, &path, from..size).await?, file_size: size };
                }
                Err(e) => return Err(damaged(e)),
            }
        };
        let is_sorted = metadata.row_groups().iter().all(|group| group.sorting_columns().is_some());
        let metadata = ArrowReaderMetadata::try_new(Arc::new(metadata), ArrowReaderOptions::new()).map_err(damaged)?;
        // A column that another version added would be lost.
        if let Some(field) = metadata.schema().fields().iter().find(|field| schema.index_of(field.name()).is_err()) {
            let reason = format!("it has a column {:?}, which this version does not know", field.name());
            return Err(StorageError::failed("merge", &path, reason));
        }
        let whole = (piece.from == 0).then_some(piece);
        let rows = read_rows(row_bytes(file));
        Ok(Self { path, size, metadata, is_sorted, schema, rows, whole, group: 0, reader: None, piece: None })
    }

    /// The next rows. To be called where it may block.
    pub(super) fn next(&mut self, keys: Option<&Keys>) -> Result<Next, StorageError> {
        loop {
            if let Some(reader) = &mut self.reader {
                let path = &self.path;
                match reader.next().transpose().map_err(|e| StorageError::damaged(path, e))? {
                    Some(batch) if batch.num_rows() == 0 => continue,
                    Some(batch) => {
                        return self
                            .head(batch, keys)
                            .map(Next::Rows)
                            .map_err(|e| StorageError::damaged(&self.path, e));
                    }
                    None => self.reader = None,
                }
            }
            if self.group >= self.metadata.metadata().num_row_groups() {
                return Ok(Next::End);
            }
            let Some(piece) = self.whole.clone().or_else(|| self.piece.take()) else {
                return Ok(Next::Needs(range(self.metadata.metadata(), self.group)));
            };
            let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(piece, self.metadata.clone());
            let reader = builder.with_row_groups(vec![self.group]).with_batch_size(self.rows).build();
            self.reader = Some(reader.map_err(|e| StorageError::damaged(&self.path, e))?);
            self.group += 1;
        }
    }

    fn head(&self, batch: RecordBatch, keys: Option<&Keys>) -> Result<Head, ArrowError> {
        let mut batch = conform(&batch, &self.schema)?;
        if !self.is_sorted
            && let Some(places) = sorted(std::slice::from_ref(&batch))?
        {
            batch = taken(std::slice::from_ref(&batch), &places)?;
        }
        let keys = keys.map(|keys| keys.rows(&batch)).transpose()?;
        Ok(Head { batch, keys })
    }

    /// The file, to be read by single columns.
    pub(super) fn by_columns(self) -> ByColumns {
        ByColumns { path: self.path, size: self.size, metadata: self.metadata, whole: self.whole }
    }

    /// Reads bytes that [`Source::next`] asked for.
    pub(super) async fn give(&mut self, store: &Store, range: Range<u64>) -> Result<(), StorageError> {
        let bytes = read(store, &self.path, range.clone()).await?;
        self.piece = Some(Piece { from: range.start, bytes, file_size: self.size });
        Ok(())
    }
}

/// A file of which single columns are read.
#[derive(Debug)]
pub(super) struct ByColumns {
    path: Path,
    size: u64,
    metadata: ArrowReaderMetadata,
    whole: Option<Piece>,
}

impl ByColumns {
    /// How many row groups it has.
    pub(super) fn groups(&self) -> usize {
        self.metadata.metadata().num_row_groups()
    }

    /// Reads one column of a row group; none if the file does not have it.
    pub(super) async fn column(
        &self,
        store: &Store,
        group: usize,
        column: &str,
    ) -> Result<Option<(Piece, ArrowReaderMetadata)>, StorageError> {
        let metadata = self.metadata.metadata();
        let columns = metadata.row_groups().get(group).map(|group| group.columns()).unwrap_or_default();
        let found = columns.iter().find(|chunk| chunk.column_path().string() == column);
        let Some((start, length)) = found.map(|chunk| chunk.byte_range()) else { return Ok(None) };
        let piece = match &self.whole {
            Some(whole) => whole.clone(),
            None => {
                let bytes = read(store, &self.path, start..start + length).await?;
                Piece { from: start, bytes, file_size: self.size }
            }
        };
        Ok(Some((piece, self.metadata.clone())))
    }
}

/// The same rows with the columns of `schema`; one that the file does not have yet is null.
fn conform(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let columns = schema.fields().iter().map(|field| match batch.column_by_name(field.name()) {
        Some(column) => cast(column, field.data_type()),
        None => Ok(new_null_array(field.data_type(), batch.num_rows())),
    });
    RecordBatch::try_new(Arc::clone(schema), columns.collect::<Result<Vec<ArrayRef>, _>>()?)
}

/// Where a row group's columns lie.
fn range(metadata: &ParquetMetaData, group: usize) -> Range<u64> {
    let columns = metadata.row_groups().get(group).map(|group| group.columns()).unwrap_or_default();
    let ranges = columns.iter().map(|column| column.byte_range());
    ranges
        .map(|(start, length)| start..start + length)
        .reduce(|a, b| a.start.min(b.start)..a.end.max(b.end))
        .unwrap_or_default()
}

async fn read(store: &Store, path: &Path, range: Range<u64>) -> Result<Bytes, StorageError> {
    let bytes = store.objects().get_range(path, range.clone()).await;
    let bytes = bytes.map_err(|e| StorageError::failed("read", path, e))?;
    if bytes.len() as u64 != range.end - range.start {
        return Err(StorageError::failed(
            "read",
            path,
            format!("{} of {} bytes arrived", bytes.len(), range.end - range.start),
        ));
    }
    Ok(bytes)
}
