//! Reading the ledger by pages while it grows: each entry once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;

use super::given::{events, post};
use crate::harness::{Client, Config};

/// Follows cursors to the end; gives the entries' numbers.
async fn all_pages(client: &Client, query: &str) -> Vec<u64> {
    let (mut seqs, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = client.get(&format!("audit?{query}{cursor}")).await.ok().json();
        let entries = page["entries"].as_array().unwrap();
        seqs.extend(entries.iter().map(|entry| entry["seq"].as_u64().unwrap()));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return seqs,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_hold_each_entry_once_while_entries_keep_arriving() {
    let server = Config::new().start().await;
    let client = server.client();
    post(&client, events(0, 2_000), None).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writer = {
        let (client, stop) = (client.clone(), Arc::clone(&stop));
        tokio::spawn(async move {
            let mut next = 2_000;
            while !stop.load(Ordering::SeqCst) {
                post(&client, events(next, next + 10), None).await;
                next += 10;
                // Slower than pages are read, so that oldest first there is an end to come to.
                tokio::time::sleep(Duration::from_millis(25)).await;
            }
            next
        })
    };
    for _ in 0..2 {
        // Newest first: all that were there when the first page was made, without a gap.
        let seqs = all_pages(&client, "limit=137").await;
        assert!(seqs.len() >= 2_000 && seqs.is_sorted_by(|a, b| *a == b + 1) && seqs.last() == Some(&0));
        // Oldest first: all that are there when the last page is made.
        let seqs = all_pages(&client, "order=asc&limit=211").await;
        assert!(seqs.len() >= 2_000 && seqs.is_sorted_by(|a, b| *b == a + 1) && seqs.first() == Some(&0));
        let of_alice = all_pages(&client, "actor=user:alice@acme&action_prefix=tool.&limit=100").await;
        assert!(of_alice.len() > 600 && of_alice.is_sorted_by(|a, b| a > b));
    }
    stop.store(true, Ordering::SeqCst);
    let written = writer.await.unwrap();
    let seqs = all_pages(&client, "limit=1000").await;
    assert!(seqs.len() as u64 >= written);

    // Filters part the ledger: what one does not show, another does.
    let mut parted = Vec::new();
    for action in ["tool.permit", "tool.deny", "plugin.started"] {
        parted.extend(all_pages(&client, &format!("action={action}&limit=300")).await);
    }
    let others: Vec<Value> = client
        .sql("SELECT seq FROM audit_log WHERE action NOT IN ('tool.permit', 'tool.deny', 'plugin.started')")
        .await
        .concat();
    parted.extend(others.iter().map(|seq| seq.as_u64().unwrap()));
    parted.sort_unstable_by(|a, b| b.cmp(a));
    assert_eq!(parted, seqs);
}
