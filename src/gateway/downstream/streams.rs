//! What a session sends to its client: event streams that can be resumed.
//!
//! Each request of the client has a stream of its own, numbered from 1, which ends with the response; stream 0 is the
//! one a client may open with `GET`, for all that belongs to no request. An event's id is `<index>` on stream 0 and
//! `<index>/<stream>` on another; indexes count from 1 on each, and 0 stands for "nothing received yet". A client whose
//! connection broke off says the last id it saw (`Last-Event-ID`), and gets what came after it.
//!
//! What is kept for that is bounded, by stream, by session and, with all else that waits, by the gateway's memory
//! budget; what a client has not fetched a while after a stream's end is dropped. A client that does not read is not
//! waited for: its connection is ended, and it may resume.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// The number of a stream.
pub(super) type StreamNumber = u64;

/// The stream of all that belongs to no request.
pub(super) const STANDALONE: StreamNumber = 0;

/// Events that may wait for a connection to take them.
const QUEUE: usize = 1_024;

/// Events, and their bytes, that are kept of one stream, for resuming.
const KEPT_EVENTS: usize = 256;
const KEPT_BYTES: usize = 256 << 10;

/// Bytes of ended streams that are kept of one session, and how long.
const ENDED_BYTES: usize = 256 << 10;
const ENDED_TIME: Duration = Duration::from_secs(30);

/// How long a client should wait before it resumes, in milliseconds.
const RETRY_MS: u64 = 1_000;

/// One event as a connection takes it.
#[derive(Debug, Clone)]
pub(super) struct Event {
    pub(super) id: String,
    /// A message on one line; empty for an event that only says how the stream can be resumed.
    pub(super) data: Bytes,
    pub(super) retry_ms: Option<u64>,
    /// Whether it is the response, the last of its stream.
    pub(super) is_last: bool,
}

/// What a connection takes.
pub(super) type Events = mpsc::Receiver<Event>;

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
    ended_bytes: usize,
}

#[derive(Default)]
struct Stream {
    events: VecDeque<Kept>,
    bytes: usize,
    /// The index of the last event, and of the last that a connection took.
    last: u64,
    taken: u64,
    connection: Option<mpsc::Sender<Event>>,
    /// Since when no connection takes its events.
    alone: Option<Instant>,
    ended: bool,
    /// Its client takes one JSON text for an answer, and no events.
    json_only: bool,
}

struct Kept {
    index: u64,
    data: Bytes,
    is_last: bool,
}

impl Streams {
    /// A new stream for a request. `json_only`: nothing but the response can be sent on it.
    pub(super) fn open(&self, json_only: bool) -> (StreamNumber, Events) {
        let mut inner = self.inner.lock();
        inner.last += 1;
        let number = inner.last;
        let (connection, events) = mpsc::channel(QUEUE);
        inner.streams.insert(number, Stream { connection: Some(connection), json_only, ..Stream::default() });
        (number, events)
    }

    /// An event that says how a new stream can be resumed.
    pub(super) fn priming(number: StreamNumber) -> Event {
        Event { id: id(number, 0), data: Bytes::new(), retry_ms: Some(RETRY_MS), is_last: false }
    }

    /// Connects the standalone stream, with what no connection took yet; a connection it had before ends.
    pub(super) fn standalone(&self) -> Events {
        let taken = self.inner.lock().streams.get(&STANDALONE).map_or(0, |stream| stream.taken);
        self.connect(STANDALONE, taken).unwrap_or_else(|| mpsc::channel(1).1)
    }

    /// Connects the stream that `last_event_id` is of again, from the event after it. `None`: there is no such stream,
    /// or no longer.
    pub(super) fn resume(&self, last_event_id: &str) -> Option<(StreamNumber, Events)> {
        let (index, number) = match last_event_id.split_once('/') {
            Some((index, number)) => (index, number.parse().ok()?),
            None => (last_event_id, STANDALONE),
        };
        Some((number, self.connect(number, index.parse().ok()?)?))
    }

    fn connect(&self, number: StreamNumber, after: u64) -> Option<Events> {
        let mut inner = self.inner.lock();
        if number == STANDALONE {
            inner.streams.entry(STANDALONE).or_default();
        }
        let stream = inner.streams.get_mut(&number)?;
        let (connection, events) = mpsc::channel(QUEUE);
        for kept in stream.events.iter().filter(|kept| kept.index > after) {
            // Fewer events are kept than the queue holds.
            let _ = connection.try_send(kept.event(number));
        }
        stream.taken = stream.last;
        stream.connection = (!stream.ended).then_some(connection);
        stream.alone = None;
        Some(events)
    }

    /// Sends on a stream; on the standalone one, where there is no such stream, it has ended, or takes no events.
    /// Whether anybody may come to see it: a stream that takes no events says no where no standalone stream is open.
    pub(super) fn send(&self, number: StreamNumber, data: Bytes, needed: bool) -> bool {
        let mut inner = self.inner.lock();
        let stream = inner.streams.get(&number);
        if stream.is_some_and(|stream| stream.json_only) {
            let is_open = inner.streams.get(&STANDALONE).is_some_and(Stream::is_connected);
            if !needed || !is_open {
                return false;
            }
        }
        let own = stream.is_some_and(|stream| !stream.ended && !stream.json_only);
        let number = if own { number } else { STANDALONE };
        inner.streams.entry(number).or_default().push(number, data, false);
        true
    }

    /// Ends a request's stream, with its response unless the request was cancelled.
    pub(super) fn end(&self, number: StreamNumber, response: Option<Bytes>) {
        let mut inner = self.inner.lock();
        if let Some(stream) = inner.streams.get_mut(&number).filter(|stream| !stream.ended) {
            if let Some(data) = response {
                stream.push(number, data, true);
            }
            stream.connection = None;
            stream.ended = true;
            let bytes = stream.bytes;
            inner.ended_bytes += bytes;
            inner.ended.push_back((Instant::now(), number));
        }
        inner.forget();
    }

    /// Forgets a stream whose answer was taken whole, and needs no resuming.
    pub(super) fn forget(&self, number: StreamNumber) {
        let mut inner = self.inner.lock();
        if let Some(stream) = inner.streams.remove(&number)
            && stream.ended
        {
            inner.ended_bytes = inner.ended_bytes.saturating_sub(stream.bytes);
            inner.ended.retain(|(_, ended)| *ended != number);
        }
    }

    /// The stream of the only request under way that takes events; else the standalone one.
    pub(super) fn only(&self) -> StreamNumber {
        let inner = self.inner.lock();
        let takes = |stream: &&Stream| !stream.ended && !stream.json_only;
        let mut open = inner.streams.iter().filter(|(number, stream)| **number != STANDALONE && takes(stream));
        match (open.next(), open.next()) {
            (Some((only, _)), None) => *only,
            _ => STANDALONE,
        }
    }

    /// Drops what was not fetched in time.
    pub(super) fn sweep(&self) {
        self.inner.lock().forget();
    }

    /// Whether the client has a connection for what belongs to no request, or waits for a response.
    pub(super) fn in_use(&self) -> bool {
        self.inner.lock().streams.values().any(Stream::is_connected)
    }

    /// Whether the client has a connection for what belongs to no request.
    pub(super) fn listens(&self) -> bool {
        self.inner.lock().streams.get(&STANDALONE).is_some_and(Stream::is_connected)
    }

    /// How long neither this stream nor the standalone one has had a connection.
    pub(super) fn alone(&self, number: StreamNumber) -> Duration {
        let mut inner = self.inner.lock();
        let mut alone = Duration::MAX;
        for number in [number, STANDALONE] {
            if let Some(stream) = inner.streams.get_mut(&number) {
                let since = if stream.is_connected() {
                    stream.alone = None;
                    Duration::ZERO
                } else {
                    stream.alone.get_or_insert_with(Instant::now).elapsed()
                };
                alone = alone.min(since);
            }
        }
        if alone == Duration::MAX { Duration::ZERO } else { alone }
    }
}

impl Inner {
    /// Drops ended streams: the old ones, and the oldest while they are too large together.
    fn forget(&mut self) {
        while let Some((since, number)) = self.ended.front()
            && (self.ended_bytes > ENDED_BYTES || since.elapsed() >= ENDED_TIME)
        {
            self.ended_bytes =
                self.ended_bytes.saturating_sub(self.streams.remove(number).map_or(0, |stream| stream.bytes));
            self.ended.pop_front();
        }
    }
}

impl Stream {
    fn is_connected(&self) -> bool {
        self.connection.as_ref().is_some_and(|connection| !connection.is_closed())
    }

    fn push(&mut self, number: StreamNumber, data: Bytes, is_last: bool) {
        self.last += 1;
        let kept = Kept { index: self.last, data, is_last };
        match self.connection.as_ref().map(|connection| connection.try_send(kept.event(number))) {
            Some(Ok(())) => self.taken = self.last,
            // The client went away, or does not read.
            Some(Err(_)) => self.connection = None,
            None => {}
        }
        self.bytes += kept.data.len();
        self.events.push_back(kept);
        // The newest stays, however large it is: it may be the response.
        while self.events.len() > 1 && (self.events.len() > KEPT_EVENTS || self.bytes > KEPT_BYTES) {
            self.bytes -= self.events.pop_front().map_or(0, |event| event.data.len());
        }
    }
}

impl Kept {
    fn event(&self, number: StreamNumber) -> Event {
        Event { id: id(number, self.index), data: self.data.clone(), retry_ms: None, is_last: self.is_last }
    }
}

fn id(number: StreamNumber, index: u64) -> String {
    if number == STANDALONE { index.to_string() } else { format!("{index}/{number}") }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::{ENDED_BYTES, ENDED_TIME, Events, KEPT_EVENTS, STANDALONE, Streams};

    fn note() -> Bytes {
        Bytes::from_static(b"{}")
    }

    /// The ids of what is there.
    fn ids(events: &mut Events) -> Vec<String> {
        std::iter::from_fn(|| events.try_recv().ok()).map(|event| event.id).collect()
    }

    fn resumed(streams: &Streams, id: &str) -> Option<Events> {
        streams.resume(id).map(|(_, events)| events)
    }

    #[test]
    fn a_request_has_its_own_stream_and_the_rest_goes_to_the_standalone_one() {
        let streams = Streams::default();
        let (one, mut events) = streams.open(false);
        let mut standalone = streams.standalone();
        streams.send(one, note(), false);
        streams.send(STANDALONE, note(), false);
        streams.end(one, Some(note()));
        streams.send(one, note(), false);
        assert_eq!(ids(&mut events), ["1/1", "2/1"]);
        assert!(events.is_closed());
        assert_eq!(ids(&mut standalone), ["1", "2"]);
    }

    #[test]
    fn a_stream_resumes_after_the_last_event_its_client_saw() {
        let streams = Streams::default();
        let (one, events) = streams.open(false);
        streams.send(one, note(), false);
        streams.send(one, note(), false);
        drop(events);
        streams.send(one, note(), false);
        let mut again = resumed(&streams, "1/1").unwrap();
        streams.end(one, Some(note()));
        assert_eq!(ids(&mut again), ["2/1", "3/1", "4/1"]);
        assert_eq!(ids(&mut resumed(&streams, "3/1").unwrap()), ["4/1"]);
        for unknown in ["1/2", "x", "1/x", "-1"] {
            assert!(streams.resume(unknown).is_none(), "{unknown}");
        }
    }

    #[test]
    fn what_is_sent_before_a_client_listens_waits_for_it_and_is_sent_once() {
        let streams = Streams::default();
        streams.send(STANDALONE, note(), false);
        let mut first = streams.standalone();
        streams.send(STANDALONE, note(), false);
        assert_eq!(ids(&mut first), ["1", "2"]);
        drop(first);
        streams.send(STANDALONE, note(), false);
        assert_eq!(ids(&mut streams.standalone()), ["3"]);
        assert_eq!(ids(&mut resumed(&streams, "1").unwrap()), ["2", "3"], "unless the client says what it missed");
    }

    #[test]
    fn a_client_that_takes_one_text_is_asked_on_the_standalone_stream_or_not_at_all() {
        let streams = Streams::default();
        let (one, mut events) = streams.open(true);
        assert!(!streams.send(one, note(), true), "nobody would see it");
        let mut standalone = streams.standalone();
        assert!(!streams.send(one, note(), false), "progress is dropped");
        assert!(streams.send(one, note(), true));
        streams.end(one, Some(note()));
        assert_eq!((ids(&mut events).len(), ids(&mut standalone).len()), (1, 1));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let streams = Streams::default();
        let (one, mut events) = streams.open(false);
        for _ in 0..5_000 {
            streams.send(one, note(), false);
        }
        assert!(ids(&mut events).len() < 5_000, "a client that does not read is cut off");
        assert_eq!(ids(&mut resumed(&streams, "0/1").unwrap()).len(), KEPT_EVENTS);
    }

    #[test]
    fn of_ended_streams_the_oldest_go_when_they_are_too_large_together() {
        let streams = Streams::default();
        for number in 1..=4 {
            assert_eq!(streams.open(false).0, number);
            streams.end(number, Some(Bytes::from(vec![b'1'; ENDED_BYTES / 2])));
        }
        assert!(streams.resume("0/2").is_none());
        assert_eq!(ids(&mut resumed(&streams, "0/3").unwrap()), ["1/3"]);
        assert_eq!(ids(&mut resumed(&streams, "0/4").unwrap()), ["1/4"]);
        streams.forget(3);
        assert!(streams.resume("0/3").is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn an_ended_stream_is_dropped_after_a_while() {
        let streams = Streams::default();
        let (one, _events) = streams.open(false);
        streams.end(one, Some(note()));
        assert!(streams.resume("0/1").is_some());
        tokio::time::advance(ENDED_TIME).await;
        streams.sweep();
        assert!(streams.resume("0/1").is_none());
    }
}
