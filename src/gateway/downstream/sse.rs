//! Server-sent events on their way out: their text, and comments that keep a connection open.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::response::{IntoResponse, Response};
use futures::{Stream, StreamExt, stream};
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderName, HeaderValue};
use tokio::time::{Interval, MissedTickBehavior, interval_at};

use super::streams::{Event, Events};

/// How often a comment is sent where there is nothing else.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Tells proxies not to hold events back.
const BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Ready every so often.
pub(super) fn keep_alive() -> Interval {
    let mut interval = interval_at(tokio::time::Instant::now() + KEEP_ALIVE, KEEP_ALIVE);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

/// A comment.
pub(super) const COMMENT: Bytes = Bytes::from_static(b":\n\n");

/// An event as text, its data apart so that it is not copied.
pub(super) fn pieces(event: &Event) -> [Bytes; 3] {
    let mut head = String::with_capacity(32);
    if !event.id.is_empty() {
        head.push_str("id: ");
        head.push_str(&event.id);
        head.push('\n');
    }
    if let Some(retry) = event.retry_ms {
        head.push_str("retry: ");
        head.push_str(&retry.to_string());
        head.push('\n');
    }
    head.push_str("data: ");
    [Bytes::from(head), event.data.clone(), Bytes::from_static(b"\n\n")]
}

/// The events of a connection, the first of them given.
pub(super) fn events(first: Vec<Event>, events: Events) -> Response {
    let first = stream::iter(first);
    let rest = stream::unfold((events, keep_alive()), |(mut events, mut tick)| async move {
        tokio::select! {
            biased;
            event = events.recv() => event.map(|event| (Some(event), (events, tick))),
            _ = tick.tick() => Some((None, (events, tick))),
        }
    });
    let all = first.map(Some).chain(rest).flat_map(|event| {
        let pieces = event.map_or_else(|| vec![COMMENT], |event| pieces(&event).to_vec());
        stream::iter(pieces.into_iter().filter(|piece| !piece.is_empty()))
    });
    response(all)
}

/// A response whose body ends when `stop` is over, if not before.
pub(super) fn until(response: Response, stop: impl Future<Output = ()> + Send + 'static) -> Response {
    response.map(|body| Body::from_stream(body.into_data_stream().take_until(stop)))
}

/// A response of such text.
pub(super) fn response(text: impl Stream<Item = Bytes> + Send + 'static) -> Response {
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (BUFFERING, HeaderValue::from_static("no")),
    ];
    (headers, Body::from_stream(text.map(Ok::<_, Infallible>))).into_response()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::{Event, pieces};

    #[test]
    fn an_event_is_its_id_and_its_data() {
        let event = Event { id: "1/2".to_owned(), data: Bytes::from_static(b"{}"), retry_ms: Some(5), is_last: false };
        assert_eq!(pieces(&event).concat(), b"id: 1/2\nretry: 5\ndata: {}\n\n");
        let bare = Event { id: String::new(), retry_ms: None, ..event };
        assert_eq!(pieces(&bare).concat(), b"data: {}\n\n");
    }
}
