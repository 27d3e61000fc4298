//! How many series are shown, and which make room for others.
//!
//! A series costs memory here and in every Prometheus that scrapes it, so at most `max_series` are shown. Once there
//! are, the one that has been silent the longest, 30 days at least by the log's clock, makes room for a new one: it
//! becomes a **tombstone**, which keeps what it has counted and is not shown. When it is counted in again it takes a
//! place like a new one, with its old value. Where no series is that silent, a sample of a new one is counted under
//! workspace, plugin and tool `__other__`, so that there is at most one more. The workspace is folded too, since there
//! may be as many workspaces as tools. Tombstones are at most three times as many as series may be shown; then none
//! makes room any more.
//!
//! One plugin of one workspace has at most nine tenths of the places, so that names which it makes up leave some to the
//! others (under a cap of 100 all of them).
//!
//! [`RunningTotals::overflowed_series`] says how many were folded: exactly, up to `max_series` of them, which are
//! remembered by a hash of 64 bits each. [`RunningTotals::overflowed_by`] says whose they were.

use super::{OTHER, RunningTotals, Series, Share, name};
use crate::rollup::digest::SeriesName;

/// Silent for this long, by the log's clock in microseconds, a series makes room for another.
const SILENT: i64 = 30 * 24 * 3_600 * 1_000_000;
/// Tombstones for each series that may be shown, at most.
const TOMBSTONES: usize = 3;
/// From this cap on, one plugin of one workspace has nine tenths of it.
const SHARED_FROM: usize = 100;
/// Plugins whose folded series are counted apart.
const NAMED_OVERFLOWS: usize = 32;

impl RunningTotals {
    /// Where the series of that name is counted.
    pub(super) fn place_of(&mut self, name: SeriesName<'_>, now: i64) -> usize {
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

    /// Makes a tombstone of the series that has been silent the longest, of all or of those of a plugin. False if none
    /// has been for long enough, or there are too many tombstones.
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

    pub(super) fn share_of(&mut self, place: usize, change: impl FnOnce(&mut Share)) {
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
