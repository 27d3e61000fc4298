//! An Arrow IPC stream into columns: columns by name in any order, batches one after the other.
//!
//! The body is checked as a whole first (see `arrow_guard`), then read by `arrow`'s own reader, which validates offsets, UTF-8
//! and dictionary keys. That reader may still panic on bytes that lie in ways it did not think of; a panic is caught here and
//! is a malformed body like any other.

use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, StringArray, StringBuilder};
use arrow::buffer::Buffer;
use arrow::compute::concat;
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamDecoder;
use arrow::record_batch::RecordBatch;

use super::arrow_values::{Refusal, convert, text};
use super::error::{Faults, IngestError};
use super::layout::{Column, ERROR_MESSAGE, Field, Layout};
use super::plaintext::ErrorMessage;
use super::rows::{Draft, HASH_DIFFERS, ORG_DIFFERS, echo};
use super::{DecodeContext, arrow_guard};

/// The most characters of the reader's own message that ours repeats.
const MAX_REASON_CHARS: usize = 200;

/// Reads a stream into columns.
///
/// # Errors
/// [`IngestError::Malformed`], [`IngestError::TooLarge`]; faults of samples are in the draft.
pub(super) fn decode(
    body: Cow<'_, [u8]>,
    layout: &'static Layout,
    context: &DecodeContext<'_>,
) -> Result<Draft, IngestError> {
    arrow_guard::check(&body, context.limits)?;
    let body = body.into_owned();
    catch_unwind(AssertUnwindSafe(|| {
        let batches = read(body).map_err(|error| malformed(&error.to_string()))?;
        Converter { layout, context, text_left: context.limits.max_decoded_bytes, faults: Faults::default() }
            .columns(&batches)
    }))
    .unwrap_or_else(|_| Err(malformed("its parts contradict each other")))
}

fn read(body: Vec<u8>) -> Result<Vec<RecordBatch>, ArrowError> {
    let mut rest = Buffer::from_vec(body);
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
                self.faults.field(0, echo(field.name()), "no such field");
                continue;
            };
            if seen.contains(&name) {
                self.faults.field(0, name, "given twice");
                continue;
            }
            seen.push(name);
            let parts: Vec<&ArrayRef> = batches.iter().filter_map(|batch| batch.columns().get(position)).collect();
            match field {
                Field::Stamped => {}
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
        match converted.as_slice() {
            [one] => Ok(Some(Arc::clone(one))),
            many => {
                let many: Vec<&dyn Array> = many.iter().map(AsRef::as_ref).collect();
                concat(&many).map(Some).map_err(|error| malformed(&error.to_string()))
            }
        }
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
