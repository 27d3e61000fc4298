//! JSON text into columns, without a struct a row in between.
//!
//! `serde_json` drives visitors that put each value where it belongs as soon as it is read. They accept a value of any
//! type, so that a wrong one is a fault of its row and field and not the end of the reading; only a syntax error is that.
//!
//! A document is one object or an array of objects. Texts of messages come from here or from `serde_json`'s fixed
//! messages on syntax, none of which repeat any of the body.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::error::IngestError;
use super::rows::{RowBuilder, Value};

/// Reads a JSON document into `rows`.
///
/// # Errors
/// [`IngestError::Malformed`] where it is no JSON.
pub(super) fn decode<'a>(body: &[u8], mut rows: RowBuilder<'a>) -> Result<RowBuilder<'a>, IngestError> {
    let (text, broken_at) = valid_utf8(body);
    let mut parser = serde_json::Deserializer::from_str(text);
    let parsed = Any::new(Document(&mut rows)).deserialize(&mut parser).and_then(|()| parser.end());
    match (parsed, broken_at) {
        (_, _) if rows.should_stop() => Ok(rows),
        (Ok(()), None) => Ok(rows),
        (_, Some(byte)) => Err(rows.into_malformed(not_utf8(byte))),
        (Err(error), None) => {
            let detail = format!("not JSON: {} at line {} column {}", reason(&error), error.line(), error.column());
            Err(rows.into_malformed(detail))
        }
    }
}

/// Reads one object of NDJSON into `rows`, as one row whatever it holds.
pub(super) fn decode_line(line: &str, number: usize, rows: &mut RowBuilder<'_>) {
    let row = rows.rows();
    let mut parser = serde_json::Deserializer::from_str(line);
    let parsed = Any::new(Sample(rows)).deserialize(&mut parser).and_then(|()| parser.end());
    if let Err(error) = parsed {
        let detail = format!("line {number} is not JSON: {} at column {}", reason(&error), error.column());
        if rows.rows() == row {
            rows.end_unreadable_row(detail);
        } else {
            rows.fault_of(row, detail);
        }
    }
}

/// The part of a body that is UTF-8, and the byte at which it ceases to be, if it does.
pub(super) fn valid_utf8(body: &[u8]) -> (&str, Option<usize>) {
    match std::str::from_utf8(body) {
        Ok(text) => (text, None),
        Err(error) => {
            let valid = body.get(..error.valid_up_to()).unwrap_or_default();
            (std::str::from_utf8(valid).unwrap_or_default(), Some(error.valid_up_to()))
        }
    }
}

/// What is said of a body that is not UTF-8.
pub(super) fn not_utf8(byte: usize) -> String {
    format!("not UTF-8 at byte {byte}")
}

/// The reason that `serde_json` gives, without the place, which it counts within what it was handed.
fn reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.rsplit_once(" at line ").map_or(text.as_str(), |(reason, _)| reason).to_owned()
}

/// Whatever takes a JSON value, of any type.
trait Take<'de>: Sized {
    /// Takes a value that is not, or not here, an array or object with something of use in it.
    fn scalar(self, value: Value<'_>);

    /// Takes an array.
    fn list<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        self.scalar(Value::List);
        Ok(())
    }

    /// Takes an object.
    fn object<A: MapAccess<'de>>(self, mut object: A) -> Result<(), A::Error> {
        while object.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        self.scalar(Value::Object);
        Ok(())
    }
}

/// The document: an object, or an array of them.
struct Document<'r, 'a>(&'r mut RowBuilder<'a>);

impl<'de> Take<'de> for Document<'_, '_> {
    fn scalar(self, value: Value<'_>) {
        Sample(self.0).scalar(value);
    }

    fn list<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(Any::new(Sample(self.0)))?.is_some() {
            if self.0.should_stop() {
                return Err(A::Error::custom("stopped reading"));
            }
        }
        Ok(())
    }

    fn object<A: MapAccess<'de>>(self, object: A) -> Result<(), A::Error> {
        Sample(self.0).object(object)
    }
}

/// One sample.
struct Sample<'r, 'a>(&'r mut RowBuilder<'a>);

impl<'de> Take<'de> for Sample<'_, '_> {
    fn scalar(self, value: Value<'_>) {
        self.0.end_unreadable_row(format!("expected an object, found {}", value.kind()));
    }

    fn object<A: MapAccess<'de>>(self, mut object: A) -> Result<(), A::Error> {
        let mut position = 0;
        while let Some(field) = object.next_key_seed(Key { rows: self.0, position })? {
            match field {
                Some(field) => object.next_value_seed(Any::new(FieldValue { rows: self.0, field }))?,
                None => {
                    object.next_value::<IgnoredAny>()?;
                }
            }
            position += 1;
        }
        self.0.end_row();
        Ok(())
    }
}

/// The value of a field that we know.
struct FieldValue<'r, 'a> {
    rows: &'r mut RowBuilder<'a>,
    field: usize,
}

impl<'de> Take<'de> for FieldValue<'_, '_> {
    fn scalar(self, value: Value<'_>) {
        self.rows.put(self.field, value);
    }
}

/// The name of a field: gives the field, or none when it is to be skipped.
struct Key<'r, 'a> {
    rows: &'r mut RowBuilder<'a>,
    position: usize,
}

impl<'de> DeserializeSeed<'de> for Key<'_, '_> {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_, '_> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a field")
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.rows.enter(self.position, name))
    }
}

/// Hands a value of any type to a [`Take`].
struct Any<'de, T>(T, PhantomData<&'de ()>);

impl<'de, T: Take<'de>> Any<'de, T> {
    fn new(take: T) -> Self {
        Self(take, PhantomData)
    }
}

impl<'de, T: Take<'de>> DeserializeSeed<'de> for Any<'de, T> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, T: Take<'de>> Visitor<'de> for Any<'de, T> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        self.0.scalar(Value::Text(text));
        Ok(())
    }

    fn visit_u64<E>(self, whole: u64) -> Result<(), E> {
        self.0.scalar(Value::Unsigned(whole));
        Ok(())
    }

    fn visit_i64<E>(self, whole: i64) -> Result<(), E> {
        self.0.scalar(Value::Signed(whole));
        Ok(())
    }

    fn visit_f64<E>(self, float: f64) -> Result<(), E> {
        self.0.scalar(Value::Float(float));
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        self.0.scalar(Value::Bool);
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        self.0.scalar(Value::Null);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<(), A::Error> {
        self.0.list(list)
    }

    fn visit_map<A: MapAccess<'de>>(self, object: A) -> Result<(), A::Error> {
        self.0.object(object)
    }
}
