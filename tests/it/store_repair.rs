//! `mcpg store repair`: an org that is stopped goes on from what can be read of it, on every node, without a restart.

use std::time::Duration;

use serde_json::Value;

use crate::harness::{
    Account, Answer, Batch, Client, Cluster, Folder, assert_recovers, assert_sound, eventually, org_names, vkeys,
};
use crate::ledger::chain;
use crate::store_cli::{live, store};

const UNFLUSHED: &str = "flush: { interval: 1h }";
const ORG: &str = "org-000";

/// Where a log object's header begins, and how long the MAC after it is (`log/object`).
const HEADER: usize = 20;
const TRAILER: usize = 83;

/// Flips a bit in the body of the org's newest section of a kind; the object's name.
fn flip_body(store: &Folder, kind: &str) -> String {
    for seq in store.log().into_iter().rev() {
        let name = format!("wal/{seq:020}");
        let bytes = store.read(&name);
        let length = u32::from_le_bytes(bytes[16..HEADER].try_into().unwrap()) as usize;
        let header: Value = serde_json::from_slice(&bytes[HEADER..HEADER + length]).unwrap();
        let mut at = HEADER + length + TRAILER;
        for section in header["sections"].as_array().unwrap() {
            let rows = section["rows"]["length"].as_u64().unwrap_or(0) as usize;
            if section["org"] == ORG && section["rows"]["kind"] == kind {
                store.flip(&name, isize::try_from(at + rows / 2).unwrap(), 3);
                return name;
            }
            at += rows;
        }
    }
    panic!("no log object has {kind} of {ORG}");
}

async fn asked(client: &Client) -> Answer {
    client
        .with_org(ORG)
        .sql_as("SELECT count(*) FROM tool_invocations", serde_json::json!([]), "application/json")
        .await
}

/// An org that is damaged is found to be when it is loaded, which may take longer than the first answer.
async fn stopped(client: &Client) {
    eventually("the org to be stopped", Duration::from_secs(60), async || {
        asked(client).await.text().contains("org_stopped").then_some(())
    })
    .await;
}

/// Between being stopped and being served, the org is loaded: 503 with a `Retry-After`.
async fn served_again(client: &Client) {
    eventually("the org to be served again, without a restart", Duration::from_secs(60), async || {
        (asked(client).await.status == 200).then_some(())
    })
    .await;
}

struct Scene {
    cluster: Cluster,
    orgs: Vec<String>,
    account: Account,
    keys: std::collections::BTreeMap<String, String>,
}

impl Scene {
    /// Repairs the stopped org under a node that runs, without a loss: it goes on at once and after a restart, all that
    /// was acknowledged is kept, and the ledgers are sound. Returns the repair's report.
    async fn repair_without_loss(self) -> (Cluster, Value) {
        let Self { cluster, orgs, mut account, keys } = self;
        let mut node = cluster.node().start().await;
        stopped(&node.client()).await;
        let (code, report, said) = store(&cluster, &["repair", "--org", ORG]).await;
        assert!(
            code == 0 && report["position"].is_u64() && report["given_up"] == serde_json::json!([]),
            "{code}: {said}: {report}"
        );
        served_again(&node.client()).await;
        account.assert_kept(&node.client()).await;
        assert_recovers(&node.client(), &orgs, &mut account).await;
        node.kill();
        node.start().await;
        account.assert_kept(&node.client()).await;
        assert!(node.stop().await.success());
        for org in &orgs {
            assert_sound(cluster.store().path(), org, &keys[org]).await;
        }
        (cluster, report)
    }
}

/// Two orgs with a little of each kind, and the node killed.
async fn scene(yaml: &str) -> Scene {
    let orgs = org_names(2);
    let cluster = Cluster::new(&format!("{}\n{yaml}", Cluster::orgs(&orgs)));
    let mut server = cluster.node().start().await;
    let account = live(&server, &orgs).await;
    let keys = vkeys(&server.client(), &orgs).await;
    // For all events to be under a checkpoint.
    for org in &orgs {
        chain::sealed(&server.client().with_org(org)).await;
    }
    server.kill();
    Scene { cluster, orgs, account, keys }
}

#[tokio::test(flavor = "multi_thread")]
async fn samples_that_cannot_be_read_are_given_up_by_name_and_every_node_goes_on() {
    let Scene { cluster, orgs, mut account, keys } = scene(UNFLUSHED).await;
    let object = flip_body(&cluster.store(), "samples");
    let mut nodes = [cluster.node().start().await, cluster.node().start().await];
    for node in &nodes {
        stopped(&node.client()).await;
        account.assert_kept_of(&node.client(), |org| org == 1).await;
    }
    let before = cluster.store().digest();
    let (code, report, said) = store(&cluster, &["repair", "--org", ORG, "--dry-run"]).await;
    assert_eq!(
        (code, report["given_up"].as_array().map(Vec::len), &report["position"]),
        (1, Some(1), &Value::Null),
        "{said}"
    );
    assert!(report["given_up"][0]["object"].as_str().unwrap().starts_with(&object), "{report}");
    let (code, _, said) = store(&cluster, &["repair", "--org", ORG]).await;
    assert!(code == 1 && said.contains("--accept-loss"), "{code}: {said}");
    assert_eq!(cluster.store().digest(), before, "nothing was written yet");

    let (code, report, said) = store(&cluster, &["repair", "--org", ORG, "--accept-loss"]).await;
    assert!(code == 0 && report["position"].is_u64(), "{code}: {said}: {report}");
    let lost: i64 = report["given_up"][0]["reason"].as_str().unwrap().split(' ').next().unwrap().parse().unwrap();
    for node in &nodes {
        served_again(&node.client()).await;
        let client = node.client().with_org(ORG);
        assert_eq!(client.count().await, account.sent_samples(ORG) - lost, "all but what was given up");
        assert_eq!(client.metrics().await.total("mcpg_tool_calls_total") as i64, client.count().await);
        let query = "SELECT detail FROM audit_log WHERE action = 'operator.org_repaired'";
        let entries = client.sql(query).await;
        assert!(entries.len() == 1 && entries[0][0].as_str().unwrap().contains(&object), "{entries:?}");
    }
    // It goes on, and what comes now is kept over a restart.
    let mut later = Account::default();
    assert_recovers(&nodes[0].client(), &orgs, &mut later).await;
    for node in &mut nodes {
        node.kill();
        node.start().await;
        assert_eq!(node.client().with_org(ORG).count().await, account.sent_samples(ORG) - lost + 1);
    }
    assert!(nodes[0].stop().await.success());
    assert!(nodes[1].stop().await.success());
    account.merge(later);
    for org in &orgs {
        assert_sound(cluster.store().path(), org, &keys[org]).await;
    }
    let (code, report, said) = store(&cluster, &["check"]).await;
    assert_eq!(code, 0, "{said}: {report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_a_checkpoint_covers_are_taken_from_the_ledger_and_nothing_is_lost() {
    let scene = scene(UNFLUSHED).await;
    let object = flip_body(&scene.cluster.store(), "events");
    let (_cluster, report) = scene.repair_without_loss().await;
    assert!(report["passed_over"][0]["object"].as_str().unwrap().starts_with(&object), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_cannot_be_read_is_made_again_from_the_one_before_and_the_log() {
    let scene = scene("flush: { interval: 300ms }").await;
    let store_folder = scene.cluster.store();
    let state = store_folder.newest(&format!("orgs/{ORG}/state/"), "");
    store_folder.flip(&state, 60, 2);
    let (cluster, report) = scene.repair_without_loss().await;
    assert_eq!(report["passed_over"][0]["object"], state, "{report}");
    let (code, report, said) = store(&cluster, &["check"]).await;
    assert_eq!(code, 0, "{said}: {report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_only_be_restored_is_refused_by_name_and_what_is_sound_is_left_alone() {
    let Scene { cluster, .. } = scene("flush: { interval: 300ms }").await;
    let before = cluster.store().digest();
    let (code, report, said) = store(&cluster, &["repair", "--org", ORG]).await;
    assert_eq!((code, &report["position"]), (0, &Value::Null), "{said}: {report}");
    assert_eq!(cluster.store().digest(), before, "a sound org is left alone");
    let (code, _, said) = store(&cluster, &["repair", "--org", "nobody"]).await;
    assert!(code == 2 && said.contains("no org nobody"), "{code}: {said}");
    let commit = cluster.store().newest(&format!("orgs/{ORG}/tool_invocations/_delta_log/"), ".json");
    cluster.store().flip(&commit, 0, 2);
    let spoiled = cluster.store().digest();
    let (code, _, said) = store(&cluster, &["repair", "--org", ORG, "--accept-loss"]).await;
    assert!(code == 2 && said.contains(&commit), "{code}: {said}");
    assert_eq!(cluster.store().digest(), spoiled, "nothing is written where something must be restored first");
}

/// The log no longer has what is between the state before and the newest one: then only the newest one has it.
#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_alone_has_what_came_before_it_must_be_restored() {
    let orgs = org_names(2);
    let cluster = Cluster::new(&format!("{}\nflush: {{ interval: 300ms }}", Cluster::orgs(&orgs)));
    let mut server = cluster.node().start().await;
    let (client, mut account) = (server.client(), live(&server, &orgs).await);
    let newest = |folder: &Folder| folder.newest(&format!("orgs/{ORG}/state/"), "");
    let store_folder = cluster.store();
    eventually("the log to be trimmed past a silent org", Duration::from_secs(120), async || {
        assert!(Batch::samples(1).send_noted(&client, &orgs[1], &mut account).await);
        let position: u64 = newest(&store_folder).rsplit('/').next().unwrap().parse().unwrap();
        (store_folder.floor()? > position).then_some(())
    })
    .await;
    server.kill();
    let state = newest(&store_folder);
    let genuine = store_folder.read(&state);
    store_folder.flip(&state, 60, 2);
    let spoiled = store_folder.digest();
    let (code, report, said) = store(&cluster, &["repair", "--org", ORG, "--accept-loss"]).await;
    assert!(code == 2 && said.contains(&state), "{code}: {said}: {report}");
    assert_eq!(store_folder.digest(), spoiled, "nothing is written where a state must be restored");
    store_folder.write(&state, &genuine);
    server.start().await;
    account.assert_kept(&server.client()).await;
}
