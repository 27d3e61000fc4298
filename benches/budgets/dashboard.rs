//! What the dashboard asks when its first view opens and when a box is drawn: each query by itself, over HTTP, to the
//! last byte of its answer.
//!
//! The history is the fleet's last week, as in the section `query`; then the server is started again, so that all of it
//! lies in the tables. The queries are those that the page sends for one hour, at the steps that it chooses, and for 24
//! hours. Each runs once untimed and five times timed; the median counts.

use std::sync::Arc;

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use mcpg::model::{Clock, SystemClock};
use serde_json::json;

use super::Result;
use super::figures::{median, ms, readable};
use super::options::Options;
use super::report::{Budget, Finding, say};
use super::samples::tell_past;
use super::server::{Home, Server};

/// The history's length.
const SPAN: TimeDelta = TimeDelta::days(7);
/// Timed runs of each query, after one that is not.
const RUNS: usize = 5;
/// For a panel, on so many samples.
const PANEL_MS: f64 = 300.0;
const PANEL_SAMPLES: u64 = 100_000_000;
/// Bars of a tool's trend.
const SLOTS: i64 = 24;

const QUERIES: [(&str, &str); 8] = [
    ("strip, lines and heat map", include_str!("queries/page_series.sql")),
    ("facets", include_str!("queries/page_facets.sql")),
    ("tools", include_str!("queries/page_tools.sql")),
    ("tools before", include_str!("queries/page_before.sql")),
    ("what is different in a box", include_str!("queries/page_difference.sql")),
    ("errors of the box", include_str!("queries/page_errors.sql")),
    ("newest calls", include_str!("queries/page_newest.sql")),
    ("slowest calls", include_str!("queries/page_slowest.sql")),
];

/// A stretch of time that the page shows, and the step that it cuts it into.
struct Shown {
    word: &'static str,
    length: TimeDelta,
    step_s: i64,
}

const SHOWN: [Shown; 2] = [
    Shown { word: "one hour", length: TimeDelta::hours(1), step_s: 15 },
    Shown { word: "24 hours", length: TimeDelta::hours(24), step_s: 300 },
];

/// Measures it.
///
/// # Errors
/// When samples are missing, or a query is refused.
pub(crate) async fn measure(options: &Options) -> Result<Vec<Finding>> {
    let home = Home::new("")?;
    let until = SystemClock.now();
    let samples = options.history();
    say(&format!("dashboard: storing {samples} samples of {} days", SPAN.num_days()));
    let server = Arc::new(home.start().await?);
    tell_past(Arc::clone(&server), until - SPAN, until, samples).await?;
    Arc::into_inner(server).ok_or("the server is still in use")?.drain().await?;
    let server = home.start().await?;
    let mut findings = Vec::new();
    for shown in &SHOWN {
        for (asks, text) in QUERIES {
            findings.push(panel(&server, shown, asks, &shown.filled(text, until), samples).await?);
        }
    }
    server.kill().await?;
    Ok(findings)
}

impl Shown {
    /// A query of the page for this stretch up to `until`, with a box over its middle.
    fn filled(&self, text: &str, until: DateTime<Utc>) -> String {
        let from = until - self.length;
        let time = |at: DateTime<Utc>| at.to_rfc3339_opts(SecondsFormat::Millis, true);
        [
            ("{from_ms}", from.timestamp_millis().to_string()),
            ("{from}", time(from)),
            ("{to}", time(until)),
            ("{before}", time(from - self.length)),
            ("{box_from}", time(from + self.length / 4)),
            ("{box_to}", time(from + self.length / 2)),
            ("{step}", self.step_s.to_string()),
            ("{slot_ms}", (self.length.num_milliseconds() / SLOTS).to_string()),
        ]
        .into_iter()
        .fold(text.to_owned(), |text, (name, value)| text.replace(name, &value))
    }
}

async fn panel(server: &Server, shown: &Shown, asks: &str, text: &str, samples: u64) -> Result<Finding> {
    let (rows, _) = server.sql(text).await?;
    let mut times = Vec::with_capacity(RUNS);
    for _ in 0..RUNS {
        times.push(ms(server.sql(text).await?.1));
    }
    let finding = Finding::new("dashboard", format!("{}: {asks}", shown.word), median(&times), "ms")
        .budget(Budget::AtMost(PANEL_MS))
        .note(format!("{} rows, from {} samples", rows.len(), readable(samples as f64)))
        .detail(json!({ "ms": times, "rows": rows.len(), "samples": samples }));
    let whole = samples >= PANEL_SAMPLES;
    Ok(if whole { finding } else { finding.only(format!("on {} samples only", readable(samples as f64))) })
}
