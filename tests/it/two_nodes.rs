//! Two control planes on one store: one truth, whichever of them is asked, and no loss when one of them dies for good.

use std::time::{Duration, Instant};

use crate::harness::{Client, Config, Exposition, Load, Sample, Server, alone, eventually, ndjson, python};

const FLUSH: &str = "flush: { interval: 500ms }";

/// A further node on the same store, with the key that signs its ledgers.
async fn another(first: &Server) -> Server {
    let key = first.storage().with_file_name("ledger.key");
    Config::on(first.storage()).with(FLUSH).with(&format!("audit: {{ key_file: {} }}", key.display())).start().await
}

async fn two_nodes() -> (Server, Server) {
    let first = Config::new().with(FLUSH).with("audit: { key_file: ledger.key }").start().await;
    let second = another(&first).await;
    (first, second)
}

/// Asks the nodes in turn, as a client behind a balancer does, and fails when a counter or a count goes down; for so
/// long, and so often at least.
async fn watch(nodes: Vec<Client>, length: Duration, times: u32) {
    let mut seen: Option<Exposition> = None;
    let mut count = 0;
    let mut looks = 0;
    let began = Instant::now();
    while began.elapsed() < length || looks < times {
        for (number, node) in nodes.iter().enumerate() {
            let scrape = node.metrics_once_loaded().await;
            if let Some(seen) = &seen {
                scrape.assert_not_below(seen, &format!("node {number}"));
            }
            seen = Some(scrape);
            for query in ["SELECT count(*) FROM tool_invocations", "SELECT sum(calls) FROM tool_usage_hourly"] {
                let value = node.sql_once_loaded(query).await[0][0].as_i64().unwrap();
                assert!(value >= count, "node {number}: {query} fell from {count} to {value}");
                count = value;
            }
            looks += 1;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn counters_and_counts_never_go_down_and_a_dead_node_loses_nothing() {
    let _alone = alone().await;
    let (mut first, second) = two_nodes().await;
    let nodes = vec![first.client(), second.client()];
    let loader = Load { emitters: 3, ..Load::on(&nodes) }.start();
    loader.further(500).await;
    watch(nodes.clone(), Duration::from_secs(8), 6).await;

    first.kill();
    loader.further(1_000).await;
    let ledger = loader.finish().await;
    ledger.assert_kept(&second.client()).await;

    // The survivor flushes what the dead one had acknowledged, once.
    let storage = second.storage().to_str().unwrap().to_owned();
    eventually("all samples in the survivor's table", Duration::from_secs(120), async || {
        let rows = python("delta.py", &[&storage, "default", "tool_invocations", "SELECT count(*) FROM t"]).await;
        (rows[0][0] == ledger.samples()).then_some(())
    })
    .await;
    for table in ["tool_usage_hourly", "tool_usage_daily"] {
        let rows = eventually("the rollups in the survivor's tables", Duration::from_secs(120), async || {
            let rows = python("delta.py", &[&storage, "default", table, "SELECT sum(calls)::BIGINT FROM t"]).await;
            (rows[0][0] == ledger.samples()).then_some(rows)
        });
        rows.await;
    }
    ledger.assert_kept(&second.client()).await;
}

#[tokio::test]
async fn what_one_acknowledged_the_other_shows_at_once() {
    let _alone = alone().await;
    let (first, second) = two_nodes().await;
    let nodes = [first.client(), second.client()];
    let mut sent = 0;
    for round in 0..40 {
        let (writer, reader) = (&nodes[round % 2], &nodes[(round + 1) % 2]);
        writer.post(ndjson(&vec![Sample::new("github", "list_repos", 5.0); 3]), None).await;
        sent += 3;
        assert_eq!(reader.count().await, sent);
        assert_eq!(reader.metrics().await.total("mcpg_tool_calls_total"), sent as f64);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_key_sent_to_both_at_once_is_stored_once() {
    let (first, second) = two_nodes().await;
    let nodes = [first.client(), second.client()];
    for round in 0..30 {
        let key = format!("key-{round}");
        let body = ndjson(&[Sample::new("github", "list_repos", 5.0)]);
        let (one, other) = tokio::join!(nodes[0].post(body.clone(), Some(&key)), nodes[1].post(body, Some(&key)));
        assert_ne!(one.1, other.1, "one of the two is the duplicate: {one:?} {other:?}");
    }
    for node in &nodes {
        assert_eq!(node.count().await, 30);
        assert_eq!(node.metrics().await.total("mcpg_tool_calls_total"), 30.0);
    }
}

#[tokio::test]
async fn a_node_that_starts_later_knows_all() {
    let (first, second) = two_nodes().await;
    let keyed = ndjson(&vec![Sample::new("github", "list_repos", 5.0); 7]);
    first.client().post(keyed.clone(), Some("k1")).await;
    second.client().post(ndjson(&vec![Sample::new("jira", "create_issue", 5.0); 5]), None).await;
    let third = another(&first).await;
    assert_eq!(third.client().count().await, 12);
    assert_eq!(third.client().metrics().await.counters(), first.client().metrics().await.counters());
    assert_eq!(third.client().post(keyed, Some("k1")).await, (7, true));
}

#[tokio::test]
async fn counters_read_first_on_the_other_node_show_what_was_just_acknowledged() {
    let unflushed = "flush: { interval: 1h }\naudit: { key_file: ledger.key }";
    let first = Config::new().with(unflushed).start().await;
    let key = first.storage().with_file_name("ledger.key");
    let audit = format!("flush: {{ interval: 1h }}\naudit: {{ key_file: {} }}", key.display());
    let second = Config::on(first.storage()).with(&audit).start().await;
    let nodes = [first.client(), second.client()];
    for round in 0..20 {
        let (writer, reader) = (&nodes[round % 2], &nodes[(round + 1) % 2]);
        writer.post(ndjson(&[Sample::new("github", "list_repos", 5.0)]), None).await;
        // Nothing but the scrape makes the other node read the log.
        assert_eq!(reader.metrics().await.total("mcpg_tool_calls_total"), (round + 1) as f64);
    }
}
