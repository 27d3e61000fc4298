//! Several control planes on one bucket, with a load of many orgs: killed in turn, paused, and behind proxies that cut
//! answers after the write, answer 409 and 503, and hold requests back. What was acknowledged is there once, on each
//! node.

use std::time::Duration;

use http::StatusCode;

use crate::harness::proxy::{Fault, Proxy};
use crate::harness::s3::{Bucket, Seaweed};
use crate::harness::{Cluster, Fleet, Running, Sample, Server, alone, eventually, mcpg, ndjson, org_names, run, vkeys};

/// Small enough that commits, flushes, segments and trimming fall between any two faults.
const QUICK: &str = "commit: { window: 20ms }\nflush: { interval: 2s }";

/// Nodes on one bucket, each reached at an endpoint of its own.
struct Scene {
    _seaweed: std::sync::Arc<Seaweed>,
    bucket: Bucket,
    _cluster: Cluster,
    orgs: Vec<String>,
    nodes: Vec<Server>,
}

impl Scene {
    /// As many nodes as `endpoints` gives of a bucket, the first of which makes the key that all have.
    async fn new(endpoints: impl AsyncFnOnce(&Bucket) -> Vec<String>) -> Self {
        let seaweed = Seaweed::shared().await;
        let bucket = seaweed.bucket().await;
        let orgs = org_names(6);
        let cluster = Cluster::new(&format!("{}\n{QUICK}", Cluster::orgs(&orgs)));
        let mut nodes = Vec::new();
        for endpoint in endpoints(&bucket).await {
            nodes.push(cluster.node().on_bucket(&bucket.at(&endpoint).yaml("prod")).start().await);
        }
        Self { _seaweed: seaweed, bucket, _cluster: cluster, orgs, nodes }
    }

    fn load(&self) -> Running {
        let targets: Vec<_> = self.nodes.iter().map(Server::client).collect();
        Fleet::on(&targets, &self.orgs).start()
    }

    /// Ends the load; each node has all of it, also one that starts now, and the ledgers in the bucket are sound.
    async fn end(mut self, load: Running) {
        let account = load.finish().await;
        for node in &self.nodes {
            account.assert_kept(&node.client()).await;
        }
        let keys = vkeys(&self.nodes[0].client(), &self.orgs).await;
        for node in &mut self.nodes {
            node.kill();
        }
        self.nodes[0].start().await;
        account.assert_kept(&self.nodes[0].client()).await;
        assert!(self.nodes[0].stop_however_long().await.success());
        for org in &self.orgs {
            let (store, key) = (self.bucket.url("prod"), keys[org].clone());
            let mut verify = mcpg();
            verify.args(["audit", "verify", "--store", &store, "--org", org, "--vkey", &key]);
            verify.envs(self.bucket.environment());
            let output = tokio::task::spawn_blocking(move || run(&mut verify)).await.unwrap();
            assert!(output.status.success(), "the ledger of {org}: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_on_a_bucket_that_are_killed_in_turn_lose_nothing_and_double_nothing() {
    let _alone = alone().await;
    let mut scene = Scene::new(async |bucket| vec![bucket.endpoint.clone(); 3]).await;
    let load = scene.load();
    load.further(100).await;
    for round in 0..6 {
        let before = load.account();
        let (node, others) = (round % 3, [(round + 1) % 3, (round + 2) % 3]);
        scene.nodes[node].kill();
        load.further(30).await;
        for other in others {
            before.assert_counters(&scene.nodes[other].client()).await;
        }
        scene.nodes[node].start().await;
        before.assert_counters(&scene.nodes[node].client()).await;
    }
    scene.end(load).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_on_a_bucket_that_sleeps_while_the_log_is_trimmed_loses_nothing() {
    let _alone = alone().await;
    let scene = Scene::new(async |bucket| vec![bucket.endpoint.clone(); 2]).await;
    let load = scene.load();
    load.further(60).await;
    for _ in 0..2 {
        let before = load.account();
        scene.nodes[1].pause();
        tokio::time::sleep(Duration::from_secs(12)).await;
        scene.nodes[1].resume();
        before.assert_counters(&scene.nodes[1].client()).await;
        load.further(60).await;
    }
    scene.end(load).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_behind_proxies_that_cut_lie_and_are_late_lose_nothing_and_double_nothing() {
    let _alone = alone().await;
    let mut proxies = Vec::new();
    let mut scene = Scene::new(async |bucket| {
        for _ in 0..2 {
            proxies.push(Proxy::start(&bucket.endpoint).await);
        }
        proxies.iter().map(|proxy| proxy.endpoint().to_owned()).collect()
    })
    .await;
    let load = scene.load();
    load.further(40).await;
    let faults = [
        Fault::Cut,
        Fault::AnsweredAfter(409),
        Fault::AnsweredAfter(412),
        Fault::AnsweredAfter(503),
        Fault::Answered(409),
        Fault::Answered(503),
        Fault::Dropped,
        // Longer than a request may take, so that it lands when nobody waits for it any more.
        Fault::Late(Duration::from_secs(15)),
    ];
    for (round, fault) in faults.into_iter().cycle().take(16).enumerate() {
        let (proxy, whole) = (&proxies[round % 2], round / faults.len() == 0);
        // First at the log's own writes, then at any write: states, floors, tables, checkpoints.
        proxy.on(2, fault, move |request| {
            request.method == "PUT"
                && (!whole || request.target.contains("/wal/0"))
                && !request.target.contains("probe")
        });
        load.further(12).await;
    }
    for proxy in &proxies {
        // Reads are cut and refused too, which is nobody's damage.
        proxy.on(6, Fault::Answered(503), |request| request.method == "GET");
        proxy.on(6, Fault::Dropped, |request| request.method == "GET");
    }
    load.further(40).await;
    // One of both is killed and begins among faults.
    scene.nodes[1].kill();
    proxies[1].on(3, Fault::Answered(503), |request| request.method == "GET");
    scene.nodes[1].start().await;
    load.further(20).await;
    let stopped = |node: &Server| node.logs().contains("org is stopped");
    assert!(!scene.nodes.iter().any(stopped), "a store that only hiccups stops an org");
    scene.end(load).await;
}

/// A bucket that is not there for a while costs refusals alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_is_away_for_a_while_costs_refusals_alone() {
    let seaweed = Seaweed::shared().await;
    let bucket = seaweed.bucket().await;
    let proxy = Proxy::start(&bucket.endpoint).await;
    let cluster = Cluster::new(QUICK);
    let node = cluster.node().on_bucket(&bucket.at(proxy.endpoint()).yaml("prod")).start().await;
    let client = node.client();
    let sample = ndjson(&[Sample::new("github", "list_repos", 5.0)]);
    client.post(sample.clone(), Some("first")).await;
    proxy.on(usize::MAX, Fault::Answered(503), |_| true);
    // What is refused may land all the same, once the bucket is there: under its key it comes again as it was.
    let refused = client.try_post("application/x-ndjson", None, Some("second"), sample.clone()).await.unwrap();
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE, "{}", refused.text());
    proxy.forgive();
    eventually("the batch to be taken once the bucket is there", Duration::from_secs(60), async || {
        let answer = client.try_post("application/x-ndjson", None, Some("second"), sample.clone()).await.ok()?;
        answer.status.is_success().then_some(())
    })
    .await;
    assert_eq!(client.count().await, 2);
}
