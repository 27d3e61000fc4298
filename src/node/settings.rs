//! What a node takes from the configuration.

use std::collections::HashMap;
use std::time::Duration;

use crate::config::{ControlPlane, Org, Period};
use crate::log::OrgLimits;
use crate::model::OrgName;

/// How long something of an org is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retention {
    /// The period.
    pub period: Duration,
    /// The period, and what says so.
    pub rule: String,
}

/// How long the rows of an org's tables are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "documented in the configuration")]
pub struct TableRetention {
    pub samples: Retention,
    pub hourly: Retention,
    pub daily: Retention,
    pub payloads: Retention,
}

impl TableRetention {
    /// What an org's settings say.
    pub fn of(org: &Org) -> Self {
        let of = |period: Period, table| Retention {
            period: period.as_duration(),
            rule: format!("{period} (retention.{table})"),
        };
        Self {
            samples: or_by_tier(org, org.retention.samples, "samples"),
            hourly: of(org.retention.hourly, "hourly"),
            daily: of(org.retention.daily, "daily"),
            payloads: of(longest_of_payloads(org), "payloads"),
        }
    }

    /// The longer of two periods, of each table; its own where they are equal.
    #[must_use]
    pub fn or_longer(self, other: Self) -> Self {
        let longer = |own: Retention, other: Retention| if other.period > own.period { other } else { own };
        Self {
            samples: longer(self.samples, other.samples),
            hourly: longer(self.hourly, other.hourly),
            daily: longer(self.daily, other.daily),
            payloads: longer(self.payloads, other.payloads),
        }
    }
}

/// See the module's doc.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "documented in the configuration")]
pub struct Settings {
    pub name: String,
    pub orgs: Vec<OrgName>,
    pub commit_window: Duration,
    pub flush_interval: Duration,
    pub flush_rows: usize,
    pub flush_bytes: usize,
    pub limits: OrgLimits,
    /// The longest that a query may run.
    pub query_time: Duration,
    pub prune_interval: Duration,
    pub checkpoint_period: Duration,
    /// After how long an org that holds the log back is parked.
    pub park_after: Duration,
    /// How far a clock may be ahead of the log's last object.
    pub max_rest: Duration,
    /// Whether a store of version 1 is brought over.
    pub bring_over: bool,
    /// How long each org's entries are kept.
    pub retention: HashMap<OrgName, Retention>,
    /// How long the rows of each org's tables are kept.
    pub table_retention: HashMap<OrgName, TableRetention>,
    /// How often the tables are looked after.
    pub maintenance_interval: Duration,
    /// How long after an org's removal all of it is deleted.
    pub removal_grace: Duration,
    /// How many files of flushes of one hour are merged before it has ended.
    pub small_files: usize,
    /// Whether the store is remote, so that every byte and request counts.
    pub remote: bool,
}

impl Settings {
    /// What `config` says.
    pub fn of(config: &ControlPlane) -> Self {
        let count = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        Self {
            name: config.name.clone(),
            orgs: config.orgs.iter().map(|org| org.name.clone()).collect(),
            commit_window: config.commit_window(),
            flush_interval: config.flush_interval(),
            flush_rows: count(config.flush.max_rows),
            flush_bytes: config.flush_max_bytes().as_usize(),
            limits: OrgLimits { series: config.limits.series, keys: config.limits.idempotency_keys },
            query_time: config.limits.sql.timeout.as_duration(),
            prune_interval: config.audit.prune_interval.as_duration(),
            checkpoint_period: config.ledger_period(),
            park_after: config.log.park_after.as_duration(),
            max_rest: config.log.max_rest.as_duration(),
            bring_over: config.log.bring_over,
            retention: config.orgs.iter().map(|org| (org.name.clone(), retention(org))).collect(),
            table_retention: config.orgs.iter().map(|org| (org.name.clone(), TableRetention::of(org))).collect(),
            maintenance_interval: config.maintenance.interval.as_duration(),
            removal_grace: config.maintenance.removal_grace.as_duration(),
            small_files: count(config.maintenance.small_files),
            remote: config.storage.url.is_remote(),
        }
    }
}

fn retention(org: &Org) -> Retention {
    or_by_tier(org, org.retention.ledger, "ledger")
}

/// How long the longest kept payloads are: rows of a shorter period cannot be opened any more, and go with the others.
fn longest_of_payloads(org: &Org) -> Period {
    org.payloads.plugins.values().copied().fold(org.retention.payloads, Period::max)
}

fn or_by_tier(org: &Org, set: Option<Period>, what: &str) -> Retention {
    match set {
        Some(period) => Retention { period: period.as_duration(), rule: format!("{period} (retention.{what})") },
        None => {
            let period = Period::new(org.tier.retention());
            Retention { period: period.as_duration(), rule: format!("{period} (tier {})", org.tier) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::TableRetention;
    use crate::config::{ControlPlane, Org, OrgSummary};

    fn org(text: &str) -> Org {
        ControlPlane::parse("f", &format!("orgs: [{text}]"), &|_| None).unwrap().orgs.remove(0)
    }

    #[test]
    fn of_each_table_the_longer_period_counts() {
        let one = TableRetention::of(&org("{ name: acme, retention: { samples: 20d, hourly: 500d } }"));
        let other = TableRetention::of(&org("{ name: acme, tier: pro, retention: { hourly: 60d } }"));
        let longer = one.clone().or_longer(other.clone());
        assert_eq!((&longer.samples, &longer.hourly), (&other.samples, &one.hourly));
        assert_eq!(other.clone().or_longer(one), TableRetention { daily: other.daily.clone(), ..longer });
    }

    /// Retention reads what the ledger has of the configuration that was loaded last.
    #[test]
    fn what_the_ledger_has_of_an_orgs_settings_can_be_read_again() {
        for text in [
            "{ name: acme }",
            "{ name: acme, tier: enterprise, entitlements: [payload_capture], scan_bytes: 1GiB, retention: { samples: 9d, \
             hourly: 8d, daily: 7d, ledger: 6d, payloads: 5d }, payloads: { plugins: { github: 7d } } }",
        ] {
            let config = ControlPlane::parse("f", &format!("orgs: [{text}]"), &|_| None).unwrap();
            let summary = OrgSummary::of(&config, &config.orgs[0].name);
            let stored = serde_json::to_string(&summary).unwrap();
            let read: OrgSummary = serde_json::from_str(&stored).unwrap();
            assert_eq!(serde_json::from_value::<Org>(read.org).unwrap(), config.orgs[0]);
        }
    }
}
