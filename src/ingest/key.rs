//! What tells a batch from its retry: an `Idempotency-Key`, or the batch's number in a lane of its emitter.
//!
//! ```text
//! Idempotency-Key: 1b4e28ba-2fa1-11d2-883f-0016d3cca427            any client, a key a batch
//!
//! Mcpg-Emitter: 7d444840-9dc0-11d1-b245-5ffdce74fad2/0             one process, and which of its lanes
//! Mcpg-Sequence: 12                                                the batch's number there, from 1 on
//! Mcpg-After: 11                                                   the number answered before it; 0 for none
//! ```

use std::fmt;
use std::str::FromStr;

use http::{HeaderMap, HeaderName};
use uuid::Uuid;

use super::RowKind;

/// The header of a key.
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The headers of a number: the lane, the number, and the number that was answered before.
pub const EMITTER: HeaderName = HeaderName::from_static("mcpg-emitter");
/// See [`EMITTER`].
pub const SEQUENCE: HeaderName = HeaderName::from_static("mcpg-sequence");
/// See [`EMITTER`].
pub const AFTER: HeaderName = HeaderName::from_static("mcpg-after");

/// The longest key a client may send, in bytes.
const MAX_LEN: usize = 255;

/// The highest number of a batch: what a signed 64-bit integer holds, which every language has.
const MAX_NUMBER: u64 = i64::MAX.unsigned_abs();

/// The fingerprint of a request's `Idempotency-Key`: the first 16 bytes of its BLAKE3 hash.
///
/// Keys are compared within one org only. 128 bits: among a billion keys the odds of two meeting are 1 in 10^20.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IdempotencyKey([u8; 16]);

/// What a request's body was: the first 8 bytes of its BLAKE3 hash, as it was sent but for `Content-Encoding`.
///
/// It tells a retry from another batch under the same key or number; it need not resist an attacker who looks for two
/// bodies of one fingerprint, since they would be that sender's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub u64);

impl Fingerprint {
    /// The fingerprint of a body.
    pub fn of(body: &[u8]) -> Self {
        let [a, b, c, d, e, f, g, h, ..] = *blake3::hash(body).as_bytes();
        Self(u64::from_le_bytes([a, b, c, d, e, f, g, h]))
    }
}

/// One lane of one emitter's process: `Mcpg-Emitter: <uuid>/<lane>`. Its batches are numbered, one under way at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lane {
    /// The process.
    pub emitter: Uuid,
    /// Which of its lanes.
    pub lane: u16,
}

/// As `Mcpg-Emitter` has it: `<uuid>/<lane>`.
impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.emitter, self.lane)
    }
}

impl FromStr for Lane {
    type Err = InvalidId;

    /// Reads what `Display` writes.
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let invalid = InvalidId::Sequence("Mcpg-Emitter is a UUID that is not nil, a slash and a lane from 0 to 65535");
        let (emitter, lane) = text.split_once('/').ok_or_else(|| invalid.clone())?;
        let emitter = Uuid::try_parse(emitter).ok().filter(|uuid| !uuid.is_nil() && emitter.len() == 36);
        let lane = digits(lane).and_then(|lane| u16::try_from(lane).ok());
        emitter.zip(lane).map(|(emitter, lane)| Self { emitter, lane }).ok_or(invalid)
    }
}

/// A number in decimal digits alone.
fn digits(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// How a request's headers name its batch. With the body's fingerprint it is a [`BatchId`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchName {
    /// By an `Idempotency-Key`.
    Key(IdempotencyKey),
    /// By its number in a lane.
    Sequence {
        /// The lane.
        lane: Lane,
        /// Its number, from 1 on.
        number: u64,
        /// The number that was answered before it; 0 if none was.
        after: u64,
    },
}

impl BatchName {
    /// What the headers of a request with rows of one kind say; none when they name no batch.
    ///
    /// # Errors
    /// When a header is not of its form, is there twice, or does not go with another one.
    pub fn from_headers(kind: RowKind, headers: &HeaderMap) -> Result<Option<Self>, InvalidId> {
        let (emitter, number, after) =
            (single(headers, &EMITTER)?, single(headers, &SEQUENCE)?, single(headers, &AFTER)?);
        let is_keyed = headers.contains_key(IDEMPOTENCY_KEY);
        let (emitter, number, after) = match (emitter, number, after) {
            (None, None, None) => return keyed(kind, headers),
            _ if is_keyed => {
                return Err(InvalidId::Sequence(
                    "a batch has an Idempotency-Key, or Mcpg-Emitter, Mcpg-Sequence and Mcpg-After: send one of the two",
                ));
            }
            (Some(emitter), Some(number), Some(after)) => (emitter, number, after),
            _ => {
                return Err(InvalidId::Sequence(
                    "Mcpg-Emitter, Mcpg-Sequence and Mcpg-After go together: send all three",
                ));
            }
        };
        let number = digits(number).filter(|number| (1..=MAX_NUMBER).contains(number));
        let number =
            number.ok_or(InvalidId::Sequence("Mcpg-Sequence is a whole number from 1 to 9223372036854775807"))?;
        let after = digits(after).filter(|after| *after < number);
        let after = after.ok_or(InvalidId::Sequence("Mcpg-After is a whole number from 0 on, below Mcpg-Sequence"))?;
        Ok(Some(Self::Sequence { lane: emitter.parse()?, number, after }))
    }

    /// What the headers of a request with sealed payloads say; their keys are apart from those of rows.
    ///
    /// # Errors
    /// As [`BatchName::from_headers`].
    pub fn of_payloads(headers: &HeaderMap) -> Result<Option<Self>, InvalidId> {
        Ok(Self::from_headers(RowKind::Event, headers)?.map(|name| match name {
            Self::Key(key) => Self::Key(IdempotencyKey::own(&format!("payloads/{key}"))),
            sequence => sequence,
        }))
    }

    /// The batch of this name, with this body.
    #[must_use]
    pub fn with_body(self, body: Fingerprint) -> BatchId {
        match self {
            Self::Key(key) => BatchId::Key { key, body },
            Self::Sequence { lane, number, after } => BatchId::Sequence { lane, number, after, body },
        }
    }
}

/// The one value of a header of numbers.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, InvalidId> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(InvalidId::Sequence("Mcpg-Emitter, Mcpg-Sequence and Mcpg-After are sent once each"));
    }
    // What is not ASCII is no value of any of them.
    Ok(Some(value.to_str().unwrap_or_default()))
}

fn keyed(kind: RowKind, headers: &HeaderMap) -> Result<Option<BatchName>, InvalidId> {
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(InvalidId::SeveralKeys);
    }
    Ok(Some(BatchName::Key(IdempotencyKey::new(kind, value.as_bytes())?)))
}

/// Why headers name no batch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidId {
    /// The `Idempotency-Key` is malformed.
    #[error(transparent)]
    Key(#[from] InvalidKey),
    /// There are several.
    #[error("several Idempotency-Key headers; send one")]
    SeveralKeys,
    /// The headers of a number are not of their form.
    #[error("{0}")]
    Sequence(&'static str),
}

impl InvalidId {
    /// The stable code of the problem.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Key(_) | Self::SeveralKeys => "invalid_idempotency_key",
            Self::Sequence(_) => "invalid_sequence",
        }
    }
}

/// The identity of a batch, by which its retries are recognized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchId {
    /// By an `Idempotency-Key`.
    Key {
        /// The key.
        key: IdempotencyKey,
        /// The body that it was sent with.
        body: Fingerprint,
    },
    /// By its number in a lane (`Mcpg-Emitter`, `Mcpg-Sequence`, `Mcpg-After`).
    Sequence {
        /// The lane.
        lane: Lane,
        /// Its number, from 1 on.
        number: u64,
        /// The number that was answered before it; 0 if none was.
        after: u64,
        /// The body that it was sent with.
        body: Fingerprint,
    },
}

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

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderName, HeaderValue};
    use uuid::Uuid;

    use super::{BatchId, BatchName, Fingerprint, IdempotencyKey, InvalidId, Lane};
    use crate::ingest::RowKind;

    const EMITTER: &str = "7d444840-9dc0-11d1-b245-5ffdce74fad2/3";

    fn named(headers: &[(&'static str, &str)]) -> Result<Option<BatchName>, InvalidId> {
        let mut all = HeaderMap::new();
        for (name, value) in headers {
            all.append(HeaderName::from_static(name), HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        BatchName::from_headers(RowKind::Sample, &all)
    }

    fn numbered(emitter: &str, number: &str, after: &str) -> Result<Option<BatchName>, InvalidId> {
        named(&[("mcpg-emitter", emitter), ("mcpg-sequence", number), ("mcpg-after", after)])
    }

    #[test]
    fn headers_name_a_batch_by_key_by_number_or_not_at_all() {
        let lane = Lane { emitter: Uuid::from_u128(0x7d444840_9dc0_11d1_b245_5ffdce74fad2), lane: 3 };
        assert_eq!(lane.to_string(), EMITTER);
        assert_eq!(named(&[]), Ok(None));
        assert_eq!(
            named(&[("idempotency-key", "k")]),
            Ok(Some(BatchName::Key(IdempotencyKey::new(RowKind::Sample, b"k").unwrap())))
        );
        let name = BatchName::Sequence { lane, number: 12, after: 0 };
        assert_eq!(numbered(EMITTER, "12", "0"), Ok(Some(name)));
        let body = Fingerprint(7);
        assert_eq!(name.with_body(body), BatchId::Sequence { lane, number: 12, after: 0, body });
        assert!(numbered(&EMITTER.to_uppercase(), "9223372036854775807", "9223372036854775806").is_ok());
    }

    #[test]
    fn headers_that_are_no_number_are_refused_each_with_its_reason() {
        let uuid = &EMITTER[..36];
        for (emitter, number, after, word) in [
            (uuid, "1", "0", "Mcpg-Emitter"),
            ("/1", "1", "0", "Mcpg-Emitter"),
            ("", "1", "0", "Mcpg-Emitter"),
            ("7d4448409dc011d1b2455ffdce74fad2/1", "1", "0", "Mcpg-Emitter"),
            ("00000000-0000-0000-0000-000000000000/1", "1", "0", "Mcpg-Emitter"),
            (&format!("{uuid}/65536"), "1", "0", "Mcpg-Emitter"),
            (&format!("{uuid}/-1"), "1", "0", "Mcpg-Emitter"),
            (&format!("{uuid}/"), "1", "0", "Mcpg-Emitter"),
            (&format!("{uuid}/1/2"), "1", "0", "Mcpg-Emitter"),
            ("\u{e9}", "1", "0", "Mcpg-Emitter"),
            (EMITTER, "0", "0", "Mcpg-Sequence"),
            (EMITTER, "", "0", "Mcpg-Sequence"),
            (EMITTER, "+1", "0", "Mcpg-Sequence"),
            (EMITTER, "1.0", "0", "Mcpg-Sequence"),
            (EMITTER, "9223372036854775808", "0", "Mcpg-Sequence"),
            (EMITTER, "1", "1", "Mcpg-After"),
            (EMITTER, "1", "-1", "Mcpg-After"),
            (EMITTER, "1", "", "Mcpg-After"),
        ] {
            let refused = numbered(emitter, number, after).unwrap_err();
            assert_eq!(refused.code(), "invalid_sequence");
            assert!(refused.to_string().starts_with(word), "{emitter} {number} {after}: {refused}");
        }
    }

    #[test]
    fn the_headers_of_a_number_are_all_there_once_and_without_a_key() {
        let all = [("mcpg-emitter", EMITTER), ("mcpg-sequence", "1"), ("mcpg-after", "0")];
        for left_out in 0..3 {
            let mut some = all.to_vec();
            some.remove(left_out);
            assert_eq!(named(&some).unwrap_err().code(), "invalid_sequence");
            let twice = [&all[..], &all[left_out..=left_out]].concat();
            assert_eq!(named(&twice).unwrap_err().code(), "invalid_sequence");
            assert_eq!(named(&[all[left_out], ("idempotency-key", "k")]).unwrap_err().code(), "invalid_sequence");
        }
        assert_eq!(named(&[&all[..], &[("idempotency-key", "k")]].concat()).unwrap_err().code(), "invalid_sequence");
    }

    #[test]
    fn a_key_that_is_none_keeps_its_code() {
        for headers in [&[("idempotency-key", "")][..], &[("idempotency-key", "k"), ("idempotency-key", "k")]] {
            assert_eq!(named(headers).unwrap_err().code(), "invalid_idempotency_key");
        }
    }

    /// The first 8 bytes of the BLAKE3 of nothing, little-endian: AF 13 49 B9 F5 F9 A1 A6.
    #[test]
    fn a_fingerprint_is_the_same_on_every_machine() {
        assert_eq!(Fingerprint::of(b""), Fingerprint(0xa6a1_f9f5_b949_13af));
    }
}
