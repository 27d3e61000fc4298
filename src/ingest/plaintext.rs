//! The text of an error message: a type that cannot be printed, logged or stored (invariant I6).
//!
//! Nothing but its hash comes out. It has no `Debug`, `Display` or `Serialize` on purpose, and lives no longer than the
//! decoding of its row.

/// The text of an error message as an emitter sent it.
#[derive(Clone, Copy)]
pub(super) struct ErrorMessage<'a>(&'a str);

impl<'a> ErrorMessage<'a> {
    /// Takes the text in.
    pub(super) fn new(text: &'a str) -> Self {
        Self(text)
    }

    /// The BLAKE3 hash of its UTF-8 bytes, which is what `error_hash` holds as 64 lower-case hex digits.
    pub(super) fn hash(self) -> blake3::Hash {
        blake3::hash(self.0.as_bytes())
    }
}
