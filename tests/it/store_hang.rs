//! Invariant I7: a store that hangs under load costs refusals, not memory, and all is well when it answers again.

use std::time::{Duration, Instant};

use crate::harness::{Client, Config, Disk, Load, alone, eventually};

/// What the process may hold in memory while nothing can be written: its buffers' bound, and the program around them.
const RESIDENT: u64 = 512 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_hangs_for_a_minute_costs_refusals_and_no_memory() {
    let _alone = alone().await;
    let Some(disk) = Disk::new() else { return };
    let limits = "limits: { buffer_bytes: 64MiB, request_timeout: 5s, sql: { timeout: 2m } }\nflush: { interval: 1s }";
    let mut server = Config::on(&disk.path().join("store")).with(limits).start().await;
    // Heavy: without a bound, a minute of it would be gigabytes.
    let target = server.client().with_timeout(Duration::from_secs(30));
    let load = Load { emitters: 24, rows: 2_000, pause: Duration::ZERO, ..Load::on(&[target]) };
    let loader = load.start();
    loader.further(20_000).await;

    let frozen = disk.freeze();
    let began = Instant::now();
    let before = loader.acknowledged();
    let mut highest = 0;
    while began.elapsed() < Duration::from_secs(60) {
        tokio::time::sleep(Duration::from_millis(250)).await;
        highest = highest.max(server.resident_bytes());
        assert!(highest < RESIDENT, "{} MiB resident after {:?} of hanging", highest >> 20, began.elapsed());
        assert!(server.alive());
    }
    // What was under way when the store stopped may still have been acknowledged; then nothing more can be.
    assert!(loader.acknowledged() - before <= 24 * 2_000, "acknowledged while nothing could be made durable");
    let alive = Client::new(&server.url()).with_timeout(Duration::from_secs(30)).get("/healthz").await;
    assert!(alive.status.is_success(), "a hanging store does not hang the server: {}", alive.status);
    drop(frozen);

    loader.further(20_000).await;
    let ledger = loader.finish().await;
    assert!(ledger.refused > 0, "429 or 503 while the store hung");
    eprintln!("store hang: {} refusals, at most {} MiB resident", ledger.refused, highest >> 20);
    ledger.assert_kept(&server.client()).await;
    eventually("the control plane to be ready again", Duration::from_secs(60), async || server.client().ready().await)
        .await;
    server.kill();
    server.start().await;
    ledger.assert_kept(&server.client()).await;
}
