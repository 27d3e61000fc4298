//! An Arrow IPC stream into columns: columns by name in any order, batches one after the other.
//!
//! The body is checked as a whole first (see `arrow_guard`), then read by `arrow`'s own reader, which validates
//! offsets, UTF-8 and dictionary keys. That reader may still panic on bytes that lie in ways it did not think of; a
//! panic is caught here and is a malformed body like any other.
//!
//! What that reader gives are views of the body, each of which would keep all of it in memory, error messages and all,
//! and be counted with all of it wherever memory is. The columns that leave here own what they hold and no more.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, StringArray, StringBuilder};
use arrow::buffer::Buffer;
use arrow::compute::concat;
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamDecoder;
use arrow::record_batch::RecordBatch;
use bytes::Bytes;

use super::arrow_values::{Refusal, convert, text};
use super::draft::Draft;
use super::error::{Faults, HASH_DIFFERS, IngestError, NO_SUCH_FIELD, ORG_DIFFERS, shown};
use super::layout::{Column, ERROR_MESSAGE, Field, Layout};
use super::plaintext::ErrorMessage;
use super::{DecodeContext, arrow_guard};

/// The most characters of the reader's own message that ours repeats.
const MAX_REASON_CHARS: usize = 200;

/// Reads a stream into columns.
///
/// # Errors
/// [`IngestError::Malformed`], [`IngestError::TooLarge`]; faults of samples are in the draft.
pub(super) fn decode(body: Bytes, layout: &'static Layout, context: &DecodeContext<'_>) -> Result<Draft, IngestError> {
    arrow_guard::check(&body, context.limits)?;
    catch_unwind(AssertUnwindSafe(|| {
        let batches = read(body).map_err(|error| malformed(&error.to_string()))?;
        Converter { layout, context, text_left: context.limits.max_decoded_bytes, faults: Faults::default() }
            .columns(&batches)
    }))
    .unwrap_or_else(|_| Err(malformed("its parts contradict each other")))
}

fn read(body: Bytes) -> Result<Vec<RecordBatch>, ArrowError> {
    let mut rest = Buffer::from(body);
    let mut decoder = StreamDecoder::new();
    let mut batches = Vec::new();
    while !rest.is_empty() {
        batches.extend(decoder.decode(&mut rest)?.filter(|batch| batch.num_rows() > 0));
    }
    decoder.finish()?;
    Ok(batches)
}

fn malformed(reason: &str) -> IngestError {
    let reason = reason.chars().take(MAX_REASON_CHARS).flat_map(char::escape_debug).collect::<String>();
    IngestError::malformed(format!("not a sound Arrow stream: {reason}"))
}

struct Converter<'a> {
    layout: &'static Layout,
    context: &'a DecodeContext<'a>,
    text_left: usize,
    faults: Faults,
}

impl Converter<'_> {
    fn columns(mut self, batches: &[RecordBatch]) -> Result<Draft, IngestError> {
        let rows = batches.iter().map(RecordBatch::num_rows).sum();
        let mut columns: Vec<Option<ArrayRef>> = vec![None; self.layout.columns.len()];
        let Some(first) = batches.first() else { return Ok(Draft { columns, rows, faults: self.faults }) };
        let mut seen = Vec::new();
        let mut message_hashes = None;
        for (position, field) in first.schema_ref().fields().iter().enumerate() {
            let Some((name, field)) = self.layout.find(field.name()).and_then(|index| self.layout.field(index)) else {
                self.faults.field(0, shown(field.name()), NO_SUCH_FIELD);
                continue;
            };
            if seen.contains(&name) {
                self.faults.field(0, name, "given twice");
                continue;
            }
            seen.push(name);
            let parts: Vec<&ArrayRef> = batches.iter().filter_map(|batch| batch.columns().get(position)).collect();
            match field {
                // Events, which alone have a detail, do not come as Arrow.
                Field::Stamped | Field::Detail(_) => {}
                Field::Org => self.check_org(name, &parts)?,
                Field::ErrorMessage(column) => {
                    let hashes = self.convert(name, &parts, hash_messages)?;
                    message_hashes = hashes.map(|hashes| (column, hashes));
                }
                Field::Column(index) => {
                    let Some(column) = self.layout.columns.get(index) else { continue };
                    let converted = self.convert(name, &parts, |part, left| convert(part, column.data_type, left))?;
                    if let Some(slot) = columns.get_mut(index) {
                        *slot = converted;
                    }
                }
            }
        }
        if let Some((index, hashes)) = message_hashes
            && let Some(slot) = columns.get_mut(index)
        {
            *slot = Some(self.merge_hashes(slot.take(), hashes));
        }
        self.check_required(&columns, &seen);
        Ok(Draft { columns, rows, faults: self.faults })
    }

    /// A column of all batches, none if it was not taken.
    fn convert(
        &mut self,
        name: &'static str,
        parts: &[&ArrayRef],
        convert: impl Fn(&ArrayRef, &mut usize) -> Result<ArrayRef, Refusal>,
    ) -> Result<Option<ArrayRef>, IngestError> {
        let mut converted = Vec::with_capacity(parts.len());
        let mut rows_before = 0;
        let mut lost = false;
        for part in parts {
            match convert(part, &mut self.text_left) {
                Ok(part) => converted.push(part),
                Err(Refusal::Type) => {
                    let kind = part.data_type();
                    self.faults.field(0, name, format!("the Arrow type {kind} does not hold what this field needs"));
                    return Ok(None);
                }
                Err(Refusal::Zone) => {
                    let advice = "a timestamp without a time zone is of no instant; give the column the time zone UTC";
                    self.faults.field(0, name, advice);
                    return Ok(None);
                }
                Err(Refusal::TooMuchText) => {
                    let limit = self.context.limits.max_decoded_bytes;
                    return Err(IngestError::TooLarge(format!(
                        "the text of the columns is over {limit} bytes; send smaller batches"
                    )));
                }
                Err(Refusal::Rows(rows)) => {
                    lost = true;
                    for row in rows {
                        self.faults.field(rows_before + row, name, "not a whole number, or does not fit 64 bits");
                    }
                }
                Err(Refusal::Unsound(reason)) => return Err(malformed(&reason)),
            }
            rows_before += part.len();
        }
        if lost {
            return Ok(None);
        }
        // A single part is copied too: with nothing put to it, `concat` would give it back as it is.
        let nothing = converted.first().map(|first| first.slice(0, 0));
        let parts: Vec<&dyn Array> = converted.iter().chain(&nothing).map(AsRef::as_ref).collect();
        concat(&parts).map(Some).map_err(|error| malformed(&error.to_string()))
    }

    fn check_org(&mut self, name: &'static str, parts: &[&ArrayRef]) -> Result<(), IngestError> {
        let as_text =
            |part: &ArrayRef, left: &mut usize| -> Result<ArrayRef, Refusal> { Ok(Arc::new(text(part, left)?)) };
        let Some(orgs) = self.convert(name, parts, as_text)? else { return Ok(()) };
        for (row, org) in strings(&orgs).enumerate() {
            if org.is_some_and(|org| org != self.context.org.as_str()) {
                self.faults.field(row, name, ORG_DIFFERS);
            }
        }
        Ok(())
    }

    /// Hashes as given, completed by those of messages.
    fn merge_hashes(&mut self, given: Option<ArrayRef>, of_messages: ArrayRef) -> ArrayRef {
        let Some(given) = given else { return of_messages };
        let mut merged = StringBuilder::with_capacity(given.len(), given.len() * 64);
        for (row, (given, of_message)) in strings(&given).zip(strings(&of_messages)).enumerate() {
            if let (Some(given), Some(of_message)) = (given, of_message)
                && !given.eq_ignore_ascii_case(of_message)
            {
                self.faults.field(row, ERROR_MESSAGE, HASH_DIFFERS);
            }
            merged.append_option(given.or(of_message));
        }
        Arc::new(merged.finish())
    }

    fn check_required(&mut self, columns: &[Option<ArrayRef>], seen: &[&str]) {
        for (Column { name, required, .. }, values) in self.layout.columns.iter().zip(columns) {
            if !required {
                continue;
            }
            match values {
                None if seen.contains(name) => {}
                None => self.faults.missing(0, name),
                Some(values) if values.null_count() == 0 => {}
                Some(values) => {
                    for row in (0..values.len()).filter(|&row| values.is_null(row)) {
                        self.faults.missing(row, name);
                    }
                }
            }
        }
    }
}

/// The strings of a column of them; none of another.
fn strings(values: &ArrayRef) -> impl Iterator<Item = Option<&str>> {
    values.as_any().downcast_ref::<StringArray>().into_iter().flatten()
}

fn hash_messages(messages: &ArrayRef, text_left: &mut usize) -> Result<ArrayRef, Refusal> {
    let messages = text(messages, text_left)?;
    let mut hashes = StringBuilder::with_capacity(messages.len(), messages.len() * 64);
    for message in &messages {
        hashes.append_option(message.map(|message| ErrorMessage::new(message).hash().to_hex()));
    }
    Ok(Arc::new(hashes.finish()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::*;
    use arrow::compute::cast;
    use arrow::datatypes::{DataType, Field, Int32Type, Schema, TimeUnit};
    use arrow::ipc::CompressionType;
    use serde_json::json;

    use super::super::fixtures::*;
    use super::super::{DecodeLimits, Media};

    /// The sample as an Arrow column of another type must decode to what it decodes to as it is.
    fn assert_taken_as(column: &str, data_type: &DataType) {
        let batch = emitted(3);
        let other = cast(batch.column_by_name(column).unwrap(), data_type).unwrap();
        let decoded = decode_arrow(&stream(&[replaced(&batch, column, other)], None)).unwrap();
        assert_eq!(decoded, decode_arrow(&stream(&[batch], None)).unwrap(), "{column} as {data_type}");
    }

    fn arrow_fault(batch: RecordBatch) -> (usize, String) {
        let error = decode_arrow(&stream(&[batch], None)).unwrap_err();
        assert_eq!(error.code(), "invalid_sample", "{error}");
        (error.errors()[0].row, error.errors()[0].field.clone().unwrap().into_owned())
    }

    #[test]
    fn it_decodes_to_what_json_decodes_to() {
        let decoded = decode_arrow(&stream(&[emitted(2)], None)).unwrap();
        assert_canonical(&decoded);
        assert_eq!(decoded, decode_json(&json!([sample(), sample()])).unwrap());
    }

    #[test]
    fn a_canonical_batch_can_be_sent_in_again() {
        let canonical = decode_json(&sample()).unwrap();
        assert_eq!(decode_arrow(&stream(std::slice::from_ref(&canonical), None)).unwrap(), canonical);
    }

    #[test]
    fn batches_of_a_stream_are_one_batch_in_their_order() {
        let ids = ["0198c0de-7a11-7000-8000-000000000001", "0198c0de-7a11-7000-8000-000000000002"];
        let batches = ids.map(|id| replaced(&emitted(1), "invocation_id", Arc::new(StringArray::from(vec![id]))));
        let decoded = decode_arrow(&stream(&batches, None)).unwrap();
        assert_eq!(decoded.num_rows(), 2);
        assert_eq!(text(&decoded.slice(1, 1), "invocation_id"), ids[1]);
    }

    #[test]
    fn a_batch_takes_no_more_memory_than_its_rows_however_long_the_body() {
        let long = Arc::new(StringArray::from(vec!["x".repeat(1_000_000)]));
        let body = emitted(1);
        let columns = body.columns().iter().cloned().chain([long as ArrayRef]);
        let message = Arc::new(Field::new("error_message", DataType::Utf8, true));
        let fields: Vec<_> = body.schema().fields().iter().cloned().chain([message]).collect();
        let keep: Vec<_> = (0..fields.len()).filter(|&at| fields[at].name() != "error_hash").collect();
        let body =
            RecordBatch::try_new(Arc::new(Schema::new(fields)), columns.collect()).unwrap().project(&keep).unwrap();
        assert!(decode_arrow(&stream(&[body], None)).unwrap().get_array_memory_size() < 20_000);
    }

    #[test]
    fn columns_may_come_in_any_order() {
        let batch = emitted(1);
        let backwards: Vec<_> = (0..batch.num_columns()).rev().collect();
        let decoded = decode_arrow(&stream(&[batch.project(&backwards).unwrap()], None)).unwrap();
        assert_eq!(decoded, decode_arrow(&stream(&[batch], None)).unwrap());
    }

    #[test]
    fn text_is_taken_from_any_kind_of_string() {
        let dictionary = |key: DataType, value| DataType::Dictionary(Box::new(key), Box::new(value));
        for kind in [
            DataType::LargeUtf8,
            DataType::Utf8View,
            dictionary(DataType::Int32, DataType::Utf8),
            dictionary(DataType::UInt8, DataType::LargeUtf8),
            dictionary(DataType::Int64, DataType::Utf8View),
        ] {
            for column in ["tool", "outcome", "invocation_id", "caller"] {
                assert_taken_as(column, &kind);
            }
        }
    }

    #[test]
    fn numbers_are_taken_from_any_type_that_loses_nothing() {
        for kind in [DataType::Int16, DataType::UInt32, DataType::UInt64, DataType::Float32, DataType::Float64] {
            assert_taken_as("request_bytes", &kind);
        }
        assert_taken_as("duration_ms", &DataType::Float32);
    }

    #[test]
    fn times_are_taken_from_any_unit_and_zone() {
        for zone in [Some("UTC"), Some("+05:30"), Some("Europe/Berlin")] {
            let batch = emitted(1);
            let nanos = TimestampNanosecondArray::from(vec![time(&batch, "started_at") * 1000 + 999]);
            let batch = replaced(&batch, "started_at", Arc::new(nanos.with_timezone_opt(zone)));
            let decoded = decode_arrow(&stream(&[batch], None)).unwrap();
            assert_eq!(decoded, decode_json(&sample()).unwrap(), "{zone:?}");
        }
        assert_taken_as("arrived_at", &DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into())));
    }

    #[test]
    fn a_time_without_a_zone_is_refused_as_in_json() {
        for field in ["started_at", "arrived_at"] {
            let batch = emitted(1);
            let bare = TimestampNanosecondArray::from(vec![time(&batch, "started_at") * 1000]);
            assert_eq!(arrow_fault(replaced(&batch, field, Arc::new(bare))), (0, field.to_owned()));
            fault_of(&sample_with(field, "2026-11-22T12:00:00"), field);
        }
    }

    #[test]
    fn a_column_of_nulls_is_a_column_that_is_not_there() {
        let batch = replaced(&emitted(2), "caller", Arc::new(NullArray::new(2)));
        assert_eq!(decode_arrow(&stream(&[batch], None)).unwrap().column_by_name("caller").unwrap().null_count(), 2);
        assert_eq!(arrow_fault(replaced(&emitted(2), "tool", Arc::new(NullArray::new(2)))), (0, "tool".to_owned()));
    }

    #[test]
    fn a_type_that_holds_something_else_is_refused() {
        for (column, values) in [
            ("tool", Arc::new(Int32Array::from(vec![1])) as ArrayRef),
            ("duration_ms", Arc::new(StringArray::from(vec!["1"]))),
            ("started_at", Arc::new(Int64Array::from(vec![1]))),
            ("request_bytes", Arc::new(BooleanArray::from(vec![true]))),
            ("tool", Arc::new(BinaryArray::from(vec![b"x".as_slice()]))),
            ("tool", Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>([Some([Some(1)])]))),
        ] {
            assert_eq!(arrow_fault(replaced(&emitted(1), column, values)), (0, column.to_owned()));
        }
    }

    #[test]
    fn a_value_that_does_not_fit_is_named_by_its_row_in_the_whole_stream() {
        let large = replaced(&emitted(2), "request_bytes", Arc::new(UInt64Array::from(vec![1, u64::MAX])));
        let small = replaced(&emitted(2), "request_bytes", Arc::new(UInt64Array::from(vec![1, 2])));
        let error = decode_arrow(&stream(&[small, large], None)).unwrap_err();
        assert_eq!((error.errors()[0].row, error.errors()[0].field.as_deref()), (3, Some("request_bytes")));
    }

    #[test]
    fn an_unknown_column_and_a_missing_one_are_both_told() {
        let batch = emitted(1);
        let without_tool: Vec<_> =
            (0..batch.num_columns()).filter(|&index| batch.schema().field(index).name() != "tool").collect();
        let batch = with_column(&batch.project(&without_tool).unwrap(), "tol", Arc::new(StringArray::from(vec!["x"])));
        let error = decode_arrow(&stream(&[batch], None)).unwrap_err();
        let fields: Vec<_> = error.errors().iter().map(|e| e.field.as_deref().unwrap()).collect();
        assert_eq!(fields, ["tol", "tool"]);
    }

    #[test]
    fn a_column_given_twice_is_refused() {
        let batch = with_column(&emitted(1), "tool", Arc::new(StringArray::from(vec!["x"])));
        assert_eq!(arrow_fault(batch), (0, "tool".to_owned()));
    }

    #[test]
    fn a_null_in_a_required_column_is_a_fault_of_its_row() {
        let batch = replaced(&emitted(2), "tool", Arc::new(StringArray::from(vec![Some("x"), None])));
        assert_eq!(arrow_fault(batch), (1, "tool".to_owned()));
    }

    #[test]
    fn the_org_must_be_the_paths() {
        decode_arrow(&stream(&[with_column(&emitted(1), "org", Arc::new(StringArray::from(vec!["acme"])))], None))
            .unwrap();
        let other = with_column(&emitted(2), "org", Arc::new(StringArray::from(vec!["acme", "other"])));
        assert_eq!(arrow_fault(other), (1, "org".to_owned()));
    }

    #[test]
    fn error_messages_are_hashed_where_no_hash_is_given() {
        let hashes = StringArray::from(vec![None, Some("ab".repeat(32))]);
        let batch = replaced(&emitted(2), "error_hash", Arc::new(hashes));
        let batch = with_column(&batch, "error_message", Arc::new(StringArray::from(vec![Some("boom"), None])));
        let decoded = decode_arrow(&stream(&[batch], None)).unwrap();
        assert_eq!(text(&decoded, "error_hash"), blake3::hash(b"boom").to_hex().as_str());
        assert_eq!(text(&decoded.slice(1, 1), "error_hash"), "ab".repeat(32));
        let contradiction = with_column(&emitted(1), "error_message", Arc::new(StringArray::from(vec!["boom"])));
        assert_eq!(arrow_fault(contradiction), (0, "error_message".to_owned()));
    }

    #[test]
    fn compressed_buffers_are_taken() {
        let plain = decode_arrow(&stream(&[emitted(500)], None)).unwrap();
        for codec in [CompressionType::ZSTD, CompressionType::LZ4_FRAME] {
            assert_eq!(decode_arrow(&stream(&[emitted(500)], Some(codec))).unwrap(), plain);
        }
    }

    #[test]
    fn a_stream_without_rows_is_an_empty_batch() {
        assert_eq!(decode_arrow(&stream(&[emitted(1).slice(0, 0)], None)).unwrap_err().code(), "empty_batch");
    }

    #[test]
    fn text_that_views_or_dictionaries_repeat_counts_as_often_as_it_is_repeated() {
        let limits = DecodeLimits { max_decoded_bytes: 1 << 20, ..DecodeLimits::default() };
        let long = "x".repeat(10_000);
        let mut views = StringViewBuilder::new();
        let block = views.append_block(long.as_bytes().into());
        for _ in 0..1000 {
            views.try_append_view(block, 0, 10_000).unwrap();
        }
        let keys = Int32Array::from(vec![0; 1000]);
        let dictionary = DictionaryArray::new(keys, Arc::new(StringArray::from(vec![long.as_str()])));
        for values in [Arc::new(views.finish()) as ArrayRef, Arc::new(dictionary)] {
            let batch = RecordBatch::try_from_iter_with_nullable([("error_message", values, true)]).unwrap();
            let error = decode_as(Media::ArrowStream, &stream(&[batch], None), limits).unwrap_err();
            assert_eq!(error.status(), 413, "{error}");
        }
    }
}
