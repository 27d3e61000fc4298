//! Emitters of many orgs: small batches of samples and of audit events, as NDJSON, some under idempotency keys and some
//! without, through every fault, with an account of what became of each. [`super::Load`] is for much of one org.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{StreamExt, stream};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use reqwest::header::{CONTENT_TYPE, HeaderName};
use reqwest::{Method, StatusCode};
use serde_json::json;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Client, Sample, assert_sound, eventually, ndjson};

/// How long a batch under a key is tried before the test fails: longer than any restart.
const PATIENCE: Duration = Duration::from_secs(180);

/// How many orgs are looked at at once.
const AT_ONCE: usize = 4;

/// Who the events of a fleet are by: the control plane's own are not counted.
const ACTOR: &str = "service:fleet";

/// A load to put on control planes.
#[derive(Debug, Clone)]
pub(crate) struct Fleet {
    /// Where to send: at random.
    pub(crate) targets: Vec<Client>,
    pub(crate) orgs: Vec<String>,
    /// Batches under way at a time.
    pub(crate) emitters: usize,
    /// How long an emitter rests between two batches.
    pub(crate) pause: Duration,
    /// How many batches of ten are audit events.
    pub(crate) events: u32,
    pub(crate) seed: u64,
}

impl Fleet {
    /// Eight emitters, each of its own share of the orgs.
    pub(crate) fn on(targets: &[Client], orgs: &[String]) -> Self {
        let (targets, orgs) = (targets.to_vec(), orgs.to_vec());
        Self { targets, orgs, emitters: 8, pause: Duration::from_millis(30), events: 4, seed: 20_261_126 }
    }

    pub(crate) fn start(self) -> Running {
        let (stop, account, mut emitters) = (CancellationToken::new(), Arc::default(), JoinSet::new());
        for number in 0..self.emitters.min(self.orgs.len()) {
            let rng = StdRng::seed_from_u64(self.seed + number as u64);
            let orgs = self.orgs.iter().skip(number).step_by(self.emitters).cloned().collect();
            let emitter = Emitter { fleet: self.clone(), orgs, rng, account: Arc::clone(&account) };
            emitters.spawn(emitter.run(stop.clone()));
        }
        Running { stop, account, emitters }
    }
}

/// A fleet at work.
#[derive(Debug)]
pub(crate) struct Running {
    stop: CancellationToken,
    account: Arc<Mutex<Account>>,
    emitters: JoinSet<()>,
}

impl Running {
    /// What became of the batches so far.
    pub(crate) fn account(&self) -> Account {
        self.account.lock().clone()
    }

    /// Whether an acknowledgement from now on promises nothing, since the power is being cut.
    pub(crate) fn doubt(&self, doubtful: bool) {
        self.account.lock().in_doubt = doubtful;
    }

    /// Waits until `more` further batches have been acknowledged.
    pub(crate) async fn further(&self, more: u64) {
        let goal = self.account.lock().acknowledged + more;
        let began = Instant::now();
        loop {
            let (acknowledged, complaint) = {
                let account = self.account.lock();
                (account.acknowledged, account.complaints.first().cloned())
            };
            assert_eq!(complaint, None, "an answer that no emitter should get");
            if acknowledged >= goal {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "{acknowledged} of {goal} batches acknowledged");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Lets each emitter bring its last batch home, and gives back the account.
    pub(crate) async fn finish(mut self) -> Account {
        self.stop.cancel();
        while let Some(emitter) = self.emitters.join_next().await {
            emitter.unwrap();
        }
        let account = self.account.lock().clone();
        assert!(account.complaints.is_empty(), "answers that no emitter should get: {:?}", account.complaints);
        account
    }
}

/// Batches by their request id: how many rows each has, and whether it was acknowledged. One that was not is stored
/// wholly or not at all.
type Batches = BTreeMap<String, (u64, bool)>;

/// What was sent of an org.
#[derive(Debug, Clone, Default)]
struct Sent {
    samples: Batches,
    events: Batches,
}

/// What became of all batches.
#[derive(Debug, Clone, Default)]
pub(crate) struct Account {
    orgs: BTreeMap<String, Sent>,
    acknowledged: u64,
    in_doubt: bool,
    /// Answers that are against the contract, and batches that could not be delivered.
    complaints: Vec<String>,
}

impl Account {
    /// Takes down a batch of samples, or of events, that was not sent by a fleet.
    pub(crate) fn note(&mut self, org: &str, is_events: bool, request: &str, rows: u64, acknowledged: bool) {
        let sent = self.orgs.entry(org.to_owned()).or_default();
        let batches = if is_events { &mut sent.events } else { &mut sent.samples };
        batches.insert(request.to_owned(), (rows, acknowledged));
        self.acknowledged += u64::from(acknowledged);
    }

    /// The same batches, of which only those count as acknowledged that an earlier account has as such.
    pub(crate) fn as_known_by(&self, earlier: &Self) -> Self {
        let mut known = self.clone();
        for (org, sent) in &mut known.orgs {
            let before = earlier.orgs.get(org).cloned().unwrap_or_default();
            for (all, before) in [(&mut sent.samples, before.samples), (&mut sent.events, before.events)] {
                for (request, (_, acknowledged)) in all {
                    *acknowledged = before.get(request).is_some_and(|(_, acknowledged)| *acknowledged);
                }
            }
        }
        known
    }

    /// Acknowledged samples of an org.
    pub(crate) fn sent_samples(&self, org: &str) -> i64 {
        let sent = self.orgs.get(org).map_or(0, |sent| sum(&sent.samples, |acknowledged| acknowledged));
        i64::try_from(sent).unwrap()
    }

    /// Takes in what else was sent.
    pub(crate) fn merge(&mut self, other: Self) {
        for (org, sent) in other.orgs {
            let own = self.orgs.entry(org).or_default();
            own.samples.extend(sent.samples);
            own.events.extend(sent.events);
        }
        self.acknowledged += other.acknowledged;
    }

    /// Asserts that the counters of each org are at least what was acknowledged of it; for a node under load, and
    /// cheap.
    pub(crate) async fn assert_counters(&self, client: &Client) {
        let each = async |(org, sent): (&String, &Sent)| {
            let calls = client.with_org(org).metrics_once_loaded().await.total("mcpg_tool_calls_total");
            let least = sum(&sent.samples, |acknowledged| acknowledged);
            let most = sum(&sent.samples, |_| true);
            assert!(calls as u64 >= least, "org {org}: the counters say {calls}, acknowledged were {least} of {most}");
        };
        stream::iter(&self.orgs).for_each_concurrent(AT_ONCE, each).await;
    }

    /// Asserts that a quiet node has each acknowledged batch of each org exactly once, each other one wholly or not at
    /// all and once, and nothing else, and that its counters say what its samples say. An org that is being loaded is
    /// waited for.
    pub(crate) async fn assert_kept(&self, client: &Client) {
        self.assert_kept_of(client, |_| true).await;
    }

    /// The same, of the orgs that are chosen by their place.
    pub(crate) async fn assert_kept_of(&self, client: &Client, chosen: impl Fn(usize) -> bool) {
        let each = async |(org, sent): (&String, &Sent)| {
            let client = client.with_org(org);
            // A node of several may be loading the org.
            client.metrics_once_loaded().await;
            let samples = "SELECT request_id, count(*), count(DISTINCT invocation_id) FROM tool_invocations GROUP BY 1";
            let stored = assert_stored(&client, samples, &sent.samples, &format!("samples of org {org}")).await;
            let calls = client.metrics_once_loaded().await.total("mcpg_tool_calls_total");
            assert_eq!(calls as u64, stored, "org {org}: the counters and the samples");
            let events = format!(
                "SELECT request_id, count(*), count(DISTINCT event_id) FROM audit_log WHERE actor = '{ACTOR}' GROUP BY 1"
            );
            assert_stored(&client, &events, &sent.events, &format!("ledger entries of org {org}")).await;
            let gaps = "SELECT count(*), min(seq), max(seq), count(DISTINCT seq) FROM audit_log";
            let gaps = client.sql_once_loaded(gaps).await;
            let number = |at: usize| gaps[0][at].as_i64().unwrap_or(-1);
            let whole = number(0) == 0 || (number(1), number(2) + 1, number(3)) == (0, number(0), number(0));
            assert!(whole, "org {org}: the ledger's numbers have gaps or come twice: {gaps:?}");
        };
        let chosen = self.orgs.iter().enumerate().filter(|(at, _)| chosen(*at)).map(|(_, of)| of);
        stream::iter(chosen).for_each_concurrent(AT_ONCE, each).await;
    }

    /// Asserts that the ledgers of all orgs in a store are sound; `vkeys` are of [`vkeys`].
    pub(crate) async fn assert_ledgers(&self, store: &std::path::Path, vkeys: &BTreeMap<String, String>) {
        let each = async |org: &String| assert_sound(store, org, &vkeys[org]).await;
        stream::iter(self.orgs.keys()).for_each_concurrent(AT_ONCE, each).await;
    }
}

/// The verifier keys of orgs.
pub(crate) async fn vkeys(client: &Client, orgs: &[String]) -> BTreeMap<String, String> {
    let mut keys = BTreeMap::new();
    for org in orgs {
        let key = client.with_org(org).get_once_loaded("audit/vkey").await.ok().text();
        keys.insert(org.clone(), key.trim().to_owned());
    }
    keys
}

fn sum(batches: &Batches, counts: impl Fn(bool) -> bool) -> u64 {
    batches.values().filter(|(_, acknowledged)| counts(*acknowledged)).map(|(rows, _)| rows).sum()
}

/// Asserts what a query finds of batches, and gives back how many rows there are.
async fn assert_stored(client: &Client, query: &str, sent: &Batches, what: &str) -> u64 {
    let mut stored = BTreeMap::new();
    for row in client.sql_once_loaded(query).await {
        assert_eq!(row[1], row[2], "{what}: twice within batch {}", row[0]);
        stored.insert(row[0].as_str().unwrap_or_default().to_owned(), row[1].as_u64().unwrap());
    }
    let rows = stored.values().sum();
    for (request, (rows, acknowledged)) in sent {
        let found = stored.remove(request).unwrap_or(0);
        let fits = found == *rows || (found == 0 && !acknowledged);
        assert!(fits, "{what}: {found} of {rows} rows of batch {request}, acknowledged: {acknowledged}");
    }
    assert!(stored.is_empty(), "{what} that nobody sent: {stored:?}");
    rows
}

struct Emitter {
    fleet: Fleet,
    orgs: Vec<String>,
    rng: StdRng,
    account: Arc<Mutex<Account>>,
}

impl Emitter {
    async fn run(mut self, stop: CancellationToken) {
        let orgs = std::mem::take(&mut self.orgs);
        for org in orgs.iter().cycle() {
            if stop.is_cancelled() {
                return;
            }
            let batch = Batch::random(&mut self.rng, self.fleet.events);
            // Taken down first: whatever happens to it now, it may be stored.
            self.account.lock().note(org, batch.is_events, &batch.request, batch.rows, false);
            if self.deliver(org, &batch).await {
                let mut account = self.account.lock();
                let promised = !account.in_doubt;
                account.note(org, batch.is_events, &batch.request, batch.rows, promised);
            }
            tokio::time::sleep(self.fleet.pause).await;
        }
    }

    /// Whether the batch was acknowledged. Without a key it is sent once, whatever the answer.
    async fn deliver(&mut self, org: &str, batch: &Batch) -> bool {
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            let target = &self.fleet.targets[self.rng.random_range(0..self.fleet.targets.len())];
            if let Ok(answer) = batch.send(&target.with_org(org)).await {
                let refused = [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE].contains(&answer.status);
                let code = if refused { answer.problem() } else { String::new() };
                if answer.status == StatusCode::OK && answer.json()["accepted"] == batch.rows {
                    return true;
                } else if !refused || code == "org_stopped" {
                    let complaint = format!("org {org}, {}: {}: {}", target.base(), answer.status, answer.text());
                    self.account.lock().complaints.push(complaint);
                    return false;
                }
            }
            if batch.key.is_none() {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.account.lock().complaints.push(format!("org {org}: batch {} could not be delivered", batch.request));
        false
    }
}

/// A batch to send.
#[derive(Debug, Clone)]
pub(crate) struct Batch {
    pub(crate) request: String,
    pub(crate) rows: u64,
    pub(crate) is_events: bool,
    pub(crate) key: Option<String>,
    body: Vec<u8>,
}

impl Batch {
    fn random(rng: &mut StdRng, events: u32) -> Self {
        let rows = rng.random_range(1..4);
        let is_events = rng.random_range(0..10) < events;
        let batch = if is_events { Self::events(rows) } else { Self::samples(rows) };
        if rng.random_bool(0.6) { batch.with_key() } else { batch }
    }

    /// A batch of samples that carry its request id.
    pub(crate) fn samples(rows: u64) -> Self {
        let request = Uuid::new_v4().to_string();
        let sample = Sample::new("github", "list_repos", 5.0).with("request_id", request.as_str());
        let body = ndjson(&vec![sample; rows as usize]);
        Self { request, rows, is_events: false, key: None, body }
    }

    /// A batch of audit events that carry its request id.
    pub(crate) fn events(rows: u64) -> Self {
        let request = Uuid::new_v4().to_string();
        let event =
            json!({ "actor": ACTOR, "action": "tool.permit", "target": "github/list_repos", "request_id": request });
        let body = vec![event.to_string(); rows as usize].join("\n").into_bytes();
        Self { request, rows, is_events: true, key: None, body }
    }

    /// The same under an idempotency key.
    pub(crate) fn with_key(mut self) -> Self {
        self.key = Some(self.request.clone());
        self
    }

    /// Sends it once.
    pub(crate) async fn send(&self, client: &Client) -> reqwest::Result<super::Answer> {
        let mut headers = vec![(CONTENT_TYPE, "application/x-ndjson")];
        headers.extend(self.key.as_deref().map(|key| (HeaderName::from_static("idempotency-key"), key)));
        let path = if self.is_events { "audit" } else { "invocations" };
        client.send(Method::POST, path, &headers, self.body.clone()).await
    }

    /// Sends it once and takes down in `account` what became of it; whether it was acknowledged.
    pub(crate) async fn send_noted(&self, client: &Client, org: &str, account: &mut Account) -> bool {
        let answer = self.send(&client.with_org(org)).await;
        let acknowledged = answer.is_ok_and(|answer| answer.status == StatusCode::OK);
        account.note(org, self.is_events, &self.request, self.rows, acknowledged);
        acknowledged
    }
}

/// Waits until every org takes a batch of samples and one of events again, and answers a query; takes the batches down.
pub(crate) async fn assert_recovers(client: &Client, orgs: &[String], account: &mut Account) {
    for org in orgs {
        for is_events in [false, true] {
            let what = format!("org {org} to take a batch again");
            eventually(&what, Duration::from_secs(60), async || {
                let batch = if is_events { Batch::events(1) } else { Batch::samples(1) };
                let answer = batch.send(&client.with_org(org)).await.ok()?;
                account.note(org, is_events, &batch.request, 1, answer.status == StatusCode::OK);
                assert!(!answer.text().contains("org_stopped"), "org {org}: {}", answer.text());
                (answer.status == StatusCode::OK).then_some(())
            })
            .await;
        }
        let query = "SELECT count(*) FROM tool_invocations";
        eventually(&format!("org {org} to answer a query"), Duration::from_secs(60), async || {
            let answer = client.with_org(org).sql_as(query, json!([]), "application/json").await;
            assert!(!answer.text().contains("org_stopped"), "org {org}: {}", answer.text());
            (answer.status == StatusCode::OK).then_some(())
        })
        .await;
    }
}

/// The names `org-000`, `org-001`, …
pub(crate) fn org_names(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("org-{number:03}")).collect()
}
