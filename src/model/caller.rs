//! Who calls: the name that samples, audit entries and policies know a caller by.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The longest caller's name, in characters, as for every label.
const MAX_LEN: usize = 128;

/// What a caller without a name is called.
const ANONYMOUS: &str = "anonymous";

/// What kind of caller a name is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CallerKind {
    /// A person.
    User,
    /// A program.
    Service,
    /// Nobody in particular.
    Anonymous,
}

impl CallerKind {
    /// What stands before the colon of a name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Service => "service",
            Self::Anonymous => ANONYMOUS,
        }
    }
}

/// The name of a caller: `user:alice@acme`, `service:ci` or `anonymous`, at most 128 characters, no control characters.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CallerName(Arc<str>);

/// Why a text is no caller's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a caller is `user:<name>`, `service:<name>` or `anonymous`, at most 128 characters, no control characters")]
pub struct CallerNameError;

impl CallerName {
    /// The caller that did not say who it is.
    pub fn anonymous() -> Self {
        Self(ANONYMOUS.into())
    }

    /// The caller of a kind and a name within it; the name is not looked at for anonymous callers.
    ///
    /// # Errors
    /// When `id` is empty, too long or holds control characters.
    pub fn new(kind: CallerKind, id: &str) -> Result<Self, CallerNameError> {
        match kind {
            CallerKind::Anonymous => Ok(Self::anonymous()),
            CallerKind::User | CallerKind::Service => format!("{}:{id}", kind.as_str()).parse(),
        }
    }

    /// The whole name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What kind of caller it is.
    pub fn kind(&self) -> CallerKind {
        if self.0.starts_with("user:") {
            CallerKind::User
        } else if self.0.starts_with("service:") {
            CallerKind::Service
        } else {
            CallerKind::Anonymous
        }
    }

    /// The name within its kind: what stands after the colon, or `anonymous`.
    pub fn id(&self) -> &str {
        self.0.split_once(':').map_or(&self.0, |(_, id)| id)
    }
}

impl FromStr for CallerName {
    type Err = CallerNameError;

    fn from_str(text: &str) -> Result<Self, CallerNameError> {
        let named = |prefix| text.strip_prefix(prefix).is_some_and(|id: &str| !id.trim().is_empty());
        let known = text == ANONYMOUS || named("user:") || named("service:");
        if known && text.chars().count() <= MAX_LEN && !text.chars().any(char::is_control) {
            Ok(Self(text.into()))
        } else {
            Err(CallerNameError)
        }
    }
}

impl TryFrom<String> for CallerName {
    type Error = CallerNameError;

    fn try_from(text: String) -> Result<Self, CallerNameError> {
        text.parse()
    }
}

impl From<CallerName> for String {
    fn from(name: CallerName) -> Self {
        name.as_str().to_owned()
    }
}

impl fmt::Display for CallerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for CallerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::{CallerKind, CallerName};

    #[test]
    fn a_caller_is_a_user_a_service_or_anonymous() {
        for (text, kind, id) in [
            ("user:alice@acme", CallerKind::User, "alice@acme"),
            ("service:ci:nightly", CallerKind::Service, "ci:nightly"),
            ("anonymous", CallerKind::Anonymous, "anonymous"),
        ] {
            let name: CallerName = text.parse().unwrap();
            assert_eq!((name.as_str(), name.kind(), name.id()), (text, kind, id));
        }
    }

    #[test]
    fn a_name_without_a_kind_or_without_a_name_is_refused() {
        for bad in ["", "alice", "user:", "user: ", "User:alice", "group:x", "user:a\nb", &format!("user:{:a>124}", "")]
        {
            assert!(bad.parse::<CallerName>().is_err(), "{bad:?}");
        }
    }
}
