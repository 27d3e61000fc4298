//! Server-sent events, as an upstream's responses carry them: bytes to events, each bounded in size.
//!
//! The form is that of the HTML standard: lines end in LF, CR or CRLF, `data`, `event`, `id` and `retry` fields make up
//! an event, a blank line ends it, lines that start with a colon are comments. An upstream decides how long an event is,
//! so what is kept of one that is not yet complete is bounded; past it the stream ends with an error.

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use rmcp::transport::common::client_side_sse::BoxedSseResponse;
use rmcp::transport::streamable_http_client::SseError;

/// The SDK's type of an event, which it does not name in public.
pub(super) type Event = <<BoxedSseResponse as Stream>::Item as Success>::Value;

/// The value type of a `Result`.
pub(super) trait Success {
    type Value;
}

impl<T, E> Success for Result<T, E> {
    type Value = T;
}

/// Why a stream ended early.
#[derive(Debug, thiserror::Error)]
pub(super) enum StreamFault {
    /// The upstream went away.
    #[error("the upstream's stream broke off")]
    Broken,
    /// An event is larger than what is passed on.
    #[error("an event of the upstream is larger than {limit} bytes")]
    TooLarge { limit: usize },
}

/// The events of a response's body; `each` sees, and may change, every event, and may turn a fault into a last one.
pub(super) fn events<B, E>(
    body: B,
    limit: usize,
    each: impl Fn(Result<Event, StreamFault>) -> Result<Event, StreamFault> + Send + 'static,
) -> BoxedSseResponse
where
    B: Stream<Item = Result<Bytes, E>> + Send + 'static,
    E: Send + 'static,
{
    let state = (Box::pin(body), Decoder::new(limit), each, false);
    stream::unfold(state, |(mut body, mut decoder, each, ended)| async move {
        if ended {
            return None;
        }
        loop {
            let item = match decoder.next() {
                Ok(Some(event)) => Ok(event),
                Err(fault) => Err(fault),
                Ok(None) => match body.next().await {
                    Some(Ok(bytes)) => {
                        decoder.push(&bytes);
                        continue;
                    }
                    Some(Err(_)) => Err(StreamFault::Broken),
                    None => return None,
                },
            };
            let ended = item.is_err();
            let item = each(item).map_err(|fault| SseError::Body(Box::new(fault)));
            return Some((item, (body, decoder, each, ended)));
        }
    })
    .boxed()
}

/// Bytes to events.
struct Decoder {
    limit: usize,
    /// What has been received and not been read as lines.
    buffer: Vec<u8>,
    /// How much of `buffer` is read.
    read: usize,
    /// How much of `buffer` is known to hold no line's end.
    searched: usize,
    /// The last line ended in CR: an LF right behind it belongs to it.
    after_cr: bool,
    first_line: bool,
    event: Option<Event>,
    /// Bytes of the event under way.
    size: usize,
}

impl Decoder {
    fn new(limit: usize) -> Self {
        Self {
            limit,
            buffer: Vec::new(),
            read: 0,
            searched: 0,
            after_cr: false,
            first_line: true,
            event: None,
            size: 0,
        }
    }

    fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.read);
        self.searched = self.searched.saturating_sub(self.read);
        self.read = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next complete event of what was pushed.
    fn next(&mut self) -> Result<Option<Event>, StreamFault> {
        while let Some((start, end)) = self.line() {
            let line = self.buffer.get(start..end).unwrap_or_default();
            let line = match line.strip_prefix(b"\xEF\xBB\xBF") {
                Some(rest) if self.first_line => rest,
                _ => line,
            };
            self.first_line = false;
            if line.is_empty() {
                self.size = 0;
                if let Some(event) = self.event.take() {
                    return Ok(Some(event));
                }
                continue;
            }
            self.size = self.size.saturating_add(line.len());
            if self.size > self.limit {
                return Err(StreamFault::TooLarge { limit: self.limit });
            }
            field(&mut self.event, &String::from_utf8_lossy(line));
        }
        if self.size.saturating_add(self.buffer.len().saturating_sub(self.read)) > self.limit {
            return Err(StreamFault::TooLarge { limit: self.limit });
        }
        Ok(None)
    }

    /// Where the next complete line is, without its end.
    fn line(&mut self) -> Option<(usize, usize)> {
        if self.after_cr && self.read < self.buffer.len() {
            if self.buffer.get(self.read) == Some(&b'\n') {
                self.read += 1;
            }
            self.after_cr = false;
        }
        let from = self.searched.max(self.read);
        let Some(length) = self.buffer.get(from..)?.iter().position(|byte| matches!(byte, b'\n' | b'\r')) else {
            self.searched = self.buffer.len();
            return None;
        };
        let (start, end) = (self.read, from + length);
        self.after_cr = self.buffer.get(end) == Some(&b'\r');
        self.read = end + 1;
        self.searched = self.read;
        Some((start, end))
    }
}

/// Adds a line to the event under way.
fn field(event: &mut Option<Event>, line: &str) {
    let (name, value) = line.split_once(':').unwrap_or((line, ""));
    let value = value.strip_prefix(' ').unwrap_or(value);
    match name {
        "data" => match &mut event.get_or_insert_default().data {
            Some(data) => {
                data.push('\n');
                data.push_str(value);
            }
            data @ None => *data = Some(value.to_owned()),
        },
        "event" => event.get_or_insert_default().event = Some(value.to_owned()),
        "id" if !value.contains('\0') => event.get_or_insert_default().id = Some(value.to_owned()),
        "retry" => {
            if let Ok(milliseconds) = value.parse() {
                event.get_or_insert_default().retry = Some(milliseconds);
            }
        }
        // A comment, or a field that the standard says to ignore.
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use bytes::Bytes;
    use futures::{StreamExt, stream};

    use super::{Event, events};

    async fn decode(text: &str, chunk: usize, limit: usize) -> Vec<Result<Event, ()>> {
        let chunks: Vec<_> =
            text.as_bytes().chunks(chunk).map(|c| Ok::<_, Infallible>(Bytes::copy_from_slice(c))).collect();
        events(stream::iter(chunks), limit, |event| event).map(|event| event.map_err(|_| ())).collect().await
    }

    #[tokio::test]
    async fn an_event_is_the_same_however_its_bytes_arrive() {
        let text = "\u{feff}: hello\r\n\r\nid: 1\rdata: a\rdata:  b\r\rretry: 30\ndata\n\nevent: x\r\ndata: {\"é\":1}\r\n\r\ndata: cut";
        for chunk in 1..text.len() {
            let events: Vec<_> = decode(text, chunk, 1000).await.into_iter().map(Result::unwrap).collect();
            assert_eq!(events.len(), 3, "chunks of {chunk}");
            assert_eq!((events[0].id.as_deref(), events[0].data.as_deref()), (Some("1"), Some("a\n b")));
            assert_eq!((events[1].retry, events[1].data.as_deref()), (Some(30), Some("")));
            assert_eq!((events[2].event.as_deref(), events[2].data.as_deref()), (Some("x"), Some("{\"é\":1}")));
        }
    }

    #[tokio::test]
    async fn an_event_past_the_limit_ends_the_stream() {
        let one_line = format!("data: ok\n\ndata: {}", "x".repeat(100));
        let many_lines = format!("data: ok\n\n{}", "data: xxxxxxxx\n".repeat(10));
        for text in [one_line, many_lines] {
            let events = decode(&text, 7, 50).await;
            assert_eq!(events.len(), 2);
            assert!(events[0].is_ok() && events[1].is_err());
        }
    }
}
