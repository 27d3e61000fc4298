//! CSV after RFC 4180: CRLF, a header line, quotes where needed. A null is an empty field, an empty string is `""`.

use arrow::datatypes::Schema;
use arrow::record_batch::RecordBatch;

use super::Encoder;
use super::cell::columns;
use crate::query::QueryError;

/// A line a row.
pub(super) struct Lines {
    names: Vec<String>,
}

impl Lines {
    pub(super) fn new(schema: &Schema) -> Self {
        Self { names: schema.fields().iter().map(|field| field.name().clone()).collect() }
    }
}

impl Encoder for Lines {
    fn start(&mut self, out: &mut Vec<u8>) -> Result<(), QueryError> {
        for (index, name) in self.names.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            write_field(name.as_bytes(), out);
        }
        out.extend_from_slice(b"\r\n");
        Ok(())
    }

    fn batch(&mut self, batch: &RecordBatch, out: &mut Vec<u8>) -> Result<(), QueryError> {
        let columns = columns(batch)?;
        let mut text = Vec::new();
        for row in 0..batch.num_rows() {
            for (index, column) in columns.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                if !column.is_null(row) {
                    text.clear();
                    column.write_plain(row, &mut text)?;
                    write_field(&text, out);
                }
            }
            out.extend_from_slice(b"\r\n");
        }
        Ok(())
    }

    fn finish(&mut self, _: &mut Vec<u8>) -> Result<(), QueryError> {
        Ok(())
    }
}

fn write_field(text: &[u8], out: &mut Vec<u8>) {
    if !text.is_empty() && !text.iter().any(|byte| matches!(byte, b',' | b'"' | b'\r' | b'\n')) {
        out.extend_from_slice(text);
        return;
    }
    out.push(b'"');
    for byte in text {
        if *byte == b'"' {
            out.push(b'"');
        }
        out.push(*byte);
    }
    out.push(b'"');
}
