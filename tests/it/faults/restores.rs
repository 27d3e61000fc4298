//! Parts of a store restored from different moments: the log older than the orgs, the orgs older than the log, both
//! older. What was acknowledged is there, or it is said what is missing; and nothing that is acknowledged afterwards is
//! dropped.

use std::time::Duration;

use tempfile::TempDir;

use super::outcome::{Found, Lived, Look};
use super::trimmed_at_once;
use crate::harness::{Account, Batch, Cluster, Folder, Server, Started, assert_recovers, org_names, vkeys};

/// A deployment, and copies of its store at two moments.
struct Scene {
    lived: Lived,
    earlier: Folder,
    _folder: TempDir,
}

impl Scene {
    /// Some life, a copy, and some more life before the process is killed.
    async fn new(yaml: &str) -> Self {
        let (orgs, folder) = (org_names(2), TempDir::with_prefix("mcpg-earlier-").unwrap());
        let cluster = Cluster::new(&format!("{}\n{yaml}", Cluster::orgs(&orgs)));
        let mut server = cluster.node().start().await;
        let (client, mut account) = (server.client(), Account::default());
        live(&server, &orgs, &mut account).await;
        let earlier = Folder::at(folder.path());
        // In order of what stands on what: the copy may miss what came last, not what it needs. A floor that rose
        // meanwhile may have been missed under either name.
        while earlier.floor().is_none() {
            cluster.store().copy_to(earlier.path());
        }
        live(&server, &orgs, &mut account).await;
        let vkeys = vkeys(&client, &orgs).await;
        server.kill();
        Self { lived: Lived { cluster, orgs, account, vkeys }, earlier, _folder: folder }
    }

    /// Puts what was earlier under `part` in the place of what is there.
    fn restore(&self, part: &str) {
        let store = self.lived.cluster.store();
        Folder::at(&store.file(part)).replace_with(&Folder::at(&self.earlier.file(part)));
    }
}

async fn live(server: &Server, orgs: &[String], account: &mut Account) {
    for _ in 0..4 {
        assert_recovers(&server.client(), orgs, account).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Asserts of a store that lacks something that was acknowledged: a refusal names a part of the store, and no answer
/// holds less than all.
async fn assert_not_silent(look: Look) {
    look.assert_whole_or_told(&["wal", "orgs/"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_restored_from_seconds_before_the_orgs_is_told() {
    for yaml in ["flush: { interval: 1h }", "flush: { interval: 300ms }"] {
        let scene = Scene::new(yaml).await;
        scene.restore("wal");
        // With nothing flushed the ledger's segments still tell how far the log was.
        assert_not_silent(scene.lived.look().await).await;
    }
}

/// Whatever an older store has lost, what is acknowledged from now on counts.
async fn assert_new_batches_count(look: &mut Look) {
    for org in look.lived.orgs.clone() {
        let client = look.server.client().with_org(&org);
        let Some(before) = count(&client).await else { continue };
        let mut taken = 0;
        for _ in 0..10 {
            let answer = Batch::samples(1).send(&client).await.unwrap();
            taken += i64::from(answer.status.as_u16() == 200);
        }
        let Some(now) = count(&client).await else { continue };
        assert_eq!(now - before, taken, "org {org}: {taken} samples were acknowledged");
        look.server.kill();
        look.server.start().await;
        let client = look.server.client().with_org(&org);
        let again = client.sql_once_loaded("SELECT count(*) FROM tool_invocations").await;
        assert_eq!(again[0][0].as_i64(), Some(now), "org {org}, after a restart");
        assert_eq!(client.metrics_once_loaded().await.total("mcpg_tool_calls_total") as i64, now, "org {org}");
    }
}

async fn count(client: &crate::harness::Client) -> Option<i64> {
    let query = "SELECT count(*) FROM tool_invocations";
    let answer = client.sql_as(query, serde_json::json!([]), "application/json").await;
    answer.status.is_success().then(|| answer.json()["rows"][0][0].as_i64().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn orgs_restored_from_seconds_before_the_log_are_whole_while_the_log_has_all_and_told_otherwise() {
    for yaml in ["flush: { interval: 1h }", "flush: { interval: 300ms }"] {
        let scene = Scene::new(yaml).await;
        scene.restore("orgs");
        assert_not_silent(scene.lived.look().await).await;
    }
    let scene = Scene::new(&format!("flush: {{ interval: 300ms }}\n{}", trimmed_at_once())).await;
    scene.restore("orgs");
    assert_not_silent(scene.lived.look().await).await;
}

/// One org's folder from earlier: it alone may be refused.
#[tokio::test(flavor = "multi_thread")]
async fn one_org_restored_from_seconds_before_is_whole_or_told_and_hurts_no_other() {
    for part in ["", "/tool_invocations", "/state", "/audit"] {
        let scene = Scene::new(&format!("flush: {{ interval: 300ms }}\n{}", trimmed_at_once())).await;
        scene.restore(&format!("orgs/org-000{part}"));
        let mut look = scene.lived.look().await;
        assert_eq!(look.found_well("org-001").await, Found::Whole, "for org-000{part}");
        let is_named = |why: &str| why.contains("orgs/org-000") || why.contains("wal/");
        if let Found::Refused(why) = look.settled("org-000", is_named).await {
            assert!(is_named(&why), "org-000{part}: {why}");
        }
    }
}

/// A whole store from earlier has lost what came after, and nobody can know but a mirror or a witness: but it is one
/// that works, and a node that was running on the newer one does not go on as if nothing had happened.
#[tokio::test(flavor = "multi_thread")]
async fn a_whole_store_restored_from_before_works_and_counts_what_comes_next() {
    let scene = Scene::new("flush: { interval: 300ms }").await;
    let store = scene.lived.cluster.store();
    store.replace_with(&scene.earlier);
    let mut look = scene.lived.look().await;
    assert_eq!(look.started, Started::Ready, "{}", look.server.logs());
    assert_new_batches_count(&mut look).await;
}

/// The log regrown under other numbers' names: restored older, and written to again before the orgs' newer state is
/// seen.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_was_restored_older_and_grew_again_is_told() {
    let scene = Scene::new("flush: { interval: 300ms }").await;
    let newest = *scene.lived.cluster.store().log().last().unwrap();
    // On a store of its own the older log grows past the number that the newer one ended at.
    let regrown = scene.lived.copy();
    regrown.cluster.store().replace_with(&scene.earlier);
    let mut server = regrown.cluster.node().start().await;
    let mut unheeded = Account::default();
    while regrown.cluster.store().log().last().is_none_or(|last| *last < newest + 5) {
        assert_recovers(&server.client(), &regrown.orgs, &mut unheeded).await;
    }
    server.kill();
    Folder::at(&scene.lived.cluster.store().file("wal"))
        .replace_with(&Folder::at(&regrown.cluster.store().file("wal")));
    assert_not_silent(scene.lived.look().await).await;
}
