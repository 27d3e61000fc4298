//! What clients know, held against every answer of every node.
//!
//! - A batch that was acknowledged, or seen by a read that has ended, is in every read that begins later: in the
//!   samples, in both rollups, in the counters, or in the ledger. Each row once, each batch whole, and nothing that
//!   nobody sent.
//! - A counter never falls, whichever node is asked.
//! - There is one ledger: entries chain, hash as they are stored, and are the same on every node; every stored
//!   checkpoint verifies and is of that ledger.
//! - Of the answers to one batch, one at most says that it is not a duplicate, and those asked for after it say that it
//!   is.
//! - A store that nobody tampered with stops nobody: an error is one that passes.

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use mcpg::audit::entry::Columns;
use mcpg::audit::tree::{Peaks, leaf_hash};
use mcpg::audit::{Checkpoint, Hash, Leaf, signer};
use mcpg::ingest::RowKind;
use mcpg::plane::{Ack, PlaneError};
use mcpg::query::{OrgView, TableState};
use object_store::path::Path;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::batches::Batch;
use super::disk::Disk;
use super::node::{NoAnswer, keys};
use super::rows::numbers;

/// What the reason of a read begins with that found a file unreadable.
pub(super) const UNREADABLE: &str = "unreadable:";

/// A batch that a client sent.
#[derive(Debug, Clone)]
pub(super) struct Sent {
    pub(super) org: String,
    pub(super) kind: RowKind,
    pub(super) rows: usize,
    /// Whether it was acknowledged.
    pub(super) acknowledged: bool,
    /// Whether a read has shown it.
    seen: bool,
    /// Whether an answer said that it was no duplicate.
    first: bool,
    /// Requests with it so far.
    requests: u64,
}

/// What held before a request or a read.
#[derive(Debug)]
pub(super) struct Before {
    /// Batches that must be there, and are acknowledged.
    must: BTreeSet<u64>,
    counters: BTreeMap<String, i64>,
    entries: u64,
}

/// A ledger as far as it has been seen.
#[derive(Debug, Default)]
struct Ledger {
    hashes: BTreeMap<u64, Hash>,
    /// The tree over the entries, as long as each has been seen: not where some were pruned unseen.
    peaks: Peaks,
    roots: Vec<Hash>,
    ids: BTreeMap<String, u64>,
    /// Checkpoints that cover more than has been seen.
    ahead: BTreeMap<u64, Checkpoint>,
    checked: BTreeSet<(Path, u64)>,
}

/// Checks every answer of every node.
#[derive(Debug, Default)]
pub(super) struct Checker {
    pub(super) sent: BTreeMap<u64, Sent>,
    counters: BTreeMap<(String, String), i64>,
    ledgers: BTreeMap<String, Ledger>,
    files: BTreeMap<(Path, u64), Vec<RecordBatch>>,
    /// Whether somebody has tampered with the store: then what is said must be right, and nothing need be said.
    lenient: bool,
    /// Whether ledgers are pruned on the way.
    pub(super) pruned: bool,
    pub(super) answers: u64,
}

impl Checker {
    /// Takes batches for acknowledged that were sent before, to a store that has been tampered with since.
    pub(super) fn adopt(&mut self, batches: &[Batch]) {
        self.lenient = true;
        for Batch { number, org, kind, rows, .. } in batches {
            self.send(*number, org, *kind, *rows);
            self.sent.entry(*number).and_modify(|sent| (sent.acknowledged, sent.first) = (true, true));
        }
    }

    /// Notes that a batch is about to be sent, for the first time or again. Gives what [`Checker::answered`] wants to
    /// know.
    pub(super) fn send(&mut self, batch: u64, org: &str, kind: RowKind, rows: usize) -> bool {
        let sent = self.sent.entry(batch).or_insert_with(|| Sent {
            org: org.to_owned(),
            kind,
            rows,
            acknowledged: false,
            seen: false,
            first: false,
            requests: 0,
        });
        sent.requests += 1;
        sent.acknowledged
    }

    /// Checks the answer to a batch that had been acknowledged before it was sent, or not.
    pub(super) fn answered(&mut self, batch: u64, acknowledged_before: bool, answer: &Result<Ack, NoAnswer>) {
        self.answers += 1;
        match answer {
            Ok(ack) => {
                let sent = self.sent.get_mut(&batch).unwrap();
                assert_eq!(ack.accepted, sent.rows, "batch {batch}: the answer counts other rows than were sent");
                if ack.duplicate {
                    assert!(sent.requests > 1, "batch {batch} was sent once and is called a duplicate");
                } else {
                    assert!(!acknowledged_before, "batch {batch} was acknowledged, sent again, and is called new");
                    assert!(!sent.first, "batch {batch} is called new by two answers");
                    sent.first = true;
                }
                sent.acknowledged = true;
            }
            Err(e) => self.excuse(&format!("batch {batch}"), e),
        }
    }

    /// An answer of no use, which only passing trouble may be.
    pub(super) fn excuse(&self, what: &str, answer: &NoAnswer) {
        match answer {
            NoAnswer::Killed | NoAnswer::Error(PlaneError::Busy { .. } | PlaneError::Unavailable { .. }) => {}
            NoAnswer::Error(_) if self.lenient => {}
            NoAnswer::Error(e) => panic!("{what}: a sound store, and the answer is: {e}"),
        }
    }

    pub(super) fn before(&self, org: &str) -> Before {
        let there = self.sent.iter().filter(|(_, sent)| sent.org == org && (sent.acknowledged || sent.seen));
        let counters = self.counters.range((org.to_owned(), String::new())..).take_while(|((of, _), _)| of == org);
        Before {
            must: there.map(|(batch, _)| *batch).collect(),
            counters: counters.map(|((_, series), value)| (series.clone(), *value)).collect(),
            entries: self.ledgers.get(org).map_or(0, Ledger::size),
        }
    }

    /// Checks a view. Gives how many samples it shows.
    pub(super) fn view(&mut self, disk: &Disk, who: &str, org: &str, before: &Before, view: &OrgView) -> i64 {
        self.answers += 1;
        let found = self.table(disk, &view.samples);
        let mut batches: BTreeMap<u64, BTreeSet<u32>> = BTreeMap::new();
        for (batch, row) in found.iter().flat_map(|batch| numbers(batch, "invocation_id")).flatten() {
            let fresh = batches.entry(batch).or_default().insert(row);
            assert!(fresh, "{who}: row {row} of batch {batch} is in the samples of {org} twice");
        }
        let present = batches.iter().map(|(batch, rows)| (*batch, rows.len())).collect();
        self.compare(who, org, RowKind::Sample, before, &present);
        let samples = present.values().sum::<usize>() as i64;
        for (name, table) in [("hourly", &view.hourly), ("daily", &view.daily)] {
            let calls = self.calls(disk, table);
            assert_eq!(calls, samples, "{who}: the {name} rollup of {org} counts other calls than there are samples");
        }
        self.ledger(disk, who, org, before, &view.audit);
        samples
    }

    fn compare(&mut self, who: &str, org: &str, kind: RowKind, before: &Before, present: &BTreeMap<u64, usize>) {
        for (batch, rows) in present {
            let sent =
                self.sent.get_mut(batch).unwrap_or_else(|| panic!("{who}: {org} has a batch {batch} that nobody sent"));
            assert_eq!((&*sent.org, sent.kind), (org, kind), "{who}: batch {batch} is in {org}, where it was not sent");
            assert_eq!(*rows, sent.rows, "{who}: of batch {batch} a part is missing in {org}");
            sent.seen = true;
        }
        let of_kind = |batch: &&u64| self.sent[batch].kind == kind;
        let lost: Vec<_> = before.must.iter().filter(of_kind).filter(|batch| !present.contains_key(batch)).collect();
        assert!(lost.is_empty(), "{who}: acknowledged or seen, and lost in {org}, {kind:?}: {lost:?}");
    }

    /// Checks what counters say between a view that showed at least so many samples and one that showed at most so
    /// many.
    pub(super) fn counters(
        &mut self,
        who: &str,
        org: &str,
        before: &Before,
        found: &[(String, i64)],
        (least, most): (i64, i64),
    ) {
        self.answers += 1;
        let found: BTreeMap<_, _> = found.iter().cloned().collect();
        for (series, value) in &before.counters {
            let now = found.get(series).copied().unwrap_or(0);
            assert!(now >= *value, "{who}: the counter {series} has fallen from {value} to {now}");
        }
        let sum: i64 = found.values().sum();
        assert!(
            (least..=most).contains(&sum),
            "{who}: the counters of {org} say {sum} calls, where there were {least} samples before and {most} after"
        );
        for (series, value) in found {
            let known = self.counters.entry((org.to_owned(), series)).or_default();
            *known = (*known).max(value);
        }
    }

    fn table(&mut self, disk: &Disk, table: &TableState) -> Vec<RecordBatch> {
        let mut batches = self.stored(disk, table);
        batches.extend(table.live.iter().cloned());
        batches
    }

    fn stored(&mut self, disk: &Disk, table: &TableState) -> Vec<RecordBatch> {
        let mut batches = Vec::new();
        for file in table.files.iter() {
            let (bytes, version) =
                disk.versioned(&file.path).unwrap_or_else(|| panic!("{UNREADABLE} {} is missing", file.path));
            let read = || {
                let reader =
                    ParquetRecordBatchReaderBuilder::try_new(bytes).and_then(ParquetRecordBatchReaderBuilder::build);
                let read = reader.map_err(Into::into).and_then(Iterator::collect::<Result<Vec<_>, ArrowError>>);
                read.unwrap_or_else(|e| panic!("{UNREADABLE} {}: {e}", file.path))
            };
            batches.extend_from_slice(self.files.entry((file.path.clone(), version)).or_insert_with(read));
        }
        batches
    }

    /// Calls that a rollup counts: those in its files, and one for each live sample.
    fn calls(&mut self, disk: &Disk, table: &TableState) -> i64 {
        let calls = |batch: &RecordBatch| -> i64 {
            batch.column_by_name("calls").unwrap().as_primitive::<Int64Type>().values().iter().sum()
        };
        let stored: i64 = self.stored(disk, table).iter().map(calls).sum();
        stored + table.live.iter().map(|batch| batch.num_rows() as i64).sum::<i64>()
    }

    fn ledger(&mut self, disk: &Disk, who: &str, org: &str, before: &Before, table: &TableState) {
        let batches = self.table(disk, table);
        let origin = format!("mcpg.local/orgs/{org}/audit/1");
        let ledger = self.ledgers.entry(org.to_owned()).or_default();
        if ledger.roots.is_empty() {
            ledger.roots.push(ledger.peaks.root());
        }
        let numbered = |batch: &RecordBatch| batch.column_by_name("seq").unwrap().as_primitive::<Int64Type>().clone();
        let first = batches.first().map_or(0, |batch| numbered(batch).value(0) as u64);
        assert!(first == 0 || self.pruned, "{who}: {org} begins with entry {first}, and nothing was pruned");
        let mut seq = first;
        let mut present: BTreeMap<u64, usize> = BTreeMap::new();
        for batch in &batches {
            let text = |name: &str, row| batch.column_by_name(name).unwrap().as_string::<i32>().value(row);
            let numbered = numbered(batch);
            for (number, _) in numbers(batch, "event_id").into_iter().flatten() {
                *present.entry(number).or_default() += 1;
            }
            for row in 0..batch.num_rows() {
                assert_eq!(numbered.value(row), seq as i64, "{who}: {org}: an entry is missing or there twice");
                let entry_hash: Hash = text("entry_hash", row).parse().unwrap();
                match ledger.hashes.get(&seq) {
                    Some(known) => {
                        assert_eq!(*known, entry_hash, "{who}: {org} has two entries {seq}: the ledger forks")
                    }
                    None => {
                        ledger.grow(who, org, &origin, batch, row, seq, entry_hash);
                        let id = text("event_id", row).to_owned();
                        let twice = ledger.ids.insert(id, seq);
                        assert!(twice.is_none(), "{who}: {org} has an event as entry {twice:?} and as {seq}");
                    }
                }
                seq += 1;
            }
        }
        if batches.is_empty() && self.pruned {
            return;
        }
        assert!(seq >= before.entries, "{who}: {org} had {} entries and has {seq}", before.entries);
        if first == 0 {
            self.compare(who, org, RowKind::Event, before, &present);
        }
    }

    /// Checks an org's stored checkpoints. Gives how many entries have been seen, and how many the newest checkpoint
    /// covers.
    pub(super) fn checkpoints(&mut self, disk: &Disk, org: &str) -> (u64, u64) {
        let origin = format!("mcpg.local/orgs/{org}/audit/1");
        let ledger = self.ledgers.entry(org.to_owned()).or_default();
        let folder = Path::from(format!("orgs/{org}/audit/checkpoints"));
        let newest = Path::from(format!("orgs/{org}/audit/checkpoint"));
        let mut covered = 0;
        for path in disk.list(Some(&folder), None).into_iter().map(|meta| meta.location).chain([newest]) {
            let Some((bytes, version)) = disk.versioned(&path) else { continue };
            if let Some(name) = path.filename().and_then(|name| name.parse::<u64>().ok()) {
                covered = covered.max(name);
            }
            if ledger.checked.insert((path.clone(), version)) {
                let note = String::from_utf8_lossy(&bytes);
                let checkpoint = match signer::check(&keys(), &origin, &note) {
                    Ok(checkpoint) => checkpoint,
                    // A verifier finds it.
                    Err(_) if self.lenient => continue,
                    Err(e) => panic!("{path}: {e}"),
                };
                if let Some(other) = ledger.ahead.get(&checkpoint.size) {
                    assert_eq!(other.root, checkpoint.root, "{path}: two checkpoints of one size have two roots");
                }
                ledger.ahead.insert(checkpoint.size, checkpoint);
            }
        }
        let (seen, whole) = (ledger.size(), ledger.roots.len() as u64);
        while let Some(first) = ledger.ahead.first_entry().filter(|first| *first.key() <= seen) {
            let (size, checkpoint) = first.remove_entry();
            if size < whole {
                let root = ledger.roots[size as usize];
                assert_eq!(root, checkpoint.root, "{org}: the checkpoint of {size} entries is of another ledger");
            }
        }
        (seen, covered)
    }
}

impl Ledger {
    /// How many entries there have ever been, as far as has been seen.
    fn size(&self) -> u64 {
        self.hashes.last_key_value().map_or(0, |(seq, _)| seq + 1)
    }

    #[expect(clippy::too_many_arguments, reason = "they are one entry, and words for who shows it")]
    fn grow(
        &mut self,
        who: &str,
        org: &str,
        origin: &str,
        batch: &RecordBatch,
        row: usize,
        seq: u64,
        entry_hash: Hash,
    ) {
        let stored = batch.column_by_name("prev_hash").unwrap().as_string::<i32>().value(row);
        let before = match seq {
            0 => Some(Hash::ZERO),
            _ => self.hashes.get(&(seq - 1)).copied(),
        };
        // The one before may have been pruned unseen.
        let prev_hash = before.unwrap_or_else(|| stored.parse().unwrap());
        assert_eq!(stored, prev_hash.to_string(), "{who}: {org}: entry {seq} does not follow the one before");
        let mut canonical = Vec::new();
        Columns::of(batch).unwrap().write_canonical(row, origin, seq, &prev_hash, &mut canonical).unwrap();
        assert_eq!(Hash::of(&[&canonical]), entry_hash, "{who}: {org}: entry {seq} is another than was hashed");
        if self.roots.len() as u64 == seq + 1 {
            self.peaks.push(leaf_hash(&Leaf { seq, prev_hash, entry_hash }.bytes()));
            self.roots.push(self.peaks.root());
        }
        self.hashes.insert(seq, entry_hash);
    }
}
