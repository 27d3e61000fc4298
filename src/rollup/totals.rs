//! The running totals of one org: all that a scrape reads, kept current by each acknowledged batch.
//!
//! A state machine: the same digests, applied in the same order, give the same totals on every node, so it does not matter
//! which of them is scraped. Two kinds of state are in it:
//!
//! - **Series**, one for each (workspace, plugin, tool): calls, errors, denials and the latency histogram since the org's
//!   first sample. They only ever grow (invariant I3): retention, compaction and restarts do not touch them. Late samples
//!   count as any others.
//! - **Windows**, for the quantile gauges: the latency of one (plugin, tool) over all workspaces in one UTC hour or day. Kept
//!   are the open window, the one before it, and one that the clock of a gateway may be ahead in; a sample of another time
//!   counts in the series alone. Which windows are kept depends on the reader's clock, but not what is in them.
//!
//! # The cap
//!
//! A series costs memory here and in every Prometheus that scrapes it, so there are at most `max_series`. Once there are, a
//! sample of a new one is counted under workspace, plugin and tool `__other__`, so that there is at most one more. The
//! workspace is folded too, since there may be as many workspaces as tools. [`RunningTotals::overflowed_series`] says how many
//! were folded: exactly, up to `max_series` of them, which are remembered by a hash of 64 bits each.

use std::collections::BTreeSet;
use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};

use super::Granularity;
use super::digest::{Digest, SeriesName};
use super::histogram::Histogram;
use super::labels::Labels;
use super::windows::Windows;
use crate::model::OrgName;

/// The workspace, plugin and tool that samples past the cap are counted under.
pub(super) const OTHER: &str = "__other__";

/// The running totals of one org; see the module.
#[derive(Debug, Clone)]
pub struct RunningTotals {
    org: OrgName,
    max_series: usize,
    hasher: DefaultHashBuilder,
    series: Vec<Series>,
    series_by_name: HashTable<usize>,
    tools: Vec<Tool>,
    tools_by_name: HashTable<usize>,
    /// Hashes of the names that were folded.
    overflowed: BTreeSet<u64>,
}

/// What is counted of one (workspace, plugin, tool), since ever.
#[derive(Debug, Clone)]
pub(super) struct Series {
    workspace: Box<str>,
    /// Which of the tools.
    pub(super) tool: usize,
    pub(super) errors: u64,
    pub(super) denials: u64,
    /// Of every call: its count is the number of calls.
    pub(super) latency: Histogram,
    pub(super) labels: Labels,
}

/// The recent latency of one (plugin, tool), over all workspaces.
#[derive(Debug, Clone)]
pub(super) struct Tool {
    pub(super) plugin: Box<str>,
    pub(super) tool: Box<str>,
    pub(super) windows: Windows,
    pub(super) labels: Labels,
}

impl RunningTotals {
    /// Totals of nothing yet, of at most `max_series` series and one for all others.
    pub fn new(org: OrgName, max_series: usize) -> Self {
        Self {
            org,
            max_series,
            hasher: DefaultHashBuilder::default(),
            series: Vec::new(),
            series_by_name: HashTable::new(),
            tools: Vec::new(),
            tools_by_name: HashTable::new(),
            overflowed: BTreeSet::new(),
        }
    }

    /// Whose totals.
    pub fn org(&self) -> &OrgName {
        &self.org
    }

    /// Counts a batch. `now`, in microseconds since the Unix epoch, says which windows are still of interest.
    pub fn apply(&mut self, digest: &Digest, now: i64) {
        let places: Vec<usize> = digest.series().map(|name| self.place_of(name)).collect();
        for cell in digest.cells() {
            let Some(series) = places.get(cell.series).and_then(|&place| self.series.get_mut(place)) else { continue };
            series.errors += cell.errors;
            series.denials += cell.denials;
            let buckets = digest.buckets(cell);
            series.latency.absorb(buckets, &cell.moments);
            let Some(tool) = self.tools.get_mut(series.tool) else { continue };
            for granularity in Granularity::ALL {
                let start = granularity.window_start(cell.hour);
                if let Some(window) = tool.windows.open(granularity, start, now) {
                    window.absorb(buckets, &cell.moments);
                }
            }
        }
    }

    /// Forgets the windows that no scrape at `now` or later asks for, and frees their memory.
    pub fn expire(&mut self, now: i64) {
        self.tools.iter_mut().for_each(|tool| tool.windows.expire(now));
    }

    /// How many series there are.
    pub fn series_count(&self) -> usize {
        self.series.len()
    }

    /// How many distinct series were counted under `__other__`, up to `max_series`: if as many, there may be more.
    pub fn overflowed_series(&self) -> usize {
        self.overflowed.len()
    }

    /// Memory held, in bytes. It is added up anew at each call.
    pub fn size_bytes(&self) -> usize {
        let series = self.series.iter().map(|series| {
            size_of::<Series>() + series.workspace.len() + series.labels.heap_bytes() + series.latency.heap_bytes()
        });
        let tools = self.tools.iter().map(|tool| {
            let names = tool.plugin.len() + tool.tool.len() + tool.labels.heap_bytes();
            size_of::<Tool>() + names + tool.windows.heap_bytes()
        });
        let tables = self.series_by_name.allocation_size() + self.tools_by_name.allocation_size();
        size_of::<Self>()
            + series.sum::<usize>()
            + tools.sum::<usize>()
            + tables
            + self.overflowed.len() * size_of::<u64>()
    }

    /// Every series, in order of first appearance.
    pub(super) fn series(&self) -> &[Series] {
        &self.series
    }

    /// Every (plugin, tool), in order of first appearance.
    pub(super) fn tools(&self) -> &[Tool] {
        &self.tools
    }

    /// Hashes of the names that were folded, ascending.
    pub(super) fn overflowed(&self) -> impl ExactSizeIterator<Item = u64> {
        self.overflowed.iter().copied()
    }

    /// Takes up a hash that [`RunningTotals::overflowed`] gave.
    pub(super) fn restore_overflowed(&mut self, hash: u64) {
        self.overflowed.insert(hash);
    }

    /// A series' name.
    pub(super) fn name_of<'a>(&'a self, series: &'a Series) -> SeriesName<'a> {
        name(&self.tools, series)
    }

    /// A new series, whatever the cap; none when there is one of that name.
    pub(super) fn restore_series(&mut self, name: SeriesName<'_>) -> Option<&mut Series> {
        if self.find(name).is_some() {
            return None;
        }
        let place = self.insert(name);
        self.series.get_mut(place)
    }

    /// The windows of every tool, in order of first appearance.
    pub(super) fn restore_windows(&mut self) -> impl Iterator<Item = &mut Windows> {
        self.tools.iter_mut().map(|tool| &mut tool.windows)
    }

    /// Where the series of that name is counted.
    fn place_of(&mut self, name: SeriesName<'_>) -> usize {
        if let Some(place) = self.find(name) {
            return place;
        }
        if self.series.len() < self.max_series {
            return self.insert(name);
        }
        if self.overflowed.len() < self.max_series.max(1) {
            self.overflowed.insert(stable_hash(name));
        }
        let other = SeriesName { workspace: OTHER, plugin: OTHER, tool: OTHER };
        self.find(other).unwrap_or_else(|| self.insert(other))
    }

    fn find(&self, sought: SeriesName<'_>) -> Option<usize> {
        let same = |&place: &usize| self.series.get(place).is_some_and(|series| self.name_of(series) == sought);
        self.series_by_name.find(self.hasher.hash_one(sought), same).copied()
    }

    fn insert(&mut self, new: SeriesName<'_>) -> usize {
        let tool = self.tool(new.plugin, new.tool);
        let place = self.series.len();
        let org = self.org.as_str();
        self.series.push(Series {
            workspace: new.workspace.into(),
            tool,
            errors: 0,
            denials: 0,
            latency: Histogram::new(),
            labels: Labels::new([
                ("org", org),
                ("workspace", new.workspace),
                ("plugin", new.plugin),
                ("tool", new.tool),
            ]),
        });
        let (series, tools, hasher) = (&self.series, &self.tools, &self.hasher);
        let hash_of = |&place: &usize| series.get(place).map_or(0, |series| hasher.hash_one(name(tools, series)));
        self.series_by_name.insert_unique(self.hasher.hash_one(new), place, hash_of);
        place
    }

    /// Which tool has that name, new if need be.
    fn tool(&mut self, plugin: &str, tool: &str) -> usize {
        let same = |&place: &usize| self.tools.get(place).is_some_and(|t| (&*t.plugin, &*t.tool) == (plugin, tool));
        let hash = self.hasher.hash_one((plugin, tool));
        if let Some(&place) = self.tools_by_name.find(hash, same) {
            return place;
        }
        let place = self.tools.len();
        self.tools.push(Tool {
            plugin: plugin.into(),
            tool: tool.into(),
            windows: Windows::default(),
            labels: Labels::new([("org", self.org.as_str()), ("plugin", plugin), ("tool", tool)]),
        });
        let (tools, hasher) = (&self.tools, &self.hasher);
        let hash_of = |&place: &usize| tools.get(place).map_or(0, |t| hasher.hash_one((&*t.plugin, &*t.tool)));
        self.tools_by_name.insert_unique(hash, place, hash_of);
        place
    }
}

/// A series' name, whose plugin and tool are in `tools`.
fn name<'a>(tools: &'a [Tool], series: &'a Series) -> SeriesName<'a> {
    let (plugin, tool) = tools.get(series.tool).map_or(("", ""), |tool| (&*tool.plugin, &*tool.tool));
    SeriesName { workspace: &series.workspace, plugin, tool }
}

/// A hash of a name that is the same on every node and after every restart.
fn stable_hash(name: SeriesName<'_>) -> u64 {
    let mut hasher = blake3::Hasher::new();
    for part in [name.workspace, name.plugin, name.tool] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    let [a, b, c, d, e, f, g, h, ..] = *hasher.finalize().as_bytes();
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollup::testing::{Sample, batch};

    const HOUR: i64 = Granularity::Hour.width();

    fn new(max_series: usize) -> RunningTotals {
        RunningTotals::new("default".parse().unwrap(), max_series)
    }

    fn apply(totals: &mut RunningTotals, now: i64, samples: &[Sample<'_>]) {
        totals.apply(&Digest::of(&batch(samples)).unwrap(), now);
    }

    /// (workspace, plugin, tool, calls, errors, denials) of every series.
    fn counts(totals: &RunningTotals) -> Vec<(&str, &str, &str, u64, u64, u64)> {
        let series = totals.series().iter().map(|series| (totals.name_of(series), series));
        series
            .map(|(name, s)| (name.workspace, name.plugin, name.tool, s.latency.count(), s.errors, s.denials))
            .collect()
    }

    #[test]
    fn a_denied_call_is_a_call_and_no_error() {
        let mut totals = new(10);
        let outcomes = ["ok", "client_error", "server_error", "timeout", "policy_denied", "quota_exceeded"];
        apply(&mut totals, 0, &outcomes.map(|outcome| Sample { outcome, ..Sample::default() }));
        assert_eq!(counts(&totals), [("prod", "github", "list_repos", 6, 3, 2)]);
    }

    #[test]
    fn a_late_sample_counts_in_the_series_and_not_in_a_window_long_past() {
        let mut totals = new(10);
        let now = 100 * HOUR;
        apply(&mut totals, now, &[Sample { started_at: now - 1, ..Sample::default() }]);
        apply(&mut totals, now, &[Sample { started_at: now - 3 * HOUR, ..Sample::default() }]);
        apply(&mut totals, now, &[Sample { started_at: 0, ..Sample::default() }]);
        assert_eq!(totals.series()[0].latency.count(), 3);
        let shown = |granularity| totals.tools()[0].windows.shown(granularity, now).map(Histogram::count).sum::<u64>();
        assert_eq!((shown(Granularity::Hour), shown(Granularity::Day)), (1, 2));
    }

    #[test]
    fn the_windows_of_a_tool_are_over_all_workspaces() {
        let mut totals = new(10);
        let samples = ["prod", "test"].map(|workspace| Sample { workspace, ..Sample::default() });
        apply(&mut totals, 0, &samples);
        assert_eq!((totals.series_count(), totals.tools().len()), (2, 1));
        let latency = totals.tools()[0].windows.shown(Granularity::Hour, 0).next().unwrap();
        assert_eq!(latency.count(), 2);
    }

    #[test]
    fn past_the_cap_new_series_are_one() {
        let mut totals = new(2);
        let names: Vec<String> = (0..7).map(|i| format!("tool_{i}")).collect();
        let samples: Vec<_> = names
            .iter()
            .flat_map(|tool| ["prod", "test"].map(|w| Sample { tool, workspace: w, ..Sample::default() }))
            .collect();
        apply(&mut totals, 0, &samples);
        apply(&mut totals, 0, &samples);
        let expected = [
            ("prod", "github", "tool_0", 2, 0, 0),
            ("test", "github", "tool_0", 2, 0, 0),
            (OTHER, OTHER, OTHER, 24, 0, 0),
        ];
        assert_eq!(counts(&totals), expected);
        assert_eq!(totals.overflowed_series(), 2, "remembered no further than the cap");
    }

    #[test]
    fn a_tool_that_is_called_other_shares_the_series_past_the_cap() {
        let mut totals = new(1);
        apply(&mut totals, 0, &[Sample { workspace: OTHER, plugin: OTHER, tool: OTHER, ..Sample::default() }]);
        apply(&mut totals, 0, &[Sample::default()]);
        assert_eq!(counts(&totals), [(OTHER, OTHER, OTHER, 2, 0, 0)]);
    }

    #[test]
    fn expired_windows_give_their_memory_back_and_take_no_count_away() {
        let mut totals = new(10);
        apply(&mut totals, 0, &[Sample::default()]);
        let before = totals.size_bytes();
        totals.expire(1000 * HOUR);
        assert!(totals.size_bytes() < before);
        assert_eq!(totals.series()[0].latency.count(), 1);
    }
}
