//! Nodes on one store in memory: races for a place in the log, and what a node does on a store that holds what it did
//! not write.

use std::sync::Arc;
use std::time::Duration;

use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use ed25519_dalek::SigningKey;
use object_store::memory::InMemory;
use object_store::path::Path;
use parking_lot::Mutex;
use tokio::time::sleep;

use super::system_events::SystemEvent;
use super::{Ack, Elsewhere, Parts, Plane, PlaneError};
use crate::audit::SigningKeys;
use crate::config::ControlPlane;
use crate::flush::trim::park;
use crate::flush::{Part, flush};
use crate::ingest::{
    BatchId, DecodeContext, DecodeLimits, Encoding, Fingerprint, IdempotencyKey, Media, RandomIds, RowKind, decode,
};
use crate::ledger::payload_keys::KEY_DESTROYING;
use crate::log::{Front, Object, Rules, name};
use crate::model::{Clock, OrgName, SystemRandom};
use crate::state::load::read_parked;
use crate::state::{Org, parked_paths};
use crate::storage::Store;
use crate::storage::parquet::encode_by;
use crate::telemetry::metrics::Metrics;

/// A clock that stands still until it is set.
#[derive(Debug)]
struct Stopped(Mutex<DateTime<Utc>>);

impl Clock for Stopped {
    fn now(&self) -> DateTime<Utc> {
        *self.0.lock()
    }
}

fn noon() -> DateTime<Utc> {
    "2026-05-01T12:00:00Z".parse().unwrap()
}

/// A store and the time of day.
struct World {
    objects: Arc<InMemory>,
    clock: Arc<Stopped>,
}

impl World {
    fn new() -> Self {
        Self { objects: Arc::default(), clock: Arc::new(Stopped(Mutex::new(noon()))) }
    }

    /// One more node, which serves. It flushes when it is asked to, unless `config` says otherwise.
    async fn node(&self, config: &str) -> Arc<Plane> {
        let flush = if config.is_empty() { "flush: { interval: 1h }" } else { config };
        let settings = ControlPlane::parse("test.yaml", flush, &|_| None).unwrap();
        let parts = Parts {
            store: Store::new(Arc::clone(&self.objects) as _, "memory://"),
            clock: Arc::clone(&self.clock) as _,
            random: Arc::new(SystemRandom),
            metrics: Arc::new(Metrics::new()),
            signing: Arc::new(SigningKeys::new(SigningKey::from_bytes(&[7; 32]))),
            elsewhere: Elsewhere::default(),
            rules: Rules::default(),
        };
        let plane = Plane::new(&settings, parts).unwrap();
        plane.recover().await.unwrap();
        plane.load(&org()).await.unwrap();
        plane
    }
}

fn org() -> OrgName {
    OrgName::default()
}

/// A sample, as it comes in.
fn sample() -> RecordBatch {
    let body = r#"{"workspace":"prod","instance":"gw-1","plugin":"github","tool":"a","duration_ms":84,"outcome":"ok",
        "started_at":"2026-05-01T11:30:00Z"}"#;
    let context = DecodeContext { org: &org(), now: noon(), limits: DecodeLimits::default() };
    let body = Bytes::from_static(body.as_bytes());
    decode(&body, Media::Json, Encoding::Identity, &context, &mut RandomIds::default()).unwrap()
}

/// Sends a sample under a key.
async fn send(plane: &Arc<Plane>, key: &str) -> Result<Ack, PlaneError> {
    let key = IdempotencyKey::new(RowKind::Sample, key.as_bytes()).unwrap();
    let id = BatchId::Key { key, body: Fingerprint(7) };
    plane.append(&org(), RowKind::Sample, sample(), Some(id), plane.admit(1_000).await?).await
}

/// How many samples a node shows.
async fn samples(plane: &Arc<Plane>) -> u64 {
    let view = plane.view(&org()).await.unwrap();
    let live = view.samples.live.iter().map(|batch| batch.num_rows() as u64).sum::<u64>();
    live + view.samples.files.iter().map(|file| file.rows).sum::<u64>()
}

fn loaded(plane: &Arc<Plane>) -> Arc<Org> {
    plane.registry.loaded(&org()).unwrap()
}

async fn listed(plane: &Arc<Plane>, folder: &str) -> Vec<Path> {
    let listed = plane.node.store.list(&Path::from(folder)).await.unwrap();
    listed.into_iter().map(|meta| meta.location).collect()
}

/// Rule L1: after a loss, the keys of all batches of a group are looked up again.
#[tokio::test]
async fn a_batch_that_lost_its_place_to_its_own_retry_on_another_node_is_stored_once() {
    let world = World::new();
    let (one, other) = (world.node("").await, world.node("").await);
    let answers = tokio::join!(send(&one, "k"), send(&other, "k"));
    let duplicates = [answers.0.unwrap().duplicate, answers.1.unwrap().duplicate];
    assert_eq!(duplicates.iter().filter(|is| **is).count(), 1, "{duplicates:?}");
    for node in [&one, &other] {
        assert_eq!(samples(node).await, 1);
    }
}

/// The second of two batches of one key waits for the first one's fate, and is then decided.
#[tokio::test]
async fn of_two_batches_of_one_key_in_one_group_one_is_stored() {
    let world = World::new();
    let node = world.node("").await;
    let answers = tokio::join!(send(&node, "k"), send(&node, "k"));
    let duplicates = [answers.0.unwrap().duplicate, answers.1.unwrap().duplicate];
    assert_eq!(duplicates.iter().filter(|is| **is).count(), 1, "{duplicates:?}");
    assert_eq!(samples(&node).await, 1);
}

#[tokio::test]
async fn a_drain_leaves_nothing_in_the_log_alone() {
    let world = World::new();
    let node = world.node("").await;
    send(&node, "k").await.unwrap();
    assert!(listed(&node, "orgs/default/state").await.is_empty());
    node.drain().await.unwrap();
    assert!(!listed(&node, "orgs/default/state").await.is_empty());
    let files = listed(&node, "orgs/default/tool_invocations").await;
    assert!(files.iter().any(|path| path.as_ref().ends_with(".parquet")), "{files:?}");
    assert!(!listed(&node, "orgs/default/audit/checkpoints").await.is_empty(), "no entry is signed");
}

/// Rule L11: a node that is too old for an object takes no part any more, and says so.
#[tokio::test(start_paused = true)]
async fn a_node_that_is_too_old_for_an_object_neither_serves_nor_flushes_nor_trims() {
    let world = World::new();
    let node = world.node("flush: { interval: 2s }").await;
    send(&node, "k").await.unwrap();
    node.settle().await;
    let next = node.follower.cursor.lock().await.next;
    let front = Front { seq: next, writer: node.node.writer, written_at: 1, previous: None };
    let (_, pieces) = Object::encode(node.node.log.keys(), front, Vec::new()).unwrap();
    let mut bytes = pieces.concat();
    let at = bytes.windows(9).position(|window| window == b"\"needs\":2").unwrap();
    bytes[at + 8] = b'9';
    let header = 20 + u32::from_le_bytes(bytes[16..20].try_into().unwrap()) as usize;
    let trailer = node.node.log.keys().trailer(&name(next), &bytes[..header]);
    bytes.truncate(header);
    bytes.extend_from_slice(&trailer);
    node.node.store.put(&Path::from(name(next)), bytes.into()).await.unwrap();
    let refused = node.view(&org()).await.unwrap_err();
    assert!(matches!(refused, PlaneError::Misconfigured(_)) && refused.to_string().contains("version 9"), "{refused}");
    sleep(Duration::from_secs(60)).await;
    assert!(listed(&node, "orgs/default/state").await.is_empty(), "it flushed");
    assert_eq!(node.node.log.floor().await.unwrap().number, 0, "it trimmed");
    node.drain().await.unwrap();
    assert!(listed(&node, "orgs/default/state").await.is_empty(), "it flushed at its end");
}

/// Rule L8: what lies under the name of a run of keys before it is stored is not taken for it.
#[tokio::test]
async fn what_lies_in_the_place_of_a_run_of_keys_is_replaced() {
    let world = World::new();
    let node = world.node("").await;
    send(&node, "first").await.unwrap();
    // A run is closed by the first object after five minutes.
    *world.clock.0.lock() += chrono::TimeDelta::minutes(6);
    send(&node, "second").await.unwrap();
    let org = loaded(&node);
    let names: Vec<_> = org.state.read().dedup.keys().runs().map(|run| run.reference().name()).collect();
    assert_eq!(names.len(), 1);
    let path = Path::from(format!("orgs/default/keys/{}", names[0]));
    node.node.store.put(&path, "garbage".into()).await.unwrap();
    node.drain().await.unwrap();
    let next = world.node("").await;
    assert!(send(&next, "first").await.unwrap().duplicate);
}

/// Rule L4: a table that says that it holds what the log does not have yet is of another history.
#[tokio::test]
async fn a_table_that_is_ahead_of_the_log_is_damage_and_takes_no_sample_away() {
    let world = World::new();
    let node = world.node("").await;
    send(&node, "first").await.unwrap();
    let org = loaded(&node);
    flush(&node.node, &org).await.unwrap();
    {
        let mut tables = org.tables.lock().await;
        let table = Part::Samples.table(&mut tables);
        let held = table.refresh().await.unwrap().position;
        let rows = [sample()];
        let files = encode_by(table.partitioning(), &node.node.schemas.tool_invocations, &rows, 1).unwrap();
        table.append(files, held, 1_000, 0, uuid::Uuid::new_v4).await.unwrap();
    }
    send(&node, "second").await.unwrap();
    let refused = flush(&node.node, &org).await.unwrap_err();
    assert!(matches!(refused, PlaneError::Damaged(_)), "{refused}");
}

/// Rule L10: an object's copy for one org stands for that object alone.
#[tokio::test]
async fn what_lies_in_the_place_of_a_parked_object_is_replaced() {
    let world = World::new();
    let node = world.node("").await;
    let mut objects = Vec::new();
    for key in ["first", "second"] {
        send(&node, key).await.unwrap();
        node.settle().await;
        let position = node.follower.cursor.lock().await.next - 1;
        objects.push(node.node.log.read(position).await.unwrap().unwrap());
    }
    let [one, other] = [&objects[0], &objects[1]];
    let [path, _] = parked_paths(&org(), one.header.seq);
    let genuine = other.park(node.node.log.keys(), path.as_ref(), &org()).unwrap();
    for planted in [genuine, Bytes::from_static(b"garbage")] {
        node.node.store.put(&path, planted).await.unwrap();
        park(&node.node, &org(), &[one.header.seq]).await.unwrap();
        let parked = read_parked(&node.node, &org(), one.header.seq).await.unwrap().unwrap();
        assert_eq!(parked.id, one.id);
    }
}

/// A node that has not read of a hold yet begins to destroy a key: the log's order decides, not what the node knew.
#[tokio::test]
async fn nothing_is_destroyed_that_a_hold_in_the_log_keeps() {
    let world = World::new();
    let (one, other) = (world.node("").await, world.node("").await);
    let destroying = || vec![SystemEvent::new("system:test", KEY_DESTROYING).target("2026-04-01.30d")];
    one.record(&org(), destroying()).await.unwrap();
    other.hold(&org(), "user:auditor", "a case").await.unwrap();
    let refused = one.record(&org(), destroying()).await.unwrap_err();
    assert!(matches!(refused, PlaneError::OnHold { .. }), "{refused}");
    one.release(&org(), "user:auditor", "it is closed").await.unwrap();
    one.record(&org(), destroying()).await.unwrap();
    // Both may be of one object.
    let name = org();
    let (held, refused) = tokio::join!(one.hold(&name, "user:auditor", "another"), one.record(&name, destroying()));
    held.unwrap();
    assert!(matches!(refused, Ok(()) | Err(PlaneError::OnHold { .. })), "{refused:?}");
    let last = one.record(&org(), destroying()).await.unwrap_err();
    assert!(matches!(last, PlaneError::OnHold { .. }), "{last}");
}
