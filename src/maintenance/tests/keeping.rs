//! What is kept, and for how long: retention, checkpoints of Delta's log, files that are not needed.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::AsArray;
use object_store::memory::InMemory;
use object_store::path::Path;

use super::super::names::HOUR;
use super::super::{Memory, erasure, retention, turn};
use super::store::Played;
use super::{BEGAN, DAY, World, called_by, payloads, rng, samples};
use crate::flush::Part;
use crate::ingest::{BatchId, Fingerprint, IdempotencyKey, RowKind};
use crate::ledger::state::LedgerEnd;
use crate::node::{Retention, TableRetention};
use crate::rollup::Granularity;
use crate::state::snapshot::{self, Saved};
use crate::state::{OrgState, runs, state_path};
use crate::storage::table::cut_log;

/// Runs of keys are merged as they grow: what was merged is named by no state any more.
#[tokio::test(flavor = "multi_thread")]
async fn runs_of_keys_that_no_state_needs_go_and_no_other() {
    let world = World::new();
    let (node, org) = (&world.node, World::org());
    let mut state = OrgState::new(org.clone(), node.settings.limits);
    let mut saved = Saved::default();
    for position in 1..=60_u64 {
        let time = BEGAN + position as i64 * HOUR / 10;
        let id = serde_json::from_str(&format!("\"{position}\"")).unwrap();
        state.begin(position, &id, time, None);
        let key = IdempotencyKey::new(RowKind::Sample, position.to_string().as_bytes()).unwrap();
        state.dedup.apply(&BatchId::Key { key, body: Fingerprint(position) }, position, time);
        for run in state.dedup.keys().runs() {
            let path = Path::from(format!("orgs/{org}/keys/{}", run.reference().name()));
            node.store.put(&path, run.encode().into()).await.unwrap();
        }
        let parts = snapshot::take(&org, &mut state, LedgerEnd::default(), &saved);
        let draft = snapshot::draft(node.log.keys(), parts, &saved).unwrap();
        saved = snapshot::keep(node, draft).await.unwrap().1;
    }
    let there = async || node.store.list(&Path::from("orgs/acme/keys")).await.unwrap().len() as u64;
    let before = there().await;
    world.set(BEGAN + 2 * DAY);
    assert_eq!(runs::sweep(node, &org, HashSet::new(), 0).await.unwrap(), 0, "all of them are young to this cutoff");
    let gone = runs::sweep(node, &org, HashSet::new(), node.now() - DAY).await.unwrap();
    assert!(gone > 10 && there().await == before - gone, "{gone} of {before}");
    for position in [60, 59] {
        let newest = snapshot::newest(node, &org).await.unwrap().unwrap();
        assert_eq!(newest.header.position, position, "a state has all that it names");
        node.store.delete(&state_path(&org, position)).await.unwrap();
    }
}

fn days(days: u64) -> Retention {
    Retention { period: Duration::from_secs(days * 86_400), rule: format!("{days}d") }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clock_moves_by_months_and_each_table_loses_what_it_should_and_nothing_else() {
    let (world, mut rng) = (World::new(), rng(11));
    for day in 0..70 {
        world.set(BEGAN + day * DAY + HOUR);
        world.flush(&samples(&mut rng, 4, BEGAN + day * DAY, HOUR)).await;
    }
    let keep = TableRetention { samples: days(30), hourly: days(400), daily: days(3_650), payloads: days(30) };
    let tables = world.handles().await;
    let hourly = world.merged(Granularity::Hour).await;
    let daily = world.merged(Granularity::Day).await;

    // On the day 70 those of days 0 to 39 are over since 30 days: the day 39 ended 30 days ago.
    world.set(BEGAN + 70 * DAY);
    let plan = retention::plan(&world.node, &tables, &keep).await.unwrap();
    assert_eq!(plan.tables.len(), 1);
    let of = &plan.tables[0];
    assert_eq!((of.table.as_str(), of.partitions.len(), of.rows), ("tool_invocations", 40, 160));
    assert_eq!((of.partitions[0].as_str(), of.rule.as_str()), ("2031-03-04", "30d"));
    assert_eq!(world.rows(Part::Samples).await.len(), 280, "a plan removes nothing");
    let longer = TableRetention { samples: days(31), ..keep.clone() };
    assert!(retention::is_due(&world.node, &keep, of) && !retention::is_due(&world.node, &longer, of));
    retention::remove(&world.node, &tables, &plan).await.unwrap();
    assert_eq!(world.rows(Part::Samples).await.len(), 120);
    assert_eq!((world.merged(Granularity::Hour).await, world.merged(Granularity::Day).await), (hourly, daily.clone()));
    assert!(retention::plan(&world.node, &tables, &keep).await.unwrap().tables.is_empty());

    // What queries may still read is there for a day.
    assert_eq!(world.maintain().await.deleted, 0);
    world.set(BEGAN + 71 * DAY + HOUR);
    assert!(world.maintain().await.deleted >= 40);

    // A year and some months on.
    world.set(BEGAN + 471 * DAY);
    let plan = retention::plan(&world.node, &tables, &keep).await.unwrap();
    retention::remove(&world.node, &tables, &plan).await.unwrap();
    assert!(world.rows(Part::Samples).await.is_empty() && world.merged(Granularity::Hour).await.is_empty());
    assert_eq!(world.merged(Granularity::Day).await, daily);

    // Ten years on months go whole: of two that have ended and one whose last days are too young none but the former.
    world.set(BEGAN + 3_650 * DAY + 60 * DAY);
    let plan = retention::plan(&world.node, &tables, &keep).await.unwrap();
    assert_eq!(plan.tables[0].partitions, ["2031-03-01", "2031-04-01"]);
    retention::remove(&world.node, &tables, &plan).await.unwrap();
    let left: Vec<_> = world.merged(Granularity::Day).await.into_keys().collect();
    assert!(!left.is_empty() && left.len() < daily.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_cannot_be_deleted_are_counted_until_they_are() {
    let played = Played::over(&Arc::new(InMemory::new()));
    let world = World::on(Arc::new(played.clone()), 1);
    world.set(BEGAN + HOUR);
    for seed in 0..3 {
        world.flush(&samples(&mut rng(seed), 4, BEGAN, HOUR)).await;
    }
    world.set(BEGAN + 2 * DAY);
    assert!(world.maintain().await.merges >= 3);
    world.set(BEGAN + 4 * DAY);
    let (tables, mut memory) = (world.handles().await, Memory::default());
    let orphans = || world.node.metrics.maintenance.orphans.get();
    played.keep_all(true);
    turn(&world.node, &tables, &mut memory).await.unwrap_err();
    let left = orphans();
    assert!(left >= 9, "three files of each of three tables were merged, and {left} are left");
    played.keep_all(false);
    let done = turn(&world.node, &tables, &mut memory).await.unwrap();
    assert_eq!((done.deleted, orphans()), (u64::try_from(left).unwrap(), 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_takes_what_was_merged_in_between_as_well() {
    let objects = Arc::new(InMemory::new());
    let (one, two) = (World::on(objects.clone(), 1), World::on(objects, 2));
    let mut rng = rng(12);
    for _ in 0..3 {
        one.set(BEGAN + HOUR);
        one.flush(&samples(&mut rng, 4, BEGAN, HOUR)).await;
    }
    one.set(BEGAN + 40 * DAY);
    two.set(one.node.now());
    let keep = TableRetention { samples: days(30), hourly: days(30), daily: days(3_650), payloads: days(30) };
    let tables = one.handles().await;
    let plan = retention::plan(&one.node, &tables, &keep).await.unwrap();
    assert!(two.maintain().await.merges > 0);
    retention::remove(&one.node, &tables, &plan).await.unwrap();
    assert!(one.rows(Part::Samples).await.is_empty() && one.merged(Granularity::Hour).await.is_empty());
    assert!(!one.merged(Granularity::Day).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_was_cut_is_read_on_by_who_knew_it_before() {
    let objects = Arc::new(InMemory::new());
    let (one, two) = (World::on(objects.clone(), 1), World::on(objects, 2));
    one.set(BEGAN + HOUR);
    one.flush(&samples(&mut rng(13), 9, BEGAN, HOUR)).await;
    let mut known = two.table(Part::Samples).await;
    let mut table = one.table(Part::Samples).await;
    for position in 1..130 {
        let rows = samples(&mut rng(position), 1, BEGAN, HOUR);
        let files = crate::storage::parquet::encode(&rows.schema(), &[rows], 1).unwrap();
        table.append(files, position, position + 1, 0, || one.node.random.uuid()).await.unwrap();
        table.checkpoint().await.unwrap();
    }
    let log = object_store::path::Path::from(format!("{}/_delta_log", table.folder()));
    let before = one.node.store.list(&log).await.unwrap().len();
    assert!(cut_log(&one.node.store, table.folder(), i64::MAX).await.unwrap() >= 100);
    assert!(one.node.store.list(&log).await.unwrap().len() < before - 99);
    for table in [&mut known, &mut two.table(Part::Samples).await] {
        let now = table.refresh().await.unwrap();
        assert_eq!((now.position, now.files.len()), (130, 130));
    }
    assert_eq!(cut_log(&one.node.store, table.folder(), i64::MAX).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flush_makes_no_checkpoint_and_cuts_no_log() {
    let world = World::new();
    let mut table = world.table(Part::Samples).await;
    for position in 0..120 {
        table.append(Vec::new(), position, position + 1, 0, || world.node.random.uuid()).await.unwrap();
    }
    let log = object_store::path::Path::from(format!("{}/_delta_log", table.folder()));
    let there = world.node.store.list(&log).await.unwrap();
    assert_eq!(there.len(), 121, "a commit each, and the one that made the table");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erased_callers_samples_are_gone_and_all_others_are_there() {
    let objects = Arc::new(InMemory::new());
    let (one, two) = (World::on(objects.clone(), 1), Arc::new(World::on(objects, 2)));
    let mut rng = rng(14);
    let named = |rows: arrow::record_batch::RecordBatch, every: usize| {
        let names = (0..rows.num_rows()).map(|row| (row % every == 0).then_some("user:alice@acme")).collect();
        let names: arrow::array::StringArray = names;
        let at = rows.schema().index_of("caller").unwrap();
        let mut columns = rows.columns().to_vec();
        columns[at] = Arc::new(names);
        arrow::record_batch::RecordBatch::try_new(rows.schema(), columns).unwrap()
    };
    for (flush, every) in [1, 3, 1_000, 5].into_iter().enumerate() {
        one.set(BEGAN + (flush as i64 + 1) * HOUR);
        one.flush(&named(samples(&mut rng, 60, BEGAN, HOUR), every)).await;
    }
    let rows = one.rows(Part::Samples).await;
    let others: Vec<_> = rows.iter().filter(|row| !row.contains("alice")).cloned().collect();
    assert_eq!(others.len(), 240 - 60 - 20 - 1 - 12);
    one.set(BEGAN + 2 * DAY);
    two.set(one.node.now());
    let tables = one.handles().await;
    // Another node merges the files at the same time.
    let (erased, _) = futures::join!(erasure::erase(&one.node, &tables, "user:alice@acme"), two.maintain());
    assert!(erased.unwrap().files >= 1);
    assert_eq!(one.rows(Part::Samples).await, others);
    let again = erasure::erase(&one.node, &tables, "user:alice@acme").await.unwrap();
    assert_eq!((again.rows, again.files), (0, 0));
    two.set(BEGAN + 4 * DAY);
    two.maintain().await;
    let folder = two.table(Part::Samples).await.folder().clone();
    for meta in two.node.store.list(&folder).await.unwrap() {
        let bytes = two.node.store.get(&meta.location).await.unwrap().unwrap();
        let named = bytes.windows(15).any(|part| part == b"user:alice@acme");
        assert!(!named, "{}", meta.location);
    }
}

/// Nothing in a sealed payload says whose call it is of: the samples do, and go after it.
#[tokio::test(flavor = "multi_thread")]
async fn the_sealed_payloads_of_an_erased_callers_calls_go_with_them_and_no_others() {
    let (world, mut rng) = (World::new(), rng(15));
    let (mut kept, mut gone) = (Vec::new(), 0);
    for day in 0..2 {
        for hour in 0..3 {
            world.set(BEGAN + day * DAY + (hour + 1) * HOUR);
            let rows = samples(&mut rng, 12, BEGAN + day * DAY + hour * HOUR, HOUR);
            let rows = called_by(&rows, &["user:alice@acme", "user:bob@acme", "user:carol@acme"]);
            world.flush(&rows).await;
            // Of every other hour nothing was captured of anybody.
            if hour != 1 {
                world.flush_payloads(&payloads(&mut rng, &rows, 500)).await;
                let (ids, callers) =
                    (rows.column_by_name("invocation_id").unwrap(), rows.column_by_name("caller").unwrap());
                let calls = ids.as_string::<i32>().iter().zip(callers.as_string::<i32>().iter());
                let (hers, others): (Vec<_>, Vec<_>) =
                    calls.partition(|(_, caller)| *caller == Some("user:alice@acme"));
                gone += hers.len();
                kept.extend(others.into_iter().map(|(id, _)| id.unwrap().to_owned()));
            }
        }
    }
    world.set(BEGAN + DAY + 5 * HOUR);
    // Some of them are merged already.
    world.maintain().await;
    let tables = world.handles().await;
    let erased = erasure::erase(&world.node, &tables, "user:alice@acme").await.unwrap();
    assert_eq!((erased.rows, erased.payloads as usize), (2 * 3 * 4, gone));
    let left = world.rows(Part::Payloads).await;
    assert_eq!(left.len(), kept.len());
    assert!(kept.iter().all(|id| left.iter().any(|row| row.contains(id.as_str()))));
    let again = erasure::erase(&world.node, &tables, "user:alice@acme").await.unwrap();
    assert_eq!(again, erasure::Erased::default());
    let bob = erasure::erase(&world.node, &tables, "user:bob@acme").await.unwrap();
    assert_eq!((bob.rows, bob.payloads as usize), (2 * 3 * 4, gone));
}

/// Two equal requests to remove are two entries of the ledger.
#[tokio::test(flavor = "multi_thread")]
async fn two_plans_of_retention_are_told_apart_by_their_files() {
    let world = World::new();
    world.set(BEGAN + HOUR);
    let rows = samples(&mut rng(16), 5, BEGAN, HOUR);
    let keep = TableRetention { samples: days(30), hourly: days(400), daily: days(3_650), payloads: days(30) };
    let mut plans = Vec::new();
    for _ in 0..2 {
        world.flush(&rows).await;
        world.set(BEGAN + 40 * DAY);
        let tables = world.handles().await;
        let plan = retention::plan(&world.node, &tables, &keep).await.unwrap();
        let again = retention::plan(&world.node, &world.handles().await, &keep).await.unwrap();
        assert_eq!(plan, again, "a second look finds the same");
        retention::remove(&world.node, &tables, &plan).await.unwrap();
        plans.push(plan.tables[0].clone());
    }
    assert_eq!((plans[0].rows, plans[0].bytes), (plans[1].rows, plans[1].bytes));
    assert_ne!(plans[0].names, plans[1].names);
}
