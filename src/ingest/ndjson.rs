//! NDJSON into columns: a JSON object a line, lines ended by LF or CRLF, blank lines skipped.
//!
//! A line that is no JSON is a fault of its row alone, since the next line starts afresh; messages name the line,
//! counted from 1, beside the row.

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

#[cfg(test)]
mod tests {
    use super::super::fixtures::*;
    use super::super::{DecodeLimits, IngestError, Media};
    use arrow::record_batch::RecordBatch;

    fn decode_lines(body: &[u8]) -> Result<RecordBatch, IngestError> {
        decode_as(Media::Ndjson, body, DecodeLimits::default())
    }

    #[test]
    fn blank_lines_crlf_and_a_missing_last_newline_are_fine() {
        let sample = sample();
        let batch = decode_lines(format!("\n{sample}\r\n \r\n{sample}\n\n{sample}").as_bytes()).unwrap();
        assert_canonical(&batch);
        assert_eq!(batch.num_rows(), 3);
    }

    #[test]
    fn a_byte_order_mark_before_the_body_is_no_part_of_it() {
        let body = [b"\xef\xbb\xbf".to_vec(), ndjson(&[sample()])].concat();
        assert_eq!(decode_lines(&body).unwrap(), decode_lines(&ndjson(&[sample()])).unwrap());
        assert_eq!(decode_as(Media::Json, &body, DecodeLimits::default()).unwrap(), decode_json(&sample()).unwrap());
    }

    #[test]
    fn it_decodes_to_what_json_decodes_to() {
        let samples = [sample(), sample_without("caller"), sample_with("duration_ms", 1e-7)];
        assert_eq!(decode_lines(&ndjson(&samples)).unwrap(), decode_json(&samples.to_vec().into()).unwrap());
    }

    #[test]
    fn a_broken_line_does_not_hide_the_faults_of_the_next() {
        let body = format!("{}\n\n{{\"tool\": oops}}\n{}\n", sample(), sample_with("outcome", "fine"));
        let error = decode_lines(body.as_bytes()).unwrap_err();
        assert_eq!(error.code(), "invalid_sample");
        let [broken, unknown] = error.errors() else { panic!("{error:?}") };
        assert_eq!((broken.row, broken.field.as_deref()), (1, None));
        assert!(broken.message.starts_with("line 3 is not JSON"), "{}", broken.message);
        assert_eq!((unknown.row, unknown.field.as_deref()), (2, Some("outcome")));
    }

    #[test]
    fn two_objects_on_a_line_are_a_fault() {
        let error = decode_lines(format!("{}{}\n", sample(), sample()).as_bytes()).unwrap_err();
        assert_eq!(error.errors().len(), 1);
        assert_eq!(error.errors()[0].row, 0);
    }

    #[test]
    fn an_array_on_a_line_is_a_fault() {
        let error = decode_lines(format!("[{}]\n", sample()).as_bytes()).unwrap_err();
        assert_eq!(error.errors()[0].message, "expected an object, found an array");
    }

    #[test]
    fn bytes_that_are_not_utf_8_are_malformed_and_the_row_is_named() {
        let body = [ndjson(&[sample(), sample()]), b"{\"tool\":\"\xff\"}\n".to_vec()].concat();
        let error = decode_lines(&body).unwrap_err();
        assert_eq!(error.code(), "malformed_body");
        assert_eq!(error.errors()[0].row, 2);
    }
}
