//! A store that is full or read-only costs refusals that say when to come again. Once it takes writes, everything goes
//! on by itself, and nothing that was acknowledged is missing.

use std::time::Duration;

use reqwest::StatusCode;

use crate::harness::{
    Account, Batch, Cluster, Config, Disk, Fleet, Server, alone, assert_recovers, assert_sound, eventually, org_names,
    vkeys,
};

/// Waits until batches of samples and of events are refused, and asserts that the refusals are of the right kind.
async fn assert_refuses(server: &Server, org: &str, account: &mut Account) {
    for is_events in [false, true] {
        let answer = eventually("a batch to be refused", Duration::from_secs(60), async || {
            let batch = if is_events { Batch::events(3) } else { Batch::samples(3) };
            let answer = batch.send(&server.client().with_org(org)).await.unwrap();
            account.note(org, is_events, &batch.request, batch.rows, answer.status == StatusCode::OK);
            (answer.status != StatusCode::OK).then_some(answer)
        })
        .await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{}", answer.text());
        assert_ne!(answer.problem(), "org_stopped", "{}", answer.text());
        assert!(answer.header("retry-after").parse::<u64>().is_ok(), "no Retry-After: {:?}", answer.headers);
    }
    // What is there can be read all the while, and the process is alive.
    assert!(server.client().answers("/healthz").await);
}

/// Has the disk refuse writes twice under load, by `refuse`, until `allow`.
async fn outlast<T>(disk: &Disk, refuse: impl Fn(&Disk) -> T, allow: impl Fn(&Disk, T)) {
    let orgs = org_names(2);
    let keys = Cluster::new("");
    // Refusals come as soon as a request may not take longer.
    let limits = "flush: { interval: 300ms }\nlimits: { request_timeout: 2s }";
    let settings = format!("{}\n{limits}", Cluster::orgs(&orgs));
    let audit = format!("audit: {{ key_file: {} }}", keys.key_file().display());
    let mut server = Config::on(&disk.path().join("store")).with(&settings).with(&audit).start().await;
    let verifiers = vkeys(&server.client(), &orgs).await;
    let load = Fleet { emitters: 2, ..Fleet::on(&[server.client()], &orgs) }.start();
    load.further(20).await;
    let mut probes = Account::default();
    for _ in 0..2 {
        let refused = refuse(disk);
        assert_refuses(&server, &orgs[0], &mut probes).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        allow(disk, refused);
        assert_recovers(&server.client(), &orgs, &mut probes).await;
        load.further(10).await;
    }
    let mut account = load.finish().await;
    account.merge(probes);
    account.assert_kept(&server.client()).await;
    server.kill();
    server.start().await;
    account.assert_kept(&server.client()).await;
    assert!(server.stop().await.success());
    for org in &orgs {
        assert_sound(server.storage(), org, &verifiers[org]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_store_refuses_and_goes_on_once_there_is_room() {
    let _alone = alone().await;
    let Some(disk) = Disk::of(48) else { return };
    outlast(&disk, |disk| disk.fill(64 << 10), |_, filler| std::fs::remove_file(filler).unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_store_refuses_and_goes_on_once_it_is_writable() {
    let _alone = alone().await;
    let Some(disk) = Disk::of(48) else { return };
    outlast(&disk, |disk| disk.set_read_only(true), |disk, ()| disk.set_read_only(false)).await;
}
