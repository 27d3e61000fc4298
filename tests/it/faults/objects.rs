//! One bit flipped in one object, of every kind that there is on a store: the object is named, and nothing that was
//! acknowledged is skipped in silence.

use super::outcome::{Found, Lived};
use super::trimmed_at_once;
use crate::harness::{is_soak, verify_ledger};

const ALL: [&str; 3] = ["org-000", "org-001", "org-002"];
const UNFLUSHED: &str = "flush: { interval: 1h }";
const FLUSHED: &str = "flush: { interval: 300ms }";

/// Where a log object's parts are: `MCPGWAL2`, then length, header's length, id, key's id and MAC, header, bodies. A
/// negative place counts from the end.
const PARTS: [(&str, isize); 9] = [
    ("magic", 3),
    ("length, low byte", 8),
    ("length, high byte", 14),
    ("header's length", 16),
    ("id", 24),
    ("after the id", 56),
    ("after the id, further on", 84),
    ("header", 140),
    ("body", -40),
];

/// Starts a node on a copy of the store in which one bit of the object is flipped. The object must be named, and only
/// what could be hurt by it may be refused.
async fn assert_flip_is_told(lived: &Lived, object: &str, place: isize, bit: u8, hurt: &[&str]) {
    let copy = lived.copy();
    copy.cluster.store().flip(object, place, bit);
    eprintln!("bit {bit} of byte {place} of {object}");
    copy.look().await.assert_told(object, hurt).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bit_flipped_anywhere_in_the_newest_log_object_is_told() {
    let lived = Lived::of(UNFLUSHED, false).await;
    let newest = *lived.cluster.store().log().last().unwrap();
    for (part, place) in PARTS {
        eprintln!("the newest object's {part}");
        assert_flip_is_told(&lived, &format!("wal/{newest:020}"), place, 1, &ALL).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bit_flipped_anywhere_in_an_older_log_object_is_told() {
    let lived = Lived::of(UNFLUSHED, false).await;
    let log = lived.cluster.store().log();
    let older = log[log.len() / 2];
    for (part, place) in PARTS {
        eprintln!("an older object's {part}");
        assert_flip_is_told(&lived, &format!("wal/{older:020}"), place, 4, &ALL).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bits_flipped_at_random_in_log_objects_are_told() {
    use rand::{RngExt, SeedableRng};
    let lived = Lived::of(UNFLUSHED, false).await;
    let (log, mut rng) = (lived.cluster.store().log(), rand::rngs::StdRng::seed_from_u64(20_261_126));
    for _ in 0..if is_soak() { 300 } else { 4 } {
        let object = format!("wal/{:020}", log[rng.random_range(0..log.len())]);
        let length = lived.cluster.store().read(&object).len();
        let place = rng.random_range(0..length) as isize;
        assert_flip_is_told(&lived, &object, place, rng.random_range(0..8), &ALL).await;
    }
}

/// Half of an object at the log's end did not arrive whole from any store that this program takes: it is damage.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_object_cut_short_is_told() {
    let lived = Lived::of(UNFLUSHED, false).await;
    let newest = format!("wal/{:020}", lived.cluster.store().log().last().unwrap());
    for part in [0, 1, 2, 30] {
        let copy = lived.copy();
        let bytes = copy.cluster.store().read(&newest);
        let kept = if part == 0 { 0 } else { bytes.len() - bytes.len() / part.max(2) };
        copy.cluster.store().write(&newest, &bytes[..kept]);
        copy.look().await.assert_told(&newest, &ALL).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hole_in_the_log_is_told() {
    let lived = Lived::of(UNFLUSHED, false).await;
    let log = lived.cluster.store().log();
    assert!(log.len() >= 8, "{log:?}");
    for gone in [log[0], log[1], log[log.len() / 2], log[log.len() - 2]] {
        let copy = lived.copy();
        let object = format!("wal/{gone:020}");
        copy.cluster.store().remove(&object);
        copy.look().await.assert_told(&object, &ALL).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bit_flipped_in_what_the_log_stands_on_is_told() {
    let lived = Lived::of(&format!("{FLUSHED}\n{}", trimmed_at_once()), false).await;
    let store = lived.cluster.store();
    let (layout, floor) = ("wal/layout".to_owned(), store.newest("wal/floor/", ""));
    for object in [layout, floor] {
        let half = store.read(&object).len() as isize / 2;
        for place in [half, -3] {
            assert_flip_is_told(&lived, &object, place, 0, &ALL).await;
        }
    }
    // A floor that is gone is damage as well, and so is a lower one than the log begins at.
    let copy = lived.copy();
    for floor in store.list("wal/floor/") {
        copy.cluster.store().remove(&floor);
    }
    copy.look().await.assert_told("wal/floor", &ALL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bit_flipped_in_an_orgs_state_or_tables_is_told_and_hurts_no_other_org() {
    let lived = Lived::of(FLUSHED, false).await;
    let store = lived.cluster.store();
    let org = "org-001";
    let state = store.newest(&format!("orgs/{org}/state/"), "");
    let half = store.read(&state).len() as isize / 2;
    for place in [1, half, -2] {
        assert_flip_is_told(&lived, &state, place, 2, &[org]).await;
    }
    for table in ["tool_invocations", "tool_usage_hourly", "tool_usage_daily"] {
        let commit = store.newest(&format!("orgs/{org}/{table}/_delta_log/"), ".json");
        // The first byte is a bracket of the JSON.
        assert_flip_is_told(&lived, &commit, 0, 2, &[org]).await;
    }
}

/// The ledger's files are proved by the signed checkpoint: `verify` finds the bit, and the control plane either tells
/// it too or serves nothing that is not true.
#[tokio::test(flavor = "multi_thread")]
async fn a_bit_flipped_in_a_segment_a_tile_or_a_checkpoint_is_found_and_hurts_no_other_org() {
    let lived = Lived::of(FLUSHED, true).await;
    let (store, org) = (lived.cluster.store(), "org-001");
    let folder = format!("orgs/{org}/audit");
    let objects = [
        store.list(&format!("{folder}/segments/"))[0].clone(),
        store.newest(&format!("{folder}/segments/"), ".parquet"),
        store.greatest(&format!("{folder}/tile/0/")),
        store.greatest(&format!("{folder}/tile/entries/")),
        format!("{folder}/checkpoint"),
        store.newest(&format!("{folder}/checkpoints/"), ""),
    ];
    for object in objects {
        let name = object.rsplit('/').next().unwrap();
        let length = store.read(&object).len() as isize;
        // Some bytes of a Parquet file say nothing; the first that says something is taken.
        for part in 1..40 {
            let (place, copy) = (length - 1 - length * part / 40, lived.copy());
            copy.cluster.store().flip(&object, place, 0);
            let (code, said) = verify_ledger(copy.cluster.store().path(), org, &lived.vkeys[org]).await;
            assert!(code == 0 || said.contains(name), "byte {place} of {object}: verify says {code}: {said}");
            if code == 0 {
                assert!(part < 39, "verify finds none of the bits of {object}");
                continue;
            }
            let mut look = copy.look().await;
            for other in ["org-000", "org-002"] {
                assert_eq!(look.found_well(other).await, Found::Whole, "org {other}, for byte {place} of {object}");
            }
            // Whatever it serves is what was recorded; `verify` names the object, a query that cannot read it fails.
            drop(look.found(org).await);
            break;
        }
    }
}
