//! Writing and loading a ledger over a store that holds what it does not continue.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use object_store::path::Path;
use tokio::time::advance;

use super::load::{assemble, signed};
use super::publisher::{Outcome, Publisher, publish};
use super::replication::{Elsewhere, SignedCheckpoint};
use super::retention::last_hash;
use super::state::{LedgerEnd, LedgerState};
use super::status::{Pruned, Status};
use super::{Ledger, folder, kept_path, newest_path, segment_path};
use crate::audit::fixtures::events;
use crate::audit::segment::{SegmentName, SegmentWriter};
use crate::audit::tree::{Peaks, leaf_hash};
use crate::audit::{ChainHead, Checkpoint, Hash, Leaf, Signer, TreeEdge, checkpoint};
use crate::maintenance::tests::World;
use crate::model::OrgName;
use crate::node::{Health, Node};
use crate::storage::Store;

fn org() -> OrgName {
    World::org()
}

fn origin(node: &Node) -> String {
    checkpoint::origin(&node.settings.name, &org())
}

/// A signed history of some entries, which its name tells from others.
struct History {
    edge: TreeEdge,
    peaks: Peaks,
    checkpoint: Checkpoint,
    note: String,
    tiles: Vec<(String, Bytes)>,
}

impl History {
    fn new(node: &Node, size: u64, name: &str) -> Self {
        let (mut edge, mut peaks) = (TreeEdge::default(), Peaks::default());
        for seq in 0..size {
            let hash = |seq: u64| Hash::of(&[name.as_bytes(), &seq.to_le_bytes()]);
            let prev_hash = if seq == 0 { Hash::ZERO } else { hash(seq - 1) };
            let leaf = Leaf { seq, prev_hash, entry_hash: hash(seq) };
            edge.push(&leaf);
            peaks.push(leaf_hash(&leaf.bytes()));
        }
        let checkpoint = Checkpoint { origin: origin(node), size, root: edge.root() };
        let mut signer = Signer::new(origin(node), Arc::clone(&node.signing), Peaks::default());
        let note = signer.sign(&checkpoint, edge.grown()).unwrap();
        let tiles = edge.take_tiles();
        edge.settle();
        Self { edge, peaks, checkpoint, note, tiles }
    }

    fn newest(&self) -> SignedCheckpoint {
        SignedCheckpoint::found(self.checkpoint.clone(), self.note.clone())
    }

    /// A ledger that goes on from it.
    fn ledger(self, node: &Node, state: LedgerState, newest: Option<SignedCheckpoint>) -> Ledger {
        let signer = Signer::new(origin(node), Arc::clone(&node.signing), self.peaks);
        Ledger::new(org(), state, Publisher::new(self.edge, signer, newest), Arc::new(Health::new(org())))
    }
}

async fn put(store: &Store, path: &Path, bytes: impl Into<Bytes>) {
    store.put(path, bytes.into()).await.unwrap();
}

async fn text(store: &Store, path: &Path) -> Option<String> {
    store.get(path).await.unwrap().map(|bytes| String::from_utf8(bytes.to_vec()).unwrap())
}

fn schema(node: &Node) -> arrow::datatypes::SchemaRef {
    Arc::clone(&node.schemas.audit_log)
}

/// A ledger of which the log has just decided that its first entries are a segment, which is this node's to write.
fn cut(node: &Node, count: usize) -> LedgerState {
    let mut state = LedgerState::new(origin(node), schema(node));
    let sealed = state.seal_after(&ChainHead::default(), &events(0, &vec![("tool.permit", None); count])).unwrap();
    state.apply(1, sealed);
    state.cut(true);
    state
}

/// A ledger of ten entries of which the last says that four are pruned.
fn pruned(node: &Node) -> LedgerState {
    let end = LedgerEnd {
        size: 10,
        hash: "ab".repeat(32),
        first: 4,
        segments: vec![6],
        times: vec![None],
        status: Status { pruned: Some(Pruned { entry: 9, first_kept: 4 }), ..Status::default() },
    };
    let mut state = LedgerState::restore(origin(node), schema(node), &end).unwrap();
    state.place(&[(SegmentName { first: 4, last: 9 }, 1)], 10).unwrap();
    state
}

#[tokio::test(start_paused = true)]
async fn what_was_pruned_goes_once_a_checkpoint_covers_the_prune_and_no_query_can_read_it() {
    let world = World::new();
    let (node, gone) = (&world.node, segment_path(&org(), SegmentName { first: 0, last: 3 }));
    for (covered, goes) in [(9, false), (10, true)] {
        put(&node.store, &gone, "entries").await;
        let ledger = History::new(node, covered, "a").ledger(node, pruned(node), None);
        publish(node, &ledger).await.unwrap();
        assert!(text(&node.store, &gone).await.is_some(), "a query that began before it may read it yet");
        advance(node.settings.query_time + Duration::from_secs(1)).await;
        publish(node, &ledger).await.unwrap();
        assert_eq!(text(&node.store, &gone).await.is_none(), goes, "the checkpoint covers {covered} entries");
    }
}

#[tokio::test(start_paused = true)]
async fn an_older_checkpoint_that_a_late_write_put_over_the_newest_is_put_right() {
    let world = World::new();
    let (node, hint) = (&world.node, newest_path(&org()));
    put(&node.store, &hint, History::new(node, 2, "a").note).await;
    let history = History::new(node, 3, "a");
    let (newest, note) = (history.newest(), history.note.clone());
    let ledger = history.ledger(node, LedgerState::new(origin(node), schema(node)), Some(newest));
    advance(Duration::from_secs(6)).await;
    publish(node, &ledger).await.unwrap();
    assert_eq!(text(&node.store, &hint).await, Some(note));
}

/// Rule L7: a checkpoint is written only by a node whose ledger continues the stored ones.
#[tokio::test]
async fn nothing_is_signed_where_the_store_has_a_newer_checkpoint() {
    let world = World::new();
    let (node, hint) = (&world.node, newest_path(&org()));
    let other = History::new(node, 50, "another").note;
    put(&node.store, &hint, other.clone()).await;
    let ledger = History::new(node, 0, "").ledger(node, cut(node, 3), None);
    assert_eq!(publish(node, &ledger).await.unwrap(), Outcome::Reload);
    assert_eq!(text(&node.store, &hint).await, Some(other));
    assert_eq!(text(&node.store, &kept_path(&org(), 3)).await, None);
}

#[tokio::test]
async fn a_signed_checkpoint_of_the_same_size_and_another_root_stops_the_org() {
    let world = World::new();
    let (node, kept) = (&world.node, kept_path(&org(), 3));
    let other = History::new(node, 3, "another").note;
    put(&node.store, &kept, other.clone()).await;
    let ledger = History::new(node, 0, "").ledger(node, cut(node, 3), None);
    let stopped = publish(node, &ledger).await.unwrap_err();
    assert!(stopped.to_string().contains("forked") && ledger.health.is_stopped(), "{stopped}");
    assert_eq!(text(&node.store, &kept).await, Some(other));
    assert_eq!(text(&node.store, &newest_path(&org())).await, None);
}

/// Rule L8: no checkpoint covers it, so a thief who can write the store may have put it there.
#[tokio::test]
async fn what_lies_in_the_place_of_a_segment_that_is_to_be_written_is_replaced() {
    let world = World::new();
    let node = &world.node;
    let (name, origin) = (SegmentName { first: 0, last: 2 }, origin(node));
    let state = LedgerState::new(origin.clone(), schema(node));
    let others = events(7, &[("tool.deny", None); 3]);
    let others = state.seal_after(&ChainHead::default(), &others).unwrap();
    let mut planted = SegmentWriter::new(&schema(node), &origin).unwrap();
    planted.write(&others.batch).unwrap();
    for planted in [Bytes::from("garbage"), planted.finish().unwrap()] {
        let path = segment_path(&org(), name);
        put(&node.store, &path, planted).await;
        let ledger = History::new(node, 0, "").ledger(node, cut(node, 3), None);
        assert_eq!(publish(node, &ledger).await.unwrap(), Outcome::Done);
        let stored = node.store.get(&path).await.unwrap().unwrap();
        let last = last_hash(path.as_ref(), name, stored, &origin).unwrap();
        assert_eq!(last, ledger.read().head().last);
    }
}

async fn store_tiles(store: &Store, history: &History) {
    for (path, bytes) in &history.tiles {
        put(store, &Path::from(format!("{}/tile/{path}", folder(&org()))), bytes.clone()).await;
    }
}

/// Rule L7: `checkpoint` is a hint.
#[tokio::test]
async fn the_newest_checkpoint_is_the_greater_of_the_hint_and_the_kept_ones() {
    let world = World::new();
    let node = &world.node;
    let (older, newer) = (History::new(node, 2, "a"), History::new(node, 3, "a"));
    for history in [&older, &newer] {
        store_tiles(&node.store, history).await;
        put(&node.store, &kept_path(&org(), history.checkpoint.size), history.note.clone()).await;
    }
    put(&node.store, &newest_path(&org()), older.note.clone()).await;
    let found = signed(node, &Elsewhere::default(), &org(), &origin(node)).await.unwrap();
    assert_eq!(found.size(), 3);
    // The log is older than the ledger.
    let ledger = LedgerState::new(origin(node), schema(node));
    let refused = assemble(node, &org(), ledger, found, Arc::new(Health::new(org()))).await.unwrap_err();
    assert!(refused.is_damage() && refused.to_string().contains("the log is older"), "{refused}");
}

#[tokio::test]
async fn a_kept_checkpoint_under_another_size_or_of_another_root_is_damage() {
    let world = World::new();
    let node = &world.node;
    let (one, other) = (History::new(node, 3, "a"), History::new(node, 3, "another"));
    store_tiles(&node.store, &one).await;
    put(&node.store, &newest_path(&org()), one.note.clone()).await;
    for (size, note, what) in [(7, &one.note, "by another size"), (3, &other.note, "two signed checkpoints")] {
        put(&node.store, &kept_path(&org(), size), note.clone()).await;
        let refused = signed(node, &Elsewhere::default(), &org(), &origin(node)).await.unwrap_err();
        assert!(refused.is_damage() && refused.to_string().contains(what), "{refused}");
        node.store.delete(&kept_path(&org(), size)).await.unwrap();
    }
}

#[tokio::test]
async fn tiles_that_do_not_give_the_signed_root_are_damage() {
    let world = World::new();
    let node = &world.node;
    let (one, other) = (History::new(node, 3, "a"), History::new(node, 3, "another"));
    put(&node.store, &newest_path(&org()), one.note.clone()).await;
    store_tiles(&node.store, &other).await;
    assert!(signed(node, &Elsewhere::default(), &org(), &origin(node)).await.unwrap_err().is_damage());
    store_tiles(&node.store, &one).await;
    assert_eq!(signed(node, &Elsewhere::default(), &org(), &origin(node)).await.unwrap().size(), 3);
}
