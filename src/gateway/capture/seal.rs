//! The sealing thread: a job is a header and what is to be sealed; it becomes a record in the spool's lane.
//!
//! It is a thread of its own, so that sealing, which is all computing, holds up no call. What waits is bounded by
//! bytes; past that a payload is lost, and counted. An envelope serves an epoch for a minute or 4,096 records. In the
//! spool each record stands with its envelope, so that any of them may be dropped alone; a request names an envelope
//! once.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::NotCaptured;
use super::keys::Keys;
use crate::gateway::metrics::{GatewayMetrics, Loss};
use crate::gateway::spool::Lane;
use crate::payload::{Content, Envelope, Epoch, Header, MAX_RECORDS, Recipients, Sealer, frames};

/// Bytes that wait to be sealed, at most.
const QUEUED: usize = 32 << 20;
/// What a job takes besides its content.
const OVERHEAD: usize = 1 << 10;
/// How long an envelope is used.
const ENVELOPE: Duration = Duration::from_secs(60);

/// What is to be sealed.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) header: Header,
    pub(super) content: Content,
    pub(super) compress: bool,
}

enum Message {
    Seal(Job),
    /// The same; the answer is ready once the record is durable.
    SealDurably(Job, oneshot::Sender<Result<(), NotCaptured>>),
    Settle(oneshot::Sender<()>),
}

/// What waits for the sealing thread. It ends with the last of its senders.
#[derive(Debug)]
pub(super) struct Queue {
    sender: Sender<Message>,
    bytes: Arc<AtomicUsize>,
    metrics: Arc<GatewayMetrics>,
}

impl Queue {
    /// Starts the thread. Within a Tokio runtime.
    pub(super) fn start(keys: Arc<Keys>, lane: Option<Lane>, metrics: Arc<GatewayMetrics>) -> io::Result<Self> {
        let (sender, receiver) = mpsc::channel();
        let bytes = Arc::new(AtomicUsize::new(0));
        let sealing =
            Sealing { keys, lane, metrics: Arc::clone(&metrics), bytes: Arc::clone(&bytes), envelopes: HashMap::new() };
        let runtime = tokio::runtime::Handle::current();
        thread::Builder::new().name("seal".to_owned()).spawn(move || sealing.run(&receiver, &runtime))?;
        Ok(Self { sender, bytes, metrics })
    }

    fn reserve(&self, job: &Job) -> bool {
        let more = job.content.len() + OVERHEAD;
        let fits = |held: usize| held.checked_add(more).filter(|sum| *sum <= QUEUED);
        self.bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits).is_ok()
    }

    /// Has a payload sealed; one that finds no room is lost, and counted.
    pub(super) fn push(&self, job: Job) {
        if !self.reserve(&job) || self.sender.send(Message::Seal(job)).is_err() {
            self.metrics.payloads.lost(Loss::Backlog, 1);
        }
    }

    /// Has a payload sealed; ready once it is durable.
    pub(super) async fn push_durably(&self, job: Job) -> Result<(), NotCaptured> {
        let (reply, answer) = oneshot::channel();
        if !self.reserve(&job) || self.sender.send(Message::SealDurably(job, reply)).is_err() {
            self.metrics.payloads.lost(Loss::Backlog, 1);
            return Err(NotCaptured);
        }
        answer.await.unwrap_or(Err(NotCaptured))
    }

    /// Waits until all that was pushed before is sealed.
    pub(super) async fn settle(&self) {
        let (reply, settled) = oneshot::channel();
        if self.sender.send(Message::Settle(reply)).is_ok() {
            // Ignore the error: the thread has ended, and nothing waits.
            let _ = settled.await;
        }
    }
}

/// An envelope in use.
struct Used {
    sealer: Sealer,
    envelope: Envelope,
    recipients: Recipients,
    since: Instant,
    records: u64,
}

struct Sealing {
    keys: Arc<Keys>,
    lane: Option<Lane>,
    metrics: Arc<GatewayMetrics>,
    bytes: Arc<AtomicUsize>,
    envelopes: HashMap<Epoch, Used>,
}

impl Sealing {
    fn run(mut self, receiver: &Receiver<Message>, runtime: &tokio::runtime::Handle) {
        while let Ok(message) = receiver.recv() {
            match message {
                Message::Seal(job) => {
                    let freed = job.content.len() + OVERHEAD;
                    if let (Some(bytes), Some(lane)) = (self.seal(job), &self.lane) {
                        // One that was not taken is counted where it was refused.
                        let _ = lane.append(&bytes);
                    }
                    self.bytes.fetch_sub(freed, Ordering::AcqRel);
                }
                Message::SealDurably(job, reply) => {
                    let freed = job.content.len() + OVERHEAD;
                    let durable =
                        self.seal(job).zip(self.lane.as_ref()).map(|(bytes, lane)| lane.append_durably(&bytes));
                    self.bytes.fetch_sub(freed, Ordering::AcqRel);
                    runtime.spawn(async move {
                        let outcome = match durable {
                            Some(durable) => durable.await.map_err(|_| NotCaptured),
                            None => Err(NotCaptured),
                        };
                        // Ignore the error: the call was given up.
                        let _ = reply.send(outcome);
                    });
                }
                Message::Settle(reply) => {
                    let _ = reply.send(());
                }
            }
        }
    }

    /// An envelope and a record under it, as frames; none if there is nothing to seal to.
    fn seal(&mut self, job: Job) -> Option<Vec<u8>> {
        let Job { mut header, content, compress } = job;
        let Some((epoch, recipients, may_compress)) = self.keys.sealed_to(header.started_at, &header.plugin) else {
            self.metrics.payloads.lost(Loss::NoKey, 1);
            return None;
        };
        header.epoch = epoch;
        let sealed = self.used(&header, epoch, recipients).and_then(|used| {
            used.records += 1;
            let record = used.sealer.seal(&header, &content, compress && may_compress)?;
            let mut bytes = Vec::with_capacity(8 + used.envelope.bytes().len() + record.len());
            frames::push(&mut bytes, used.envelope.bytes());
            frames::push(&mut bytes, &record);
            Ok(bytes)
        });
        match sealed {
            Ok(bytes) => Some(bytes),
            Err(refusal) => {
                tracing::error!(%refusal, plugin = header.plugin, "a payload cannot be sealed");
                self.metrics.payloads.lost(Loss::TooLarge, 1);
                None
            }
        }
    }

    /// The envelope of an epoch, a new one where that in use is used up.
    fn used(
        &mut self,
        header: &Header,
        epoch: Epoch,
        recipients: Recipients,
    ) -> Result<&mut Used, crate::payload::Refusal> {
        self.envelopes.retain(|_, used| used.since.elapsed() < ENVELOPE && used.records < MAX_RECORDS);
        if self.envelopes.get(&epoch).is_none_or(|used| used.recipients != recipients) {
            let (envelope, key) = Envelope::seal(&header.org, epoch, &recipients)?;
            let sealer = Sealer::new(&envelope, key);
            self.envelopes.insert(epoch, Used { sealer, envelope, recipients, since: Instant::now(), records: 0 });
        }
        self.envelopes.get_mut(&epoch).ok_or(crate::payload::Refusal::Envelope)
    }
}
