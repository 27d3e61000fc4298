//! A node that stops between two steps of a commit, for as long as another one needs to flush and trim far past it, and
//! whose next read fails as well. Nothing that it acknowledges afterwards may be missing anywhere.

use std::time::Duration;

use futures::future::join_all;

use super::trimmed_at_once;
use crate::harness::{
    Account, Batch, Call, Client, Cluster, EIO, Folder, Rule, Server, Shim, alone, assert_recovers, assert_sound,
    eventually, org_names, vkeys,
};

/// Requests that are under way while the node sleeps.
const REQUESTS: usize = 25;

/// How long they wait for their answers: longer than the node may sleep, and what is to be done after that.
const ANSWER: Duration = Duration::from_secs(300);

/// Which reads fail once the sleeper goes on.
#[derive(Debug, Clone, Copy)]
enum Fails {
    /// Each of the object that was the log's last when it fell asleep.
    Last,
    /// The next one of anything in the log's folder.
    Next,
}

struct Scene {
    shim: Shim,
    orgs: Vec<String>,
    cluster: Cluster,
    sleeper: Server,
    other: Server,
    account: Account,
}

impl Scene {
    async fn new() -> Self {
        let (shim, orgs) = (Shim::new(), org_names(2));
        let cluster =
            Cluster::new(&format!("{}\nflush: {{ interval: 300ms }}\n{}", Cluster::orgs(&orgs), trimmed_at_once()));
        let sleeper = cluster.node().shim(&shim).start().await;
        let other = cluster.node().start().await;
        let mut account = Account::default();
        for node in [&sleeper, &other] {
            assert_recovers(&node.client(), &orgs, &mut account).await;
        }
        Self { shim, orgs, cluster, sleeper, other, account }
    }

    /// Stops the sleeper's process at the next such call on the log, while `REQUESTS` requests are under way at it,
    /// until the other node has trimmed past that. Then it goes on, and reads fail: of the log's last object that it
    /// saw, or the next one of anything in the log.
    async fn sleep_at(&mut self, call: Call, fails: Fails) {
        let store = self.cluster.store();
        let gate = self.shim.gate();
        let asleep = self.shim.injected("/wal/");
        // An object, or the folder that it is in.
        let at = if call == Call::Fsync { "/wal/" } else { "/wal/0" };
        self.shim.rules(&[Rule::waits(call, at, &gate).once()]);
        let client = self.sleeper.client().with_timeout(ANSWER);
        let requests = (0..REQUESTS).map(|number| {
            let batch = if number % 3 == 0 { Batch::events(1) } else { Batch::samples(1) };
            let batch = if number % 2 == 0 { batch.with_key() } else { batch };
            let (client, org) = (client.with_org(&self.orgs[number % 2]), self.orgs[number % 2].clone());
            tokio::spawn(async move {
                let answer = batch.send(&client).await.unwrap();
                (org, batch, answer)
            })
        });
        let requests: Vec<_> = requests.collect();
        eventually("the sleeper to stop at the log", Duration::from_secs(90), async || {
            (self.shim.injected("/wal/") > asleep).then_some(())
        })
        .await;
        self.sleeper.pause();
        let slept_at = store.log().last().copied().unwrap_or(0);

        self.trimmed_past(slept_at + 2).await;
        self.shim.rules(&match fails {
            Fails::Last => [Rule::fails(Call::Read, &format!("/wal/{slept_at:020}"), EIO)],
            Fails::Next => [Rule::fails(Call::Read, "/wal/", EIO).once()],
        });
        gate.open();
        self.sleeper.resume();
        // For as long as the steps after the creation take, and some more.
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        self.shim.rules(&[]);
        for answered in join_all(requests).await {
            let (org, batch, answer) = answered.unwrap();
            let acknowledged = answer.status.is_success();
            assert!(acknowledged || answer.status.as_u16() == 503, "{}: {}", answer.status, answer.text());
            self.account.note(&org, batch.is_events, &batch.request, batch.rows, acknowledged);
            if batch.key.is_some() && !acknowledged {
                self.redeliver(&client, &org, &batch).await;
            }
        }
        for node in [&self.sleeper, &self.other] {
            assert_recovers(&node.client(), &self.orgs, &mut self.account).await;
            self.account.assert_kept(&node.client()).await;
        }
    }

    /// Sends batches to the other node until it has trimmed the log past a number.
    async fn trimmed_past(&mut self, number: u64) {
        let (other, store) = (self.other.client(), self.cluster.store());
        eventually("the log to be trimmed", Duration::from_secs(120), async || {
            for org in &self.orgs {
                Batch::samples(1).send_noted(&other, org, &mut self.account).await;
                Batch::events(1).send_noted(&other, org, &mut self.account).await;
            }
            store.log().first().filter(|first| **first > number).map(|_| ())
        })
        .await;
    }

    /// What an emitter does with a batch that has a key and was not acknowledged.
    async fn redeliver(&mut self, client: &Client, org: &str, batch: &Batch) {
        eventually("a batch under a key to be acknowledged", Duration::from_secs(60), async || {
            batch.send_noted(client, org, &mut self.account).await.then_some(())
        })
        .await;
    }

    /// Neither a restart nor a node that begins anew finds anything else.
    async fn end(mut self) {
        let keys = vkeys(&self.other.client(), &self.orgs).await;
        self.sleeper.kill();
        self.sleeper.start().await;
        self.account.assert_kept(&self.sleeper.client()).await;
        for node in [&mut self.sleeper, &mut self.other] {
            assert!(node.stop().await.success());
        }
        self.account.assert_kept(&self.cluster.node().start().await.client()).await;
        for org in &self.orgs {
            assert_sound(self.cluster.store().path(), org, &keys[org]).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sleeper_between_reading_the_end_and_creating_loses_nothing_that_it_acknowledges() {
    let _alone = alone().await;
    let mut scene = Scene::new().await;
    scene.sleep_at(Call::Link, Fails::Last).await;
    scene.sleep_at(Call::Link, Fails::Next).await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sleeper_before_reading_and_one_after_creating_lose_nothing_that_they_acknowledge() {
    let _alone = alone().await;
    let mut scene = Scene::new().await;
    scene.sleep_at(Call::Open, Fails::Next).await;
    scene.sleep_at(Call::Fsync, Fails::Last).await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_stopped_while_the_log_is_trimmed_past_it_loses_nothing_that_it_acknowledges() {
    let _alone = alone().await;
    let mut scene = Scene::new().await;
    let store = scene.cluster.store();
    for round in 0..3_u64 {
        // A stream of requests, so that the process stops at whatever step it happens to be.
        let client = scene.sleeper.client().with_timeout(ANSWER);
        let requests: Vec<_> = (0..REQUESTS as u64)
            .map(|number| {
                let (client, org) = (client.clone(), scene.orgs[0].clone());
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(number * 3)).await;
                    let batch = Batch::samples(1);
                    (batch.send(&client.with_org(&org)).await.unwrap(), batch)
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(30 + 11 * round)).await;
        scene.sleeper.pause();
        let slept_at = store.log().last().copied().unwrap_or(0);
        scene.trimmed_past(slept_at + 2).await;
        scene.sleeper.resume();
        for answered in join_all(requests).await {
            let (answer, batch) = answered.unwrap();
            let acknowledged = answer.status.is_success();
            assert!(acknowledged || answer.status.as_u16() == 503, "{}: {}", answer.status, answer.text());
            scene.account.note(&scene.orgs[0], false, &batch.request, batch.rows, acknowledged);
        }
        for node in [&scene.sleeper, &scene.other] {
            assert_recovers(&node.client(), &scene.orgs, &mut scene.account).await;
            scene.account.assert_kept(&node.client()).await;
        }
    }
    scene.end().await;
}

/// A node that was left behind loads again, or is started, and each of its reads takes long: the log that it is loading
/// against is flushed and trimmed on meanwhile, more than once.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_load_against_a_log_that_is_trimmed_meanwhile_loses_nothing() {
    let _alone = alone().await;
    let mut scene = Scene::new().await;
    let store = scene.cluster.store();
    let slow = Rule::takes(Call::Read, "/orgs/", 12);
    for start in [false, true, false, true] {
        let end = |store: &Folder| store.log().last().copied().unwrap_or(0);
        if start {
            scene.sleeper.kill();
        } else {
            scene.sleeper.pause();
        }
        scene.trimmed_past(end(&store) + 2).await;
        scene.shim.rules(std::slice::from_ref(&slow));
        if start {
            scene.sleeper.spawn();
        } else {
            scene.sleeper.resume();
        }
        for _ in 0..3 {
            scene.trimmed_past(end(&store) + 2).await;
        }
        scene.shim.rules(&[]);
        let client = scene.sleeper.client();
        eventually("the node to be ready", Duration::from_secs(120), async || client.ready().await).await;
        for node in [&scene.sleeper, &scene.other] {
            assert_recovers(&node.client(), &scene.orgs, &mut scene.account).await;
            scene.account.assert_kept(&node.client()).await;
        }
    }
    scene.end().await;
}
