//! Removing an org, while nodes sleep and holds are noted.

use std::time::Duration;

use mcpg::ingest::RowKind;
use mcpg::plane::PlaneError;
use tokio::time::sleep;

use super::batches::Naming;
use super::disk::Disk;
use super::life::play;
use super::node::Recipe;
use super::trace::Trace;
use super::world::World;

/// Some times what the clocks of two nodes are apart.
const GRACE: Duration = Duration::from_secs(3_000);

fn world(trace: Trace, orgs: usize) -> World {
    let config = World::config(orgs, Duration::from_secs(5), "");
    let config = config.replace("small_files: 2", &format!("small_files: 2, removal_grace: {}s", GRACE.as_secs()));
    World::new(1, trace, Disk::default(), orgs, Recipe::of(&config))
}

/// A node takes the grace for over and sleeps; meanwhile the org is restored, and removed again: of that removal the
/// grace has only begun.
#[test]
fn a_node_that_slept_over_a_restore_and_another_removal_deletes_nothing() {
    let (outcome, trace) = play(1, |trace| async move {
        let (world, name) = (world(trace, 2), "org-0".parse().unwrap());
        let (sleeper, other) = (world.start(0).await, world.start(1).await);
        for kind in [RowKind::Sample, RowKind::Event] {
            assert!(world.send(&sleeper, &world.make("org-0", kind, 3, Naming::Key)).await);
        }
        sleeper.plane().remove(&name, "service:o", None).await.unwrap();
        sleep(Duration::from_secs(5)).await;
        sleeper.process.freeze(GRACE + Duration::from_secs(30));
        other.plane().restore(&name, "service:o", None).await.unwrap();
        sleep(GRACE / 2).await;
        other.plane().remove(&name, "service:o", None).await.unwrap();
        // It goes on, and what it was about to say is of the first removal.
        sleep(GRACE / 2 + Duration::from_secs(60)).await;
        other.plane().restore(&name, "service:o", None).await.unwrap();
        for node in [&sleeper, &other] {
            world.look_until_it_shows(node, "org-0").await;
        }
    });
    outcome.unwrap_or_else(|reason| panic!("{}\n{reason}", trace.print()));
}

/// Whichever comes first, a hold that was answered is not followed by a removal.
#[test]
fn of_a_removal_and_a_hold_at_once_one_is_refused() {
    let (outcome, trace) = play(1, |trace| async move {
        let world = world(trace, 16);
        let (one, two) = (world.start(0).await, world.start(1).await);
        for org in world.orgs() {
            for node in [&one, &two] {
                assert!(world.send(node, &world.make(org, RowKind::Event, 1, Naming::Key)).await);
            }
        }
        for (number, org) in (0..).zip(world.orgs()) {
            let name = org.parse().unwrap();
            let held = async {
                sleep(Duration::from_millis(4 * number)).await;
                two.plane().hold(&name, "service:o", "case 12").await
            };
            let (removed, held) = tokio::join!(one.plane().remove(&name, "service:o", None), held);
            assert!(removed.is_err() || held.is_err(), "{org} is removed and on hold");
            let is_refusal = |e: &PlaneError| matches!(e, PlaneError::OnHold { .. } | PlaneError::OrgRemoved(_));
            assert!(
                removed.as_ref().err().into_iter().chain(held.as_ref().err()).all(is_refusal),
                "{removed:?} {held:?}"
            );
        }
    });
    outcome.unwrap_or_else(|reason| panic!("{}\n{reason}", trace.print()));
}
