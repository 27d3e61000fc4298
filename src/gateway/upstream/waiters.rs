//! Who waits for an upstream's answers, by the id of the request.
//!
//! An answer may come on the request's own exchange, on another stream, or not at all; whoever waits is told once, by whoever is
//! first to know.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use tokio::sync::oneshot;

use super::fault::UpstreamFault;
use super::link::StreamNumber;

/// What comes of a request.
pub(super) type Outcome = Result<Value, UpstreamFault>;

/// See the module's doc.
#[derive(Default)]
pub(super) struct Waiters(Mutex<HashMap<i64, Waiter>>);

struct Waiter {
    answer: oneshot::Sender<Outcome>,
    /// On which of the client's streams its request came.
    stream: Option<StreamNumber>,
    /// The request's progress token.
    progress: Option<Value>,
}

impl Waiters {
    /// Somebody waits from now on.
    pub(super) fn wait(
        &self,
        id: i64,
        stream: Option<StreamNumber>,
        progress: Option<Value>,
    ) -> oneshot::Receiver<Outcome> {
        let (answer, answered) = oneshot::channel();
        self.all().insert(id, Waiter { answer, stream, progress });
        answered
    }

    /// Whether somebody waits.
    pub(super) fn waits(&self, id: i64) -> bool {
        self.all().contains_key(&id)
    }

    /// Nobody waits any more; whether somebody did.
    pub(super) fn forget(&self, id: i64) -> bool {
        self.all().remove(&id).is_some()
    }

    /// Tells whoever waits, if anyone does.
    pub(super) fn tell(&self, id: i64, outcome: Outcome) {
        let waiter = self.all().remove(&id);
        if let Some(waiter) = waiter {
            // Whoever does not wait any more does not mind.
            let _ = waiter.answer.send(outcome);
        }
    }

    /// Tells everyone that there will be no answer.
    pub(super) fn fail_all(&self, fault: &UpstreamFault) {
        let all = std::mem::take(&mut *self.all());
        for waiter in all.into_values() {
            let _ = waiter.answer.send(Err(fault.clone()));
        }
    }

    /// On which of the client's streams something belongs: that of the request whose response brought it, or whose
    /// progress it is, or of the only request there is.
    pub(super) fn stream(&self, origin: Option<i64>, progress: Option<&Value>) -> Option<StreamNumber> {
        let all = self.all();
        if let Some(waiter) = origin.and_then(|id| all.get(&id)) {
            return waiter.stream;
        }
        if let Some(token) = progress {
            return all.values().find(|waiter| waiter.progress.as_ref() == Some(token))?.stream;
        }
        let mut waiters = all.values();
        match (waiters.next(), waiters.next()) {
            (Some(only), None) => only.stream,
            _ => None,
        }
    }

    fn all(&self) -> MutexGuard<'_, HashMap<i64, Waiter>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
