//! A series' labels, put into their exposed forms once, when the series is first seen: a scrape copies them.

use std::borrow::Cow;

use prost::encoding::{WireType, encode_key, encode_varint};

/// Labels in the two forms that a scrape writes.
#[derive(Debug, Clone)]
pub(super) struct Labels {
    /// `org="default",tool="list_repos"`: as both text formats have it, without the braces.
    pub(super) text: Box<str>,
    /// The fields `label` of an `io.prometheus.client.Metric`, one after the other.
    pub(super) protobuf: Box<[u8]>,
}

/// The number of the field `label` in `io.prometheus.client.Metric`.
const LABEL: u32 = 1;
/// The number of the field `name` in `io.prometheus.client.LabelPair`.
const NAME: u32 = 1;
/// The number of the field `value` in `io.prometheus.client.LabelPair`.
const VALUE: u32 = 2;

impl Labels {
    /// Puts labels into form, in the order given.
    pub(super) fn new<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut text = String::new();
        let mut protobuf = Vec::new();
        for (name, value) in pairs {
            if !text.is_empty() {
                text.push(',');
            }
            text.push_str(name);
            text.push_str("=\"");
            text.push_str(&escaped(value));
            text.push('"');
            put_label(&mut protobuf, name, value);
        }
        Self { text: text.into(), protobuf: protobuf.into() }
    }

    /// Memory on the heap, in bytes.
    pub(super) fn heap_bytes(&self) -> usize {
        self.text.len() + self.protobuf.len()
    }
}

/// Appends a `LabelPair` as the field `label`.
pub(super) fn put_label(out: &mut Vec<u8>, name: &str, value: &str) {
    let mut pair = Vec::with_capacity(name.len() + value.len() + 8);
    put_delimited(&mut pair, NAME, name.as_bytes());
    put_delimited(&mut pair, VALUE, value.as_bytes());
    put_delimited(out, LABEL, &pair);
}

/// Appends a length-delimited field of Protocol Buffers: a text or a message.
pub(super) fn put_delimited(out: &mut Vec<u8>, field: u32, bytes: &[u8]) {
    encode_key(field, WireType::LengthDelimited, out);
    encode_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

/// A label's value as both text formats have it: backslash, quote and line feed escaped.
fn escaped(value: &str) -> Cow<'_, str> {
    if !value.contains(['\\', '"', '\n']) {
        return value.into();
    }
    value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n").into()
}

#[cfg(test)]
mod tests {
    use super::Labels;

    #[test]
    fn labels_stand_in_the_order_given() {
        let labels = Labels::new([("org", "default"), ("tool", "list_repos")]);
        assert_eq!(&*labels.text, r#"org="default",tool="list_repos""#);
    }

    #[test]
    fn a_value_cannot_leave_its_quotes() {
        let labels = Labels::new([("tool", "a\"} 1\nb\\")]);
        assert_eq!(&*labels.text, r#"tool="a\"} 1\nb\\""#);
    }
}
