//! What a file system answers need not be what it did. A link that was made and is said to have failed, or to have been
//! there before, and a folder whose fsync fails: the batch is counted once, and acknowledged only once it is durable.

use crate::harness::{
    Account, Batch, Call, Client, Cluster, EEXIST, EIO, Happened, Rule, Server, Shim, assert_recovers, assert_sound,
    org_names, vkeys,
};

struct Scene {
    shim: Shim,
    orgs: Vec<String>,
    cluster: Cluster,
    server: Server,
    other: Server,
    account: Account,
}

impl Scene {
    async fn new() -> Self {
        let (shim, orgs) = (Shim::new(), org_names(1));
        let cluster = Cluster::new(&format!("{}\nflush: {{ interval: 1h }}", Cluster::orgs(&orgs)));
        let server = cluster.node().shim(&shim).start().await;
        let other = cluster.node().start().await;
        let mut account = Account::default();
        assert_recovers(&server.client(), &orgs, &mut account).await;
        Self { shim, orgs, cluster, server, other, account }
    }

    /// Sends a batch without a key while a rule is in force: it must fire, and the node must go on afterwards.
    async fn send_under(&mut self, rule: Rule, batch: &Batch) -> bool {
        let before = self.shim.injected("/wal/");
        self.shim.rules(&[rule]);
        let acknowledged = batch.send_noted(&self.server.client(), &self.orgs[0], &mut self.account).await;
        assert!(self.shim.injected("/wal/") > before, "the rule did not fire");
        self.shim.rules(&[]);
        assert_recovers(&self.server.client(), &self.orgs, &mut self.account).await;
        acknowledged
    }

    async fn check(&self, client: &Client) {
        self.account.assert_kept(client).await;
    }

    /// Both nodes and a restarted one say the same, and the ledger is sound.
    async fn end(mut self) {
        self.check(&self.server.client()).await;
        self.check(&self.other.client()).await;
        let keys = vkeys(&self.other.client(), &self.orgs).await;
        self.other.kill();
        self.server.kill();
        self.server.start().await;
        self.check(&self.server.client()).await;
        assert!(self.server.stop().await.success());
        assert_sound(self.cluster.store().path(), &self.orgs[0], &keys[&self.orgs[0]]).await;
    }
}

/// Whether a link or a rename of the log's object `path` in `log`, and after it an fsync of the log's folder,
/// succeeded.
fn is_durable(log: &[Happened]) -> bool {
    let is_object = |path: &str| path.rsplit_once("/wal/").is_some_and(|(_, name)| name.len() == 20);
    let written =
        |line: &Happened| ["link", "rename"].contains(&&*line.call) && is_object(&line.path) && line.succeeded();
    let Some(at) = log.iter().position(written) else { return false };
    log[at..].iter().any(|line| line.call == "fsync" && line.path.ends_with("/wal/") && line.succeeded())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_was_made_and_answered_with_an_error_is_counted_once() {
    let mut scene = Scene::new().await;
    for batch in [Batch::samples(1), Batch::events(1)] {
        scene.send_under(Rule::done_and_fails(Call::Link, "/wal/0", EIO).once(), &batch).await;
        scene.check(&scene.other.client()).await;
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_was_made_and_answered_with_exists_is_counted_once() {
    let mut scene = Scene::new().await;
    for batch in [Batch::samples(1), Batch::events(1)] {
        scene.send_under(Rule::done_and_fails(Call::Link, "/wal/0", EEXIST).once(), &batch).await;
        scene.check(&scene.other.client()).await;
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_was_not_made_whatever_is_answered_is_counted_once() {
    let mut scene = Scene::new().await;
    for errno in [EIO, EEXIST] {
        for batch in [Batch::samples(1), Batch::events(1)] {
            scene.send_under(Rule::fails(Call::Link, "/wal/0", errno).once(), &batch).await;
            scene.check(&scene.other.client()).await;
        }
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_wrong_answers_in_a_row_are_counted_once() {
    let mut scene = Scene::new().await;
    for (made, not_made) in [(EIO, EEXIST), (EEXIST, EIO)] {
        for batch in [Batch::samples(1), Batch::events(1)] {
            let before = scene.shim.injected("/wal/");
            scene.shim.rules(&[
                Rule::fails(Call::Link, "/wal/0", not_made).once(),
                Rule::done_and_fails(Call::Link, "/wal/0", made).once(),
                Rule::fails(Call::Open, "/wal/0", EIO).once(),
            ]);
            batch.send_noted(&scene.server.client(), &scene.orgs[0], &mut scene.account).await;
            assert!(scene.shim.injected("/wal/") > before);
            scene.shim.rules(&[]);
            assert_recovers(&scene.server.client(), &scene.orgs, &mut scene.account).await;
            scene.check(&scene.other.client()).await;
        }
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_whose_fsync_failed_is_not_believed_when_the_next_one_succeeds() {
    let mut scene = Scene::new().await;
    for batch in [Batch::samples(1), Batch::events(1)] {
        let began = scene.shim.log().len();
        let before = scene.shim.injected("/wal/");
        scene.shim.rules(&[Rule::fails(Call::Fsync, "/wal/", EIO).once()]);
        let acknowledged = batch.send_noted(&scene.server.client(), &scene.orgs[0], &mut scene.account).await;
        let log = scene.shim.log().split_off(began);
        assert!(scene.shim.injected("/wal/") > before, "the folder of the log is not fsynced: {log:?}");
        let failed = log.iter().position(Happened::was_injected).unwrap();
        assert!(
            !acknowledged || is_durable(&log[failed..]),
            "acknowledged although the object was not written and fsynced again after the failure: {:?}",
            &log[failed..]
        );
        scene.shim.rules(&[]);
        assert_recovers(&scene.server.client(), &scene.orgs, &mut scene.account).await;
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_acknowledged_object_is_linked_and_its_folder_fsynced_before_the_answer() {
    let mut scene = Scene::new().await;
    for _ in 0..5 {
        let began = scene.shim.log().len();
        assert!(Batch::samples(1).send_noted(&scene.server.client(), &scene.orgs[0], &mut scene.account).await);
        let log = scene.shim.log().split_off(began);
        assert!(is_durable(&log), "{log:?}");
    }
    scene.end().await;
}
