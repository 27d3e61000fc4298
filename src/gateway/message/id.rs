//! The id of a request: text, or a whole number.

use std::fmt;

use serde::Serialize;

use super::json::{Json, text_of};

/// The id of a request.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) enum Id {
    Number(i64),
    Text(Box<str>),
}

impl Id {
    /// The id that some JSON is: text, or a whole number.
    pub(crate) fn read(json: &Json) -> Option<Self> {
        Self::from_slice(&json.0)
    }

    pub(super) fn from_slice(json: &[u8]) -> Option<Self> {
        if json.first() == Some(&b'"') {
            return text_of(json).map(|text| Self::Text(text.into()));
        }
        serde_json::from_slice(json).ok().map(Self::Number)
    }

    pub(crate) fn to_json(&self) -> Json {
        Json::of(self)
    }

    /// Whether it is this number. Some servers write a number as text.
    pub(crate) fn is(&self, number: i64) -> bool {
        self.as_number() == Some(number)
    }

    /// The number it is. Some servers write a number as text.
    pub(crate) fn as_number(&self) -> Option<i64> {
        match self {
            Self::Number(number) => Some(*number),
            Self::Text(text) => text.parse().ok(),
        }
    }
}

impl Serialize for Id {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Number(number) => serializer.serialize_i64(*number),
            Self::Text(text) => serializer.serialize_str(text),
        }
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => fmt::Display::fmt(number, f),
            Self::Text(text) => f.write_str(text),
        }
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Number(_) => "Id(number)",
            Self::Text(_) => "Id(text)",
        })
    }
}
