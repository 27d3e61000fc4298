//! One value as text: what JSON and CSV share.

use std::io::Write;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BinaryViewArray, BooleanArray, Date32Array, FixedSizeBinaryArray,
    Float64Array, Int64Array, LargeBinaryArray, LargeStringArray, StringArray, StringViewArray, StructArray,
    TimestampMicrosecondArray, TimestampNanosecondArray,
};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, TimeUnit};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use chrono::{DateTime, SecondsFormat};

use crate::query::QueryError;

/// Options of whatever has no form of its own here.
const DISPLAY: FormatOptions<'static> = FormatOptions::new().with_display_error(false);

/// A column, ready to be written value by value.
pub(super) enum Column {
    Boolean(BooleanArray),
    Int(Int64Array),
    Float(Float64Array),
    Text(StringArray),
    TextView(StringViewArray),
    LargeText(LargeStringArray),
    Bytes(BinaryArray),
    BytesView(BinaryViewArray),
    LargeBytes(LargeBinaryArray),
    FixedBytes(FixedSizeBinaryArray),
    Timestamp(TimestampMicrosecondArray),
    Date(Date32Array),
    /// Decimals and integers past 64 bits: their digits are a JSON number.
    Number(ArrayRef),
    /// Whole numbers and decimals: a JSON number where a double holds it, else its digits as a string.
    Exact(ArrayRef),
    /// Nanoseconds since the Unix epoch.
    Nanoseconds(TimestampNanosecondArray),
    List {
        lists: ArrayRef,
        items: Vec<Column>,
    },
    Struct {
        rows: StructArray,
        fields: Vec<(String, Column)>,
    },
    /// Times, intervals and all else: as the engine shows it, in quotes.
    Other(ArrayRef),
    Null,
}

impl Column {
    /// Prepares a column.
    ///
    /// # Errors
    /// When a value does not fit the form of its kind, as a time past the year 262,000.
    pub(super) fn new(array: &ArrayRef, text_numbers: bool) -> Result<Self, QueryError> {
        let cast_to = |data_type: &DataType| cast(array, data_type).map_err(|error| QueryError::from_arrow(&error));
        Ok(match array.data_type() {
            DataType::Null => Self::Null,
            DataType::Boolean => Self::Boolean(array.as_boolean().clone()),
            DataType::Int64 | DataType::UInt64 if text_numbers => Self::Exact(Arc::clone(array)),
            decimal if decimal.is_decimal() && text_numbers => Self::Exact(Arc::clone(array)),
            DataType::Int8
            | DataType::Int16
            | DataType::Int32
            | DataType::Int64
            | DataType::UInt8
            | DataType::UInt16
            | DataType::UInt32 => Self::Int(cast_to(&DataType::Int64)?.as_primitive().clone()),
            DataType::Float16 | DataType::Float32 | DataType::Float64 => {
                Self::Float(cast_to(&DataType::Float64)?.as_primitive().clone())
            }
            DataType::Utf8 => Self::Text(array.as_string().clone()),
            DataType::Utf8View => Self::TextView(array.as_string_view().clone()),
            DataType::LargeUtf8 => Self::LargeText(array.as_string().clone()),
            DataType::Binary => Self::Bytes(array.as_binary().clone()),
            DataType::BinaryView => Self::BytesView(array.as_binary_view().clone()),
            DataType::LargeBinary => Self::LargeBytes(array.as_binary().clone()),
            DataType::FixedSizeBinary(_) => Self::FixedBytes(array.as_fixed_size_binary().clone()),
            DataType::Timestamp(TimeUnit::Nanosecond, _) => Self::Nanoseconds(array.as_primitive().clone()),
            DataType::Timestamp(_, zone) => Self::Timestamp(
                cast_to(&DataType::Timestamp(TimeUnit::Microsecond, zone.clone()))?.as_primitive().clone(),
            ),
            DataType::Date32 | DataType::Date64 => Self::Date(cast_to(&DataType::Date32)?.as_primitive().clone()),
            DataType::UInt64
            | DataType::Decimal32(..)
            | DataType::Decimal64(..)
            | DataType::Decimal128(..)
            | DataType::Decimal256(..) => Self::Number(Arc::clone(array)),
            DataType::List(_) => {
                let lists = array.as_list::<i32>();
                let items = lists.iter().map(|item| item.map_or(Ok(Self::Null), |item| Self::new(&item, text_numbers)));
                Self::List { items: items.collect::<Result<_, _>>()?, lists: Arc::clone(array) }
            }
            DataType::LargeList(_) => {
                let lists = array.as_list::<i64>();
                let items = lists.iter().map(|item| item.map_or(Ok(Self::Null), |item| Self::new(&item, text_numbers)));
                Self::List { items: items.collect::<Result<_, _>>()?, lists: Arc::clone(array) }
            }
            DataType::Dictionary(_, value) => Self::new(&cast_to(value)?, text_numbers)?,
            DataType::Struct(fields) => {
                let rows = array.as_struct().clone();
                let named = |(field, column): (&Arc<Field>, &ArrayRef)| {
                    Ok((field.name().clone(), Self::new(column, text_numbers)?))
                };
                let fields = fields.iter().zip(rows.columns()).map(named).collect::<Result<_, QueryError>>()?;
                Self::Struct { rows, fields }
            }
            _ => Self::Other(Arc::clone(array)),
        })
    }

    /// Whether a row's value is null.
    pub(super) fn is_null(&self, row: usize) -> bool {
        match self {
            Self::Boolean(array) => array.is_null(row),
            Self::Int(array) => array.is_null(row),
            Self::Float(array) => array.is_null(row),
            Self::Text(array) => array.is_null(row),
            Self::TextView(array) => array.is_null(row),
            Self::LargeText(array) => array.is_null(row),
            Self::Bytes(array) => array.is_null(row),
            Self::BytesView(array) => array.is_null(row),
            Self::LargeBytes(array) => array.is_null(row),
            Self::FixedBytes(array) => array.is_null(row),
            Self::Timestamp(array) => array.is_null(row),
            Self::Nanoseconds(array) => array.is_null(row),
            Self::Date(array) => array.is_null(row),
            Self::Number(array) | Self::Exact(array) | Self::Other(array) => array.is_null(row),
            Self::List { lists, .. } => lists.is_null(row),
            Self::Struct { rows, .. } => rows.is_null(row),
            Self::Null => true,
        }
    }

    /// Writes a value as JSON.
    pub(super) fn write_json(&self, row: usize, out: &mut Vec<u8>) -> Result<(), QueryError> {
        if self.is_null(row) {
            out.extend_from_slice(b"null");
            return Ok(());
        }
        match self {
            Self::Boolean(_) | Self::Int(_) | Self::Number(_) => self.write_plain(row, out),
            Self::Float(array) if !array.value(row).is_finite() => {
                out.extend_from_slice(b"null");
                Ok(())
            }
            Self::Float(_) => self.write_plain(row, out),
            Self::Exact(_) => {
                let mut digits = Vec::new();
                self.write_plain(row, &mut digits)?;
                let quote: &[u8] = if fits_a_double(&digits) { b"" } else { b"\"" };
                [quote, &digits, quote].iter().for_each(|part| out.extend_from_slice(part));
                Ok(())
            }
            Self::Text(array) => write_json_text(array.value(row), out),
            Self::TextView(array) => write_json_text(array.value(row), out),
            Self::LargeText(array) => write_json_text(array.value(row), out),
            Self::List { items, .. } => {
                out.push(b'[');
                let (Some(items), length) = (items.get(row), self.length(row)) else {
                    return Err(QueryError::Internal);
                };
                for item in 0..length {
                    if item > 0 {
                        out.push(b',');
                    }
                    items.write_json(item, out)?;
                }
                out.push(b']');
                Ok(())
            }
            Self::Struct { fields, .. } => {
                out.push(b'{');
                for (index, (name, column)) in fields.iter().enumerate() {
                    if index > 0 {
                        out.push(b',');
                    }
                    write_json_text(name, out)?;
                    out.push(b':');
                    column.write_json(row, out)?;
                }
                out.push(b'}');
                Ok(())
            }
            Self::Other(_) => {
                let mut text = Vec::new();
                self.write_plain(row, &mut text)?;
                write_json_text(&String::from_utf8_lossy(&text), out)
            }
            // Bytes, times and dates are made of characters that need no escape.
            _ => {
                out.push(b'"');
                self.write_plain(row, out)?;
                out.push(b'"');
                Ok(())
            }
        }
    }

    /// Writes a value that is not null as plain text: of lists and structs, their JSON.
    pub(super) fn write_plain(&self, row: usize, out: &mut Vec<u8>) -> Result<(), QueryError> {
        match self {
            Self::Boolean(array) => out.extend_from_slice(if array.value(row) { b"true" } else { b"false" }),
            Self::Int(array) => out.extend_from_slice(itoa::Buffer::new().format(array.value(row)).as_bytes()),
            Self::Float(array) => write_float(array.value(row), out),
            Self::Text(array) => out.extend_from_slice(array.value(row).as_bytes()),
            Self::TextView(array) => out.extend_from_slice(array.value(row).as_bytes()),
            Self::LargeText(array) => out.extend_from_slice(array.value(row).as_bytes()),
            Self::Bytes(array) => write_hex(array.value(row), out),
            Self::BytesView(array) => write_hex(array.value(row), out),
            Self::LargeBytes(array) => write_hex(array.value(row), out),
            Self::FixedBytes(array) => write_hex(array.value(row), out),
            Self::Timestamp(array) => {
                let time = DateTime::from_timestamp_micros(array.value(row))
                    .ok_or_else(|| QueryError::invalid("a timestamp lies outside the calendar; cast it to bigint"))?;
                out.extend_from_slice(time.to_rfc3339_opts(SecondsFormat::AutoSi, true).as_bytes());
            }
            Self::Nanoseconds(array) => {
                let time = DateTime::from_timestamp_nanos(array.value(row));
                out.extend_from_slice(time.to_rfc3339_opts(SecondsFormat::AutoSi, true).as_bytes());
            }
            Self::Date(array) => {
                let date = array
                    .value_as_date(row)
                    .ok_or_else(|| QueryError::invalid("a date lies outside the calendar; cast it to bigint"))?;
                write_display(&date, out)?;
            }
            Self::Number(array) | Self::Exact(array) | Self::Other(array) => {
                let shown = ArrayFormatter::try_new(array.as_ref(), &DISPLAY)
                    .map_err(|error| QueryError::from_arrow(&error))?;
                let text = shown.value(row).try_to_string().map_err(|error| QueryError::from_arrow(&error))?;
                out.extend_from_slice(text.as_bytes());
            }
            Self::List { .. } | Self::Struct { .. } => self.write_json(row, out)?,
            Self::Null => {}
        }
        Ok(())
    }

    /// Whether its values are texts that someone chose.
    pub(super) fn is_free_text(&self) -> bool {
        matches!(self, Self::Text(_) | Self::TextView(_) | Self::LargeText(_) | Self::Other(_))
    }

    fn length(&self, row: usize) -> usize {
        match self {
            Self::List { lists, .. } => match lists.data_type() {
                DataType::LargeList(_) => usize::try_from(lists.as_list::<i64>().value_length(row)).unwrap_or_default(),
                _ => usize::try_from(lists.as_list::<i32>().value_length(row)).unwrap_or_default(),
            },
            _ => 0,
        }
    }
}

/// Whether a double holds a number, so that readers who take JSON numbers as doubles read it: whole ones up to 2^53,
/// fractions of 15 digits.
fn fits_a_double(digits: &[u8]) -> bool {
    const EXACT: u64 = 1 << 53;
    let Ok(text) = std::str::from_utf8(digits) else { return false };
    let text = text.trim_start_matches('-');
    match text.split_once('.') {
        None => text.parse::<u64>().is_ok_and(|number| number <= EXACT),
        Some((whole, fraction)) => {
            let all = [whole, fraction].concat();
            all.trim_start_matches('0').trim_end_matches('0').len() <= 15
        }
    }
}

/// The shortest digits that read back as the same number; whole numbers without a point.
fn write_float(value: f64, out: &mut Vec<u8>) {
    if !value.is_finite() {
        let name: &[u8] = if value.is_nan() {
            b"NaN"
        } else if value > 0.0 {
            b"Infinity"
        } else {
            b"-Infinity"
        };
        out.extend_from_slice(name);
        return;
    }
    let mut buffer = ryu::Buffer::new();
    let digits = buffer.format_finite(value);
    out.extend_from_slice(digits.strip_suffix(".0").unwrap_or(digits).as_bytes());
}

fn write_hex(bytes: &[u8], out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| DIGITS.get(usize::from(nibble)).copied().unwrap_or_default();
    out.extend(bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 0xf)]));
}

fn write_display(value: &dyn std::fmt::Display, out: &mut Vec<u8>) -> Result<(), QueryError> {
    write!(out, "{value}").map_err(|_| QueryError::Internal)
}

/// A text as a JSON string.
pub(super) fn write_json_text(text: &str, out: &mut Vec<u8>) -> Result<(), QueryError> {
    serde_json::to_writer(out, text).map_err(|_| QueryError::Internal)
}

/// The columns of a batch, ready to be written.
pub(super) fn columns(batch: &arrow::record_batch::RecordBatch, text_numbers: bool) -> Result<Vec<Column>, QueryError> {
    batch.columns().iter().map(|column| Column::new(column, text_numbers)).collect()
}
