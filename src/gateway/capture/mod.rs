//! Payloads that policies capture: sealed in memory, then spooled, then sent.
//!
//! ```text
//! a call ─▶ bounded queue ─▶ the sealing thread: header, envelope, record ─▶ the spool's lane `payloads` ─▶ POST …/payloads
//!                                 ▲ public keys
//!                        the key note: fetched, verified, kept beside the spool
//! ```
//!
//! No plaintext leaves the process but to the plugin and the caller: what waits to be sealed waits in memory, and what
//! touches the disk is sealed. A call never waits for any of it, and never fails because of it, unless
//! `payloads.on_failure` is `closed`: then its request is sealed and on disk before it is dispatched, and its response
//! before it is answered.
//!
//! What cannot be kept (the queue or the lane's share of the disk is full, no key of the day is known) is counted as
//! lost by its reason, and takes nothing from samples and audit events.
//!
//! | file | holds |
//! |---|---|
//! | `keys` | the key note: getting, verifying, keeping it |
//! | `seal` | the sealing thread |

mod keys;
mod seal;

use std::sync::Arc;

use chrono::{DateTime, Utc};
use tokio::task::JoinHandle;
use uuid::Uuid;

use self::keys::Keys;
use self::seal::{Job, Queue};
use super::control_plane::HttpClient;
use super::export::Emitters;
use super::message::Json;
use super::metrics::GatewayMetrics;
use super::policy::{Abilities, Obligations, Policy};
use crate::config::{self, CaptureSettings, OnFailure};
use crate::model::Clock;
use crate::payload::{Content, Direction, Header, Kind};

/// What is known of a call when it is about to be dispatched.
#[derive(Debug, Clone)]
pub(crate) struct CallFacts<'a> {
    pub(crate) invocation_id: Uuid,
    pub(crate) plugin: &'a str,
    pub(crate) kind: Kind,
    /// The tool's or prompt's own name, or the resource's URI.
    pub(crate) tool: &'a str,
    pub(crate) started_at: DateTime<Utc>,
    /// What the permit obliges to.
    pub(crate) obligations: &'a Obligations,
}

/// A payload that had to be kept and could not be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NotCaptured;

/// Captures payloads. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Capture(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: CaptureSettings,
    org: crate::model::OrgName,
    workspace: String,
    instance: String,
    keys: Arc<Keys>,
    queue: Queue,
}

impl Capture {
    /// Starts to seal, once there is something to seal to. Within a Tokio runtime.
    ///
    /// # Errors
    /// When a thread or an HTTP client cannot be made.
    pub(crate) fn start(
        settings: &config::Gateway,
        emitters: &Emitters,
        abilities: &Abilities,
        metrics: &Arc<GatewayMetrics>,
        clock: &Arc<dyn Clock>,
    ) -> std::io::Result<Self> {
        let client = HttpClient::new(&settings.control_plane, keys::TIMEOUT, keys::TIMEOUT);
        let client = client.map_err(std::io::Error::other)?;
        let keys = Arc::new(Keys::open(settings, client, abilities.clone(), Arc::clone(clock)));
        let queue = Queue::start(Arc::clone(&keys), emitters.payloads().cloned(), Arc::clone(metrics))?;
        Ok(Self(Arc::new(Inner {
            settings: settings.payloads.clone(),
            org: settings.org.clone(),
            workspace: settings.workspace.clone(),
            instance: settings.instance.clone(),
            keys,
            queue,
        })))
    }

    /// Gets the key note, and keeps it fresh for as long as the gateway runs; only while a policy captures. The first
    /// look is waited for, for a moment.
    pub(crate) async fn follow(&self, policy: &Arc<Policy>) -> JoinHandle<()> {
        if policy.captures() {
            self.0.keys.look().await;
        }
        let (keys, policy) = (Arc::clone(&self.0.keys), Arc::clone(policy));
        tokio::spawn(async move { keys.follow(&policy).await })
    }

    /// What is to be kept of a call, if anything is.
    pub(crate) fn begin(&self, facts: &CallFacts<'_>) -> Option<Capturing> {
        let captures = facts.obligations.captures();
        if captures.is_none() || !self.is_sampled(facts) {
            return None;
        }
        let own = self.0.settings.plugins.get(facts.plugin);
        let cap = own.and_then(|own| own.max_bytes).unwrap_or(self.0.settings.max_bytes).as_usize();
        let header = Header {
            org: self.0.org.clone(),
            workspace: self.0.workspace.clone(),
            instance: self.0.instance.clone(),
            plugin: facts.plugin.to_owned(),
            kind: facts.kind,
            tool: facts.tool.chars().filter(|c| !c.is_control()).take(1_024).collect(),
            invocation_id: facts.invocation_id,
            direction: Direction::Request,
            // Put right when it is sealed: the note says which it is.
            epoch: keys::any_epoch(facts.started_at),
            started_at: facts.started_at,
            content_type: "application/json".to_owned(),
            redactions: Vec::new(),
            truncated_from: None,
        };
        let redactions =
            [Direction::Request, Direction::Response].map(|direction| facts.obligations.redactions(direction));
        Some(Capturing { capture: self.clone(), captures, redactions, header, cap })
    }

    /// Whether a call is of the share that is kept; the same for both of its directions, and on every gateway.
    fn is_sampled(&self, facts: &CallFacts<'_>) -> bool {
        let own = self.0.settings.plugins.get(facts.plugin).and_then(|own| own.sample);
        let share = own.unwrap_or(self.0.settings.sample);
        let drawn = crate::ingest::Fingerprint::of(facts.invocation_id.as_bytes()).0;
        (drawn as f64) < share * (u64::MAX as f64) || share >= 1.0
    }

    /// Seals what waits, before the spool is made durable for the last time.
    pub(crate) async fn drain(&self) {
        self.0.queue.settle().await;
    }
}

/// Which directions of a call are kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Captures {
    /// Its request.
    pub request: bool,
    /// Its response.
    pub response: bool,
}

impl Captures {
    /// Neither.
    pub fn is_none(self) -> bool {
        !self.request && !self.response
    }
}

/// A call of which something is kept.
#[derive(Debug)]
pub(crate) struct Capturing {
    capture: Capture,
    captures: Captures,
    redactions: [Vec<String>; 2],
    header: Header,
    cap: usize,
}

impl Capturing {
    /// Keeps the parameters as they go to the plugin.
    ///
    /// # Errors
    /// When they could not be kept and had to be; never where a call goes on all the same.
    pub(crate) async fn request(&self, params: Option<&Json>) -> Result<(), NotCaptured> {
        if !self.captures.request {
            return Ok(());
        }
        self.keep(Direction::Request, params.map_or(b"null", Json::as_bytes)).await
    }

    /// Keeps the result, or the error, as it goes to the caller.
    ///
    /// # Errors
    /// As [`Capturing::request`].
    pub(crate) async fn response(&self, answer: &Json) -> Result<(), NotCaptured> {
        if self.captures.response { self.keep(Direction::Response, answer.as_bytes()).await } else { Ok(()) }
    }

    async fn keep(&self, direction: Direction, bytes: &[u8]) -> Result<(), NotCaptured> {
        let is_closed = self.capture.0.settings.on_failure == OnFailure::Closed;
        let mut header = self.header.clone();
        header.direction = direction;
        header.redactions =
            self.redactions.get(usize::from(direction == Direction::Response)).cloned().unwrap_or_default();
        let (content, truncated_from) = Content::new(bytes.to_vec(), self.cap);
        header.truncated_from = truncated_from;
        let job = Job { header, content, compress: self.capture.0.settings.compress };
        if !is_closed {
            // What is lost is counted where it is.
            self.capture.0.queue.push(job);
            return Ok(());
        }
        self.capture.0.queue.push_durably(job).await
    }
}
