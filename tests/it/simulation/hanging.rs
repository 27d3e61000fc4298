//! An org whose files hang: nothing that is to be done for another one waits for it (rule L10).

use std::time::Duration;

use mcpg::ingest::RowKind;
use mcpg::plane::Parts;
use object_store::path::Path;
use tokio::time::sleep;

use super::batches::Naming;
use super::disk::Disk;
use super::faults::Weather;
use super::life::play;
use super::node::Recipe;
use super::trace::Trace;
use super::world::World;

const FLUSH: Duration = Duration::from_millis(300);
/// Longer than any test lasts.
const FOR_EVER: Duration = Duration::from_secs(100_000);

fn world(trace: Trace, also: &str) -> World {
    world_of(trace, "", also)
}

/// A world of two orgs, each of which says `of_org`.
fn world_of(trace: Trace, of_org: &str, also: &str) -> World {
    let config = format!("{}{also}\n", World::config(2, FLUSH, of_org));
    World::new(1, trace, Disk::default(), 2, Recipe::of(&config))
}

/// How many files of an org's table there are that a name holds.
fn files(world: &World, folder: &str, holds: &str) -> usize {
    let listed = world.sea().disk.list(Some(&Path::from(folder)), None);
    listed.iter().filter(|meta| meta.location.as_ref().contains(holds)).count()
}

async fn send(world: &World, org: &str) {
    send_rows(world, org, RowKind::Sample).await;
}

async fn send_event(world: &World, org: &str) {
    send_rows(world, org, RowKind::Event).await;
}

async fn send_rows(world: &World, org: &str, kind: RowKind) {
    let node = world.node(0).unwrap();
    assert!(world.send(&node, &world.make(org, kind, 1, Naming::Key)).await, "{org}");
}

#[test]
fn an_org_that_hangs_while_it_is_parked_keeps_no_other_from_being_flushed() {
    let (outcome, trace) = play(1, |trace| async move {
        let world = world(trace, "log: { park_after: 2s }");
        world.start(0).await;
        for org in world.orgs() {
            send(&world, org).await;
        }
        sleep(Duration::from_secs(3)).await;
        world.sea().set_weather(Weather::Slow { node: 0, path: "orgs/org-0/", pause: FOR_EVER });
        send(&world, "org-0").await;
        // More than the log keeps, for longer than it takes until the org is to be parked.
        for _ in 0..8 {
            send(&world, "org-1").await;
            sleep(Duration::from_secs(1)).await;
        }
        let before = files(&world, "orgs/org-1/state", "/");
        assert!(before > 0);
        let flushed = files(&world, "orgs/org-1/tool_invocations", "/date=");
        send(&world, "org-1").await;
        sleep(Duration::from_secs(5)).await;
        let now = files(&world, "orgs/org-1/tool_invocations", "/date=");
        assert!(now > flushed, "org-1 is not flushed any more");
    });
    outcome.unwrap_or_else(|reason| panic!("{}\n{reason}", trace.print()));
}

/// The numbers of the log's objects, ascending.
fn log(world: &World) -> Vec<u64> {
    let listed = world.sea().disk.list(Some(&Path::from("wal")), None);
    let number = |path: &Path| -> Option<u64> {
        path.as_ref().strip_prefix("wal/").filter(|name| name.len() == 20)?.parse().ok()
    };
    listed.iter().filter_map(|meta| number(&meta.location)).collect()
}

#[test]
fn an_org_that_hangs_while_it_is_parked_holds_no_floor_back_and_loses_nothing() {
    let (outcome, trace) = hang_while_parked(|_| {});
    outcome.unwrap_or_else(|reason| panic!("{}\n{reason}", trace.print()));
}

/// A life in which an org hangs until it is parked, and is loaded again, with nodes that are made of other parts.
pub(super) fn hang_while_parked(alter: fn(&mut Parts)) -> (Result<(), String>, Trace) {
    play(1, move |trace| async move {
        let config = format!("{}log: {{ park_after: 2s }}\n", World::config(2, FLUSH, ""));
        let world = World::new(1, trace, Disk::default(), 2, Recipe { alter, ..Recipe::of(&config) });
        world.start(0).await;
        for org in world.orgs() {
            send(&world, org).await;
        }
        sleep(Duration::from_secs(3)).await;
        world.sea().set_weather(Weather::Slow { node: 0, path: "orgs/org-0/", pause: FOR_EVER });
        send(&world, "org-0").await;
        let last = log(&world).last().copied().unwrap();
        for _ in 0..60 {
            send(&world, "org-1").await;
            sleep(Duration::from_secs(1)).await;
        }
        let first = log(&world).first().copied().unwrap();
        assert!(first > last, "the log begins at {first}, and org-0 holds it back at {last}");
        // Nor is the org held back by where it was put.
        world.sea().set_weather(Weather::Fair);
        let node = world.start(0).await;
        world.look_until_it_shows(&node, "org-0").await;
        send(&world, "org-0").await;
        sleep(Duration::from_secs(5)).await;
        let left = world.sea().disk.list(Some(&Path::from("wal/parked")), None);
        assert!(left.is_empty(), "what was parked is needed no more: {left:?}");
    })
}

#[test]
fn an_org_whose_segments_hang_keeps_no_other_ledger_from_being_pruned() {
    let (outcome, trace) = play(1, |trace| async move {
        let world = world_of(trace, "retention: { ledger: 20s }", "");
        world.start(0).await;
        for _ in 0..4 {
            send_event(&world, "org-0").await;
            send_event(&world, "org-1").await;
            sleep(Duration::from_secs(2)).await;
        }
        world.sea().set_weather(Weather::Slow { node: 0, path: "orgs/org-0/audit/segments", pause: FOR_EVER });
        let first = |org: &str| files(&world, &format!("orgs/{org}/audit/segments"), "/00000000000000000000-");
        assert_eq!((first("org-0"), first("org-1")), (1, 1), "nothing is old enough yet");
        for _ in 0..40 {
            sleep(Duration::from_secs(60)).await;
            send_event(&world, "org-1").await;
        }
        assert_eq!(first("org-0"), 1, "what hangs is there");
        assert_eq!(first("org-1"), 0, "the other org's entries are as old, and are there");
    });
    outcome.unwrap_or_else(|reason| panic!("{}\n{reason}", trace.print()));
}

#[test]
fn an_org_that_hangs_while_its_tables_are_looked_after_keeps_no_other_from_it() {
    let (outcome, trace) = play(1, |trace| async move {
        let world = world(trace, "");
        world.sea().set_weather(Weather::Slow { node: 0, path: "orgs/org-0/maintenance", pause: FOR_EVER });
        world.start(0).await;
        send(&world, "org-0").await;
        sleep(Duration::from_secs(5)).await;
        for _ in 0..8 {
            send(&world, "org-1").await;
            sleep(Duration::from_secs(2)).await;
        }
        sleep(Duration::from_secs(700)).await;
        assert!(files(&world, "orgs/org-1/tool_invocations", "/part-") > 0, "nothing of org-1 was merged");
    });
    outcome.unwrap_or_else(|reason| panic!("{}\n{reason}", trace.print()));
}
