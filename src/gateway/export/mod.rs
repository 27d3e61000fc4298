//! Streams 1 and 3 on their way out: samples and audit events, from a call through the spool to their receivers.
//!
//! | module | holds |
//! |---|---|
//! | `sample` | what one call leaves for metrics and SQL |
//! | `event` | one step that the ledger has to know |
//! | `text` | texts of others cut to what the control plane takes |
//! | `sender` | the task that delivers one lane of the spool |
//! | `receiver` | one attempt at a control plane, and what its answer means |
//! | `file` | audit events to a file |
//!
//! Each stream is on unless `observability.metrics` or `observability.audit` says otherwise, and goes to the gateway's
//! control plane unless it is sent elsewhere; neither knows of the other. No call waits for the network, ever, and for
//! the disk's fsync only if it asks to ([`Emitters::audit`]); see the spool for what is durable when (invariant I8).
//!
//! What is in the spool when a stream is switched off stays there until it is on again.

mod event;
mod file;
mod receiver;
mod sample;
mod sender;
#[cfg(test)]
mod tests;
mod text;

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

pub use super::spool::{NotRecorded, SpoolError};
pub use event::AuditEvent;
pub use sample::{CallSample, ErrorHash};

use super::control_plane::{ControlPlaneError, HttpClient};
use super::metrics::GatewayMetrics;
use super::spool::{Lane, LocalDisk, Spool, SpoolParts, SpoolSettings};
use crate::config;
use crate::model::{Clock, Random};
use file::EventFile;
use receiver::Receiver;
use sender::{Sender, Target};

/// How often a drain looks whether all is delivered.
const DRAIN_POLL: Duration = Duration::from_millis(20);

/// How long the disk may take to make the rest durable.
const SYNC: Duration = Duration::from_secs(5);

/// Why the emitters cannot start.
#[derive(Debug, thiserror::Error)]
pub enum EmitError {
    /// The spool cannot be opened.
    #[error("control_plane.spool: {0}")]
    Spool(#[from] SpoolError),
    /// The control plane cannot be spoken to.
    #[error(transparent)]
    ControlPlane(#[from] ControlPlaneError),
}

/// What the emitters stand on.
#[derive(Debug, Clone)]
pub struct EmitParts {
    /// The wall clock.
    pub clock: Arc<dyn Clock>,
    /// Where the ids of emitters come from.
    pub random: Arc<dyn Random>,
    /// Where it is counted what becomes of telemetry.
    pub metrics: Arc<GatewayMetrics>,
}

/// Streams 1 and 3. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Emitters(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    workspace: String,
    instance: String,
    spool: Option<Spool>,
    metrics: Arc<GatewayMetrics>,
    hurry: Vec<Arc<Notify>>,
    stop: CancellationToken,
    senders: Mutex<JoinSet<()>>,
}

impl Emitters {
    /// Opens the spool and starts to deliver what is in it. Within a Tokio runtime.
    ///
    /// # Errors
    /// See [`EmitError`].
    pub fn start(settings: &config::Gateway, parts: &EmitParts) -> Result<Self, EmitError> {
        let (samples, audit) = (&settings.observability.metrics, &settings.observability.audit);
        let spool_settings = SpoolSettings {
            folder: settings.control_plane.spool.path.clone(),
            max_bytes: settings.control_plane.spool.max_bytes.as_u64(),
            org: settings.org.clone(),
            samples: samples.enabled,
            audit: audit.enabled,
            // Only policies in files can have payloads kept.
            payloads: matches!(settings.policy, config::PolicySource::Files(_))
                .then(|| settings.payloads.spool_bytes.as_u64()),
        };
        let spool_parts = SpoolParts {
            disk: Arc::new(LocalDisk),
            clock: Arc::clone(&parts.clock),
            random: Arc::clone(&parts.random),
            metrics: Arc::clone(&parts.metrics),
        };
        let link = &settings.control_plane;
        let own = HttpClient::new(link, receiver::ATTEMPT, receiver::CONNECT)?;
        let receiver = |elsewhere: Option<&config::Destination>| {
            Ok::<_, ControlPlaneError>(match elsewhere {
                Some(other) => {
                    let client = HttpClient::of_another(receiver::ATTEMPT, receiver::CONNECT)?;
                    Receiver::new(client, (*other.url).clone(), other.token.clone())
                }
                None => Receiver::new(own.clone(), (*link.url).clone(), link.token.clone()),
            })
        };
        let mut targets = Vec::new();
        let is_used = samples.enabled || audit.enabled || spool_settings.payloads.is_some();
        let spool = is_used.then(|| Spool::open(&spool_settings, &spool_parts)).transpose()?;
        if let Some(lane) = spool.as_ref().and_then(|spool| spool.samples.clone()) {
            targets.push((lane, Target::Samples(receiver(samples.control_plane.as_ref())?)));
        }
        if let Some(lane) = spool.as_ref().and_then(|spool| spool.audit.clone()) {
            let target = match &audit.file {
                Some(path) => Target::File(Arc::new(Mutex::new(EventFile::new(path.clone())))),
                None => Target::Events(receiver(audit.control_plane.as_ref())?),
            };
            targets.push((lane, target));
        }
        if let Some(lane) = spool.as_ref().and_then(|spool| spool.payloads.clone()) {
            let target = Target::Payloads(receiver(None)?, Arc::clone(&parts.clock));
            targets.push((lane, target));
        }
        let (stop, mut senders, mut hurry) = (CancellationToken::new(), JoinSet::new(), Vec::new());
        for (lane, target) in targets {
            let notify = Arc::new(Notify::new());
            hurry.push(Arc::clone(&notify));
            let (metrics, random) = (Arc::clone(&parts.metrics), Arc::clone(&parts.random));
            senders.spawn(Sender { lane, target, metrics, random, hurry: notify }.run(stop.clone()));
        }
        Ok(Self(Arc::new(Inner {
            workspace: settings.workspace.clone(),
            instance: settings.instance.clone(),
            spool,
            metrics: Arc::clone(&parts.metrics),
            hurry,
            stop,
            senders: Mutex::new(senders),
        })))
    }

    fn samples(&self) -> Option<&Lane> {
        self.0.spool.as_ref()?.samples.as_ref()
    }

    /// Where sealed payloads go.
    pub(crate) fn payloads(&self) -> Option<&Lane> {
        self.0.spool.as_ref()?.payloads.as_ref()
    }

    fn events(&self) -> Option<&Lane> {
        self.0.spool.as_ref()?.audit.as_ref()
    }

    /// Whether audit events are recorded at all.
    pub fn audits(&self) -> bool {
        self.events().is_some()
    }

    /// Records a sample. When this returns it outlives the process, unless the disk is slow; it never waits for one,
    /// and never fails: what is lost is counted.
    pub fn sample(&self, sample: &CallSample<'_>) {
        let Some(lane) = self.samples() else { return };
        match sample::record(sample, &self.0.workspace, &self.0.instance) {
            // A sample that was not taken is counted where it was refused.
            Ok(record) => drop(lane.append(&record)),
            Err(_) => tracing::error!("a sample cannot be written as JSON"),
        }
    }

    /// Records an event; ready once it is durable. With the stream off that is at once.
    ///
    /// # Errors
    /// When it is not, or may not be: whether the call then goes on is the caller's to decide.
    pub fn audit(&self, event: &AuditEvent<'_>) -> impl Future<Output = Result<(), NotRecorded>> + Send + use<> {
        let recorded = self.events().map(|lane| match self.record(event) {
            Some(record) => Ok(lane.append_durably(&record)),
            None => Err(NotRecorded::TooLarge),
        });
        let metrics = Arc::clone(&self.0.metrics);
        async move {
            let result = match recorded {
                None => Ok(()),
                Some(Ok(durable)) => durable.await,
                Some(Err(why)) => Err(why),
            };
            // The spool counts all that it does not record; of one that is late it does not know.
            result.inspect_err(|why| metrics.audit_failures.inc_by(u64::from(*why == NotRecorded::Late)))
        }
    }

    /// Records an event and does not wait until it is durable. When this returns it outlives the process, unless the
    /// disk is slow. One that finds no room is counted, and leaves a hole in `emitter_seq`.
    pub fn audit_soon(&self, event: &AuditEvent<'_>) {
        let Some(lane) = self.events() else { return };
        if let Some(record) = self.record(event) {
            // An event that was not taken is counted where it was refused.
            let _ = lane.append(&record);
        }
    }

    fn record(&self, event: &AuditEvent<'_>) -> Option<Vec<u8>> {
        let record = event::record(event, &self.0.workspace, &self.0.instance);
        record.inspect_err(|_| tracing::error!("an audit event cannot be written as JSON")).ok()
    }

    /// Delivers what can be delivered until `deadline`, and makes the rest durable for the next start. Nothing is
    /// delivered afterwards.
    pub async fn drain(&self, deadline: Instant) {
        let lanes: Vec<_> = [self.samples(), self.events(), self.payloads()].into_iter().flatten().collect();
        let delivered = async {
            for lane in &lanes {
                lane.seal_now().await;
            }
            self.0.hurry.iter().for_each(|hurry| hurry.notify_one());
            while !lanes.iter().all(|lane| lane.is_empty()) {
                sleep(DRAIN_POLL).await;
            }
        };
        if timeout_at(deadline, delivered).await.is_err() {
            tracing::info!("telemetry that could not be delivered yet stays in the spool");
        }
        self.0.stop.cancel();
        let mut senders = std::mem::take(&mut *self.0.senders.lock().unwrap_or_else(PoisonError::into_inner));
        while senders.join_next().await.is_some() {}
        for lane in lanes {
            if timeout_at(Instant::now() + SYNC, lane.sync()).await.is_err() {
                tracing::error!("the spool's disk does not answer; what it has not written yet is lost");
            }
        }
    }
}
