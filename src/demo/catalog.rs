//! The tools that the simulated fleet calls, and how each behaves on a good day.

/// One tool and its habits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tool {
    /// The plugin that has it.
    pub(super) plugin: &'static str,
    /// Its name.
    pub(super) name: &'static str,
    /// How often it is called, relative to the others.
    pub(super) weight: u32,
    /// Median latency, ms.
    pub(super) median_ms: f64,
    /// Spread of the latency: standard deviation of its logarithm.
    pub(super) sigma: f64,
    /// Share of calls that fail on a good day.
    pub(super) error_rate: f64,
    /// Median size of a response, bytes.
    pub(super) response_bytes: f64,
    /// Whether it changes something, so that policy looks twice.
    pub(super) writes: bool,
}

const fn reads(
    plugin: &'static str,
    name: &'static str,
    weight: u32,
    median_ms: f64,
    sigma: f64,
    error_rate: f64,
    response_bytes: f64,
) -> Tool {
    Tool { plugin, name, weight, median_ms, sigma, error_rate, response_bytes, writes: false }
}

const fn writes(
    plugin: &'static str,
    name: &'static str,
    weight: u32,
    median_ms: f64,
    sigma: f64,
    error_rate: f64,
    response_bytes: f64,
) -> Tool {
    Tool { writes: true, ..reads(plugin, name, weight, median_ms, sigma, error_rate, response_bytes) }
}

/// All tools.
pub(super) const TOOLS: &[Tool] = &[
    reads("github", "list_repos", 90, 84.0, 0.55, 0.003, 18_000.0),
    reads("github", "get_file_contents", 160, 62.0, 0.50, 0.006, 9_000.0),
    reads("github", "search_code", 70, 310.0, 0.70, 0.012, 26_000.0),
    reads("github", "list_pull_requests", 55, 120.0, 0.50, 0.003, 22_000.0),
    writes("github", "create_pull_request", 14, 480.0, 0.45, 0.010, 4_000.0),
    writes("github", "create_issue", 18, 290.0, 0.45, 0.005, 2_500.0),
    writes("github", "merge_pull_request", 6, 720.0, 0.50, 0.020, 1_200.0),
    reads("jira", "search_issues", 60, 240.0, 0.65, 0.008, 30_000.0),
    reads("jira", "get_issue", 85, 95.0, 0.45, 0.004, 6_000.0),
    writes("jira", "create_issue", 22, 350.0, 0.50, 0.009, 1_500.0),
    writes("jira", "transition_issue", 16, 270.0, 0.45, 0.012, 700.0),
    writes("jira", "add_comment", 25, 210.0, 0.40, 0.004, 900.0),
    reads("slack", "search_messages", 50, 180.0, 0.60, 0.005, 14_000.0),
    reads("slack", "list_channels", 30, 70.0, 0.40, 0.002, 11_000.0),
    writes("slack", "post_message", 75, 110.0, 0.45, 0.004, 400.0),
    writes("slack", "upload_file", 8, 900.0, 0.70, 0.015, 600.0),
    reads("postgres", "query", 140, 18.0, 1.10, 0.015, 12_000.0),
    reads("postgres", "explain", 20, 9.0, 0.60, 0.010, 3_000.0),
    reads("postgres", "list_tables", 35, 6.0, 0.40, 0.001, 2_200.0),
    writes("postgres", "execute", 12, 35.0, 0.90, 0.025, 200.0),
    reads("confluence", "search", 45, 260.0, 0.60, 0.006, 21_000.0),
    reads("confluence", "get_page", 65, 130.0, 0.50, 0.003, 34_000.0),
    writes("confluence", "update_page", 9, 420.0, 0.50, 0.014, 1_000.0),
    reads("filesystem", "read_file", 210, 2.1, 0.70, 0.004, 7_000.0),
    reads("filesystem", "list_directory", 120, 1.2, 0.50, 0.002, 1_800.0),
    writes("filesystem", "write_file", 40, 3.4, 0.60, 0.003, 90.0),
    reads("filesystem", "search_files", 48, 25.0, 1.00, 0.002, 5_000.0),
    reads("kubernetes", "list_pods", 42, 55.0, 0.50, 0.004, 28_000.0),
    reads("kubernetes", "get_logs", 38, 140.0, 0.90, 0.010, 60_000.0),
    reads("kubernetes", "describe", 26, 75.0, 0.50, 0.004, 16_000.0),
    writes("kubernetes", "scale_deployment", 3, 230.0, 0.40, 0.020, 500.0),
    writes("kubernetes", "delete_pod", 2, 310.0, 0.50, 0.030, 300.0),
    reads("sentry", "list_issues", 33, 150.0, 0.55, 0.006, 19_000.0),
    reads("sentry", "get_event", 29, 115.0, 0.50, 0.004, 45_000.0),
    reads("grafana", "query_prometheus", 58, 48.0, 0.80, 0.007, 15_000.0),
    reads("grafana", "query_loki", 31, 320.0, 0.90, 0.018, 80_000.0),
    reads("grafana", "list_dashboards", 12, 60.0, 0.40, 0.002, 13_000.0),
    reads("browser", "navigate", 44, 850.0, 0.80, 0.035, 52_000.0),
    reads("browser", "screenshot", 27, 1_200.0, 0.60, 0.025, 240_000.0),
    writes("browser", "click", 36, 180.0, 0.60, 0.030, 2_000.0),
    writes("browser", "fill_form", 19, 260.0, 0.55, 0.022, 1_500.0),
];

/// The callers: people, services, and the odd anonymous one.
pub(super) const CALLERS: &[&str] = &[
    "service:code-review-bot",
    "user:alice@acme",
    "service:ci",
    "user:bob@acme",
    "user:chen@acme",
    "service:support-triage",
    "user:dana@acme",
    "user:emeka@acme",
    "user:fatima@acme",
    "service:release-notes",
    "user:goran@acme",
    "user:hana@acme",
    "user:ines@acme",
    "service:incident-helper",
    "user:jonas@acme",
    "anonymous",
];

/// What goes wrong upstream; only the hashes of these texts ever leave a gateway.
pub(super) const ERROR_TEXTS: &[(&str, &str)] = &[
    ("UPSTREAM_5XX", "upstream answered 502 Bad Gateway"),
    ("UPSTREAM_5XX", "upstream answered 500 Internal Server Error"),
    ("UPSTREAM_5XX", "upstream answered 503 Service Unavailable"),
    ("UPSTREAM_RESET", "connection reset by peer"),
    ("UPSTREAM_PROTOCOL", "upstream sent an invalid JSON-RPC response"),
];
