//! A node that has not the key of the store it is pointed at refuses to start, says why, and writes nothing.

use std::time::Duration;

use super::outcome::Lived;
use crate::harness::{Account, Batch, Cluster, Config, Started, assert_recovers, org_names};

/// How long a refusal may take.
const START: Duration = Duration::from_secs(60);

async fn assert_refuses_and_writes_nothing(lived: &Lived, config: Config, why: &str) {
    let store = lived.cluster.store();
    let before = store.digest();
    let mut server = config.server();
    let started = server.try_start(START).await;
    let Started::Ended(status) = started else { panic!("{why}: it starts: {started:?}\n{}", server.logs()) };
    assert_eq!(status.code(), Some(2), "{why}: {}", server.logs());
    assert!(server.logs().contains("key"), "{why}: {}", server.logs());
    let after = store.digest();
    let changed: Vec<_> = after.iter().filter(|(name, hash)| before.get(*name) != Some(*hash)).collect();
    let gone: Vec<_> = before.keys().filter(|name| !after.contains_key(*name)).collect();
    assert!(changed.is_empty() && gone.is_empty(), "{why}: written {changed:?}, deleted {gone:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_another_key_refuses_to_start_and_writes_nothing() {
    for (yaml, orderly) in [("flush: { interval: 300ms }", true), ("flush: { interval: 1h }", false)] {
        let lived = Lived::of(yaml, orderly).await;
        let elsewhere = tempfile::TempDir::new().unwrap();
        // It makes itself a key, as at a first start.
        let made = elsewhere.path().join("made.key");
        assert_refuses_and_writes_nothing(&lived, lived.cluster.node_with_key(&made), "a key of its own").await;
        // It has the one that it made the last time.
        assert_refuses_and_writes_nothing(&lived, lived.cluster.node_with_key(&made), "the key it made before").await;
        // The right one starts, and finds everything.
        let mut server = lived.cluster.node().start().await;
        lived.account.assert_kept(&server.client()).await;
        server.kill();
    }
}

/// A store on which nothing was stored but what the first start writes.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_without_a_single_batch_is_refused_to_another_key_too() {
    let orgs = org_names(1);
    let cluster = Cluster::new(&Cluster::orgs(&orgs));
    let mut server = cluster.node().start().await;
    server.kill();
    let lived = Lived { cluster, orgs, account: Account::default(), vkeys: std::collections::BTreeMap::new() };
    let elsewhere = tempfile::TempDir::new().unwrap();
    let other = lived.cluster.node_with_key(&elsewhere.path().join("other.key"));
    assert_refuses_and_writes_nothing(&lived, other, "another key").await;
}

/// While the right node runs: the wrong one neither joins nor disturbs.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_another_key_does_not_disturb_one_that_runs() {
    let orgs = org_names(2);
    let cluster = Cluster::new(&format!("{}\nflush: {{ interval: 300ms }}", Cluster::orgs(&orgs)));
    let mut server = cluster.node().start().await;
    let mut account = Account::default();
    assert_recovers(&server.client(), &orgs, &mut account).await;
    let elsewhere = tempfile::TempDir::new().unwrap();
    let mut other = cluster.node_with_key(&elsewhere.path().join("other.key")).server();
    let started = other.try_start(START).await;
    assert!(matches!(started, Started::Ended(_)), "{}", other.logs());
    for _ in 0..5 {
        assert!(Batch::samples(1).send_noted(&server.client(), &orgs[0], &mut account).await);
    }
    account.assert_kept(&server.client()).await;
    server.kill();
    server.start().await;
    account.assert_kept(&server.client()).await;
}

/// A node that was left running with the old key while the others changed it.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_the_old_key_alone_says_so_once_another_has_changed_it() {
    let orgs = org_names(1);
    let yaml = Cluster::orgs(&orgs);
    let cluster = Cluster::new(&yaml);
    let old = cluster.node().start().await;
    let (client, mut account) = (old.client(), Account::default());
    assert!(Batch::samples(1).send_noted(&client, &orgs[0], &mut account).await);
    let elsewhere = tempfile::TempDir::new().unwrap();
    let (new_key, old_key) = (elsewhere.path().join("new.key"), cluster.key_file());
    let audit = format!("audit: {{ key_file: {}, previous_key_file: {} }}", new_key.display(), old_key.display());
    let both = Config::on(cluster.store().path()).with(&yaml).with(&audit).start().await;
    assert!(Batch::samples(1).send_noted(&both.client(), &orgs[0], &mut account).await);
    let answer = Batch::samples(1).send(&client.with_org(&orgs[0])).await.unwrap();
    assert_eq!((answer.status.as_u16(), &*answer.problem()), (503, "misconfigured"), "{}", old.logs());
    account.assert_kept(&both.client()).await;
}

/// A digit of the key's id in one org's newest state, and all else under the node's key: that org's trouble, by name.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_id_changed_in_one_orgs_state_stops_that_org_alone() {
    let lived = Lived::of("flush: { interval: 300ms }", true).await;
    let (org, store) = (lived.orgs[0].clone(), lived.cluster.store());
    let state = store.newest(&format!("orgs/{org}/state/"), "");
    let mut bytes = store.read(&state);
    // The trailer begins with a line end and the id.
    let digit = bytes.len() - 82;
    bytes[digit] = if bytes[digit] == b'1' { b'2' } else { b'1' };
    store.write(&state, &bytes);
    lived.look().await.assert_told(&state, &[&org]).await;
}
