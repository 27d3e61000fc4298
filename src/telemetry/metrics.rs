//! The control plane's own metrics: how it fares as a process, apart from what the fleet reports through it.
//!
//! Served at `/metrics` in the text format 0.0.4. One [`Metrics`] is made at the top of the program and handed down;
//! there is no global registry. Names start with `mcpg_cp_`, in base units (seconds, bytes), save the `process_*`
//! families that every Prometheus client library has. Labels only take values from small fixed sets: no org, path, or
//! text of a client is ever a label.

use std::time::Duration;

use prometheus::{
    Counter, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
    TextEncoder, core::Collector,
};

use super::process;

/// Media type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Bucket limits for durations of requests and of work on the store: half a millisecond to half a minute, in seconds.
const SECONDS: [f64; 15] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// Bucket limits for counts of batches in a group.
const COUNTS: [f64; 10] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];

/// All metrics of one control-plane node. Cheap to share behind an `Arc`; recording is lock-free but for labelled
/// families' lookups.
#[derive(Debug)]
pub struct Metrics {
    /// Samples that clients send.
    pub ingest: Ingest,
    /// The write-ahead log.
    pub wal: Wal,
    /// Samples in memory.
    pub buffer: Buffer,
    /// From the WAL to the tables.
    pub flush: Flush,
    /// The audit ledgers.
    pub audit: Audit,
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

/// Samples that clients send.
#[derive(Debug)]
pub struct Ingest {
    samples: IntCounterVec,
    batches: IntCounterVec,
    body_bytes: IntCounterVec,
    refused: IntCounterVec,
    /// Batches that had been stored before, under the same idempotency key.
    pub duplicates: IntCounter,
}

impl Ingest {
    /// A batch of `samples` was acknowledged; its body had `bytes` as it was sent. `format` is `arrow`, `ndjson` or
    /// `json`.
    pub fn accepted(&self, format: &'static str, samples: u64, bytes: u64) {
        self.samples.with_label_values(&[format]).inc_by(samples);
        self.batches.with_label_values(&[format]).inc();
        self.body_bytes.with_label_values(&[format]).inc_by(bytes);
    }

    /// A batch was refused with the problem `code`.
    pub fn refused(&self, code: &'static str) {
        self.refused.with_label_values(&[code]).inc();
    }
}

/// The write-ahead log.
#[derive(Debug)]
pub struct Wal {
    /// Seconds to make one group durable: write, fsync and naming of its WAL object.
    pub commit_seconds: Histogram,
    /// Batches in each committed group.
    pub group_batches: Histogram,
    /// WAL objects this node wrote.
    pub objects: IntCounter,
    /// Bytes of them.
    pub bytes: IntCounter,
    /// Times that another node took the position this node wanted, so that it tried the next.
    pub conflicts: IntCounter,
    /// Groups that could not be made durable.
    pub failures: IntCounter,
    /// The position this node has applied.
    pub position: IntGauge,
}

/// Samples in memory: requests under way, and acknowledged samples that are not flushed yet.
#[derive(Debug)]
pub struct Buffer {
    /// Acknowledged samples not yet flushed.
    pub rows: IntGauge,
    /// Bytes in use, of requests under way and of unflushed samples.
    pub bytes: IntGauge,
    /// The bound of those bytes.
    pub limit_bytes: IntGauge,
    /// Requests refused because the buffer was full.
    pub refusals: IntCounter,
}

/// From the WAL to the tables.
#[derive(Debug)]
pub struct Flush {
    /// Seconds that one flush of one org took.
    pub seconds: Histogram,
    /// Age in seconds of the oldest acknowledged sample that is in no table yet.
    pub lag_seconds: Gauge,
    /// Flushes that failed; they are tried again.
    pub failures: IntCounter,
    /// Samples written to the tables.
    pub rows: IntCounter,
    /// Files written to the tables.
    pub files: IntCounter,
    /// Bytes of those files.
    pub bytes: IntCounter,
}

/// The audit ledgers.
#[derive(Debug)]
pub struct Audit {
    /// Events put into ledgers by this node.
    pub events: IntCounter,
    /// Segments this node wrote, merged ones too.
    pub segments: IntCounter,
    /// Heads this node signed.
    pub heads: IntCounter,
    /// Segments this node deleted because they were pruned.
    pub pruned: IntCounter,
    /// Cosignatures of the witness on this node's heads.
    pub cosignatures: IntCounter,
    /// Times that the witness or the mirror did not take a head; it is tried again.
    pub handing_failures: IntCounter,
    /// Times that a ledger was not written and is tried again.
    pub failures: IntCounter,
    /// Age in seconds of the oldest entry that is in no segment yet.
    pub lag_seconds: Gauge,
}

/// Scrapes of the orgs' metrics.
#[derive(Debug)]
pub struct Scrape {
    /// Seconds from request to rendered answer.
    pub seconds: Histogram,
    /// Tool series in the last scrape.
    pub series: IntGauge,
    /// Bytes of all answers.
    pub bytes: IntCounter,
}

/// SQL.
#[derive(Debug)]
pub struct Query {
    queries: IntCounterVec,
    /// Seconds from request to the answer's last byte.
    pub seconds: Histogram,
    /// Queries running now.
    pub running: IntGauge,
}

impl Query {
    /// A query ended: `ok`, `aborted` when its client went away, or the code of its problem.
    pub fn ended(&self, outcome: &'static str, took: Duration) {
        self.queries.with_label_values(&[outcome]).inc();
        self.seconds.observe(took.as_secs_f64());
    }
}

/// Reading the WAL at start.
#[derive(Debug)]
pub struct Replay {
    /// WAL objects to apply before the node serves.
    pub objects: IntGauge,
    /// WAL objects applied so far.
    pub objects_done: IntGauge,
    /// Seconds that it took, once it is over.
    pub seconds: Gauge,
}

/// Reading what other nodes wrote to the WAL, before each answer.
#[derive(Debug)]
pub struct CatchUp {
    /// Seconds that one catch-up took.
    pub seconds: Histogram,
    /// WAL objects of other nodes that were applied.
    pub objects: IntCounter,
}

/// Requests of every kind.
#[derive(Debug)]
pub struct Http {
    requests: IntCounterVec,
    seconds: HistogramVec,
    /// Requests under way.
    pub running: IntGauge,
}

impl Http {
    /// A request was answered with `status` after `took`. `route` is the route's pattern, not the path; both are from
    /// fixed sets.
    pub fn answered(&self, route: &str, method: &'static str, status: u16, took: Duration) {
        let mut digits = itoa::Buffer::new();
        self.requests.with_label_values(&[route, method, digits.format(status)]).inc();
        self.seconds.with_label_values(&[route]).observe(took.as_secs_f64());
    }
}

/// The process, under the names that every Prometheus client library uses.
#[derive(Debug)]
pub struct Process {
    /// When the process started, in seconds since the Unix epoch.
    pub start_time_seconds: Gauge,
    resident_bytes: IntGauge,
    open_files: IntGauge,
    cpu_seconds: Counter,
}

impl Process {
    /// The families, not read yet.
    pub(crate) fn new(r: &Registrar<'_>) -> Self {
        Self {
            start_time_seconds: r
                .decimal("process_start_time_seconds", "Start time of the process since the Unix epoch in seconds"),
            resident_bytes: r.gauge("process_resident_memory_bytes", "Resident memory size in bytes"),
            open_files: r.gauge("process_open_fds", "Number of open file descriptors"),
            cpu_seconds: r
                .add(Counter::new("process_cpu_seconds_total", "Total user and system CPU time spent in seconds")),
        }
    }

    /// Reads the process's figures as they are now.
    pub(crate) fn read(&self) {
        if let Some(figures) = process::figures() {
            self.resident_bytes.set(figures.resident_bytes);
            self.open_files.set(figures.open_files);
            self.cpu_seconds.inc_by((figures.cpu_seconds - self.cpu_seconds.get()).max(0.0));
        }
    }
}

impl Metrics {
    /// All metrics, at zero.
    pub fn new() -> Self {
        let registry = Registry::new();
        let r = Registrar(&registry);
        let metrics = Self {
            ingest: Ingest {
                samples: r.counters("mcpg_cp_ingest_samples_total", "Samples acknowledged", &["format"]),
                batches: r.counters("mcpg_cp_ingest_batches_total", "Batches acknowledged", &["format"]),
                body_bytes: r.counters(
                    "mcpg_cp_ingest_body_bytes_total",
                    "Bytes of acknowledged batches as they were sent",
                    &["format"],
                ),
                refused: r.counters(
                    "mcpg_cp_ingest_refused_total",
                    "Batches refused, by the code of the problem",
                    &["code"],
                ),
                duplicates: r.counter(
                    "mcpg_cp_ingest_duplicates_total",
                    "Batches that had been stored before under the same idempotency key",
                ),
            },
            wal: Wal {
                commit_seconds: r.histogram(
                    "mcpg_cp_wal_commit_duration_seconds",
                    "Time to make one group of batches durable",
                    &SECONDS,
                ),
                group_batches: r.histogram("mcpg_cp_wal_group_batches", "Batches in each committed group", &COUNTS),
                objects: r.counter("mcpg_cp_wal_objects_total", "WAL objects written by this node"),
                bytes: r.counter("mcpg_cp_wal_bytes_total", "Bytes of the WAL objects written by this node"),
                conflicts: r.counter("mcpg_cp_wal_conflicts_total", "WAL positions that another node took first"),
                failures: r.counter("mcpg_cp_wal_failures_total", "Groups that could not be made durable"),
                position: r.gauge("mcpg_cp_wal_position", "WAL position that this node has applied"),
            },
            buffer: Buffer {
                rows: r.gauge("mcpg_cp_buffer_rows", "Acknowledged samples not yet flushed"),
                bytes: r.gauge("mcpg_cp_buffer_bytes", "Memory of requests under way and of samples not yet flushed"),
                limit_bytes: r.gauge(
                    "mcpg_cp_buffer_limit_bytes",
                    "Bound of mcpg_cp_buffer_bytes, past which requests are refused",
                ),
                refusals: r.counter("mcpg_cp_buffer_refusals_total", "Requests refused because the buffer was full"),
            },
            flush: Flush {
                seconds: r.histogram(
                    "mcpg_cp_flush_duration_seconds",
                    "Time of one flush of one org to its tables",
                    &SECONDS,
                ),
                lag_seconds: r.decimal(
                    "mcpg_cp_flush_lag_seconds",
                    "Age of the oldest acknowledged sample that is in no table yet",
                ),
                failures: r.counter("mcpg_cp_flush_failures_total", "Flushes that failed and will be tried again"),
                rows: r.counter("mcpg_cp_flush_rows_total", "Samples written to the tables"),
                files: r.counter("mcpg_cp_flush_files_total", "Files written to the tables"),
                bytes: r.counter("mcpg_cp_flush_bytes_total", "Bytes of the files written to the tables"),
            },
            audit: Audit {
                events: r.counter("mcpg_cp_audit_events_total", "Events put into ledgers"),
                segments: r.counter("mcpg_cp_audit_segments_total", "Segments of ledgers written by this node"),
                heads: r.counter("mcpg_cp_audit_heads_total", "Heads of ledgers signed by this node"),
                pruned: r.counter("mcpg_cp_audit_pruned_segments_total", "Segments of ledgers deleted after a prune"),
                cosignatures: r.counter("mcpg_cp_audit_cosignatures_total", "Heads of ledgers cosigned by the witness"),
                handing_failures: r.counter(
                    "mcpg_cp_audit_handing_failures_total",
                    "Times that the witness or the mirror did not take a head, which will be tried again",
                ),
                failures: r.counter(
                    "mcpg_cp_audit_failures_total",
                    "Times that a ledger was not written and will be tried again",
                ),
                lag_seconds: r
                    .decimal("mcpg_cp_audit_lag_seconds", "Age of the oldest ledger entry that is in no segment yet"),
            },
            scrape: Scrape {
                seconds: r.histogram(
                    "mcpg_cp_scrape_duration_seconds",
                    "Time from a scrape of an org's metrics to its answer",
                    &SECONDS,
                ),
                series: r.gauge("mcpg_cp_scrape_series", "Tool series in the last scrape"),
                bytes: r.counter("mcpg_cp_scrape_bytes_total", "Bytes of all answers to scrapes"),
            },
            query: Query {
                queries: r.counters(
                    "mcpg_cp_queries_total",
                    "SQL queries, by ok, aborted, or the code of the problem",
                    &["outcome"],
                ),
                seconds: r.histogram(
                    "mcpg_cp_query_duration_seconds",
                    "Time from an SQL query to its answer's last byte",
                    &SECONDS,
                ),
                running: r.gauge("mcpg_cp_queries_running", "SQL queries running now"),
            },
            replay: Replay {
                objects: r.gauge("mcpg_cp_replay_objects", "WAL objects to apply at start before serving"),
                objects_done: r.gauge("mcpg_cp_replay_objects_done", "WAL objects applied at start so far"),
                seconds: r
                    .decimal("mcpg_cp_replay_duration_seconds", "Time that the replay at start took, once it is over"),
            },
            catch_up: CatchUp {
                seconds: r.histogram(
                    "mcpg_cp_catch_up_duration_seconds",
                    "Time to apply what other nodes acknowledged",
                    &SECONDS,
                ),
                objects: r.counter("mcpg_cp_catch_up_objects_total", "WAL objects of other nodes that were applied"),
            },
            http: Http {
                requests: r.counters(
                    "mcpg_cp_http_requests_total",
                    "Requests, by route, method and status",
                    &["route", "method", "status"],
                ),
                seconds: r.histograms(
                    "mcpg_cp_http_request_duration_seconds",
                    "Time from a request to its answer's head",
                    &["route"],
                    &SECONDS,
                ),
                running: r.gauge("mcpg_cp_http_requests_running", "Requests under way"),
            },
            process: Process::new(&r),
            registry: registry.clone(),
        };
        for format in ["arrow", "ndjson", "json"] {
            metrics.ingest.samples.with_label_values(&[format]).reset();
            metrics.ingest.batches.with_label_values(&[format]).reset();
            metrics.ingest.body_bytes.with_label_values(&[format]).reset();
        }
        metrics.query.queries.with_label_values(&["ok"]).reset();
        let opts = Opts::new("mcpg_cp_build_info", "Always 1; the labels say which build this is")
            .const_label("version", env!("CARGO_PKG_VERSION"));
        r.add(IntGauge::with_opts(opts)).set(1);
        metrics
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

/// Makes and registers metrics.
pub(crate) struct Registrar<'a>(pub(crate) &'a Registry);

impl Registrar<'_> {
    #[expect(
        clippy::expect_used,
        reason = "names and labels are constants of this file, and every test of it would fail here"
    )]
    pub(crate) fn add<C: Collector + Clone + 'static>(&self, made: prometheus::Result<C>) -> C {
        let metric = made.expect("valid name and labels");
        self.0.register(Box::new(metric.clone())).expect("a name of its own");
        metric
    }

    pub(crate) fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.add(IntCounter::new(name, help))
    }

    pub(crate) fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.add(IntCounterVec::new(Opts::new(name, help), labels))
    }

    pub(crate) fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.add(IntGauge::new(name, help))
    }

    pub(crate) fn decimal(&self, name: &str, help: &str) -> Gauge {
        self.add(Gauge::new(name, help))
    }

    pub(crate) fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        self.add(Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec())))
    }

    pub(crate) fn histograms(&self, name: &str, help: &str, labels: &[&str], buckets: &[f64]) -> HistogramVec {
        self.add(HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use super::Metrics;

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
        let mut child = Command::new("promtool")
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("promtool: install the prometheus package");
        child.stdin.take().unwrap().write_all(busy().render().unwrap().as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(
            output.status.success(),
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
}
