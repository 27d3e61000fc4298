//! Ledgers as other programs might leave them: pruned, rotated, cosigned, half merged. What the real control plane writes is tried
//! end to end in `tests/it/ledger`.

use std::fs;
use std::num::NonZeroUsize;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, StringArray, TimestampMicrosecondArray, new_null_array};
use arrow::datatypes::DataType;
use arrow::record_batch::RecordBatch;
use ed25519_dalek::{Signer as _, SigningKey};
use tempfile::TempDir;

use super::{Expected, Fault, Folder, Kind, Sound, VerifyError, verify};
use crate::audit::note::{Algorithm, Note, NoteSignature, VKey};
use crate::audit::segment::{SegmentName, SegmentWriter};
use crate::audit::{ChainHead, Checkpoint, Hash, TreeEdge, seal};
use crate::model::schema::schemas;

const ORIGIN: &str = "mcpg.example/orgs/acme/audit/1";

fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

fn vkey(seed: u8) -> VKey {
    VKey::new(ORIGIN, Algorithm::Ed25519, key(seed).verifying_key()).unwrap()
}

/// Events of these actions and details; the others have an instance's counter.
fn events(from: u64, actions: &[(&str, Option<&str>)]) -> RecordBatch {
    let schema = &schemas().unwrap().audit_event;
    let rows = actions.len();
    let columns = schema.fields().iter().map(|field| -> ArrayRef {
        let text =
            |of: &dyn Fn(usize) -> Option<String>| -> ArrayRef { Arc::new((0..rows).map(of).collect::<StringArray>()) };
        match (field.name().as_str(), field.data_type()) {
            ("action", _) => text(&|row| Some(actions[row].0.to_owned())),
            ("detail", _) => text(&|row| actions[row].1.map(str::to_owned)),
            ("instance", _) => text(&|row| (row % 2 == 0).then(|| "gw-1".to_owned())),
            ("emitter_seq", _) => {
                Arc::new((0..rows).map(|row| Some((from as i64 + row as i64) / 2)).collect::<Int64Array>())
            }
            ("actor" | "event_id" | "salt", _) => text(&|row| Some(format!("{}-{}", field.name(), from + row as u64))),
            (_, DataType::Timestamp(..)) => Arc::new(
                TimestampMicrosecondArray::from_iter_values((0..rows).map(|row| row as i64)).with_timezone("UTC"),
            ),
            (_, other) => new_null_array(other, rows),
        }
    });
    RecordBatch::try_new(Arc::clone(schema), columns.collect()).unwrap()
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
        let schema = &schemas().unwrap().audit_log;
        let first = self.head.size;
        let sealed = seal(schema, ORIGIN, &self.head, &events(first, actions)).unwrap();
        let mut writer = SegmentWriter::new(schema, ORIGIN, 1, "").unwrap();
        writer.write(&sealed.batch).unwrap();
        sealed.leaves.iter().for_each(|leaf| self.edge.push(leaf));
        self.head = sealed.head;
        let name = SegmentName { first, last: self.head.size - 1 };
        self.write(&format!("segments/{name}"), &writer.finish().unwrap());
        name
    }

    /// Signs a head over all there is.
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

    /// A segment of so many plain entries under a head.
    fn plain(&mut self, count: usize) -> SegmentName {
        let name = self.unsigned(&vec![("tool.permit", None); count]);
        self.sign(&[1]);
        name
    }

    fn told(&mut self, action: &str, detail: &str, seeds: &[u8]) -> SegmentName {
        let name = self.unsigned(&[(action, Some(detail))]);
        self.sign(seeds);
        name
    }

    fn remove(&self, name: SegmentName) {
        fs::remove_file(self.folder.path().join(format!("segments/{name}"))).unwrap();
    }

    fn verify_with(&self, vkeys: &[u8], witnesses: Vec<VKey>) -> Result<Sound, VerifyError> {
        let expected =
            Expected { org: "acme".parse().unwrap(), vkeys: vkeys.iter().map(|seed| vkey(*seed)).collect(), witnesses };
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

#[test]
fn a_sound_ledger_is_told_of() {
    let mut made = Made::new();
    made.plain(300);
    made.plain(700);
    let sound = made.sound();
    assert_eq!((sound.size, sound.first_kept, sound.unsigned, sound.heads), (1_000, 0, 0, 2));
    assert_eq!((sound.origin.as_str(), sound.root), (ORIGIN, made.edge.root()));
}

#[test]
fn a_ledger_without_entries_is_sound_under_its_head() {
    let mut made = Made::new();
    made.sign(&[1]);
    assert_eq!(made.sound().size, 0);
}

#[test]
fn entries_after_the_head_are_told_of_and_chained_all_the_same() {
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
fn removed_entries_are_explained_by_an_entry_and_proved_by_tiles() {
    for (first, second) in [(256, 300), (300, 300), (1_000, 70), (7, 3)] {
        let mut made = Made::new();
        let gone = made.plain(first);
        made.plain(second);
        let detail = format!("{{\"first_kept\":\"{first}\",\"rule\":\"30d\"}}");
        made.told("ledger.prune", &detail, &[1]);
        made.remove(gone);
        let sound = made.sound();
        assert_eq!((sound.first_kept, sound.heads), (first as u64, 3));
        // Bundles of removed entries may go with them.
        for bundle in 0..first / 256 {
            fs::remove_file(made.folder.path().join(format!("tile/entries/{bundle:03}"))).unwrap();
        }
        assert_eq!(made.sound(), sound);
    }
}

#[test]
fn removed_entries_without_an_entry_that_says_so_are_missing() {
    let mut made = Made::new();
    let gone = made.plain(300);
    made.plain(300);
    made.remove(gone);
    assert_eq!((made.fault().kind, made.fault().seq), (Kind::Missing, Some(0)));
    made.told("ledger.prune", "{\"first_kept\":299}", &[1]);
    assert_eq!((made.fault().kind, made.fault().seq), (Kind::Missing, Some(0)), "it tells of fewer");
    // One that no head covers yet explains nothing.
    made.unsigned(&[("ledger.prune", Some("{\"first_kept\":300}"))]);
    assert_eq!(made.fault().kind, Kind::Missing);
    made.sign(&[1]);
    assert_eq!(made.sound().first_kept, 300);
}

#[test]
fn a_removal_that_was_broken_off_is_sound() {
    let mut made = Made::new();
    let names = [300, 300, 300].map(|count| made.plain(count));
    made.told("ledger.prune", "{\"first_kept\":600}", &[1]);
    made.remove(names[1]);
    assert_eq!(made.sound().first_kept, 600);
    made.remove(names[0]);
    assert_eq!(made.sound().first_kept, 600);
    made.remove(names[2]);
    assert_eq!((made.fault().kind, made.fault().seq), (Kind::Missing, Some(0)));
}

#[test]
fn a_tile_of_removed_entries_cannot_be_changed() {
    let mut made = Made::new();
    let gone = made.plain(700);
    made.plain(100);
    made.told("ledger.prune", "{\"first_kept\":700}", &[1]);
    made.remove(gone);
    for tile in ["tile/0/001", "tile/entries/001", "tile/1/000.p/3"] {
        let path = made.folder.path().join(tile);
        let sound = fs::read(&path).unwrap();
        let mut bytes = sound.clone();
        bytes[40] ^= 1;
        fs::write(&path, bytes).unwrap();
        let fault = made.fault();
        assert_eq!((fault.kind, fault.file.as_str()), (Kind::DamagedTile, tile), "{fault}");
        fs::write(&path, sound).unwrap();
    }
    fs::remove_file(made.folder.path().join("tile/0/000")).unwrap();
    assert_eq!((made.fault().kind, made.fault().seq), (Kind::Missing, Some(0)), "nothing shows the removed entries");
}

#[test]
fn heads_before_a_change_of_keys_are_of_the_former_key() {
    let mut made = Made::new();
    made.plain(20);
    made.plain(20);
    made.told("ledger.key", "{\"vkey\":\"…\"}", &[2, 1]);
    made.unsigned(&[("tool.permit", None); 3]);
    made.sign(&[2]);
    assert!(made.verify_with(&[2], Vec::new()).is_ok(), "by the new key");
    assert!(made.verify_with(&[1, 2], Vec::new()).is_ok(), "by both");
    assert_eq!(made.fault().kind, Kind::WrongKey, "by the former key alone");
}

#[test]
fn a_head_of_another_key_without_a_word_of_it_is_not_taken() {
    let mut made = Made::new();
    made.plain(20);
    made.unsigned(&[("tool.permit", None); 3]);
    made.sign(&[2]);
    made.unsigned(&[("tool.permit", None); 3]);
    made.sign(&[1]);
    let fault = made.fault();
    assert_eq!((fault.kind, fault.file), (Kind::WrongKey, format!("checkpoints/{:020}", 23)));
}

#[test]
fn heads_before_a_change_of_keys_that_was_pruned_are_not_doubted() {
    let mut made = Made::new();
    let before = made.plain(20);
    let change = made.told("ledger.key", "{}", &[2, 1]);
    made.unsigned(&[("tool.permit", None); 3]);
    made.sign(&[2]);
    made.told("ledger.prune", "{\"first_kept\":21}", &[2]);
    made.remove(before);
    made.remove(change);
    assert_eq!(made.verify_with(&[2], Vec::new()).unwrap().first_kept, 21);
}

#[test]
fn a_witness_that_is_demanded_must_have_cosigned() {
    let mut made = Made::new();
    made.plain(20);
    let witness = VKey::new("witness.example", Algorithm::Cosignature, key(9).verifying_key()).unwrap();
    let Err(VerifyError::NotSound(fault)) = made.verify_with(&[1], vec![witness.clone()]) else {
        panic!("no cosignature")
    };
    assert_eq!(fault.kind, Kind::WrongKey);
    let mut note = made.sign(&[1]);
    let time = 1_790_000_000_u64;
    let signed = key(9).sign(format!("cosignature/v1\ntime {time}\n{}", note.text).as_bytes());
    let bytes = [&time.to_be_bytes()[..], &signed.to_bytes()].concat();
    note.signatures.push(NoteSignature { name: "witness.example".to_owned(), id: witness.id(), bytes });
    made.put(&note, 20);
    assert_eq!(made.verify_with(&[1], vec![witness.clone()]).unwrap().cosigned, [time]);
    note.signatures.last_mut().unwrap().bytes[7] ^= 1;
    made.put(&note, 20);
    let Err(VerifyError::NotSound(fault)) = made.verify_with(&[1], vec![witness]) else { panic!("another time") };
    assert_eq!(fault.kind, Kind::ForgedHead);
}

#[test]
fn a_head_that_was_rolled_back_is_known_by_a_newer_one() {
    let mut made = Made::new();
    made.plain(20);
    let old = made.sign(&[1]);
    made.plain(20);
    made.write("checkpoint", old.to_string().as_bytes());
    assert_eq!((made.fault().kind, made.fault().seq), (Kind::RolledBack, Some(20)));
}

#[test]
fn holes_in_an_emitters_counter_are_told_and_make_nothing_unsound() {
    let mut made = Made::new();
    made.plain(20);
    assert_eq!(made.sound().holes, []);
    // Entries of another ledger's middle: the counters 10 to 14 never came.
    let sealed =
        seal(&schemas().unwrap().audit_log, ORIGIN, &made.head, &events(30, &[("tool.permit", None); 6])).unwrap();
    let mut writer = SegmentWriter::new(&schemas().unwrap().audit_log, ORIGIN, 1, "").unwrap();
    writer.write(&sealed.batch).unwrap();
    made.write("segments/00000000000000000020-00000000000000000025.parquet", &writer.finish().unwrap());
    let holes = made.sound().holes;
    let told: Vec<_> = holes.iter().map(|holes| (holes.instance.as_str(), holes.missing, holes.first)).collect();
    assert_eq!(told, [("", 5, (10, 14)), ("gw-1", 5, (10, 14))]);
}

#[test]
fn what_is_not_there_cannot_be_checked() {
    let folder = TempDir::new().unwrap();
    let expected = Expected { org: "acme".parse().unwrap(), vkeys: vec![vkey(1)], witnesses: Vec::new() };
    let outcome = verify(&Folder::open(folder.path()).unwrap(), &expected, None, &|_, _| {});
    assert!(matches!(outcome, Err(VerifyError::CouldNot(_))), "{outcome:?}");
}
