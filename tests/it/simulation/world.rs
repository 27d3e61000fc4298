//! Nodes that come and go over one store, the batches that they are sent, and the checks of what they answer.

use std::sync::Arc;
use std::time::Duration;

use mcpg::ingest::RowKind;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::batches::{Batch, Batches, Naming};
use super::checker::Checker;
use super::determinism::mix;
use super::disk::Disk;
use super::faults::Weather;
use super::node::{NoAnswer, Node, Recipe};
use super::rows;
use super::sea::Sea;
use super::store::Process;
use super::trace::Trace;

/// The longest that a client waits for its answer, and a start or a drain for its end, once the weather is fair.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(7_200);
/// How often an operation that a sound store takes is tried.
const TRIES: usize = 40;
/// The node whose process is the last one, started when all is over.
pub(super) const LAST: usize = 9;
/// Where a node runs.
#[derive(Debug, Default)]
struct Slot {
    process: Option<Process>,
    node: Option<Arc<Node>>,
    processes: u64,
}

/// The nodes, the store and the checks of one life; clones are the same world.
#[derive(Debug, Clone)]
pub(super) struct World(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    sea: Arc<Sea>,
    orgs: Vec<String>,
    recipe: Recipe,
    /// How far each node's clock is off.
    clocks: Vec<chrono::TimeDelta>,
    slots: Mutex<Vec<Slot>>,
    checker: Mutex<Checker>,
    batches: Mutex<Batches>,
}

impl World {
    /// A world in which no node runs yet, over a disk. To be called in the life that it is for.
    pub(super) fn new(seed: u64, trace: Trace, disk: Disk, orgs: usize, recipe: Recipe) -> Self {
        let sea = Sea::new(seed, disk, trace);
        let orgs: Vec<_> = (0..orgs).map(|number| format!("org-{number}")).collect();
        let mut random = StdRng::seed_from_u64(mix(seed ^ 0xc10c));
        let clocks = (0..=LAST).map(|_| chrono::TimeDelta::seconds(random.random_range(-240..240))).collect();
        let mut slots = Vec::new();
        slots.resize_with(LAST + 1, Slot::default);
        Self(Arc::new(Inner {
            sea,
            orgs,
            recipe,
            clocks,
            slots: Mutex::new(slots),
            checker: Mutex::default(),
            batches: Mutex::default(),
        }))
    }

    /// A configuration of `count` orgs, each of which says `also`.
    pub(super) fn config(count: usize, flush: Duration, also: &str) -> String {
        let orgs: Vec<_> = (0..count).map(|number| format!("{{ name: org-{number}, {also} }}")).collect();
        let flush = flush.as_millis();
        // The longest query bounds how long what was pruned is kept.
        let rest = "audit: { prune_interval: 3s }\nlimits: { sql: { timeout: 500ms } }\nmaintenance: { interval: 2s, small_files: 2 }";
        format!("orgs: [{}]\nflush: {{ interval: {flush}ms }}\n{rest}\n", orgs.join(", "))
    }

    pub(super) fn sea(&self) -> &Arc<Sea> {
        &self.0.sea
    }

    pub(super) fn orgs(&self) -> &[String] {
        &self.0.orgs
    }

    pub(super) fn checker(&self) -> parking_lot::MutexGuard<'_, Checker> {
        self.0.checker.lock()
    }

    /// A node's process that serves, or did when it was last looked at.
    pub(super) fn node(&self, number: usize) -> Option<Arc<Node>> {
        let slots = self.0.slots.lock();
        slots[number].node.clone().filter(|node| !node.process.is_dead())
    }

    /// The nodes that serve.
    pub(super) fn up(&self) -> Vec<usize> {
        (0..=LAST).filter(|number| self.node(*number).is_some()).collect()
    }

    /// The process of a node, also one that is starting.
    pub(super) fn process(&self, number: usize) -> Option<Process> {
        self.0.slots.lock()[number].process.clone().filter(|process| !process.is_dead())
    }

    /// Starts a process of a node once, in place of the one before, which is killed.
    pub(super) async fn try_start(&self, number: usize) -> Result<Arc<Node>, NoAnswer> {
        self.kill(number);
        let process = {
            let mut slots = self.0.slots.lock();
            let slot = &mut slots[number];
            let process = Process::new(&self.0.sea, number, slot.processes);
            slot.processes += 1;
            slot.process = Some(process.clone());
            process
        };
        let recipe = Recipe { clock: self.0.clocks[number], ..self.0.recipe.clone() };
        let started = Node::start(process.clone(), &recipe).await;
        if started.is_err() {
            process.die();
        }
        let node = Arc::new(started?);
        self.0.slots.lock()[number].node = Some(Arc::clone(&node));
        Ok(node)
    }

    /// Starts a node once; whether that succeeds is a matter of the weather.
    pub(super) async fn try_start_once(&self, number: usize) {
        if let Err(e) = self.try_start(number).await {
            self.sea().tell(format!("node {number} has not started: {e:?}"));
            self.checker().excuse(&format!("node {number} starts"), &e);
        }
    }

    /// Starts a node, again and again as a supervisor does.
    pub(super) async fn start(&self, number: usize) -> Arc<Node> {
        for _ in 0..TRIES {
            match self.try_start(number).await {
                Ok(node) => return node,
                Err(e) => {
                    self.sea().tell(format!("node {number} has not started: {e:?}"));
                    self.checker().excuse(&format!("node {number} starts"), &e);
                }
            }
            sleep(Duration::from_millis(500)).await;
        }
        panic!("node {number} does not start in {TRIES} tries");
    }

    pub(super) fn kill(&self, number: usize) {
        let mut slots = self.0.slots.lock();
        slots[number].node = None;
        if let Some(process) = slots[number].process.take() {
            process.die();
        }
    }

    /// Drains a node and ends it.
    pub(super) async fn stop(&self, number: usize) {
        let node = self.0.slots.lock()[number].node.take();
        if let Some(node) = node {
            match timeout(ANSWER_TIMEOUT, node.stop()).await {
                Ok(Ok(())) => {}
                Ok(Err(e)) => self.checker().excuse(&format!("node {number} drains"), &e),
                Err(_) => node.process.die(),
            }
        }
    }

    /// Takes over the batches of a world before this one that were acknowledged, whose store may have been changed.
    pub(super) fn adopt(&self, batches: &[Batch]) {
        self.batches().skip(10_000);
        self.checker().adopt(batches);
    }

    pub(super) fn batches(&self) -> parking_lot::MutexGuard<'_, Batches> {
        self.0.batches.lock()
    }

    /// Makes a batch that has never been sent.
    pub(super) fn make(&self, org: &str, kind: RowKind, rows: usize, naming: Naming) -> Batch {
        self.batches().make(org, kind, rows, naming)
    }

    /// Opens lanes, each for one org and one kind of rows.
    pub(super) fn open_lanes(&self, count: usize, random: &mut StdRng) {
        self.batches().open_lanes(count, self.orgs(), random);
    }

    /// Sends a batch to a node, and checks the answer. Returns whether it was acknowledged.
    pub(super) async fn send(&self, node: &Node, batch: &Batch) -> bool {
        let before = self.checker().send(batch.number, &batch.org, batch.kind, batch.rows);
        let made = rows::rows(batch.kind, batch.number, batch.rows);
        let answer = node.append(&batch.org, batch.kind, made, batch.id()).await;
        let said = match &answer {
            Ok(ack) if ack.duplicate => "duplicate".to_owned(),
            Ok(_) => "acknowledged".to_owned(),
            Err(e) => format!("{e:?}"),
        };
        node.process.tell(&format!("batch {} of {}: {said}", batch.number, batch.org));
        self.checker().answered(batch.number, before, &answer);
        self.batches().answered(batch, answer.is_ok());
        answer.is_ok()
    }

    /// Reads all that a node shows of an org, and checks it. Returns whether there was an answer.
    pub(super) async fn look(&self, node: &Node, org: &str) -> bool {
        let who = format!("{:?}", node.process);
        let disk = &self.sea().disk;
        let before = self.checker().before(org);
        let view = match node.view(org).await {
            Ok(view) => view,
            Err(e) => return self.no_answer(&who, org, &e),
        };
        let least = self.checker().view(disk, &who, org, &before, &view);
        let before = self.checker().before(org);
        let counters = match node.counters(org).await {
            Ok(counters) => counters,
            Err(e) => return self.no_answer(&who, org, &e),
        };
        let again = match node.view(org).await {
            Ok(view) => view,
            Err(e) => return self.no_answer(&who, org, &e),
        };
        let mut checker = self.checker();
        let most = checker.view(disk, &who, org, &before, &again);
        checker.counters(&who, org, &before, &counters, (least, most));
        checker.checkpoints(disk, org);
        drop(checker);
        node.process.tell(&format!("shows {least} to {most} samples of {org}"));
        true
    }

    fn no_answer(&self, who: &str, org: &str, e: &NoAnswer) -> bool {
        self.sea().tell(format!("{who} does not show {org}: {e:?}"));
        self.checker().excuse(&format!("{who} shows {org}"), e);
        false
    }

    /// Lets the weather clear, everything come to its end, and the nodes be up: then checks all of them.
    pub(super) async fn finish(&self, clients: &mut JoinSet<()>, nodes: usize) {
        self.sea().tell("the weather is fair from here on".to_owned());
        self.sea().set_weather(Weather::Fair);
        for number in 0..nodes {
            if let Some(process) = self.process(number) {
                process.thaw();
            }
        }
        join(clients).await;
        // What is on its way to the store arrives.
        if let Some(due) = self.sea().last_due() {
            sleep(Duration::from_millis(due.saturating_sub(self.sea().now()))).await;
        }
        for number in 0..nodes {
            if self.node(number).is_none() {
                self.start(number).await;
            }
        }
        sleep(Duration::from_secs(10)).await;
        self.send_what_is_open(nodes).await;
        // A node waits before it takes over what a dead one left.
        sleep(Duration::from_secs(20)).await;
        self.start(LAST).await;
        for number in (0..nodes).chain([LAST]) {
            let node = self.node(number).unwrap_or_else(|| panic!("node {number} is down in fair weather"));
            for org in self.orgs() {
                self.look_until_it_shows(&node, org).await;
            }
        }
        self.wait_for_checkpoints().await;
        for number in (0..nodes).chain([LAST]) {
            self.stop(number).await;
        }
        self.verify().await;
    }

    /// Looks until there is an answer.
    pub(super) async fn look_until_it_shows(&self, node: &Node, org: &str) {
        for _ in 0..TRIES {
            if self.look(node, org).await {
                return;
            }
            sleep(Duration::from_millis(500)).await;
        }
        panic!("{:?} does not show {org} in fair weather", node.process);
    }

    /// Sends again what was not acknowledged, under the names that it had.
    async fn send_what_is_open(&self, nodes: usize) {
        let batches = self.batches().all().to_vec();
        for batch in batches {
            let sent = self.checker().sent.get(&batch.number).cloned();
            if batch.naming == Naming::Nameless || sent.is_none_or(|sent| sent.acknowledged) {
                continue;
            }
            let mut tries = 0;
            loop {
                let number = (batch.number as usize + tries) % nodes;
                if let Some(node) = self.node(number)
                    && self.send(&node, &batch).await
                {
                    break;
                }
                tries += 1;
                assert!(tries < TRIES, "batch {} is not taken in fair weather", batch.number);
                sleep(Duration::from_millis(500)).await;
            }
        }
    }

    /// Each ledger's checkpoint comes to cover all of its entries.
    async fn wait_for_checkpoints(&self) {
        let mut behind = Vec::new();
        for _ in 0..TRIES {
            behind = Vec::new();
            for org in self.orgs() {
                let (seen, covered) = self.checker().checkpoints(&self.sea().disk, org);
                if covered < seen {
                    behind.push(format!("{org}: {seen} entries, of which {covered} are covered"));
                }
            }
            if behind.is_empty() {
                return;
            }
            sleep(Duration::from_secs(5)).await;
        }
        panic!("entries that no checkpoint covers: {behind:?}");
    }

    /// Verifies each ledger as an auditor does, from the store alone.
    async fn verify(&self) {
        for org in self.orgs() {
            let covered = self.checker().checkpoints(&self.sea().disk, org).1;
            if covered == 0 {
                continue;
            }
            let found = super::tamper::verify(self.sea(), org).await;
            let sound = found.unwrap_or_else(|e| panic!("{org}: the ledger does not verify: {e}"));
            assert_eq!(sound.size, covered, "{org}: the newest checkpoint is not the one that is found");
        }
    }
}

/// Waits for all of them; a panic in one is one here.
pub(super) async fn join(clients: &mut JoinSet<()>) {
    let ended = timeout(ANSWER_TIMEOUT, async {
        while let Some(ended) = clients.join_next().await {
            ended.unwrap();
        }
    });
    assert!(ended.await.is_ok(), "a request has no answer after {ANSWER_TIMEOUT:?} of fair weather");
}
