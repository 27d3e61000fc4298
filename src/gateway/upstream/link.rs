//! One MCP session with an upstream, over either transport.
//!
//! | module | holds |
//! |---|---|
//! | [`handshake`] | how the session is opened |
//! | [`keeper`] | the task that owns the transport: who waits for what, and where it belongs |
//!
//! A link belongs to one session of a client, or to the gateway itself ([`super::monitor`]), and is never shared: so what
//! an upstream asks for (sampling, elicitation, roots) or tells (logging, list changes) reaches the client whose
//! session it is, by construction, and an upstream's per-session state is nobody else's.
//!
//! A link gives each request an id and waits for its answer. Whoever stops waiting (a timeout, the client's cancellation)
//! tells the upstream so, with `notifications/cancelled`.

mod handshake;
mod keeper;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::HeaderMap;
use rmcp::model::{ErrorData, RequestId};
use rmcp::service::RoleClient;
use rmcp::transport::Transport;
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::envelope;
use super::fault::UpstreamFault;
use crate::gateway::message::Notification;
use keeper::Keeper;

/// Messages that may wait for the transport; more make their senders wait.
const QUEUE: usize = 64;

/// Which of the client's streams a request came on.
pub(crate) type StreamNumber = u64;

/// What an upstream asks of, and tells, the other end of a link.
#[async_trait]
pub(crate) trait Upcalls: Send + Sync + 'static {
    /// The upstream asks; `stream` is that of the request it asks for the sake of, where that can be told.
    async fn asked(
        &self,
        method: String,
        params: Option<Value>,
        stream: Option<StreamNumber>,
    ) -> Result<Value, ErrorData>;

    /// The upstream tells.
    async fn told(&self, notification: Notification, stream: Option<StreamNumber>);
}

/// A request to an upstream.
pub(crate) struct Ask {
    pub(crate) method: String,
    pub(crate) params: Option<Value>,
    /// Headers of this request alone, where the transport has headers.
    pub(crate) headers: HeaderMap,
    /// Where what comes in between belongs.
    pub(crate) stream: Option<StreamNumber>,
}

/// One MCP session with an upstream. It ends when this is dropped.
pub(crate) struct Link {
    outgoing: mpsc::Sender<Outgoing>,
    abandoned: mpsc::UnboundedSender<i64>,
    next: AtomicI64,
    opened: Value,
    closed: CancellationToken,
    stop: CancellationToken,
    _stop: DropGuard,
}

/// What is to go to the upstream.
enum Outgoing {
    Ask { id: i64, body: Bytes, ask: Ask, answer: oneshot::Sender<Result<Value, UpstreamFault>> },
    Tell { body: Bytes, notification: Notification },
    Answer { id: RequestId, outcome: Result<Value, ErrorData> },
}

/// What a link needs besides its transport.
pub(super) struct LinkParts {
    /// The parameters of `initialize`, as the client wrote them.
    pub(super) hello: Value,
    pub(super) upcalls: Arc<dyn Upcalls>,
    /// How long the handshake may take.
    pub(super) patience: Duration,
    /// Returned when the link has ended.
    pub(super) permit: Option<OwnedSemaphorePermit>,
    /// Where its task is waited for.
    pub(super) tasks: TaskTracker,
}

impl Link {
    /// Shakes hands over `transport` and keeps the session from then on.
    pub(super) async fn open<T>(mut transport: T, parts: LinkParts) -> Result<Self, UpstreamFault>
    where
        T: Transport<RoleClient> + 'static,
        UpstreamFault: From<T::Error>,
    {
        let opened =
            match tokio::time::timeout(parts.patience, handshake::shake_hands(&mut transport, &parts.hello)).await {
                Ok(Ok(opened)) => opened,
                Ok(Err(fault)) => {
                    end(transport).await;
                    return Err(fault);
                }
                Err(_) => {
                    end(transport).await;
                    return Err(UpstreamFault::TimedOut { after: parts.patience });
                }
            };
        let (outgoing, to_send) = mpsc::channel(QUEUE);
        // At most one a request that is under way, and those are bounded.
        let (abandoned, to_cancel) = mpsc::unbounded_channel();
        let (stop, closed) = (CancellationToken::new(), CancellationToken::new());
        let keeper = Keeper::new(parts.upcalls, outgoing.downgrade(), parts.permit);
        let (stopped, ended) = (stop.clone(), closed.clone().drop_guard());
        parts.tasks.spawn(async move { keeper.run(transport, (to_send, to_cancel), stopped, ended).await });
        let next = AtomicI64::new(handshake::ID + 1);
        Ok(Self { outgoing, abandoned, next, opened, closed, stop: stop.clone(), _stop: stop.drop_guard() })
    }

    /// What the upstream answered to `initialize`.
    pub(crate) fn opened(&self) -> &Value {
        &self.opened
    }

    /// Whether the upstream ended it.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }

    /// Waits until it has ended.
    pub(crate) async fn closed(&self) {
        self.closed.cancelled().await;
    }

    /// Whether, once it has ended, it was the upstream that ended it.
    pub(super) fn died(&self) -> impl Future<Output = bool> + Send + use<> {
        let (closed, stop) = (self.closed.clone(), self.stop.clone());
        async move {
            closed.cancelled().await;
            !stop.is_cancelled()
        }
    }

    /// Asks, and waits for the answer; dropping the future cancels the request.
    pub(crate) async fn ask(&self, ask: Ask) -> Result<Value, UpstreamFault> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let body = envelope::encode(Some(&RequestId::Number(id)), &ask.method, ask.params.as_ref())
            .map_err(|_| UpstreamFault::Broken)?;
        let (answer, answered) = oneshot::channel();
        self.outgoing.send(Outgoing::Ask { id, body, ask, answer }).await.map_err(|_| UpstreamFault::Broken)?;
        let mut waiting = Waiting { abandoned: &self.abandoned, id: Some(id) };
        let outcome = answered.await;
        waiting.id = None;
        outcome.unwrap_or(Err(UpstreamFault::Broken))
    }

    /// Tells, without waiting for more than a place in the queue.
    pub(crate) async fn tell(&self, notification: Notification) {
        let Ok(body) = envelope::encode(None, &notification.method, notification.params.as_ref()) else { return };
        // A link that has ended has nobody to tell.
        let _ = self.outgoing.send(Outgoing::Tell { body, notification }).await;
    }
}

/// Cancels its request when it is dropped before the answer is there.
struct Waiting<'a> {
    abandoned: &'a mpsc::UnboundedSender<i64>,
    id: Option<i64>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            // A link that has ended has nothing to cancel.
            let _ = self.abandoned.send(id);
        }
    }
}

async fn end<T: Transport<RoleClient>>(mut transport: T) {
    if transport.close().await.is_err() {
        tracing::debug!("an upstream's session did not end well");
    }
}
