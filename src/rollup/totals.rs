//! (to be written)
use super::Digest;
use crate::model::OrgName;

/// The running totals of one org: what a scrape reads.
#[derive(Debug, Clone)]
pub struct RunningTotals {
    org: OrgName,
}

/// Why bytes are no snapshot of running totals.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("snapshot of running totals: {reason}")]
pub struct SnapshotError {
    reason: String,
}

impl RunningTotals {
    /// Totals of nothing yet; at most `max_series` series and one more for the rest.
    pub fn new(org: OrgName, max_series: usize) -> Self {
        let _ = max_series;
        Self { org }
    }

    /// Whose totals.
    pub fn org(&self) -> &OrgName {
        &self.org
    }

    /// Counts a batch; `now` is microseconds since the Unix epoch.
    pub fn apply(&mut self, digest: &Digest, now: i64) {
        let _ = (digest, now);
    }

    /// Forgets windows that no scrape after `now` will ask for.
    pub fn expire(&mut self, now: i64) {
        let _ = now;
    }

    /// The series now shown.
    pub fn series_count(&self) -> usize {
        0
    }

    /// How many distinct series were counted under `__other__` since the cap was reached.
    pub fn overflowed_series(&self) -> usize {
        0
    }

    /// Memory held, in bytes.
    pub fn size_bytes(&self) -> usize {
        0
    }

    /// The whole state as bytes; the same state gives the same bytes.
    pub fn encode(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Reads what [`RunningTotals::encode`] wrote. `max_series` is the setting of today.
    ///
    /// # Errors
    /// When the bytes are damaged or of another version.
    pub fn decode(bytes: &[u8], max_series: usize) -> Result<Self, SnapshotError> {
        let _ = (bytes, max_series);
        Err(SnapshotError { reason: String::new() })
    }
}
