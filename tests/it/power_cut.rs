//! "Acknowledged is durable", tried the one honest way: the store lies on a file system whose power is cut under load. What was
//! only written or renamed is gone then; what was fsynced, and its folder too, is there.

use std::time::Duration;

use crate::harness::{Config, Disk, Load, alone, python};

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
