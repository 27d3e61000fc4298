//! What a session sends to its client: event streams that can be resumed.
//!
//! Each request of the client has a stream of its own, numbered from 1, which ends with the response; stream 0 is the
//! one a client may open with `GET`, for all that belongs to no request. An event's id is `<index>` on stream 0 and
//! `<index>/<stream>` on another; indexes count from 1 on each, and 0 stands for "nothing received yet". A client whose
//! connection broke off says the last id it saw (`Last-Event-ID`), and gets what came after it.
//!
//! What is kept for that is bounded, per stream and per session, and what a client has not fetched a while after a
//! stream's end is dropped. A client that does not read is not waited for: its connection is ended, and it may resume.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rmcp::model::ServerJsonRpcMessage;
use rmcp::transport::streamable_http_server::session::ServerSseMessage;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::gateway::message::size;
use crate::gateway::upstream::StreamNumber;

/// The stream of all that belongs to no request.
pub(crate) const STANDALONE: StreamNumber = 0;

/// Events that may wait for a connection to take them.
const QUEUE: usize = 1_024;

/// Events, and their bytes, that are kept of one stream, for resuming.
const KEPT_EVENTS: usize = 256;
const KEPT_BYTES: u64 = 256 << 10;

/// Bytes of ended streams that are kept of one session, and how long.
const ENDED_BYTES: u64 = 256 << 10;
const ENDED_TIME: Duration = Duration::from_secs(30);

/// How long a client should wait before it resumes.
const RETRY: Duration = Duration::from_secs(1);

/// What a connection takes.
pub(super) type Events = mpsc::Receiver<ServerSseMessage>;

/// The streams of one session.
#[derive(Default)]
pub(super) struct Streams {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    last: StreamNumber,
    streams: BTreeMap<StreamNumber, Stream>,
    /// Those that have ended, in that order, and their bytes.
    ended: VecDeque<(Instant, StreamNumber)>,
    ended_bytes: u64,
}

#[derive(Default)]
struct Stream {
    events: VecDeque<Event>,
    bytes: u64,
    /// The index of the last event, and of the last that a connection took.
    last: u64,
    taken: u64,
    connection: Option<mpsc::Sender<ServerSseMessage>>,
    ended: bool,
}

struct Event {
    index: u64,
    bytes: u64,
    message: Arc<ServerJsonRpcMessage>,
}

impl Streams {
    /// A new stream for a request. `primed`: its first event says how it can be resumed.
    pub(super) fn open(&self, primed: bool) -> (StreamNumber, Events) {
        let mut inner = self.inner();
        inner.last += 1;
        let number = inner.last;
        let (connection, events) = mpsc::channel(QUEUE);
        if primed {
            // The queue is empty, and its other end is at hand.
            let _ = connection.try_send(ServerSseMessage::priming(id(number, 0), RETRY));
        }
        inner.streams.insert(number, Stream { connection: Some(connection), ..Stream::default() });
        (number, events)
    }

    /// Connects the standalone stream, with what no connection took yet; a connection it had before ends.
    pub(super) fn standalone(&self) -> Events {
        let taken = self.inner().streams.get(&STANDALONE).map_or(0, |stream| stream.taken);
        self.connect(STANDALONE, taken).unwrap_or_else(|| mpsc::channel(1).1)
    }

    /// Connects the stream that `last_event_id` is of again, from the event after it. `None`: there is no such stream,
    /// or no longer.
    pub(super) fn resume(&self, last_event_id: &str) -> Option<Events> {
        let (index, number) = match last_event_id.split_once('/') {
            Some((index, number)) => (index, number.parse().ok()?),
            None => (last_event_id, STANDALONE),
        };
        self.connect(number, index.parse().ok()?)
    }

    fn connect(&self, number: StreamNumber, after: u64) -> Option<Events> {
        let mut inner = self.inner();
        if number == STANDALONE {
            inner.streams.entry(STANDALONE).or_default();
        }
        let stream = inner.streams.get_mut(&number)?;
        let (connection, events) = mpsc::channel(QUEUE);
        for event in stream.events.iter().filter(|event| event.index > after) {
            // Fewer events are kept than the queue holds.
            let _ = connection.try_send(event.to_sse(number));
        }
        stream.taken = stream.last;
        stream.connection = (!stream.ended).then_some(connection);
        Some(events)
    }

    /// Sends on a stream; on the standalone one, where the stream is none or has ended.
    pub(super) fn send(&self, number: Option<StreamNumber>, message: ServerJsonRpcMessage) {
        let bytes = size(&message);
        let mut inner = self.inner();
        let number = number.filter(|number| inner.streams.get(number).is_some_and(|stream| !stream.ended));
        let number = number.unwrap_or(STANDALONE);
        inner.streams.entry(number).or_default().push(number, message, bytes);
    }

    /// Ends a request's stream, with its response unless the request was cancelled.
    pub(super) fn end(&self, number: StreamNumber, response: Option<(ServerJsonRpcMessage, u64)>) {
        let mut inner = self.inner();
        if let Some(stream) = inner.streams.get_mut(&number).filter(|stream| !stream.ended) {
            if let Some((message, bytes)) = response {
                stream.push(number, message, bytes);
            }
            stream.connection = None;
            stream.ended = true;
            let bytes = stream.bytes;
            inner.ended_bytes += bytes;
            inner.ended.push_back((Instant::now(), number));
        }
        inner.forget();
    }

    /// Drops what nobody came for.
    pub(super) fn sweep(&self) {
        self.inner().forget();
    }

    /// Whether the client has a connection for what belongs to no request, or waits for a response.
    pub(super) fn in_use(&self) -> bool {
        let open = |stream: &Stream| stream.connection.as_ref().is_some_and(|connection| !connection.is_closed());
        self.inner().streams.values().any(open)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Drops ended streams: the old ones, and the oldest while they are too large together.
    fn forget(&mut self) {
        while let Some((since, number)) = self.ended.front()
            && (self.ended_bytes > ENDED_BYTES || since.elapsed() >= ENDED_TIME)
        {
            self.ended_bytes -= self.streams.remove(number).map_or(0, |stream| stream.bytes);
            self.ended.pop_front();
        }
    }
}

impl Stream {
    fn push(&mut self, number: StreamNumber, message: ServerJsonRpcMessage, bytes: u64) {
        self.last += 1;
        let event = Event { index: self.last, bytes, message: Arc::new(message) };
        match self.connection.as_ref().map(|connection| connection.try_send(event.to_sse(number))) {
            Some(Ok(())) => self.taken = self.last,
            // The client went away, or does not read.
            Some(Err(_)) => self.connection = None,
            None => {}
        }
        self.bytes += bytes;
        self.events.push_back(event);
        // The newest stays, however large it is: it may be the response.
        while self.events.len() > 1 && (self.events.len() > KEPT_EVENTS || self.bytes > KEPT_BYTES) {
            self.bytes -= self.events.pop_front().map_or(0, |event| event.bytes);
        }
    }
}

impl Event {
    fn to_sse(&self, number: StreamNumber) -> ServerSseMessage {
        let mut event = ServerSseMessage::default();
        event.event_id = Some(id(number, self.index));
        event.message = Some(Arc::clone(&self.message));
        event
    }
}

fn id(number: StreamNumber, index: u64) -> String {
    if number == STANDALONE { index.to_string() } else { format!("{index}/{number}") }
}

#[cfg(test)]
mod tests {
    use rmcp::model::{CustomNotification, ServerJsonRpcMessage, ServerNotification};
    use serde_json::json;

    use super::{ENDED_BYTES, ENDED_TIME, Events, KEPT_EVENTS, Streams};

    fn note(n: usize) -> ServerJsonRpcMessage {
        let custom = CustomNotification::new("n", Some(json!({ "n": n })));
        ServerJsonRpcMessage::notification(ServerNotification::CustomNotification(custom))
    }

    /// The ids of what is there.
    fn ids(events: &mut Events) -> Vec<String> {
        std::iter::from_fn(|| events.try_recv().ok()).map(|event| event.event_id.unwrap_or_default()).collect()
    }

    #[test]
    fn a_request_has_its_own_stream_and_the_rest_goes_to_the_standalone_one() {
        let streams = Streams::default();
        let (one, mut events) = streams.open(true);
        let mut standalone = streams.standalone();
        streams.send(Some(one), note(1));
        streams.send(None, note(2));
        streams.end(one, Some((note(3), 1)));
        streams.send(Some(one), note(4));
        assert_eq!(ids(&mut events), ["0/1", "1/1", "2/1"]);
        assert!(events.is_closed());
        assert_eq!(ids(&mut standalone), ["1", "2"]);
    }

    #[test]
    fn a_stream_resumes_after_the_last_event_its_client_saw() {
        let streams = Streams::default();
        let (one, events) = streams.open(false);
        streams.send(Some(one), note(1));
        streams.send(Some(one), note(2));
        drop(events);
        streams.send(Some(one), note(3));
        let mut again = streams.resume("1/1").unwrap();
        streams.end(one, Some((note(4), 1)));
        assert_eq!(ids(&mut again), ["2/1", "3/1", "4/1"]);
        assert_eq!(ids(&mut streams.resume("3/1").unwrap()), ["4/1"]);
        for unknown in ["1/2", "x", "1/x", "-1"] {
            assert!(streams.resume(unknown).is_none(), "{unknown}");
        }
    }

    #[test]
    fn what_is_told_before_a_client_listens_waits_for_it_and_is_told_once() {
        let streams = Streams::default();
        streams.send(None, note(1));
        let mut first = streams.standalone();
        streams.send(None, note(2));
        assert_eq!(ids(&mut first), ["1", "2"]);
        drop(first);
        streams.send(None, note(3));
        assert_eq!(ids(&mut streams.standalone()), ["3"]);
        assert_eq!(ids(&mut streams.resume("1").unwrap()), ["2", "3"], "unless the client says what it missed");
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let streams = Streams::default();
        let (one, mut events) = streams.open(false);
        for n in 0..5_000 {
            streams.send(Some(one), note(n));
        }
        assert!(ids(&mut events).len() < 5_000, "a client that does not read is cut off");
        assert_eq!(ids(&mut streams.resume("0/1").unwrap()).len(), KEPT_EVENTS);
    }

    #[test]
    fn of_ended_streams_the_oldest_go_when_they_are_too_large_together() {
        let streams = Streams::default();
        for number in 1..=4 {
            assert_eq!(streams.open(false).0, number);
            streams.end(number, Some((note(1), ENDED_BYTES / 2)));
        }
        assert!(streams.resume("0/2").is_none());
        assert_eq!(ids(&mut streams.resume("0/3").unwrap()), ["1/3"]);
        assert_eq!(ids(&mut streams.resume("0/4").unwrap()), ["1/4"]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_ended_stream_is_dropped_after_a_while() {
        let streams = Streams::default();
        let (one, _events) = streams.open(false);
        streams.end(one, Some((note(1), 1)));
        assert!(streams.resume("0/1").is_some());
        tokio::time::advance(ENDED_TIME).await;
        streams.sweep();
        assert!(streams.resume("0/1").is_none());
    }
}
