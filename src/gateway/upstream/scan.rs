//! Follows the structure of one JSON text byte by byte: where it ends, and the `id` among its members.
//!
//! A server may break one message into several lines, put two on one line, or send one that is too large to be kept. In
//! each case the reader must know where the message ends, and whose answer it was, without holding all of it. The
//! scanner keeps a depth, whether it is inside a string, and at most [`KEPT_ID`] bytes of the `id` at the first level.
//! It does not check that the text is JSON: the parser does, once the text is whole.

/// The longest `id` that is kept; an own id is a number of at most 20 digits.
const KEPT_ID: usize = 32;

/// How deep a text may be nested before it counts as broken.
const MAX_DEPTH: u32 = 10_000;

/// A scanner of one JSON text.
#[derive(Debug, Default)]
pub(super) struct Scanner {
    depth: u32,
    in_string: bool,
    escaped: bool,
    /// The next string at the first level is a member's name.
    expects_name: bool,
    in_name: bool,
    name: Vec<u8>,
    /// The value of the member `id` is being read.
    in_id: bool,
    id: Vec<u8>,
    ended: bool,
    broken: bool,
}

impl Scanner {
    /// Reads on. The index after the last byte of the text, where it ends within `bytes`.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Option<usize> {
        for (index, &byte) in bytes.iter().enumerate() {
            if self.step(byte) {
                self.ended = true;
                return Some(index + 1);
            }
        }
        None
    }

    /// Whether the text cannot be JSON: closed more than was opened, too deep, or a line ended inside a string.
    pub(super) fn is_broken(&self) -> bool {
        self.broken
    }

    /// Whether the text has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// The member `id`, if it is a whole number, or such a number as text.
    pub(super) fn id(&self) -> Option<i64> {
        let text = std::str::from_utf8(&self.id).ok()?.trim();
        text.trim_matches('"').parse().ok()
    }

    /// Whether the text ended with this byte.
    fn step(&mut self, byte: u8) -> bool {
        if self.in_string {
            self.within_string(byte);
            return false;
        }
        match byte {
            b'"' => {
                self.in_string = true;
                if self.depth == 1 && self.expects_name {
                    self.in_name = true;
                    self.name.clear();
                }
                self.keep(byte);
            }
            b'{' | b'[' => {
                self.depth += 1;
                self.broken |= self.depth > MAX_DEPTH;
                self.expects_name = self.depth == 1 && byte == b'{';
                self.in_id &= self.depth == 1;
            }
            b'}' | b']' => {
                if self.depth == 0 {
                    self.broken = true;
                    return false;
                }
                self.depth -= 1;
                self.in_id = false;
                return self.depth == 0;
            }
            b',' if self.depth == 1 => {
                self.expects_name = true;
                self.in_id = false;
            }
            b':' if self.depth == 1 => {
                self.expects_name = false;
                self.in_id = self.name == b"id";
                if self.in_id {
                    self.id.clear();
                }
            }
            _ => self.keep(byte),
        }
        false
    }

    fn within_string(&mut self, byte: u8) {
        self.keep(byte);
        match byte {
            _ if self.escaped => self.escaped = false,
            b'\\' => self.escaped = true,
            b'"' => {
                self.in_string = false;
                self.in_name = false;
            }
            // A line never ends inside a string of JSON.
            b'\n' => self.broken = true,
            _ if self.in_name && self.name.len() < KEPT_ID => self.name.push(byte),
            _ => {}
        }
    }

    fn keep(&mut self, byte: u8) {
        if self.in_id && self.depth == 1 && self.id.len() < KEPT_ID {
            self.id.push(byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Scanner;

    fn scan(text: &str) -> (Option<usize>, Option<i64>) {
        let mut scanner = Scanner::default();
        (scanner.feed(text.as_bytes()), scanner.id())
    }

    #[test]
    fn the_end_of_a_text_is_found_and_its_own_id() {
        for (text, id) in [
            (r#"{"id":5,"result":{"id":6,"text":"}\"id\":7{"}}"#, Some(5)),
            (r#"{"result":{"a":[{"id":6}]},"jsonrpc":"2.0", "id" : 12 }"#, Some(12)),
            (r#"{"id":"34","x":1}"#, Some(34)),
            (r#"{"x":"id","y":{"id":3}}"#, None),
            (r#"{"id":{"id":3}}"#, None),
            (r#"{"id":null}"#, None),
            (r#"["id",1]"#, None),
        ] {
            assert_eq!(scan(text), (Some(text.len()), id), "{text}");
            assert_eq!(scan(&format!("{text}{text}")).0, Some(text.len()), "{text}");
        }
        assert_eq!(scan(r#"{"id":7,"result":{"#), (None, Some(7)), "as far as it was read");
    }

    #[test]
    fn what_cannot_be_json_is_broken() {
        for text in ["}", "{\"a\": \"b\nc\"}", &"[".repeat(20_000)] {
            let mut scanner = Scanner::default();
            scanner.feed(text.as_bytes());
            assert!(scanner.is_broken(), "{}", &text[..text.len().min(20)]);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2_000)) {
            let mut scanner = Scanner::default();
            if let Some(end) = scanner.feed(&bytes) {
                prop_assert!(end <= bytes.len());
            }
            scanner.id();
        }
    }
}
