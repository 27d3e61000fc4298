//! Ledgers whose first entries were pruned, by the control plane and by forgers.

use std::fs;

use arrow::record_batch::RecordBatch;
use serde_json::json;

use super::{Made, with_column};
use crate::audit::segment::SegmentName;
use crate::audit::verify::Kind;

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
    made.entry("ledger.prune", &fewer, &[1]);
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
    let prune = made.pruned(&[first], &[1]);
    made.remove(first);
    made.plain(5);
    made.pruned(&[second, prune], &[1]);
    made.remove(second);
    assert_eq!(made.sound().first_kept, 40);
    made.remove(prune);
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
