//! JSON: one object of columns and rows, or an object a line.

use arrow::datatypes::Schema;
use arrow::record_batch::RecordBatch;

use super::Encoder;
use super::cell::{columns, write_json_text};
use crate::query::{QueryError, types};

/// `{"columns":[{"name":"…","type":"…"}],"rows":[[…],…]}`.
pub(super) struct Object {
    columns: Vec<(String, String)>,
    text_numbers: bool,
    rows_before: bool,
}

impl Object {
    pub(super) fn new(schema: &Schema, text_numbers: bool) -> Self {
        let columns = schema.fields().iter().map(|field| (field.name().clone(), types::name(field.data_type())));
        Self { columns: columns.collect(), text_numbers, rows_before: false }
    }
}

impl Encoder for Object {
    fn start(&mut self, out: &mut Vec<u8>) -> Result<(), QueryError> {
        out.extend_from_slice(br#"{"columns":["#);
        for (index, (name, data_type)) in self.columns.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            out.extend_from_slice(br#"{"name":"#);
            write_json_text(name, out)?;
            out.extend_from_slice(br#","type":"#);
            write_json_text(data_type, out)?;
            out.push(b'}');
        }
        out.extend_from_slice(br#"],"rows":["#);
        Ok(())
    }

    fn batch(&mut self, batch: &RecordBatch, out: &mut Vec<u8>) -> Result<(), QueryError> {
        let columns = columns(batch, self.text_numbers)?;
        for row in 0..batch.num_rows() {
            if std::mem::replace(&mut self.rows_before, true) {
                out.push(b',');
            }
            out.push(b'[');
            for (index, column) in columns.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                column.write_json(row, out)?;
            }
            out.push(b']');
        }
        Ok(())
    }

    fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), QueryError> {
        out.extend_from_slice(b"]}\n");
        Ok(())
    }

    fn fail(&mut self, error: &QueryError, out: &mut Vec<u8>) {
        out.push(b']');
        out.push(b',');
        write_error(error, out);
        out.extend_from_slice(b"}\n");
    }
}

/// The member `error`: that the rows are not all, and why.
fn write_error(error: &QueryError, out: &mut Vec<u8>) {
    let error = serde_json::json!({ "code": error.code(), "detail": error.to_string() });
    out.extend_from_slice(format!("\"error\":{error}").as_bytes());
}

/// An object a line; nulls are written too.
pub(super) struct Lines {
    /// Each name as JSON, with a colon.
    names: Vec<Vec<u8>>,
    text_numbers: bool,
}

impl Lines {
    pub(super) fn new(schema: &Schema, text_numbers: bool) -> Result<Self, QueryError> {
        let names = schema.fields().iter().map(|field| {
            let mut name = Vec::new();
            write_json_text(field.name(), &mut name)?;
            name.push(b':');
            Ok(name)
        });
        Ok(Self { names: names.collect::<Result<_, QueryError>>()?, text_numbers })
    }
}

impl Encoder for Lines {
    fn start(&mut self, _: &mut Vec<u8>) -> Result<(), QueryError> {
        Ok(())
    }

    fn batch(&mut self, batch: &RecordBatch, out: &mut Vec<u8>) -> Result<(), QueryError> {
        let columns = columns(batch, self.text_numbers)?;
        for row in 0..batch.num_rows() {
            out.push(b'{');
            for (index, (name, column)) in self.names.iter().zip(&columns).enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                out.extend_from_slice(name);
                column.write_json(row, out)?;
            }
            out.extend_from_slice(b"}\n");
        }
        Ok(())
    }

    fn finish(&mut self, _: &mut Vec<u8>) -> Result<(), QueryError> {
        Ok(())
    }

    fn fail(&mut self, error: &QueryError, out: &mut Vec<u8>) {
        out.push(b'{');
        write_error(error, out);
        out.extend_from_slice(b"}\n");
    }
}
