//! The MCP servers behind the gateway, as a client of theirs, of both generations of the protocol.
//!
//! | module | holds |
//! |---|---|
//! | [`plugin`] | one plugin: how it is reached, within which limits; what is known of it |
//! | [`monitor`] | the gateway's own session with each plugin: is it up, what does it offer, did that change |
//! | [`own`] | what it reads by itself: lists, for clients of any capabilities |
//! | [`probe`], [`eras`] | which generation a server speaks: what is evidence, and how long it counts |
//! | [`session`] | one session with a server of the old generation, over either transport |
//! | [`requests`], [`modern`], [`listen`] | which generation is spoken; requests and subscriptions of the modern one |
//! | [`pool`] | sessions with old servers for modern clients, which have none of their own |
//! | [`lists`], [`paging`] | the lists of a plugin that are kept, and how they are read |
//! | [`dispatch`] | what a server sends: answers to who waits, questions and notifications to whose they are |
//! | [`http`] | Streamable HTTP: exchanges, event streams, headers |
//! | [`stdio`] | child processes: their pipes, their process groups |
//! | [`scan`], [`backoff`], [`share`] | where a JSON text ends; when to try again what has failed; memory for what is read |
//! | [`error`] | why there is no result |
//!
//! Messages are bytes on their way through here: an answer is handed on as the server wrote it. What the gateway says
//! by itself (handshakes, probes, lists, pings) goes the same way.
//!
//! **A session of an old client has its own session with each old plugin it uses.** That alone is exact: an MCP server
//! keeps state per session (subscriptions, log level, what a tool remembers), offers by the client's capabilities, and
//! asks its client back; shared, one caller's state would be another's. For a plugin that is a child process it means a
//! child per session, as MCP has it. A modern request needs no session: over HTTP each is an exchange of its own, and a
//! child that speaks the modern generation serves all requests of one caller.
//!
//! **Everything a server decides is bounded**: the bytes of a message, an event and a list, the pages of a list, the
//! questions it asks at once, the time a handshake, a probe and an end may take. No byte a server sends ends the
//! gateway, and none of it is in a log or an error, except the error that is the caller's answer (invariant I6).

mod backoff;
mod dispatch;
mod eras;
mod error;
mod http;
mod listen;
mod lists;
mod modern;
mod monitor;
mod own;
mod paging;
mod plugin;
mod pool;
mod probe;
mod requests;
mod scan;
mod session;
mod share;
mod stdio;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use ::http::HeaderMap;
use async_trait::async_trait;

use super::message::{Json, Notification, Request, RpcError};
use super::pass::Pass;

pub(crate) use error::UpstreamError;
pub(crate) use listen::Listening;
pub(crate) use lists::{Item, ListKind, Listing, View};
pub(crate) use monitor::Listeners;
pub(crate) use plugin::{Lifecycle, Offer, Plugin, Step, http_client};
pub(crate) use pool::{Lease, PoolKey};
pub(crate) use session::{StreamGuard, UpstreamSession};

/// Messages of one array that a server may send.
const MAX_BATCH: usize = 1_024;

/// A number for a request to an upstream: its id on the wire, and its progress token. Unique in the process, so that no
/// two requests can be taken for one another wherever they travel together.
pub(crate) fn next_id() -> i64 {
    static NEXT: AtomicI64 = AtomicI64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// What an upstream asks and notifies: one for each call, one for each session.
#[async_trait]
pub(crate) trait Upcalls: Send + Sync + 'static {
    /// The upstream asks; servers of the old generation only. The future is dropped when the question is withdrawn.
    async fn asked(&self, request: Request) -> Result<Json, RpcError>;

    /// The upstream notifies. What it sends before its answer is handed on before the answer is.
    async fn notified(&self, notification: Notification);
}

/// A request to an upstream.
pub(crate) struct Ask {
    /// From [`next_id`].
    pub(crate) id: i64,
    pub(crate) method: Box<str>,
    /// As they go out.
    pub(crate) params: Option<Json>,
    /// Headers of this request alone, where the transport has headers: the trace context.
    pub(crate) headers: HeaderMap,
    /// Why it may be sent.
    pub(crate) pass: Pass,
    /// What comes for this request's sake.
    pub(crate) upcalls: Arc<dyn Upcalls>,
}

impl Ask {
    /// A request of the gateway's own, during which nothing may be asked.
    fn own(method: &str, params: Option<Json>) -> Self {
        let (id, headers, upcalls) = (next_id(), HeaderMap::new(), Arc::new(Refuses));
        Self { id, method: method.into(), params, headers, pass: Pass::own(), upcalls }
    }
}

/// Answers no question and hears nothing: for requests of the gateway's own.
struct Refuses;

#[async_trait]
impl Upcalls for Refuses {
    async fn asked(&self, _: Request) -> Result<Json, RpcError> {
        Err(RpcError::method_not_found("the gateway itself offers no capabilities"))
    }

    async fn notified(&self, _: Notification) {}
}
