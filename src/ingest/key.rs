//! Idempotency keys: what makes a retried request store its samples once.

use std::fmt;
use std::str::FromStr;

use super::RowKind;

/// The longest key a client may send, in bytes.
const MAX_LEN: usize = 255;

/// The fingerprint of a request's `Idempotency-Key`: the first 16 bytes of its BLAKE3 hash.
///
/// Keys are compared within one org only. 128 bits: among a billion keys the odds of two meeting are 1 in 10^20.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IdempotencyKey([u8; 16]);

/// Why a header value is no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an Idempotency-Key is 1 to 255 visible ASCII characters")]
pub struct InvalidKey;

impl IdempotencyKey {
    /// The fingerprint of the text that a client sent with rows of one kind: samples and events may have the same keys.
    ///
    /// # Errors
    /// When it is empty, too long, or not visible ASCII.
    pub fn new(kind: RowKind, text: &[u8]) -> Result<Self, InvalidKey> {
        if text.is_empty() || text.len() > MAX_LEN || !text.iter().all(|b| (0x20..0x7f).contains(b)) {
            return Err(InvalidKey);
        }
        let mut bytes = [0; 16];
        // A text has no zero byte, so no key of samples is one of events.
        let scope: &[u8] = match kind {
            RowKind::Sample => b"",
            RowKind::Event => b"events\0",
        };
        blake3::Hasher::new().update(scope).update(text).finalize_xof().fill(&mut bytes);
        Ok(Self(bytes))
    }

    /// The fingerprint of what the control plane itself does once: no client can send a key of the same.
    pub fn own(text: &str) -> Self {
        let mut bytes = [0; 16];
        blake3::Hasher::new().update(b"own\0").update(text.as_bytes()).finalize_xof().fill(&mut bytes);
        Self(bytes)
    }

    /// The fingerprint that was stored.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The fingerprint's bytes, as they are stored.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

/// 32 hex, as WAL headers hold it.
impl fmt::Display for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IdempotencyKey({self})")
    }
}

impl FromStr for IdempotencyKey {
    type Err = InvalidKey;

    /// Reads what `Display` writes.
    fn from_str(hex: &str) -> Result<Self, InvalidKey> {
        u128::from_str_radix(hex, 16).ok().filter(|_| hex.len() == 32).map(|n| Self(n.to_be_bytes())).ok_or(InvalidKey)
    }
}
