//! A thief who can write the store and has no key, at the ledger's files: the control plane drops no event, prunes no
//! entry, signs nothing that was planted, and answers no query wrongly. (What `mcpg audit verify` says of each is shown
//! by the ledger's tests.)

use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch, StringArray};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use bytes::Bytes;
use mcpg::audit::segment::SegmentName;
use mcpg::audit::{ChainHead, Hash, seal};
use mcpg::model::schema::schemas;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use reqwest::Method;
use reqwest::header::CONTENT_TYPE;
use serde_json::{Value, json};

use super::outcome::{Found, Lived, Look, refusal};
use crate::harness::{Client, Cluster, Folder, Started, eventually, verify_ledger};
use crate::ledger::chain;
use crate::ledger::spoil::{events_of, read, sign, with_column};

const ORG: &str = "org-001";
const FLUSHED: &str = "flush: { interval: 300ms }";
/// A number that no log and no ledger of a test ever reaches.
const FAR: u64 = 1_000_000_000_000_000;

fn segments(store: &Folder) -> Vec<String> {
    store.list(&format!("orgs/{ORG}/audit/segments/"))
}

fn newest_segment(store: &Folder) -> String {
    store.newest(&format!("orgs/{ORG}/audit/segments/"), ".parquet")
}

/// The metadata of a segment, but for what the reader makes of the columns.
fn metadata(store: &Folder, object: &str) -> Vec<(String, String)> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(Bytes::from(store.read(object))).unwrap();
    let pairs = builder.metadata().file_metadata().key_value_metadata().cloned().unwrap_or_default();
    let pairs = pairs.into_iter().filter(|pair| pair.key != "ARROW:schema");
    pairs.map(|pair| (pair.key, pair.value.unwrap_or_default())).collect()
}

/// Writes entries as a segment with this metadata, with or without column statistics.
fn write_segment(store: &Folder, object: &str, batch: &RecordBatch, pairs: &[(String, String)], statistics: bool) {
    let level = if statistics { EnabledStatistics::Chunk } else { EnabledStatistics::None };
    let form = WriterProperties::builder().set_statistics_enabled(level).build();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(form)).unwrap();
    writer.write(batch).unwrap();
    for (key, value) in pairs {
        writer.append_key_value_metadata(KeyValue::new(key.clone(), value.clone()));
    }
    store.write(object, &writer.into_inner().unwrap());
}

/// Sets a value of a segment's metadata.
fn set_metadata(store: &Folder, object: &str, key: &str, value: &str) {
    let mut pairs = metadata(store, object);
    pairs.retain(|(name, _)| name != key);
    pairs.push((key.to_owned(), value.to_owned()));
    write_segment(store, object, &read(&store.file(object)), &pairs, true);
}

/// Replaces bytes in the footer of a segment, where it has them.
fn patch_footer(store: &Folder, object: &str, from: &[u8], to: &[u8]) {
    assert_eq!(from.len(), to.len());
    let mut bytes = store.read(object);
    let length = u32::from_le_bytes(bytes[bytes.len() - 8..bytes.len() - 4].try_into().unwrap()) as usize;
    let footer = bytes.len() - 8 - length;
    for at in footer..bytes.len() - 8 - from.len() {
        if &bytes[at..at + from.len()] == from {
            bytes[at..at + to.len()].copy_from_slice(to);
        }
    }
    store.write(object, &bytes);
}

/// Where the chain stands after a segment.
fn chain_head(batch: &RecordBatch) -> ChainHead {
    let last = batch.num_rows() - 1;
    let seq = batch.column_by_name("seq").unwrap().as_primitive::<Int64Type>().value(last);
    let hash = batch.column_by_name("entry_hash").unwrap().as_string::<i32>().value(last).parse().unwrap();
    ChainHead { size: seq as u64 + 1, last: hash }
}

/// Entries that go on from a chain, by another actor, properly hashed: a thief needs no key for that.
fn forged_entries(origin: &str, newest: &RecordBatch, actor: &str) -> RecordBatch {
    let events = events_of(newest);
    let actors = StringArray::from(vec![actor; events.num_rows()]);
    let events = with_column(&events, "actor", Arc::new(actors));
    let schema = &schemas().unwrap().audit_event;
    let events = RecordBatch::try_new(Arc::clone(schema), events.columns().to_vec()).unwrap();
    seal(&schemas().unwrap().audit_log, origin, &chain_head(newest), &events).unwrap().batch
}

async fn entries_by(client: &Client, actor: &str) -> i64 {
    client.number(&format!("SELECT count(*) FROM audit_log WHERE actor = '{actor}'")).await
}

/// Asserts that entries by `actor`, which were planted, are neither served nor signed.
async fn assert_not_believed(look: &mut Look, actor: &str, objects: &[String]) {
    let named = |said: &str| objects.iter().any(|object| said.contains(object.rsplit('/').next().unwrap()));
    let client = look.server.client().with_org(ORG);
    let is_final = |why: &str| named(why) || why.contains("audit");
    match look.settled(ORG, is_final).await {
        Found::Whole => assert_eq!(entries_by(&client, actor).await, 0, "what was planted is served"),
        Found::Refused(why) => assert!(is_final(&why), "none of {objects:?} is named: {why}"),
    }
    for other in ["org-000", "org-002"] {
        assert_eq!(look.found_well(other).await, Found::Whole, "org {other}");
    }
    // Whatever was signed since does not cover it.
    let (code, said) = verify_ledger(look.lived.cluster.store().path(), ORG, &look.lived.vkeys[ORG]).await;
    assert!(code == 0 || named(&said), "verify says {code}: {said}");
    for object in objects.iter().filter(|object| code == 0 && look.lived.cluster.store().file(object).exists()) {
        let planted = read(&look.lived.cluster.store().file(object));
        let actors = planted.column_by_name("actor").unwrap().as_string::<i32>().clone();
        assert!(actors.iter().flatten().all(|found| found != actor), "what was planted is part of a sound ledger");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_segments_position_far_ahead_drops_no_event() {
    let lived = Lived::of(FLUSHED, true).await;
    let store = lived.cluster.store();
    set_metadata(&store, &newest_segment(&store), "mcpg.position", &FAR.to_string());
    lived.look().await.assert_whole_or_told(&["audit/segments"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_segments_position_set_back_doubles_no_event() {
    let lived = Lived::of(FLUSHED, false).await;
    let store = lived.cluster.store();
    set_metadata(&store, &newest_segment(&store), "mcpg.position", "1");
    lived.look().await.assert_whole_or_told(&["audit/segments"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_segment_planted_behind_the_newest_checkpoint_while_the_node_is_down_is_not_signed() {
    let lived = Lived::of(FLUSHED, true).await;
    let store = lived.cluster.store();
    let object = newest_segment(&store);
    let newest = read(&store.file(&object));
    let origin = lived.vkeys[ORG].split('+').next().unwrap();
    let forged = forged_entries(origin, &newest, "user:mallory");
    let first = chain_head(&newest).size;
    let name = SegmentName { first, last: first + forged.num_rows() as u64 - 1 };
    let planted = format!("orgs/{ORG}/audit/segments/{name}");
    write_segment(&store, &planted, &forged, &metadata(&store, &object), false);
    let mut look = lived.look().await;
    assert_not_believed(&mut look, "user:mallory", &[planted]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_segment_planted_under_a_running_node_is_not_signed() {
    let lived = Lived::of(FLUSHED, true).await;
    let mut server = lived.cluster.node().start().await;
    let store = lived.cluster.store();
    chain::sealed(&server.client().with_org(ORG)).await;
    let object = newest_segment(&store);
    let newest = read(&store.file(&object));
    let origin = lived.vkeys[ORG].split('+').next().unwrap().to_owned();
    let forged = forged_entries(&origin, &newest, "user:mallory");
    // Just the range that the next batch of events will fill, so that the node finds its own name taken; and a longer
    // one.
    let first = chain_head(&newest).size;
    let lengths = [forged.num_rows().min(2), forged.num_rows()];
    let planted = lengths.map(|length| {
        let name = SegmentName { first, last: first + length as u64 - 1 };
        format!("orgs/{ORG}/audit/segments/{name}")
    });
    for (length, path) in lengths.into_iter().zip(&planted) {
        write_segment(&store, path, &forged.slice(0, length), &metadata(&store, &object), false);
    }
    assert!(server.alive());
    let mut look = Look { lived, server, started: Started::Ready };
    assert_not_believed(&mut look, "user:mallory", &planted).await;
    // Nor after a restart.
    look.server.kill();
    look.started = look.server.try_start(std::time::Duration::from_secs(60)).await;
    assert_not_believed(&mut look, "user:mallory", &planted).await;
}

/// A head over another tree, as only who has the key can sign it: two of one size. Nothing may be signed on top of
/// either.
#[tokio::test(flavor = "multi_thread")]
async fn a_fork_planted_under_a_running_node_stops_the_org_and_nothing_is_signed() {
    let lived = Lived::of(FLUSHED, true).await;
    let server = lived.cluster.node().start().await;
    let (client, store) = (server.client().with_org(ORG), lived.cluster.store());
    chain::sealed(&client).await;
    let size = chain::size(&client).await;
    let origin = lived.vkeys[ORG].split('+').next().unwrap();
    for ahead in 1..=4 {
        let head = sign(&lived.cluster.key_file(), origin, size + ahead, Hash([7; 32]));
        store.write(&format!("orgs/{ORG}/audit/checkpoints/{:020}", size + ahead), &head);
    }
    let heads = store.list(&format!("orgs/{ORG}/audit/checkpoints/"));
    chain::emit(&client, 1).await;
    let why = eventually("the org to be stopped", std::time::Duration::from_secs(60), async || {
        refusal(&client).await.filter(|why| why.contains("org_stopped"))
    })
    .await;
    assert!(why.contains("checkpoint"), "{why}");
    assert_eq!(store.list(&format!("orgs/{ORG}/audit/checkpoints/")), heads, "a head was signed over a fork");
    let (code, _) = verify_ledger(store.path(), ORG, &lived.vkeys[ORG]).await;
    assert_ne!(code, 0, "verify finds the fork too");
}

async fn post(client: &Client, path: &str, body: Value) -> Value {
    let headers = [(CONTENT_TYPE, "application/json")];
    client.send(Method::POST, path, &headers, body.to_string().into_bytes()).await.unwrap().ok().json()
}

/// What a prune would remove now, or a refusal that names the segments.
async fn would_prune(look: &Look) -> u64 {
    let client = look.server.client().with_org(ORG);
    let answer = client.send(Method::POST, "audit/prune?dry_run=true", &[], Vec::new()).await.unwrap();
    if !answer.status.is_success() {
        assert!(answer.text().contains("segments"), "{}", answer.text());
        return 0;
    }
    answer.json()["entries"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_greatest_age_set_back_in_a_segments_footer_prunes_nothing() {
    let lived = Lived::of(FLUSHED, true).await;
    let store = lived.cluster.store();
    for object in segments(&store) {
        let batch = read(&store.file(&object));
        write_segment(&store, &object, &batch, &metadata(&store, &object), true);
        let times = batch.column_by_name("recorded_at").unwrap().as_primitive::<TimestampMicrosecondType>().clone();
        // Statistics of the year 2001: older than any rule keeps.
        for time in [arrow::compute::min(&times), arrow::compute::max(&times)].into_iter().flatten() {
            patch_footer(&store, &object, &time.to_le_bytes(), &1_000_000_000_000_000_i64.to_le_bytes());
        }
    }
    let mut look = lived.look().await;
    if look.started == Started::Ready {
        assert_eq!(would_prune(&look).await, 0, "entries seconds old would be pruned");
        let client = look.server.client().with_org(ORG);
        drop(client.send(Method::POST, "audit/prune", &[], Vec::new()).await.unwrap());
    }
    let found = look.settled(ORG, |why| why.contains("segments")).await;
    assert!(found == Found::Whole || matches!(&found, Found::Refused(why) if why.contains("segments")), "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_actors_range_narrowed_in_a_segments_footer_hides_no_entry() {
    let lived = Lived::of(FLUSHED, true).await;
    let store = lived.cluster.store();
    for object in segments(&store) {
        let batch = read(&store.file(&object));
        write_segment(&store, &object, &batch, &metadata(&store, &object), true);
        // Least and greatest actor become one that no entry has.
        patch_footer(&store, &object, b"service:fleet", b"zzzzzzz:zzzzz");
    }
    let mut look = lived.look().await;
    // It counts the entries of each batch by this very actor.
    let found = look.settled(ORG, |why| why.contains("segments")).await;
    assert!(found == Found::Whole || matches!(&found, Found::Refused(why) if why.contains("segments")), "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_taken_out_of_a_segments_metadata_prunes_nothing() {
    // Everything is older than it is kept at once; only the hold keeps it.
    let short = "orgs: [{ name: org-001, tier: enterprise, retention: { ledger: 1s } }]";
    let cluster = Cluster::new(&format!("{FLUSHED}\n{short}"));
    let mut server = cluster.node().start().await;
    let client = server.client().with_org(ORG);
    post(&client, "audit/hold", json!({ "reason": "case 4711" })).await;
    for _ in 0..3 {
        chain::emit(&client, 5).await;
        chain::sealed(&client).await;
    }
    assert!(server.stop().await.success());
    let store = cluster.store();
    for object in segments(&store) {
        for (key, value) in metadata(&store, &object) {
            if let Ok(mut standing) = serde_json::from_str::<Value>(&value)
                && standing.get("hold").is_some()
            {
                standing["hold"] = Value::Null;
                set_metadata(&store, &object, &key, &standing.to_string());
            }
        }
    }
    let started = server.try_start(std::time::Duration::from_secs(60)).await;
    let Started::Ready = started else {
        assert!(server.logs().contains("segments"), "{}", server.logs());
        return;
    };
    let pruned = client.send(Method::POST, "audit/prune", &[], Vec::new()).await.unwrap();
    if pruned.status.is_success() {
        assert_eq!(pruned.json()["entries"], 0, "pruned under a legal hold: {}", pruned.text());
    }
    match refusal(&client).await {
        None => assert_eq!(client.number("SELECT count(*) FROM audit_log WHERE actor = 'user:alice@acme'").await, 15),
        Some(why) => assert!(why.contains("segments"), "{why}"),
    }
}

/// Files of one org's ledger in another's.
#[tokio::test(flavor = "multi_thread")]
async fn a_ledgers_files_copied_to_another_org_are_not_believed() {
    let lived = Lived::of(FLUSHED, true).await;
    for part in ["segments", "checkpoint", "checkpoints", "tile", ""] {
        let copy = lived.copy();
        let store = copy.cluster.store();
        let (from, to) = (format!("orgs/org-000/audit/{part}"), format!("orgs/{ORG}/audit/{part}"));
        for object in store.list(&from) {
            store.write(&format!("{to}{}", object.strip_prefix(&from).unwrap()), &store.read(&object));
        }
        let mut look = copy.look().await;
        let is_named = |why: &str| why.contains(&format!("orgs/{ORG}/audit")) || why.contains("ledger");
        if let Found::Refused(why) = look.settled(ORG, is_named).await {
            assert!(is_named(&why), "{part}: {why}");
        }
        for other in ["org-000", "org-002"] {
            assert_eq!(look.found_well(other).await, Found::Whole, "org {other}, for {part}");
        }
    }
}
