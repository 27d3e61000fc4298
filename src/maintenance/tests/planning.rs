//! The plan alone: years of files that are not there.

use object_store::path::Path;
use proptest::prelude::*;
use uuid::Uuid;

use super::super::names::{HOUR, Origin, Stage};
use super::super::plan::{Bounds, Merge, cost, plan};
use super::{BEGAN, DAY};
use crate::storage::table::{DataFile, LiveFile, Partitioning};

const MINUTE: i64 = 60_000_000;

/// Files that are written, merged and counted, and lie nowhere.
struct Shelf {
    partitioning: Partitioning,
    files: Vec<LiveFile>,
    ids: u128,
    written: u64,
    flushed: u64,
}

impl Shelf {
    fn new(partitioning: Partitioning) -> Self {
        Self { partitioning, files: Vec::new(), ids: 0, written: 0, flushed: 0 }
    }

    fn put(&mut self, partition: i32, name: &str, rows: u64, size: u64, added_at: i64) {
        let name = self.partitioning.place(partition, name);
        let data = DataFile {
            path: Path::from(name.clone()),
            size,
            rows,
            date: partition,
            time_range: None,
            seq_range: None,
            id_range: None,
        };
        self.files.push(LiveFile { name, data, added_at });
        self.written += size;
    }

    fn id(&mut self) -> Uuid {
        self.ids += 1;
        Uuid::from_u128(self.ids)
    }

    /// A flush of rows of a day.
    fn flush(&mut self, day: i64, rows: u64, bytes: u64, now: i64) {
        let partition = self.partitioning.partition_of((day / DAY) as i32);
        let id = self.id();
        let name = format!("{:020}-{}.parquet", self.ids, id.simple());
        self.put(partition, &name, rows, bytes, now);
        self.flushed += bytes;
    }

    /// Does what is due; what is merged has the bytes of its inputs.
    fn maintain(&mut self, bounds: Bounds, now: i64) {
        loop {
            let due = plan(&self.files, self.partitioning, bounds, now);
            if due.is_empty() {
                return;
            }
            for merge in due {
                self.check(&merge, bounds);
                self.files.retain(|file| !merge.inputs.iter().any(|input| input.name == file.name));
                let (mut rows, mut bytes) =
                    (merge.inputs.iter().map(|file| file.data.rows).sum::<u64>(), merge.bytes());
                // A file that is full is ended, and another begun.
                while bytes > 0 {
                    let size = bytes.min(bounds.file_bytes);
                    let of = if size == bytes { rows } else { rows * size / bytes };
                    let id = self.id();
                    self.put(merge.partition, &merge.into.name(id), of, size, now);
                    (rows, bytes) = (rows - of, bytes - size);
                }
            }
        }
    }

    fn check(&self, merge: &Merge, bounds: Bounds) {
        assert!(merge.inputs.len() > 1 && merge.inputs.len() <= bounds.inputs, "{} inputs", merge.inputs.len());
        assert!(merge.into.merges <= 4, "{:?}", merge.into);
        assert!(merge.inputs.iter().map(cost).sum::<u64>() <= bounds.memory);
        for input in &merge.inputs {
            assert!(self.files.iter().any(|file| file.name == input.name), "{} is in two merges", input.name);
            assert_eq!(input.data.date, merge.partition);
            assert!(input.data.size < bounds.file_bytes / 2);
            assert!(Origin::of(input).merges < merge.into.merges);
        }
    }

    fn of(&self, partition: i32) -> usize {
        self.files.iter().filter(|file| file.data.date == partition).count()
    }
}

#[test]
fn a_week_of_flushes_every_ten_seconds_leaves_few_files_a_day() {
    let mut shelf = Shelf::new(Partitioning::Day);
    let (mut now, mut most) = (BEGAN, 0);
    for day in 0..7 {
        while now < BEGAN + (day + 1) * DAY {
            shelf.flush(now, 1_000, 60_000, now);
            now += 10_000_000;
            if now % MINUTE == 0 {
                shelf.maintain(Bounds::default(), now);
                most = most.max(shelf.of((BEGAN / DAY + day) as i32));
            }
        }
    }
    shelf.maintain(Bounds::default(), now + 3 * HOUR);
    for day in 0..7 {
        let count = shelf.of((BEGAN / DAY + day) as i32);
        assert!(count <= 12, "{count} files of day {day}, three hours after the end of the last");
    }
    assert!(most < 80, "{most} files of a day while it lasts");
    let amplification = shelf.written as f64 / shelf.flushed as f64;
    assert!(amplification < 4.5, "each byte was written {amplification} times");
}

#[test]
fn late_rows_are_merged_with_what_arrived_with_them_and_not_with_the_whole_day() {
    let mut shelf = Shelf::new(Partitioning::Day);
    for hour in 0..24 {
        shelf.flush(BEGAN, 100_000, 6_000_000, BEGAN + hour * HOUR);
    }
    let end = BEGAN + DAY + 3 * HOUR;
    shelf.maintain(Bounds::default(), end);
    assert_eq!(shelf.of((BEGAN / DAY) as i32), 1);
    // A few each hour for two days, long after.
    let late = BEGAN + 5 * DAY;
    for minutes in 0..2 * 24 * 6 {
        let now = late + minutes * 10 * MINUTE;
        shelf.flush(BEGAN, 10, 3_000, now);
        shelf.maintain(Bounds::default(), now);
    }
    shelf.maintain(Bounds::default(), late + 3 * DAY);
    let count = shelf.of((BEGAN / DAY) as i32);
    assert!(count <= 4, "{count} files");
    let whole = shelf.files.iter().filter(|file| file.data.size > 100_000_000).count();
    assert_eq!(whole, 1, "the run of the day is as it was");
}

#[test]
fn a_backlog_of_two_days_is_merged_in_bounded_pieces() {
    let mut shelf = Shelf::new(Partitioning::Day);
    for flush in 0..2 * 8_640 {
        let now = BEGAN + flush * 10_000_000;
        shelf.flush(now, 500, 30_000, now);
    }
    shelf.maintain(Bounds::default(), BEGAN + 4 * DAY);
    assert_eq!((shelf.of((BEGAN / DAY) as i32), shelf.of((BEGAN / DAY + 1) as i32)), (1, 1));
}

#[test]
fn daily_rollups_of_a_year_are_a_file_a_month() {
    let mut shelf = Shelf::new(Partitioning::Month);
    for day in 0..365 {
        for hour in 0..24 {
            let now = BEGAN + day * DAY + hour * HOUR;
            shelf.flush(now, 50, 20_000, now);
            shelf.maintain(Bounds::default(), now);
        }
    }
    let now = BEGAN + 400 * DAY;
    shelf.maintain(Bounds::default(), now);
    let mut months: Vec<_> = shelf.files.iter().map(|file| file.data.date).collect();
    let files = months.len();
    months.dedup();
    assert_eq!(months.len(), files, "one each: {:?}", shelf.files.iter().map(|file| &file.name).collect::<Vec<_>>());
    assert!(shelf.files.iter().all(|file| Origin::of(file).stage >= Stage::Day));
}

/// Orgs of all kinds at the default flush interval: some that call all the time, at rates that are a hundred times
/// apart, and many that call now and then.
#[test]
fn a_week_of_fifty_orgs_leaves_at_most_twelve_files_of_an_org_and_day() {
    let every = |org: i64| if org < 8 { 10_000_000 } else { (org - 7) * 3 * MINUTE };
    for org in 0..50 {
        let (mut shelf, mut now) = (Shelf::new(Partitioning::Day), BEGAN);
        // Up to a hundred samples a second: a day of more is more than a few files of the target's size.
        let rows = if org < 8 { 10 << org } else { 1 + org as u64 % 7 };
        let mut next = BEGAN;
        for day in 0..7 {
            while now < BEGAN + (day + 1) * DAY {
                if now >= next {
                    shelf.flush(now, rows, 4_000 + rows * 57, now);
                    next += every(org);
                }
                now += 10_000_000;
                if now % (20 * MINUTE) == 0 {
                    shelf.maintain(Bounds::default(), now);
                }
            }
        }
        shelf.maintain(Bounds::default(), now + 3 * HOUR);
        for day in 0..7 {
            let count = shelf.of((BEGAN / DAY + day) as i32);
            assert!(count <= 12, "org {org}: {count} files of day {day}, three hours after the end of the last");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// Whatever arrives when, and of which day: every merge is within its bounds, no row is merged more than four
    /// times, and nothing that could be merged for ever is left in pieces.
    #[test]
    fn bounded(
        arrivals in prop::collection::vec((0i64..6 * 24 * 60, 0i64..8, 1u64..400_000, 1u64..40), 1..300),
        // Rows of samples, or wide ones, as those of sealed payloads are.
        wide in prop_oneof![Just(1u64), 100u64..40_000],
        by_month in any::<bool>(),
        memory in (24u64 << 20)..(192 << 20),
    ) {
        let bounds = Bounds { memory, ..Bounds::default() };
        let mut shelf = Shelf::new(if by_month { Partitioning::Month } else { Partitioning::Day });
        let mut arrivals = arrivals;
        arrivals.sort_unstable();
        let rows: u64 = arrivals.iter().map(|(_, _, rows, _)| (rows / wide).max(1)).sum();
        for (minute, age, rows, width) in arrivals {
            let now = BEGAN + minute * MINUTE;
            shelf.flush(now - age * DAY, (rows / wide).max(1), rows * width + 500, now);
            if minute % 3 == 0 {
                shelf.maintain(bounds, now);
            }
        }
        shelf.maintain(bounds, BEGAN + 90 * DAY);
        prop_assert_eq!(shelf.files.iter().map(|file| file.data.rows).sum::<u64>(), rows);
        // Each merge is checked as it is made; and the plan has come to its end.
        prop_assert!(plan(&shelf.files, shelf.partitioning, bounds, BEGAN + 90 * DAY).is_empty());
    }
}
