//! Ledgers as other programs might leave them: pruned, rotated, cosigned, half merged. What the real control plane
//! writes is verified end to end in `tests/it/ledger`.

mod checkpoints;
mod removals;

use std::fs;
use std::num::NonZeroUsize;
use std::sync::Arc;

use arrow::array::{ArrayRef, StringArray, TimestampMicrosecondArray};
use arrow::record_batch::RecordBatch;
use ed25519_dalek::SigningKey;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Expected, Fault, Folder, Gap, Kind, Remembered, Sound, VerifyError, prove, verify};
use crate::audit::fixtures::{ORIGIN, events};
use crate::audit::note::{Algorithm, Note, VKey};
use crate::audit::segment::{SegmentName, SegmentWriter};
use crate::audit::{ChainHead, Checkpoint, Hash, TreeEdge, seal};
use crate::model::schema::schemas;

fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

fn vkey(seed: u8) -> VKey {
    VKey::new(ORIGIN, Algorithm::Ed25519, key(seed).verifying_key()).unwrap()
}

/// A ledger that is being made in a folder.
struct Made {
    folder: TempDir,
    head: ChainHead,
    edge: TreeEdge,
}

impl Made {
    fn new() -> Self {
        Self { folder: TempDir::new().unwrap(), head: ChainHead::default(), edge: TreeEdge::default() }
    }

    fn write(&self, path: &str, bytes: &[u8]) {
        let path = self.folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    /// A segment of these entries, tiles, and nothing signed.
    fn unsigned(&mut self, actions: &[(&str, Option<&str>)]) -> SegmentName {
        let first = self.head.size;
        self.append(&events(first, actions))
    }

    fn append(&mut self, events: &RecordBatch) -> SegmentName {
        let schema = &schemas().unwrap().audit_log;
        let first = self.head.size;
        let sealed = seal(schema, ORIGIN, &self.head, events).unwrap();
        let mut writer = SegmentWriter::new(schema, ORIGIN).unwrap();
        writer.write(&sealed.batch).unwrap();
        sealed.leaves.iter().for_each(|leaf| self.edge.push(leaf));
        self.head = sealed.head;
        let name = SegmentName { first, last: self.head.size - 1 };
        self.write(&format!("segments/{name}"), &writer.finish().unwrap());
        name
    }

    /// Signs a checkpoint over all there is.
    fn sign(&mut self, seeds: &[u8]) -> Note {
        for (path, bytes) in self.edge.take_tiles() {
            self.write(&format!("tile/{path}"), &bytes);
        }
        let head = Checkpoint { origin: ORIGIN.to_owned(), size: self.edge.size(), root: self.edge.root() };
        let keys: Vec<_> = seeds.iter().map(|seed| key(*seed)).collect();
        let note = Note::sign(head.to_string(), ORIGIN, &keys.iter().collect::<Vec<_>>()).unwrap();
        self.put(&note, head.size);
        note
    }

    fn put(&self, note: &Note, size: u64) {
        self.write("checkpoint", note.to_string().as_bytes());
        self.write(&format!("checkpoints/{size:020}"), note.to_string().as_bytes());
    }

    /// A segment of so many plain entries under a checkpoint.
    fn plain(&mut self, count: usize) -> SegmentName {
        let name = self.unsigned(&vec![("tool.permit", None); count]);
        self.sign(&[1]);
        name
    }

    /// One event under a checkpoint.
    fn entry(&mut self, action: &str, detail: &str, seeds: &[u8]) -> SegmentName {
        let name = self.unsigned(&[(action, Some(detail))]);
        self.sign(seeds);
        name
    }

    /// An entry that removes these segments, as the control plane writes it; under a checkpoint.
    fn pruned(&mut self, gone: &[SegmentName], seeds: &[u8]) -> SegmentName {
        let detail = self.pruning(gone).to_string();
        self.entry("ledger.prune", &detail, seeds)
    }

    fn pruning(&self, gone: &[SegmentName]) -> Value {
        let segments = gone.iter().map(|name| {
            let bytes = fs::read(self.folder.path().join(format!("segments/{name}"))).unwrap();
            json!({ "name": name.to_string(), "sha256": Hash::of(&[&bytes]).to_string() })
        });
        let first_kept = gone.last().map_or(0, |name| name.last + 1).to_string();
        json!({ "rule": "30d", "first_kept": first_kept, "segments": segments.collect::<Value>() })
    }

    /// One event that is as it is given, in a segment under a checkpoint.
    fn event(&mut self, action: &str, actor: &str, detail: &Value, change: impl Fn(&RecordBatch) -> RecordBatch) {
        let detail = detail.to_string();
        let one = events(self.head.size, &[(action, Some(&detail))]);
        let one = with_column(&one, "actor", Arc::new(StringArray::from(vec![actor])));
        self.append(&change(&one));
        self.sign(&[1]);
    }

    fn remove(&self, name: SegmentName) {
        fs::remove_file(self.folder.path().join(format!("segments/{name}"))).unwrap();
    }

    fn verify_with(&self, vkeys: &[u8], witnesses: Vec<VKey>) -> Result<Sound, VerifyError> {
        self.verify_from(vkeys, witnesses, &[])
    }

    /// As an auditor who kept these checkpoints.
    fn verify_from(&self, vkeys: &[u8], witnesses: Vec<VKey>, kept: &[Note]) -> Result<Sound, VerifyError> {
        let vkeys = vkeys.iter().map(|seed| vkey(*seed)).collect();
        let mine = |note: &Note| Remembered { file: "mine".to_owned(), note: note.to_string().into_bytes() };
        let expected =
            Expected { org: "acme".parse().unwrap(), vkeys, witnesses, checkpoints: kept.iter().map(mine).collect() };
        let source = Folder::open(self.folder.path()).unwrap();
        let alone = verify(&source, &expected, None, &|_, _| {});
        let together = verify(&source, &expected, NonZeroUsize::new(2), &|_, _| {});
        assert_eq!(alone, together, "on one thread and on several");
        together
    }

    fn sound(&self) -> Sound {
        self.verify_with(&[1], Vec::new()).unwrap()
    }

    fn fault(&self) -> Fault {
        match self.verify_with(&[1], Vec::new()).unwrap_err() {
            VerifyError::NotSound(fault) => fault,
            other => panic!("{other}"),
        }
    }
}

/// The batch with another column.
fn with_column(batch: &RecordBatch, name: &str, column: ArrayRef) -> RecordBatch {
    let mut columns = batch.columns().to_vec();
    columns[batch.schema().index_of(name).unwrap()] = column;
    RecordBatch::try_new(batch.schema(), columns).unwrap()
}

#[test]
fn a_sound_ledger_verifies() {
    let mut made = Made::new();
    made.plain(300);
    made.plain(700);
    let sound = made.sound();
    assert_eq!((sound.size, sound.first_kept, sound.unsigned, sound.heads), (1_000, 0, 0, 2));
    assert_eq!((sound.origin.as_str(), sound.root), (ORIGIN, made.edge.root()));
}

#[test]
fn a_ledger_without_entries_is_sound_under_its_checkpoint() {
    let mut made = Made::new();
    made.sign(&[1]);
    assert_eq!(made.sound().size, 0);
}

#[test]
fn entries_after_the_checkpoint_are_counted_and_must_chain() {
    let mut made = Made::new();
    made.plain(10);
    let name = made.unsigned(&[("tool.permit", None); 5]);
    assert_eq!(made.sound().unsigned, 5);
    let path = made.folder.path().join(format!("segments/{name}"));
    let mut other = Made::new();
    other.plain(10);
    other.head.last = Hash([1; 32]);
    let unlinked = other.unsigned(&[("tool.permit", None); 5]);
    fs::copy(other.folder.path().join(format!("segments/{unlinked}")), path).unwrap();
    assert_eq!((made.fault().kind, made.fault().seq), (Kind::Changed, Some(10)));
}

#[test]
fn what_a_segments_metadata_says_of_log_and_ledger_is_not_believed() {
    let mut made = Made::new();
    made.plain(20);
    let schema = &schemas().unwrap().audit_log;
    let sealed = seal(schema, ORIGIN, &made.head, &events(20, &[("tool.permit", None); 5])).unwrap();
    let mut writer = SegmentWriter::new(schema, ORIGIN).unwrap();
    writer.first_design(1_000_000_000_000_000, r#"{"hold":null,"pruned":{"entry":9,"first_kept":20}}"#);
    writer.write(&sealed.batch).unwrap();
    made.write("segments/00000000000000000020-00000000000000000024.parquet", &writer.finish().unwrap());
    // It lies after the newest checkpoint: chained, and reported as not signed.
    assert_eq!((made.sound().size, made.sound().unsigned, made.sound().first_kept), (20, 5, 0));
    made.remove(SegmentName { first: 0, last: 19 });
    assert_eq!((made.fault().kind, made.fault().seq), (Kind::Missing, Some(0)));
}

#[test]
fn gaps_between_kept_checkpoints_are_reported() {
    let mut made = Made::new();
    let spaced = |made: &mut Made, hours: &[i64]| {
        let plain = events(made.head.size, &vec![("tool.permit", None); hours.len()]);
        let times = TimestampMicrosecondArray::from_iter_values(hours.iter().map(|hour| hour * 3_600_000_000));
        made.append(&with_column(&plain, "recorded_at", Arc::new(times.with_timezone("UTC"))));
        made.sign(&[1]);
    };
    spaced(&mut made, &[0, 1]);
    spaced(&mut made, &[2]);
    spaced(&mut made, &[10, 40, 70, 71]);
    let sound = made.sound();
    let gap = Gap { from: 3, to: 7, seconds: Some(69 * 3_600) };
    assert_eq!((sound.heads, sound.spacing.widest, sound.spacing.sparse), (3, Some(gap), Some(gap)));
    assert_eq!(sound.recorded_at, Some(71 * 3_600_000_000));
}

#[test]
fn the_proof_of_an_entry_is_made_of_the_ledgers_files_and_holds() {
    let mut made = Made::new();
    let gone = made.plain(300);
    made.plain(400);
    let source = Folder::open(made.folder.path()).unwrap();
    for seq in [0, 255, 256, 299, 300, 699] {
        let proof = prove(&source, seq).unwrap().unwrap();
        let proved = proof.check(&[vkey(1)], Some(&"acme".parse().unwrap())).unwrap();
        assert_eq!((proof.seq, proved.checkpoint.size, proved.entry.is_some()), (seq, 700, true));
    }
    assert_eq!(prove(&source, 700).unwrap(), None);
    made.pruned(&[gone], &[1]);
    made.remove(gone);
    let proof = prove(&source, 7).unwrap().unwrap();
    assert_eq!(proof.check(&[vkey(1)], None).unwrap().entry, None, "it was there, and is gone");
    // A segment that has another entry gives no proof.
    let other = SegmentName { first: 300, last: 699 };
    let bytes = fs::read(made.folder.path().join(format!("segments/{other}"))).unwrap();
    let mut changed = Made::new();
    changed.head = ChainHead { size: 300, last: Hash([1; 32]) };
    let name = changed.unsigned(&[("tool.deny", None); 400]);
    fs::copy(
        changed.folder.path().join(format!("segments/{name}")),
        made.folder.path().join(format!("segments/{other}")),
    )
    .unwrap();
    assert!(matches!(prove(&source, 300), Err(VerifyError::NotSound(fault)) if fault.kind == Kind::Changed));
    made.write(&format!("segments/{other}"), &bytes);
    made.write("tile/0/001", &[0; 8_192]);
    assert!(matches!(prove(&source, 400), Err(VerifyError::NotSound(fault)) if fault.kind == Kind::DamagedTile));
}

#[test]
fn holes_in_an_emitters_counter_are_reported_and_make_nothing_unsound() {
    let mut made = Made::new();
    made.plain(20);
    assert_eq!(made.sound().holes, []);
    // Entries of another ledger's middle: the counters 10 to 14 never came.
    let sealed =
        seal(&schemas().unwrap().audit_log, ORIGIN, &made.head, &events(30, &[("tool.permit", None); 6])).unwrap();
    let mut writer = SegmentWriter::new(&schemas().unwrap().audit_log, ORIGIN).unwrap();
    writer.write(&sealed.batch).unwrap();
    made.write("segments/00000000000000000020-00000000000000000025.parquet", &writer.finish().unwrap());
    let holes = made.sound().holes;
    let found: Vec<_> = holes.iter().map(|holes| (holes.instance.as_str(), holes.missing, holes.first)).collect();
    assert_eq!(found, [("", 5, (10, 14)), ("gw-1", 5, (10, 14))]);
}

#[test]
fn what_is_not_there_cannot_be_checked() {
    let folder = TempDir::new().unwrap();
    let expected =
        Expected { org: "acme".parse().unwrap(), vkeys: vec![vkey(1)], witnesses: Vec::new(), checkpoints: Vec::new() };
    let outcome = verify(&Folder::open(folder.path()).unwrap(), &expected, None, &|_, _| {});
    assert!(matches!(outcome, Err(VerifyError::CouldNot(_))), "{outcome:?}");
}
