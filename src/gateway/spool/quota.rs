//! The bytes that the segments of both lanes have together, against the bound.

use std::sync::atomic::{AtomicU64, Ordering};

use super::LaneName;

/// Bytes in use, and the most that may be.
#[derive(Debug)]
pub(super) struct Quota {
    most: u64,
    samples: AtomicU64,
    audit: AtomicU64,
}

impl Quota {
    pub(super) fn new(most: u64) -> Self {
        Self { most, samples: AtomicU64::new(0), audit: AtomicU64::new(0) }
    }

    fn of(&self, lane: LaneName) -> &AtomicU64 {
        match lane {
            // Payloads are alone under a bound of their own.
            LaneName::Samples | LaneName::Payloads => &self.samples,
            LaneName::Audit => &self.audit,
        }
    }

    pub(super) fn add(&self, lane: LaneName, bytes: u64) {
        self.of(lane).fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn sub(&self, lane: LaneName, bytes: u64) {
        self.of(lane).fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(super) fn bytes(&self, lane: LaneName) -> u64 {
        self.of(lane).load(Ordering::Relaxed)
    }

    /// Whether samples have to be deleted.
    pub(super) fn is_over(&self) -> bool {
        self.bytes(LaneName::Samples).saturating_add(self.bytes(LaneName::Audit)) > self.most
    }

    /// Whether a record of so many bytes is let in. Samples may pass the bound by `slack`, until the oldest are
    /// deleted; audit events count only against themselves, since samples make room for them.
    pub(super) fn admits(&self, lane: LaneName, bytes: u64, slack: u64) -> bool {
        let audit = self.bytes(LaneName::Audit);
        let (used, most) = match lane {
            LaneName::Audit => (audit, self.most),
            LaneName::Samples | LaneName::Payloads => {
                (audit.saturating_add(self.bytes(LaneName::Samples)), self.most.saturating_add(slack))
            }
        };
        used.saturating_add(bytes) <= most
    }
}
