//! The control plane on a bucket: acknowledged samples and audit events outlive `kill -9`, are read back, and the
//! ledger in the bucket is verified by URL.

use std::time::Duration;

use crate::harness::s3::Seaweed;
use crate::harness::{Config, Load, eventually, mcpg, run};

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_on_a_bucket_outlives_a_kill() {
    let seaweed = Seaweed::shared().await;
    let bucket = seaweed.bucket().await;
    let quick = "commit: { window: 20ms }\nflush: { interval: 2s }\naudit: { period: 1s }";
    let mut server = Config::new().on_bucket(&bucket.yaml("prod")).with(quick).start().await;
    let loader = Load { emitters: 4, rows: 20, ..Load::on(&[server.client()]) }.start();
    for _ in 0..2 {
        loader.further(400).await;
        server.kill();
        server.start().await;
    }
    loader.further(400).await;
    let ledger = loader.finish().await;
    ledger.assert_kept(&server.client()).await;
    assert!(server.stop().await.success());
    server.start().await;
    ledger.assert_kept(&server.client()).await;

    // The ledger's files are read under the prefix too.
    let entries = server.client().number("SELECT count(actor) FROM audit_log").await;
    assert!(entries > 0, "the ledger has entries");
    assert!(server.client().get("audit?limit=1").await.ok().json()["entries"][0]["seq"].is_number());
    let vkey = server.client().get("/v1/orgs/default/audit/vkey").await.text();
    let store = bucket.url("prod");
    eventually("a checkpoint in the bucket", Duration::from_secs(120), async || {
        let mut verify = mcpg();
        verify.args(["audit", "verify", "--store", &store, "--org", "default", "--vkey", vkey.trim()]);
        verify.envs(bucket.environment());
        let output = tokio::task::spawn_blocking(move || run(&mut verify)).await.unwrap();
        output.status.success().then_some(())
    })
    .await;
}
