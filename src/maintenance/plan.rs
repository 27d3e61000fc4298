//! Which files of a table are merged with which: a function of the files and of the time, and of nothing else.
//!
//! Files go by when their rows **arrived**, not by when their calls happened: what is late arrives in a later hour, and
//! merges once with what arrived then. Each merge brings rows to a higher stage:
//!
//! | stage | of | when |
//! |---|---|---|
//! | part | ten and more files of flushes of one hour | at once |
//! | hour | what arrived in one hour | 10 minutes after its end |
//! | day | what arrived on one day; of a partition that has ended also the day run before, if the new is 5 % of all | 2 hours after its end |
//! | day | eight and more small leftovers of a partition that has ended | 2 hours after its end |
//! | month | all of a partition that is a month | 2 hours after its end |
//!
//! Invariants, whatever files there are (`bounded` in the tests):
//!
//! - **Four merges.** Rows that were merged four times are never read again: what writing a row costs is bounded by
//!   construction, at any rate of flushes and for any number of days.
//! - **No large input.** A file of half the target or more is never read.
//! - **No more than fits.** The inputs of one merge fit the memory of one: see [`Bounds`].
//! - No file is in two merges of one plan, and all files of a merge are of one partition.

use std::collections::BTreeMap;

use super::names::{HOUR, Origin, Stage};
use crate::node::Node;
use crate::storage::parquet::{MERGED_ROW_GROUP_BYTES, MERGED_ROW_GROUP_ROWS, ROW_GROUP_ROWS};
use crate::storage::table::{LiveFile, Partitioning};

const MINUTE: i64 = 60_000_000;
const DAY: i64 = 24 * HOUR;
/// How often rows may be merged.
const MOST_MERGES: u8 = 4;
/// Leftovers of a partition that has ended that are merged.
const LEFTOVERS: usize = 8;
/// After the end of an hour it is closed: a flush that began in it is over, and clocks of nodes may differ by so much.
const HOUR_CLOSES: i64 = 10 * MINUTE;
/// After the end of a day or a partition it is closed.
const DAY_CLOSES: i64 = 2 * HOUR;
/// What is new of a partition is merged with its day run if it is one part of so many of all.
const WORTH: u64 = 20;

/// Memory that a decoded row is taken to need, with its key: names as long as they may be need twice as much. Rows that
/// take more as they are stored hold sealed bytes, which need no more decoded than stored.
const ROW_BYTES: u64 = 1_024;

/// What merges are bounded by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bounds {
    /// The bytes at which a file is full, and another begun.
    pub(super) file_bytes: u64,
    /// Inputs of one merge.
    pub(super) inputs: usize,
    /// Memory for the inputs of one merge.
    pub(super) memory: u64,
    /// Flushes' files of one hour that are merged before it has ended.
    pub(super) many: usize,
}

impl Bounds {
    /// As a node's settings have them.
    pub(super) fn of(node: &Node) -> Self {
        Self { many: node.settings.small_files, ..Self::default() }
    }
}

impl Default for Bounds {
    fn default() -> Self {
        Self { file_bytes: 256 << 20, inputs: 64, memory: 192 << 20, many: 10 }
    }
}

/// Files that become one, or a few where they are more than one holds.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Merge {
    pub(super) inputs: Vec<LiveFile>,
    pub(super) partition: i32,
    pub(super) into: Origin,
}

impl Merge {
    /// Bytes to be read.
    pub(super) fn bytes(&self) -> u64 {
        self.inputs.iter().map(|file| file.data.size).sum()
    }
}

/// A live file with what its name says.
#[derive(Debug, Clone)]
struct File {
    live: LiveFile,
    origin: Origin,
}

/// Memory that reading a file takes: a row group of it, a batch of that and what holds them. Files that are no larger
/// than a row group are read whole.
pub(super) fn cost(file: &LiveFile) -> u64 {
    let rows = file.data.rows.max(1);
    // A flush has longer row groups.
    let is_flushed = Origin::of(file).stage == Stage::Flushed;
    let group = if is_flushed { ROW_GROUP_ROWS } else { MERGED_ROW_GROUP_ROWS };
    let piece = file.data.size.saturating_mul((group as u64).min(rows)) / rows;
    let piece = if is_flushed { piece } else { piece.min(2 * MERGED_ROW_GROUP_BYTES as u64) };
    // Of wide rows the widest may all be in one batch.
    let wide = if row_bytes(file) > ROW_BYTES { piece } else { 0 };
    piece + wide + rows.min(super::merge::read_rows(row_bytes(file)) as u64) * ROW_BYTES + (64 << 10)
}

/// Bytes that a row of a file takes as it is stored, all in all.
pub(super) fn row_bytes(file: &LiveFile) -> u64 {
    file.data.size / file.data.rows.max(1)
}

/// The merges that are due at a time.
pub(super) fn plan(files: &[LiveFile], partitioning: Partitioning, bounds: Bounds, now: i64) -> Vec<Merge> {
    let mut partitions: BTreeMap<i32, Vec<File>> = BTreeMap::new();
    for live in files {
        partitions.entry(live.data.date).or_default().push(File { live: live.clone(), origin: Origin::of(live) });
    }
    let of = |(partition, files)| Partition::of(partition, files, partitioning, bounds, now).merges();
    partitions.into_iter().flat_map(of).collect()
}

/// The files of one partition.
struct Partition {
    partition: i32,
    partitioning: Partitioning,
    bounds: Bounds,
    now: i64,
    /// The files that may be read.
    files: Vec<File>,
    /// Bytes of all files.
    bytes: u64,
    /// Whether there is the run of a month.
    has_month: bool,
    due: Vec<Merge>,
}

impl Partition {
    fn of(partition: i32, all: Vec<File>, partitioning: Partitioning, bounds: Bounds, now: i64) -> Self {
        let bytes = bytes(&all);
        let has_month = all.iter().any(|file| file.origin.stage == Stage::Month);
        let may_be_read = |file: &File| file.origin.merges < MOST_MERGES && file.live.data.size < bounds.file_bytes / 2;
        let files = all.into_iter().filter(may_be_read).collect();
        Self { partition, partitioning, bounds, now, files, bytes, has_month, due: Vec::new() }
    }

    fn merges(mut self) -> Vec<Merge> {
        let rest = self.hours();
        let (_, end) = self.partitioning.range(self.partition);
        let is_closed = end + DAY_CLOSES <= self.now;
        // What arrives today is left until the day is over.
        let (runs, rest): (Vec<_>, Vec<_>) = rest.into_iter().partition(|file| file.origin.stage >= Stage::Day);
        let rest: Vec<_> = rest.into_iter().filter(|file| is_over(file, self.now)).collect();
        if is_closed && self.partitioning == Partitioning::Month {
            self.month(rest, runs);
        } else {
            self.days(rest, runs, is_closed);
        }
        self.due
    }

    /// Plans what is due of hours. Gives the files that are left, but for those of days of which an hour is merged now.
    fn hours(&mut self) -> Vec<File> {
        let files = std::mem::take(&mut self.files);
        let (young, mut rest): (Vec<_>, Vec<_>) = files.into_iter().partition(|file| file.origin.stage < Stage::Hour);
        let mut hours: BTreeMap<i64, Vec<File>> = BTreeMap::new();
        for file in young {
            hours.entry(file.origin.hour).or_default().push(file);
        }
        let mut busy = Vec::new();
        for (hour, files) in hours {
            let flushed = only(&files, Stage::Flushed);
            let is_closed = hour + HOUR + HOUR_CLOSES <= self.now;
            let (stage, files) = if is_closed && files.len() > 1 {
                // Too many for one merge go two ways, so that an hour comes to be one file.
                let is_too_much = fitting(files.clone(), self.bounds).len() > 1 && flushed.len() > 1;
                if is_too_much { (Stage::Part, flushed) } else { (Stage::Hour, files) }
            } else if flushed.len() >= self.bounds.many {
                (Stage::Part, flushed)
            } else {
                rest.extend(files);
                continue;
            };
            let before = self.due.len();
            self.put(stage, files.clone());
            if self.due.len() > before {
                busy.push(hour.div_euclid(DAY));
            } else {
                rest.extend(files);
            }
        }
        rest.retain(|file| !busy.contains(&file.origin.hour.div_euclid(DAY)));
        rest
    }

    /// Plans what is due of days. `rest` is not in any `runs` of a day yet.
    fn days(&mut self, rest: Vec<File>, runs: Vec<File>, is_closed: bool) {
        let is_worth_it = bytes(&rest).saturating_mul(WORTH) >= self.bytes;
        if is_closed && !rest.is_empty() && !runs.is_empty() && is_worth_it {
            self.put(Stage::Day, rest.into_iter().chain(runs).collect());
            return;
        }
        let mut arrived: BTreeMap<i64, Vec<File>> = BTreeMap::new();
        for file in rest {
            arrived.entry(file.origin.hour.div_euclid(DAY)).or_default().push(file);
        }
        let (several, single): (Vec<_>, Vec<_>) = arrived.into_values().partition(|files| files.len() > 1);
        let leftovers = if several.is_empty() && is_closed {
            small(single.into_iter().flatten().chain(runs).collect())
        } else {
            Vec::new()
        };
        several.into_iter().for_each(|files| self.put(Stage::Day, files));
        if leftovers.len() >= LEFTOVERS {
            self.put(Stage::Day, leftovers);
        }
    }

    /// Plans what is due of a month that has ended.
    fn month(&mut self, rest: Vec<File>, runs: Vec<File>) {
        let files: Vec<_> = rest.into_iter().chain(runs).collect();
        let new = files.iter().filter(|file| file.origin.stage < Stage::Month).count();
        if !self.has_month {
            self.put(Stage::Month, files);
        } else if new >= LEFTOVERS {
            self.put(Stage::Month, small(files));
        }
    }

    fn put(&mut self, stage: Stage, files: Vec<File>) {
        let groups = fitting(files, self.bounds);
        self.due.extend(groups.into_iter().map(|files| merge(self.partition, stage, files)));
    }
}

/// Whether the day is over on which a file's rows arrived.
fn is_over(file: &File, now: i64) -> bool {
    (file.origin.hour.div_euclid(DAY) + 1) * DAY + DAY_CLOSES <= now
}

fn only(files: &[File], stage: Stage) -> Vec<File> {
    files.iter().filter(|file| file.origin.stage == stage).cloned().collect()
}

fn bytes(files: &[File]) -> u64 {
    files.iter().map(|file| file.live.data.size).sum()
}

/// The files but for those that are large beside all that are smaller.
fn small(mut files: Vec<File>) -> Vec<File> {
    files.sort_by_key(|file| file.live.data.size);
    let mut sum = 0_u64;
    let fits = files.iter().take_while(|file| {
        let fits = sum == 0 || file.live.data.size <= sum.saturating_mul(WORTH);
        sum += file.live.data.size;
        fits
    });
    let count = fits.count();
    files.truncate(count);
    files
}

/// The files in groups of which each fits the memory of one merge, by the order in which they arrived. Groups of one
/// are left out.
fn fitting(mut files: Vec<File>, bounds: Bounds) -> Vec<Vec<File>> {
    files.sort_by(|a, b| (a.origin.hour, &a.live.name).cmp(&(b.origin.hour, &b.live.name)));
    let (mut groups, mut group, mut memory) = (Vec::new(), Vec::new(), 0);
    for file in files {
        let cost = cost(&file.live);
        if group.len() >= bounds.inputs || memory + cost > bounds.memory {
            groups.push(std::mem::take(&mut group));
            memory = 0;
        }
        memory += cost;
        group.push(file);
    }
    groups.push(group);
    groups.retain(|group: &Vec<File>| group.len() > 1);
    groups
}

fn merge(partition: i32, stage: Stage, files: Vec<File>) -> Merge {
    let merges = files.iter().map(|file| file.origin.merges).max().unwrap_or(0) + 1;
    let hour = files.iter().map(|file| file.origin.hour).max().unwrap_or(0);
    let inputs = files.into_iter().map(|file| file.live).collect();
    Merge { inputs, partition, into: Origin { stage, merges, hour } }
}
