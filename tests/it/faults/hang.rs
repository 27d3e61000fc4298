//! A store that does not answer: every request is answered all the same, and what was refused is stored at most once.

use std::time::Duration;

use futures::future::join_all;
use reqwest::StatusCode;
use serde_json::json;

use crate::harness::{Account, Batch, Call, Cluster, Rule, Shim, assert_recovers, eventually, org_names};

/// How long a test waits for an answer that must come: many times the timeouts that are configured.
const FOR_EVER: Duration = Duration::from_secs(90);

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_answered_while_the_store_hangs() {
    let (shim, orgs) = (Shim::new(), org_names(2));
    let limits = "limits: { request_timeout: 1s, sql: { timeout: 10s } }\nflush: { interval: 300ms }";
    let cluster = Cluster::new(&format!("{}\n{limits}", Cluster::orgs(&orgs)));
    let mut server = cluster.node().shim(&shim).start().await;
    let client = server.client().with_timeout(FOR_EVER);
    let mut account = Account::default();
    assert_recovers(&client, &orgs, &mut account).await;
    for call in [Call::Link, Call::Fsync, Call::Read] {
        let gate = shim.gate();
        let hanging = if call == Call::Read { "/store/" } else { "/wal/" };
        shim.rules(&[Rule::waits(call, hanging, &gate)]);
        let batches: Vec<_> = (0..6).map(|n| if n % 2 == 0 { Batch::samples(1) } else { Batch::events(1) }).collect();
        let org = client.with_org(&orgs[0]);
        let answers = join_all(batches.iter().map(|batch| batch.send(&org))).await;
        for (batch, answer) in batches.iter().zip(answers) {
            // An error here is one of the client's own: no answer within its patience.
            let answer = answer.unwrap();
            assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{call:?}: {}", answer.text());
            assert!(answer.header("retry-after").parse::<u64>().is_ok(), "{:?}", answer.headers);
            account.note(&orgs[0], batch.is_events, &batch.request, batch.rows, false);
        }
        // Whatever else is asked is answered too, with what is known or with a refusal.
        let sql = org.sql_as("SELECT count(*) FROM tool_invocations", json!([]), "application/json").await;
        let metrics = org.get("metrics").await;
        for answer in [sql, metrics] {
            let bounded = [StatusCode::OK, StatusCode::SERVICE_UNAVAILABLE, StatusCode::REQUEST_TIMEOUT];
            assert!(bounded.contains(&answer.status), "{call:?}: {}: {}", answer.status, answer.text());
        }
        for path in ["/healthz", "/metrics"] {
            assert!(client.get(path).await.status.is_success(), "{call:?}: {path}");
        }
        shim.rules(&[]);
        gate.open();
        assert_recovers(&client, &orgs, &mut account).await;
        account.assert_kept(&client).await;
    }
    server.kill();
    server.start().await;
    account.assert_kept(&server.client()).await;
}

/// Scrapes take turns, of which there are few: one that waits for an org whose files hang takes none from others.
#[tokio::test(flavor = "multi_thread")]
async fn a_scrape_of_an_org_that_hangs_keeps_no_other_waiting() {
    let (shim, orgs) = (Shim::new(), org_names(3));
    let cluster = Cluster::new(&Cluster::orgs(&orgs));
    let mut server = cluster.node().shim(&shim).start().await;
    assert_recovers(&server.client(), &orgs, &mut Account::default()).await;
    server.kill();
    let gate = shim.gate();
    shim.rules(&[Rule::waits(Call::Read, "/orgs/org-000/", &gate), Rule::waits(Call::Read, "/orgs/org-001/", &gate)]);
    server.spawn();
    let client = server.client().with_timeout(FOR_EVER);
    eventually("the node to be ready", Duration::from_secs(120), async || client.ready().await).await;
    let other = client.with_org(&orgs[2]);
    // The hanging ones are refused after a while: on a busy machine that may come first, and then it is tried again.
    for _ in 0..5 {
        other.get("metrics").await.ok();
        let hanging = orgs[..2].iter().flat_map(|org| ["metrics", "metrics?granularity=day"].map(|path| (org, path)));
        let hanging: Vec<_> = hanging
            .map(|(org, path)| {
                let client = client.with_org(org);
                tokio::spawn(async move { client.get(path).await.status })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(500)).await;
        other.get("metrics").await.ok();
        if !hanging.iter().any(tokio::task::JoinHandle::is_finished) {
            gate.open();
            return;
        }
        join_all(hanging).await;
    }
    panic!("a scrape of an org that is well is answered only after those of orgs that hang");
}
