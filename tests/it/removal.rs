//! Removing an org: served no more at once, restored whole within the grace, deleted but for a tombstone after it; on
//! every node, and without hurting any other org.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{Account, Batch, Client, Cluster, assert_recovers, assert_sound, eventually, org_names, vkeys};
use crate::store_cli::store as mcpg_store;

const SOON: Duration = Duration::from_secs(120);

/// Removes an org, or what else there is to be asked of it.
async fn send(client: &Client, method: Method, org: &str, under: &str, body: Value) -> (StatusCode, Value) {
    let path = format!("/v1/orgs/{org}{under}");
    let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    let answer = client.send(method, &path, &[], body).await.unwrap();
    (answer.status, answer.json())
}

async fn codes(client: &Client) -> Vec<Option<String>> {
    let mut codes = Vec::new();
    for path in ["metrics", "audit", "audit/checkpoint", "audit/retention"] {
        let answer = client.get(path).await;
        codes.push((!answer.status.is_success()).then(|| answer.json()["code"].as_str().unwrap().to_owned()));
    }
    let answer = client.sql_as("SELECT count(*) FROM tool_invocations", json!([]), "application/json").await;
    codes.push((!answer.status.is_success()).then(|| answer.json()["code"].as_str().unwrap().to_owned()));
    codes
}

fn cluster(orgs: &[String], grace: &str) -> Cluster {
    Cluster::new(&format!(
        "{}\nflush: {{ interval: 200ms }}\nmaintenance: {{ interval: 1s, removal_grace: {grace} }}",
        Cluster::orgs(orgs)
    ))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_org_is_served_by_no_node_and_restored_whole() {
    let orgs = org_names(2);
    let cluster = cluster(&orgs, "7d");
    let (mut one, two) = (cluster.node().start().await, cluster.node().start().await);
    let mut account = Account::default();
    for node in [&one, &two] {
        assert_recovers(&node.client(), &orgs, &mut account).await;
    }
    let keys = vkeys(&one.client(), &orgs).await;
    let (gone, removed) = (orgs[0].as_str(), Some("org_removed".to_owned()));
    let (status, answer) = send(&one.client(), Method::DELETE, gone, "", json!({ "reason": "ended" })).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    let again = send(&two.client(), Method::DELETE, gone, "", Value::Null).await;
    assert_eq!((status, &answer), (again.0, &again.1), "asked again it says the same");
    let at = |member: &str| answer[member].as_str().unwrap().parse::<chrono::DateTime<chrono::Utc>>().unwrap();
    assert_eq!(at("deleted_after") - at("removed_at"), chrono::TimeDelta::days(7));

    one.kill();
    one.start().await;
    for node in [&one, &two] {
        let client = node.client().with_org(gone);
        assert_eq!(codes(&client).await, vec![removed.clone(); 5]);
        for batch in [Batch::samples(1), Batch::events(1)] {
            let refused = batch.send(&client).await.unwrap();
            assert_eq!((refused.status, refused.json()["code"].as_str()), (StatusCode::NOT_FOUND, Some("org_removed")));
        }
        // Another org notices nothing.
        assert_recovers(&node.client(), &orgs[1..], &mut account).await;
    }

    let restored = send(&two.client(), Method::POST, gone, "/restore", json!({ "reason": "a mistake" })).await;
    assert_eq!(restored, (StatusCode::OK, json!({ "org": gone, "removed": false })));
    for node in [&one, &two] {
        account.assert_kept(&node.client()).await;
        assert_recovers(&node.client(), &orgs, &mut account).await;
    }
    let entries = one.client().with_org(gone).get("audit?action_prefix=operator.org_").await.ok().json();
    let entries: Vec<_> = entries["entries"].as_array().unwrap().iter().map(|e| (&e["action"], &e["reason"])).collect();
    assert_eq!(json!(entries[..2]), json!([["operator.org_restored", "a mistake"], ["operator.org_removed", "ended"]]));
    one.stop().await;
    assert_sound(cluster.store().path(), gone, &keys[gone]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_grace_all_of_a_removed_org_is_deleted_and_nothing_brings_it_back() {
    let orgs = org_names(2);
    let cluster = cluster(&orgs, "2s");
    let (mut one, mut two) = (cluster.node().start().await, cluster.node().start().await);
    let mut account = Account::default();
    for node in [&one, &two] {
        assert_recovers(&node.client(), &orgs, &mut account).await;
    }
    let gone = orgs[0].as_str();
    // One node sleeps through all of it.
    two.pause();
    let (status, _) = send(&one.client(), Method::DELETE, gone, "", Value::Null).await;
    assert_eq!(status, StatusCode::OK);
    let store = cluster.store();
    let left = || store.list(&format!("orgs/{gone}/"));
    eventually("all but the tombstone to be deleted", SOON, async || (left().len() == 1).then_some(())).await;
    assert!(left()[0].contains("/state/"), "{:?}", left());
    let (status, answer) = send(&one.client(), Method::POST, gone, "/restore", Value::Null).await;
    assert_eq!((status, answer["code"].as_str()), (StatusCode::NOT_FOUND, Some("org_removed")));

    // The sleeper, a restart and a new node: none of them brings it back, and the other org is whole.
    two.resume();
    one.kill();
    one.start().await;
    for node in [&one, &two] {
        let client = node.client().with_org(gone);
        eventually("the org to be refused", SOON, async || {
            (codes(&client).await == vec![Some("org_removed".to_owned()); 5]).then_some(())
        })
        .await;
        assert_recovers(&node.client(), &orgs[1..], &mut account).await;
        account.assert_kept_of(&node.client(), |at| at == 1).await;
    }
    for node in [&mut one, &mut two] {
        assert!(node.stop().await.success());
    }
    let (code, report, said) = mcpg_store(&cluster, &["check"]).await;
    assert_eq!(code, 0, "{report} {said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_org_on_hold_is_not_removed() {
    let orgs = org_names(1);
    let cluster = cluster(&orgs, "2s");
    let server = cluster.node().start().await;
    let (client, org) = (server.client(), orgs[0].as_str());
    assert_recovers(&server.client(), &orgs, &mut Account::default()).await;
    send(&client, Method::POST, org, "/audit/hold", json!({ "reason": "case 12" })).await;
    let (status, answer) = send(&client, Method::DELETE, org, "", Value::Null).await;
    assert_eq!((status, answer["code"].as_str()), (StatusCode::CONFLICT, Some("on_hold")), "{answer}");
    send(&client, Method::POST, org, "/audit/release", json!({ "reason": "closed" })).await;
    assert_eq!(send(&client, Method::DELETE, org, "", Value::Null).await.0, StatusCode::OK);
}
