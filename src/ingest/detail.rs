//! `detail` of an event: an object, kept as its JSON text.
//!
//! The ledger hashes the text, so it is kept as it was sent: numbers stay as they were written and members in their
//! order. Only white space between tokens is dropped, since the text must fit into one line of NDJSON and mean the same
//! to every reader. An object that names a member twice is refused: readers differ in which of the two they take.
//!
//! One member is the control plane's: `submitted_by`, the name of the token that an event came in by. An emitter may
//! not send it, and [`stamp_submitter`] adds it as the last member.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, StringBuilder};
use arrow::record_batch::RecordBatch;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::error::IngestError;

/// The longest text.
const MAX_BYTES: usize = 64 << 10;

const TWICE: &str = "names a member twice";
/// The member that names the token by which an event came in.
const SUBMITTED_BY: &str = "submitted_by";
const STAMPED: &str = "has a member submitted_by, which the control plane fills in";

/// The text without white space between tokens; none of a `null`.
///
/// # Errors
/// What is wrong with it, without repeating any of it.
pub(super) fn compact(json: &str) -> Result<Option<String>, &'static str> {
    let json = json.trim_ascii();
    if json == "null" {
        return Ok(None);
    }
    if !json.starts_with('{') {
        return Err("not an object");
    }
    let mut parser = serde_json::Deserializer::from_str(json);
    if let Err(error) = (Unambiguous { top: true }).deserialize(&mut parser) {
        let told = error.to_string();
        let known = [TWICE, STAMPED].into_iter().find(|known| told.starts_with(known));
        return Err(known.unwrap_or("nested too deep"));
    }
    let (mut text, mut in_string, mut escaped) = (String::with_capacity(json.len()), false, false);
    for character in json.chars() {
        match character {
            _ if escaped => escaped = false,
            '\\' if in_string => escaped = true,
            '"' => in_string = !in_string,
            ' ' | '\t' | '\n' | '\r' if !in_string => continue,
            _ => {}
        }
        text.push(character);
    }
    if text.len() > MAX_BYTES { Err("over 64 KiB of JSON") } else { Ok(Some(text)) }
}

/// Adds `submitted_by` to the detail of each event: the name of the token that the events came in by.
///
/// # Errors
/// [`IngestError::Internal`] when the batch is not of events.
pub fn stamp_submitter(events: &RecordBatch, token: &str) -> Result<RecordBatch, IngestError> {
    let internal = |reason: &dyn fmt::Display| IngestError::Internal(reason.to_string());
    let schema = events.schema();
    let place = schema.index_of("detail").map_err(|error| internal(&error))?;
    let details = events.column(place).as_string_opt::<i32>().ok_or_else(|| internal(&"detail is no string"))?;
    let member = format!("\"{SUBMITTED_BY}\":{}}}", serde_json::Value::from(token));
    let each = details.value_data().len() / details.len().max(1) + member.len() + 1;
    let mut stamped = StringBuilder::with_capacity(details.len(), details.len() * each);
    for detail in details {
        // A detail is an object without white space between tokens, see [`compact`].
        let members = detail.and_then(|detail| detail.strip_suffix('}')).unwrap_or("{");
        let comma = if members == "{" { "" } else { "," };
        stamped.append_value(format!("{members}{comma}{member}"));
    }
    let mut columns = events.columns().to_vec();
    columns.splice(place..=place, [Arc::new(stamped.finish()) as ArrayRef]);
    RecordBatch::try_new(schema, columns).map_err(|error| internal(&error))
}

/// Reads a value and keeps nothing of it, but fails where an object names a member twice, and at the control plane's
/// member of the outermost one.
#[derive(Clone, Copy)]
struct Unambiguous {
    top: bool,
}

impl Unambiguous {
    const INNER: Self = Self { top: false };
}

impl<'de> DeserializeSeed<'de> for Unambiguous {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Unambiguous {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(Self::INNER)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<(), A::Error> {
        let mut names = HashSet::new();
        while let Some(name) = object.next_key::<String>()? {
            object.next_value_seed(Self::INNER)?;
            if self.top && name == SUBMITTED_BY {
                return Err(A::Error::custom(STAMPED));
            }
            if !names.insert(name) {
                return Err(A::Error::custom(TWICE));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, AsArray, Int64Array, StringArray};
    use arrow::record_batch::RecordBatch;

    use super::{STAMPED, TWICE, compact, stamp_submitter};

    #[test]
    fn white_space_goes_and_all_else_stays_as_it_was_sent() {
        let sent = r#" { "b" : 1.50e0, "a":[ 12345678901234567890123 , "x \" \\ { y" ],"é":"\u00e9"} "#;
        let kept = r#"{"b":1.50e0,"a":[12345678901234567890123,"x \" \\ { y"],"é":"\u00e9"}"#;
        assert_eq!(compact(sent).unwrap().unwrap(), kept);
    }

    #[test]
    fn null_is_none_and_other_values_are_no_object() {
        assert_eq!(compact("null"), Ok(None));
        for other in ["1", "\"x\"", "[]", "true"] {
            assert_eq!(compact(other), Err("not an object"));
        }
    }

    #[test]
    fn a_member_named_twice_is_refused_at_any_depth_and_however_it_is_spelt() {
        assert_eq!(compact(r#"{"a":1,"a":2}"#), Err(TWICE));
        assert_eq!(compact(r#"{"a":[{"b":1,"\u0062":2}]}"#), Err(TWICE));
        assert!(compact(r#"{"a":{"b":1},"b":1}"#).is_ok());
    }

    #[test]
    fn submitted_by_is_refused_however_it_is_spelt_and_may_stand_deeper() {
        for sent in [r#"{"submitted_by":"x"}"#, r#"{"a":{},"\u0073ubmitted_by":null}"#] {
            assert_eq!(compact(sent), Err(STAMPED), "{sent}");
        }
        assert!(compact(r#"{"a":{"submitted_by":"x"},"b":[{"submitted_by":1}]}"#).is_ok());
    }

    #[test]
    fn the_submitting_token_becomes_the_last_member() {
        let details = vec![None, Some("{}"), Some(r#"{"a":{"b":1}}"#)];
        let columns: [(&str, ArrayRef); 2] =
            [("seq", Arc::new(Int64Array::from(vec![1, 2, 3]))), ("detail", Arc::new(StringArray::from(details)))];
        let events =
            RecordBatch::try_from_iter_with_nullable(columns.map(|(name, column)| (name, column, true))).unwrap();
        let stamped = stamp_submitter(&events, "ci \"\u{1b}[1m").unwrap();
        let told: Vec<_> = stamped.column(1).as_string::<i32>().iter().flatten().collect();
        let name = r#""submitted_by":"ci \"\u001b[1m""#;
        assert_eq!(told, [format!("{{{name}}}"), format!("{{{name}}}"), format!(r#"{{"a":{{"b":1}},{name}}}"#)]);
        assert!(stamp_submitter(&events.project(&[0]).unwrap(), "x").is_err());
    }

    #[test]
    fn what_is_too_deep_or_too_long_is_refused() {
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(1000), "]".repeat(1000));
        assert_eq!(compact(&deep), Err("nested too deep"));
        assert_eq!(compact(&format!("{{\"a\":\"{}\"}}", "x".repeat(70_000))), Err("over 64 KiB of JSON"));
    }
}
