//! The stream of a session over HTTP for what belongs to no request (`GET`).
//!
//! It is open only while somebody wants it: the client has one itself, or a call is under way in which the server may
//! ask. What a server says on it before it is open is lost, so a request waits a moment for it. A server that has none
//! says so once (405), and is not asked again. A stream that ends is opened again after the wait the server asks for,
//! growing while it fails; with `Last-Event-ID`, where there is one.

use std::sync::{Arc, Weak};
use std::time::Duration;

use http::HeaderValue;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::http::{HttpSession, RESUME_AFTER};
use crate::gateway::protocol::LAST_EVENT_HEADER;
use crate::gateway::upstream::dispatch::Outbox;
use crate::gateway::upstream::http::{EventStream, ExchangeError, Failure};

/// The longest wait that a server may ask for.
const MAX_RETRY: Duration = Duration::from_secs(60);
const MIN_RETRY: Duration = Duration::from_millis(50);

/// How long a request waits for the stream to be open.
const OPEN_TIMEOUT: Duration = Duration::from_secs(1);

/// How many want the stream, and what keeps it.
#[derive(Default)]
pub(super) struct Wanted {
    count: usize,
    running: Option<CancellationToken>,
    /// The server has no such stream.
    is_refused: bool,
}

impl Wanted {
    pub(super) fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            running.cancel();
        }
    }
}

/// While it lives, the stream is open, if the server has one.
pub(crate) struct StreamGuard(Option<Weak<HttpSession>>);

impl StreamGuard {
    pub(super) fn none() -> Self {
        Self(None)
    }
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        let Some(session) = self.0.take().and_then(|session| session.upgrade()) else { return };
        let mut wanted = session.wanted.lock();
        wanted.count = wanted.count.saturating_sub(1);
        if wanted.count == 0 {
            wanted.stop();
        }
    }
}

impl HttpSession {
    pub(super) fn want_stream(self: &Arc<Self>) -> StreamGuard {
        let mut wanted = self.wanted.lock();
        wanted.count += 1;
        if wanted.running.is_none() && !wanted.is_refused && !self.is_closed() {
            let stop = self.closed.child_token();
            wanted.running = Some(stop.clone());
            self.is_streaming.send_replace(false);
            let session = Arc::clone(self);
            self.tasks.spawn(async move {
                tokio::select! {
                    // One that was stopped says nothing of the next.
                    biased;
                    () = stop.cancelled() => {}
                    () = session.keep_stream() => {}
                }
            });
        }
        StreamGuard(Some(Arc::downgrade(self)))
    }

    /// Waits a moment until the stream that somebody wants is open, or the server says that it has none. One that takes
    /// longer is not waited for again for a while.
    pub(super) async fn stream_opened(&self) {
        if self.wanted.lock().is_refused || self.server.streams_slowly() {
            return;
        }
        let mut is_streaming = self.is_streaming.subscribe();
        if timeout(OPEN_TIMEOUT, is_streaming.wait_for(|is_streaming| *is_streaming)).await.is_err() {
            self.server.note_slow_stream();
        }
    }

    /// Keeps the stream open; returns when the server has none.
    async fn keep_stream(self: &Arc<Self>) {
        let outbox: Arc<dyn Outbox> = Arc::clone(self) as Arc<dyn Outbox>;
        let (mut last_event, mut after): (Option<HeaderValue>, _) = (None, RESUME_AFTER);
        let mut failed = 0_u32;
        loop {
            let established = self.established();
            let mut headers = established.headers.clone();
            if let Some(id) = &last_event {
                headers.insert(LAST_EVENT_HEADER, id.clone());
            }
            match self.server.get(headers).await {
                Ok(mut events) => {
                    failed = 0;
                    self.is_streaming.send_replace(true);
                    self.read(&mut events, &mut last_event, &mut after, &outbox).await;
                    self.is_streaming.send_replace(false);
                }
                Err(error) => {
                    failed += 1;
                    if has_no_stream(&error) {
                        self.wanted.lock().is_refused = true;
                        // Nobody waits for it any more.
                        self.is_streaming.send_replace(true);
                        return;
                    }
                    // What a new session has is not what the last one had.
                    if self.forgotten(&established, &Failure::Exchange(error)).await.is_some()
                        && self.reopen(established.number).await.is_ok()
                    {
                        last_event = None;
                    }
                }
            }
            let wait = after.saturating_mul(1_u32.checked_shl(failed).unwrap_or(u32::MAX)).min(self.retry.1.max(after));
            sleep(wait).await;
        }
    }

    async fn read(
        self: &Arc<Self>,
        events: &mut EventStream,
        last_event: &mut Option<HeaderValue>,
        after: &mut Duration,
        outbox: &Arc<dyn Outbox>,
    ) {
        while let Some(arrived) = events.next().await {
            *after = arrived.retry.unwrap_or(*after).clamp(MIN_RETRY, MAX_RETRY);
            if let Some(id) = arrived.id.and_then(|id| HeaderValue::from_str(&id).ok()) {
                *last_event = Some(id);
            }
            match arrived.messages {
                Ok(messages) => {
                    for message in messages {
                        self.dispatch.receive(message, None, outbox).await;
                    }
                }
                Err(ExchangeError::Upstream(error)) => {
                    tracing::warn!(
                        plugin = &**self.server.plugin(),
                        code = error.code(),
                        "a message of the server is dropped"
                    );
                    // The stream is read anew from its last event.
                    return;
                }
                Err(ExchangeError::TooLarge { .. }) => {
                    tracing::warn!(
                        plugin = &**self.server.plugin(),
                        "a message of the server is longer than max_result_bytes; it is dropped"
                    );
                }
                Err(_) => tracing::debug!(plugin = &**self.server.plugin(), "an event is no MCP message"),
            }
        }
    }
}

/// Whether a server says that it has no such stream: 405 by the specification, other refusals in the wild.
fn has_no_stream(error: &ExchangeError) -> bool {
    match error {
        ExchangeError::Refused(refusal) => matches!(refusal.status, 405 | 406 | 501 | 300..=399),
        ExchangeError::NotMcp => true,
        ExchangeError::Unreachable
        | ExchangeError::Broken
        | ExchangeError::TooLarge { .. }
        | ExchangeError::Upstream(_) => false,
    }
}
