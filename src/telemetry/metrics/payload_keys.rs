//! The keys of sealed payloads: for how many days there are some, and what could not be done with them.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use prometheus::{IntCounterVec, IntGauge};

use super::registrar::Registrar;

/// The steps in a key's life that may fail.
const STEPS: [&str; 3] = ["make", "destroy", "rotate"];

/// Metrics of payload keys.
#[derive(Debug)]
pub struct PayloadKeys {
    days: IntGauge,
    failures: IntCounterVec,
    /// By org, what was said of it last.
    of_orgs: Mutex<BTreeMap<String, i64>>,
}

impl PayloadKeys {
    pub(super) fn new(r: &Registrar<'_>) -> Self {
        let keys = Self {
            days: r.gauge(
                "mcpg_cp_payload_epochs_ready",
                "Days from today on that there are payload keys for, in the org that has fewest of those that asked; 8 is all",
            ),
            failures: r.counters(
                "mcpg_cp_payload_key_failures_total",
                "Times that payload keys were not made, not destroyed, or their KEK not rotated, and it will be tried again",
                &["step"],
            ),
            of_orgs: Mutex::default(),
        };
        for step in STEPS {
            keys.failures.with_label_values(&[step]).reset();
        }
        // Nothing was asked for yet, so nothing is missing.
        keys.days.set(8);
        keys
    }

    /// An org that asked has keys for so many days, today included.
    pub fn has_days(&self, org: &str, days: i64) {
        let mut of_orgs = self.of_orgs.lock();
        of_orgs.insert(org.to_owned(), days);
        self.days.set(of_orgs.values().min().copied().unwrap_or(days));
    }

    /// A step failed: `make`, `destroy` or `rotate`.
    pub fn failed(&self, step: &'static str) {
        self.failures.with_label_values(&[step]).inc();
    }
}

#[cfg(test)]
mod tests {
    use crate::telemetry::metrics::Metrics;

    #[test]
    fn the_org_that_has_fewest_days_counts() {
        let metrics = Metrics::new();
        let says = |line: &str| assert!(metrics.render().unwrap().contains(line), "{line}");
        says("mcpg_cp_payload_epochs_ready 8");
        says("mcpg_cp_payload_key_failures_total{step=\"make\"} 0");
        for (org, days, least) in [("acme", 8, 8), ("umbrella", 3, 3), ("acme", 7, 3), ("umbrella", 8, 7)] {
            metrics.payload_keys.has_days(org, days);
            says(&format!("mcpg_cp_payload_epochs_ready {least}"));
        }
    }
}
