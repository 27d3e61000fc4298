//! The bytes of a child's standard output, as messages: one JSON object (or array) a line.
//!
//! MCP says UTF-8, one message a line and nothing else. Servers in the wild print banners and logs, end lines with CR
//! LF, start with a byte order mark, write UTF-16 (PowerShell) or Latin-1, print a message indented over several lines,
//! put two on one line, or die within one. All of that is read as far as it can be parted; what is no message is
//! dropped. A message that is too long is skipped to its end and reported with the id it answers, wherever in the
//! message that stands.
//!
//! At most two times the limit is held: the line under way, and a message that is spread over several.

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};

use crate::gateway::upstream::scan::Scanner;

/// What was found in the output.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// One whole JSON object or array, in UTF-8.
    Object(Bytes),
    /// An object that is longer than the limit, and the id it answers, where it has one.
    TooLong { id: Option<i64> },
}

/// What a server did that MCP does not allow; each is worth one line in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Oddity {
    /// Lines that are no messages.
    Chatter,
    /// UTF-16, or bytes that are not UTF-8.
    Encoding,
    /// Messages over several lines, or several on one.
    Lines,
    /// A message that is too long.
    TooLong,
    /// An output that ended within a message.
    HalfLine,
}

impl Oddity {
    /// The sentence for the log.
    pub(super) fn sentence(self) -> &'static str {
        match self {
            Self::Chatter => {
                "the program writes lines that are no MCP messages to its standard output; they are ignored"
            }
            Self::Encoding => {
                "the program does not write UTF-8; UTF-16 is converted, other bytes are replaced by U+FFFD"
            }
            Self::Lines => "the program does not write one message a line; they are taken apart by their braces",
            Self::TooLong => "the program wrote a message longer than max_result_bytes; it is dropped",
            Self::HalfLine => "the program's output ended in the middle of a message; it is dropped",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encoding {
    Utf8,
    Utf16 { big_endian: bool },
}

/// Splits a child's standard output into messages.
pub(super) struct Framing {
    limit: usize,
    encoding: Encoding,
    line: BytesMut,
    /// A byte of UTF-16 whose other half is not there yet, and the first unit of a pair.
    half_unit: Option<u8>,
    high_surrogate: Option<u16>,
    /// The line under way is too long: it is skipped, and followed if it may be a message.
    skipping: Option<Option<Scanner>>,
    /// A message that the lines so far did not end.
    pending: Option<(BytesMut, Scanner)>,
    /// There is no more output.
    finished: bool,
    frames: VecDeque<Frame>,
    oddities: Vec<Oddity>,
    noted: Vec<Oddity>,
}

impl Framing {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            encoding: Encoding::Utf8,
            line: BytesMut::new(),
            half_unit: None,
            high_surrogate: None,
            skipping: None,
            pending: None,
            finished: false,
            frames: VecDeque::new(),
            oddities: Vec::new(),
            noted: Vec::new(),
        }
    }

    /// The next frame of what was fed.
    pub(super) fn next(&mut self) -> Option<Frame> {
        self.frames.pop_front()
    }

    /// What was seen for the first time since this was last asked.
    pub(super) fn take_oddities(&mut self) -> Vec<Oddity> {
        std::mem::take(&mut self.oddities)
    }

    /// How much is held of what is not complete.
    pub(super) fn held(&self) -> usize {
        self.line.len().saturating_add(self.pending.as_ref().map_or(0, |(begun, _)| begun.len()))
    }

    /// Holds nothing more of the message under way, which is reported as too long.
    pub(super) fn give_up(&mut self) {
        if self.skipping.is_none() && self.held() > 0 {
            self.skip(&[]);
        }
    }

    /// What was taken for a message was none.
    pub(super) fn note_chatter(&mut self) {
        self.note(Oddity::Chatter);
    }

    /// Takes bytes of the output.
    pub(super) fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let taken = match self.encoding {
                Encoding::Utf8 => self.feed_utf8(bytes),
                Encoding::Utf16 { big_endian } => self.feed_utf16(bytes, big_endian),
            };
            bytes = bytes.get(taken.max(1)..).unwrap_or_default();
        }
    }

    /// The output has ended. What stands there without a line's end counts if it is whole.
    pub(super) fn finish(&mut self) {
        self.finished = true;
        self.end_line();
        if self.pending.take().is_some() {
            self.note(Oddity::HalfLine);
        }
    }

    fn note(&mut self, oddity: Oddity) {
        if !self.noted.contains(&oddity) {
            self.noted.push(oddity);
            self.oddities.push(oddity);
        }
    }

    /// Takes up to a line's end; how many bytes that was.
    fn feed_utf8(&mut self, bytes: &[u8]) -> usize {
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let part = bytes.get(..end.unwrap_or(bytes.len())).unwrap_or_default();
        let begun = self.line.len();
        self.append(part);
        if begun < 2
            && self.skipping.is_none()
            && let Some(encoding) = utf16(&self.line)
        {
            self.note(Oddity::Encoding);
            self.encoding = encoding;
            let mut raw = self.line.split().to_vec();
            if end.is_some() {
                raw.push(b'\n');
            }
            self.feed(&raw);
        } else if end.is_some() {
            self.end_line();
        }
        part.len() + usize::from(end.is_some())
    }

    fn append(&mut self, part: &[u8]) {
        if let Some(scanner) = &mut self.skipping {
            if let Some(scanner) = scanner
                && !scanner.has_ended()
            {
                scanner.feed(part);
            }
            return;
        }
        if self.line.len().saturating_add(part.len()) <= self.limit {
            self.line.extend_from_slice(part);
            return;
        }
        self.skip(part);
    }

    /// From here on the line is only followed.
    fn skip(&mut self, part: &[u8]) {
        let begin = trimmed(&self.line);
        let begin = if begin.is_empty() { trimmed(part) } else { begin };
        let begun = self.pending.take().map(|(_, scanner)| scanner);
        let scanner = begun.or_else(|| matches!(begin.first(), Some(b'{' | b'[')).then(Scanner::default));
        self.skipping = Some(scanner.map(|mut scanner| {
            if scanner.feed(&self.line).is_none() {
                scanner.feed(part);
            }
            scanner
        }));
        self.line = BytesMut::new();
    }

    /// Takes all of it, or up to where it is UTF-8 again; how many bytes that was.
    fn feed_utf16(&mut self, bytes: &[u8], big_endian: bool) -> usize {
        for (index, &byte) in bytes.iter().enumerate() {
            let Some(first) = self.half_unit.take() else {
                self.half_unit = Some(byte);
                continue;
            };
            if self.line.is_empty() && (first, byte) == (b'{', b'"') {
                self.encoding = Encoding::Utf8;
                self.line.extend_from_slice(b"{\"");
                return index + 1;
            }
            let unit = if big_endian { u16::from_be_bytes([first, byte]) } else { u16::from_le_bytes([first, byte]) };
            let high = self.high_surrogate.take();
            if (0xD800..0xDC00).contains(&unit) && high.is_none() {
                self.high_surrogate = Some(unit);
                continue;
            }
            for decoded in char::decode_utf16(high.into_iter().chain([unit])) {
                match decoded.unwrap_or(char::REPLACEMENT_CHARACTER) {
                    '\n' => self.end_line(),
                    '\u{feff}' if self.line.is_empty() => {}
                    other => self.append(other.encode_utf8(&mut [0; 4]).as_bytes()),
                }
            }
        }
        bytes.len()
    }

    fn end_line(&mut self) {
        if let Some(scanner) = self.skipping.take() {
            self.pending = None;
            match scanner {
                Some(scanner) => self.too_long(&scanner),
                None => self.note(Oddity::Chatter),
            }
            return;
        }
        let line = self.line.split().freeze();
        self.take_line(line);
    }

    fn too_long(&mut self, scanner: &Scanner) {
        self.note(Oddity::TooLong);
        self.frames.push_back(Frame::TooLong { id: scanner.id() });
    }

    fn take_line(&mut self, line: Bytes) {
        let mut rest = line.slice_ref(trimmed(&line));
        if !rest.is_empty() && self.pending.is_some() {
            rest = self.go_on(rest);
        }
        let mut several = false;
        while !rest.is_empty() {
            if !matches!(rest.first(), Some(b'{' | b'[')) {
                self.note(Oddity::Chatter);
                return;
            }
            let mut scanner = Scanner::default();
            match scanner.feed(&rest) {
                Some(end) => {
                    let object = rest.split_to(end);
                    self.whole(object);
                    rest = rest.slice_ref(trimmed(&rest));
                    if std::mem::replace(&mut several, true) {
                        self.note(Oddity::Lines);
                    }
                }
                None => {
                    scanner.feed(b"\n");
                    if self.finished {
                        self.note(Oddity::HalfLine);
                    } else if scanner.is_broken() {
                        self.note(Oddity::Chatter);
                    } else {
                        let mut begun = BytesMut::from(rest.as_ref());
                        begun.extend_from_slice(b"\n");
                        self.pending = Some((begun, scanner));
                    }
                    return;
                }
            }
        }
    }

    /// Goes on with a message that the lines before did not end; what is left of this line after it.
    fn go_on(&mut self, mut line: Bytes) -> Bytes {
        let Some((mut begun, mut scanner)) = self.pending.take() else { return line };
        let alone = Scanner::default().feed(&line) == Some(line.len());
        if alone && line.starts_with(b"{") && contains(&line, b"\"jsonrpc\"") {
            // What was begun was never a message.
            self.note(Oddity::Chatter);
            return line;
        }
        if begun.len().saturating_add(line.len()) > self.limit {
            scanner.feed(&line);
            self.too_long(&scanner);
            return Bytes::new();
        }
        let end = scanner.feed(&line);
        begun.extend_from_slice(line.get(..end.unwrap_or(line.len())).unwrap_or_default());
        if let Some(end) = end {
            self.note(Oddity::Lines);
            self.whole(begun.freeze());
            line.advance(end);
            return line.slice_ref(trimmed(&line));
        }
        scanner.feed(b"\n");
        if scanner.is_broken() {
            self.note(Oddity::Chatter);
        } else {
            begun.extend_from_slice(b"\n");
            self.pending = Some((begun, scanner));
        }
        Bytes::new()
    }

    fn whole(&mut self, object: Bytes) {
        let object = match std::str::from_utf8(&object) {
            Ok(_) => object,
            Err(_) => {
                self.note(Oddity::Encoding);
                Bytes::from(String::from_utf8_lossy(&object).into_owned())
            }
        };
        self.frames.push_back(Frame::Object(object));
    }
}

/// Whether a line that starts with these bytes is of UTF-16: it has its byte order mark, or a zero beside its first
/// character.
fn utf16(line: &[u8]) -> Option<Encoding> {
    match *line.first_chunk::<2>()? {
        [0xFF, 0xFE] => Some(Encoding::Utf16 { big_endian: false }),
        [0xFE, 0xFF] => Some(Encoding::Utf16 { big_endian: true }),
        [first, 0] if is_text(first) => Some(Encoding::Utf16 { big_endian: false }),
        [0, second] if is_text(second) => Some(Encoding::Utf16 { big_endian: true }),
        _ => None,
    }
}

/// Whether a byte is a character that a line of text may begin with.
fn is_text(byte: u8) -> bool {
    byte.is_ascii_graphic() || matches!(byte, b' ' | b'\t' | b'\r')
}

/// Without a byte order mark and white space around it.
fn trimmed(line: &[u8]) -> &[u8] {
    line.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(line).trim_ascii()
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

#[cfg(test)]
mod tests;
