//! The running totals of one org: all that a scrape reads, kept current by each acknowledged batch.
//!
//! A state machine: the same digests, applied in the same order, give the same totals on every node, so it does not matter
//! which of them is scraped. Two kinds of state are in it:
//!
//! - **Series**, one for each (workspace, plugin, tool): calls, errors, denials and the latency histogram of dispatched calls since the
//!   org's first sample. They only ever grow (invariant I3): retention, compaction and restarts do not touch them. Late samples
//!   count as any others.
//! - **Windows**, for the quantile gauges: the latency of one (plugin, tool) over all workspaces in one UTC hour or day. Kept
//!   are the open window, the one before it, and one that the clock of a gateway may be ahead in; a sample of another time
//!   counts in the series alone. Which windows are kept depends on the reader's clock, but not what is in them.
//!
//! # The cap
//!
//! A series costs memory here and in every Prometheus that scrapes it, so at most `max_series` are shown. Once there are, the one that
//! has been silent the longest, 30 days at least by the log's clock, makes room for a new one: it becomes a **tombstone**, which keeps
//! what it has counted and is not shown. When it is counted in again it takes a place like a new one, with its old value. Where no series
//! is that silent, a sample of a new one is counted under workspace, plugin and tool `__other__`, so that there is at most one more. The
//! workspace is folded too, since there may be as many workspaces as tools. Tombstones are at most three times as many as series may be
//! shown; then none makes room any more.
//!
//! One plugin of one workspace has at most nine tenths of the places, so that names which it makes up leave some to the others (under a
//! cap of 100 all of them).
//!
//! [`RunningTotals::overflowed_series`] says how many were folded: exactly, up to `max_series` of them, which are remembered by a hash of
//! 64 bits each. [`RunningTotals::overflowed_by`] says whose they were.

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

/// Silent for this long, by the log's clock in microseconds, a series makes room for another.
const SILENT: i64 = 30 * 24 * 3_600 * 1_000_000;
/// Tombstones for each series that may be shown, at most.
const TOMBSTONES: usize = 3;
/// From this cap on, one plugin of one workspace has nine tenths of it.
const SHARED_FROM: usize = 100;
/// Plugins whose folded series are counted apart.
const NAMED_OVERFLOWS: usize = 32;

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

    /// Counts a batch. `now`, in microseconds since the Unix epoch, says which windows are still of interest, and when a new series
    /// began; it is the log's, so that it is the same on every node.
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

    /// How many of the series that were folded were of which plugin of which workspace; those of all but the first few under
    /// `__other__`.
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

    /// As a version tells of it that does not say whose the folded series were.
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

    /// Where the series of that name is counted.
    fn place_of(&mut self, name: SeriesName<'_>, now: i64) -> usize {
        let found = self.find(name);
        if let Some(place) = found
            && self.series.get(place).is_some_and(|series| !series.tombstone)
        {
            return place;
        }
        if self.has_room_for(name, now) {
            return match found {
                Some(place) => self.show(place),
                None => self.insert(name, now),
            };
        }
        self.overflow(name);
        let other = SeriesName { workspace: OTHER, plugin: OTHER, tool: OTHER };
        self.find(other).unwrap_or_else(|| self.insert(other, now))
    }

    /// Whether one more series of that name's plugin may be shown; makes a tombstone if it must.
    fn has_room_for(&mut self, name: SeriesName<'_>, now: i64) -> bool {
        let most = match self.max_series {
            few if few < SHARED_FROM => few,
            many => many - many / 10,
        };
        let share = self.shares.get(&(name.workspace.into(), name.plugin.into())).map_or(0, |share| share.shown);
        if share >= most {
            return self.entomb_the_most_silent(Some(name), now);
        }
        self.series_count() < self.max_series || self.entomb_the_most_silent(None, now)
    }

    /// Makes a tombstone of the series that has been silent the longest, of all or of those of a plugin. False if none has been for
    /// long enough, or there are too many tombstones.
    fn entomb_the_most_silent(&mut self, of: Option<SeriesName<'_>>, now: i64) -> bool {
        let key = of.map(|name| (Box::from(name.workspace), Box::from(name.plugin)));
        let known = match &key {
            Some(key) => self.shares.get(key).map_or(0, |share| share.no_silent_before),
            None => self.no_silent_before,
        };
        if now < known || self.tombstones >= self.max_series.saturating_mul(TOMBSTONES) {
            return false;
        }
        let is_of = |series: &Series| {
            let name = name(&self.tools, series);
            name.plugin != OTHER && of.is_none_or(|of| (of.workspace, of.plugin) == (name.workspace, name.plugin))
        };
        let shown = self.series.iter().enumerate().filter(|(_, series)| !series.tombstone && is_of(series));
        let Some((place, counted)) =
            shown.map(|(place, series)| (place, series.counted)).min_by_key(|(_, counted)| *counted)
        else {
            return false;
        };
        let silent_from = counted.saturating_add(SILENT);
        match key {
            Some(key) => self.shares.entry(key).or_default().no_silent_before = silent_from,
            None => self.no_silent_before = silent_from,
        }
        if now < silent_from {
            return false;
        }
        if let Some(series) = self.series.get_mut(place) {
            series.tombstone = true;
            series.changed = self.epoch;
        }
        self.tombstones += 1;
        self.share_of(place, |share| share.shown = share.shown.saturating_sub(1));
        true
    }

    /// Shows a tombstone again.
    fn show(&mut self, place: usize) -> usize {
        if let Some(series) = self.series.get_mut(place) {
            series.tombstone = false;
        }
        self.tombstones = self.tombstones.saturating_sub(1);
        self.share_of(place, |share| share.shown += 1);
        place
    }

    fn share_of(&mut self, place: usize, change: impl FnOnce(&mut Share)) {
        if let Some(series) = self.series.get(place) {
            let name = name(&self.tools, series);
            change(self.shares.entry((name.workspace.into(), name.plugin.into())).or_default());
        }
    }

    /// Notes that a series is counted under `__other__`.
    fn overflow(&mut self, name: SeriesName<'_>) {
        let hash = stable_hash(name);
        if self.overflowed.len() >= self.max_series.max(1) || self.overflowed.contains_key(&hash) {
            return;
        }
        self.overflowed.insert(hash, self.epoch);
        let key = (name.workspace.into(), name.plugin.into());
        let is_named = self.overflowed_by.len() < NAMED_OVERFLOWS || self.overflowed_by.contains_key(&key);
        let key = if is_named { key } else { (OTHER.into(), OTHER.into()) };
        *self.overflowed_by.entry(key).or_default() += 1;
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
        series.map(|(name, s)| (name.workspace, name.plugin, name.tool, s.calls, s.errors, s.denials)).collect()
    }

    #[test]
    fn a_denied_call_is_a_call_and_no_error() {
        let mut totals = new(10);
        let outcomes = ["ok", "client_error", "server_error", "timeout", "policy_denied", "quota_exceeded"];
        apply(&mut totals, 0, &outcomes.map(|outcome| Sample { outcome, ..Sample::default() }));
        assert_eq!(counts(&totals), [("prod", "github", "list_repos", 6, 3, 2)]);
    }

    #[test]
    fn latency_is_of_dispatched_calls_alone() {
        let mut totals = new(10);
        let ran = Sample { tool: "write_file", duration_ms: 3.7, ..Sample::default() };
        let denied = Sample { outcome: "policy_denied", duration_ms: 0.33, ..ran };
        let never = Sample { tool: "delete_file", outcome: "quota_exceeded", ..ran };
        apply(&mut totals, 0, &[denied, ran, denied, denied, never]);
        let series = &totals.series()[0];
        assert_eq!((series.calls, series.denials, series.latency.count()), (4, 3, 1));
        assert_eq!(series.latency.min_ms(), Some(3.7));
        let shown = |tool: usize| totals.tools()[tool].windows.shown(Granularity::Hour, 0).next();
        assert_eq!(shown(0).unwrap().quantile(0.5), Some(3.7));
        assert!(shown(1).is_none(), "nothing of it ever ran");
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

    const DAY: i64 = 24 * HOUR;

    fn of(tool: &'static str) -> Sample<'static> {
        Sample { tool, ..Sample::default() }
    }

    fn shown(totals: &RunningTotals) -> Vec<(&str, u64)> {
        totals.shown().map(|series| (totals.name_of(series).tool, series.calls)).collect()
    }

    #[test]
    fn a_series_that_is_silent_for_30_days_makes_room_and_comes_back_with_its_count() {
        let mut totals = new(2);
        apply(&mut totals, 0, &[of("a"), of("a")]);
        apply(&mut totals, DAY, &[of("b")]);
        apply(&mut totals, 30 * DAY - 1, &[of("c")]);
        assert_eq!(shown(&totals), [("a", 2), ("b", 1), (OTHER, 1)], "nothing was silent for long enough");
        apply(&mut totals, 30 * DAY, &[of("c")]);
        assert_eq!(shown(&totals), [("b", 1), (OTHER, 1), ("c", 1)], "the most silent one made room");
        let mut totals = new(2);
        apply(&mut totals, 0, &[of("a"), of("a")]);
        apply(&mut totals, DAY, &[of("b")]);
        apply(&mut totals, 30 * DAY, &[of("c")]);
        assert_eq!(shown(&totals), [("b", 1), ("c", 1)]);
        assert_eq!((totals.series_count(), totals.overflowed_series()), (2, 0));
        apply(&mut totals, 31 * DAY, &[of("a")]);
        assert_eq!(shown(&totals), [("a", 3), ("c", 1)]);
        // It all outlasts a snapshot, and changes upon one.
        let mut read = RunningTotals::decode(&totals.encode(), 2).unwrap();
        assert_eq!(read.encode(), totals.encode());
        let marked = totals.mark();
        apply(&mut totals, 61 * DAY, &[of("b")]);
        assert_eq!(shown(&totals), [("a", 3), ("b", 2)]);
        read.apply_changes(&totals.encode_changes(marked)).unwrap();
        assert_eq!((shown(&read), read.encode()), (shown(&totals), totals.encode()));
    }

    #[test]
    fn one_plugin_leaves_places_to_the_others_and_is_named() {
        let mut totals = new(100);
        let names: Vec<String> = (0..120).map(|n| format!("made_up_{n}")).collect();
        let noisy: Vec<_> = names.iter().map(|tool| Sample { plugin: "noisy", tool, ..Sample::default() }).collect();
        apply(&mut totals, 0, &noisy);
        apply(&mut totals, 0, &[Sample { plugin: "quiet", tool: "t", ..Sample::default() }]);
        let quiet: Vec<_> = totals.shown().filter(|s| totals.name_of(s).plugin == "quiet").map(|s| s.calls).collect();
        assert_eq!(quiet, [1]);
        assert_eq!(
            totals.overflowed_by().map(|(_, plugin, count)| (plugin, count)).collect::<Vec<_>>(),
            [("noisy", 30)]
        );
        assert_eq!(totals.overflowed_series(), 30);
        let read = RunningTotals::decode(&totals.encode(), 100).unwrap();
        assert_eq!(read.overflowed_by().collect::<Vec<_>>(), totals.overflowed_by().collect::<Vec<_>>());
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
