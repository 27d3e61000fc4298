//! Orgs that have fallen silent, so that the log has nothing of them any more: what is stored of them must be the
//! newest there was.

use std::time::Duration;

use super::outcome::refusal;
use super::trimmed_at_once;
use crate::harness::{
    Account, Batch, Call, Cluster, EIO, Rule, Server, Shim, Started, assert_recovers, assert_sound, eventually,
    org_names, vkeys,
};

const QUIET: &str = "org-000";
const BUSY: &str = "org-001";

/// A deployment whose first org has states and samples, and has been silent for so long that the log is trimmed past
/// it.
async fn silent(events: bool) -> (Cluster, Server, Account) {
    let orgs = org_names(2);
    let yaml = format!("{}\nflush: {{ interval: 300ms }}\n{}", Cluster::orgs(&orgs), trimmed_at_once());
    let cluster = Cluster::new(&yaml);
    let server = cluster.node().start().await;
    let (client, mut account) = (server.client(), Account::default());
    let store = cluster.store();
    for _ in 0..4 {
        let states = store.list(&format!("orgs/{QUIET}/state/"));
        assert!(Batch::samples(5).with_key().send_noted(&client, QUIET, &mut account).await);
        if events {
            assert!(Batch::events(5).send_noted(&client, QUIET, &mut account).await);
        }
        // Each in a flush of its own, so that there is an older state than the newest.
        eventually("a further state of the org", Duration::from_secs(60), async || {
            (store.list(&format!("orgs/{QUIET}/state/")).last() != states.last()).then_some(())
        })
        .await;
    }
    eventually("the log to be trimmed past a silent org", Duration::from_secs(120), async || {
        assert!(Batch::samples(1).send_noted(&client, BUSY, &mut account).await);
        (store.floor()? > newest_position(&cluster)).then_some(())
    })
    .await;
    (cluster, server, account)
}

/// The position of the silent org's newest state.
fn newest_position(cluster: &Cluster) -> u64 {
    let newest = cluster.store().newest(&format!("orgs/{QUIET}/state/"), "");
    newest.rsplit('/').next().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_state_of_a_silent_org_is_not_taken_for_its_newest() {
    let (cluster, mut server, account) = silent(false).await;
    server.kill();
    let states = cluster.store().list(&format!("orgs/{QUIET}/state/"));
    assert!(states.len() >= 2, "{states:?}");
    cluster.store().remove(states.last().unwrap());
    assert_eq!(server.try_start(Duration::from_secs(90)).await, Started::Ready);
    let why = refusal(&server.client().with_org(QUIET)).await.expect("less is served as if it were all");
    assert!(why.contains("org_stopped") && why.contains(&format!("orgs/{QUIET}/")), "{why}");
    account.assert_kept_of(&server.client(), |org| org == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_org_is_whole_on_a_node_that_starts_later() {
    let (cluster, mut server, account) = silent(true).await;
    let mut other = cluster.node().start().await;
    account.assert_kept(&other.client()).await;
    server.kill();
    other.kill();
    server.start().await;
    account.assert_kept(&server.client()).await;
}

/// The segments are there, and no checkpoint over them can be written: until there is one, a load takes the entries
/// from the log.
#[tokio::test(flavor = "multi_thread")]
async fn entries_that_no_checkpoint_covers_hold_the_log() {
    let (shim, orgs) = (Shim::new(), org_names(2));
    let yaml = format!("{}\nflush: {{ interval: 300ms }}\n{}", Cluster::orgs(&orgs), trimmed_at_once());
    let cluster = Cluster::new(&yaml);
    let mut server = cluster.node().shim(&shim).start().await;
    let (client, mut account) = (server.client(), Account::default());
    assert_recovers(&client, &orgs, &mut account).await;
    let keys = vkeys(&client, &orgs).await;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let tiles = format!("/orgs/{QUIET}/audit/tile/");
    shim.rules(&[Call::Link, Call::Rename].map(|call| Rule::fails(call, &tiles, EIO)));
    let before = cluster.store().list(&format!("orgs/{QUIET}/audit/segments/")).len();
    let first = *cluster.store().log().last().unwrap();
    for _ in 0..3 {
        assert!(Batch::events(5).with_key().send_noted(&client, QUIET, &mut account).await);
        assert!(Batch::samples(5).with_key().send_noted(&client, QUIET, &mut account).await);
    }
    eventually("a segment without a checkpoint", Duration::from_secs(90), async || {
        let now = cluster.store().list(&format!("orgs/{QUIET}/audit/segments/")).len();
        (now > before && shim.injected(&tiles) > 0).then_some(())
    })
    .await;
    // Flushed, and many objects of another org after it: without the entries, nothing would hold the log.
    for _ in 0..60 {
        Batch::samples(1).send_noted(&client, BUSY, &mut account).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(cluster.store().floor().unwrap() <= first, "the log is trimmed past entries that only it proves");
    server.kill();
    shim.rules(&[]);
    server.start().await;
    account.assert_kept(&server.client()).await;
    assert!(server.stop().await.success());
    for org in &orgs {
        assert_sound(cluster.store().path(), org, &keys[org]).await;
    }
}
