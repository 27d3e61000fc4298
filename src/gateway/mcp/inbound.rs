//! What came with an HTTP request, for whoever handles its message.
//!
//! The SDK's HTTP service hands its session manager a message in its own model, and for some messages nothing else. A
//! relay needs the message as it was written, who sent it, and when. Both run in one task, so a task-local carries it.

use std::net::SocketAddr;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use http::{HeaderMap, Version};

use crate::gateway::message::Message;
use crate::model::CallerName;

tokio::task_local! {
    static INBOUND: Arc<Inbound>;
}

/// What came with an HTTP request.
pub(crate) struct Inbound {
    /// The message of a `POST`.
    pub(crate) message: Option<Message>,
    /// Who sent it.
    pub(crate) caller: CallerName,
    /// When it was there, before anything was done with it.
    pub(crate) arrived_at: DateTime<Utc>,
    /// How large the message is.
    pub(crate) bytes: u64,
    /// They may hold secrets: nothing but the trace context is read of them.
    pub(crate) headers: HeaderMap,
    pub(crate) http_version: Version,
    pub(crate) client: Option<SocketAddr>,
}

impl Inbound {
    /// Runs `handling` with this at hand.
    pub(super) async fn during<T>(self, handling: impl Future<Output = T>) -> T {
        INBOUND.scope(Arc::new(self), handling).await
    }

    /// That of the request being handled. `None` outside of any.
    pub(super) fn current() -> Option<Arc<Self>> {
        INBOUND.try_with(Arc::clone).ok()
    }
}
