//! A log that was restored from before and grew again, beside orgs that were not: where the numbers of the two fit each
//! other, ids tell.

use std::time::Duration;

use mcpg::ingest::RowKind;
use mcpg::plane::PlaneError;
use object_store::path::Path;
use tokio::time::sleep;

use super::batches::Naming;
use super::disk::{Disk, Image};
use super::life::play;
use super::node::{NoAnswer, Recipe};
use super::trace::Trace;
use super::world::World;

fn world(trace: Trace, image: &Image) -> World {
    let recipe = Recipe::of(&World::config(2, Duration::from_millis(300), ""));
    World::new(5, trace, Disk::of(image), 2, recipe)
}

async fn send(world: &World, org: &str) {
    let node = world.node(0).unwrap();
    assert!(world.send(&node, &world.make(org, RowKind::Sample, 1, Naming::Key)).await);
}

/// Lives on from a store for as long as it takes until all is flushed: each time the same, but for what the samples
/// say.
async fn live(world: &World, from: u64) {
    world.batches().skip(from);
    world.start(0).await;
    send(world, "org-0").await;
    sleep(Duration::from_secs(5)).await;
}

fn newest_state(image: &Image) -> Path {
    image.keys().filter(|path| path.as_ref().starts_with("orgs/org-0/state/")).max().unwrap().clone()
}

#[test]
fn an_org_whose_state_is_of_another_history_is_told_though_its_numbers_fit() {
    let lived = play(1, |trace| async move {
        let first = world(trace, &Image::new());
        live(&first, 0).await;
        first.kill(0);
        first.sea().disk.image()
    });
    let early = lived.0.unwrap();
    let of = early.clone();
    let lived = play(1, move |trace| async move {
        let world = world(trace, &of);
        live(&world, 1_000).await;
        // The last one is in the log alone.
        send(&world, "org-0").await;
        world.kill(0);
        world.sea().disk.image()
    });
    let late = lived.0.unwrap();
    let lived = play(1, move |trace| async move {
        let world = world(trace, &early);
        live(&world, 2_000).await;
        let flushed = world.sea().disk.image();
        for _ in 0..4 {
            send(&world, "org-1").await;
            sleep(Duration::from_secs(1)).await;
        }
        send(&world, "org-0").await;
        world.kill(0);
        (flushed, world.sea().disk.image())
    });
    let (flushed, regrown) = lived.0.unwrap();
    assert_eq!(newest_state(&flushed), newest_state(&late), "the two histories do not have the same numbers");
    assert_ne!(flushed[&newest_state(&flushed)].bytes, late[&newest_state(&late)].bytes);

    let kept = late.into_iter().filter(|(path, _)| !path.as_ref().starts_with("wal/"));
    let mixed: Image = kept.chain(regrown.into_iter().filter(|(path, _)| path.as_ref().starts_with("wal/"))).collect();
    let (outcome, trace) = play(1, move |trace| async move {
        let world = world(trace, &mixed);
        let node = world.start(0).await;
        for _ in 0..40 {
            match node.view("org-0").await {
                Ok(_) => panic!("what is served lacks a sample that was acknowledged"),
                Err(NoAnswer::Error(PlaneError::OrgStopped { reason, .. })) => return assert!(reason.contains("wal/")),
                Err(_) => sleep(Duration::from_secs(1)).await,
            }
        }
        panic!("the org is neither served nor stopped");
    });
    outcome.unwrap_or_else(|reason| panic!("{}\n{reason}", trace.print()));
}
