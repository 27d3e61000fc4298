//! What a scrape answers: the running totals in the three formats that Prometheus and its kin read.
//!
//! | family | kind | of |
//! |---|---|---|
//! | `mcpg_tool_calls_total` | counter | each (workspace, plugin, tool): every call |
//! | `mcpg_tool_errors_total` | counter | the same: calls that failed; a denied call is no error |
//! | `mcpg_tool_latency_ms` | gauge | each (plugin, tool): quantiles of dispatched calls of the open window and the one before it together |
//! | `mcpg_tool_denials_total` | counter | as calls: calls that policy or a quota did not allow |
//! | `mcpg_tool_duration_seconds` | histogram | as calls: durations of dispatched calls, since a denied one ran nothing |
//! | `mcpg_metrics_series_overflowed` | gauge | the org: series past the cap, folded into one |
//!
//! Every family that is shown is always there, with or without series. The classic buckets of the histogram end at
//! powers of two seconds, which are bounds of our own buckets, so their counts are exact. The protobuf format carries
//! those and the native histogram of schema 6, bucket for bucket as it is held.
//!
//! OpenMetrics has with each counter and histogram when it began (`_created`), and after a line, the exemplar that
//! belongs to it: of a histogram the line of the bucket that the call fell into, of the counter of errors a call that
//! failed. The protobuf format has the same in fields of its own.
//!
//! A scrape costs what there are of series, whatever the number of samples. It makes no copy of the totals: label texts
//! were put into form when the series was first seen.
//!
//! Sources: the Prometheus text format 0.0.4, OpenMetrics 1.0, `io/prometheus/client/metrics.proto` of Prometheus'
//! client model.

mod negotiation;
mod protobuf;
mod text;

use bytes::Bytes;

use super::exemplars::{Exemplar, Exemplars};
use super::totals::{RunningTotals, Series, Tool};
use super::{Granularity, Histogram};
use text::Dialect;

/// A format of exposition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// The text format 0.0.4.
    Text004,
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Delimited `io.prometheus.client.MetricFamily` messages, with native histograms.
    Protobuf,
}

impl Format {
    /// The `Content-Type` of an answer in this format.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Text004 => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Protobuf => {
                "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"
            }
        }
    }
}

/// What a scrape shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shown {
    /// The histogram, which is two thirds of a text: scrapers that bound what they read do without.
    pub histogram: bool,
    /// In OpenMetrics, `_created` of each counter and histogram: who keeps these as series may do without.
    pub created: bool,
}

impl Shown {
    /// All there is.
    pub const ALL: Self = Self { histogram: true, created: true };
}

/// The answer to a scrape at `now`, in microseconds since the Unix epoch; `granularity` says of which windows the
/// latency gauges are.
pub fn render(totals: &RunningTotals, granularity: Granularity, now: i64, format: Format) -> Bytes {
    render_shown(totals, None, granularity, now, format, Shown::ALL)
}

/// The same with what is to be shown alone, and with the exemplars of the node that is asked.
pub fn render_shown(
    totals: &RunningTotals,
    exemplars: Option<&Exemplars>,
    granularity: Granularity,
    now: i64,
    format: Format,
    shown: Shown,
) -> Bytes {
    let scrape = Scrape { totals, exemplars, granularity, now, shown };
    Bytes::from(match format {
        Format::Text004 => text::render(&scrape, Dialect::Text004),
        Format::OpenMetrics => text::render(&scrape, Dialect::OpenMetrics),
        Format::Protobuf => protobuf::render(&scrape),
    })
}

/// The name of a family and what is said of it.
#[derive(Debug, Clone, Copy)]
struct Family {
    /// Without the suffix `_total` that a counter's samples have.
    name: &'static str,
    help: &'static str,
}

const CALLS: Family = Family { name: "mcpg_tool_calls", help: "Total tool invocations" };
const ERRORS: Family = Family { name: "mcpg_tool_errors", help: "Total tool errors" };
const LATENCY: Family = Family { name: "mcpg_tool_latency_ms", help: "Tool latency quantiles" };
const DENIALS: Family = Family { name: "mcpg_tool_denials", help: "Total tool invocations denied by policy or quota" };
const DURATION: Family = Family { name: "mcpg_tool_duration_seconds", help: "Tool invocation durations" };
const OVERFLOWED: Family = Family {
    name: "mcpg_metrics_series_overflowed",
    help: "Series past the cap, counted together under plugin and tool __other__",
};

const OVERFLOWED_BY: Family = Family {
    name: "mcpg_metrics_series_overflowed_by_plugin",
    help: "Whose the series past the cap were; those of all but the first 32 plugins under __other__",
};

/// The quantiles of the latency gauge, and their label.
const QUANTILES: [(f64, &str); 3] = [(0.5, "0.5"), (0.95, "0.95"), (0.99, "0.99")];

/// The classic buckets end at 2 to these powers seconds: 4 ms, 16 ms, 63 ms, 125 ms, 250 ms, 500 ms, 1 s, 4 s, 16 s, 64
/// s.
const BUCKET_EXPONENTS: [i8; 10] = [-8, -6, -4, -3, -2, -1, 0, 2, 4, 6];

/// The upper bounds of the classic buckets, in seconds.
fn bucket_bounds() -> [f64; BUCKET_EXPONENTS.len()] {
    BUCKET_EXPONENTS.map(|exponent| f64::exp2(exponent.into()))
}

/// The classic bucket that so many seconds fall into: its place among the bounds, or their number for the one without a
/// bound.
fn bucket_of(seconds: f64) -> usize {
    let bounds = bucket_bounds();
    bounds.iter().position(|bound| seconds <= *bound).unwrap_or(bounds.len())
}

/// What one scrape shows.
struct Scrape<'a> {
    totals: &'a RunningTotals,
    exemplars: Option<&'a Exemplars>,
    granularity: Granularity,
    now: i64,
    shown: Shown,
}

impl<'a> Scrape<'a> {
    /// The slow and the failed call of a series, as far as there are any.
    fn exemplars_of(&self, series: &Series) -> (Option<&'a Exemplar>, Option<&'a Exemplar>) {
        self.exemplars.map_or((None, None), |all| all.of(self.totals.name_of(series), self.now))
    }

    /// Calls `f` with each tool that had calls in the windows shown, and with its quantiles in milliseconds.
    fn for_each_latency(&self, mut f: impl FnMut(&'a Tool, [f64; QUANTILES.len()])) {
        let mut merged = Histogram::new();
        for tool in self.totals.tools() {
            let mut windows = tool.windows.shown(self.granularity, self.now);
            let (Some(first), second) = (windows.next(), windows.next()) else { continue };
            let latency = match second {
                None => first,
                Some(second) => {
                    merged.clear();
                    merged.merge(first);
                    merged.merge(second);
                    &merged
                }
            };
            let quantiles = QUANTILES.map(|(q, _)| latency.quantile(q));
            if let [Some(median), Some(p95), Some(p99)] = quantiles {
                f(tool, [median, p95, p99]);
            }
        }
    }
}

#[cfg(test)]
mod tests;
