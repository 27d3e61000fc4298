//! The time at which something ends to be good.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};

/// A time, written in RFC 3339: `2027-01-31T00:00:00Z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Expiry(DateTime<Utc>);

/// Why a text is no time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no time; write it with its zone, like 2027-01-31T00:00:00Z")]
pub struct ExpiryError(String);

impl Expiry {
    /// Whether it has come.
    pub fn has_come(self, now: DateTime<Utc>) -> bool {
        now >= self.0
    }
}

impl FromStr for Expiry {
    type Err = ExpiryError;

    fn from_str(text: &str) -> Result<Self, ExpiryError> {
        DateTime::parse_from_rfc3339(text).map(|time| Self(time.to_utc())).map_err(|_| ExpiryError(text.to_owned()))
    }
}

impl TryFrom<String> for Expiry {
    type Error = ExpiryError;

    fn try_from(text: String) -> Result<Self, ExpiryError> {
        text.parse()
    }
}

impl From<Expiry> for String {
    fn from(expiry: Expiry) -> Self {
        expiry.to_string()
    }
}

impl fmt::Display for Expiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.to_rfc3339_opts(SecondsFormat::Secs, true))
    }
}
