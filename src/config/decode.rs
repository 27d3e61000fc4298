//! The tree read into `serde` structs, all faults found.
//!
//! This is a `serde` deserializer of its own, for two reasons. It reads a plain scalar as the type that is asked for,
//! so that nothing hangs on how YAML would have guessed it. And its error knows the node it happened at and what was
//! expected there, so that a fault can be placed, explained, and taken out of the tree to look for the next.

use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess, SeqAccess,
    Unexpected, VariantAccess, Visitor,
};

use super::fault::{Collector, Position};
use super::tree::{Entry, Node, Step, Value};

/// Reads `root`, taking out what is faulty until it succeeds. `None` only when even an empty file would not do.
///
/// `root` is left as it was read: without its faulty nodes.
pub(crate) fn decode<T: DeserializeOwned>(root: &mut Node, faults: &mut Collector<'_>) -> Option<T> {
    loop {
        let error = match T::deserialize(&*root) {
            Ok(value) => return Some(value),
            Err(error) => error,
        };
        let steps: Vec<Step> = error.steps.iter().rev().copied().collect();
        let (at, path) = (error.at.unwrap_or(root.at), root.path(&steps));
        // A required key that is missing because its value was faulty has been reported already. So has, as far as one
        // can tell, what is wrong with a whole of which a part was taken out.
        let known = match &error.kind {
            Kind::MissingField(field) => faults.has(&join(&path, field)),
            Kind::Other(_) => faults.has(&path),
            Kind::UnknownField { .. } | Kind::UnknownVariant { .. } => false,
        };
        if !known {
            faults.add(at, path, error.kind.to_string());
        }
        if steps.is_empty() && root.child(0).is_none() {
            return None;
        }
        root.prune(&steps);
    }
}

fn join(path: &str, field: &str) -> String {
    if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") }
}

/// What is wrong with a node.
#[derive(Debug)]
pub(crate) enum Kind {
    UnknownField { field: String, expected: &'static [&'static str] },
    UnknownVariant { variant: String, expected: &'static [&'static str] },
    MissingField(&'static str),
    Other(String),
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownField { field, expected } => match nearest(field, expected) {
                Some(near) => write!(f, "unknown key; did you mean `{near}`?"),
                None => write!(f, "unknown key; known here: {}", expected.join(", ")),
            },
            Self::UnknownVariant { variant, expected } => match nearest(variant, expected) {
                Some(near) => write!(f, "unknown value `{variant}`; did you mean `{near}`?"),
                None => write!(f, "unknown value `{variant}`; one of: {}", expected.join(", ")),
            },
            Self::MissingField(field) => write!(f, "the key `{field}` is missing; add it"),
            Self::Other(message) => f.write_str(message),
        }
    }
}

/// A fault, and the way down to the node it happened at.
#[derive(Debug)]
pub(crate) struct Error {
    kind: Kind,
    /// Where it happened, once a node has put that in.
    at: Option<Position>,
    /// The steps from the root to the node, last first.
    steps: Vec<Step>,
}

impl Error {
    fn new(kind: Kind) -> Self {
        Self { kind, at: None, steps: Vec::new() }
    }

    /// Placed at `at`, unless a node further down has done so.
    fn at(mut self, at: Position) -> Self {
        self.at.get_or_insert(at);
        self
    }

    /// Seen from one node further up.
    fn below(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.kind, f)
    }
}

impl std::error::Error for Error {}

impl de::Error for Error {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(Kind::Other(message.to_string()))
    }

    fn invalid_type(unexpected: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::custom(format_args!("expected {expected}, found {unexpected}"))
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Self::new(Kind::UnknownField { field: field.to_owned(), expected })
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Self::new(Kind::UnknownVariant { variant: variant.to_owned(), expected })
    }

    fn missing_field(field: &'static str) -> Self {
        Self::new(Kind::MissingField(field))
    }
}

/// The known name that `word` was most likely meant to be: at most a third of its letters differ.
fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let distance = |name: &&str| edit_distance(word, name);
    known.iter().copied().min_by_key(distance).filter(|name| distance(name) * 3 <= name.len().max(3))
}

/// Levenshtein's distance, in characters.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut next = Vec::with_capacity(row.len());
        let mut left = i + 1;
        next.push(left);
        for ((cb, diagonal), above) in b.iter().zip(&row).zip(row.iter().skip(1)) {
            left = (diagonal + usize::from(ca != *cb)).min(above + 1).min(left + 1);
            next.push(left);
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

impl Node {
    /// What the node is, for "expected …, found …".
    fn unexpected(&self) -> Unexpected<'_> {
        match &self.value {
            Value::Scalar { .. } if self.is_null() => Unexpected::Other("nothing"),
            Value::Scalar { text, .. } => Unexpected::Str(text),
            Value::List(_) => Unexpected::Other("a list"),
            Value::Map(_) => Unexpected::Other("a mapping"),
        }
    }

    /// The text of a scalar that is not null.
    fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar { text, .. } if !self.is_null() => Some(text),
            Value::Scalar { .. } | Value::List(_) | Value::Map(_) => None,
        }
    }
}

/// Reads a scalar as a number, by the type's own `FromStr`.
macro_rules! numbers {
    ($expected:literal: $($method:ident $visit:ident $type:ty),* $(,)?) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            let number = self.text().and_then(|text| text.parse::<$type>().ok());
            match number {
                Some(number) => visitor.$visit(number),
                None => Err(de::Error::invalid_type(self.unexpected(), &$expected)),
            }
            .map_err(|error: Error| error.at(self.at))
        }
    )*};
}

impl<'de> Deserializer<'de> for &'de Node {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.value {
            Value::Scalar { .. } if self.is_null() => visitor.visit_unit(),
            Value::Scalar { text, .. } => visitor.visit_borrowed_str(text),
            Value::List(items) => visitor.visit_seq(Items { items, next: 0 }),
            Value::Map(entries) => visitor.visit_map(Entries::new(entries, &[])),
        }
        .map_err(|error: Error| error.at(self.at))
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.text() {
            Some("true") => visitor.visit_bool(true),
            Some("false") => visitor.visit_bool(false),
            _ => Err(de::Error::invalid_type(self.unexpected(), &"true or false")),
        }
        .map_err(|error: Error| error.at(self.at))
    }

    numbers! {
        "a whole number":
        deserialize_u8 visit_u8 u8, deserialize_u16 visit_u16 u16,
        deserialize_u32 visit_u32 u32, deserialize_u64 visit_u64 u64,
        deserialize_i8 visit_i8 i8, deserialize_i16 visit_i16 i16,
        deserialize_i32 visit_i32 i32, deserialize_i64 visit_i64 i64,
    }

    numbers! { "a number": deserialize_f32 visit_f32 f32, deserialize_f64 visit_f64 f64 }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
            .map_err(|error: Error| error.at(self.at))
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _name: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match &self.value {
            Value::Map(entries) => visitor.visit_map(Entries::new(entries, fields)),
            Value::Scalar { .. } | Value::List(_) => {
                Err(de::Error::invalid_type(self.unexpected(), &"a mapping of settings"))
            }
        }
        .map_err(|error: Error| error.at(self.at))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.text() {
            Some(text) => visitor.visit_enum(Word(text)),
            None => {
                let expected = format!("one of: {}", variants.join(", "));
                Err(de::Error::invalid_type(self.unexpected(), &expected.as_str()))
            }
        }
        .map_err(|error: Error| error.at(self.at))
    }

    serde::forward_to_deserialize_any! {
        i128 u128 char str string bytes byte_buf unit unit_struct seq tuple tuple_struct map identifier ignored_any
    }
}

/// The items of a list.
pub(crate) struct Items<'de> {
    items: &'de [(usize, Node)],
    next: Step,
}

impl<'de> SeqAccess<'de> for Items<'de> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        let Some((_, node)) = self.items.get(self.next) else { return Ok(None) };
        let step = self.next;
        self.next += 1;
        seed.deserialize(node).map(Some).map_err(|error| error.at(node.at).below(step))
    }
}

/// The entries of a mapping.
struct Entries<'de> {
    entries: &'de [Entry],
    /// The keys that the struct has which is being read. One of them without a value is passed over, so that it keeps
    /// its default.
    fields: &'static [&'static str],
    next: Step,
    value: Option<(Step, &'de Node)>,
}

impl<'de> Entries<'de> {
    fn new(entries: &'de [Entry], fields: &'static [&'static str]) -> Self {
        Self { entries, fields, next: 0, value: None }
    }
}

impl<'de> MapAccess<'de> for Entries<'de> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        while let Some(entry) = self.entries.get(self.next) {
            let step = self.next;
            self.next += 1;
            if entry.node.is_null() && self.fields.contains(&entry.key.as_str()) {
                continue;
            }
            let key: StrDeserializer<'_, Error> = entry.key.as_str().into_deserializer();
            let key = seed.deserialize(key).map_err(|error| error.at(entry.key_at).below(step))?;
            self.value = Some((step, &entry.node));
            return Ok(Some(key));
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let (step, node) = self
            .value
            .take()
            .ok_or_else(|| Error::new(Kind::Other("a value was asked for before its key".to_owned())))?;
        seed.deserialize(node).map_err(|error| error.at(node.at).below(step))
    }
}

/// A word that names a variant without content.
struct Word<'de>(&'de str);

impl<'de> EnumAccess<'de> for Word<'de> {
    type Error = Error;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Error> {
        let word: StrDeserializer<'_, Error> = self.0.into_deserializer();
        Ok((seed.deserialize(word)?, self))
    }
}

impl<'de> VariantAccess<'de> for Word<'de> {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, _seed: T) -> Result<T::Value, Error> {
        Err(de::Error::invalid_type(Unexpected::Str(self.0), &"a value with content"))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _len: usize, _visitor: V) -> Result<V::Value, Error> {
        Err(de::Error::invalid_type(Unexpected::Str(self.0), &"a list"))
    }

    fn struct_variant<V: Visitor<'de>>(self, _fields: &'static [&'static str], _visitor: V) -> Result<V::Value, Error> {
        Err(de::Error::invalid_type(Unexpected::Str(self.0), &"a mapping"))
    }
}
