//! Two nodes and many orgs under load that flush and trim each second, and one of the nodes restarted or stopped in its
//! tracks, again and again: it comes back into a log that has moved on and was trimmed meanwhile.

use std::time::Duration;

use super::trimmed_at_once;
use crate::harness::{Cluster, Fleet, Running, Server, Started, alone, is_soak, org_names, vkeys};

/// 150 in the soak. Otherwise fewer: each is a flush a second on both nodes, which a build without optimization pays for.
fn orgs() -> usize {
    if is_soak() { 150 } else { 48 }
}

/// A deployment of many orgs, two of its nodes, and a load on both.
struct Scene {
    cluster: Cluster,
    orgs: Vec<String>,
    first: Server,
    second: Server,
    load: Running,
}

impl Scene {
    async fn new() -> Self {
        let orgs = org_names(orgs());
        let cluster = Cluster::new(&format!(
            "{}\nflush: {{ interval: 1s }}\nmaintenance: {{ interval: 1h }}\n{}",
            Cluster::orgs(&orgs),
            trimmed_at_once()
        ));
        let first = cluster.node().start().await;
        let second = cluster.node().start().await;
        let load = Fleet::on(&[first.client(), second.client()], &orgs).start();
        load.further(orgs.len() as u64).await;
        Self { cluster, orgs, first, second, load }
    }

    /// Nothing is lost and nothing is there twice, on both nodes; all ledgers are sound.
    async fn end(mut self) {
        let account = self.load.finish().await;
        // All counters on both nodes; every batch of some orgs, which costs queries, on one.
        for (node, share) in [(&self.first, 0), (&self.second, 3)] {
            account.assert_counters(&node.client()).await;
            account.assert_kept_of(&node.client(), |org| is_soak() || org % 6 == share).await;
        }
        let keys = vkeys(&self.first.client(), &self.orgs).await;
        self.first.kill();
        self.second.kill();
        start(&mut self.second).await;
        // The log and the tables have what the nodes had in memory.
        account.assert_counters(&self.second.client()).await;
        account.assert_kept_of(&self.second.client(), |org| is_soak() || org % 10 == 0).await;
        self.second.stop_however_long().await;
        account.assert_ledgers(self.cluster.store().path(), &keys).await;
    }
}

/// Starts a node, however long a busy machine needs for the load of so many orgs.
async fn start(node: &mut Server) {
    let started = node.try_start(Duration::from_secs(240)).await;
    assert_eq!(started, Started::Ready, "{}", node.logs());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_restarted_under_load_of_many_orgs_loses_nothing_and_doubles_nothing() {
    let _alone = alone().await;
    let mut scene = Scene::new().await;
    for round in 0..if is_soak() { 60 } else { 5 } {
        let before = scene.load.account();
        // Both kinds of end: in the middle of whatever it does, and in order. How far it comes with that does not
        // matter.
        if round % 5 == 4 {
            scene.second.stop_however_long().await;
        } else {
            scene.second.kill();
        }
        start(&mut scene.second).await;
        before.assert_counters(&scene.second.client()).await;
        before.assert_counters(&scene.first.client()).await;
        scene.load.further(60).await;
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_paused_under_load_of_many_orgs_loses_nothing_and_doubles_nothing() {
    let _alone = alone().await;
    let scene = Scene::new().await;
    // Longer than it takes the other node to trim past it, each time.
    let (times, length) = if is_soak() { (20, 20) } else { (3, 6) };
    for _ in 0..times {
        let before = scene.load.account();
        scene.second.pause();
        tokio::time::sleep(Duration::from_secs(length)).await;
        scene.second.resume();
        before.assert_counters(&scene.second.client()).await;
        scene.load.further(100).await;
    }
    scene.end().await;
}
