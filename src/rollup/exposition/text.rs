//! The two text formats: Prometheus' 0.0.4 and OpenMetrics 1.0.
//!
//! They differ in little: OpenMetrics names a counter's family without `_total`, writes the bounds of buckets as `1.0`
//! where the older one has `1`, has when a series began and exemplars, and ends with `# EOF`.

use super::{
    BUCKET_EXPONENTS, CALLS, DENIALS, DURATION, ERRORS, Exemplar, Family, LATENCY, OVERFLOWED, OVERFLOWED_BY,
    QUANTILES, Scrape,
};
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
    page.counter(scrape, CALLS, |series| series.calls, |_| None);
    page.counter(scrape, ERRORS, |series| series.errors, |series| scrape.exemplars_of(series).1);
    page.latency(scrape);
    page.counter(scrape, DENIALS, |series| series.denials, |_| None);
    if scrape.shown.histogram {
        page.durations(scrape);
    }
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
        let lines = 3 + BUCKET_EXPONENTS.len() + 3 + if dialect == Dialect::OpenMetrics { 4 } else { 0 };
        let series = scrape.totals.shown().map(|s| (s.labels.text.len() + NAME_AND_NUMBER) * lines);
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

    fn counter<'a>(
        &mut self,
        scrape: &Scrape<'a>,
        family: Family,
        value: impl Fn(&Series) -> u64,
        exemplar: impl Fn(&Series) -> Option<&'a Exemplar>,
    ) {
        let is_open = self.dialect == Dialect::OpenMetrics;
        self.header(family, if is_open { "" } else { "_total" }, "counter");
        let [start, created] = ["total", "created"].map(|part| format!("{}_{part}{{", family.name));
        for series in scrape.totals.shown() {
            self.line_start(&start, &series.labels);
            self.put("} ");
            let exemplar = if is_open { exemplar(series) } else { None };
            self.integer_of(value(series), exemplar.map(|exemplar| (exemplar, 1.0)));
            self.created(scrape, &created, series);
        }
    }

    /// When a series began, where that is shown and known.
    fn created(&mut self, scrape: &Scrape<'_>, start: &str, series: &Series) {
        if self.dialect == Dialect::OpenMetrics && scrape.shown.created && series.created > 0 {
            self.line_start(start, &series.labels);
            self.put("} ");
            self.seconds(series.created);
            self.out.push(b'\n');
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
        let [bucket, sum, count, created] =
            ["bucket", "sum", "count", "created"].map(|part| format!("{}_{part}{{", DURATION.name));
        let ends = super::bucket_bounds().map(|bound| match self.dialect {
            Dialect::Text004 => format!(",le=\"{bound}\"}} "),
            Dialect::OpenMetrics => format!(",le=\"{bound:?}\"}} "),
        });
        let mut start = String::new();
        for series in scrape.totals.shown() {
            start.clear();
            start.push_str(&bucket);
            start.push_str(&series.labels.text);
            let counts = series.latency.cumulative(BUCKET_EXPONENTS);
            let is_open = self.dialect == Dialect::OpenMetrics;
            let exemplar = if is_open { scrape.exemplars_of(series).0 } else { None };
            let exemplar = exemplar.map(|exemplar| (super::bucket_of(exemplar.seconds), exemplar));
            let of = |place: usize| exemplar.filter(|(at, _)| *at == place).map(|(_, call)| (call, call.seconds));
            for (place, (end, calls)) in ends.iter().zip(counts).enumerate() {
                self.put(&start);
                self.put(end);
                self.integer_of(calls, of(place));
            }
            self.put(&start);
            self.put(",le=\"+Inf\"} ");
            self.integer_of(series.latency.count(), of(BUCKET_EXPONENTS.len()));
            self.line_start(&sum, &series.labels);
            self.put("} ");
            self.float(series.latency.sum_ms() / 1000.0);
            self.line_start(&count, &series.labels);
            self.put("} ");
            self.integer(series.latency.count());
            self.created(scrape, &created, series);
        }
    }

    fn overflowed(&mut self, scrape: &Scrape<'_>) {
        self.header(OVERFLOWED, "", "gauge");
        self.line_start(&format!("{}{{", OVERFLOWED.name), &Labels::new([("org", scrape.totals.org().as_str())]));
        self.put("} ");
        self.integer(scrape.totals.overflowed_series() as u64);
        if scrape.totals.overflowed_by().next().is_none() {
            return;
        }
        self.header(OVERFLOWED_BY, "", "gauge");
        let start = format!("{}{{", OVERFLOWED_BY.name);
        for (workspace, plugin, count) in scrape.totals.overflowed_by() {
            let org = scrape.totals.org().as_str();
            self.line_start(&start, &Labels::new([("org", org), ("workspace", workspace), ("plugin", plugin)]));
            self.put("} ");
            self.integer(count);
        }
    }

    fn line_start(&mut self, start: &str, labels: &Labels) {
        self.put(start);
        self.put(&labels.text);
    }

    /// A number and the line's end.
    fn integer(&mut self, value: u64) {
        self.integer_of(value, None);
    }

    /// A number, an exemplar of it with its own value, and the line's end.
    fn integer_of(&mut self, value: u64, exemplar: Option<(&Exemplar, f64)>) {
        self.out.extend_from_slice(self.integers.format(value).as_bytes());
        if let Some((exemplar, value)) = exemplar {
            [" # {trace_id=\"", &*exemplar.trace_id, "\"} "].iter().for_each(|part| self.put(part));
            self.out.extend_from_slice(self.floats.format_finite(value).as_bytes());
            self.out.push(b' ');
            self.seconds(exemplar.at);
        }
        self.out.push(b'\n');
    }

    /// A time after the Unix epoch, in seconds.
    fn seconds(&mut self, micros: i64) {
        self.out.extend_from_slice(self.integers.format(micros.div_euclid(1_000_000)).as_bytes());
        self.out.push(b'.');
        let fraction = format!("{:06}", micros.rem_euclid(1_000_000));
        self.put(&fraction);
    }

    /// A finite number in its shortest form, and the line's end.
    fn float(&mut self, value: f64) {
        let text = self.floats.format_finite(value);
        self.out.extend_from_slice(text.strip_suffix(".0").unwrap_or(text).as_bytes());
        self.out.push(b'\n');
    }
}
