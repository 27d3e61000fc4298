//! The control plane's own metrics: how it fares as a process, apart from what the fleet reports through it.
//!
//! | module | holds |
//! |---|---|
//! | `writes` | what is taken in, until it is in the log |
//! | `upkeep` | from the log to tables and ledgers; start; other nodes |
//! | `payload_keys` | the keys of sealed payloads |
//! | `answers` | scrapes, SQL, requests |
//! | `process` | the process |
//! | `registrar` | making families |
//!
//! Served at `/metrics` in the text format 0.0.4. One [`Metrics`] is made at the top of the program and handed down;
//! there is no global registry. Names start with `mcpg_cp_`, in base units (seconds, bytes), save the `process_*`
//! families that every Prometheus client library has. Labels only take values from small fixed sets: no org, path, or
//! text of a client is ever a label.

mod answers;
mod payload_keys;
mod process;
#[cfg(test)]
pub(crate) mod promtool;
mod registrar;
mod upkeep;
mod writes;

use prometheus::{IntGauge, Opts, Registry, TextEncoder};

pub use answers::{Http, Query, Scrape};
pub use payload_keys::PayloadKeys;
pub use process::Process;
pub(crate) use registrar::Registrar;
pub use upkeep::{Audit, CatchUp, Flush, Maintenance, Replay};
pub use writes::{Buffer, Ingest, LogHealth, Wal};

/// Media type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All metrics of one control-plane node. Cheap to share behind an `Arc`; recording is lock-free but for labelled
/// families' lookups.
#[derive(Debug)]
pub struct Metrics {
    /// Samples that clients send.
    pub ingest: Ingest,
    /// The write-ahead log.
    pub wal: Wal,
    /// How the log fares.
    pub log: LogHealth,
    /// Samples in memory.
    pub buffer: Buffer,
    /// From the WAL to the tables.
    pub flush: Flush,
    /// Keeping the tables.
    pub maintenance: Maintenance,
    /// The audit ledgers.
    pub audit: Audit,
    /// The keys of sealed payloads.
    pub payload_keys: PayloadKeys,
    /// Scrapes of the orgs' metrics.
    pub scrape: Scrape,
    /// SQL.
    pub query: Query,
    /// Reading the WAL at start.
    pub replay: Replay,
    /// Reading what other nodes wrote.
    pub catch_up: CatchUp,
    /// Requests of every kind.
    pub http: Http,
    /// The process.
    pub process: Process,
    registry: Registry,
}

impl Metrics {
    /// All metrics, at zero.
    pub fn new() -> Self {
        let registry = Registry::new();
        let r = Registrar(&registry);
        let opts = Opts::new("mcpg_cp_build_info", "Always 1; the labels say which build this is")
            .const_label("version", env!("CARGO_PKG_VERSION"));
        r.add(IntGauge::with_opts(opts)).set(1);
        Self {
            ingest: Ingest::new(&r),
            wal: Wal::new(&r),
            log: LogHealth::new(&r),
            buffer: Buffer::new(&r),
            flush: Flush::new(&r),
            maintenance: Maintenance::new(&r),
            audit: Audit::new(&r),
            payload_keys: PayloadKeys::new(&r),
            scrape: Scrape::new(&r),
            query: Query::new(&r),
            replay: Replay::new(&r),
            catch_up: CatchUp::new(&r),
            http: Http::new(&r),
            process: Process::new(&r),
            registry,
        }
    }

    /// Everything in the text format 0.0.4, the process's own figures read now.
    ///
    /// # Errors
    /// When the metrics crate refuses to encode, which would be a fault of this module.
    pub fn render(&self) -> Result<String, prometheus::Error> {
        self.process.read();
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Metrics, promtool};

    fn busy() -> Metrics {
        let metrics = Metrics::new();
        metrics.ingest.accepted("ndjson", 3, 400);
        metrics.ingest.refused("invalid_sample");
        metrics.query.ended("query_timeout", Duration::from_secs(1));
        metrics.http.answered("/v1/orgs/{org}/sql", "POST", 200, Duration::from_millis(3));
        metrics.process.start_time_seconds.set(1.7e9);
        metrics
    }

    #[test]
    fn what_was_recorded_is_rendered() {
        let text = busy().render().unwrap();
        for line in [
            "mcpg_cp_ingest_samples_total{format=\"ndjson\"} 3",
            "mcpg_cp_ingest_samples_total{format=\"arrow\"} 0",
            "mcpg_cp_ingest_refused_total{code=\"invalid_sample\"} 1",
            "mcpg_cp_queries_total{outcome=\"query_timeout\"} 1",
            "mcpg_cp_http_requests_total{method=\"POST\",route=\"/v1/orgs/{org}/sql\",status=\"200\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn the_processs_own_figures_are_read() {
        let text = busy().render().unwrap();
        let value = |name: &str| -> f64 {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap();
            line.rsplit(' ').next().unwrap().parse().unwrap()
        };
        assert!(value("process_resident_memory_bytes ") > 1e6);
        assert!(value("process_open_fds ") >= 3.0);
    }

    #[test]
    fn two_nodes_in_one_process_share_nothing() {
        busy();
        assert!(Metrics::new().render().unwrap().contains("mcpg_cp_ingest_samples_total{format=\"ndjson\"} 0"));
    }

    #[test]
    fn promtool_finds_nothing_to_complain_of() {
        assert_eq!(promtool::complaints(&busy().render().unwrap()), None);
    }
}
