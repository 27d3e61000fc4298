//! The two text formats: Prometheus' 0.0.4 and OpenMetrics 1.0.
//!
//! They differ in little: OpenMetrics names a counter's family without `_total`, writes the bounds of buckets as `1.0` where
//! the older one has `1`, and ends with `# EOF`.

use super::{BUCKET_EXPONENTS, CALLS, DENIALS, DURATION, ERRORS, Family, LATENCY, OVERFLOWED, QUANTILES, Scrape};
use crate::rollup::labels::Labels;
use crate::rollup::totals::Series;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    Text004,
    OpenMetrics,
}

/// The whole answer.
pub(super) fn render(scrape: &Scrape<'_>, dialect: Dialect) -> Vec<u8> {
    let mut page = Page::new(scrape, dialect);
    page.counter(scrape, CALLS, |series| series.latency.count());
    page.counter(scrape, ERRORS, |series| series.errors);
    page.latency(scrape);
    page.counter(scrape, DENIALS, |series| series.denials);
    page.durations(scrape);
    page.overflowed(scrape);
    if dialect == Dialect::OpenMetrics {
        page.put("# EOF\n");
    }
    page.out
}

/// An answer in the making.
struct Page {
    out: Vec<u8>,
    dialect: Dialect,
    integers: itoa::Buffer,
    floats: ryu::Buffer,
}

impl Page {
    /// An empty page with room for all that the scrape will write.
    fn new(scrape: &Scrape<'_>, dialect: Dialect) -> Self {
        // A line's name and number take about so much; a series has three counters and the histogram's lines.
        const NAME_AND_NUMBER: usize = 64;
        const LINES_OF_SERIES: usize = 3 + BUCKET_EXPONENTS.len() + 3;
        let series = scrape.totals.series().iter().map(|s| (s.labels.text.len() + NAME_AND_NUMBER) * LINES_OF_SERIES);
        let tools = scrape.totals.tools().iter().map(|t| (t.labels.text.len() + NAME_AND_NUMBER) * QUANTILES.len());
        let capacity = 4096 + series.sum::<usize>() + tools.sum::<usize>();
        Self { out: Vec::with_capacity(capacity), dialect, integers: itoa::Buffer::new(), floats: ryu::Buffer::new() }
    }

    fn put(&mut self, text: &str) {
        self.out.extend_from_slice(text.as_bytes());
    }

    fn header(&mut self, family: Family, suffix: &str, kind: &str) {
        for (word, rest) in [("HELP", family.help), ("TYPE", kind)] {
            ["# ", word, " ", family.name, suffix, " ", rest, "\n"].iter().for_each(|part| self.put(part));
        }
    }

    fn counter(&mut self, scrape: &Scrape<'_>, family: Family, value: impl Fn(&Series) -> u64) {
        let suffix = if self.dialect == Dialect::Text004 { "_total" } else { "" };
        self.header(family, suffix, "counter");
        let start = format!("{}_total{{", family.name);
        for series in scrape.totals.series() {
            self.line_start(&start, &series.labels);
            self.put("} ");
            self.integer(value(series));
        }
    }

    fn latency(&mut self, scrape: &Scrape<'_>) {
        self.header(LATENCY, "", "gauge");
        let starts = QUANTILES.map(|(_, label)| format!("{}{{quantile=\"{label}\",", LATENCY.name));
        scrape.for_each_latency(|tool, quantiles| {
            for (start, ms) in starts.iter().zip(quantiles) {
                self.line_start(start, &tool.labels);
                self.put("} ");
                self.float(ms);
            }
        });
    }

    fn durations(&mut self, scrape: &Scrape<'_>) {
        self.header(DURATION, "", "histogram");
        let [bucket, sum, count] = ["bucket", "sum", "count"].map(|part| format!("{}_{part}{{", DURATION.name));
        let ends = super::bucket_bounds().map(|bound| match self.dialect {
            Dialect::Text004 => format!(",le=\"{bound}\"}} "),
            Dialect::OpenMetrics => format!(",le=\"{bound:?}\"}} "),
        });
        let mut start = String::new();
        for series in scrape.totals.series() {
            start.clear();
            start.push_str(&bucket);
            start.push_str(&series.labels.text);
            let counts = series.latency.cumulative(BUCKET_EXPONENTS);
            for (end, calls) in ends.iter().zip(counts) {
                self.put(&start);
                self.put(end);
                self.integer(calls);
            }
            self.put(&start);
            self.put(",le=\"+Inf\"} ");
            self.integer(series.latency.count());
            self.line_start(&sum, &series.labels);
            self.put("} ");
            self.float(series.latency.sum_ms() / 1000.0);
            self.line_start(&count, &series.labels);
            self.put("} ");
            self.integer(series.latency.count());
        }
    }

    fn overflowed(&mut self, scrape: &Scrape<'_>) {
        self.header(OVERFLOWED, "", "gauge");
        self.line_start(&format!("{}{{", OVERFLOWED.name), &Labels::new([("org", scrape.totals.org().as_str())]));
        self.put("} ");
        self.integer(scrape.totals.overflowed_series() as u64);
    }

    fn line_start(&mut self, start: &str, labels: &Labels) {
        self.put(start);
        self.put(&labels.text);
    }

    /// A number and the line's end.
    fn integer(&mut self, value: u64) {
        self.out.extend_from_slice(self.integers.format(value).as_bytes());
        self.out.push(b'\n');
    }

    /// A finite number in its shortest form, and the line's end.
    fn float(&mut self, value: f64) {
        let text = self.floats.format_finite(value);
        self.out.extend_from_slice(text.strip_suffix(".0").unwrap_or(text).as_bytes());
        self.out.push(b'\n');
    }
}
