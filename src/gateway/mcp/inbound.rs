//! What came with an HTTP request, for whoever handles its message.
//!
//! The SDK's HTTP service hands its session manager a message in its own model, and for some messages nothing else. A
//! relay needs the message as it was written, who sent it, and when. Both run in one task, so a task-local carries it.

use std::sync::{Arc, Mutex, PoisonError};

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::gateway::identity::Caller;
use crate::gateway::message::Message;
use crate::gateway::traces::RequestSpans;

tokio::task_local! {
    static INBOUND: Arc<Inbound>;
}

/// What came with an HTTP request.
pub(crate) struct Inbound {
    /// The message of a `POST`.
    pub(crate) message: Option<Message>,
    /// Who sent it.
    pub(crate) caller: Caller,
    /// When it was there, before anything was done with it.
    pub(crate) arrived_at: DateTime<Utc>,
    /// How large the message is.
    pub(crate) bytes: u64,
    /// The gateway's own id of it: in the answer's headers, and in all that is told of it.
    pub(crate) request_id: Arc<str>,
    /// The id of the call, where it is one.
    pub(crate) invocation_id: Uuid,
    /// The spans of a JSON-RPC request, for whoever answers it.
    pub(crate) spans: Mutex<Option<RequestSpans>>,
}

impl Inbound {
    /// Runs `handling` with this at hand.
    pub(super) async fn during<T>(self, handling: impl Future<Output = T>) -> T {
        INBOUND.scope(Arc::new(self), handling).await
    }

    /// Whether the message is a request, so that there is an answer to it.
    pub(super) fn is_request(&self) -> bool {
        matches!(self.message, Some(Message::Request(_)))
    }

    /// The request's spans; only the first who asks gets them.
    pub(super) fn take_spans(&self) -> Option<RequestSpans> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// That of the request being handled. `None` outside of any.
    pub(super) fn current() -> Option<Arc<Self>> {
        INBOUND.try_with(Arc::clone).ok()
    }
}
