//! One column of a draft, built value by value out of JSON.
//!
//! A value that is not of the column's type leaves the builder as it was, so that the row can be ended with a null in
//! its place.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Builder, Int64Builder, ListBuilder, StringBuilder, TimestampMicrosecondBuilder};
use arrow::datatypes::DataType;

use super::timestamp::parse_rfc3339;
use super::value::Value;

/// Why a value was not taken.
pub(super) enum Fault {
    /// It is of another form than the column has: what is said of it.
    Form(&'static str),
    /// It is of another type: the one that the column has.
    Type(&'static str),
}

/// A builder of the type of its column.
pub(super) enum ColumnBuilder {
    Text(StringBuilder),
    Time(TimestampMicrosecondBuilder),
    Float(Float64Builder),
    Int(Int64Builder),
    Texts(ListBuilder<StringBuilder>),
}

impl ColumnBuilder {
    /// A builder for `capacity` values at first.
    pub(super) fn new(data_type: &DataType, capacity: usize) -> Self {
        match data_type {
            DataType::Timestamp(..) => {
                Self::Time(TimestampMicrosecondBuilder::with_capacity(capacity).with_data_type(data_type.clone()))
            }
            DataType::Float64 => Self::Float(Float64Builder::with_capacity(capacity)),
            DataType::Int64 => Self::Int(Int64Builder::with_capacity(capacity)),
            DataType::List(_) => Self::Texts(ListBuilder::with_capacity(StringBuilder::new(), capacity)),
            _ => Self::Text(StringBuilder::with_capacity(capacity, capacity * 20)),
        }
    }

    /// Appends a value.
    ///
    /// # Errors
    /// See [`Fault`]; nothing was appended then. Arrays of texts are built text by text instead.
    pub(super) fn append(&mut self, value: Value<'_>) -> Result<(), Fault> {
        match (self, value) {
            (Self::Text(builder), Value::Text(text)) => builder.append_value(text),
            (Self::Time(builder), Value::Text(text)) => match parse_rfc3339(text) {
                Some(micros) => builder.append_value(micros),
                None => return Err(Fault::Form("not an RFC 3339 date-time such as 2026-01-31T12:00:00.5Z")),
            },
            (Self::Float(builder), Value::Unsigned(whole)) => builder.append_value(whole as f64),
            (Self::Float(builder), Value::Signed(whole)) => builder.append_value(whole as f64),
            (Self::Float(builder), Value::Float(float)) => builder.append_value(float),
            (Self::Int(builder), Value::Unsigned(_) | Value::Signed(_) | Value::Float(_)) => match value.whole() {
                Some(whole) => builder.append_value(whole),
                None => return Err(Fault::Form("not a whole number of 64 bits")),
            },
            (Self::Text(_), _) => return Err(Fault::Type("a string")),
            (Self::Time(_), _) => return Err(Fault::Type("an RFC 3339 date-time in a string")),
            (Self::Float(_), _) => return Err(Fault::Type("a number")),
            (Self::Int(_), _) => return Err(Fault::Type("a whole number")),
            (Self::Texts(_), _) => return Err(Fault::Type("an array of strings")),
        }
        Ok(())
    }

    /// Appends a null.
    pub(super) fn append_null(&mut self) {
        match self {
            Self::Text(builder) => builder.append_null(),
            Self::Time(builder) => builder.append_null(),
            Self::Float(builder) => builder.append_null(),
            Self::Int(builder) => builder.append_null(),
            Self::Texts(builder) => builder.append_null(),
        }
    }

    /// The column.
    pub(super) fn finish(self) -> ArrayRef {
        match self {
            Self::Text(mut builder) => Arc::new(builder.finish()),
            Self::Time(mut builder) => Arc::new(builder.finish()),
            Self::Float(mut builder) => Arc::new(builder.finish()),
            Self::Int(mut builder) => Arc::new(builder.finish()),
            Self::Texts(mut builder) => Arc::new(builder.finish()),
        }
    }
}
