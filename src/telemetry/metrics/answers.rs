//! Families of what is asked of a node: scrapes, SQL, and requests of every kind.

use std::time::Duration;

use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts};

use super::registrar::{Registrar, SECONDS};

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

impl Scrape {
    pub(super) fn new(r: &Registrar<'_>) -> Self {
        Self {
            seconds: r.histogram(
                "mcpg_cp_scrape_duration_seconds",
                "Time from a scrape of an org's metrics to its answer",
                &SECONDS,
            ),
            series: r.gauge("mcpg_cp_scrape_series", "Tool series in the last scrape"),
            bytes: r.counter("mcpg_cp_scrape_bytes_total", "Bytes of all answers to scrapes"),
        }
    }
}

/// Outcomes of queries that are there from the start: the first of a kind is an increase that an alert can see.
const WATCHED_OUTCOMES: [&str; 3] = ["ok", "storage_damaged", "storage_unavailable"];

/// Problems that are there from the start, for the same reason.
const WATCHED_PROBLEMS: [&str; 8] = [
    "busy",
    "internal",
    "misconfigured",
    "org_stopped",
    "storage_damaged",
    "storage_unavailable",
    "store_damaged",
    "unavailable",
];

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
    pub(super) fn new(r: &Registrar<'_>) -> Self {
        let families = Self {
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
        };
        for outcome in WATCHED_OUTCOMES {
            families.queries.with_label_values(&[outcome]).reset();
        }
        families
    }

    /// A query ended: `ok`, `aborted` when its client went away, or the code of its problem.
    pub fn ended(&self, outcome: &'static str, took: Duration) {
        self.queries.with_label_values(&[outcome]).inc();
        self.seconds.observe(took.as_secs_f64());
    }
}

/// Requests of every kind.
#[derive(Debug)]
pub struct Http {
    requests: IntCounterVec,
    problems: IntCounterVec,
    seconds: HistogramVec,
    /// Requests under way.
    pub running: IntGauge,
    tokens: IntGaugeVec,
}

impl Http {
    pub(super) fn new(r: &Registrar<'_>) -> Self {
        let problems =
            r.counters("mcpg_cp_problems_total", "Requests answered with a problem document, by its code", &["code"]);
        for code in WATCHED_PROBLEMS {
            problems.with_label_values(&[code]).reset();
        }
        Self {
            problems,
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
            tokens: r.add(IntGaugeVec::new(
                Opts::new("mcpg_cp_token_last_used_timestamp_seconds", "When each API token was presented last"),
                &["token"],
            )),
        }
    }

    /// A token was presented, at a time in seconds since the Unix epoch. Names of tokens are the configuration's.
    pub fn token_used(&self, token: &str, at: i64) {
        self.tokens.with_label_values(&[token]).set(at);
    }

    /// A request was answered with a problem document of this code.
    pub fn problem(&self, code: &'static str) {
        self.problems.with_label_values(&[code]).inc();
    }

    /// A request was answered with `status` after `took`. `route` is the route's pattern, not the path; both are from
    /// fixed sets.
    pub fn answered(&self, route: &str, method: &'static str, status: u16, took: Duration) {
        let mut digits = itoa::Buffer::new();
        self.requests.with_label_values(&[route, method, digits.format(status)]).inc();
        self.seconds.with_label_values(&[route]).observe(took.as_secs_f64());
    }
}
