//! One session with a server of the old generation, over either transport.
//!
//! A session belongs to one session of a client, to one call of a modern client ([`super::pool`]), or to the gateway
//! itself ([`super::monitor`], [`super::lists`]). It begins with `initialize`, the server's answer, and
//! `notifications/initialized`, and ends when the last handle to it is dropped: over HTTP with `DELETE`, a child
//! process with its input's end.
//!
//! Who stops waiting for an answer (a timeout, the client's cancellation) tells the server so, with
//! `notifications/cancelled`.

pub(super) mod http;
mod recovery;
mod stream;

use std::sync::Arc;
use std::time::Duration;

use tokio::process::Command;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use self::http::{HttpSession, HttpSessionParts};
pub(crate) use self::stream::StreamGuard;
use super::dispatch::Dispatch;
use super::http::HttpServer;
use super::pool::Subscribers;
use super::share::Share;
use super::stdio::{Logged, StdioConnection, StdioParts};
use super::{Ask, Upcalls, UpstreamError};
use crate::gateway::message::{Json, Notification, encode};
use crate::gateway::protocol::Generation;

/// One session with a server of the old generation.
pub(crate) struct UpstreamSession {
    dispatch: Arc<Dispatch>,
    transport: Transport,
    opened: Json,
    subscribers: Subscribers,
}

enum Transport {
    Http(Arc<HttpSession>),
    Stdio(StdioConnection),
}

/// How a server is reached.
pub(super) enum Reach<'a> {
    Http(&'a Arc<HttpServer>),
    Child(Command),
}

/// What a session needs besides that.
pub(super) struct SessionParts {
    pub(super) plugin: Arc<str>,
    /// The parameters of `initialize`.
    pub(super) initialize: Json,
    /// Who hears what belongs to no call, under a number to remove it by.
    pub(super) listener: (i64, Arc<dyn Upcalls>),
    pub(super) max_result_bytes: usize,
    pub(super) budget: Share,
    pub(super) logged: Arc<Logged>,
    /// How long opening may take.
    pub(super) open_timeout: Duration,
    /// How long to wait at first, and at most, before what failed is tried again.
    pub(super) retry: (Duration, Duration),
    /// Returned when the session has ended.
    pub(super) permit: Option<OwnedSemaphorePermit>,
    /// Where its tasks are waited for.
    pub(super) tasks: TaskTracker,
}

impl UpstreamSession {
    /// Opens a session.
    pub(super) async fn open(reach: Reach<'_>, parts: SessionParts) -> Result<Self, UpstreamError> {
        let after = parts.open_timeout;
        let opened = timeout(after, Self::open_unbounded(reach, parts)).await;
        opened.unwrap_or(Err(UpstreamError::TimedOut { after }))
    }

    async fn open_unbounded(reach: Reach<'_>, parts: SessionParts) -> Result<Self, UpstreamError> {
        let dispatch = Arc::new(Dispatch::new(Arc::clone(&parts.plugin), Generation::Old));
        dispatch.add_listener(parts.listener.0, parts.listener.1);
        match reach {
            Reach::Http(server) => {
                let parts = HttpSessionParts {
                    server: Arc::clone(server),
                    initialize: parts.initialize,
                    dispatch: Arc::clone(&dispatch),
                    retry: parts.retry,
                    permit: parts.permit,
                    tasks: parts.tasks,
                };
                let (session, opened) = HttpSession::open(parts).await?;
                version_of(&opened)?;
                Ok(Self { dispatch, transport: Transport::Http(session), opened, subscribers: Subscribers::default() })
            }
            Reach::Child(command) => {
                let of_connection = StdioParts {
                    plugin: parts.plugin,
                    max_result_bytes: parts.max_result_bytes,
                    budget: parts.budget,
                    dispatch: Arc::clone(&dispatch),
                    logged: parts.logged,
                    permit: parts.permit,
                    tasks: parts.tasks,
                };
                let connection = StdioConnection::start(command, of_connection)?;
                Self::initialize(connection, parts.initialize).await
            }
        }
    }

    /// Opens a session over a connection with a child that was not initialized yet.
    pub(super) async fn initialize(connection: StdioConnection, initialize: Json) -> Result<Self, UpstreamError> {
        // MCP does not allow to cancel `initialize`.
        let opened = connection.ask(Ask::own("initialize", Some(initialize)), false).await?;
        version_of(&opened)?;
        connection.notify(encode(None, "notifications/initialized", None)).await;
        let dispatch = Arc::clone(connection.dispatch());
        Ok(Self { dispatch, transport: Transport::Stdio(connection), opened, subscribers: Subscribers::default() })
    }

    /// What the server answered to `initialize`.
    pub(crate) fn opened(&self) -> &Json {
        &self.opened
    }

    /// What it answered the last time, and how often it was asked: more than once, if it forgot the session.
    pub(super) fn opened_last(&self) -> (u64, Json) {
        match &self.transport {
            Transport::Http(session) => (session.established().number, session.opened.read().clone()),
            Transport::Stdio(_) => (1, self.opened.clone()),
        }
    }

    /// Whether the server ended it.
    pub(crate) fn is_closed(&self) -> bool {
        match &self.transport {
            Transport::Http(session) => session.is_closed(),
            Transport::Stdio(connection) => connection.is_closed(),
        }
    }

    /// Waits until it has ended.
    pub(crate) async fn closed(&self) {
        match &self.transport {
            Transport::Http(session) => session.closed().await,
            Transport::Stdio(connection) => connection.closed().await,
        }
    }

    /// Waits until it has ended; whether it was the server that ended it. Only a child process can.
    pub(super) fn died(&self) -> Option<impl Future<Output = bool> + Send + use<>> {
        match &self.transport {
            Transport::Http(_) => None,
            Transport::Stdio(connection) => Some(connection.died()),
        }
    }

    /// Asks, and waits for the answer. Dropping the future cancels the request.
    pub(crate) async fn ask(&self, ask: Ask) -> Result<Json, UpstreamError> {
        match &self.transport {
            Transport::Http(session) => session.ask(ask).await,
            Transport::Stdio(connection) => connection.ask(ask, true).await,
        }
    }

    /// Notifies the server. One that does not take it is not notified again.
    pub(crate) async fn notify(&self, notification: Notification) {
        let message = encode(None, &notification.method, notification.params.as_ref());
        match &self.transport {
            Transport::Http(session) => session.notify(message).await,
            Transport::Stdio(connection) => connection.notify(message).await,
        }
    }

    /// While the guard lives, a stream is open for what belongs to no request, if the server has one.
    pub(crate) fn want_stream(&self) -> StreamGuard {
        match &self.transport {
            Transport::Http(session) => session.want_stream(),
            // A pipe has one way for everything.
            Transport::Stdio(_) => StreamGuard::none(),
        }
    }

    /// Waits a moment until the stream that a guard wants is open: what the server says there before that is lost.
    pub(crate) async fn stream_opened(&self) {
        match &self.transport {
            Transport::Http(session) => session.stream_opened().await,
            Transport::Stdio(_) => {}
        }
    }

    /// Whether the server said that a list of this session changed.
    pub(crate) fn lists_changed(&self) -> bool {
        self.dispatch.lists_changed()
    }

    pub(super) fn subscribers(&self) -> &Subscribers {
        &self.subscribers
    }

    /// Whether nothing is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.dispatch.is_idle()
    }

    /// Adds who hears what belongs to no call, under a number to remove it by.
    pub(super) fn add_listener(&self, number: i64, upcalls: Arc<dyn Upcalls>) {
        self.dispatch.add_listener(number, upcalls);
    }

    pub(super) fn remove_listener(&self, number: i64) {
        self.dispatch.remove_listener(number);
    }
}

impl Drop for UpstreamSession {
    fn drop(&mut self) {
        match &self.transport {
            Transport::Http(session) => session.close(),
            // It ends with its connection.
            Transport::Stdio(_) => {}
        }
    }
}

fn version_of(opened: &Json) -> Result<Box<str>, UpstreamError> {
    let version = opened.get("protocolVersion").ok_or(UpstreamError::NotMcp)?;
    version.as_text().map(Into::into).ok_or(UpstreamError::NotMcp)
}
