//! What may be deleted, and when: nothing of the log before the floor above it is durable, and no floor before what it
//! stands for.

use std::time::Duration;

use super::trimmed_at_once;
use crate::harness::{Account, Call, Cluster, EIO, Happened, Rule, Shim, assert_recovers, eventually, org_names};

/// The number that a path under such a folder ends with.
fn number(path: &str, folder: &str) -> Option<u64> {
    let name = path.rsplit_once(folder)?.1;
    name.parse().ok().filter(|_| name.len() == 20)
}

/// Asserts that each deletion from the log comes after a floor at or above it that was created, and made durable.
fn assert_floor_before_deletion(log: &[Happened]) -> usize {
    let (mut created, mut durable, mut deleted) = (0, 0, 0);
    for line in log.iter().filter(|line| line.succeeded()) {
        if let Some(floor) = number(&line.path, "/wal/floor/").filter(|_| ["link", "rename"].contains(&&*line.call)) {
            created = created.max(floor);
        } else if line.call == "fsync" && line.path.ends_with("/wal/floor/") {
            durable = created;
        } else if let Some(object) = number(&line.path, "/wal/").filter(|_| line.call == "unlink") {
            assert!(object <= durable, "object {object} was deleted while the durable floor was {durable}");
            deleted += 1;
        }
    }
    deleted
}

#[tokio::test(flavor = "multi_thread")]
async fn the_floor_is_durable_before_anything_under_it_is_deleted() {
    let (shim, orgs) = (Shim::new(), org_names(2));
    let cluster =
        Cluster::new(&format!("{}\nflush: {{ interval: 300ms }}\n{}", Cluster::orgs(&orgs), trimmed_at_once()));
    let mut server = cluster.node().shim(&shim).start().await;
    let store = cluster.store();
    assert_eq!(store.floor(), Some(0), "a floor of 0 is there from the beginning: {:?}", store.list("wal/"));
    let mut account = Account::default();
    for fault in [None, Some(Call::Link), Some(Call::Fsync)] {
        // A floor whose creation or fsync fails is not one.
        shim.rules(&fault.map(|call| Rule::fails(call, "/wal/floor/", EIO).once()).into_iter().collect::<Vec<_>>());
        let first = store.log()[0];
        eventually("the log to be trimmed", Duration::from_secs(120), async || {
            assert_recovers(&server.client(), &orgs, &mut account).await;
            store.log().first().filter(|now| **now > first).map(|_| ())
        })
        .await;
        shim.rules(&[]);
    }
    assert!(assert_floor_before_deletion(&shim.log()) > 0, "nothing was deleted");
    let floor = store.floor().unwrap();
    assert!(store.log().last().is_some_and(|last| *last > floor), "the last object is never under the floor");
    account.assert_kept(&server.client()).await;
    server.kill();
    server.start().await;
    account.assert_kept(&server.client()).await;
}

/// Deletions that fail, or are done out of order, leave objects under the floor: they do not exist for any reader.
#[tokio::test(flavor = "multi_thread")]
async fn objects_that_could_not_be_deleted_are_under_the_floor_and_harm_nothing() {
    let (shim, orgs) = (Shim::new(), org_names(2));
    let cluster =
        Cluster::new(&format!("{}\nflush: {{ interval: 300ms }}\n{}", Cluster::orgs(&orgs), trimmed_at_once()));
    let mut server = cluster.node().shim(&shim).start().await;
    let store = cluster.store();
    let mut account = Account::default();
    shim.rules(&[Rule::fails(Call::Unlink, "/wal/0", EIO)]);
    eventually("deletions from the log to be tried", Duration::from_secs(120), async || {
        assert_recovers(&server.client(), &orgs, &mut account).await;
        (shim.injected("/wal/0") > 3).then_some(())
    })
    .await;
    server.kill();
    // Some are gone and some are left, as a deletion in bulk leaves them when it is cut short.
    let floor = store.floor().unwrap_or(0);
    let under: Vec<_> = store.log().into_iter().filter(|object| *object <= floor).collect();
    assert!(under.len() > 2, "objects under the floor {floor}: {under:?}");
    for object in under.iter().skip(1).step_by(2) {
        store.remove(&format!("wal/{object:020}"));
    }
    shim.rules(&[]);
    server.start().await;
    account.assert_kept(&server.client()).await;
    eventually("what is left under the floor to be deleted", Duration::from_secs(60), async || {
        assert_recovers(&server.client(), &orgs, &mut account).await;
        let floor = store.floor()?;
        store.log().first().filter(|first| **first > floor || **first > under[0]).map(|_| ())
    })
    .await;
    account.assert_kept(&server.client()).await;
}
