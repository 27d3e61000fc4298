//! The Arrow IPC streaming format.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatchOptions};
use arrow::compute::cast;
use arrow::datatypes::{Schema, SchemaRef};
use arrow::ipc::writer::StreamWriter;
use arrow::record_batch::RecordBatch;

use super::Encoder;
use crate::query::{QueryError, types};

/// An IPC stream of plain types.
pub(super) struct Stream {
    schema: SchemaRef,
    writer: StreamWriter<Vec<u8>>,
}

impl Stream {
    pub(super) fn new(schema: &Schema) -> Result<Self, QueryError> {
        let schema = types::without_views(schema);
        let writer = StreamWriter::try_new(Vec::new(), &schema).map_err(|error| QueryError::from_arrow(&error))?;
        Ok(Self { schema, writer })
    }

    fn hand_over(&mut self, out: &mut Vec<u8>) {
        out.append(self.writer.get_mut());
    }
}

impl Encoder for Stream {
    fn start(&mut self, out: &mut Vec<u8>) -> Result<(), QueryError> {
        self.hand_over(out);
        Ok(())
    }

    fn batch(&mut self, batch: &RecordBatch, out: &mut Vec<u8>) -> Result<(), QueryError> {
        let plain = plain(batch, &self.schema)?;
        self.writer.write(&plain).map_err(|error| QueryError::from_arrow(&error))?;
        self.hand_over(out);
        Ok(())
    }

    fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), QueryError> {
        self.writer.finish().map_err(|error| QueryError::from_arrow(&error))?;
        self.hand_over(out);
        Ok(())
    }
}

/// The batch with the columns of `schema`, which differ at most in being no views.
pub(super) fn plain(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, QueryError> {
    let columns = batch.columns().iter().zip(schema.fields()).map(|(column, field)| {
        if column.data_type() == field.data_type() { Ok(Arc::clone(column)) } else { cast(column, field.data_type()) }
    });
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    columns
        .collect::<Result<Vec<ArrayRef>, _>>()
        .and_then(|columns| RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options))
        .map_err(|error| QueryError::from_arrow(&error))
}
