//! An organisation: the tenant that every path, table, token and metric belongs to.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The longest org name, in bytes: the name is a folder and a label.
const MAX_LEN: usize = 63;

/// The name of an org: 1 to 63 of `a-z 0-9 - _`, starting with a letter or a digit.
///
/// Being so narrow it is safe, as it stands, as an object-store path segment, an SQL literal and a label value.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct OrgName(Arc<str>);

impl OrgName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for OrgName {
    /// `default`: the org of a control plane whose configuration names none.
    fn default() -> Self {
        Self("default".into())
    }
}

/// Why a text is no org name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an org name is 1 to 63 of a-z, 0-9, '-' and '_', starting with a letter or a digit")]
pub struct OrgNameError;

impl FromStr for OrgName {
    type Err = OrgNameError;

    fn from_str(text: &str) -> Result<Self, OrgNameError> {
        let starts_well = text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
        if starts_well && text.len() <= MAX_LEN && text.bytes().all(allowed) {
            Ok(Self(text.into()))
        } else {
            Err(OrgNameError)
        }
    }
}

impl TryFrom<String> for OrgName {
    type Error = OrgNameError;

    fn try_from(text: String) -> Result<Self, OrgNameError> {
        text.parse()
    }
}

impl From<OrgName> for String {
    fn from(name: OrgName) -> Self {
        name.as_str().to_owned()
    }
}

impl fmt::Display for OrgName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for OrgName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What an org has bought; it sets how long its data is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    /// 30 days.
    #[default]
    Community,
    /// 90 days.
    Pro,
    /// 180 days.
    Team,
    /// 7 years.
    Enterprise,
}

impl Tier {
    /// How long data is kept.
    pub const fn retention(self) -> Duration {
        let days = match self {
            Self::Community => 30,
            Self::Pro => 90,
            Self::Team => 180,
            // Seven years, two of them leap years.
            Self::Enterprise => 2_557,
        };
        Duration::from_secs(days * 86_400)
    }
}

impl fmt::Display for Tier {
    /// As it is written in the configuration.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Community => "community",
            Self::Pro => "pro",
            Self::Team => "team",
            Self::Enterprise => "enterprise",
        })
    }
}

/// An extra that an org is entitled to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Entitlement {
    /// Request and response payloads may be captured, sealed per tenant.
    PayloadCapture,
}

/// What a token's bearer may do within its org.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Send samples and audit events.
    Ingest,
    /// Metrics, SQL, the ledger.
    Read,
    /// See decrypted payloads.
    Payload,
    /// Operate the control plane.
    Operator,
}

#[cfg(test)]
mod tests {
    use super::OrgName;

    #[test]
    fn a_name_that_could_leave_its_folder_is_refused() {
        for bad in ["", ".", "..", "a/b", "A", "a b", "-a", "_a", "a\0", "ä", "a.b", &"a".repeat(64)] {
            assert!(bad.parse::<OrgName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_ordinary_name_is_taken() {
        for good in ["default", "acme-corp", "a", "0", "team_7", &"a".repeat(63)] {
            assert_eq!(good.parse::<OrgName>().unwrap().as_str(), good);
        }
    }
}
