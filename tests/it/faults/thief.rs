//! A thief who can write the store and has no key, at the log, its floor and the orgs' states: nothing forged is
//! applied, nothing that was acknowledged is dropped, and what was changed is named.

use std::time::Duration;

use mcpg::model::schema::schemas;
use serde_json::{Value, json};

use super::outcome::{Found, Lived, Look, refusal};
use super::trimmed_at_once;
use crate::harness::{Folder, Started, eventually};

const FLUSHED: &str = "flush: { interval: 300ms }";
const UNFLUSHED: &str = "flush: { interval: 1h }";
const ORG: &str = "org-001";
/// A number that no log of a test ever reaches.
const FAR: u64 = 1_000_000_000_000_000;

/// Where a log object says its length, the length of its header, and where the header begins (`log/object`).
const LENGTH: usize = 8;
const HEADER_LENGTH: usize = 16;
const HEADER: usize = 20;
/// The length of the MAC's trailer after the header.
const TRAILER: usize = 83;

/// The header of a log object, as bytes.
fn header_of(bytes: &[u8]) -> &[u8] {
    let length = u32::from_le_bytes(bytes[HEADER_LENGTH..HEADER].try_into().unwrap()) as usize;
    &bytes[HEADER..HEADER + length]
}

/// A log object of this header and these bodies, well formed but for its MAC: that stays the one that `genuine` came
/// with, for a thief has no better one.
fn put_together(genuine: &[u8], header: &Value, bodies: &[u8]) -> Vec<u8> {
    let mac = HEADER + header_of(genuine).len();
    let header = serde_json::to_vec(header).unwrap();
    let mut fixed = genuine[..HEADER].to_vec();
    let length = (HEADER + header.len() + TRAILER + bodies.len()) as u64;
    fixed[LENGTH..HEADER_LENGTH].copy_from_slice(&length.to_le_bytes());
    fixed[HEADER_LENGTH..].copy_from_slice(&u32::try_from(header.len()).unwrap().to_le_bytes());
    [&fixed, &header, &genuine[mac..mac + TRAILER], bodies].concat()
}

/// The id of a log object: the BLAKE3 of its header, in hex.
fn id_of(bytes: &[u8]) -> String {
    blake3::hash(header_of(bytes)).to_hex().to_string()
}

/// Writes an object after the log's end, of one section with an event of the control plane's own for [`ORG`]:
/// everything before entry 10^9 was pruned.
fn append_forged_prune(store: &Folder) -> String {
    let last = *store.log().last().unwrap();
    let bytes = store.read(&format!("wal/{last:020}"));
    let mut header: Value = serde_json::from_slice(header_of(&bytes)).unwrap();
    let event = json!({
        "event_id": "01234567-89ab-7cde-8f01-23456789abcd",
        "occurred_at": "2026-01-01T00:00:00.000001Z", "recorded_at": "2026-01-01T00:00:00.000001Z",
        "actor": "system:control-plane@mallory", "action": "ledger.prune", "target": ORG, "salt": "ab".repeat(16),
        "detail": json!({ "rule": "1s", "first_kept": "1000000000", "segments": [] }).to_string(),
    });
    let schema = &schemas().unwrap().audit_event;
    let mut decoder = arrow::json::ReaderBuilder::new(std::sync::Arc::clone(schema)).build_decoder().unwrap();
    decoder.serialize(&[event]).unwrap();
    let batch = decoder.flush().unwrap().unwrap();
    let mut writer = arrow::ipc::writer::StreamWriter::try_new(Vec::new(), schema).unwrap();
    writer.write(&batch).unwrap();
    let body = writer.into_inner().unwrap();
    let section = json!({
        "org": ORG, "previous": last,
        "rows": { "kind": "events", "count": 1, "first": 1, "length": body.len(), "hash": blake3::hash(&body).to_hex().to_string() },
    });
    header["seq"] = json!(last + 1);
    header["previous"] = json!(id_of(&bytes));
    header["sections"] = json!([section]);
    let object = format!("wal/{:020}", last + 1);
    store.write(&object, &put_together(&bytes, &header, &body));
    object
}

/// Asserts that the forged prune is applied nowhere, and that no org is served less than all.
async fn assert_prune_not_believed(mut look: Look, object: &str) {
    for round in 0..2 {
        let mut told = false;
        for org in look.lived.orgs.clone() {
            match look.settled(&org, |why| why.contains("wal/")).await {
                Found::Whole => {
                    let client = look.server.client().with_org(&org);
                    let prunes = client.number("SELECT count(*) FROM audit_log WHERE action = 'ledger.prune'").await;
                    assert_eq!(prunes, 0, "org {org}: the forged entry is in the ledger");
                }
                Found::Refused(why) => {
                    assert!(why.contains("wal/"), "org {org}: {why}");
                    told = true;
                }
            }
        }
        if !told {
            let (what, name) = (format!("{object} to be named by the log"), object.rsplit('/').next().unwrap());
            eventually(&what, Duration::from_secs(60), async || look.server.logs().contains(name).then_some(())).await;
        }
        if round == 0 {
            if look.server.alive() {
                look.server.kill();
            }
            look.started = look.server.try_start(Duration::from_secs(60)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_object_appended_while_the_node_is_down_is_not_applied() {
    let lived = Lived::of(UNFLUSHED, false).await;
    let object = append_forged_prune(&lived.cluster.store());
    assert_prune_not_believed(lived.look().await, &object).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_object_appended_under_a_running_node_is_not_applied() {
    let lived = Lived::of(FLUSHED, false).await;
    let server = lived.cluster.node().start().await;
    let object = append_forged_prune(&lived.cluster.store());
    let look = Look { lived, server, started: Started::Ready };
    assert_prune_not_believed(look, &object).await;
}

/// Genuine objects in other places: one written again after the end, one in another's place, the log's end cut off.
#[tokio::test(flavor = "multi_thread")]
async fn genuine_log_objects_in_other_places_are_told() {
    let lived = Lived::of(UNFLUSHED, false).await;
    let log = lived.cluster.store().log();
    let name = |number: u64| format!("wal/{number:020}");
    let (older, last) = (log[log.len() / 2], *log.last().unwrap());

    let copy = lived.copy();
    copy.cluster.store().write(&name(last + 1), &copy.cluster.store().read(&name(older)));
    copy.look().await.assert_told(&name(last + 1), &["org-000", "org-001", "org-002"]).await;

    let copy = lived.copy();
    copy.cluster.store().write(&name(older), &copy.cluster.store().read(&name(older - 1)));
    copy.look().await.assert_told(&name(older), &["org-000", "org-001", "org-002"]).await;

    // What was acknowledged at the end is gone, while the ledger's segments say that it was there.
    let copy = lived.copy();
    for number in &log[log.len() - log.len() / 3..] {
        copy.cluster.store().remove(&name(*number));
    }
    copy.look().await.assert_whole_or_told(&["wal", "audit"]).await;
}

/// The floor's object, with another number and the MAC that it had.
fn raise_floor(store: &Folder, to: u64) -> String {
    let genuine = store.newest("wal/floor/", "");
    let number: u64 = genuine.rsplit('/').next().unwrap().parse().unwrap();
    let bytes = store.read(&genuine);
    let (body, mac) = bytes.split_at(bytes.len() - TRAILER);
    let mut floor: Value = serde_json::from_slice(body).unwrap();
    for value in floor.as_object_mut().unwrap().values_mut() {
        if *value == json!(number) {
            *value = json!(to);
        }
    }
    let object = format!("wal/floor/{to:020}");
    store.write(&object, &[floor.to_string().as_bytes(), mac].concat());
    object
}

#[tokio::test(flavor = "multi_thread")]
async fn a_floor_raised_by_a_thief_hides_nothing() {
    let all = ["org-000", "org-001", "org-002"];
    for yaml in [UNFLUSHED, FLUSHED] {
        let lived = Lived::of(yaml, false).await;
        let end = *lived.cluster.store().log().last().unwrap();
        // Over a node that is down.
        for to in if yaml == UNFLUSHED { vec![end - 1, end] } else { vec![FAR] } {
            let copy = lived.copy();
            let object = raise_floor(&copy.cluster.store(), to);
            copy.look().await.assert_told(&object, &all).await;
        }
        // Under one that runs: what it acknowledges is there, or it acknowledges nothing.
        let server = lived.cluster.node().start().await;
        let object = raise_floor(&lived.cluster.store(), FAR);
        Look { lived, server, started: Started::Ready }.assert_told(&object, &all).await;
    }
}

/// An empty file in the floor's folder, and a genuine floor under a greater name.
#[tokio::test(flavor = "multi_thread")]
async fn a_floor_that_is_none_is_told() {
    let lived = Lived::of(UNFLUSHED, false).await;
    let genuine = lived.cluster.store().newest("wal/floor/", "");
    for bytes in [Vec::new(), lived.cluster.store().read(&genuine)] {
        let copy = lived.copy();
        let object = format!("wal/floor/{FAR:020}");
        copy.cluster.store().write(&object, &bytes);
        copy.look().await.assert_told(&object, &["org-000", "org-001", "org-002"]).await;
    }
}

/// The states of an org.
fn states(store: &Folder, org: &str) -> Vec<String> {
    let states = store.list(&format!("orgs/{org}/state/"));
    assert!(states.len() >= 2, "an org has several states: {:?}", store.list(&format!("orgs/{org}/")));
    states
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_replaced_by_an_older_one_counts_nothing_twice_and_forgets_nothing() {
    let lived = Lived::of(&format!("{FLUSHED}\n{}", trimmed_at_once()), false).await;
    let states = states(&lived.cluster.store(), ORG);
    let (older, newest) = (&states[states.len() - 2], states.last().unwrap());
    // Its bytes under the newest one's name.
    let copy = lived.copy();
    copy.cluster.store().write(newest, &copy.cluster.store().read(older));
    copy.look().await.assert_told(newest, &[ORG]).await;
    // Its bytes under the name of a position that is yet to come.
    let copy = lived.copy();
    let ahead = format!("orgs/{ORG}/state/{FAR:020}");
    copy.cluster.store().write(&ahead, &copy.cluster.store().read(older));
    copy.look().await.assert_told(&ahead, &[ORG]).await;
    // The newest gone: Delta and the ledger are ahead of what is left.
    let copy = lived.copy();
    copy.cluster.store().remove(newest);
    copy.look().await.assert_whole_or_told(&[&format!("orgs/{ORG}/"), "wal"]).await;
    // All gone, as of an org that never was.
    let copy = lived.copy();
    for state in &states {
        copy.cluster.store().remove(state);
    }
    copy.look().await.assert_whole_or_told(&[&format!("orgs/{ORG}/"), "wal"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_copied_between_orgs_are_not_believed() {
    let lived = Lived::of(FLUSHED, false).await;
    let store = lived.cluster.store();
    let moved = |part: &str| {
        let copy = lived.copy();
        let to = copy.cluster.store();
        let (from, into) = (format!("orgs/org-000/{part}/"), format!("orgs/{ORG}/{part}/"));
        let objects = store.list(&from);
        assert!(!objects.is_empty(), "org-000 has no {part}: {:?}", store.list("orgs/org-000/"));
        for old in to.list(&into) {
            to.remove(&old);
        }
        for object in objects {
            to.write(&format!("{into}{}", object.strip_prefix(&from).unwrap()), &store.read(&object));
        }
        copy
    };
    for part in ["state", "tool_invocations", "tool_usage_hourly"] {
        let mut look = moved(part).look().await;
        for other in ["org-000", "org-002"] {
            assert_eq!(look.found_well(other).await, Found::Whole, "org {other}, for {part}");
        }
        let is_named = |why: &str| why.contains(&format!("orgs/{ORG}/")) || why.contains("wal");
        match look.settled(ORG, is_named).await {
            Found::Whole => {}
            Found::Refused(why) => assert!(is_named(&why), "{part}: {why}"),
        }
    }
}

/// A genuine layout of another store, under the key of that store.
#[tokio::test(flavor = "multi_thread")]
async fn a_layout_of_another_key_is_refused() {
    let (lived, other) = (Lived::of(FLUSHED, true).await, Lived::of(FLUSHED, true).await);
    let store = lived.cluster.store();
    store.write("wal/layout", &other.cluster.store().read("wal/layout"));
    let look = lived.look().await;
    assert!(matches!(look.started, Started::Ended(_)), "{:?}:\n{}", look.started, look.server.logs());
    assert!(look.server.logs().contains("wal/layout"), "{}", look.server.logs());
}

/// A check on the checks: nothing was changed, and nothing is refused.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_nobody_touched_is_whole() {
    for (yaml, orderly) in [(FLUSHED, true), (FLUSHED, false), (UNFLUSHED, false)] {
        let lived = Lived::of(yaml, orderly).await;
        let mut look = lived.copy().look().await;
        assert_eq!(look.started, Started::Ready);
        for org in look.lived.orgs.clone() {
            assert_eq!(look.found_well(&org).await, Found::Whole, "org {org}");
            assert_eq!(refusal(&look.server.client().with_org(&org)).await, None);
        }
    }
}
