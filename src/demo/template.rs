//! Request bodies from samples, made once and rendered many times.
//!
//! A template keeps its samples encoded. To render it is to copy them with other ids and with all times moved by the
//! same span: ids and times have a fixed width, so in the text forms they are overwritten in place, and in Arrow their
//! columns are replaced. The ids of one body are consecutive, version 7 with a counter in the last 24 bits (RFC 9562,
//! section 6.2, method 1), which also lets a test tell from the first one and the count which samples a body held.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, StringBuilder, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Float64Type, Int64Type, TimestampMicrosecondType};
use arrow::error::ArrowError;
use arrow::ipc::writer::StreamWriter;
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use rand::Rng;
use uuid::{Builder, Uuid};

use crate::ingest::{IngestError, Media};

/// The most samples of a template: the ids' counter has 24 bits.
const MAX_ROWS: usize = 1 << 24;
/// Hex digits of the counter at the end of an id.
const COUNTER_DIGITS: usize = 6;
const COUNTER_MASK: u128 = (1 << 24) - 1;
/// `2026-01-31T12:00:00.000000Z`
const TIME_LEN: usize = 27;

/// Why traffic could not be made: always a fault of this program.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// Arrow refused what was built.
    #[error("cannot build samples: {0}")]
    Arrow(#[from] ArrowError),
    /// The canonical schema did not load.
    #[error(transparent)]
    Schema(#[from] IngestError),
    /// A value had no JSON form.
    #[error("cannot write samples as JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// Too many samples for one body.
    #[error("a body holds at most 16777216 samples")]
    TooManyRows,
}

/// A body that is ready to be sent.
#[derive(Debug, Clone)]
pub struct Body {
    /// The bytes, not packed.
    pub bytes: Bytes,
    /// Samples in it.
    pub rows: usize,
    /// The id of its first sample; those of the others count up from it.
    pub first_id: Uuid,
}

/// Samples, encoded once, to be rendered many times.
#[derive(Debug)]
pub struct Template {
    rows: usize,
    form: Form,
}

#[derive(Debug)]
enum Form {
    Arrow(RecordBatch),
    Text { bytes: Vec<u8>, slots: Vec<Slot> },
}

/// Where a body's text holds something that each rendering writes anew.
#[derive(Debug)]
enum Slot {
    /// The id of the sample of this row.
    Id { at: usize, row: usize },
    /// A time, µs since the epoch before it is moved.
    Time { at: usize, micros: i64 },
}

impl Template {
    /// A template of samples in the schema of [`crate::ingest::emitted_schema`].
    ///
    /// # Errors
    /// See [`DemoError`].
    pub fn new(media: Media, samples: RecordBatch) -> Result<Self, DemoError> {
        let rows = samples.num_rows();
        if rows > MAX_ROWS {
            return Err(DemoError::TooManyRows);
        }
        let form = match media {
            Media::ArrowStream => Form::Arrow(samples),
            Media::Ndjson => text(&samples, b"", b"\n", b"\n")?,
            Media::Json => text(&samples, b"[", b",", b"]")?,
        };
        Ok(Self { rows, form })
    }

    /// Samples in each body.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// A body with new ids, minted at `now`, and all times moved by `shift`.
    ///
    /// # Errors
    /// See [`DemoError`].
    pub fn render(&self, now: DateTime<Utc>, shift: TimeDelta, rng: &mut impl Rng) -> Result<Body, DemoError> {
        let shift = shift.num_microseconds().unwrap_or(0);
        let mut random = [0; 10];
        rng.fill_bytes(&mut random);
        let millis = u64::try_from(now.timestamp_millis()).unwrap_or(0);
        let minted = Builder::from_unix_timestamp_millis(millis, &random).into_uuid();
        let first_id = Uuid::from_u128(minted.as_u128() & !COUNTER_MASK);
        let bytes = match &self.form {
            Form::Arrow(samples) => arrow_body(samples, first_id, shift)?,
            Form::Text { bytes, slots } => text_body(bytes, slots, first_id, shift),
        };
        Ok(Body { bytes: bytes.into(), rows: self.rows, first_id })
    }
}

fn arrow_body(samples: &RecordBatch, first_id: Uuid, shift: i64) -> Result<Vec<u8>, DemoError> {
    let schema = samples.schema();
    let columns = schema
        .fields()
        .iter()
        .zip(samples.columns())
        .map(|(field, column)| -> ArrayRef {
            match field.data_type() {
                DataType::Timestamp(..) => {
                    let times: &TimestampMicrosecondArray = column.as_primitive();
                    let moved = times.unary::<_, TimestampMicrosecondType>(|time| time + shift);
                    Arc::new(moved.with_data_type(field.data_type().clone()))
                }
                _ if field.name() == "invocation_id" => Arc::new(ids(first_id, samples.num_rows()).finish()),
                _ => Arc::clone(column),
            }
        })
        .collect();
    let samples = RecordBatch::try_new(Arc::clone(&schema), columns)?;
    let mut writer = StreamWriter::try_new(Vec::with_capacity(samples.get_array_memory_size()), &schema)?;
    writer.write(&samples)?;
    writer.finish()?;
    Ok(writer.into_inner()?)
}

fn ids(first_id: Uuid, rows: usize) -> StringBuilder {
    let mut builder = StringBuilder::with_capacity(rows, rows * uuid::fmt::Hyphenated::LENGTH);
    let mut buffer = Uuid::encode_buffer();
    for row in 0..rows {
        let id = Uuid::from_u128(first_id.as_u128() | row as u128);
        builder.append_value(id.hyphenated().encode_lower(&mut buffer));
    }
    builder
}

fn text_body(template: &[u8], slots: &[Slot], first_id: Uuid, shift: i64) -> Vec<u8> {
    let mut bytes = template.to_vec();
    let first = first_id.hyphenated().to_string();
    let mut clock = SecondText::default();
    for slot in slots {
        match *slot {
            Slot::Id { at, row } => {
                let Some(place) = bytes.get_mut(at..at + first.len()) else { continue };
                place.copy_from_slice(first.as_bytes());
                let digits = format_counter(row);
                if let Some(place) = place.last_chunk_mut() {
                    *place = digits;
                }
            }
            Slot::Time { at, micros } => {
                if let Some(place) = bytes.get_mut(at..at + TIME_LEN) {
                    clock.write(micros + shift, place);
                }
            }
        }
    }
    bytes
}

fn format_counter(row: usize) -> [u8; COUNTER_DIGITS] {
    std::array::from_fn(|digit| {
        let nibble = (row >> (4 * (COUNTER_DIGITS - 1 - digit)) & 0xf) as u8;
        if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 }
    })
}

/// Writes times; consecutive ones mostly lie in the same second, whose text is kept.
#[derive(Default)]
struct SecondText {
    second: Option<i64>,
    text: String,
}

impl SecondText {
    fn write(&mut self, micros: i64, place: &mut [u8]) {
        let (second, mut fraction) = (micros.div_euclid(1_000_000), micros.rem_euclid(1_000_000));
        if self.second != Some(second) {
            self.second = Some(second);
            self.text =
                DateTime::from_timestamp(second, 0).unwrap_or_default().to_rfc3339_opts(SecondsFormat::Micros, true);
        }
        if place.len() != self.text.len() {
            return;
        }
        place.copy_from_slice(self.text.as_bytes());
        for digit in place.iter_mut().rev().skip(1).take(6) {
            *digit = b'0' + (fraction % 10) as u8;
            fraction /= 10;
        }
    }
}

/// Samples as JSON objects, with nulls left out.
fn text(samples: &RecordBatch, start: &[u8], between: &[u8], end: &[u8]) -> Result<Form, DemoError> {
    let schema = samples.schema();
    let mut bytes = start.to_vec();
    let mut slots = Vec::with_capacity(samples.num_rows() * 3);
    for row in 0..samples.num_rows() {
        bytes.extend_from_slice(if row == 0 { b"" } else { between });
        bytes.push(b'{');
        let mut first = true;
        for (field, column) in schema.fields().iter().zip(samples.columns()) {
            if column.is_null(row) {
                continue;
            }
            if !std::mem::take(&mut first) {
                bytes.push(b',');
            }
            serde_json::to_writer(&mut bytes, field.name())?;
            bytes.push(b':');
            match field.data_type() {
                DataType::Utf8 => {
                    if field.name() == "invocation_id" {
                        slots.push(Slot::Id { at: bytes.len() + 1, row });
                    }
                    serde_json::to_writer(&mut bytes, column.as_string::<i32>().value(row))?;
                }
                DataType::Timestamp(..) => {
                    let micros = column.as_primitive::<TimestampMicrosecondType>().value(row);
                    slots.push(Slot::Time { at: bytes.len() + 1, micros });
                    let time = DateTime::from_timestamp_micros(micros).unwrap_or_default();
                    serde_json::to_writer(&mut bytes, &time.to_rfc3339_opts(SecondsFormat::Micros, true))?;
                }
                DataType::Float64 => {
                    serde_json::to_writer(&mut bytes, &column.as_primitive::<Float64Type>().value(row))?;
                }
                DataType::Int64 => {
                    serde_json::to_writer(&mut bytes, &column.as_primitive::<Int64Type>().value(row))?;
                }
                _ => bytes.extend_from_slice(b"null"),
            }
        }
        bytes.push(b'}');
    }
    bytes.extend_from_slice(end);
    Ok(Form::Text { bytes, slots })
}

#[cfg(test)]
mod tests {
    use arrow::array::AsArray;
    use arrow::datatypes::TimestampMicrosecondType;
    use chrono::{DateTime, TimeDelta, Utc};
    use rand::SeedableRng;
    use rand::rngs::SmallRng;
    use uuid::Uuid;

    use super::super::Fleet;
    use super::Template;
    use crate::ingest::{DecodeContext, DecodeLimits, Encoding, Media, RandomIds, decode};
    use arrow::record_batch::RecordBatch;

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000, 999_000_000).unwrap()
    }

    fn samples() -> RecordBatch {
        Fleet::new(7, 3).batch(1, now(), now() + TimeDelta::seconds(3), 300).unwrap()
    }

    fn rendered(media: Media, shift: TimeDelta) -> (Uuid, RecordBatch) {
        let template = Template::new(media, samples()).unwrap();
        let body = template.render(now(), shift, &mut SmallRng::seed_from_u64(1)).unwrap();
        let org = "acme".parse().unwrap();
        let context = DecodeContext { org: &org, now: now() + shift, limits: DecodeLimits::default() };
        let batch = decode(&body.bytes, media, Encoding::Identity, &context, &mut RandomIds::default()).unwrap();
        assert_eq!(batch.num_rows(), body.rows);
        (body.first_id, batch)
    }

    #[test]
    fn every_form_decodes_to_the_same_samples() {
        let shift = TimeDelta::milliseconds(86_400_500);
        let (_, arrow) = rendered(Media::ArrowStream, shift);
        assert_eq!(rendered(Media::Ndjson, shift).1, arrow);
        assert_eq!(rendered(Media::Json, shift).1, arrow);
    }

    #[test]
    fn ids_are_version_7_and_count_up_from_the_first() {
        for media in Media::ALL {
            let (first, batch) = rendered(media, TimeDelta::zero());
            assert_eq!(first.get_version_num(), 7);
            for (row, id) in batch.column_by_name("invocation_id").unwrap().as_string::<i32>().iter().enumerate() {
                assert_eq!(id.unwrap().parse::<Uuid>().unwrap().as_u128(), first.as_u128() + row as u128);
            }
        }
    }

    #[test]
    fn two_renderings_share_no_id() {
        let template = Template::new(Media::Ndjson, samples()).unwrap();
        let mut rng = SmallRng::seed_from_u64(1);
        let one = template.render(now(), TimeDelta::zero(), &mut rng).unwrap();
        let two = template.render(now(), TimeDelta::zero(), &mut rng).unwrap();
        assert!(one.first_id.as_u128().abs_diff(two.first_id.as_u128()) >= 1 << 24);
    }

    #[test]
    fn all_times_move_by_the_shift() {
        let shift = TimeDelta::microseconds(61_000_001);
        let original = samples();
        let times = |batch: &RecordBatch| {
            let times = batch.column_by_name("started_at").unwrap().as_primitive::<TimestampMicrosecondType>().clone();
            times.values().to_vec()
        };
        for media in Media::ALL {
            let moved = times(&rendered(media, shift).1);
            assert!(times(&original).iter().zip(moved).all(|(before, after)| after - before == 61_000_001));
        }
    }
}
