//! NDJSON into columns: a JSON object a line, lines ended by LF or CRLF, blank lines skipped.
//!
//! A line that is no JSON is a fault of its row alone, since the next line starts afresh; messages name the line, counted
//! from 1, beside the row.

use super::error::IngestError;
use super::json;
use super::rows::RowBuilder;

/// Reads NDJSON into `rows`.
///
/// # Errors
/// [`IngestError::Malformed`] when it is not UTF-8.
pub(super) fn decode<'a>(body: &[u8], mut rows: RowBuilder<'a>) -> Result<RowBuilder<'a>, IngestError> {
    let (text, broken_at) = json::valid_utf8(body);
    // A line that holds the first byte that is no UTF-8 cannot be read; the ones before it can.
    let whole_lines = match broken_at {
        None => text,
        Some(_) => text.rfind('\n').and_then(|end| text.get(..end)).unwrap_or_default(),
    };
    for (index, line) in whole_lines.split('\n').enumerate() {
        if !line.trim_ascii().is_empty() {
            json::decode_line(line, index + 1, &mut rows);
        }
        if rows.should_stop() {
            return Ok(rows);
        }
    }
    match broken_at {
        None => Ok(rows),
        Some(byte) => Err(rows.into_malformed(json::not_utf8(byte))),
    }
}
