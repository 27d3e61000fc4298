//! `detail` of an event: an object, kept as its JSON text.
//!
//! The ledger hashes the text, so it is kept as it was sent: numbers stay as they were written and members in their order.
//! Only white space between tokens is dropped, since the text must fit into one line of NDJSON and mean the same to whoever
//! reads it. An object that names a member twice is refused: readers differ in which of the two they take.

use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// The longest text.
const MAX_BYTES: usize = 64 << 10;

const TWICE: &str = "names a member twice";

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
    if let Err(error) = Unambiguous.deserialize(&mut parser) {
        return Err(if error.to_string().starts_with(TWICE) { TWICE } else { "nested too deep" });
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

/// Reads a value and keeps nothing of it, but fails where an object names a member twice.
#[derive(Clone, Copy)]
struct Unambiguous;

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
        while list.next_element_seed(self)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<(), A::Error> {
        let mut names = HashSet::new();
        while let Some(name) = object.next_key::<String>()? {
            object.next_value_seed(self)?;
            if !names.insert(name) {
                return Err(A::Error::custom(TWICE));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{TWICE, compact};

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
    fn what_is_too_deep_or_too_long_is_refused() {
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(1000), "]".repeat(1000));
        assert_eq!(compact(&deep), Err("nested too deep"));
        assert_eq!(compact(&format!("{{\"a\":\"{}\"}}", "x".repeat(70_000))), Err("over 64 KiB of JSON"));
    }
}
