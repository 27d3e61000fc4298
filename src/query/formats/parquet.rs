//! A Parquet file, zstd-compressed; row groups are closed early enough that only a few megabytes of it wait in memory.

use arrow::datatypes::{Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;

use super::Encoder;
use super::arrow::plain;
use crate::query::{QueryError, types};

/// A row group is closed when it holds about this many bytes.
const ROW_GROUP_BYTES: usize = 16 << 20;

/// A file of plain types.
pub(super) struct File {
    schema: SchemaRef,
    /// None once the file is finished.
    writer: Option<ArrowWriter<Vec<u8>>>,
}

impl File {
    pub(super) fn new(schema: &Schema) -> Result<Self, QueryError> {
        let schema = types::without_views(schema);
        let properties = WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default())).build();
        let writer = ArrowWriter::try_new(Vec::new(), SchemaRef::clone(&schema), Some(properties))
            .map_err(|error| unwritable(&error))?;
        Ok(Self { schema, writer: Some(writer) })
    }
}

/// Some types have no Parquet form.
fn unwritable(error: &ParquetError) -> QueryError {
    QueryError::invalid(format!(
        "the answer cannot be written as Parquet ({error}); cast the column, or ask for another format"
    ))
}

impl Encoder for File {
    fn start(&mut self, _: &mut Vec<u8>) -> Result<(), QueryError> {
        Ok(())
    }

    fn batch(&mut self, batch: &RecordBatch, out: &mut Vec<u8>) -> Result<(), QueryError> {
        let plain = plain(batch, &self.schema)?;
        let writer = self.writer.as_mut().ok_or(QueryError::Internal)?;
        writer.write(&plain).map_err(|error| unwritable(&error))?;
        if writer.in_progress_size() > ROW_GROUP_BYTES {
            writer.flush().map_err(|error| unwritable(&error))?;
        }
        out.append(writer.inner_mut());
        Ok(())
    }

    fn held(&self) -> usize {
        self.writer.as_ref().map_or(0, ArrowWriter::memory_size)
    }

    fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), QueryError> {
        let writer = self.writer.take().ok_or(QueryError::Internal)?;
        out.append(&mut writer.into_inner().map_err(|error| unwritable(&error))?);
        Ok(())
    }
}
