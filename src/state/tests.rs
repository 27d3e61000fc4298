//! States as they are stored: which of them count, and what is read of them.

use chrono::{DateTime, TimeDelta};

use super::snapshot::{self, Kept, Saved};
use super::{OrgState, state_path};
use crate::demo::Fleet;
use crate::ledger::state::LedgerEnd;
use crate::log::{ObjectId, OrgLimits};
use crate::maintenance::tests::World;
use crate::model::OrgName;
use crate::rollup::Digest;
use crate::storage::StorageError;

const LIMITS: OrgLimits = OrgLimits { series: 100, keys: 100 };

fn org() -> OrgName {
    World::org()
}

fn id() -> ObjectId {
    serde_json::from_str(r#""ab""#).unwrap()
}

/// An org in which nothing has happened yet.
fn state() -> OrgState {
    OrgState::new(org(), LIMITS)
}

/// Has `rows` calls come in at a position.
fn come(state: &mut OrgState, position: u64, rows: usize) {
    let now = DateTime::from_timestamp(1_700_000_000, 0).unwrap();
    let batch = Fleet::new(1, 1).batch(0, now - TimeDelta::seconds(1), now, rows).unwrap();
    state.begin(position, &id(), 1_700_000_000_000_000 + position as i64, None);
    state.totals.apply(&Digest::of(&batch).unwrap(), state.time);
}

/// An org in which a call came in at each of these positions.
fn come_to(positions: &[u64]) -> OrgState {
    let mut state = state();
    positions.iter().for_each(|position| come(&mut state, *position, 1));
    state
}

/// Stores a state as of where an org stands, upon `saved` or in full.
async fn keep(
    world: &World,
    state: &mut OrgState,
    ledger: LedgerEnd,
    saved: &Saved,
) -> Result<(Kept, Saved), StorageError> {
    let parts = snapshot::take(&org(), state, ledger, saved);
    let draft = snapshot::draft(world.node.log.keys(), parts, saved)?;
    snapshot::keep(&world.node, draft).await
}

async fn kept(world: &World, state: &mut OrgState, saved: &Saved) -> (Kept, Saved) {
    keep(world, state, LedgerEnd::default(), saved).await.unwrap()
}

async fn newest(world: &World) -> u64 {
    snapshot::newest(&world.node, &org()).await.unwrap().unwrap().header.position
}

/// Rule L5: changes name their base by position and by the log's object there.
#[tokio::test]
async fn changes_upon_the_state_of_another_log_are_passed_over() {
    let (world, other) = (World::new(), World::new());
    let (mut one, mut another) = (come_to(&[5]), come_to(&[5]));
    another.object = Some(serde_json::from_str(r#""cd""#).unwrap());
    let (_, saved) = kept(&world, &mut one, &Saved::default()).await;
    come(&mut one, 6, 3);
    assert!(kept(&world, &mut one, &saved).await.0.counts);
    assert_eq!(newest(&world).await, 6);
    kept(&other, &mut another, &Saved::default()).await;
    let path = state_path(&org(), 5);
    let genuine = other.node.store.get(&path).await.unwrap().unwrap();
    world.node.store.put(&path, genuine).await.unwrap();
    assert_eq!(newest(&world).await, 5, "what changed since the one state was put upon the other");
    let disagreed = keep(&world, &mut come_to(&[5]), LedgerEnd::default(), &Saved::default()).await.unwrap_err();
    assert!(disagreed.is_damage() && disagreed.to_string().contains("another log"), "{disagreed}");
}

/// A node that slept stores changes upon a state that another one has gone on from meanwhile.
#[tokio::test]
async fn a_state_that_came_late_does_not_count_and_is_stored_again_in_full() {
    let world = World::new();
    let mut sleeper = state();
    come(&mut sleeper, 5, 1);
    let (_, saved) = kept(&world, &mut sleeper, &Saved::default()).await;
    come(&mut sleeper, 6, 1);
    assert!(kept(&world, &mut sleeper, &saved).await.0.counts);
    come(&mut sleeper, 7, 1);
    let (late, base) = kept(&world, &mut sleeper, &saved).await;
    assert_eq!((late, base.clone()), (Kept { position: 7, counts: false }, Saved::default()));
    assert!(kept(&world, &mut sleeper, &base).await.0.counts);
    assert_eq!(newest(&world).await, 7);
}

/// A node that slept goes on below what another one has stored meanwhile: it does not know what that stands on.
#[tokio::test]
async fn a_node_that_is_behind_deletes_nothing_that_a_newer_state_stands_on() {
    let world = World::new();
    let mut awake = state();
    come(&mut awake, 5, 1);
    let (_, saved) = kept(&world, &mut awake, &Saved::default()).await;
    come(&mut awake, 6, 1);
    let (_, saved) = kept(&world, &mut awake, &saved).await;
    for position in 7..=9 {
        come(&mut awake, position, 1);
    }
    assert!(kept(&world, &mut awake, &saved).await.0.counts);
    let mut behind = come_to(&[5, 6, 7]);
    let (_, base) = kept(&world, &mut behind, &Saved::default()).await;
    come(&mut behind, 8, 1);
    kept(&world, &mut behind, &base).await;
    assert_eq!(newest(&world).await, 9);
}

/// What a state stands on may be deleted by a writer that has one of its own further down the chain.
#[tokio::test]
async fn a_state_does_not_count_while_another_lies_further_down_its_chain() {
    let world = World::new();
    let mut one = come_to(&[5]);
    let (_, saved) = kept(&world, &mut one, &Saved::default()).await;
    come(&mut one, 6, 1);
    come(&mut one, 7, 1);
    let (_, saved) = kept(&world, &mut one, &saved).await;
    kept(&world, &mut come_to(&[5, 6]), &Saved::default()).await;
    come(&mut one, 8, 1);
    assert!(!kept(&world, &mut one, &saved).await.0.counts);
}

/// A state that does not count is stored again in full, in its place, while another node goes on from the one before.
#[tokio::test]
async fn changes_go_upon_whichever_state_of_their_base_is_there() {
    let world = World::new();
    let mut one = come_to(&[5]);
    let (_, saved) = kept(&world, &mut one, &Saved::default()).await;
    come(&mut one, 6, 1);
    come(&mut one, 7, 1);
    let (_, saved) = kept(&world, &mut one, &saved).await;
    kept(&world, &mut come_to(&[5, 6]), &Saved::default()).await;
    come(&mut one, 8, 1);
    kept(&world, &mut one, &saved).await;
    let (replaced, _) = kept(&world, &mut come_to(&[5, 6, 7]), &Saved::default()).await;
    assert!(replaced.counts);
    let loaded = snapshot::newest(&world.node, &org()).await.unwrap().unwrap();
    assert_eq!((loaded.header.position, loaded.totals.encode()), (8, come_to(&[5, 6, 7, 8]).totals.encode()));
}

#[tokio::test]
async fn the_two_newest_states_are_kept_and_no_older_one() {
    let world = World::new();
    let mut state = state();
    for position in 5..9 {
        come(&mut state, position, 1);
        kept(&world, &mut state, &Saved::default()).await;
    }
    assert_eq!(snapshot::positions(&world.node, &org()).await.unwrap(), [7, 8]);
}

/// Rule L11.
#[tokio::test]
async fn a_state_of_a_newer_version_is_the_nodes_trouble_and_no_damage() {
    let world = World::new();
    let mut state = state();
    come(&mut state, 5, 1);
    kept(&world, &mut state, &Saved::default()).await;
    let (path, keys) = (state_path(&org(), 5), world.node.log.keys());
    let mut body = keys.open(path.as_ref(), &world.node.store.get(&path).await.unwrap().unwrap()).unwrap().to_vec();
    let at = body.windows(9).position(|window| window == b"\"needs\":4").unwrap();
    body[at + 8] = b'9';
    world.node.store.put(&path, keys.seal(path.as_ref(), body)).await.unwrap();
    let refused = snapshot::newest(&world.node, &org()).await.unwrap_err();
    assert!(matches!(refused, StorageError::Unusable { .. }), "{refused}");
}

/// Rule L7: what the log makes of a position is the same on all nodes.
#[tokio::test]
async fn two_states_of_a_position_with_two_ledgers_are_a_fork() {
    let world = World::new();
    let mut state = state();
    come(&mut state, 5, 1);
    let ledger = |size| LedgerEnd { size, hash: "ab".repeat(32), ..LedgerEnd::default() };
    keep(&world, &mut state, ledger(3), &Saved::default()).await.unwrap();
    keep(&world, &mut state, ledger(3), &Saved::default()).await.unwrap();
    let forked = keep(&world, &mut state, ledger(4), &Saved::default()).await.unwrap_err();
    assert!(forked.is_damage() && forked.to_string().contains("forked"), "{forked}");
}

/// Rule L6: a node's own configuration decides nothing of what an object does.
#[test]
fn limits_are_those_of_the_log_from_the_object_on_that_sets_them() {
    let mut state = state();
    come(&mut state, 5, 40);
    let before = state.totals.series_count();
    assert!(before > 2 && state.dedup.keys().max_bytes() == 100 * 24, "{before} series");
    let mut limited = self::state();
    limited.begin(4, &id(), 1, Some(OrgLimits { series: 2, keys: 1 }));
    come(&mut limited, 5, 40);
    assert!(limited.totals.overflowed_series() > 0, "two series are all that there may be");
    assert_eq!(limited.dedup.keys().max_bytes(), 24);
    assert_eq!(limited.limits, Some(OrgLimits { series: 2, keys: 1 }));
}
