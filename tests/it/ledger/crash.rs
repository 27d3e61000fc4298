//! `kill -9` under audit load: no gap, no fork, no acknowledged event lost or there twice, and old heads stay true.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use reqwest::Method;
use reqwest::header::{CONTENT_TYPE, HeaderName};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::given::{ORG, events, names, verify};
use crate::harness::{Client, Config, Server, alone, eventually, python};

const KILLS: usize = 20;
const ROWS: u64 = 20;

/// What an emitter sent: batches by key, each with whether it was acknowledged. Each event of it has the key for its
/// `request_id`.
#[derive(Debug, Default)]
struct Sent(BTreeMap<String, bool>);

/// Sends batches until asked to stop, each again under its key until it is acknowledged or, now and then, given up.
async fn emit(targets: Vec<Client>, number: u64, stop: CancellationToken, acknowledged: Arc<AtomicU64>) -> Sent {
    let mut rng = StdRng::seed_from_u64(number);
    let mut sent = Sent::default();
    let mut next = number << 32;
    while !stop.is_cancelled() {
        let key = Uuid::new_v4().to_string();
        let body = String::from_utf8(events(next, next + ROWS)).unwrap();
        let body = keyed(&body, &key);
        next += ROWS;
        let mut tries = 0;
        let is_acknowledged = loop {
            let headers = [(CONTENT_TYPE, "application/x-ndjson"), (HeaderName::from_static("idempotency-key"), &*key)];
            let target = &targets[rng.random_range(0..targets.len())];
            match target.send(Method::POST, "audit", &headers, body.clone()).await {
                Ok(answer) if answer.status.is_success() => break true,
                Ok(answer) => assert!(matches!(answer.status.as_u16(), 429 | 503), "{}", answer.text()),
                Err(_) if rng.random_bool(0.2) => break false,
                Err(_) => {}
            }
            tries += 1;
            assert!(tries < 2_000, "batch {key} could not be delivered");
            tokio::time::sleep(Duration::from_millis(25)).await;
        };
        if is_acknowledged {
            acknowledged.fetch_add(ROWS, Ordering::SeqCst);
        }
        sent.0.insert(key, is_acknowledged);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    sent
}

/// The events with the batch's key for their `request_id`.
fn keyed(body: &str, key: &str) -> Vec<u8> {
    let line = |line: &str| {
        let mut event: serde_json::Value = serde_json::from_str(line).unwrap();
        let event = event.as_object_mut().unwrap();
        event.insert("request_id".to_owned(), key.into());
        serde_json::to_string(event).unwrap()
    };
    body.lines().map(line).collect::<Vec<_>>().join("\n").into_bytes()
}

/// Emitters at work.
struct Load {
    stop: CancellationToken,
    acknowledged: Arc<AtomicU64>,
    emitters: JoinSet<Sent>,
}

impl Load {
    fn on(targets: &[Client]) -> Self {
        let (stop, acknowledged, mut emitters) = (CancellationToken::new(), Arc::default(), JoinSet::new());
        for number in 1..=4 {
            emitters.spawn(emit(targets.to_vec(), number, stop.clone(), Arc::clone(&acknowledged)));
        }
        Self { stop, acknowledged, emitters }
    }

    async fn finish(mut self) -> Sent {
        self.stop.cancel();
        let mut all = Sent::default();
        while let Some(sent) = self.emitters.join_next().await {
            all.0.extend(sent.unwrap().0);
        }
        all
    }
}

/// Asserts that each acknowledged event is there exactly once, and each given-up batch wholly or not at all.
async fn assert_kept(client: &Client, sent: &Sent) {
    let query = "SELECT request_id, count(*), count(DISTINCT event_id) FROM audit_log WHERE request_id IS NOT NULL GROUP BY request_id";
    let mut stored = BTreeMap::new();
    for row in client.sql_once_loaded(query).await {
        assert_eq!(row[1], row[2], "an event is there twice in batch {}", row[0]);
        stored.insert(row[0].as_str().unwrap().to_owned(), row[1].as_u64().unwrap());
    }
    for (key, acknowledged) in &sent.0 {
        let found = stored.remove(key).unwrap_or(0);
        let fits = found == ROWS || (found == 0 && !acknowledged);
        assert!(fits, "{found} entries of batch {key}, acknowledged: {acknowledged}");
    }
    assert!(stored.is_empty(), "entries that nobody sent: {stored:?}");
    let gaps = "SELECT count(*), min(seq), max(seq), count(DISTINCT seq) FROM audit_log";
    let gaps = client.sql_once_loaded(gaps).await;
    let number = |at: usize| gaps[0][at].as_i64().unwrap();
    assert_eq!((number(1), number(2) + 1, number(3)), (0, number(0), number(0)), "numbers without a gap");
}

async fn assert_sound(server: &Server, vkey: &str) -> u64 {
    let store = server.storage().to_str().unwrap();
    verify(&["--store", store, "--vkey", vkey]).await.sound()["size"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_kills_under_load_leave_one_chain_with_all_that_was_acknowledged() {
    let _alone = alone().await;
    let mut rng = StdRng::seed_from_u64(20_261_125);
    let mut server = Config::new().start().await;
    let vkey = server.client().get("audit/vkey").await.ok().text().trim().to_owned();
    let load = Load::on(&[server.client()]);
    let mut heads: Vec<String> = Vec::new();
    for round in 0..KILLS {
        tokio::time::sleep(Duration::from_millis(rng.random_range(200..2_200))).await;
        let before = load.acknowledged.load(Ordering::SeqCst);
        server.kill();
        if server.storage().join(format!("orgs/{ORG}/audit/checkpoint")).exists() {
            // As a thief finds it after a crash: sound at any moment, and no head is ever taken back.
            assert_sound(&server, &vkey).await;
            let kept = names(&server.storage().join(format!("orgs/{ORG}/audit/checkpoints")));
            assert!(heads.iter().all(|head| kept.contains(head)), "a head went away in round {round}");
            heads = kept;
        }
        server.start().await;
        let found = server.client().number("SELECT count(*) FROM audit_log").await;
        assert!(found as u64 >= before, "round {round}: {before} acknowledged, {found} there");
    }
    let sent = load.finish().await;
    assert_kept(&server.client(), &sent).await;
    // What the killed process left to do is taken over after a while.
    let written = server.client().number("SELECT count(*) FROM audit_log").await as u64;
    eventually("a head over all entries", Duration::from_secs(120), async || {
        let head = server.client().get("audit/checkpoint").await.text();
        let size: u64 = head.lines().nth(1)?.parse().ok()?;
        (size >= written).then_some(())
    })
    .await;
    assert!(server.stop().await.success());
    let size = assert_sound(&server, &vkey).await;
    assert!(size >= sent.0.values().filter(|acknowledged| **acknowledged).count() as u64 * ROWS);

    // Another program's word for it, and that of other implementations.
    let folder = server.storage().join(format!("orgs/{ORG}/audit"));
    let folder = folder.to_str().unwrap();
    assert_eq!(python("ledger_verify.py", &[folder, ORG, &vkey]).await["size"], size);
    assert_eq!(python("ledger_thirdparty.py", &[folder, &vkey]).await["size"], size);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_that_write_one_orgs_ledger_give_one_chain_even_when_one_dies() {
    let _alone = alone().await;
    let keys = tempfile::TempDir::new().unwrap();
    let audit = format!("audit: {{ key_file: {}/ledger.key }}", keys.path().display());
    let mut first = Config::new().with(&audit).start().await;
    let mut second = Config::on(first.storage()).with(&audit).start().await;
    let vkey = first.client().get("audit/vkey").await.ok().text().trim().to_owned();
    let load = Load::on(&[first.client(), second.client()]);
    tokio::time::sleep(Duration::from_secs(4)).await;
    first.kill();
    tokio::time::sleep(Duration::from_secs(2)).await;
    first.start().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let sent = load.finish().await;
    for node in [&first, &second] {
        assert_kept(&node.client(), &sent).await;
    }
    assert!(first.stop().await.success() && second.stop().await.success());
    assert_sound(&second, &vkey).await;
}
