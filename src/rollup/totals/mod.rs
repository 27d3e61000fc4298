//! The running totals of one org: all that a scrape reads, kept current by each acknowledged batch.
//!
//! A state machine: the same digests, applied in the same order, give the same totals on every node, so it does not
//! matter which of them is scraped. Two kinds of state are in it:
//!
//! - **Series**, one for each (workspace, plugin, tool): calls, errors, denials and the latency histogram of dispatched
//!   calls since the org's first sample. They only ever grow (invariant I3): retention, compaction and restarts do not
//!   touch them. Late samples count as any others.
//! - **Windows**, for the quantile gauges: the latency of one (plugin, tool) over all workspaces in one UTC hour or
//!   day. Kept are the open window, the one before it, and one that the clock of a gateway may be ahead in; a sample of
//!   another time counts in the series alone. Which windows are kept depends on the reader's clock, but not what is in
//!   them.
//!
//! At most so many series are shown: see `cap`.

mod cap;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
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
    /// Hashes of the names that were folded, and the epoch in which each came.
    overflowed: BTreeMap<u64, u64>,
    /// How many of them were of a workspace's plugin; those of all further ones under `__other__`.
    overflowed_by: BTreeMap<(Box<str>, Box<str>), u64>,
    /// Series that are not shown.
    tombstones: usize,
    /// What of the places each plugin of each workspace has.
    shares: HashMap<(Box<str>, Box<str>), Share>,
    /// Before this time no series that is shown has been silent for long enough.
    no_silent_before: i64,
    /// Counts the marks; see [`RunningTotals::mark`].
    epoch: u64,
}

/// What of the places one plugin of one workspace has.
#[derive(Debug, Clone, Default)]
struct Share {
    /// Series that are shown.
    shown: usize,
    /// Before this time none of them has been silent for long enough.
    no_silent_before: i64,
}

/// What is counted of one (workspace, plugin, tool), since ever.
#[derive(Debug, Clone)]
pub(super) struct Series {
    workspace: Box<str>,
    /// Which of the tools.
    pub(super) tool: usize,
    pub(super) calls: u64,
    pub(super) errors: u64,
    pub(super) denials: u64,
    /// When it was first counted in, in microseconds since the Unix epoch, by the log's clock; 0 if that is not known.
    pub(super) created: i64,
    /// When it was last counted in, as `created`.
    pub(super) counted: i64,
    /// Whether it is not shown; see the module.
    pub(super) tombstone: bool,
    /// Of every dispatched call; what came from a snapshot of version 1 is of every call.
    pub(super) latency: Histogram,
    pub(super) labels: Labels,
    /// The epoch in which it was counted in last.
    changed: u64,
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
            overflowed: BTreeMap::new(),
            overflowed_by: BTreeMap::new(),
            tombstones: 0,
            shares: HashMap::new(),
            no_silent_before: 0,
            epoch: 1,
        }
    }

    /// Whose totals.
    pub fn org(&self) -> &OrgName {
        &self.org
    }

    /// Counts a batch. `now`, in microseconds since the Unix epoch, says which windows are still of interest, and when
    /// a new series began; it is the log's, so that it is the same on every node.
    pub fn apply(&mut self, digest: &Digest, now: i64) {
        let places: Vec<usize> = digest.series().map(|name| self.place_of(name, now)).collect();
        for cell in digest.cells() {
            let Some(series) = places.get(cell.series).and_then(|&place| self.series.get_mut(place)) else { continue };
            series.changed = self.epoch;
            series.counted = series.counted.max(now);
            series.calls += cell.calls;
            series.errors += cell.errors;
            series.denials += cell.denials;
            let buckets = digest.buckets(cell);
            series.latency.absorb(buckets, &cell.moments);
            // Where nothing was dispatched, no window need be kept.
            let Some(tool) = self.tools.get_mut(series.tool).filter(|_| !buckets.is_empty()) else { continue };
            for granularity in Granularity::ALL {
                let start = granularity.window_start(cell.hour);
                if let Some(window) = tool.windows.open(granularity, start, now) {
                    window.absorb(buckets, &cell.moments);
                }
            }
        }
    }

    /// Ends an epoch and gives its number: what is counted from now on has changed since, as
    /// [`RunningTotals::encode_changes`] sees it.
    pub fn mark(&mut self) -> u64 {
        let ended = self.epoch;
        self.epoch += 1;
        ended
    }

    /// Changes the cap from here on; the series there are stay.
    pub fn set_max_series(&mut self, max_series: usize) {
        self.max_series = max_series;
    }

    /// Forgets the windows that no scrape at `now` or later asks for, and frees their memory.
    pub fn expire(&mut self, now: i64) {
        self.tools.iter_mut().for_each(|tool| tool.windows.expire(now));
    }

    /// How many series are shown.
    pub fn series_count(&self) -> usize {
        self.series.len() - self.tombstones
    }

    /// How many of the series that were folded were of which plugin of which workspace; those of all but the first few
    /// under `__other__`.
    pub fn overflowed_by(&self) -> impl Iterator<Item = (&str, &str, u64)> {
        self.overflowed_by.iter().map(|((workspace, plugin), count)| (&**workspace, &**plugin, *count))
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
            + self.overflowed.len() * 2 * size_of::<u64>()
    }

    /// Every series that is shown, in order of first appearance.
    pub(super) fn shown(&self) -> impl Iterator<Item = &Series> {
        self.series.iter().filter(|series| !series.tombstone)
    }

    /// Every series, tombstones too, in order of first appearance.
    pub(super) fn series(&self) -> &[Series] {
        &self.series
    }

    /// Every (plugin, tool), in order of first appearance.
    pub(super) fn tools(&self) -> &[Tool] {
        &self.tools
    }

    /// Hashes of the names that were folded after an epoch, ascending.
    pub(super) fn overflowed_since(&self, epoch: u64) -> Vec<u64> {
        self.overflowed.iter().filter(|(_, came)| **came > epoch).map(|(hash, _)| *hash).collect()
    }

    /// Hashes of all names that were folded, ascending.
    pub(super) fn all_overflowed(&self) -> Vec<u64> {
        self.overflowed.keys().copied().collect()
    }

    /// Takes up what [`RunningTotals::overflowed_by`] gave.
    pub(super) fn restore_overflowed_by(&mut self, workspace: &str, plugin: &str, count: u64) {
        self.overflowed_by.insert((workspace.into(), plugin.into()), count);
    }

    /// Counts anew what is shown, once series have been restored.
    pub(super) fn recount(&mut self) {
        self.tombstones = self.series.iter().filter(|series| series.tombstone).count();
        self.shares.clear();
        self.no_silent_before = 0;
        for series in self.series.iter().filter(|series| !series.tombstone) {
            let name = name(&self.tools, series);
            self.shares.entry((name.workspace.into(), name.plugin.into())).or_default().shown += 1;
        }
    }

    /// As written by a version that does not say whose the folded series were.
    #[cfg(test)]
    pub(super) fn forget_overflowed_by(&mut self) {
        self.overflowed_by.clear();
    }

    /// Takes up a hash that [`RunningTotals::overflowed_since`] gave.
    pub(super) fn restore_overflowed(&mut self, hash: u64) {
        self.overflowed.entry(hash).or_insert(0);
    }

    /// Every series that was counted in after an epoch, in order of first appearance.
    pub(super) fn changed_since(&self, epoch: u64) -> impl Iterator<Item = &Series> {
        self.series.iter().filter(move |series| series.changed > epoch)
    }

    /// The series of that name, new if need be, whatever the cap; with the place of its tool.
    pub(super) fn series_or_new(&mut self, name: SeriesName<'_>) -> Option<&mut Series> {
        let place = self.find(name).unwrap_or_else(|| self.insert(name, 0));
        self.series.get_mut(place)
    }

    /// A tool by its place.
    pub(super) fn tool_at(&mut self, place: usize) -> Option<&mut Tool> {
        self.tools.get_mut(place)
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
        let place = self.insert(name, 0);
        self.series.get_mut(place)
    }

    /// The windows of every tool, in order of first appearance.
    pub(super) fn restore_windows(&mut self) -> impl Iterator<Item = &mut Windows> {
        self.tools.iter_mut().map(|tool| &mut tool.windows)
    }

    fn find(&self, sought: SeriesName<'_>) -> Option<usize> {
        let same = |&place: &usize| self.series.get(place).is_some_and(|series| self.name_of(series) == sought);
        self.series_by_name.find(self.hasher.hash_one(sought), same).copied()
    }

    fn insert(&mut self, new: SeriesName<'_>, created: i64) -> usize {
        let tool = self.tool(new.plugin, new.tool);
        let place = self.series.len();
        let org = self.org.as_str();
        self.series.push(Series {
            workspace: new.workspace.into(),
            tool,
            calls: 0,
            errors: 0,
            denials: 0,
            created,
            counted: created,
            tombstone: false,
            latency: Histogram::new(),
            changed: 0,
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
        self.share_of(place, |share| share.shown += 1);
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
