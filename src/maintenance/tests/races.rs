//! Several that do the same, one that sleeps, and a store that fails at each step.

use std::sync::Arc;

use futures::FutureExt;
use object_store::memory::InMemory;

use super::super::erasure;
use super::super::merge::merge;
use super::super::names::HOUR;
use super::super::plan::{Bounds, plan};
use super::store::Played;
use super::{BEGAN, DAY, Memory, World, called_by, payloads, rng, samples, turn};
use crate::flush::Part;
use crate::rollup::Granularity;
use crate::storage::parquet::encode;
use crate::storage::table::{Replacement, TableSnapshot, cut_log};

/// Flushes of one hour to be merged, as of the next day.
async fn flushed(world: &World, flushes: usize) {
    let mut rng = rng(3);
    for _ in 0..flushes {
        world.set(BEGAN + HOUR);
        world.flush(&samples(&mut rng, 25, BEGAN, HOUR)).await;
    }
    world.set(BEGAN + DAY + 3 * HOUR);
}

async fn said(world: &World) -> impl PartialEq + std::fmt::Debug + use<> {
    (world.rows(Part::Samples).await, world.merged(Granularity::Hour).await, world.merged(Granularity::Day).await)
}

/// A merge of samples that is due, done but for its commit.
async fn prepared(world: &World) -> Replacement {
    let tables = world.handles().await;
    let view = tables.refresh(&world.node, Part::Samples).await.unwrap();
    let due = plan(&view.files, view.partitioning, Bounds::default(), world.node.now()).remove(0);
    let site = tables.site(&world.node, Part::Samples).await;
    let fence = tables.fence(Part::Samples).await.unwrap();
    let merged = merge(&world.node, &due, &site, Bounds::default(), None).await.unwrap();
    let operation = deltalake_core::protocol::DeltaOperation::Optimize { predicate: None, target_size: 0 };
    Replacement { inputs: due.inputs, outputs: merged.files, fence, changes_rows: false, operation }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_merges_of_the_same_files_one_changes_nothing() {
    let objects = Arc::new(InMemory::new());
    let (one, two) = (World::on(objects.clone(), 1), World::on(objects, 2));
    flushed(&one, 4).await;
    two.set(one.node.now());
    let before = said(&one).await;
    let (of_one, of_two) = (prepared(&one).await, prepared(&two).await);
    let (tables, others) = (one.handles().await, two.handles().await);
    let now = one.node.now();
    let (a, b) =
        futures::join!(tables.replace(Part::Samples, &of_one, now), others.replace(Part::Samples, &of_two, now));
    assert_eq!(u8::from(a.unwrap()) + u8::from(b.unwrap()), 1, "one of them is committed");
    assert_eq!(said(&two).await, before);
    assert_eq!(one.files(Part::Samples).await.len(), 1);
}

/// Files that were to be removed, and that another node merged in the meantime, are not removed: their rows are
/// elsewhere.
#[tokio::test(flavor = "multi_thread")]
async fn files_that_others_merged_do_not_count_as_removed() {
    let objects = Arc::new(InMemory::new());
    let (one, two) = (World::on(objects.clone(), 1), World::on(objects, 2));
    flushed(&one, 3).await;
    two.set(one.node.now());
    let (before, inputs) = (said(&one).await, one.files(Part::Samples).await);
    let operation = deltalake_core::protocol::DeltaOperation::Delete { predicate: None };
    let removal = Replacement { inputs, outputs: Vec::new(), fence: 0, changes_rows: true, operation };
    two.maintain().await;
    let tables = one.handles().await;
    assert!(!tables.replace(Part::Samples, &removal, one.node.now()).await.unwrap());
    assert_eq!(said(&two).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_without_a_lease_between_them_double_nothing() {
    let objects = Arc::new(InMemory::new());
    let (one, two) = (World::on(objects.clone(), 1), World::on(objects.clone(), 2));
    flushed(&one, 24).await;
    two.set(one.node.now());
    let before = said(&one).await;
    // Each takes the lease for its own, since the other's is long over by its clock.
    two.set(one.node.now() + HOUR);
    futures::join!(one.maintain(), two.maintain());
    assert_eq!(said(&one).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_holds_the_lease_spares_the_other_the_work() {
    let objects = Arc::new(InMemory::new());
    let (one, two) = (World::on(objects.clone(), 1), World::on(objects, 2));
    flushed(&one, 4).await;
    two.set(one.node.now());
    assert!(super::super::lease::take(&one.node, &World::org()).await.unwrap());
    let done = turn(&two.node, &two.handles().await, &mut Memory::default()).await.unwrap();
    assert_eq!(done.merges, 0);
    two.set(two.node.now() + 10 * 60_000_000);
    let done = turn(&two.node, &two.handles().await, &mut Memory::default()).await.unwrap();
    assert!(done.merges > 0, "it is over");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_merge_that_slept_while_others_merged_vacuumed_and_cut_the_log_changes_nothing() {
    let objects = Arc::new(InMemory::new());
    let (sleeper, other) = (World::on(objects.clone(), 1), World::on(objects, 2));
    flushed(&sleeper, 4).await;
    let asleep = sleeper.handles().await;
    let of_sleeper = prepared(&sleeper).await;
    other.set(sleeper.node.now());
    let before = said(&other).await;
    other.maintain().await;
    other.set(BEGAN + 5 * DAY);
    other.maintain().await;
    let mut table = other.table(Part::Samples).await;
    for position in 4..60 {
        table.append(Vec::new(), position, position + 1, 0, || other.node.random.uuid()).await.unwrap();
    }
    assert!(table.checkpoint().await.unwrap());
    assert!(cut_log(&other.node.store, table.folder(), i64::MAX).await.unwrap() > 50);
    assert!(!asleep.replace(Part::Samples, &of_sleeper, sleeper.node.now()).await.unwrap());
    assert_eq!(said(&other).await, before);
}

/// A flush that is paused just before its commit, while `meanwhile` happens on another node. Returns what the flush then
/// sees of the table, and the other node.
async fn flush_paused_while<F>(meanwhile: impl FnOnce(Arc<World>) -> F) -> (TableSnapshot, Arc<World>)
where
    F: Future<Output = ()> + Send + 'static,
{
    let objects = Arc::new(InMemory::new());
    let played = Played::over(&objects);
    let (sleeper, other) = (World::on(Arc::new(played.clone()), 1), Arc::new(World::on(objects, 2)));
    flushed(&sleeper, 1).await;
    let mut asleep = sleeper.table(Part::Samples).await;
    let next = asleep.version().unwrap() + 1;
    played.before(&format!("{next:020}.json"), meanwhile(Arc::clone(&other)).boxed());
    let rows = samples(&mut rng(4), 10, BEGAN, HOUR);
    let files = encode(&rows.schema(), &[rows], 1).unwrap();
    let now = asleep.append(files, 1, 2, 0, || sleeper.node.random.uuid()).await.unwrap();
    (now, other)
}

/// What happens meanwhile takes the version that the flush creates out of the log again.
#[tokio::test(flavor = "multi_thread")]
async fn a_flush_whose_commit_comes_when_the_log_has_been_cut_is_not_believed() {
    let (now, other) = flush_paused_while(|other| async move {
        let mut table = other.table(Part::Samples).await;
        for position in 1..60 {
            table.append(Vec::new(), position, position + 1, 0, || other.node.random.uuid()).await.unwrap();
        }
        assert!(table.checkpoint().await.unwrap());
        assert!(cut_log(&other.node.store, table.folder(), i64::MAX).await.unwrap() > 50);
    })
    .await;
    assert_eq!(now.position, 60, "it sees what the table came to, and not what it created");
    assert_eq!(now.files, other.table(Part::Samples).await.refresh().await.unwrap().files);
}

/// What happens meanwhile takes the flush's files, which no version names yet, for orphans.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_a_vacuum_deleted_is_never_committed() {
    let (now, other) = flush_paused_while(|other| async move {
        other.set(BEGAN + 9 * DAY);
        assert!(other.maintain().await.deleted > 0, "the orphan is deleted");
    })
    .await;
    assert_eq!(now.position, 2);
    assert_eq!(other.rows(Part::Samples).await.len(), 35, "each file that is live is there");
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_operation_fails_no_row_is_lost_or_doubled() {
    let flushed_once = Arc::new(InMemory::new());
    let world = World::on(flushed_once.clone(), 1);
    flushed(&world, 2).await;
    let (now, before) = (world.node.now(), said(&world).await);
    // Every other operation fails before it is done, and the others after it.
    for is_done in [false, true] {
        for nth in (usize::from(is_done)..).step_by(2) {
            let objects = Arc::new(flushed_once.fork());
            let played = Played::over(&objects);
            let (world, plain) = (World::on(Arc::new(played.clone()), 1), World::on(objects, 2));
            world.set(now);
            let (tables, mut memory) = (world.handles().await, Memory::default());
            played.fail(nth, is_done);
            let outcome = turn(&world.node, &tables, &mut memory).await;
            let is_over = !played.has_failed();
            played.heal();
            assert!(said(&plain).await == before, "operation {nth} failed, done: {is_done}: {outcome:?}");
            turn(&world.node, &tables, &mut memory).await.unwrap();
            assert!(said(&plain).await == before, "after operation {nth}, done: {is_done}");
            assert_eq!(plain.files(Part::Samples).await.len(), 1, "after operation {nth}, done: {is_done}");
            if is_over {
                outcome.unwrap();
                assert!(nth > 40, "{nth} operations failed in turn");
                break;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn flushes_and_merges_at_the_same_time_lose_nothing() {
    let objects = Arc::new(InMemory::new());
    let (one, two) = (World::on(objects.clone(), 1), World::on(objects, 2));
    flushed(&one, 12).await;
    two.set(one.node.now());
    let mut rng = rng(5);
    let flushes = async {
        for _ in 0..12 {
            one.flush(&samples(&mut rng, 25, BEGAN, HOUR)).await;
            tokio::task::yield_now().await;
        }
    };
    let merges = async {
        for _ in 0..4 {
            two.maintain().await;
        }
    };
    futures::join!(flushes, merges);
    assert_eq!(one.rows(Part::Samples).await.len(), 24 * 25);
    let calls = one.merged(Granularity::Day).await;
    assert!(!calls.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erasure_that_fails_at_any_operation_is_made_good_by_the_next() {
    let flushed_once = Arc::new(InMemory::new());
    let world = World::on(flushed_once.clone(), 1);
    let mut rng = rng(6);
    world.set(BEGAN + HOUR);
    let rows = called_by(&samples(&mut rng, 12, BEGAN, HOUR), &["user:alice@acme", "user:bob@acme"]);
    world.flush(&rows).await;
    world.flush_payloads(&payloads(&mut rng, &rows, 200)).await;
    let all = world.rows(Part::Samples).await;
    let others: Vec<_> = all.iter().filter(|row| !row.contains("user:alice@acme")).cloned().collect();
    for is_done in [false, true] {
        for nth in (usize::from(is_done)..).step_by(2) {
            let objects = Arc::new(flushed_once.fork());
            let played = Played::over(&objects);
            let (world, plain) = (World::on(Arc::new(played.clone()), 1), World::on(objects, 2));
            world.set(BEGAN + HOUR);
            let tables = world.handles().await;
            played.fail(nth, is_done);
            let outcome = erasure::erase(&world.node, &tables, "user:alice@acme").await;
            let is_over = !played.has_failed();
            played.heal();
            let left = plain.rows(Part::Samples).await;
            assert!(left == all || left == others, "operation {nth} failed, done: {is_done}");
            // Whose calls the payloads are of is known for as long as any of them is there.
            assert!(left == all || plain.rows(Part::Payloads).await.len() == 6, "operation {nth}, done: {is_done}");
            erasure::erase(&world.node, &tables, "user:alice@acme").await.unwrap();
            assert_eq!(plain.rows(Part::Samples).await, others, "after operation {nth}, done: {is_done}");
            assert_eq!(plain.rows(Part::Payloads).await.len(), 6, "after operation {nth}, done: {is_done}");
            if is_over {
                outcome.unwrap();
                assert!(nth > 20, "{nth} operations failed in turn");
                break;
            }
        }
    }
}
