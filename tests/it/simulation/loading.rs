//! Loads that take so long that others write, flush and trim past them meanwhile.

use std::time::Duration;

use mcpg::ingest::RowKind;
use tokio::time::sleep;

use super::batches::Naming;
use super::disk::Disk;
use super::faults::Weather;
use super::life::play;
use super::node::{Node, Recipe};
use super::trace::Trace;
use super::world::World;

const FLUSH: Duration = Duration::from_millis(300);

fn world(trace: Trace) -> World {
    let recipe = Recipe::of(&World::config(2, FLUSH, ""));
    World::new(1, trace, Disk::default(), 2, recipe)
}

/// Sends a sample and an event of an org, and then enough of the other one for the log to be trimmed past them.
async fn send_and_trim(world: &World, node: &Node, org: &str) {
    for kind in [RowKind::Sample, RowKind::Event] {
        assert!(world.send(node, &world.make(org, kind, 1, Naming::Key)).await);
    }
    for _ in 0..4 {
        sleep(3 * FLUSH).await;
        assert!(world.send(node, &world.make("org-1", RowKind::Sample, 1, Naming::Key)).await);
    }
}

/// What an org's load has found was all there was when it looked. Until the org is in its place, which takes a listing
/// more, another node adds to it, and trims what it added: then the load must not end as if nothing had come.
#[test]
fn an_org_that_was_written_and_trimmed_while_it_was_loaded_is_loaded_again() {
    let (outcome, trace) = play(1, |trace| async move {
        let world = world(trace);
        let other = world.start(1).await;
        send_and_trim(&world, &other, "org-0").await;
        let slow = world.start(0).await;
        let pause = Duration::from_secs(8);
        world.sea().set_weather(Weather::Slow { node: 0, path: "orgs/org-0/audit/segments", pause });
        let loads = tokio::spawn({
            let (world, slow) = (world.clone(), slow.clone());
            async move { world.look(&slow, "org-0").await }
        });
        sleep(Duration::from_millis(500)).await;
        send_and_trim(&world, &other, "org-0").await;
        assert!(!loads.is_finished(), "the load is over too soon to show anything");
        world.sea().set_weather(Weather::Fair);
        loads.await.unwrap();
        for node in [&slow, &other] {
            for kind in [RowKind::Sample, RowKind::Event] {
                let batch = world.make("org-0", kind, 1, Naming::Key);
                while !world.send(node, &batch).await {
                    sleep(FLUSH).await;
                }
            }
            world.look_until_it_shows(node, "org-0").await;
        }
        sleep(Duration::from_secs(5)).await;
        for node in [&slow, &other] {
            world.look_until_it_shows(node, "org-0").await;
        }
    });
    outcome.unwrap_or_else(|reason| panic!("{}\n{reason}", trace.print()));
}
