//! A lane against a model: whatever is done and wherever it crashes, all that was acknowledged is there once, in order.

use std::collections::VecDeque;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use tempfile::TempDir;

use super::super::folder::segment_path;
use super::super::journal::{Journal, Tuning, Turn};
use super::super::quota::Quota;
use super::super::{LaneName, SentUnder, recovery};
use super::{copy_of, parts};

#[derive(Debug, Clone)]
enum Step {
    Append(usize),
    Sync,
    Seal,
    /// Sends the oldest batch; the receiver's word arrives, or the gateway crashes before.
    Deliver {
        acknowledged: bool,
    },
    /// `kill -9`, or a power cut that takes this share of the active segment's unsynced bytes.
    Crash {
        cut: f64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0usize..60).prop_map(Step::Append),
        2 => Just(Step::Sync),
        2 => Just(Step::Seal),
        2 => any::<bool>().prop_map(|acknowledged| Step::Deliver { acknowledged }),
        1 => prop_oneof![Just(0.0), 0.0..=1.0].prop_map(|cut| Step::Crash { cut }),
    ]
}

fn open(folder: &Path, lane: LaneName) -> Arc<Journal> {
    let tuning = Tuning {
        segment_bytes: 400,
        window: Duration::from_secs(3600),
        sync_every: Duration::from_secs(3600),
        backlog: 1 << 20,
    };
    recovery::open(
        folder,
        lane,
        &"acme".parse().unwrap(),
        (tuning, uuid::Uuid::new_v4()),
        &parts(),
        (&Arc::new(Quota::new(1 << 30)), &Turn::default()),
    )
    .unwrap()
}

/// The lane under test, and what must be true of it.
struct World {
    lane: LaneName,
    folder: TempDir,
    journal: Arc<Journal>,
    /// What was appended and is not known to be delivered.
    held: VecDeque<String>,
    /// How many of them no crash may take.
    kept: usize,
    /// What the receiver stored, by what it was sent under.
    stored: Vec<(SentUnder, Vec<(u64, String)>)>,
    appended: usize,
    /// Bytes of the active segment that an fsync has covered.
    synced: u64,
}

impl World {
    fn new(lane: LaneName) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["samples", "audit"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        let journal = open(folder.path(), lane);
        let held = VecDeque::new();
        let mut world = Self { lane, folder, journal, held, kept: 0, stored: Vec::new(), appended: 0, synced: 0 };
        world.synced = world.open_bytes();
        world
    }

    fn open_path(&self, spool: &Path) -> PathBuf {
        segment_path(&spool.join(self.lane.as_str()), self.journal.active_ordinal())
    }

    fn open_bytes(&self) -> u64 {
        self.open_path(self.folder.path()).metadata().unwrap().len()
    }

    fn play(&mut self, step: &Step) {
        match step {
            Step::Append(length) => {
                let text = format!("{} {}", self.appended, "x".repeat(*length));
                self.appended += 1;
                self.journal.append(text.as_bytes(), None).unwrap();
                self.held.push_back(text);
            }
            Step::Sync => {
                self.journal.sync_active();
                self.kept = self.held.len();
                self.synced = self.open_bytes();
            }
            Step::Seal => {
                self.journal.seal_now();
                // Samples are durable a while later, but a sealed segment is not cut by this test's crashes.
                self.kept = self.held.len();
                self.synced = self.open_bytes();
            }
            Step::Deliver { acknowledged } => self.deliver(*acknowledged),
            Step::Crash { cut } => self.crash(*cut),
        }
    }

    fn deliver(&mut self, acknowledged: bool) {
        let Some(sealed) = self.journal.take_oldest() else { return };
        let batch = self.journal.read(&sealed).unwrap();
        assert_eq!(batch.damage, None);
        let records: Vec<_> =
            batch.records().map(|(number, payload)| (number, String::from_utf8(payload.to_vec()).unwrap())).collect();
        match self.stored.iter().find(|(sent_under, _)| sent_under.is(&sealed.sent_under)) {
            Some((_, before)) => assert_eq!(*before, records, "the same number always brings the same records"),
            None => self.stored.push((sealed.sent_under, records.clone())),
        }
        if acknowledged {
            self.journal.done(&sealed);
            for (_, text) in records {
                assert_eq!(self.held.pop_front(), Some(text), "in order, and none left out");
                self.kept = self.kept.saturating_sub(1);
            }
        } else {
            self.journal.put_back();
            self.crash(0.0);
        }
    }

    fn crash(&mut self, cut: f64) {
        let taken = ((self.open_bytes() - self.synced) as f64 * cut) as u64;
        let copy = copy_of(self.folder.path());
        let file = File::options().write(true).open(self.open_path(copy.path())).unwrap();
        file.set_len(file.metadata().unwrap().len() - taken).unwrap();
        self.folder = copy;
        self.journal = open(self.folder.path(), self.lane);
        self.synced = self.open_bytes();
        let found = usize::try_from(self.journal.records()).unwrap();
        assert!(found >= self.kept, "{found} of {} kept ones are there", self.kept);
        assert!(taken > 0 || found == self.held.len(), "a kill takes nothing");
        self.held.truncate(found);
        self.kept = found;
    }

    fn finish(mut self) {
        self.journal.seal_now();
        while !self.held.is_empty() {
            self.deliver(true);
        }
        assert!(self.journal.is_empty());
        let mut numbers: Vec<_> = self.stored.iter().flat_map(|(_, records)| records).map(|(n, _)| *n).collect();
        let count = numbers.len();
        assert!(numbers.is_sorted(), "batches go out in order");
        numbers.dedup();
        assert_eq!(numbers.len(), count, "no number is given twice");
        let mut texts: Vec<_> = self.stored.iter().flat_map(|(_, records)| records).map(|(_, text)| text).collect();
        texts.sort();
        texts.dedup();
        assert_eq!(texts.len(), count, "the receiver stores each record once");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn all_that_was_acknowledged_is_there_once_in_order(
        audit in any::<bool>(),
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let mut world = World::new(if audit { LaneName::Audit } else { LaneName::Samples });
        for step in &steps {
            world.play(step);
        }
        world.finish();
    }
}

#[test]
fn cut_at_every_byte_of_the_tail_it_opens_and_goes_on() {
    let mut world = World::new(LaneName::Audit);
    world.play(&Step::Append(20));
    world.play(&Step::Sync);
    for _ in 0..3 {
        world.play(&Step::Append(10));
    }
    let whole = world.open_bytes();
    for taken in 0..=whole - world.synced {
        let copy = copy_of(world.folder.path());
        File::options().write(true).open(world.open_path(copy.path())).unwrap().set_len(whole - taken).unwrap();
        let journal = open(copy.path(), LaneName::Audit);
        let found = journal.records();
        assert!((1..=4).contains(&found), "{found} records with {taken} bytes gone");
        journal.append(b"after", None).unwrap();
        journal.seal_now();
        let mut numbers = Vec::new();
        while let Some(sealed) = journal.take_oldest() {
            numbers.extend(journal.read(&sealed).unwrap().records().map(|(number, _)| number));
            journal.done(&sealed);
        }
        assert_eq!(numbers, (0..=found).collect::<Vec<_>>(), "with {taken} bytes gone");
    }
}
