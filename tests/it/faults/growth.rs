//! What little traffic and idleness cost in what is written: a flush of one sample does not write all totals again, old
//! checkpoints are thinned out, and a start leaves idle orgs alone.

use std::time::Duration;

use crate::harness::{
    Account, Batch, Cluster, Sample, assert_recovers, assert_sound, clock_ahead, eventually, ndjson, org_names, vkeys,
};
use crate::ledger::chain;

const DAY: i64 = 24 * 60 * 60;

#[tokio::test(flavor = "multi_thread")]
async fn a_flush_of_one_sample_does_not_write_all_totals_again() {
    let orgs = org_names(1);
    let cluster = Cluster::new(&format!("{}\nflush: {{ interval: 200ms }}", Cluster::orgs(&orgs)));
    let server = cluster.node().start().await;
    let (client, store) = (server.client().with_org(&orgs[0]), cluster.store());
    let states = || store.list("orgs/org-000/state/");
    let series: Vec<_> = (0..3_000_u64)
        .map(|n| Sample::new("github", &format!("tool-{:08x}", n * 2_654_435_761 % (1 << 32)), 5.0 + n as f64))
        .collect();
    client.post(ndjson(&series), None).await;
    // Each state is looked at as it comes.
    let mut sizes = Vec::new();
    let mut seen = Vec::new();
    for _ in 0..12 {
        client.post(ndjson(&[Sample::new("github", "tool-00000000", 5.0)]), None).await;
        let new = eventually("a state of the org", Duration::from_secs(90), async || {
            let new: Vec<_> = states().into_iter().filter(|name| !seen.contains(name)).collect();
            (!new.is_empty()).then_some(new)
        })
        .await;
        for name in new {
            sizes.push(std::fs::metadata(store.file(&name)).map_or(0, |found| found.len()));
            seen.push(name);
        }
    }
    let largest = sizes.iter().max().copied().unwrap();
    let mut sorted = sizes.clone();
    sorted.sort_unstable();
    let median = sorted[sorted.len() / 2];
    assert!(largest > 3_000 * 4, "no state holds all totals: {sizes:?}");
    assert!(median * 10 < largest, "most flushes of one sample write a large part of all totals: {sizes:?}");
    assert_eq!(client.metrics().await.total("mcpg_tool_calls_total"), 3_012.0);
}

/// Kept for a day, then hourly for a month, then daily: of a minute 40 days ago at most two are left.
#[tokio::test(flavor = "multi_thread")]
async fn old_checkpoints_are_thinned_out_and_the_ledger_stays_sound() {
    let orgs = org_names(1);
    let yaml = format!("{}\nflush: {{ interval: 200ms }}", Cluster::orgs(&orgs));
    let cluster = Cluster::new(&yaml);
    let audit = format!("audit: {{ key_file: {}, prune_interval: 1s }}", cluster.key_file().display());
    let config = crate::harness::Config::on(cluster.store().path()).with(&yaml).with(&audit);
    let mut server = config.environment(clock_ahead(-40 * DAY)).start().await;
    let (client, store) = (server.client().with_org(&orgs[0]), cluster.store());
    let keys = vkeys(&server.client(), &orgs).await;
    let heads = || store.list("orgs/org-000/audit/checkpoints/");
    while heads().len() < 6 {
        chain::emit(&client, 1).await;
        chain::sealed(&client).await;
    }
    let old = heads();
    assert!(server.stop().await.success());
    // The file system's own clock goes on; so the files are made as old as they say.
    #[allow(clippy::disallowed_methods, reason = "the time of the file system")]
    let then = std::time::SystemTime::now() - Duration::from_secs(40 * 24 * 3_600);
    for head in &old {
        std::fs::File::options().write(true).open(store.file(head)).unwrap().set_modified(then).unwrap();
    }
    server.set_environment(clock_ahead(0));
    server.start().await;
    eventually("old checkpoints to be thinned out", Duration::from_secs(90), async || {
        chain::emit(&client, 1).await;
        let left = old.iter().filter(|head| store.file(head).exists()).count();
        (left <= 2).then_some(())
    })
    .await;
    chain::sealed(&client).await;
    assert!(server.stop().await.success());
    assert_sound(store.path(), &orgs[0], &keys[&orgs[0]]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_with_the_same_settings_writes_at_most_one_entry_into_an_idle_orgs_ledger() {
    let orgs = org_names(20);
    let cluster = Cluster::new(&format!("{}\nflush: {{ interval: 200ms }}", Cluster::orgs(&orgs)));
    let mut server = cluster.node().start().await;
    let mut account = Account::default();
    for org in &orgs {
        assert!(Batch::events(1).send_noted(&server.client(), org, &mut account).await);
    }
    for kill in [false, true] {
        let before = entries(&server.client(), &orgs).await;
        if kill {
            server.kill();
        } else {
            assert!(server.stop().await.success());
        }
        server.start().await;
        // Something happens to the first org; the others are idle.
        assert_recovers(&server.client(), &orgs[..1], &mut account).await;
        let after = entries(&server.client(), &orgs).await;
        for (org, (before, after)) in orgs.iter().zip(before.iter().zip(&after)).skip(1) {
            assert!(after - before <= 1, "org {org}: a start wrote {} entries", after - before);
        }
    }
    account.assert_kept(&server.client()).await;
}

async fn entries(client: &crate::harness::Client, orgs: &[String]) -> Vec<u64> {
    let mut sizes = Vec::new();
    for org in orgs {
        sizes.push(chain::size(&client.with_org(org)).await);
    }
    sizes
}
