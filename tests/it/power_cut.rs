//! "Acknowledged is durable", tried the one honest way: the store lies on a file system whose power is cut under load.
//! What was only written or renamed is gone then; what was fsynced, and its folder too, is there.

use std::time::Duration;

use crate::harness::{Cluster, Config, Disk, Fleet, Load, alone, assert_sound, org_names, python, vkeys};

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_outlives_a_power_cut_in_the_wal_and_in_the_tables() {
    let _alone = alone().await;
    let Some(disk) = Disk::new() else { return };
    let mut server = Config::on(&disk.path().join("store")).with("flush: { interval: 400ms }").start().await;
    let loader = Load { gives_up: 0.3, ..Load::on(&[server.client()]) }.start();
    loader.further(500).await;
    // Thrice, at moments that fall into different steps of commit and flush.
    for wait in [300, 1_150, 1_900] {
        tokio::time::sleep(Duration::from_millis(wait)).await;
        let before = i64::try_from(loader.acknowledged()).unwrap();
        loader.doubt(true);
        disk.cut_power();
        server.kill();
        disk.power_up();
        server.start().await;
        loader.doubt(false);
        let found = server.client().count().await;
        assert!(found >= before, "{before} acknowledged before the power cut, {found} there after it");
        loader.further(300).await;
    }
    let ledger = loader.finish().await;
    ledger.assert_kept(&server.client()).await;

    assert!(server.stop().await.success());
    let store = server.storage().to_str().unwrap();
    let rows = python("delta.py", &[store, "default", "tool_invocations", "SELECT count(*) FROM t"]).await;
    assert!(rows[0][0].as_i64().unwrap() >= ledger.samples(), "another engine finds {rows} of {}", ledger.samples());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_to_the_ledger_outlives_a_power_cut_and_the_ledger_is_sound() {
    let _alone = alone().await;
    let Some(disk) = Disk::of(200) else { return };
    let orgs = org_names(3);
    let settings = format!("{}\nflush: {{ interval: 400ms }}", Cluster::orgs(&orgs));
    let mut server = Config::on(&disk.path().join("store")).with(&settings).start().await;
    let keys = vkeys(&server.client(), &orgs).await;
    let load = Fleet { events: 8, ..Fleet::on(&[server.client()], &orgs) }.start();
    load.further(60).await;
    // At moments that fall into different steps: commit, flush, segment, tiles, checkpoint.
    for wait in [250, 900, 1_600, 2_300] {
        tokio::time::sleep(Duration::from_millis(wait)).await;
        let before = load.account();
        load.doubt(true);
        disk.cut_power();
        server.kill();
        disk.power_up();
        // As it is found: whatever was signed is there and sound, before anything is mended.
        for org in &orgs {
            if server.storage().join(format!("orgs/{org}/audit/checkpoint")).exists() {
                assert_sound(server.storage(), org, &keys[org]).await;
            }
        }
        server.start().await;
        load.doubt(false);
        before.assert_counters(&server.client()).await;
        load.further(30).await;
    }
    let account = load.finish().await;
    account.assert_kept(&server.client()).await;
    assert!(server.stop().await.success());
    account.assert_ledgers(server.storage(), &keys).await;
}
