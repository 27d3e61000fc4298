//! Checkpoints: of former and of other keys, cosigned, forked, rolled back.

use std::fs;

use ed25519_dalek::Signer as _;

use super::{Made, key};
use crate::audit::fixtures::ORIGIN;
use crate::audit::note::{Algorithm, Note, NoteSignature, VKey};
use crate::audit::verify::{Kind, VerifyError};
use crate::audit::{Checkpoint, Hash};

#[test]
fn checkpoints_before_a_change_of_keys_are_of_the_former_key() {
    let mut made = Made::new();
    made.plain(20);
    made.plain(20);
    made.entry("ledger.key", "{\"vkey\":\"…\"}", &[2, 1]);
    made.unsigned(&[("tool.permit", None); 3]);
    made.sign(&[2]);
    assert!(made.verify_with(&[2], Vec::new()).is_ok(), "by the new key");
    assert!(made.verify_with(&[1, 2], Vec::new()).is_ok(), "by both");
    assert_eq!(made.fault().kind, Kind::WrongKey, "by the former key alone");
}

#[test]
fn a_checkpoint_of_another_key_without_an_entry_for_it_is_rejected() {
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
fn checkpoints_before_a_change_of_keys_that_was_pruned_are_accepted() {
    let mut made = Made::new();
    let before = made.plain(20);
    let change = made.entry("ledger.key", "{}", &[2, 1]);
    made.unsigned(&[("tool.permit", None); 3]);
    made.sign(&[2]);
    made.pruned(&[before, change], &[2]);
    made.remove(before);
    made.remove(change);
    assert_eq!(made.verify_with(&[2], Vec::new()).unwrap().first_kept, 21);
}

#[test]
fn a_required_witness_must_have_cosigned() {
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
fn the_newest_checkpoint_is_the_greater_of_both() {
    let mut made = Made::new();
    made.plain(20);
    let old = made.sign(&[1]);
    made.plain(20);
    made.write("checkpoint", old.to_string().as_bytes());
    let sound = made.sound();
    assert_eq!((sound.size, sound.remarks.len()), (40, 1));
    fs::remove_file(made.folder.path().join("checkpoint")).unwrap();
    assert_eq!((made.sound().size, made.sound().remarks.len()), (40, 1));
    // A greater one that is not signed is no checkpoint.
    let forged = Checkpoint { origin: ORIGIN.to_owned(), size: 50, root: Hash([7; 32]) };
    let note = Note::sign(forged.to_string(), ORIGIN, &[&key(3)]).unwrap();
    made.write(&format!("checkpoints/{:020}", 50), note.to_string().as_bytes());
    assert_eq!((made.fault().kind, made.fault().file), (Kind::WrongKey, format!("checkpoints/{:020}", 50)));
}

#[test]
fn two_checkpoints_of_one_size_with_two_roots_are_both_named() {
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
fn a_checkpoint_that_the_auditor_kept_must_be_the_beginning_of_the_newest() {
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
