//! Invariant I5: no byte of an entry, its order, or the ledger's length can change without `verify` saying so, and
//! where.

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::concat_batches;
use arrow::datatypes::Int64Type;
use mcpg::audit::segment::SegmentName;
use mcpg::model::schema::schemas;

use super::given::{Copied, Given, ORG, verify};
use super::spoil::{Segments, changed, rows, sign};
use crate::harness::alone;

const ENTRIES: u64 = 100_000;
/// Where the entry that is spoiled is looked for.
const ABOUT: u64 = 70_000;

/// Asserts what `verify` says of a spoiled copy.
#[track_caller]
fn expect(found: (String, Option<u64>, String), kind: &str, seq: Option<u64>, file: &str, what: &str) {
    assert_eq!((found.0.as_str(), found.1, found.2.as_str()), (kind, seq, file), "{what}");
}

fn path(name: SegmentName) -> String {
    format!("segments/{name}")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_of_a_ledger_of_100_000_entries_is_found_and_named() {
    let _alone = alone().await;
    let given = Given::of(ENTRIES, 5).await;
    let report = given.copy().verify().await.sound();
    assert!(report["size"].as_u64().unwrap() >= ENTRIES && report["heads"].as_u64().unwrap() >= 5, "{report}");

    let seq = whole_entry(&given);
    each_column(&given, seq).await;
    rows_moved(&given, seq).await;
    segments_gone(&given).await;
    rehashed(&given, seq).await;
    heads_forged(&given).await;
    tiles_changed(&given, seq).await;
}

/// An entry that has a value in every column, in the middle of a segment.
fn whole_entry(given: &Given) -> u64 {
    let copy = given.copy();
    let segments = Segments::of(&copy);
    let name = segments.of_entry(ABOUT);
    let batch = segments.read(name);
    let middle =
        (batch.num_rows() / 2..batch.num_rows()).find(|row| batch.columns().iter().all(|column| column.is_valid(*row)));
    name.first + middle.unwrap() as u64
}

async fn each_column(given: &Given, seq: u64) {
    for field in schemas().unwrap().audit_log.fields() {
        let copy = given.copy();
        let segments = Segments::of(&copy);
        let name = segments.change(seq, |batch, row| changed(&batch, field.name(), row));
        expect(copy.verify().await.not_sound(), "changed", Some(seq), &path(name), field.name());
    }
}

async fn rows_moved(given: &Given, seq: u64) {
    type Order = fn(usize, usize) -> Vec<usize>;
    let cases: [(&str, Order, &str); 6] = [
        ("a row dropped", |n, row| (0..n).filter(|at| *at != row).collect(), "missing"),
        ("two rows swapped", |n, row| swapped(n, row, row + 1), "reordered"),
        ("two distant rows swapped", |n, row| swapped(n, row, row + 500), "reordered"),
        ("a row copied beside itself", |n, row| (0..=row).chain(row..n).collect(), "added"),
        ("a row copied to the end", |n, row| (0..n).chain([row]).collect(), "added"),
        (
            "a row in another's place",
            |n, row| (0..n).map(|at| if at == row { row + 3 } else { at }).collect(),
            "missing",
        ),
    ];
    for (what, order, kind) in cases {
        let copy = given.copy();
        let segments = Segments::of(&copy);
        let name = segments.change(seq, |batch, row| rows(&batch, order(batch.num_rows(), row)));
        expect(copy.verify().await.not_sound(), kind, Some(seq), &path(name), what);
    }
}

fn swapped(rows: usize, one: usize, other: usize) -> Vec<usize> {
    let mut order: Vec<_> = (0..rows).collect();
    order.swap(one, other);
    order
}

async fn segments_gone(given: &Given) {
    let names = Segments::of(&given.copy()).names;
    let (middle, last) = (names[names.len() / 2], names[names.len() - 1]);

    let copy = given.copy();
    copy.remove(&path(middle));
    let found = copy.verify().await.not_sound();
    assert_eq!((found.0.as_str(), found.1), ("missing", Some(middle.first)), "a segment dropped from the middle");

    let copy = given.copy();
    copy.remove(&path(last));
    let found = copy.verify().await.not_sound();
    assert_eq!((found.0.as_str(), found.1), ("missing", Some(last.first)), "a segment dropped from the end");

    let copy = given.copy();
    copy.remove(&path(names[0]));
    let found = copy.verify().await.not_sound();
    assert_eq!((found.0.as_str(), found.1), ("missing", Some(0)), "removed without an entry that says so");

    // One that overlaps its neighbour, and one that is no segment.
    let copy = given.copy();
    let overlapping = SegmentName { first: middle.first - 1, last: middle.last + 1 };
    copy.write(&path(overlapping), &copy.read(&path(middle)));
    assert_eq!(copy.verify().await.not_sound().0, "added");
    let copy = given.copy();
    copy.write("segments/extra.parquet", b"x");
    expect(copy.verify().await.not_sound(), "added", None, "segments/extra.parquet", "a file that is no segment");
}

async fn rehashed(given: &Given, seq: u64) {
    // A row changed, and its own hash made to fit.
    let copy = given.copy();
    let segments = Segments::of(&copy);
    let name = segments.change(seq, |batch, row| {
        let one = changed(&rows(&batch, [row]), "reason", 0);
        let head = head_before(&batch, row);
        let sealed =
            mcpg::audit::seal(&schemas().unwrap().audit_log, &segments.origin, &head, &super::spoil::events_of(&one));
        let parts = [rows(&batch, 0..row), sealed.unwrap().batch, rows(&batch, row + 1..batch.num_rows())];
        concat_batches(&schemas().unwrap().audit_log, &parts).unwrap()
    });
    expect(copy.verify().await.not_sound(), "changed", Some(seq), &path(name), "a row rehashed");

    // And the whole chain after it.
    let copy = given.copy();
    let segments = Segments::of(&copy);
    let name = segments.change(seq, |batch, row| changed(&batch, "reason", row));
    let leaves = segments.rehash_from(seq);
    expect(copy.verify().await.not_sound(), "changed", Some(seq), &path(name), "the chain rehashed");

    // And the tiles: now only the heads know. The kept heads before the change narrow it down.
    segments.write_tiles(&leaves);
    let (kind, found, file) = copy.verify().await.not_sound();
    let before =
        copy.names("checkpoints").iter().map(|size| size.parse::<u64>().unwrap()).filter(|size| *size <= seq).max();
    assert_eq!((kind.as_str(), found, file.as_str()), ("changed", before, "checkpoint"), "chain and tiles rewritten");
}

fn head_before(batch: &RecordBatch, row: usize) -> mcpg::audit::ChainHead {
    let seq = batch.column_by_name("seq").unwrap().as_primitive::<Int64Type>().value(row);
    let prev = batch.column_by_name("prev_hash").unwrap().as_string::<i32>().value(row).parse().unwrap();
    mcpg::audit::ChainHead { size: seq as u64, last: prev }
}

async fn heads_forged(given: &Given) {
    let heads = given.copy().names("checkpoints");
    let older = format!("checkpoints/{}", heads[heads.len() - 2]);
    let forge = |copy: &Copied, file: &str, from: &str, to: &str| {
        let text = String::from_utf8(copy.read(file)).unwrap();
        assert!(text.contains(from), "{text}");
        copy.write(file, text.replacen(from, to, 1).as_bytes());
    };

    for file in ["checkpoint", &older] {
        let copy = given.copy();
        let size = String::from_utf8(copy.read(file)).unwrap().lines().nth(1).unwrap().to_owned();
        forge(&copy, file, &format!("\n{size}\n"), &format!("\n{}\n", size.parse::<u64>().unwrap() - 1));
        expect(copy.verify().await.not_sound(), "forged_head", None, file, "a head whose size was changed");
    }

    // Signed anew by the very key, over another root: by a thief of it.
    let copy = given.copy();
    let (origin, size) = (copy.vkey.split('+').next().unwrap().to_owned(), heads[heads.len() - 2].parse().unwrap());
    copy.write(&older, &sign(&given.key_file, &origin, size, mcpg::audit::Hash([7; 32])));
    expect(copy.verify().await.not_sound(), "forged_head", None, &older, "an older head over another root");

    // Signed by another key.
    let other = Given::of(10, 1).await;
    let copy = given.copy();
    let newest = heads[heads.len() - 1].parse().unwrap();
    copy.write("checkpoint", &sign(&other.key_file, &origin, newest, mcpg::audit::Hash([7; 32])));
    expect(copy.verify().await.not_sound(), "wrong_key", None, "checkpoint", "a head of another key");
    let mut copy = given.copy();
    copy.vkey.clone_from(&other.vkey);
    expect(copy.verify().await.not_sound(), "wrong_key", None, "checkpoint", "the ledger of another deployment");

    // `checkpoint` alone says nothing: a late write may put an older one there.
    let whole = given.copy().verify().await.sound();
    let copy = given.copy();
    copy.write("checkpoint", &copy.read(&older));
    let found = copy.verify().await.sound();
    assert_eq!((&found["size"], found["remarks"].as_array().unwrap().len()), (&whole["size"], 1), "{found}");
    let copy = given.copy();
    copy.remove("checkpoint");
    assert_eq!(copy.verify().await.sound()["size"], whole["size"]);

    // Two of one size, both signed.
    let copy = given.copy();
    let (file, size) = (format!("checkpoints/{}", heads[heads.len() - 1]), heads[heads.len() - 1].parse().unwrap());
    copy.write(&file, &sign(&given.key_file, &origin, size, mcpg::audit::Hash([7; 32])));
    expect(copy.verify().await.not_sound(), "forked", None, &file, "two heads of one size");

    let copy = given.copy();
    copy.names("checkpoints").iter().for_each(|name| copy.remove(&format!("checkpoints/{name}")));
    copy.remove("checkpoint");
    expect(copy.verify().await.not_sound(), "missing", None, "checkpoint", "all heads gone");

    // Another org's ledger in its place.
    let copy = given.copy();
    let store = copy.store().to_str().unwrap();
    std::fs::rename(copy.store().join(format!("orgs/{ORG}")), copy.store().join("orgs/globex")).unwrap();
    let vkey = given.vkey.as_str();
    let output = verify(&["--store", store, "--vkey", vkey]).await;
    assert_eq!(output.code, 2, "there is no ledger of this org: {output:?}");
    let mut command = crate::harness::mcpg();
    command.args(["audit", "verify", "--json", "--org", "globex", "--store", store, "--vkey", vkey]);
    let output = crate::harness::run(&mut command);
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &told["kind"]), (Some(1), &serde_json::json!("wrong_org")), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_head_shows_what_a_rolled_back_store_does_not() {
    let given = Given::of(600, 3).await;
    let copy = given.copy();
    let heads = copy.names("checkpoints");
    let (older, newest) = (&heads[heads.len() - 2], &heads[heads.len() - 1]);
    let kept = given.ledger().join("checkpoints");
    let with = async |name: &str| {
        let (store, kept) = (copy.store().to_str().unwrap().to_owned(), kept.join(name).to_str().unwrap().to_owned());
        verify(&["--store", &store, "--vkey", &copy.vkey, "--checkpoint", &kept]).await
    };
    let sound = with(older).await.sound();
    assert_eq!(
        (&sound["remembered"], &sound["not_known"]),
        (&1.into(), &serde_json::json!(["rollback", "omission", "truth"]))
    );
    // The store as it was when the older head was the newest: sound, as far as it can know.
    copy.write("checkpoint", &copy.read(&format!("checkpoints/{older}")));
    copy.remove(&format!("checkpoints/{newest}"));
    let sound = copy.verify().await.sound();
    assert_eq!(sound["size"], older.parse::<u64>().unwrap());
    assert_eq!(sound["not_known"], serde_json::json!(["rollback", "unsigned", "omission", "truth"]));
    with(older).await.sound();
    let (kind, seq, file) = with(newest).await.not_sound();
    assert_eq!((kind.as_str(), seq, file.as_str()), ("rolled_back", older.parse().ok(), "checkpoint"));
    // What is no head of this ledger is wrong use, not the ledger's fault.
    let nothing = copy.store().join("nothing");
    std::fs::write(&nothing, "no head").unwrap();
    assert_eq!(with(nothing.to_str().unwrap()).await.code, 2);
}

async fn tiles_changed(given: &Given, seq: u64) {
    let full = seq / 256;
    let bundle = format!("tile/entries/{full:03}");
    for (file, at, changed, first) in [
        (format!("tile/0/{full:03}"), 40, full * 256 + 1, full * 256),
        (bundle.clone(), 2 * 75 + 3, full * 256 + 2, full * 256),
        ("tile/1/000".to_owned(), 33, 256, 0),
        (bundle, 3 * 75, full * 256 + 3, full * 256),
    ] {
        let copy = given.copy();
        copy.flip(&file, at);
        expect(copy.verify().await.not_sound(), "damaged_tile", Some(changed), &file, "a byte of a tile");
        copy.remove(&file);
        expect(copy.verify().await.not_sound(), "damaged_tile", Some(first), &file, "a tile that is gone");
        copy.write(&file, b"short");
        expect(copy.verify().await.not_sound(), "damaged_tile", Some(first), &file, "a tile of another length");
    }

    // A leaf that is one, of another row.
    let copy = given.copy();
    let file = format!("tile/entries/{full:03}");
    let mut bytes = copy.read(&file);
    bytes.copy_within(75..150, 0);
    copy.write(&file, &bytes);
    expect(copy.verify().await.not_sound(), "damaged_tile", Some(full * 256), &file, "another row's leaf");
}
