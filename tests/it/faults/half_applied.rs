//! A read that fails while an object is applied, whose first section is of an org that the node knows and whose last is
//! of one that it has yet to load: the first is not applied twice, and the ledger does not fork.

use std::time::Duration;

use futures::future::join_all;

use crate::harness::{
    Account, Batch, Call, Client, Cluster, EIO, Rule, Shim, assert_recovers, assert_sound, eventually, vkeys,
};

/// What of a new org is read when it is loaded; each is the one that fails once.
const PARTS: [&str; 7] = ["totals", "keys", "state", "audit", "audit/checkpoint", "tool_usage_daily/_delta_log", ""];

#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_fails_while_an_object_with_a_new_org_is_applied_applies_nothing_twice() {
    let shim = Shim::new();
    let cluster = Cluster::new("commit: { window: 250ms }\nflush: { interval: 1h }");
    let known = vec!["acme".to_owned(), "default".to_owned()];
    let new: Vec<_> = (0..PARTS.len()).map(|number| format!("newco-{number}")).collect();
    let all = [known.clone(), new.clone()].concat();
    let mut first = cluster.node().with(&Cluster::orgs(&known)).shim(&shim).start().await;
    let mut second = cluster.node().with(&Cluster::orgs(&known)).start().await;
    let mut account = Account::default();
    for (at, part) in PARTS.into_iter().enumerate() {
        assert_recovers(&first.client(), &known, &mut account).await;
        shim.rules(&[Rule::fails(Call::Read, &format!("/orgs/{}/{part}", new[at]), EIO).times(3)]);
        // The second node's configuration has one more org, which the first learns of from the log: from what a start
        // records, if anything, and from what is sent.
        let configured = [&known, &new[..=at]].concat();
        second.kill();
        second = cluster.node().with(&Cluster::orgs(&configured)).start().await;
        send_together(&second.client(), &[&known, &new[at..=at]].concat(), &mut account).await;
        // Each read makes the first node catch up; until the rule is used up some fail.
        eventually("the first node to have read on", Duration::from_secs(60), async || {
            let mut all_answered = true;
            for org in &known {
                let client = first.client().with_org(org);
                for path in ["metrics", "audit?limit=1"] {
                    all_answered &= client.get(path).await.status.is_success();
                }
            }
            all_answered.then_some(())
        })
        .await;
        shim.rules(&[]);
        // What the first node sends now is built on what it has applied.
        assert_recovers(&first.client(), &known, &mut account).await;
        account.assert_kept_of(&first.client(), |org| org < known.len()).await;
        account.assert_kept(&second.client()).await;
        assert_same_entries(&first.client(), &second.client(), &known).await;
    }
    let keys = vkeys(&second.client(), &all).await;
    // The same at a node whose configuration has the orgs, when it is asked for them.
    first.kill();
    shim.rules(&[Rule::fails(Call::Read, "/orgs/newco-0/", EIO).times(3)]);
    first = cluster.node().with(&Cluster::orgs(&all)).shim(&shim).start().await;
    assert_recovers(&first.client(), &all, &mut account).await;
    shim.rules(&[]);
    account.assert_kept(&first.client()).await;
    account.assert_kept(&second.client()).await;
    assert_same_entries(&first.client(), &second.client(), &all).await;
    assert!(shim.injected("/orgs/newco") > 0, "no read failed");

    assert!(first.stop().await.success() && second.stop().await.success());
    for org in &all {
        assert_sound(cluster.store().path(), org, &keys[org]).await;
    }
    second.start().await;
    account.assert_kept(&second.client()).await;
}

/// Waits until two nodes have one ledger of each org, entry for entry: a node's own entries may come between the two
/// looks, and two ledgers that have parted stay apart.
async fn assert_same_entries(one: &Client, other: &Client, orgs: &[String]) {
    for org in orgs {
        let query = "SELECT seq, entry_hash, action FROM audit_log ORDER BY seq";
        let (one, other) = (one.with_org(org), other.with_org(org));
        eventually(&format!("one ledger of {org} on both nodes"), Duration::from_secs(60), async || {
            (one.sql_once_loaded(query).await == other.sql_once_loaded(query).await).then_some(())
        })
        .await;
    }
}

/// Sends events and samples of each org within one window, in the order of the orgs: one object with sections of all.
async fn send_together(client: &Client, orgs: &[String], account: &mut Account) {
    let batches: Vec<_> = orgs.iter().map(|org| (org, Batch::events(2), Batch::samples(2))).collect();
    let sent = join_all(batches.iter().enumerate().map(async |(at, (org, events, samples))| {
        tokio::time::sleep(Duration::from_millis(20 * at as u64)).await;
        let client = client.with_org(org);
        tokio::join!(events.send(&client), samples.send(&client))
    }));
    for ((org, events, samples), (one, other)) in batches.iter().zip(sent.await) {
        one.unwrap().ok();
        other.unwrap().ok();
        account.note(org, true, &events.request, events.rows, true);
        account.note(org, false, &samples.request, samples.rows, true);
    }
}
