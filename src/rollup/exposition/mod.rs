//! (to be written)
use bytes::Bytes;

use super::{Granularity, RunningTotals};

/// A format of exposition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// The text format 0.0.4.
    Text004,
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Delimited `io.prometheus.client.MetricFamily` messages.
    Protobuf,
}

impl Format {
    /// The format that an `Accept` header asks for; text 0.0.4 when it names none of ours.
    pub fn negotiate(accept: Option<&str>) -> Self {
        let _ = accept;
        Self::Text004
    }

    /// The `Content-Type` of the answer.
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

/// The answer to a scrape at `now` (microseconds since the Unix epoch).
pub fn render(totals: &RunningTotals, granularity: Granularity, now: i64, format: Format) -> Bytes {
    let _ = (totals, granularity, now, format);
    Bytes::new()
}
