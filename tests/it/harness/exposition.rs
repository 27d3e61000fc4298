//! Prometheus' text format, read back strictly.

use std::collections::BTreeMap;

/// The series of one scrape, in their order.
#[derive(Debug, Clone)]
pub(crate) struct Exposition {
    series: Vec<(String, BTreeMap<String, String>, f64)>,
}

impl Exposition {
    /// Reads a scrape; fails the test at the first line that is not in the format.
    pub(crate) fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        Self { series: lines.map(|line| series(line).unwrap_or_else(|| panic!("no series: {line}"))).collect() }
    }

    /// The values of a family, one for each combination of the values of `by`, added up over the other labels.
    pub(crate) fn sum_by(&self, family: &str, by: &[&str]) -> BTreeMap<Vec<String>, f64> {
        let mut sums = BTreeMap::new();
        for (name, labels, value) in &self.series {
            if name == family {
                let group = by.iter().map(|label| labels.get(*label).cloned().unwrap_or_default()).collect::<Vec<_>>();
                *sums.entry(group).or_insert(0.0) += value;
            }
        }
        sums
    }

    /// A family added up over all its series.
    pub(crate) fn total(&self, family: &str) -> f64 {
        self.sum_by(family, &[]).values().sum()
    }

    /// Asserts that no counter of an earlier scrape has gone down or is missing.
    #[track_caller]
    pub(crate) fn assert_not_below(&self, earlier: &Self, what: &str) {
        let now = self.counters();
        for (series, before) in earlier.counters() {
            let value = now.get(&series).copied().unwrap_or_else(|| panic!("{what}: {series} is gone"));
            assert!(value >= before, "{what}: {series} fell from {before} to {value}");
        }
    }

    /// Each series of every counter family, histograms' counters too.
    pub(crate) fn counters(&self) -> BTreeMap<String, f64> {
        let counts = |name: &str| ["_total", "_count", "_sum", "_bucket"].iter().any(|end| name.ends_with(end));
        let series = self.series.iter().filter(|(name, _, _)| counts(name));
        series.map(|(name, labels, value)| (format!("{name}{labels:?}"), *value)).collect()
    }
}

fn series(line: &str) -> Option<(String, BTreeMap<String, String>, f64)> {
    let (head, value) = line.rsplit_once(' ')?;
    let value = value.parse().ok()?;
    let Some((name, rest)) = head.split_once('{') else {
        return Some((head.to_owned(), BTreeMap::new(), value));
    };
    let mut labels = BTreeMap::new();
    let mut rest = rest;
    while let Some((label, tail)) = rest.split_once("=\"") {
        let mut text = String::new();
        let mut chars = tail.char_indices();
        let end = loop {
            match chars.next()? {
                (at, '"') => break at + 1,
                (_, '\\') => text.push(match chars.next()?.1 {
                    'n' => '\n',
                    other => other,
                }),
                (_, other) => text.push(other),
            }
        };
        labels.insert(label.trim_start_matches(',').to_owned(), text);
        rest = &tail[end..];
    }
    (rest == "}").then(|| (name.to_owned(), labels, value))
}
