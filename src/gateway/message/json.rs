//! The text of one JSON value, as a relay carries it.
//!
//! Looking something up walks the text and keeps nothing of the rest: a text of a few megabytes can hold so many
//! members or items that to keep what is known of each would take a hundred times its size. Where all of them are
//! wanted their number is bounded first ([`Json::has_at_most`], [`MAX_ITEMS`]).

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use super::object::Object;

/// How deep a text may be nested that a decision is made on; parsers into trees stop there as well.
const MAX_DEPTH: usize = 127;

/// The items of an array that are looked at one by one.
pub(crate) const MAX_ITEMS: usize = 65_536;

/// The text of one JSON value, without white space around it. Cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Json(pub(super) Bytes);

impl Json {
    /// The value that `bytes` is; `None`: it is no JSON.
    pub(crate) fn parse(bytes: &Bytes) -> Option<Self> {
        let raw: &RawValue = serde_json::from_slice(bytes).ok()?;
        Some(Self::within(bytes, raw))
    }

    /// A value of the gateway's own making.
    pub(crate) fn of(value: &impl Serialize) -> Self {
        // What is serialised here has text for keys, and writing into memory does not fail.
        Self(serde_json::to_vec(value).map_or_else(|_| Bytes::from_static(b"null"), Bytes::from))
    }

    /// `{}`.
    pub(crate) const fn empty_object() -> Self {
        Self(Bytes::from_static(b"{}"))
    }

    /// A text as JSON.
    pub(crate) fn text(text: &str) -> Self {
        Self::of(&text)
    }

    /// `raw`, which lies within `body`.
    pub(super) fn within(body: &Bytes, raw: &RawValue) -> Self {
        Self(body.slice_ref(raw.get().as_bytes()))
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes, shared.
    pub(crate) fn bytes(&self) -> Bytes {
        self.0.clone()
    }

    /// How many bytes it has.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Reads it as `T`, which may borrow from it. `None`: it has another shape.
    pub(crate) fn read<'a, T: Deserialize<'a>>(&'a self) -> Option<T> {
        serde_json::from_slice(&self.0).ok()
    }

    /// Parses it into a tree. `None`: it is nested too deeply.
    pub(crate) fn value(&self) -> Option<Value> {
        self.read()
    }

    /// The text that it is.
    pub(crate) fn as_text(&self) -> Option<Cow<'_, str>> {
        text_of(&self.0)
    }

    pub(crate) fn is_object(&self) -> bool {
        self.0.first() == Some(&b'{')
    }

    pub(crate) fn is_array(&self) -> bool {
        self.0.first() == Some(&b'[')
    }

    pub(crate) fn is_null(&self) -> bool {
        &self.0[..] == b"null"
    }

    /// `true`, exactly.
    pub(crate) fn is_true(&self) -> bool {
        &self.0[..] == b"true"
    }

    /// Its members. `None`: it is no object.
    pub(crate) fn object(&self) -> Option<Object> {
        Object::read(self)
    }

    /// Its items. `None`: it is no array, or one of more than [`MAX_ITEMS`].
    pub(crate) fn items(&self) -> Option<Vec<Self>> {
        self.items_at_most(MAX_ITEMS)
    }

    /// Its items, however many there are. `None`: it is no array.
    pub(crate) fn every_item(&self) -> Option<Vec<Self>> {
        self.items_at_most(usize::MAX)
    }

    fn items_at_most(&self, most: usize) -> Option<Vec<Self>> {
        if !self.is_array() {
            return None;
        }
        let items = Items { most, cut: false }.deserialize(&mut serde_json::Deserializer::from_slice(&self.0)).ok()?;
        Some(items.into_iter().map(|item| Self::within(&self.0, item)).collect())
    }

    /// The first of its items, at most so many; none, where it is no array.
    pub(crate) fn first_items(&self, most: usize) -> Vec<Self> {
        let items = Items { most, cut: true }.deserialize(&mut serde_json::Deserializer::from_slice(&self.0));
        items.unwrap_or_default().into_iter().map(|item| Self::within(&self.0, item)).collect()
    }

    /// An array of these.
    pub(crate) fn array<'a>(items: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut text = BytesMut::from(&b"["[..]);
        for (index, item) in items.into_iter().enumerate() {
            if index > 0 {
                text.put_u8(b',');
            }
            text.extend_from_slice(&item.0);
        }
        text.put_u8(b']');
        Self(text.freeze())
    }

    /// The member of that name, where it is an object that has it; the last, where there are several. Nothing of the
    /// others is kept.
    pub(crate) fn get(&self, name: &str) -> Option<Self> {
        if !self.is_object() {
            return None;
        }
        let found = Named(name).deserialize(&mut serde_json::Deserializer::from_slice(&self.0)).ok()?;
        found.map(|raw| Self::within(&self.0, raw))
    }

    /// Whether it is no object, or one of at most so many members. Nothing of them is kept.
    pub(crate) fn has_at_most(&self, members: usize) -> bool {
        // A member takes five bytes at least: two quotes, a colon, a value, a comma.
        if !self.is_object() || self.len() <= members.saturating_mul(5) {
            return true;
        }
        AtMost(members).deserialize(&mut serde_json::Deserializer::from_slice(&self.0)).is_ok()
    }

    /// What lies at a path of members.
    pub(crate) fn at(&self, path: &[&str]) -> Option<Self> {
        let (first, rest) = path.split_first()?;
        let member = self.get(first)?;
        if rest.is_empty() { Some(member) } else { member.at(rest) }
    }

    /// Whether no object in it names a member twice, and it is not nested too deeply to say. Only its structure is
    /// looked at: a number that no parser holds is sound JSON.
    pub(crate) fn is_unambiguous(&self) -> bool {
        // The names of each object that is open so far; none: it is an array.
        let mut open: Vec<Option<HashSet<Cow<'_, str>>>> = Vec::new();
        let (mut at, mut expects_name) = (0, false);
        while let Some(byte) = self.0.get(at) {
            match byte {
                b'"' => {
                    let end = string_end(&self.0, at);
                    if expects_name && let Some(Some(names)) = open.last_mut() {
                        let name = self.0.get(at..end).and_then(text_of);
                        if !name.is_some_and(|name| names.insert(name)) {
                            return false;
                        }
                    }
                    (at, expects_name) = (end, false);
                    continue;
                }
                b'{' | b'[' => {
                    if open.len() >= MAX_DEPTH {
                        return false;
                    }
                    expects_name = *byte == b'{';
                    open.push(expects_name.then(HashSet::new));
                }
                b'}' | b']' => {
                    open.pop();
                    expects_name = false;
                }
                b',' => expects_name = matches!(open.last(), Some(Some(_))),
                _ => {}
            }
            at += 1;
        }
        true
    }

    /// The same without line breaks: all of them lie between tokens, since a string holds none.
    pub(crate) fn one_line(&self) -> Self {
        let is_break = |byte: &u8| matches!(byte, b'\n' | b'\r');
        if !self.0.iter().any(is_break) {
            return self.clone();
        }
        Self(self.0.iter().copied().filter(|byte| !is_break(byte)).collect())
    }
}

/// The text that some JSON is.
pub(super) fn text_of(json: &[u8]) -> Option<Cow<'_, str>> {
    struct Text;
    impl<'de> Visitor<'de> for Text {
        type Value = Cow<'de, str>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a string")
        }
        fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
            Ok(Cow::Borrowed(text))
        }
        fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
            Ok(Cow::Owned(text.to_owned()))
        }
    }
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    deserializer.deserialize_str(Text).ok()
}

/// Finds the member of a name.
struct Named<'n>(&'n str);

impl Named<'_> {
    fn is(&self, key: &RawValue) -> bool {
        let key = key.get();
        let plain = key.strip_prefix('"').and_then(|key| key.strip_suffix('"'));
        plain == Some(self.0) || (key.contains('\\') && text_of(key.as_bytes()).as_deref() == Some(self.0))
    }
}

impl<'de> DeserializeSeed<'de> for Named<'_> {
    type Value = Option<&'de RawValue>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Named<'_> {
    type Value = Option<&'de RawValue>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(key) = map.next_key::<&RawValue>()? {
            if self.is(key) {
                found = Some(map.next_value()?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

/// Counts members, up to so many.
struct AtMost(usize);

impl<'de> DeserializeSeed<'de> for AtMost {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for AtMost {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut left = self.0;
        while map.next_key::<&RawValue>()?.is_some() {
            map.next_value::<IgnoredAny>()?;
            left = left.checked_sub(1).ok_or_else(|| A::Error::custom("too many members"))?;
        }
        Ok(())
    }
}

/// Reads the items of an array, up to so many.
pub(super) struct Items {
    pub(super) most: usize,
    /// Whether the others are passed over; else more are an error.
    pub(super) cut: bool,
}

impl<'de> DeserializeSeed<'de> for Items {
    type Value = Vec<&'de RawValue>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Items {
    type Value = Vec<&'de RawValue>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            if items.len() < self.most {
                items.push(item);
            } else if !self.cut {
                return Err(A::Error::custom(TOO_MANY));
            }
        }
        Ok(items)
    }
}

/// What is wrong with an array that has more items than are read.
pub(super) const TOO_MANY: &str = "too many items";

/// Where the string ends that begins at `start`: after its closing quote.
fn string_end(text: &[u8], start: usize) -> usize {
    let mut escaped = false;
    let inside = text.iter().enumerate().skip(start + 1);
    for (index, byte) in inside {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return index + 1,
            _ => {}
        }
    }
    text.len()
}

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Json({} bytes)", self.0.len())
    }
}
