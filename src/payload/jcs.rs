//! RFC 8785 (JCS) JSON of one object whose values are strings or lists of strings: the form of headers and of wrapped
//! keys.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Refusal;

/// A member's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Member {
    Text(String),
    List(Vec<String>),
}

/// Members by name, in the order of JCS: that of UTF-16 code units.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Object(Vec<(String, Member)>);

impl Object {
    pub(super) fn text(&mut self, name: &str, value: impl Into<String>) {
        self.0.push((name.to_owned(), Member::Text(value.into())));
    }

    pub(super) fn list(&mut self, name: &str, value: &[String]) {
        self.0.push((name.to_owned(), Member::List(value.to_vec())));
    }

    /// The value of a member that is a string.
    pub(super) fn get(&self, name: &str) -> Result<&str, Refusal> {
        match self.find(name) {
            Some(Member::Text(text)) => Ok(text),
            _ => Err(Refusal::Format),
        }
    }

    pub(super) fn find(&self, name: &str) -> Option<&Member> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    /// Whether all members are among these.
    pub(super) fn has_only(&self, names: &[&str]) -> bool {
        self.0.iter().all(|(key, _)| names.contains(&key.as_str()))
    }

    pub(super) fn write(mut self) -> Vec<u8> {
        self.0.sort_by(|(a, _), (b, _)| a.encode_utf16().cmp(b.encode_utf16()));
        let mut out = Vec::with_capacity(512);
        out.push(b'{');
        for (index, (key, value)) in self.0.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            push_string(&mut out, key);
            out.push(b':');
            match value {
                Member::Text(text) => push_string(&mut out, text),
                Member::List(items) => {
                    out.push(b'[');
                    for (index, item) in items.iter().enumerate() {
                        if index > 0 {
                            out.push(b',');
                        }
                        push_string(&mut out, item);
                    }
                    out.push(b']');
                }
            }
        }
        out.push(b'}');
        out
    }

    /// Reads an object that is in the form of JCS, and in no other.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, Refusal> {
        let read: BTreeMap<String, Value> = serde_json::from_slice(bytes).map_err(|_| Refusal::Format)?;
        let member = |value: Value| match value {
            Value::String(text) => Some(Member::Text(text)),
            Value::Array(items) => {
                let texts = items.into_iter().map(|item| item.as_str().map(str::to_owned));
                texts.collect::<Option<Vec<_>>>().map(Member::List)
            }
            _ => None,
        };
        let members = read.into_iter().map(|(key, value)| Some((key, member(value)?)));
        let object = Self(members.collect::<Option<Vec<_>>>().ok_or(Refusal::Format)?);
        // A member that stands twice, another order, a space, another escape: all of them make other bytes.
        if object.clone().write() == bytes { Ok(object) } else { Err(Refusal::Format) }
    }
}

/// A string as `JSON.stringify` writes it, which is what JCS takes over.
fn push_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    for byte in text.bytes() {
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            8 => out.extend_from_slice(b"\\b"),
            9 => out.extend_from_slice(b"\\t"),
            10 => out.extend_from_slice(b"\\n"),
            12 => out.extend_from_slice(b"\\f"),
            13 => out.extend_from_slice(b"\\r"),
            0..=31 => out.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
            _ => out.push(byte),
        }
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::Object;

    #[test]
    fn an_object_has_one_form() {
        let good = "{\"a\":\"x\\u0001\\n\\\"é\",\"b\":[\"1\",\"2\"],\"c\":[]}";
        assert_eq!(Object::read(good.as_bytes()).unwrap().write(), good.as_bytes());
        for bad in [
            "",
            "[]",
            "{}x",
            "{\"a\": \"x\"}",
            "{\"b\":\"x\",\"a\":\"y\"}",
            "{\"a\":\"x\",\"a\":\"x\"}",
            "{\"a\":1}",
            "{\"a\":null}",
            "{\"a\":[1]}",
            "{\"a\":{}}",
            "{\"a\":\"\\u0041\"}",
            "{\"a\":\"\\/\"}",
            "{\"a\":\"\\u001F\"}",
        ] {
            assert!(Object::read(bad.as_bytes()).is_err(), "{bad}");
        }
        // Sorted by UTF-16 code units, where a surrogate comes before U+FB33.
        let sorted = "{\"\u{1f600}\":\"\",\"\u{fb33}\":\"\"}";
        assert!(Object::read(sorted.as_bytes()).is_ok());
    }
}
