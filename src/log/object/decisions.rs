//! What a log object decides for an org, so that it is the same on every node.

use serde::{Deserialize, Serialize};

/// What is decided for an org, so that it is the same on every node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Decisions {
    /// The ledger's entries of all objects before this one end a segment.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub cut: bool,
    /// Segments that become one: the `seq` of the first and of the last entry.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub merges: Vec<(u64, u64)>,
    /// The org's limits from here on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<OrgLimits>,
    /// The org was repaired: a node that has it in another state loads it again.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub repaired: bool,
    /// The org is removed from here on, or is no more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub removal: Option<Removal>,
}

/// That an org is removed, or that its removal is taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Removal {
    /// Nothing of it is served any more, and after the grace all of it is deleted.
    Removed,
    /// It is served again.
    Restored,
    /// The grace is over: all of it is deleted, and nothing brings it back.
    Deleted,
}

impl Decisions {
    /// Whether nothing is decided.
    pub fn is_empty(&self) -> bool {
        !self.cut && self.merges.is_empty() && self.limits.is_none() && !self.repaired && self.removal.is_none()
    }

    /// Adds what another part of the program decides for the same object.
    pub fn join(&mut self, other: Self) {
        self.cut |= other.cut;
        self.repaired |= other.repaired;
        self.merges.extend(other.merges);
        self.limits = other.limits.or(self.limits);
        self.removal = other.removal.or(self.removal);
    }
}

/// Limits that decide what applying an object does, and so have a place in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrgLimits {
    /// Metric series.
    pub series: u64,
    /// Idempotency keys.
    pub keys: u64,
}
