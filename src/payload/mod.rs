//! Sealed payloads, version 1: what a call was asked and what it answered, sealed so that the store holds nothing
//! readable.
//!
//! `schemas/payload.md` is the specification, byte for byte. This module is the format alone: it knows no store, no
//! network and no clock.
//!
//! | file | holds |
//! |---|---|
//! | `epoch` | the date and period that a private key lives for |
//! | `suite` | HPKE: key pairs, sealing a share to a public key, opening it |
//! | `envelope` | shares sealed to one or two keys; the content key that they make |
//! | `header`, `record` | one direction of one call |
//! | `padme` | padding |
//! | `note` | the signed note that tells public keys |
//! | `wrapped` | a private key as it lies in the key store |
//! | `frames` | envelopes and records on their way |
//! | `secret` | 32 secret bytes, locked in memory and zeroized |
//! | `jcs` | RFC 8785 of objects whose values are strings or lists of strings |
//!
//! Invariants: nothing that holds plaintext or a secret has a `Debug` or `Serialize` that shows it; what does not open
//! says why by a [`Refusal`], in the order of the specification, and never by a part of what it holds.

mod envelope;
mod epoch;
pub mod frames;
mod header;
mod jcs;
mod kdf;
pub mod note;
pub mod padme;
mod read;
mod record;
mod secret;
mod suite;
#[cfg(test)]
mod tests;
pub mod wrapped;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use envelope::{ContentKey, Envelope, MAX_RECORDS, Recipients, Share};
pub use epoch::{Epoch, EpochError, MAX_DAYS};
pub use header::{Direction, Header, Kind, MAX_HEADER};
pub use record::{Content, MAX_CAP, Plaintext, Record, Sealer};
pub use secret::Secret;
pub use suite::{KeyId, KeyPair, PublicKey, Suite};

/// Why sealed bytes are not opened; the first that applies, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// Magic, version, lengths or the header are not of the form.
    #[error("format")]
    Format,
    /// The suite is unknown, or not the envelope's.
    #[error("suite")]
    Suite,
    /// It is not the record's envelope, or of another org or epoch.
    #[error("envelope")]
    Envelope,
    /// A share does not open with the key.
    #[error("stanza")]
    Stanza,
    /// The key is not the one that the record was sealed with.
    #[error("commitment")]
    Commitment,
    /// The ciphertext, or what it is bound to, was changed.
    #[error("tag")]
    Tag,
    /// The plaintext is not padded as it must be.
    #[error("padding")]
    Padding,
    /// The plaintext is longer than it may be, or of another length than it says.
    #[error("length")]
    Length,
}

/// SHA-256, as lower-case hex: `record_hash` and `envelope_id` in the ledger and the table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest of bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(kdf::sha256(&[bytes]))
    }

    /// Reads 64 lower-case hex digits.
    pub fn from_hex(text: &str) -> Option<Self> {
        read::hex32(text).map(Self)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
