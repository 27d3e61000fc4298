//! Emitters that send until asked to stop, through every fault, and record what was acknowledged to them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use chrono::TimeDelta;
use mcpg::model::Outcome;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use reqwest::StatusCode;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Client, Ledger, Sample, ndjson, now};

/// How long a batch is tried before the test fails: longer than any restart.
const PATIENCE: Duration = Duration::from_secs(180);

/// A load to put on one or more control planes.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    /// Where to send, in turn.
    pub(crate) targets: Vec<Client>,
    /// Emitters at work at the same time.
    pub(crate) emitters: usize,
    /// Samples a batch.
    pub(crate) rows: usize,
    /// How long an emitter rests between two batches.
    pub(crate) pause: Duration,
    /// How likely a batch that got no answer is given up, where the rest is sent again under its key.
    pub(crate) gives_up: f64,
    pub(crate) seed: u64,
}

impl Load {
    /// Four emitters of small batches that always retry.
    pub(crate) fn on(targets: &[Client]) -> Self {
        let pause = Duration::from_millis(20);
        Self { targets: targets.to_vec(), emitters: 4, rows: 100, pause, gives_up: 0.0, seed: 1 }
    }

    pub(crate) fn start(self) -> Loader {
        let stop = CancellationToken::new();
        let (acknowledged, in_doubt) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let mut emitters = JoinSet::new();
        for number in 0..self.emitters {
            let rng = StdRng::seed_from_u64(self.seed * 1_000 + number as u64);
            let emitter = Emitter {
                load: self.clone(),
                next: number,
                rng,
                ledger: Ledger::default(),
                acknowledged: Arc::clone(&acknowledged),
                in_doubt: Arc::clone(&in_doubt),
            };
            emitters.spawn(emitter.run(stop.clone()));
        }
        Loader { stop, acknowledged, in_doubt, emitters }
    }
}

/// A load at work.
#[derive(Debug)]
pub(crate) struct Loader {
    stop: CancellationToken,
    acknowledged: Arc<AtomicU64>,
    in_doubt: Arc<AtomicBool>,
    emitters: JoinSet<Ledger>,
}

impl Loader {
    /// Samples acknowledged so far.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::SeqCst)
    }

    /// Whether an acknowledgement from now on promises nothing: such a batch is stored wholly or not at all.
    pub(crate) fn doubt(&self, doubtful: bool) {
        self.in_doubt.store(doubtful, Ordering::SeqCst);
    }

    /// Waits until `more` further samples have been acknowledged.
    pub(crate) async fn further(&self, more: u64) {
        let goal = self.acknowledged() + more;
        let began = Instant::now();
        while self.acknowledged() < goal {
            assert!(began.elapsed() < PATIENCE, "{} of {goal} samples acknowledged", self.acknowledged());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Lets each emitter bring its last batch home, and gives back the account of them all.
    pub(crate) async fn finish(mut self) -> Ledger {
        self.stop.cancel();
        let mut ledger = Ledger::default();
        while let Some(emitter) = self.emitters.join_next().await {
            ledger.merge(emitter.unwrap());
        }
        ledger
    }
}

struct Emitter {
    load: Load,
    next: usize,
    rng: StdRng,
    ledger: Ledger,
    acknowledged: Arc<AtomicU64>,
    in_doubt: Arc<AtomicBool>,
}

impl Emitter {
    async fn run(mut self, stop: CancellationToken) -> Ledger {
        while !stop.is_cancelled() {
            let key = Uuid::new_v4().to_string();
            let samples: Vec<_> = (0..self.load.rows).map(|_| self.sample(&key)).collect();
            self.deliver(&key, ndjson(&samples)).await;
            tokio::time::sleep(self.load.pause).await;
        }
        self.ledger
    }

    async fn deliver(&mut self, key: &str, body: Vec<u8>) {
        let rows = self.load.rows as u64;
        let began = Instant::now();
        loop {
            assert!(began.elapsed() < PATIENCE, "batch {key} could not be delivered");
            let target = &self.load.targets[self.next % self.load.targets.len()];
            self.next += 1;
            let Ok(answer) = target.try_post("application/x-ndjson", None, Some(key), body.clone()).await else {
                if self.rng.random_bool(self.load.gives_up) {
                    self.ledger.unknown.insert(key.to_owned(), rows);
                    return;
                }
                tokio::time::sleep(Duration::from_millis(25)).await;
                continue;
            };
            match answer.status {
                StatusCode::OK => {
                    assert_eq!(answer.json()["accepted"], rows, "a batch is taken whole");
                    if self.in_doubt.load(Ordering::SeqCst) {
                        self.ledger.unknown.insert(key.to_owned(), rows);
                        return;
                    }
                    self.ledger.acknowledged.insert(key.to_owned(), rows);
                    self.acknowledged.fetch_add(rows, Ordering::SeqCst);
                    return;
                }
                StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                    let wait: u64 = answer.header("retry-after").parse().expect("a Retry-After in whole seconds");
                    assert!(!answer.problem().is_empty());
                    self.ledger.refused += 1;
                    tokio::time::sleep(Duration::from_millis(200).min(Duration::from_secs(wait))).await;
                }
                other => panic!("{other}: {}", answer.text()),
            }
        }
    }

    /// A call out of a small fleet's life: heavy-tailed, some of them failed or denied, one in ten reported hours late.
    fn sample(&mut self, key: &str) -> Sample {
        let rng = &mut self.rng;
        let plugin = ["github", "jira", "files"][rng.random_range(0..3)];
        let tool = ["list", "read", "write"][rng.random_range(0..3)];
        let (u, v): (f64, f64) = (1.0 - rng.random::<f64>(), rng.random());
        let normal = (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos();
        let outcome = match rng.random_range(0..100) {
            0..5 => Outcome::ServerError,
            5..8 => Outcome::Timeout,
            8..10 => Outcome::ClientError,
            10..13 => Outcome::PolicyDenied,
            13..15 => Outcome::QuotaExceeded,
            _ => Outcome::Ok,
        };
        let late = if rng.random_bool(0.1) { rng.random_range(1..50 * 60) } else { 0 };
        Sample::new(plugin, tool, (4.0 + 1.2 * normal).exp())
            .workspace(["prod", "staging"][rng.random_range(0..2)])
            .outcome(outcome)
            .started_at(now() - TimeDelta::minutes(late))
            .with("request_id", key)
    }
}
