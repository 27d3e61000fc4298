//! Power cuts: of what was not fsynced any part may be gone, and what was deleted may be back. Whatever comes of it,
//! the receiver is never sent two batches under one number, and stores each record once.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;
use tempfile::TempDir;
use uuid::Uuid;

use super::super::disk::{Disk, LocalDisk, SegmentFile};
use super::super::journal::{Journal, Tuning, Turn};
use super::super::quota::Quota;
use super::super::{LaneName, SentUnder, recovery};
use super::parts_on;

/// How many of a lane's batches a control plane compares with.
const REMEMBERED: usize = 16;

/// A file's bytes, now and as the last fsync left them.
#[derive(Debug, Default)]
struct Content {
    now: Vec<u8>,
    durable: Vec<u8>,
}

type Inode = Arc<Mutex<Content>>;

/// The files by name, now and as the last fsyncs left the folders. The fsync of a file makes its own entry durable too,
/// as on the usual file systems.
#[derive(Debug, Default)]
struct Files {
    now: BTreeMap<PathBuf, Inode>,
    durable: BTreeMap<PathBuf, Inode>,
}

/// A local disk that knows what of it is durable.
#[derive(Debug, Clone, Default)]
struct PowerDisk(Arc<Mutex<Files>>);

#[derive(Debug)]
struct PowerFile {
    file: Arc<dyn SegmentFile>,
    inode: Inode,
    disk: PowerDisk,
}

impl PowerDisk {
    /// A disk on which all that lies in these folders is durable.
    fn of(folders: &[PathBuf]) -> Self {
        let disk = Self::default();
        for folder in folders {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let bytes = std::fs::read(&path).unwrap();
                let inode = Arc::new(Mutex::new(Content { now: bytes.clone(), durable: bytes }));
                disk.0.lock().unwrap().now.insert(path, inode);
            }
            disk.sync_folder(folder).unwrap();
        }
        disk
    }

    /// What a power cut leaves, in another folder: where more than one thing may be left, `coin` says which.
    fn cut(&self, folder: &Path, to: &Path, mut coin: impl FnMut() -> usize) {
        let files = self.0.lock().unwrap();
        let paths: BTreeSet<_> = files.now.keys().chain(files.durable.keys()).collect();
        for path in paths {
            let left = match (files.durable.get(path), files.now.get(path)) {
                (Some(durable), Some(now)) if Arc::ptr_eq(durable, now) => Some(now),
                (durable, now) => [durable, now][coin() % 2],
            };
            let Some(inode) = left else { continue };
            let Content { now, durable } = &*inode.lock().unwrap();
            let bytes = match coin() % 3 {
                0 => durable,
                1 => now,
                _ => &now[..durable.len().min(now.len()) + coin() % (now.len().saturating_sub(durable.len()) + 1)],
            };
            let copy = to.join(path.strip_prefix(folder).unwrap());
            std::fs::write(copy, bytes).unwrap();
        }
    }
}

impl Disk for PowerDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn SegmentFile>> {
        let (file, inode) = (LocalDisk.create(path)?, Inode::default());
        self.0.lock().unwrap().now.insert(path.to_owned(), Arc::clone(&inode));
        Ok(Arc::new(PowerFile { file, inode, disk: self.clone() }))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn SegmentFile>> {
        let (file, inode) = (LocalDisk.open(path)?, Arc::clone(&self.0.lock().unwrap().now[path]));
        Ok(Arc::new(PowerFile { file, inode, disk: self.clone() }))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.0.lock().unwrap().now.remove(path);
        LocalDisk.remove(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        LocalDisk.rename(from, to)?;
        let mut files = self.0.lock().unwrap();
        let inode = files.now.remove(from).unwrap();
        files.now.insert(to.to_owned(), inode);
        Ok(())
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        let files = &mut *self.0.lock().unwrap();
        let is_there = |path: &Path| path.parent() == Some(folder);
        files.durable.retain(|path, _| !is_there(path));
        let there = files.now.iter().filter(|(path, _)| is_there(path));
        files.durable.extend(there.map(|(path, inode)| (path.clone(), Arc::clone(inode))));
        Ok(())
    }
}

impl SegmentFile for PowerFile {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let (now, at) = (&mut self.inode.lock().unwrap().now, usize::try_from(offset).unwrap());
        now.resize(now.len().max(at + bytes.len()), 0);
        now[at..at + bytes.len()].copy_from_slice(bytes);
        self.file.write_at(bytes, offset)
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        self.inode.lock().unwrap().now.resize(usize::try_from(length).unwrap(), 0);
        self.file.truncate(length)
    }

    fn sync(&self) -> io::Result<()> {
        let mut content = self.inode.lock().unwrap();
        content.durable = content.now.clone();
        let files = &mut *self.disk.0.lock().unwrap();
        if let Some((path, inode)) = files.now.iter().find(|(_, inode)| Arc::ptr_eq(inode, &self.inode)) {
            files.durable.insert(path.clone(), Arc::clone(inode));
        }
        Ok(())
    }
}

/// A control plane that compares as ours does.
#[derive(Debug, Default)]
struct Receiver {
    lanes: HashMap<Uuid, VecDeque<(u64, Vec<String>)>>,
    /// What it acknowledged last, by emitter.
    answered: HashMap<Uuid, u64>,
    stored: Vec<String>,
}

impl Receiver {
    fn take(&mut self, sent_under: SentUnder, records: &[String]) {
        let SentUnder::Number { emitter, number, after } = sent_under else { panic!("{sent_under:?}") };
        assert!(after <= self.answered.get(&emitter).copied().unwrap_or(0), "{after} was never acknowledged");
        let lane = self.lanes.entry(emitter).or_default();
        let mark = lane.back().map_or(0, |(number, _)| *number);
        if number > mark {
            lane.push_back((number, records.to_vec()));
            self.stored.extend_from_slice(records);
            if lane.len() > REMEMBERED {
                lane.pop_front();
            }
        } else {
            let same = lane.contains(&(number, records.to_vec()));
            assert!(same, "batch {number} of {emitter} cannot be compared; the last one is {mark}");
        }
    }

    fn answer(&mut self, sent_under: SentUnder) {
        let SentUnder::Number { emitter, number, .. } = sent_under else { panic!("{sent_under:?}") };
        let answered = self.answered.entry(emitter).or_default();
        *answered = number.max(*answered);
    }
}

#[derive(Debug, Clone, Copy)]
enum Answer {
    Arrives,
    /// The gateway tries again.
    IsLost,
    /// The request never got there.
    NothingWasSent,
}

#[derive(Debug, Clone)]
enum Step {
    Append,
    Sync,
    Seal,
    Deliver(Answer),
    Kill,
    PowerCut(Vec<usize>),
}

fn step() -> impl Strategy<Value = Step> {
    let answer = prop_oneof![4 => Just(Answer::Arrives), 1 => Just(Answer::IsLost), 1 => Just(Answer::NothingWasSent)];
    prop_oneof![
        6 => Just(Step::Append),
        1 => Just(Step::Sync),
        4 => Just(Step::Seal),
        5 => answer.prop_map(Step::Deliver),
        1 => Just(Step::Kill),
        2 => prop::collection::vec(0usize..1000, 8..40).prop_map(Step::PowerCut),
    ]
}

struct World {
    lane: LaneName,
    folder: TempDir,
    disk: PowerDisk,
    journal: Arc<Journal>,
    receiver: Receiver,
    appended: usize,
    /// What has to arrive.
    kept: BTreeSet<String>,
    /// What has to arrive unless the power is cut.
    hoped_for: BTreeSet<String>,
}

fn folders(folder: &Path) -> [PathBuf; 2] {
    ["samples", "audit"].map(|lane| folder.join(lane))
}

fn open(folder: &Path, lane: LaneName, disk: &PowerDisk) -> Arc<Journal> {
    let tuning = Tuning {
        segment_bytes: 400,
        window: Duration::from_secs(3600),
        sync_every: Duration::from_secs(3600),
        backlog: 1 << 20,
    };
    let (quota, turn) = (Arc::new(Quota::new(1 << 30)), Turn::default());
    let (org, parts) = ("acme".parse().unwrap(), parts_on(Arc::new(disk.clone())));
    recovery::open(folder, lane, &org, (tuning, Uuid::new_v4()), &parts, (&quota, &turn)).unwrap()
}

impl World {
    fn new(lane: LaneName) -> Self {
        let folder = tempfile::tempdir().unwrap();
        folders(folder.path()).iter().for_each(|lane| std::fs::create_dir(lane).unwrap());
        let disk = PowerDisk::default();
        let journal = open(folder.path(), lane, &disk);
        let receiver = Receiver::default();
        let (kept, hoped_for) = (BTreeSet::new(), BTreeSet::new());
        Self { lane, folder, disk, journal, receiver, appended: 0, kept, hoped_for }
    }

    fn play(&mut self, step: &Step) {
        match step {
            Step::Append => {
                self.appended += 1;
                let text = format!("record {}", self.appended);
                self.journal.append(text.as_bytes(), None).unwrap();
                self.hoped_for.insert(text);
            }
            Step::Sync => {
                self.journal.sync_all();
                self.kept.extend(self.hoped_for.iter().cloned());
            }
            Step::Seal => self.journal.seal_now(),
            Step::Deliver(answer) => self.deliver(*answer),
            Step::Kill => self.journal = open(self.folder.path(), self.lane, &self.disk),
            Step::PowerCut(coins) => {
                let mut coins = coins.iter().cycle();
                self.cut_power(|| *coins.next().unwrap());
            }
        }
    }

    fn deliver(&mut self, answer: Answer) {
        let Some(sealed) = self.journal.take_oldest() else { return };
        let batch = self.journal.read(&sealed).unwrap();
        assert_eq!(batch.damage, None);
        let text = |(_, payload): (u64, &[u8])| String::from_utf8(payload.to_vec()).unwrap();
        let records: Vec<_> = batch.records().map(text).collect();
        self.kept.extend(records.iter().cloned());
        let sent_under = self.journal.sent_under(&sealed);
        if !matches!(answer, Answer::NothingWasSent) {
            self.receiver.take(sent_under, &records);
        }
        if matches!(answer, Answer::Arrives) {
            self.receiver.answer(sent_under);
            self.journal.acknowledge(&sealed);
            self.journal.done(&sealed);
        } else {
            self.journal.put_back();
        }
    }

    fn cut_power(&mut self, coin: impl FnMut() -> usize) {
        let left = tempfile::tempdir().unwrap();
        std::fs::create_dir(left.path().join("quarantine")).unwrap();
        folders(left.path()).iter().for_each(|lane| std::fs::create_dir(lane).unwrap());
        self.disk.cut(self.folder.path(), left.path(), coin);
        self.disk = PowerDisk::of(&folders(left.path()));
        self.folder = left;
        self.journal = open(self.folder.path(), self.lane, &self.disk);
        self.hoped_for = self.kept.clone();
    }

    /// Delivers everything; then each record is stored once, and none is missing that was durable.
    fn finish(mut self) {
        self.journal.seal_now();
        while !self.journal.is_empty() {
            self.deliver(Answer::Arrives);
        }
        let count = self.receiver.stored.len();
        let stored: BTreeSet<_> = self.receiver.stored.into_iter().collect();
        assert_eq!(stored.len(), count, "each record is stored once");
        let missing: Vec<_> = self.hoped_for.difference(&stored).collect();
        assert!(missing.is_empty(), "{missing:?} are missing");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn no_number_is_sent_with_two_bodies_whatever_a_power_cut_takes_and_brings_back(
        audit in any::<bool>(),
        steps in prop::collection::vec(step(), 1..80),
    ) {
        let mut world = World::new(if audit { LaneName::Audit } else { LaneName::Samples });
        for step in &steps {
            world.play(step);
        }
        world.finish();
    }
}

/// More batches than a control plane compares with, all deleted and all deletions undone where that is possible.
#[test]
fn deleted_batches_that_a_power_cut_brings_back_are_among_the_last_that_can_be_compared() {
    let mut world = World::new(LaneName::Samples);
    for _ in 0..3 * REMEMBERED + 5 {
        for step in [Step::Append, Step::Seal, Step::Deliver(Answer::Arrives)] {
            world.play(&step);
        }
    }
    // The first choice of each two: what was durable.
    world.cut_power(|| 0);
    assert!(!world.journal.is_empty(), "some come back");
    world.finish();
}

/// A sample that was sent and not fsynced before would come back shorter, under the same number.
#[test]
fn a_batch_is_durable_before_it_is_sent() {
    let mut world = World::new(LaneName::Samples);
    for step in [Step::Append, Step::Append, Step::Seal, Step::Deliver(Answer::IsLost)] {
        world.play(&step);
    }
    world.cut_power(|| 0);
    assert_eq!(world.journal.records(), 2);
    world.finish();
}

/// The end mark that a killed process wrote is no proof that it came to the fsync after it.
#[test]
fn what_a_killed_process_left_is_made_durable_before_it_is_sent() {
    let mut world = World::new(LaneName::Samples);
    for step in [Step::Append, Step::Append, Step::Seal] {
        world.play(&step);
    }
    let sealed = world.journal.take_oldest().unwrap();
    let path = super::super::folder::segment_path(&world.folder.path().join("samples"), sealed.ordinal);
    let (file, end, _) = sealed.unsynced.clone().unwrap();
    let mut mark = Vec::new();
    super::super::segment::push_end(&mut mark, end);
    file.write_at(&mark, path.metadata().unwrap().len()).unwrap();
    for step in [Step::Kill, Step::Deliver(Answer::IsLost)] {
        world.play(&step);
    }
    world.cut_power(|| 0);
    assert_eq!(world.journal.records(), 2);
    world.finish();
}
