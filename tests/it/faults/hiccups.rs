//! A read that fails is a hiccup: it is tried again for as long as it lasts, and never stops an org, whatever was read.

use std::time::Duration;

use serde_json::json;

use crate::harness::{
    Account, Call, Client, Cluster, EIO, ESTALE, Fleet, Rule, Shim, Started, assert_recovers, assert_sound, eventually,
    org_names, vkeys,
};

/// What is read of a store: a part of the path each.
const PLACES: [&str; 6] = [
    "/_delta_log",
    "/wal/",
    "/orgs/org-000/state",
    "/orgs/org-000/audit/segments",
    "/orgs/org-000/audit/",
    "/orgs/org-000/tool_invocations/",
];

/// Reads fail once, and then for a while, at each place in turn, under load.
async fn under_load(errno: i32) {
    let (shim, orgs) = (Shim::new(), org_names(3));
    let cluster = Cluster::new(&format!("{}\nflush: {{ interval: 300ms }}", Cluster::orgs(&orgs)));
    let mut server = cluster.node().shim(&shim).start().await;
    let client = server.client();
    let keys = vkeys(&client, &orgs).await;
    let load = Fleet::on(std::slice::from_ref(&client), &orgs).start();
    load.further(20).await;
    let (mut recovered, mut fired) = (Account::default(), Vec::new());
    for place in PLACES {
        let before = shim.injected(place);
        let once = Rule::fails(Call::Read, place, errno).once();
        for (rule, length) in [(once, 500), (Rule::fails(Call::Read, place, errno), 1_200)] {
            shim.rules(&[rule]);
            read_everything(&client, &orgs).await;
            tokio::time::sleep(Duration::from_millis(length)).await;
        }
        shim.rules(&[]);
        fired.push((place, shim.injected(place) - before));
        assert_recovers(&client, &orgs, &mut recovered).await;
        load.account().assert_counters(&client).await;
    }
    assert!(fired.iter().filter(|(_, count)| *count > 0).count() >= 3, "hardly anything was read: {fired:?}");
    let mut account = load.finish().await;
    account.merge(recovered);
    account.assert_kept(&client).await;
    assert!(!server.logs().contains("is stopped"), "{}", server.logs());
    server.kill();
    server.start().await;
    account.assert_kept(&client).await;
    assert!(server.stop().await.success());
    for org in &orgs {
        assert_sound(cluster.store().path(), org, &keys[org]).await;
    }
}

async fn read_everything(client: &Client, orgs: &[String]) {
    for org in orgs {
        let client = client.with_org(org);
        for query in ["SELECT count(*), max(tool) FROM tool_invocations", "SELECT count(*), max(actor) FROM audit_log"]
        {
            let answer = client.sql_as(query, json!([]), "application/json").await;
            assert!(!answer.text().contains("org_stopped"), "{query}: {}", answer.text());
        }
        drop(client.get("metrics").await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_input_output_error_on_any_read_stops_no_org() {
    under_load(EIO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_file_handle_on_any_read_stops_no_org() {
    under_load(ESTALE).await;
}

/// A store that cannot be read for a while when a node starts: the node waits for it, and then finds everything.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_outlasts_reads_that_fail() {
    let (shim, orgs) = (Shim::new(), org_names(2));
    let cluster = Cluster::new(&format!("{}\nflush: {{ interval: 300ms }}", Cluster::orgs(&orgs)));
    let mut server = cluster.node().shim(&shim).start().await;
    let mut account = Account::default();
    for _ in 0..3 {
        assert_recovers(&server.client(), &orgs, &mut account).await;
    }
    for place in ["/_delta_log", "/wal/", "/orgs/org-000/"] {
        server.kill();
        shim.rules(&[Rule::fails(Call::Read, place, EIO)]);
        let before = shim.injected(place);
        let started = server.try_start(Duration::from_secs(2)).await;
        eventually(&format!("{place} to be read"), Duration::from_secs(60), async || {
            (shim.injected(place) > before).then_some(())
        })
        .await;
        // It may serve already what does not need the reads, but it must not give up.
        assert!(!matches!(started, Started::Ended(_)), "a failed read at {place} ends the start:\n{}", server.logs());
        shim.rules(&[]);
        assert_recovers(&server.client(), &orgs, &mut account).await;
        account.assert_kept(&server.client()).await;
    }
}
