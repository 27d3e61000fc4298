//! Calls of modern clients at servers of the old generation, which may wait for an answer in their middle.
//!
//! An old server asks while it works on a request; a modern client is asked by the *end* of its request, and brings the
//! answer with another. In between the call stays under way at its server (a [`Flight`], which runs in a task of its
//! own), and lies here under a random id that only the sealed state names. The request that brings the state back takes
//! the call out, once.
//!
//! What lies here is bounded by caller and by plugin, and in time: a person who does not answer within `limits.answer`
//! has given up. The server is answered so, the call is cancelled, and it is recorded as `INPUT_ABANDONED`. A call that
//! is lost, with its gateway or to these bounds, is never run again: it may have had effects.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use super::scope::{Asked, Scope};
use super::telemetry::CallRecord;
use crate::gateway::message::{Json, Object, RpcError};
use crate::gateway::upstream::UpstreamError;

/// How long more questions of a call are waited for once there is one.
const GATHER: Duration = Duration::from_millis(20);

/// How long after its last question a call that nobody came back for lies here: the server hears first that nobody
/// answers.
const AFTERWARDS: Duration = Duration::from_secs(2);

/// A call under way at a server of the old generation.
pub(crate) struct Flight {
    pub(crate) scope: Arc<Scope>,
    result: oneshot::Receiver<Result<Json, UpstreamError>>,
    asked: mpsc::Receiver<Asked>,
    /// Questions that its client has not answered yet, by the key it is asked under.
    waiting: Vec<(Box<str>, Asked)>,
    keys: u32,
    _task: AbortOnDrop,
}

struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What came of waiting for a flight.
pub(crate) enum Landed {
    /// Its end.
    Ended(Result<Json, UpstreamError>),
    /// Its client has to be asked.
    Asks,
}

impl Flight {
    /// A call that `asking` carries out, in a task of its own.
    pub(crate) fn start(
        scope: Arc<Scope>,
        asked: mpsc::Receiver<Asked>,
        asking: impl Future<Output = Result<Json, UpstreamError>> + Send + 'static,
    ) -> Self {
        let (ended, result) = oneshot::channel();
        let task = tokio::spawn(async move {
            // Ignore the error: the receiver was dropped.
            let _ = ended.send(asking.await);
        });
        let task = AbortOnDrop(task.abort_handle());
        Self { scope, result, asked, waiting: Vec::new(), keys: 0, _task: task }
    }

    /// Waits until it ends, asks, or has worked for longer than `patience`.
    pub(crate) async fn land(&mut self, patience: Duration) -> Landed {
        if !self.waiting.is_empty() {
            return Landed::Asks;
        }
        tokio::select! {
            biased;
            ended = &mut self.result => Landed::Ended(ended.unwrap_or(Err(UpstreamError::Broken))),
            Some(asked) = self.asked.recv() => {
                self.wait_for(asked);
                while let Ok(Some(more)) = timeout(GATHER, self.asked.recv()).await {
                    self.wait_for(more);
                }
                Landed::Asks
            }
            () = self.scope.overdue(patience) => Landed::Ended(Err(UpstreamError::TimedOut { after: patience })),
        }
    }

    fn wait_for(&mut self, asked: Asked) {
        self.keys += 1;
        self.waiting.push((format!("q{}", self.keys).into(), asked));
    }

    /// What its client is to be asked: keys, methods, parameters.
    pub(crate) fn questions(&self) -> impl Iterator<Item = (&str, &str, Option<&Json>)> {
        // One that its server withdrew is asked no more.
        let open = self.waiting.iter().filter(|(_, asked)| !asked.answer.is_closed());
        open.map(|(key, asked)| (&**key, &*asked.method, asked.params.as_ref()))
    }

    /// Hands the client's answers to the server. Keys that were not asked for are ignored; questions without an answer
    /// stay open.
    pub(crate) fn answer(&mut self, responses: &Object) {
        let waiting = std::mem::take(&mut self.waiting);
        for (key, asked) in waiting {
            match responses.get(&key) {
                // Ignore the error: the server withdrew the question.
                Some(answer) => drop(asked.answer.send(Ok(answer.clone()))),
                None if asked.answer.is_closed() => {}
                None => self.waiting.push((key, asked)),
            }
        }
    }

    /// Refuses what the client cannot be asked.
    pub(crate) fn refuse(&mut self) {
        for (_, asked) in self.waiting.drain(..) {
            let error = RpcError::internal("too many calls wait for an answer");
            // Ignore the error: the server withdrew the question.
            let _ = asked.answer.send(Err(error));
        }
    }
}

/// The calls that wait for an answer of their client.
pub(crate) struct Parks {
    parked: Mutex<HashMap<Uuid, Parked>>,
    of_caller: usize,
}

struct Parked {
    flight: Flight,
    owner: Arc<str>,
    plugin: Box<str>,
    /// The record of its being given up.
    abandoned: CallRecord,
}

impl Parks {
    pub(crate) fn new(of_caller: usize) -> Arc<Self> {
        Arc::new(Self { parked: Mutex::default(), of_caller })
    }

    /// Lays a call down under `id` for as long as `lifetime`, unless its caller or its plugin has as many as may be.
    pub(crate) fn park(
        self: &Arc<Self>,
        id: Uuid,
        flight: Flight,
        (owner, plugin, most): (&Arc<str>, &str, usize),
        abandoned: CallRecord,
        lifetime: Duration,
    ) -> Result<(), Flight> {
        {
            let mut parked = self.parked.lock();
            let of_caller = parked.values().filter(|parked| parked.owner == *owner).count();
            let of_plugin = parked.values().filter(|parked| *parked.plugin == *plugin).count();
            if of_caller >= self.of_caller || of_plugin >= most {
                abandoned.forget();
                return Err(flight);
            }
            let (owner, plugin) = (Arc::clone(owner), plugin.into());
            parked.insert(id, Parked { flight, owner, plugin, abandoned });
        }
        let parks = Arc::downgrade(self);
        tokio::spawn(expire(parks, id, lifetime + AFTERWARDS));
        Ok(())
    }

    /// Takes a call out, if it is there and the caller's.
    pub(crate) fn take(&self, id: Uuid, owner: &Arc<str>) -> Option<Flight> {
        let mut parked = self.parked.lock();
        if parked.get(&id)?.owner != *owner {
            return None;
        }
        let taken = parked.remove(&id)?;
        taken.abandoned.forget();
        Some(taken.flight)
    }

    /// Ends all of them.
    pub(crate) fn end_all(&self) {
        let all = std::mem::take(&mut *self.parked.lock());
        all.into_values().for_each(|parked| parked.abandoned.abandoned("INPUT_ABANDONED"));
    }
}

/// Gives up a call whose client did not come back.
async fn expire(parks: Weak<Parks>, id: Uuid, lifetime: Duration) {
    sleep(lifetime).await;
    let Some(parks) = parks.upgrade() else { return };
    let expired = parks.parked.lock().remove(&id);
    if let Some(parked) = expired {
        parked.abandoned.abandoned("INPUT_ABANDONED");
    }
}
