//! JSON text into columns, without a struct a row in between.
//!
//! `serde_json` drives visitors that put each value where it belongs as soon as it is read. They accept a value of any
//! type, so that a wrong one is a fault of its row and field and not the end of the reading; only a syntax error is
//! that.
//!
//! A document is one object or an array of objects. Texts of messages come from here or from `serde_json`'s fixed
//! messages on syntax, none of which repeat any of the body.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::error::IngestError;
use super::rows::RowBuilder;
use super::value::Value;

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

/// The part of a body that is UTF-8, without a byte order mark before it, and the byte at which it ceases to be, if it
/// does.
pub(super) fn valid_utf8(body: &[u8]) -> (&str, Option<usize>) {
    let body = body.strip_prefix(BYTE_ORDER_MARK).unwrap_or(body);
    match std::str::from_utf8(body) {
        Ok(text) => (text, None),
        Err(error) => {
            let valid = body.get(..error.valid_up_to()).unwrap_or_default();
            (std::str::from_utf8(valid).unwrap_or_default(), Some(error.valid_up_to()))
        }
    }
}

/// What editors and shells put before a text in UTF-8.
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

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
                Some(field) if self.0.takes_json(field) => {
                    let text: &RawValue = object.next_value()?;
                    self.0.put_json(field, text.get());
                }
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

    fn list<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        if !self.rows.takes_texts(self.field) {
            while list.next_element::<IgnoredAny>()?.is_some() {}
            self.scalar(Value::List);
            return Ok(());
        }
        let mut texts = 0;
        while list.next_element_seed(Any::new(Item { rows: self.rows, field: self.field }))?.is_some() {
            texts += 1;
        }
        self.rows.end_texts(self.field, texts);
        Ok(())
    }
}

/// One element of an array of texts.
struct Item<'r, 'a> {
    rows: &'r mut RowBuilder<'a>,
    field: usize,
}

impl<'de> Take<'de> for Item<'_, '_> {
    fn scalar(self, value: Value<'_>) {
        self.rows.put_text(self.field, value);
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::fixtures::*;
    use super::super::{DecodeLimits, MAX_LISTED_ERRORS, Media};

    fn code_of(body: &str) -> &'static str {
        decode_as(Media::Json, body.as_bytes(), DecodeLimits::default()).unwrap_err().code()
    }

    #[test]
    fn a_document_is_an_object_or_an_array_of_them() {
        assert_eq!(decode_json(&sample()).unwrap().num_rows(), 1);
        assert_eq!(decode_json(&json!([sample(), sample()])).unwrap().num_rows(), 2);
    }

    #[test]
    fn every_field_comes_out_in_its_column_as_it_went_in() {
        let batch = decode_json(&sample()).unwrap();
        assert_canonical(&batch);
        for (field, value) in sample().as_object().unwrap() {
            let column = batch.column_by_name(field).unwrap();
            let shown = arrow::util::display::array_value_to_string(column, 0).unwrap();
            match value {
                Value::String(text) if field.ends_with("_at") => {
                    let millis = |text: &str| chrono::DateTime::parse_from_rfc3339(text).unwrap().timestamp_micros();
                    assert_eq!(millis(&shown), millis(text), "{field}");
                }
                Value::String(text) => assert_eq!(&shown, text, "{field}"),
                number => assert_eq!(shown, number.to_string(), "{field}"),
            }
        }
    }

    #[test]
    fn fields_may_come_in_another_order_in_each_row() {
        let batch = decode_as(
            Media::Json,
            br#"[{"tool":"a","plugin":"b","workspace":"c","instance":"d","started_at":"2026-01-01T00:00:00Z","duration_ms":1,"outcome":"ok"},
                {"outcome":"ok","duration_ms":2,"workspace":"w","instance":"i","plugin":"p","started_at":"2026-01-01T00:00:00Z","tool":"t"}]"#,
            DecodeLimits::default(),
        )
        .unwrap();
        assert_eq!(text(&batch, "tool"), "a");
        assert_eq!(text(&batch.slice(1, 1), "tool"), "t");
        assert_eq!(text(&batch.slice(1, 1), "workspace"), "w");
    }

    #[test]
    fn a_value_of_the_wrong_type_is_named_by_row_and_field_and_reading_goes_on() {
        let body = json!([sample(), sample_with("duration_ms", "84"), sample_with("tool", json!([1, {"a": 2}])), 7]);
        let error = decode_json(&body).unwrap_err();
        let found: Vec<_> = error.errors().iter().map(|e| (e.row, e.field.as_deref(), e.message.as_ref())).collect();
        assert_eq!(
            found,
            [
                (1, Some("duration_ms"), "expected a number, found a string"),
                (2, Some("tool"), "expected a string, found an array"),
                (3, None, "expected an object, found a number"),
            ]
        );
    }

    #[test]
    fn a_field_that_we_do_not_know_is_refused_by_name() {
        assert_eq!(fault_of(&sample_with("outcom", "ok"), "outcom"), "no such field");
    }

    #[test]
    fn the_name_of_an_unknown_field_is_shortened_and_shown_only_if_it_looks_like_one() {
        let shown = |name: &str| faults_of(&sample_with(name, 1))[0].field.clone().unwrap();
        assert_eq!(shown(&"x".repeat(500)), format!("{}…", "x".repeat(64)));
        assert_eq!(shown("connection to db failed"), "(not shown)");
        assert_eq!(shown("\u{1b}[2J"), "(not shown)");
    }

    #[test]
    fn a_field_given_twice_is_refused() {
        let twice = sample().to_string().replacen('{', r#"{"tool":"other","#, 1);
        let error = decode_as(Media::Json, twice.as_bytes(), DecodeLimits::default()).unwrap_err();
        assert_eq!(error.errors()[0].field.as_deref(), Some("tool"));
        assert_eq!(error.errors()[0].message, "given twice");
    }

    #[test]
    fn null_is_as_good_as_absent() {
        let batch = decode_json(&sample_with("caller", Value::Null)).unwrap();
        assert_eq!(batch.column_by_name("caller").unwrap().null_count(), 1);
        assert!(fault_of(&sample_with("tool", Value::Null), "tool").contains("required"));
        assert!(fault_of(&sample_without("tool"), "tool").contains("required"));
    }

    #[test]
    fn a_count_may_be_written_as_a_whole_float_and_must_fit_64_bits() {
        decode_json(&sample_with("request_bytes", 1024.0)).unwrap();
        fault_of(&sample_with("request_bytes", 10.5), "request_bytes");
        fault_of(&sample_with("request_bytes", u64::MAX), "request_bytes");
        fault_of(&sample_with("request_bytes", -1), "request_bytes");
    }

    #[test]
    fn a_syntax_error_names_the_row_it_is_in() {
        let body = format!("[{}, {{\"tool\": }}]", sample());
        let error = decode_as(Media::Json, body.as_bytes(), DecodeLimits::default()).unwrap_err();
        assert_eq!(error.code(), "malformed_body");
        assert_eq!(error.errors()[0].row, 1);
        assert!(error.to_string().contains("expected value at line 1 column"), "{error}");
    }

    #[test]
    fn what_json_has_no_word_for_is_malformed() {
        for bad in
            ["{", "[", "nul", "[1,]", "{\"tool\":NaN}", "{\"tool\":Infinity}", "{\"duration_ms\":1e999}", "{} {}"]
        {
            assert_eq!(code_of(bad), "malformed_body", "{bad}");
        }
        assert_eq!(code_of("{\"tool\":\"a\0b\"}"), "malformed_body");
    }

    #[test]
    fn deep_nesting_is_malformed_and_does_no_harm() {
        assert_eq!(code_of(&"[".repeat(1_000_000)), "malformed_body");
        let deep =
            sample().to_string().replacen("\"prod\"", &format!("{}1{}", "[".repeat(500_000), "]".repeat(500_000)), 1);
        assert_eq!(code_of(&deep), "invalid_sample");
    }

    #[test]
    fn bytes_that_are_not_utf_8_are_malformed_and_the_row_is_named() {
        let mut body = format!("[{},{}", sample(), sample()).into_bytes();
        *body.iter_mut().rev().find(|byte| **byte == b'g').unwrap() = 0xff;
        let error = decode_as(Media::Json, &body, DecodeLimits::default()).unwrap_err();
        assert_eq!(error.code(), "malformed_body");
        assert_eq!(error.errors()[0].row, 1);
        assert!(error.to_string().contains("not UTF-8"), "{error}");
    }

    #[test]
    fn an_empty_batch_has_its_own_code() {
        assert_eq!(code_of(""), "empty_batch");
        assert_eq!(code_of(" \n "), "empty_batch");
        assert_eq!(code_of("[]"), "empty_batch");
    }

    #[test]
    fn reading_stops_when_the_list_of_faults_is_full() {
        let body = format!("[{} this is never read", "{},".repeat(1000));
        let error = decode_as(Media::Json, body.as_bytes(), DecodeLimits::default()).unwrap_err();
        assert_eq!(error.code(), "invalid_sample");
        assert_eq!(error.errors().len(), MAX_LISTED_ERRORS);
    }

    #[test]
    fn too_many_samples_are_too_large_a_body() {
        let limits = DecodeLimits { max_rows: 2, ..DecodeLimits::default() };
        let body = |rows| Value::Array(vec![sample(); rows]).to_string();
        assert_eq!(decode_as(Media::Json, body(2).as_bytes(), limits).unwrap().num_rows(), 2);
        assert_eq!(decode_as(Media::Json, body(3).as_bytes(), limits).unwrap_err().status(), 413);
    }
}
