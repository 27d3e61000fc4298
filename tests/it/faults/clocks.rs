//! Clocks that are wrong: nodes minutes apart say the same, and keys are remembered by the log's time for as long as
//! they should be.

use std::time::Duration;

use crate::harness::{
    Account, Batch, Cluster, Fleet, Server, alone, assert_recovers, assert_sound, clock_ahead, eventually, org_names,
    vkeys,
};

const MINUTE: i64 = 60;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;

#[tokio::test(flavor = "multi_thread")]
async fn nodes_whose_clocks_are_minutes_apart_say_the_same() {
    let orgs = org_names(3);
    let cluster = Cluster::new(&format!("{}\nflush: {{ interval: 300ms }}", Cluster::orgs(&orgs)));
    let mut nodes: Vec<Server> = Vec::new();
    for offset in [0, 4 * MINUTE, -4 * MINUTE] {
        nodes.push(cluster.node().environment(clock_ahead(offset)).start().await);
    }
    let clients: Vec<_> = nodes.iter().map(Server::client).collect();
    let load = Fleet::on(&clients, &orgs).start();
    load.further(100).await;
    // The fastest clock goes away, and its log is carried on by the slowest.
    nodes[1].kill();
    load.further(20).await;
    nodes[1].start().await;
    load.further(50).await;
    let account = load.finish().await;
    for client in &clients {
        account.assert_kept(client).await;
    }
    let keys = vkeys(&clients[0], &orgs).await;
    for node in &mut nodes {
        assert!(node.stop().await.success());
    }
    for org in &orgs {
        assert_sound(cluster.store().path(), org, &keys[org]).await;
    }
}

async fn duplicate(server: &Server, org: &str, batch: &Batch) -> bool {
    let answer = batch.send(&server.client().with_org(org)).await.unwrap().ok();
    answer.json()["duplicate"].as_bool().unwrap()
}

/// Keys that were flushed in several runs, and merged into one, and the clock set forward over a restart.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_known_for_24_hours_and_not_for_ever() {
    let _alone = alone().await;
    let orgs = org_names(1);
    let cluster = Cluster::new(&format!("{}\nflush: {{ interval: 200ms }}", Cluster::orgs(&orgs)));
    let mut server = cluster.node().start().await;
    let mut account = Account::default();
    let (samples, events) = (Batch::samples(2).with_key(), Batch::events(2).with_key());
    assert!(!duplicate(&server, &orgs[0], &samples).await && !duplicate(&server, &orgs[0], &events).await);
    // Each in a flush of its own, so that there are runs to be merged.
    for _ in 0..6 {
        let runs = cluster.store().list("orgs/org-000/state/");
        assert!(!duplicate(&server, &orgs[0], &Batch::samples(1).with_key()).await);
        eventually("the keys to be stored", Duration::from_secs(60), async || {
            (cluster.store().list("orgs/org-000/state/") != runs).then_some(())
        })
        .await;
    }
    for _ in 0..2 {
        assert!(server.stop().await.success());
        // Some minutes less than a day, which all that was done since the keys were sent may have taken.
        server.set_environment(clock_ahead(DAY - 10 * MINUTE));
        server.start().await;
        assert_recovers(&server.client(), &orgs, &mut account).await;
        assert!(duplicate(&server, &orgs[0], &samples).await, "samples, 23 h 50 later");
        assert!(duplicate(&server, &orgs[0], &events).await, "events, 23 h 50 later");
    }
    // Later they are let go, by flushes at the latest.
    assert!(server.stop().await.success());
    server.set_environment(clock_ahead(DAY + 2 * HOUR));
    server.start().await;
    for batch in [&samples, &events] {
        eventually("keys of yesterday to be forgotten", Duration::from_secs(120), async || {
            assert_recovers(&server.client(), &orgs, &mut account).await;
            (!duplicate(&server, &orgs[0], batch).await).then_some(())
        })
        .await;
    }
    // Sent again after they were forgotten, they are new once.
    assert!(duplicate(&server, &orgs[0], &samples).await && duplicate(&server, &orgs[0], &events).await);
}

/// All that is kept for a time would go by such a clock, and the log's time, which never goes back, would stay years
/// ahead for good.
#[tokio::test(flavor = "multi_thread")]
async fn by_a_clock_that_is_years_ahead_nothing_is_written_and_nothing_is_deleted() {
    let orgs = org_names(1);
    let kept_for_a_month = format!("orgs: [{{ name: {}, tier: community }}]", orgs[0]);
    let rest = "flush: { interval: 200ms }\nmaintenance: { interval: 1s }";
    let cluster = Cluster::new(&format!("{kept_for_a_month}\n{rest}"));
    let mut server = cluster.node().start().await;
    let (mut account, known) = (Account::default(), Batch::samples(2).with_key());
    assert!(known.send_noted(&server.client(), &orgs[0], &mut account).await);
    assert!(Batch::events(2).send_noted(&server.client(), &orgs[0], &mut account).await);
    assert!(server.stop().await.success());

    server.set_environment(clock_ahead(3 * 365 * DAY));
    server.start().await;
    let refused = Batch::events(1).send(&server.client().with_org(&orgs[0])).await.unwrap();
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert!(refused.text().contains("log.max_rest"), "{}", refused.text());
    // Retention, which would take the samples of three years ago, says first in the ledger that it does.
    eventually("the tables to be looked after", Duration::from_secs(60), async || {
        server.logs().contains("the tables were not looked after").then_some(())
    })
    .await;
    account.assert_kept(&server.client()).await;
    server.kill();

    server.set_environment(clock_ahead(0));
    server.start().await;
    assert!(duplicate(&server, &orgs[0], &known).await, "nothing was forgotten");
    assert_recovers(&server.client(), &orgs, &mut account).await;
    account.assert_kept(&server.client()).await;
}
