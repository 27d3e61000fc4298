//! Stream 1, the near half: the gateway's own Prometheus metrics, on a listener of their own, and pushed over OTLP
//! where configured.
//!
//! | module | holds |
//! |---|---|
//! | [`calls`] | calls by plugin and tool, bounded in number |
//! | [`server`] | the listener that serves `/metrics` |
//! | [`push`] | the same families sent to a collector |
//!
//! The families of calls bear the names that the control plane's fleet metrics have, so that a dashboard or an alert of
//! the one works on the other; they count what this process saw since it started. All others start with
//! `mcpg_gateway_`, in base units. No label is ever a caller, a session, an argument or an error's text (invariant I6),
//! and the number of series is bounded (invariant I7). Recording takes no lock but the lookup of a tool's series.

pub mod calls;
mod make;
pub mod push;
pub mod server;
mod timer;

use std::sync::{Arc, OnceLock};

use prometheus::{Gauge, GaugeVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder};

pub use calls::Calls;
pub use timer::Timer;

use crate::model::Decision;
use crate::telemetry::metrics::{Process, Registrar};
use crate::telemetry::otlp::SpanCounts;
use make::{Families, Maker};

/// Bucket bounds of policy decisions, in seconds: 10 µs to 0.1 s.
const POLICY_SECONDS: [f64; 9] = [1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 1e-3, 5e-3, 2.5e-2, 1e-1];

/// Bucket bounds of fsyncs, in seconds: 0.1 ms to 5 s.
const FSYNC_SECONDS: [f64; 10] = [1e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 0.1, 0.5, 5.0];

/// Why telemetry was lost before it was delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// The spool's bound was reached: the oldest samples were dropped, or a new record found no room.
    SpoolFull,
    /// Records came faster than the disk took them, and the memory for those that wait was full.
    Backlog,
    /// The disk refused the write.
    Disk,
    /// It was larger than a record of the spool may be.
    TooLarge,
    /// It was found damaged in the spool.
    Damaged,
    /// The receiver refused it for good; it lies in the quarantine.
    Refused,
    /// No key of its day was known to seal it to.
    NoKey,
    /// The key that it was sealed to is destroyed by now.
    Expired,
}

impl Loss {
    const ALL: [Self; 8] = [
        Self::SpoolFull,
        Self::Backlog,
        Self::Disk,
        Self::TooLarge,
        Self::Damaged,
        Self::Refused,
        Self::NoKey,
        Self::Expired,
    ];

    /// The word that stands for it as a label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SpoolFull => "spool_full",
            Self::Backlog => "backlog",
            Self::Disk => "disk",
            Self::TooLarge => "too_large",
            Self::Damaged => "damaged",
            Self::Refused => "refused",
            Self::NoKey => "no_key",
            Self::Expired => "expired",
        }
    }
}

/// All metrics of one gateway. Shared behind an `Arc`.
#[derive(Debug)]
pub struct GatewayMetrics {
    /// Calls by plugin and tool.
    pub calls: Calls,
    /// Sessions of clients.
    pub sessions: Sessions,
    /// The servers behind the gateway.
    pub upstreams: Upstreams,
    /// Policy.
    pub policy: Policy,
    /// Requests whose caller could not be identified.
    pub unidentified: IntCounter,
    refused: IntCounterVec,
    /// Samples on their way to the control plane.
    pub samples: Lane,
    /// Audit events on their way to the ledger.
    pub audit: Lane,
    /// Sealed payloads on their way to the control plane.
    pub payloads: Lane,
    /// The bound of the spool.
    pub spool_limit_bytes: IntGauge,
    /// Decisions that were not recorded, whether the call was then let through or refused.
    pub audit_failures: IntCounter,
    spans: Spans,
    /// The process.
    pub process: Process,
    registry: Registry,
    families: Families,
}

/// Sessions of clients.
#[derive(Debug)]
pub struct Sessions {
    /// Open now.
    pub open: IntGauge,
    /// Opened since the start.
    pub opened: IntCounter,
}

/// The servers behind the gateway, by plugin: names from the configuration.
#[derive(Debug)]
pub struct Upstreams {
    up: IntGaugeVec,
    restarts: IntCounterVec,
    in_flight: IntGaugeVec,
}

impl Upstreams {
    fn new(make: &Maker<'_>) -> Self {
        let plugin = &["plugin"];
        Self {
            up: make.gauges(
                "mcpg_gateway_upstream_up",
                "1 while the plugin's server answers, 0 while it does not",
                plugin,
            ),
            restarts: make.counters(
                "mcpg_gateway_upstream_restarts_total",
                "Times that the plugin's server was started or connected to again",
                plugin,
            ),
            in_flight: make.gauges(
                "mcpg_gateway_upstream_calls_running",
                "Calls under way at the plugin's server",
                plugin,
            ),
        }
    }

    /// The plugin answers, or does not.
    pub fn set_up(&self, plugin: &str, up: bool) {
        self.up.with_label_values(&[plugin]).set(i64::from(up));
    }

    /// The plugin was started again, or connected to again.
    pub fn restarted(&self, plugin: &str) {
        self.restarts.with_label_values(&[plugin]).inc();
    }

    /// Calls under way at the plugin; keep the handle.
    pub fn in_flight(&self, plugin: &str) -> IntGauge {
        // From the start, so that the first one is an increase.
        self.restarts.with_label_values(&[plugin]).inc_by(0);
        self.in_flight.with_label_values(&[plugin])
    }
}

/// Policy.
#[derive(Debug)]
pub struct Policy {
    /// Seconds that one decision took.
    pub seconds: Timer,
    decisions: IntCounterVec,
    reloads: IntCounterVec,
}

impl Policy {
    fn new(make: &Maker<'_>) -> Self {
        let decisions = make.counters("mcpg_gateway_policy_decisions_total", "Policy decisions", &["decision"]);
        for decision in Decision::ALL {
            decisions.with_label_values(&[decision.as_str()]).reset();
        }
        let seconds =
            make.timers("mcpg_gateway_policy_duration_seconds", "Time of one policy decision", &[], &POLICY_SECONDS);
        let reloads = make.counters(
            "mcpg_gateway_policy_reloads_total",
            "Times that the policies were read again, by whether they were taken",
            &["result"],
        );
        // The first refusal is an increase that an alert can see.
        for result in ["ok", "refused"] {
            reloads.with_label_values(&[result]).reset();
        }
        Self { seconds: seconds.with(&[]), decisions, reloads }
    }

    /// A decision was made.
    pub fn decided(&self, decision: Decision) {
        self.decisions.with_label_values(&[decision.as_str()]).inc();
    }

    /// The policies were read again: taken, or refused because of a fault.
    pub fn reloaded(&self, taken: bool) {
        self.reloads.with_label_values(&[if taken { "ok" } else { "refused" }]).inc();
    }
}

/// Spans on their way to the collector, as the export counts them.
#[derive(Debug)]
struct Spans {
    sent: IntCounter,
    dropped: IntCounterVec,
    counts: OnceLock<Arc<SpanCounts>>,
}

impl Spans {
    /// Takes over what the export has counted by now.
    fn read(&self) {
        let Some(counts) = self.counts.get() else { return };
        let raise = |counter: &IntCounter, to: u64| counter.inc_by(to.saturating_sub(counter.get()));
        raise(&self.sent, counts.sent());
        raise(&self.dropped.with_label_values(&["queue_full"]), counts.dropped_queue_full());
        raise(&self.dropped.with_label_values(&["not_taken"]), counts.dropped_not_taken());
    }
}

/// One stream's way through the spool.
#[derive(Debug)]
pub struct Lane {
    /// Records taken into the spool.
    pub spooled: IntCounter,
    /// Records delivered.
    pub delivered: IntCounter,
    /// Attempts to deliver a batch that failed and are repeated.
    pub retries: IntCounter,
    /// Batches that the receiver refused for good.
    pub quarantined: IntCounter,
    /// Batches that are sent again under a new emitter id.
    pub renumbered: IntCounter,
    /// Records in the spool.
    pub records: IntGauge,
    /// Batches in the spool that are sealed and wait for delivery.
    pub batches: IntGauge,
    /// Bytes on disk.
    pub bytes: IntGauge,
    /// Age in seconds of the oldest record in the spool.
    pub age_seconds: Gauge,
    /// Seconds that one fsync took.
    pub fsync_seconds: Timer,
    losses: IntCounterVec,
    stream: &'static str,
}

impl Lane {
    /// Records were lost.
    pub fn lost(&self, why: Loss, records: u64) {
        self.losses.with_label_values(&[self.stream, why.as_str()]).inc_by(records);
    }

    /// Records lost so far, for whatever reason.
    pub fn all_lost(&self) -> u64 {
        Loss::ALL.iter().map(|why| self.losses.with_label_values(&[self.stream, why.as_str()]).get()).sum()
    }
}

/// The families that have a series for each stream.
struct LaneFamilies {
    spooled: IntCounterVec,
    delivered: IntCounterVec,
    retries: IntCounterVec,
    quarantined: IntCounterVec,
    renumbered: IntCounterVec,
    records: IntGaugeVec,
    batches: IntGaugeVec,
    bytes: IntGaugeVec,
    age_seconds: GaugeVec,
    fsync_seconds: timer::TimerVec,
    losses: IntCounterVec,
}

impl LaneFamilies {
    fn new(make: &Maker<'_>) -> Self {
        let stream = &["stream"];
        Self {
            spooled: make.counters("mcpg_gateway_spooled_total", "Records taken into the spool", stream),
            delivered: make.counters(
                "mcpg_gateway_delivered_total",
                "Records of the spool that were delivered",
                stream,
            ),
            retries: make.counters(
                "mcpg_gateway_delivery_retries_total",
                "Attempts to deliver a batch that failed and are repeated",
                stream,
            ),
            quarantined: make.counters(
                "mcpg_gateway_quarantined_batches_total",
                "Batches set aside because the receiver refused them for good or they were damaged",
                stream,
            ),
            renumbered: make.counters(
                "mcpg_gateway_renumbered_batches_total",
                "Batches whose number the control plane could not compare, sent again under a new emitter id",
                stream,
            ),
            records: make.gauges("mcpg_gateway_spool_records", "Records in the spool", stream),
            batches: make.gauges(
                "mcpg_gateway_spool_batches",
                "Sealed batches in the spool that wait for delivery",
                stream,
            ),
            bytes: make.gauges("mcpg_gateway_spool_bytes", "Bytes of the spool on disk", stream),
            age_seconds: make.decimals(
                "mcpg_gateway_spool_age_seconds",
                "Age of the oldest record in the spool",
                stream,
            ),
            fsync_seconds: make.timers(
                "mcpg_gateway_spool_fsync_duration_seconds",
                "Time of one fsync of the spool",
                stream,
                &FSYNC_SECONDS,
            ),
            losses: make.counters(
                "mcpg_gateway_telemetry_lost_total",
                "Records that were lost before they were delivered, by stream and reason",
                &["stream", "reason"],
            ),
        }
    }

    fn lane(&self, stream: &'static str) -> Lane {
        for why in Loss::ALL {
            self.losses.with_label_values(&[stream, why.as_str()]).reset();
        }
        Lane {
            spooled: self.spooled.with_label_values(&[stream]),
            delivered: self.delivered.with_label_values(&[stream]),
            retries: self.retries.with_label_values(&[stream]),
            quarantined: self.quarantined.with_label_values(&[stream]),
            renumbered: self.renumbered.with_label_values(&[stream]),
            records: self.records.with_label_values(&[stream]),
            batches: self.batches.with_label_values(&[stream]),
            bytes: self.bytes.with_label_values(&[stream]),
            age_seconds: self.age_seconds.with_label_values(&[stream]),
            fsync_seconds: self.fsync_seconds.with(&[stream]),
            losses: self.losses.clone(),
            stream,
        }
    }
}

impl GatewayMetrics {
    /// All metrics, at zero, of the gateway of `workspace` in `org`.
    pub fn new(org: &str, workspace: &str) -> Self {
        let (registry, families) = (Registry::new(), Families::default());
        let constant = vec![("org", org.to_owned()), ("workspace", workspace.to_owned())];
        let calls = Calls::new(&Maker { registry: &registry, families: &families, constant });
        let make = Maker { registry: &registry, families: &families, constant: Vec::new() };
        let lanes = LaneFamilies::new(&make);
        let refused = make.counters(
            "mcpg_gateway_messages_refused_total",
            "Messages that are not let through: requests and notifications of methods that are refused, questions of servers",
            &["kind"],
        );
        // From the start, so that the first one is an increase.
        for kind in ["request", "notification", "question"] {
            refused.with_label_values(&[kind]).reset();
        }
        let (samples, audit, payloads) = (lanes.lane("samples"), lanes.lane("audit"), lanes.lane("payloads"));
        let metrics = Self {
            calls,
            sessions: Sessions {
                open: make.gauge("mcpg_gateway_sessions", "Sessions open now"),
                opened: make.counter("mcpg_gateway_sessions_opened_total", "Sessions opened"),
            },
            upstreams: Upstreams::new(&make),
            policy: Policy::new(&make),
            unidentified: make
                .counter("mcpg_gateway_unidentified_total", "Requests whose caller could not be identified"),
            refused,
            samples,
            audit,
            payloads,
            spool_limit_bytes: make.gauge("mcpg_gateway_spool_limit_bytes", "Bound of the spool on disk"),
            audit_failures: make.counter(
                "mcpg_gateway_audit_failures_total",
                "Events that were not recorded; with on_failure closed their calls were refused",
            ),
            spans: Spans {
                sent: make.counter("mcpg_gateway_spans_exported_total", "Spans that the collector took"),
                dropped: make.counters(
                    "mcpg_gateway_spans_dropped_total",
                    "Spans that were not exported, by reason",
                    &["reason"],
                ),
                counts: OnceLock::new(),
            },
            process: Process::new(&Registrar(&registry)),
            registry: registry.clone(),
            families,
        };
        let opts = Opts::new("mcpg_gateway_build_info", "Always 1; the labels say which build this is")
            .const_label("version", env!("CARGO_PKG_VERSION"));
        Registrar(&registry).add(IntGauge::with_opts(opts)).set(1);
        metrics
    }

    /// A message is not let through: a `request`, a `notification` or a `question`.
    pub fn refused(&self, kind: &'static str) {
        self.refused.with_label_values(&[kind]).inc();
    }

    /// Shows from now on what the export of spans counts; the first one stays.
    pub fn watch_spans(&self, counts: Arc<SpanCounts>) {
        // There is one export a gateway.
        let _ = self.spans.counts.set(counts);
    }

    /// Everything in the text format 0.0.4, the process's own figures read now.
    ///
    /// # Errors
    /// When the metrics crate refuses to encode, which would be a fault of this module.
    pub fn render(&self) -> Result<String, prometheus::Error> {
        self.process.read();
        self.spans.read();
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

#[cfg(test)]
mod tests;
