//! Server-sent events, as a server's responses carry them: bytes to events, each bounded in size.
//!
//! The form is that of the HTML standard: lines end in LF, CR or CRLF; `data`, `event`, `id` and `retry` fields make up
//! an event, a blank line ends it, lines that start with a colon are comments. A server decides how long an event is,
//! so what is kept of one that is not yet complete is bounded. One past the bound is skipped to its end and reported as
//! such, with its id, so that a stream can go on after it.

use bytes::{Bytes, BytesMut};

/// The longest event id that is kept; it is sent back as a header.
const MAX_ID: usize = 1024;

/// One event.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) id: Option<String>,
    /// How long to wait before the stream is resumed, in milliseconds.
    pub(super) retry: Option<u64>,
    pub(super) data: Option<Bytes>,
    /// It was longer than the limit; its data was dropped.
    pub(super) too_long: bool,
}

/// Bytes to events.
pub(super) struct EventReader {
    limit: usize,
    buffer: BytesMut,
    /// How much of the buffer holds no line's end.
    searched: usize,
    after_cr: bool,
    first_line: bool,
    event: Option<Event>,
    data: Option<BytesMut>,
    /// The size of the event under way, and that what follows of it is skipped.
    size: usize,
    skipping_line: bool,
}

impl EventReader {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            buffer: BytesMut::new(),
            searched: 0,
            after_cr: false,
            first_line: true,
            event: None,
            data: None,
            size: 0,
            skipping_line: false,
        }
    }

    /// How much of an event that is not complete is held.
    pub(super) fn held(&self) -> usize {
        self.buffer.len().saturating_add(self.data.as_ref().map_or(0, BytesMut::len))
    }

    /// Takes bytes of the stream.
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next complete event of what was fed.
    pub(super) fn next(&mut self) -> Option<Event> {
        while let Some(line) = self.line() {
            if std::mem::take(&mut self.skipping_line) {
                continue;
            }
            let mut line: &[u8] = &line;
            if std::mem::take(&mut self.first_line) {
                line = line.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(line);
            }
            if line.is_empty() {
                self.size = 0;
                let data = self.data.take().map(BytesMut::freeze);
                if let Some(event) = self.event.take() {
                    return Some(Event { data, ..event });
                }
                continue;
            }
            self.field(line);
        }
        if self.size.saturating_add(self.buffer.len()) > self.limit {
            // The line under way makes the event too long: nothing more of it is kept.
            self.give_up();
            self.skipping_line = true;
            self.buffer = BytesMut::new();
            self.searched = 0;
        }
        None
    }

    fn give_up(&mut self) {
        self.data = None;
        self.event.get_or_insert_default().too_long = true;
    }

    /// The next complete line, without its end.
    fn line(&mut self) -> Option<BytesMut> {
        if self.after_cr && !self.buffer.is_empty() {
            if self.buffer.first() == Some(&b'\n') {
                let _ = self.buffer.split_to(1);
            }
            self.after_cr = false;
        }
        let unsearched = self.buffer.get(self.searched..)?;
        let Some(length) = unsearched.iter().position(|byte| matches!(byte, b'\n' | b'\r')) else {
            self.searched = self.buffer.len();
            return None;
        };
        let mut line = self.buffer.split_to(self.searched + length + 1);
        self.searched = 0;
        self.after_cr = line.last() == Some(&b'\r');
        line.truncate(line.len().saturating_sub(1));
        Some(line)
    }

    /// Adds a line to the event under way.
    fn field(&mut self, line: &[u8]) {
        if line.first() == Some(&b':') {
            return;
        }
        let colon = line.iter().position(|byte| *byte == b':');
        let (name, value) = line.split_at(colon.unwrap_or(line.len()));
        let value = value.strip_prefix(b":").unwrap_or(value);
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match name {
            b"data" => {
                self.size = self.size.saturating_add(value.len()).saturating_add(1);
                let event = self.event.get_or_insert_default();
                if event.too_long || self.size > self.limit {
                    self.give_up();
                    return;
                }
                match &mut self.data {
                    Some(data) => {
                        data.extend_from_slice(b"\n");
                        data.extend_from_slice(value);
                    }
                    data @ None => *data = Some(BytesMut::from(value)),
                }
            }
            // What is no valid header value could not be sent back.
            b"id" if value.len() <= MAX_ID && value.iter().all(|byte| (0x20..0x7F).contains(byte)) => {
                self.event.get_or_insert_default().id = Some(String::from_utf8_lossy(value).into_owned());
            }
            b"retry" => {
                let retry = std::str::from_utf8(value).ok().and_then(|value| value.parse().ok());
                if let Some(retry) = retry {
                    self.event.get_or_insert_default().retry = Some(retry);
                }
            }
            // The type of the event does not matter to MCP; other fields are to be ignored.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Event, EventReader};

    fn read(bytes: &[u8], chunk: usize, limit: usize) -> Vec<Event> {
        let mut reader = EventReader::new(limit);
        let mut events = Vec::new();
        for chunk in bytes.chunks(chunk) {
            reader.feed(chunk);
            events.extend(std::iter::from_fn(|| reader.next()));
        }
        events
    }

    #[test]
    fn an_event_is_the_same_however_its_bytes_arrive() {
        let text = "\u{feff}: hello\r\n\r\nid: 1\rdata: a\rdata:  b\r\rretry: 30\ndata\n\nevent: x\r\ndata: {\"é\":1}\r\n\r\ndata: cut";
        for chunk in 1..text.len() {
            let events = read(text.as_bytes(), chunk, 1000);
            let data: Vec<_> = events.iter().map(|event| event.data.as_deref().unwrap()).collect();
            assert_eq!(data, [&b"a\n b"[..], b"", "{\"é\":1}".as_bytes()], "chunks of {chunk}");
            assert_eq!((events[0].id.as_deref(), events[1].retry), (Some("1"), Some(30)));
        }
    }

    #[test]
    fn an_event_past_the_limit_is_told_and_the_next_is_read() {
        let one_line = format!("id: 1\ndata: {}\n\n", "x".repeat(100));
        let many_lines = format!("id: 1\n{}\n", "data: xxxxxxxx\n".repeat(10));
        for text in [one_line, many_lines] {
            for chunk in [1, 7, 1000] {
                let events = read(format!("{text}data: ok\n\n").as_bytes(), chunk, 50);
                assert_eq!(events.len(), 2, "chunks of {chunk}");
                assert_eq!((events[0].too_long, events[0].id.as_deref(), &events[0].data), (true, Some("1"), &None));
                assert_eq!(events[1].data.as_deref(), Some(&b"ok"[..]));
            }
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_and_what_is_kept_is_bounded(
            bytes in proptest::collection::vec(prop_oneof![any::<u8>(), proptest::sample::select(b"\n\r: data:id".to_vec())], 0..3_000),
            chunk in 1..200_usize,
            limit in 0..400_usize,
        ) {
            let mut reader = EventReader::new(limit);
            for chunk in bytes.chunks(chunk) {
                reader.feed(chunk);
                while let Some(event) = reader.next() {
                    prop_assert!(event.data.map_or(0, |data| data.len()) <= limit);
                }
                prop_assert!(reader.buffer.len() <= limit);
            }
        }
    }
}
