//! Arrow columns of the types that emitters have to the canonical types, as far as no value changes by it.
//!
//! | canonical | taken |
//! |---|---|
//! | text | any kind of string, dictionaries of them |
//! | timestamp (µs, UTC) | timestamps of any unit and zone; finer than a microsecond is cut off; without a zone they are refused, as in JSON |
//! | double | any number |
//! | bigint | any whole number that fits; doubles that are whole, as data frames make of whole numbers with gaps |
//!
//! A column of the null type is taken as any. Dictionaries and string views can stand for far more text than they take
//! themselves, so the text is measured before it is written out.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, Float64Array, Int64Array, PrimitiveArray, StringArray, UInt64Array, new_null_array,
};
use arrow::compute::{cast, take};
use arrow::datatypes::{
    ArrowTimestampType, DataType, Int64Type, TimeUnit, TimestampMicrosecondType, TimestampMillisecondType,
    TimestampNanosecondType, TimestampSecondType, UInt64Type,
};
use arrow::error::ArrowError;

use super::value::MAX_EXACT_INT;

/// Why a column was not taken.
pub(super) enum Refusal {
    /// Its type holds something else.
    Type,
    /// Its times have no zone, so they are of no instant.
    Zone,
    /// Its text, written out, would pass the limit.
    TooMuchText,
    /// These rows hold values that do not fit.
    Rows(Vec<usize>),
    /// The column itself is not sound.
    Unsound(String),
}

impl From<ArrowError> for Refusal {
    fn from(error: ArrowError) -> Self {
        Self::Unsound(error.to_string())
    }
}

/// A column as `canonical`, charging the bytes of text that it writes out to `text_left`.
pub(super) fn convert(values: &ArrayRef, canonical: &DataType, text_left: &mut usize) -> Result<ArrayRef, Refusal> {
    if values.data_type() == &DataType::Null {
        return Ok(new_null_array(canonical, values.len()));
    }
    match canonical {
        DataType::Utf8 => Ok(Arc::new(text(values, text_left)?)),
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            let times = times(values)?;
            Ok(Arc::new(times.with_data_type(canonical.clone())))
        }
        DataType::Float64 if values.data_type().is_numeric() => Ok(cast(values, canonical)?),
        DataType::Int64 if values.data_type().is_floating() => {
            let floats = cast(values, &DataType::Float64)?;
            let floats: &Float64Array = floats.as_primitive();
            let whole = |float: f64| (float.fract() == 0.0 && float.abs() <= MAX_EXACT_INT).then_some(float as i64);
            Ok(Arc::new(same_rows(values, floats.unary_opt::<_, Int64Type>(whole))?))
        }
        DataType::Int64 if values.data_type() == &DataType::UInt64 => {
            let whole: &UInt64Array = values.as_primitive::<UInt64Type>();
            Ok(Arc::new(same_rows(values, whole.unary_opt::<_, Int64Type>(|whole| i64::try_from(whole).ok()))?))
        }
        DataType::Int64 if values.data_type().is_integer() => Ok(cast(values, canonical)?),
        _ => Err(Refusal::Type),
    }
}

/// A column of any kind of string as plain strings.
pub(super) fn text(values: &ArrayRef, text_left: &mut usize) -> Result<StringArray, Refusal> {
    let mut charge = |bytes: usize| match text_left.checked_sub(bytes) {
        Some(left) => {
            *text_left = left;
            Ok(())
        }
        None => Err(Refusal::TooMuchText),
    };
    match values.data_type() {
        DataType::Null => Ok(StringArray::new_null(values.len())),
        DataType::Utf8 => Ok(values.as_string::<i32>().clone()),
        DataType::LargeUtf8 => {
            charge(values.as_string::<i64>().value_data().len())?;
            Ok(cast(values, &DataType::Utf8)?.as_string().clone())
        }
        DataType::Utf8View => {
            let lengths = values.as_string_view().lengths();
            charge(lengths.fold(0_usize, |sum, len| sum.saturating_add(len as usize)))?;
            Ok(cast(values, &DataType::Utf8)?.as_string().clone())
        }
        DataType::Dictionary(_, of) if of.is_string() => {
            let Some(dictionary) = values.as_any_dictionary_opt() else { return Err(Refusal::Type) };
            let entries = text(dictionary.values(), text_left)?;
            let keys = cast(dictionary.keys(), &DataType::Int64)?;
            let keys: &Int64Array = keys.as_primitive();
            let length_of = |key: i64| -> usize {
                let Ok(key) = usize::try_from(key) else { return 0 };
                let ends = entries.value_offsets().get(key).zip(entries.value_offsets().get(key + 1));
                ends.and_then(|(start, end)| usize::try_from(end - start).ok()).unwrap_or(0)
            };
            let bytes = keys.iter().flatten().map(length_of).fold(0_usize, usize::saturating_add);
            *text_left = text_left.checked_sub(bytes).ok_or(Refusal::TooMuchText)?;
            Ok(take(&entries, keys, None)?.as_string().clone())
        }
        _ => Err(Refusal::Type),
    }
}

fn times(values: &ArrayRef) -> Result<PrimitiveArray<TimestampMicrosecondType>, Refusal> {
    match values.data_type() {
        DataType::Timestamp(_, None) => Err(Refusal::Zone),
        DataType::Timestamp(TimeUnit::Second, _) => scaled::<TimestampSecondType>(values, |s| s.checked_mul(1_000_000)),
        DataType::Timestamp(TimeUnit::Millisecond, _) => {
            scaled::<TimestampMillisecondType>(values, |ms| ms.checked_mul(1000))
        }
        DataType::Timestamp(TimeUnit::Microsecond, _) => scaled::<TimestampMicrosecondType>(values, Some),
        DataType::Timestamp(TimeUnit::Nanosecond, _) => {
            scaled::<TimestampNanosecondType>(values, |ns| Some(ns.div_euclid(1000)))
        }
        _ => Err(Refusal::Type),
    }
}

fn scaled<T: ArrowTimestampType>(
    values: &ArrayRef,
    scale: impl Fn(i64) -> Option<i64>,
) -> Result<PrimitiveArray<TimestampMicrosecondType>, Refusal> {
    same_rows(values, values.as_primitive::<T>().unary_opt::<_, TimestampMicrosecondType>(scale))
}

/// `converted`, if it has a value wherever `original` has one.
fn same_rows<T: arrow::datatypes::ArrowPrimitiveType>(
    original: &ArrayRef,
    converted: PrimitiveArray<T>,
) -> Result<PrimitiveArray<T>, Refusal> {
    if original.null_count() == converted.null_count() {
        return Ok(converted);
    }
    let lost = |&row: &usize| original.is_valid(row) && converted.is_null(row);
    Err(Refusal::Rows((0..original.len()).filter(lost).collect()))
}
