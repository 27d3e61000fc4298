//! CSV after RFC 4180: CRLF, a header line, quotes where needed. A null is an empty field, an empty string is `""`.
//!
//! Spreadsheets run a field that begins as a formula does, and what stands in these fields was chosen by the caller of
//! a tool. So a text that begins so gets an apostrophe before it, which spreadsheets take as "this is text"; numbers
//! and times are left as they are.

use arrow::datatypes::Schema;
use arrow::record_batch::RecordBatch;

use super::Encoder;
use super::cell::columns;
use crate::query::QueryError;

/// A line a row.
pub(super) struct Lines {
    names: Vec<String>,
    raw: bool,
}

impl Lines {
    pub(super) fn new(schema: &Schema, raw: bool) -> Self {
        Self { names: schema.fields().iter().map(|field| field.name().clone()).collect(), raw }
    }
}

impl Encoder for Lines {
    fn start(&mut self, out: &mut Vec<u8>) -> Result<(), QueryError> {
        for (index, name) in self.names.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            write_field(name.as_bytes(), !self.raw, out);
        }
        out.extend_from_slice(b"\r\n");
        Ok(())
    }

    fn batch(&mut self, batch: &RecordBatch, out: &mut Vec<u8>) -> Result<(), QueryError> {
        let columns = columns(batch, false)?;
        let mut text = Vec::new();
        for row in 0..batch.num_rows() {
            for (index, column) in columns.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                if !column.is_null(row) {
                    text.clear();
                    column.write_plain(row, &mut text)?;
                    write_field(&text, !self.raw && column.is_free_text(), out);
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

/// Whether a text begins as a formula does, or as what some programs strip before they look for one.
fn is_formula(text: &[u8]) -> bool {
    const WIDE: [&[u8]; 4] = ["＝".as_bytes(), "＋".as_bytes(), "－".as_bytes(), "＠".as_bytes()];
    matches!(text.first(), Some(b'=' | b'+' | b'-' | b'@' | b'\t' | b'\r' | b'\n'))
        || WIDE.iter().any(|sign| text.starts_with(sign))
}

fn write_field(text: &[u8], harmless: bool, out: &mut Vec<u8>) {
    let guarded;
    let text = if harmless && is_formula(text) {
        guarded = [b"'", text].concat();
        &guarded
    } else {
        text
    };
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
