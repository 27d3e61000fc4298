//! Ledgers as other programs might leave them: pruned, rotated, cosigned, half merged. What the real control plane
//! writes is tried end to end in `tests/it/ledger`.

use std::fs;
use std::num::NonZeroUsize;
use std::sync::Arc;

use arrow::array::{ArrayRef, StringArray, TimestampMicrosecondArray};
use arrow::record_batch::RecordBatch;
use ed25519_dalek::{Signer as _, SigningKey};
use tempfile::TempDir;

use serde_json::{Value, json};

use super::{Expected, Fault, Folder, Gap, Kind, Remembered, Sound, VerifyError, prove, verify};
use crate::audit::fixtures::{ORIGIN, events};
use crate::audit::note::{Algorithm, Note, NoteSignature, VKey};
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

    fn told(&mut self, action: &str, detail: &str, seeds: &[u8]) -> SegmentName {
        let name = self.unsigned(&[(action, Some(detail))]);
        self.sign(seeds);
        name
    }

    /// An entry that removes these segments, as the control plane writes it; under a checkpoint.
    fn pruned(&mut self, gone: &[SegmentName], seeds: &[u8]) -> SegmentName {
        let detail = self.pruning(gone).to_string();
        self.told("ledger.prune", &detail, seeds)
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
        made.pruned(&[gone], &[1]);
        assert_eq!(made.sound().first_kept, 0, "it may not have been removed yet");
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
    let gone = [made.plain(200), made.plain(100)];
    made.plain(300);
    let all = made.pruning(&gone).to_string();
    let fewer = made.pruning(&gone[..1]).to_string();
    gone.iter().for_each(|name| made.remove(*name));
    assert_eq!((made.fault().kind, made.fault().seq), (Kind::Missing, Some(0)));
    made.told("ledger.prune", &fewer, &[1]);
    assert_eq!((made.fault().kind, made.fault().seq), (Kind::Missing, Some(200)), "it names fewer");
    // One that no checkpoint covers yet explains nothing.
    made.unsigned(&[("ledger.prune", Some(&all))]);
    assert_eq!(made.fault().kind, Kind::Missing);
    made.sign(&[1]);
    assert_eq!(made.sound().first_kept, 300);
}

#[test]
fn a_removal_that_was_broken_off_is_sound() {
    let mut made = Made::new();
    let names = [300, 300, 300].map(|count| made.plain(count));
    made.pruned(&names[..2], &[1]);
    made.remove(names[1]);
    assert_eq!(made.sound().first_kept, 600);
    made.remove(names[0]);
    assert_eq!(made.sound().first_kept, 600);
    made.remove(names[2]);
    assert_eq!((made.fault().kind, made.fault().seq), (Kind::Missing, Some(600)));
}

#[test]
fn a_removal_after_a_removal_is_sound_and_the_first_may_be_forgotten() {
    let mut made = Made::new();
    let first = made.plain(20);
    let second = made.plain(20);
    let told = made.pruned(&[first], &[1]);
    made.remove(first);
    made.plain(5);
    made.pruned(&[second, told], &[1]);
    made.remove(second);
    assert_eq!(made.sound().first_kept, 40);
    made.remove(told);
    assert_eq!(made.sound().first_kept, 41);
}

#[test]
fn a_prune_of_a_forger_excuses_nothing() {
    type Forge = fn(&mut Made, &[SegmentName]) -> ();
    let cases: [(&str, Forge); 9] = [
        ("a huge first_kept", |made, gone| {
            let mut detail = made.pruning(gone);
            detail["first_kept"] = json!("1000000000000");
            made.event("ledger.prune", "system:control-plane@1", &detail, Clone::clone);
        }),
        ("a first_kept after itself, and a name to match", |made, _| {
            let name = SegmentName { first: 0, last: 999_999 };
            let segments = json!([{ "name": name.to_string(), "sha256": "ab".repeat(32) }]);
            let detail = json!({ "first_kept": "1000000", "segments": segments });
            made.event("ledger.prune", "system:control-plane@1", &detail, Clone::clone);
        }),
        ("another actor", |made, gone| {
            let detail = made.pruning(gone);
            made.event("ledger.prune", "user:mallory", &detail, Clone::clone);
        }),
        ("a token that sent it in", |made, gone| {
            let mut detail = made.pruning(gone);
            detail["submitted_by"] = json!("ci");
            made.event("ledger.prune", "service:ci", &detail, without_emitter);
        }),
        ("an emitter with a counter", |made, gone| {
            let detail = made.pruning(gone);
            made.event("ledger.prune", "service:ci", &detail, Clone::clone);
        }),
        ("not at the beginning", |made, gone| {
            let detail = made.pruning(&gone[1..]);
            made.event("ledger.prune", "system:control-plane@1", &detail, Clone::clone);
        }),
        ("under a hold", |made, gone| {
            let detail = made.pruning(gone);
            made.event("ledger.hold", "service:op", &json!({}), without_emitter);
            made.event("ledger.prune", "system:control-plane@1", &detail, Clone::clone);
        }),
        ("under a hold that somebody else released", |made, gone| {
            let detail = made.pruning(gone);
            made.event("ledger.hold", "service:op", &json!({}), without_emitter);
            made.event("ledger.release", "user:mallory", &json!({}), Clone::clone);
            made.event("ledger.prune", "system:control-plane@1", &detail, Clone::clone);
        }),
        ("no digests", |made, gone| {
            let mut detail = made.pruning(gone);
            detail["segments"]
                .as_array_mut()
                .unwrap()
                .iter_mut()
                .for_each(|s| drop(s.as_object_mut().unwrap().remove("sha256")));
            made.event("ledger.prune", "system:control-plane@1", &detail, Clone::clone);
        }),
    ];
    for (what, forge) in cases {
        let mut made = Made::new();
        let gone = [made.plain(20), made.plain(20)];
        made.plain(20);
        forge(&mut made, &gone);
        assert_eq!(made.sound().first_kept, 0, "{what}: as long as nothing is gone");
        // What is not at the beginning is gone alone.
        let removed = if what == "not at the beginning" { &gone[1..] } else { &gone };
        removed.iter().for_each(|name| made.remove(*name));
        let fault = made.fault();
        assert_eq!((fault.kind, fault.seq), (Kind::Missing, Some(removed[0].first)), "{what}: {fault}");
        assert!(fault.why.contains("ledger.prune, does not count"), "{what}: {fault}");
    }
}

/// Without what only emitters fill.
fn without_emitter(events: &RecordBatch) -> RecordBatch {
    let nulls =
        |name: &str| arrow::array::new_null_array(events.column_by_name(name).unwrap().data_type(), events.num_rows());
    let events = with_column(events, "instance", nulls("instance"));
    with_column(&events, "emitter_seq", nulls("emitter_seq"))
}

#[test]
fn a_prune_that_somebody_asked_the_control_plane_for_counts() {
    for actor in ["service:op", "anonymous"] {
        let mut made = Made::new();
        let gone = [made.plain(20)];
        made.plain(20);
        let detail = made.pruning(&gone);
        made.event("ledger.hold", actor, &json!({}), without_emitter);
        made.event("ledger.release", actor, &json!({}), without_emitter);
        made.event("ledger.prune", actor, &detail, without_emitter);
        made.remove(gone[0]);
        assert_eq!(made.sound().first_kept, 20, "{actor}");
    }
}

#[test]
fn a_segment_that_a_prune_names_by_another_digest_is_another() {
    let mut made = Made::new();
    let gone = [made.plain(20), made.plain(20)];
    made.plain(20);
    let mut detail = made.pruning(&gone);
    detail["segments"][1]["sha256"] = json!("ab".repeat(32));
    made.event("ledger.prune", "system:control-plane@1", &detail, Clone::clone);
    let fault = made.fault();
    assert_eq!((fault.kind, fault.file), (Kind::Changed, format!("segments/{}", gone[1])));
    made.remove(gone[1]);
    assert_eq!(made.sound().first_kept, 40, "what it was cannot be known any more");
}

#[test]
fn a_tile_of_removed_entries_cannot_be_changed() {
    let mut made = Made::new();
    let gone = made.plain(700);
    made.plain(100);
    made.pruned(&[gone], &[1]);
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
    made.pruned(&[before, change], &[2]);
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
    assert_eq!(fault.kind, Kind::NotCosigned);
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
fn the_newest_head_is_the_greater_of_both() {
    let mut made = Made::new();
    made.plain(20);
    let old = made.sign(&[1]);
    made.plain(20);
    made.write("checkpoint", old.to_string().as_bytes());
    let sound = made.sound();
    assert_eq!((sound.size, sound.remarks.len()), (40, 1));
    fs::remove_file(made.folder.path().join("checkpoint")).unwrap();
    assert_eq!((made.sound().size, made.sound().remarks.len()), (40, 1));
    // A greater one that nobody signed is no checkpoint.
    let forged = Checkpoint { origin: ORIGIN.to_owned(), size: 50, root: Hash([7; 32]) };
    let note = Note::sign(forged.to_string(), ORIGIN, &[&key(3)]).unwrap();
    made.write(&format!("checkpoints/{:020}", 50), note.to_string().as_bytes());
    assert_eq!((made.fault().kind, made.fault().file), (Kind::WrongKey, format!("checkpoints/{:020}", 50)));
}

#[test]
fn two_heads_of_one_size_with_two_roots_are_both_named() {
    let mut made = Made::new();
    made.plain(20);
    let other = Checkpoint { origin: ORIGIN.to_owned(), size: 20, root: Hash([7; 32]) };
    let note = Note::sign(other.to_string(), ORIGIN, &[&key(1)]).unwrap();
    let kept = format!("checkpoints/{:020}", 20);
    made.write(&kept, note.to_string().as_bytes());
    let fault = made.fault();
    assert_eq!((fault.kind, fault.file.as_str()), (Kind::Forked, kept.as_str()));
    assert!(fault.why.contains("in checkpoint is"), "{fault}");
}

#[test]
fn a_head_that_the_auditor_kept_must_be_the_beginning_of_the_newest() {
    let mut made = Made::new();
    made.plain(20);
    let mine = made.sign(&[1]);
    made.plain(20);
    assert_eq!(made.verify_from(&[1], Vec::new(), std::slice::from_ref(&mine)).unwrap().remembered, 1);
    let fault =
        |made: &Made, kept: &Note| match made.verify_from(&[1], Vec::new(), std::slice::from_ref(kept)).unwrap_err() {
            VerifyError::NotSound(fault) => fault,
            other => panic!("{other}"),
        };
    // The store is rolled back to a state that was once true: nothing but the auditor's checkpoint tells.
    let newest = made.sign(&[1]);
    let mut older = Made::new();
    older.plain(20);
    assert_eq!(older.sound().size, 20);
    assert_eq!((fault(&older, &newest).kind, fault(&older, &newest).seq), (Kind::RolledBack, Some(20)));
    // Another history, signed by the very key.
    let mut other = Made::new();
    other.plain(10);
    other.unsigned(&[("tool.deny", None); 30]);
    other.sign(&[1]);
    assert_eq!(other.sound().size, 40);
    for kept in [&mine, &newest] {
        let fault = fault(&other, kept);
        assert_eq!(fault.kind, Kind::Forked, "{fault}");
        assert!(fault.to_string().contains("mine") && fault.to_string().contains("checkpoint"), "{fault}");
    }
    // One that no given key has signed says nothing of the ledger.
    let foreign = Note::sign(mine.text.clone(), ORIGIN, &[&key(3)]).unwrap();
    assert!(matches!(made.verify_from(&[1], Vec::new(), &[foreign]), Err(VerifyError::CouldNot(_))));
}

#[test]
fn a_segment_of_removed_entries_that_came_back_is_a_leftover() {
    let mut made = Made::new();
    let gone = [made.plain(20), made.plain(20)];
    made.plain(20);
    let first = fs::read(made.folder.path().join(format!("segments/{}", gone[0]))).unwrap();
    made.pruned(&gone, &[1]);
    gone.iter().for_each(|name| made.remove(*name));
    assert_eq!(made.sound().first_kept, 40);
    made.write(&format!("segments/{}", gone[0]), &first);
    assert_eq!(made.sound().first_kept, 40);
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
    // It lies behind the newest head: chained, and said to be signed by nobody.
    assert_eq!((made.sound().size, made.sound().unsigned, made.sound().first_kept), (20, 5, 0));
    made.remove(SegmentName { first: 0, last: 19 });
    assert_eq!((made.fault().kind, made.fault().seq), (Kind::Missing, Some(0)));
}

#[test]
fn how_far_apart_the_kept_heads_are_is_told() {
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
fn holes_in_an_emitters_counter_are_told_and_make_nothing_unsound() {
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
    let told: Vec<_> = holes.iter().map(|holes| (holes.instance.as_str(), holes.missing, holes.first)).collect();
    assert_eq!(told, [("", 5, (10, 14)), ("gw-1", 5, (10, 14))]);
}

#[test]
fn what_is_not_there_cannot_be_checked() {
    let folder = TempDir::new().unwrap();
    let expected =
        Expected { org: "acme".parse().unwrap(), vkeys: vec![vkey(1)], witnesses: Vec::new(), checkpoints: Vec::new() };
    let outcome = verify(&Folder::open(folder.path()).unwrap(), &expected, None, &|_, _| {});
    assert!(matches!(outcome, Err(VerifyError::CouldNot(_))), "{outcome:?}");
}
