//! An org whose files hang: nothing that is to be done for another one waits for it (rule L10).

use std::time::Duration;

use mcpg::ingest::RowKind;
use object_store::path::Path;
use tokio::time::sleep;

use super::disk::Disk;
use super::faults::Weather;
use super::life::play;
use super::node::Recipe;
use super::trace::Trace;
use super::world::{Naming, World};

const FLUSH: Duration = Duration::from_millis(300);
/// Longer than any test lasts.
const FOR_EVER: Duration = Duration::from_secs(100_000);

fn world(trace: Trace, also: &str) -> World {
    let config = format!("{}{also}\n", World::config(2, FLUSH, ""));
    World::new(1, trace, Disk::default(), 2, Recipe::of(&config))
}

/// How many files of an org's table there are that a name holds.
fn files(world: &World, folder: &str, holds: &str) -> usize {
    let listed = world.sea().disk.list(Some(&Path::from(folder)), None);
    listed.iter().filter(|meta| meta.location.as_ref().contains(holds)).count()
}

async fn send(world: &World, org: &str) {
    let node = world.node(0).unwrap();
    assert!(world.send(&node, &world.make(org, RowKind::Sample, 1, Naming::Key)).await, "{org}");
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
