//! A connection to a child process: one JSON-RPC message a line, on its standard input and output.
//!
//! Two tasks keep it: one writes whole lines, so that who stops waiting leaves no half of one; one reads, hands on what
//! it read in its order, and ends the process. It ends when this is dropped, when the output ends, or when the child
//! itself has ended (what its launcher left behind could hold the pipe open for ever).

mod framing;
mod process;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{ChildStdin, ChildStdout, Command};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use self::framing::{Frame, Framing, Oddity};
use self::process::Process;
use super::dispatch::{Dispatch, Outbox, cancelled};
use super::http::ENVELOPE_BYTES;
use super::scan::Scanner;
use super::share::{Reading, Share};
use super::{Ask, MAX_BATCH, UpstreamError};
use crate::gateway::message::{Id, Message, encode};

/// Messages that may wait for the child to read them; more make their senders wait.
const QUEUE: usize = 8;

/// How much is read at once.
const CHUNK: usize = 64 * 1024;

/// How long the output of a child that has ended is still read.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(500);

/// How long a message without an answer may take to be written.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection to a child process.
pub(super) struct StdioConnection {
    dispatch: Arc<Dispatch>,
    outbox: Arc<dyn Outbox>,
    lines: mpsc::Sender<Bytes>,
    closed: CancellationToken,
    stop: CancellationToken,
    _stop: DropGuard,
}

/// What a connection needs besides its program.
pub(super) struct StdioParts {
    pub(super) plugin: Arc<str>,
    pub(super) max_result_bytes: usize,
    pub(super) budget: Share,
    pub(super) dispatch: Arc<Dispatch>,
    pub(super) logged: Arc<Logged>,
    /// Returned when the process has ended.
    pub(super) permit: Option<OwnedSemaphorePermit>,
    /// Where its task is waited for.
    pub(super) tasks: TaskTracker,
}

/// What the log said of a plugin's programs already. They are many, and alike.
#[derive(Default)]
pub(super) struct Logged(Mutex<Vec<Oddity>>);

struct Lines(mpsc::Sender<Bytes>);

#[async_trait]
impl Outbox for Lines {
    async fn send(&self, message: Bytes) {
        // Ignore the error: a child that has ended needs no answer.
        let _ = timeout(SEND_TIMEOUT, self.0.send(line(&message))).await;
    }
}

impl StdioConnection {
    pub(super) fn start(command: Command, parts: StdioParts) -> Result<Self, UpstreamError> {
        let (process, input, output) = Process::start(command)?;
        let (lines, to_write) = mpsc::channel(QUEUE);
        let (stop, closed) = (CancellationToken::new(), CancellationToken::new());
        let outbox: Arc<dyn Outbox> = Arc::new(Lines(lines.clone()));
        let broken = CancellationToken::new();
        let writer = tokio::spawn(write(input, to_write, broken.clone().drop_guard())).abort_handle();
        let reader = Reader {
            process,
            output,
            framing: Framing::new(parts.max_result_bytes.saturating_add(ENVELOPE_BYTES)),
            plugin: parts.plugin,
            limit: parts.max_result_bytes,
            logged: parts.logged,
            reading: parts.budget.reading(),
            budget: parts.budget,
            dispatch: Arc::clone(&parts.dispatch),
            outbox: Arc::downgrade(&outbox),
            writer,
            broken,
            stop: stop.clone(),
            closed: closed.clone(),
            permit: parts.permit,
        };
        parts.tasks.spawn(reader.run());
        let guard = stop.clone().drop_guard();
        Ok(Self { dispatch: parts.dispatch, outbox, lines, closed, stop, _stop: guard })
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }

    /// Waits until it has ended.
    pub(super) fn closed(&self) -> impl Future<Output = ()> + Send + use<> {
        self.closed.clone().cancelled_owned()
    }

    /// Waits until it has ended; whether it was the child that ended it.
    pub(super) fn died(&self) -> impl Future<Output = bool> + Send + use<> {
        let (closed, stop) = (self.closed.clone(), self.stop.clone());
        async move {
            closed.cancelled().await;
            !stop.is_cancelled()
        }
    }

    pub(super) fn dispatch(&self) -> &Arc<Dispatch> {
        &self.dispatch
    }

    /// Asks, and waits for the answer. Dropping the future cancels the request, unless it is one that must not be.
    pub(super) async fn ask(&self, ask: Ask, may_cancel: bool) -> Result<crate::gateway::message::Json, UpstreamError> {
        let body = encode(Some(&Id::Number(ask.id)), &ask.method, ask.params.as_ref());
        let answered = self.dispatch.wait(ask.id, &ask.method, ask.upcalls);
        let mut waiting = Waiting { connection: self, id: ask.id, sent: false };
        if self.is_closed() || self.lines.send(line(&body)).await.is_err() {
            return Err(UpstreamError::Broken);
        }
        waiting.sent = may_cancel;
        // A request that began just before the end is ended by nothing else.
        tokio::select! {
            biased;
            outcome = answered => outcome.unwrap_or(Err(UpstreamError::Broken)),
            () = self.closed.cancelled() => Err(UpstreamError::Broken),
        }
    }

    /// Notifies the child, without waiting for more than that the child reads.
    pub(super) async fn notify(&self, message: Bytes) {
        self.outbox.send(message).await;
    }
}

/// Forgets its request when it is dropped, and cancels it if it was sent and is not answered.
struct Waiting<'a> {
    connection: &'a StdioConnection,
    id: i64,
    sent: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let waited = self.connection.dispatch.forget(self.id);
        if waited && self.sent && !self.connection.is_closed() {
            let message = cancelled(self.id);
            if let Err(mpsc::error::TrySendError::Full(_)) = self.connection.lines.try_send(line(&message))
                && let Ok(runtime) = tokio::runtime::Handle::try_current()
            {
                let outbox = Arc::clone(&self.connection.outbox);
                runtime.spawn(async move { outbox.send(message).await });
            }
        }
    }
}

/// A message as a line: without the line breaks that may stand between its tokens.
fn line(message: &Bytes) -> Bytes {
    let mut line = BytesMut::with_capacity(message.len() + 1);
    if message.iter().any(|byte| matches!(byte, b'\n' | b'\r')) {
        line.extend(message.iter().copied().filter(|byte| !matches!(byte, b'\n' | b'\r')));
    } else {
        line.extend_from_slice(message);
    }
    line.extend_from_slice(b"\n");
    line.freeze()
}

/// Writes lines until there are no more, or the child does not read any more.
async fn write(mut input: ChildStdin, mut lines: mpsc::Receiver<Bytes>, _broken: DropGuard) {
    while let Some(line) = lines.recv().await {
        if input.write_all(&line).await.is_err() || input.flush().await.is_err() {
            return;
        }
    }
}

/// The task that reads, and that ends the process.
struct Reader {
    process: Process,
    output: ChildStdout,
    framing: Framing,
    plugin: Arc<str>,
    limit: usize,
    logged: Arc<Logged>,
    budget: Share,
    reading: Reading,
    dispatch: Arc<Dispatch>,
    /// For answers to questions. Weak: the connection says how long its writer lives.
    outbox: std::sync::Weak<dyn Outbox>,
    writer: AbortHandle,
    broken: CancellationToken,
    stop: CancellationToken,
    closed: CancellationToken,
    permit: Option<OwnedSemaphorePermit>,
}

impl Reader {
    async fn run(mut self) {
        self.read().await;
        self.framing.finish();
        self.log_oddities();
        let stop = self.stop.clone();
        tokio::select! {
            () = self.deliver() => {}
            () = stop.cancelled() => {}
        }
        self.closed.cancel();
        self.dispatch.end(&UpstreamError::Broken);
        // Drops the input, which tells the child to end.
        self.writer.abort();
        drop(self.output);
        self.process.end().await;
        drop(self.permit);
    }

    /// Reads until the output ends, or it is to be read no more.
    async fn read(&mut self) {
        let mut chunk = vec![0; CHUNK];
        let mut ended: Option<Instant> = None;
        loop {
            let until = ended.unwrap_or_else(|| Instant::now() + Duration::from_secs(3_600));
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = self.broken.cancelled() => return,
                () = sleep_until(until), if ended.is_some() => return,
                status = self.process.exited(), if ended.is_none() => {
                    let status = status.and_then(|status| status.code());
                    tracing::warn!(plugin = &*self.plugin, status, "the plugin's program ended by itself");
                    ended = Some(Instant::now() + DRAIN_TIMEOUT);
                }
                read = self.output.read(&mut chunk) => {
                    let Ok(length @ 1..) = read else { return };
                    self.framing.feed(chunk.get(..length).unwrap_or_default());
                    self.log_oddities();
                    let stop = self.stop.clone();
                    tokio::select! {
                        () = self.deliver() => {}
                        () = stop.cancelled() => return,
                    }
                    if self.reading.has(self.framing.held()).is_err() {
                        self.framing.give_up();
                    }
                }
            }
        }
    }

    fn log_oddities(&mut self) {
        for oddity in self.framing.take_oddities() {
            let mut logged = self.logged.0.lock();
            if !logged.contains(&oddity) {
                tracing::warn!(plugin = &*self.plugin, "{}", oddity.sentence());
                logged.push(oddity);
            }
        }
    }

    /// Hands on what was read, in its order.
    async fn deliver(&mut self) {
        while let Some(frame) = self.framing.next() {
            match frame {
                Frame::TooLong { id } => {
                    let error = UpstreamError::TooLarge { limit: self.limit as u64 };
                    if let Some(id) = id {
                        self.dispatch.settle(id, Err(error));
                    }
                }
                Frame::Object(text) => {
                    // Whose answer it is, for when there is no memory for it.
                    match self.budget.charge(text.len()) {
                        Ok(charge) => self.deliver_object(&charge.hold(text.into())).await,
                        Err(error) => {
                            let mut scanner = Scanner::default();
                            scanner.feed(&text);
                            if let Some(id) = scanner.id() {
                                self.dispatch.settle(id, Err(error));
                            }
                        }
                    }
                }
            }
        }
    }

    async fn deliver_object(&mut self, text: &Bytes) {
        let Some(outbox) = self.outbox.upgrade() else { return };
        match Message::parse_batch(text, MAX_BATCH) {
            Ok(Some(messages)) => {
                for message in messages.into_iter().flatten() {
                    self.dispatch.receive(message, None, &outbox).await;
                }
            }
            Ok(None) => match Message::parse(text) {
                Ok(message) => self.dispatch.receive(message, None, &outbox).await,
                Err(_) => self.framing.note_chatter(),
            },
            Err(_) => self.framing.note_chatter(),
        }
        self.log_oddities();
    }
}

#[cfg(test)]
mod tests;
