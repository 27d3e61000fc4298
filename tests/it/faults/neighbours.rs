//! One org's trouble is its own: a batch that touches too many days, thousands of orgs, and an org that cannot flush
//! cost the other orgs nothing.

use std::time::Duration;

use chrono::TimeDelta;
use reqwest::{Method, StatusCode};

use super::log_settings;
use crate::harness::{
    Account, Batch, Call, Client, Cluster, Config, EIO, Exposition, Rule, Sample, Shim, alone, assert_recovers,
    assert_sound, eventually, is_soak, ndjson, now, org_names, vkeys,
};

/// The most days that a batch may touch.
const MOST_DAYS: i64 = 40;

fn on_days(days: i64) -> Vec<u8> {
    let midday = now().date_naive().and_hms_opt(0, 0, 0).unwrap().and_utc();
    let samples =
        (0..days).map(|day| Sample::new("github", "list_repos", 5.0).started_at(midday - TimeDelta::days(day)));
    ndjson(&samples.collect::<Vec<_>>())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_on_too_many_days_is_refused_and_holds_up_no_other_org() {
    let orgs = org_names(3);
    let mut server = Config::new().with(&Cluster::orgs(&orgs)).with("flush: { interval: 300ms }").start().await;
    let (client, mut account) = (server.client(), Account::default());
    assert_recovers(&client, &orgs, &mut account).await;
    let hurt = client.with_org(&orgs[0]);
    let before = hurt.count().await;
    for days in [MOST_DAYS + 1, 400, 2_500, 9_700] {
        let answer = hurt.try_post("application/x-ndjson", None, Some("days"), on_days(days)).await.unwrap();
        assert!(answer.status.is_client_error(), "{days} days: {}: {}", answer.status, answer.text());
        assert!(!answer.problem().is_empty());
        // The longest ones may be refused for samples that are older than they are kept.
        let says_why = answer.text().contains("days") || answer.text().contains("started_at");
        assert!(says_why, "{days} days: {}", answer.text());
        if days == MOST_DAYS + 1 {
            assert!(answer.text().contains(&MOST_DAYS.to_string()), "{}", answer.text());
        }
        assert_recovers(&client, &orgs, &mut account).await;
    }
    assert_eq!(hurt.count().await - before, 4, "what was refused is not there, what came between is");
    // As many as are allowed are stored, and a refused batch does not use up its key.
    let answer = hurt.try_post("application/x-ndjson", None, Some("days"), on_days(MOST_DAYS)).await.unwrap().ok();
    assert_eq!(answer.json()["accepted"], MOST_DAYS);
    assert_eq!(answer.json()["duplicate"], false);
    assert_eq!(hurt.count().await - before, 4 + MOST_DAYS);
    for org in &orgs[1..] {
        assert_eq!(client.with_org(org).count().await, 5, "org {org}");
    }
    assert!(server.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_orgs_start_serve_and_start_again() {
    let _alone = alone().await;
    let count = if is_soak() { 10_000 } else { 1_500 };
    let orgs = org_names(count);
    let cluster = Cluster::new(&format!("{}\nflush: {{ interval: 1s }}", Cluster::orgs(&orgs)));
    let mut server = cluster.node().start().await;
    let some = [orgs[0].clone(), orgs[count / 2].clone(), orgs[count - 1].clone()];
    let mut account = Account::default();
    assert_recovers(&server.client(), &some, &mut account).await;
    account.assert_kept(&server.client()).await;
    server.kill();
    server.start().await;
    assert_recovers(&server.client(), &some, &mut account).await;
    account.assert_kept(&server.client()).await;
    assert!(server.stop().await.success());
}

/// An org that cannot flush, since its tables cannot be read or written: its sections are parked, the log is trimmed,
/// the others go on. When its tables are there again, after a restart or without one, all that was acknowledged of it
/// is there.
struct Parked {
    shim: Shim,
    cluster: Cluster,
    orgs: Vec<String>,
    account: Account,
}

impl Parked {
    fn new() -> Self {
        let orgs = org_names(3);
        // An hour in production; longer than the flush of an org that is well takes on a busy machine.
        let log = log_settings(Some("park_after: 5s"));
        let cluster = Cluster::new(&format!("{}\nflush: {{ interval: 300ms }}\n{log}", Cluster::orgs(&orgs)));
        Self { shim: Shim::new(), cluster, orgs, account: Account::default() }
    }

    fn trouble(&self) {
        let table = "/orgs/org-000/tool_invocations";
        self.shim.rules(&[Call::Read, Call::Link, Call::Rename].map(|call| Rule::fails(call, table, EIO)));
    }

    /// Waits until the node says that so many orgs are parked.
    async fn says_parked(&self, client: &Client, orgs: f64) {
        eventually(&format!("{orgs} orgs to be parked"), Duration::from_secs(120), async || {
            let page = client.send(Method::GET, "/metrics", &[], Vec::new()).await.ok()?;
            (Exposition::parse(&page.text()).total("mcpg_cp_orgs_parked") == orgs).then_some(())
        })
        .await;
    }

    /// Sends batches until the log is trimmed past where it is now.
    async fn trimmed(&mut self, client: &Client) {
        let store = self.cluster.store();
        let last = *store.log().last().unwrap();
        eventually("the log to be trimmed past an org that holds it back", Duration::from_secs(120), async || {
            for org in self.orgs.clone() {
                for batch in [Batch::samples(1), Batch::events(1)] {
                    batch.send_noted(client, &org, &mut self.account).await;
                }
            }
            store.log().first().filter(|first| **first > last).map(|_| ())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_org_that_cannot_flush_is_parked_and_the_log_is_trimmed_for_the_others() {
    let mut scene = Parked::new();
    let mut server = scene.cluster.node().shim(&scene.shim).start().await;
    let client = server.client();
    let keys = vkeys(&client, &scene.orgs).await;
    assert_recovers(&client, &scene.orgs, &mut scene.account).await;
    scene.trouble();
    for _ in 0..5 {
        Batch::samples(2).send_noted(&client, &scene.orgs[0], &mut scene.account).await;
        Batch::events(2).send_noted(&client, &scene.orgs[0], &mut scene.account).await;
    }
    scene.trimmed(&client).await;
    let parked = scene.cluster.store().list("orgs/org-000/parked/");
    assert!(!parked.is_empty(), "nothing is parked of the org that held the log back");
    // It counts as parked for as long as it is, not only in the moment in which it is being parked.
    scene.trimmed(&client).await;
    scene.says_parked(&client, 1.0).await;
    for org in &scene.orgs[1..] {
        assert_eq!(scene.cluster.store().list(&format!("orgs/{org}/parked/")), [""; 0], "org {org} is not in trouble");
    }
    // A restart in the midst of it, still in trouble, and another one when it is over.
    server.kill();
    server.start().await;
    scene.account.assert_kept_of(&server.client(), |org| org > 0).await;
    scene.trimmed(&server.client()).await;
    server.kill();
    scene.shim.rules(&[]);
    server.start().await;
    assert_recovers(&server.client(), &scene.orgs, &mut scene.account).await;
    scene.account.assert_kept(&server.client()).await;
    scene.says_parked(&server.client(), 0.0).await;
    assert!(server.stop().await.success());
    for org in &scene.orgs {
        assert_sound(scene.cluster.store().path(), org, &keys[org]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parked_org_recovers_without_a_restart() {
    let mut scene = Parked::new();
    let mut server = scene.cluster.node().shim(&scene.shim).start().await;
    let client = server.client();
    assert_recovers(&client, &scene.orgs, &mut scene.account).await;
    scene.trouble();
    scene.trimmed(&client).await;
    scene.shim.rules(&[]);
    assert_recovers(&client, &scene.orgs, &mut scene.account).await;
    scene.account.assert_kept(&client).await;
    // What was parked is needed no more once it is in the tables.
    eventually("what was parked to be let go", Duration::from_secs(60), async || {
        assert_recovers(&client, &scene.orgs, &mut scene.account).await;
        scene.cluster.store().list("orgs/org-000/parked/").is_empty().then_some(())
    })
    .await;
    scene.says_parked(&client, 0.0).await;
    server.kill();
    server.start().await;
    scene.account.assert_kept(&server.client()).await;
}

/// An org that is stopped, since an object of it is damaged, and then mended while the node runs.
#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_org_does_not_hold_the_log_back_and_loses_nothing() {
    let mut scene = Parked::new();
    let mut server = scene.cluster.node().start().await;
    for _ in 0..3 {
        assert_recovers(&server.client(), &scene.orgs, &mut scene.account).await;
        tokio::time::sleep(Duration::from_millis(400)).await;
    }
    let store = scene.cluster.store();
    eventually("a state of the org", Duration::from_secs(60), async || {
        (!store.list("orgs/org-000/state/").is_empty()).then_some(())
    })
    .await;
    server.kill();
    let state = store.newest("orgs/org-000/state/", "");
    let genuine = store.read(&state);
    store.flip(&state, 5, 3);
    server.start().await;
    let answer = Batch::samples(1).send(&server.client().with_org("org-000")).await.unwrap();
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{}", answer.text());
    assert_eq!(answer.problem(), "org_stopped");
    scene.trimmed(&server.client()).await;
    scene.says_parked(&server.client(), 1.0).await;
    scene.account.assert_kept_of(&server.client(), |org| org > 0).await;
    // A process that starts while the org is stopped finds it parked.
    server.kill();
    server.start().await;
    scene.says_parked(&server.client(), 1.0).await;
    server.kill();
    store.write(&state, &genuine);
    server.start().await;
    assert_recovers(&server.client(), &scene.orgs, &mut scene.account).await;
    scene.account.assert_kept(&server.client()).await;
    scene.says_parked(&server.client(), 0.0).await;
}
