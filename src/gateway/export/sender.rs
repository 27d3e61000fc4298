//! The task that delivers one lane of the spool: the oldest batch first, one at a time, so that order is kept.
//!
//! While the receiver is away the batch stays on disk and is read again for each attempt, so an outage takes no memory.
//! The pauses between attempts double up to [`LONGEST_PAUSE`], each drawn between half and the whole, so that a fleet
//! of gateways does not come back all at once; a `Retry-After` is not undercut.
//!
//! A batch goes out under the emitter and number of its segment, with the number acknowledged before it in that lane.
//! When the receiver says that it cannot compare the number, the segment gets a new emitter id, durably, and is sent
//! again.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::event;
use super::file::EventFile;
use super::receiver::{Body, Receiver, Verdict};
use super::sample;
use crate::gateway::metrics::{GatewayMetrics, Lane as LaneMetrics, Loss};
use crate::gateway::spool::{Batch, Lane, Sealed};
use crate::ingest::Media;
use crate::model::{Clock, Random};
use crate::payload::frames;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Where a lane's batches go.
#[derive(Debug)]
pub(super) enum Target {
    /// Samples, to a control plane.
    Samples(Receiver),
    /// Events, to a control plane.
    Events(Receiver),
    /// Sealed payloads, to a control plane; by this clock they are past their time.
    Payloads(Receiver, Arc<dyn Clock>),
    /// Events, to a file.
    File(Arc<Mutex<EventFile>>),
}

/// Delivers one lane.
#[derive(Debug)]
pub(super) struct Sender {
    pub(super) lane: Lane,
    pub(super) target: Target,
    pub(super) metrics: Arc<GatewayMetrics>,
    pub(super) random: Arc<dyn Random>,
    /// Ends a pause early.
    pub(super) hurry: Arc<Notify>,
}

impl Sender {
    /// Delivers until `stop`.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut pause = FIRST_PAUSE;
        let mut away = false;
        while let Some(sealed) = stop.run_until_cancelled(self.lane.oldest()).await {
            let Some(verdict) = stop.run_until_cancelled(self.deliver(&sealed)).await else { break };
            match verdict {
                Verdict::Taken => {
                    if std::mem::take(&mut away) {
                        tracing::info!(stream = self.stream(), "telemetry is delivered again");
                    }
                    pause = FIRST_PAUSE;
                }
                Verdict::Never { why } => {
                    tracing::error!(stream = self.stream(), why, "a batch of telemetry was refused for good");
                    self.lane_metrics().lost(Loss::Refused, sealed.records);
                    self.lane.set_aside(&sealed).await;
                }
                Verdict::Conflict { why } => {
                    self.renumber(&sealed, &why).await;
                    self.lane.put_back();
                    // A receiver that says so again and again is not asked without pause.
                    if self.rest(&mut pause, Duration::ZERO, &stop).await.is_none() {
                        break;
                    }
                }
                Verdict::Later { why, after } => {
                    self.lane.put_back();
                    self.lane_metrics().retries.inc();
                    if !std::mem::replace(&mut away, true) {
                        tracing::warn!(
                            stream = self.stream(),
                            why,
                            "telemetry cannot be delivered; it waits in the spool"
                        );
                    }
                    if self.rest(&mut pause, after.unwrap_or_default(), &stop).await.is_none() {
                        break;
                    }
                }
            }
        }
        self.lane.put_back();
    }

    /// Pauses before the next attempt, at least so long unless it is hurried; none when it is to stop.
    async fn rest(&self, pause: &mut Duration, least: Duration, stop: &CancellationToken) -> Option<()> {
        let wait = least.max(self.part_of(*pause));
        *pause = (*pause * 2).min(LONGEST_PAUSE);
        tokio::select! {
            () = tokio::time::sleep(wait) => Some(()),
            () = self.hurry.notified() => Some(()),
            () = stop.cancelled() => None,
        }
    }

    /// Gives a batch a new emitter id.
    async fn renumber(&self, sealed: &Sealed, why: &str) {
        match self.lane.renew(sealed).await {
            Ok(()) => {
                self.lane_metrics().renumbered.inc();
                tracing::warn!(
                    stream = self.stream(),
                    why,
                    sent_under = ?sealed.sent_under,
                    "the control plane cannot compare a batch with what it stored; it is sent again under a new emitter id"
                );
            }
            Err(error) => tracing::error!(
                stream = self.stream(),
                why,
                %error,
                "a batch cannot be given a new emitter id; it waits in the spool"
            ),
        }
    }

    /// Delivers a batch once, and takes it off the spool when that succeeds.
    async fn deliver(&mut self, sealed: &Sealed) -> Verdict {
        let batch = match self.lane.read(sealed).await {
            Ok(batch) => batch,
            Err(error) => Batch::unreadable(&error),
        };
        let delivered = batch.len();
        let damage = batch.damage.clone();
        if delivered > 0 {
            let verdict = self.hand_over(sealed, batch).await;
            if verdict != Verdict::Taken {
                return verdict;
            }
            self.lane.acknowledge(sealed);
        }
        self.lane_metrics().delivered.inc_by(delivered);
        match damage {
            None => self.lane.done(sealed).await,
            Some(damage) => {
                let lost = sealed.records.saturating_sub(delivered);
                tracing::error!(
                    stream = self.stream(),
                    damage,
                    delivered,
                    lost,
                    "a batch of telemetry is damaged; what is sound of it was delivered"
                );
                self.lane_metrics().lost(Loss::Damaged, lost);
                self.lane.set_aside(sealed).await;
            }
        }
        Verdict::Taken
    }

    async fn hand_over(&mut self, sealed: &Sealed, batch: Batch) -> Verdict {
        let org = sealed.org.clone();
        let (sent_under, lane) = (self.lane.sent_under(sealed), self.lane.index());
        match &mut self.target {
            Target::Samples(receiver) => match off_the_runtime(move || samples(&batch)).await {
                Ok(bytes) => {
                    let media = Media::ArrowStream.as_str();
                    receiver.send(Body { org, sent_under, lane, resource: "invocations", media, bytes }).await
                }
                Err(why) => Verdict::Never { why },
            },
            Target::Events(receiver) => match off_the_runtime(move || Ok(lines(&batch, None))).await {
                Ok(bytes) => {
                    let media = Media::Ndjson.as_str();
                    receiver.send(Body { org, sent_under, lane, resource: "audit", media, bytes }).await
                }
                Err(why) => Verdict::Never { why },
            },
            Target::Payloads(receiver, clock) => {
                let (now, metrics) = (clock.now(), Arc::clone(&self.metrics));
                match off_the_runtime(move || Ok(sealed_payloads(&batch, now))).await {
                    Ok((bytes, expired)) => {
                        metrics.payloads.lost(Loss::Expired, expired);
                        if bytes.is_empty() {
                            return Verdict::Taken;
                        }
                        receiver
                            .send(Body { org, sent_under, lane, resource: "payloads", media: frames::MEDIA, bytes })
                            .await
                    }
                    Err(why) => Verdict::Never { why },
                }
            }
            Target::File(file) => {
                let file = Arc::clone(file);
                let appended = off_the_runtime(move || {
                    let lines = lines(&batch, Some(org.as_str()));
                    let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                    file.append(&lines).map_err(|error| error.to_string())
                });
                match appended.await {
                    Ok(()) => Verdict::Taken,
                    Err(why) => Verdict::Later { why, after: None },
                }
            }
        }
    }

    const fn stream(&self) -> &'static str {
        match self.target {
            Target::Samples(_) => "samples",
            Target::Payloads(..) => "payloads",
            Target::Events(_) | Target::File(_) => "audit",
        }
    }

    fn lane_metrics(&self) -> &LaneMetrics {
        match self.target {
            Target::Samples(_) => &self.metrics.samples,
            Target::Payloads(..) => &self.metrics.payloads,
            Target::Events(_) | Target::File(_) => &self.metrics.audit,
        }
    }

    /// Between half of `pause` and the whole.
    fn part_of(&self, pause: Duration) -> Duration {
        let drawn = u64::from(self.random.uuid().as_fields().0);
        let half = u64::try_from(pause.as_micros() / 2).unwrap_or(u64::MAX);
        Duration::from_micros(half + (half.saturating_mul(drawn) >> 32))
    }
}

/// The records of a batch as an Arrow stream.
fn samples(batch: &Batch) -> Result<Vec<u8>, String> {
    let records: Vec<_> = batch.records().map(|(_, record)| record).collect();
    // What is wrong with a record is not repeated: it might quote it.
    sample::body(&records).map_err(|_| "a record of the spool is no sample".to_owned())
}

/// The frames of a batch, each envelope once; and how many records were left out since their keys are destroyed by now.
fn sealed_payloads(batch: &Batch, now: DateTime<Utc>) -> (Vec<u8>, u64) {
    let (mut out, mut expired, mut envelopes) = (Vec::new(), 0, HashSet::new());
    for (_, record) in batch.records() {
        // What is no pair of frames was not made by this program, and is left to the receiver to refuse.
        let Ok(frames) = frames::read(&Bytes::copy_from_slice(record)) else {
            out.extend_from_slice(record);
            continue;
        };
        let is_over = frames.iter().any(|placed| match &placed.frame {
            frames::Frame::Envelope(envelope) => envelope.epoch().ends_at() <= now,
            frames::Frame::Record(_) => false,
        });
        if is_over {
            expired += 1;
            continue;
        }
        for placed in frames {
            match placed.frame {
                frames::Frame::Envelope(envelope) if !envelopes.insert(envelope.id()) => {}
                frames::Frame::Envelope(envelope) => frames::push(&mut out, envelope.bytes()),
                frames::Frame::Record(record) => frames::push(&mut out, record.bytes()),
            }
        }
    }
    (out, expired)
}

/// The records of a batch as lines of JSON.
fn lines(batch: &Batch, org: Option<&str>) -> Vec<u8> {
    let mut lines = Vec::new();
    for (number, record) in batch.records() {
        event::push_line(&mut lines, record, number, org);
    }
    lines
}

async fn off_the_runtime<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(error.to_string()))
}
