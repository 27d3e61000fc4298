//! One direction of one call, sealed.
//!
//! ```text
//! offset  bytes
//!      0      4  "MCPY"
//!      4      1  01
//!      5      1  suite, as the envelope's
//!      6      2  h = length of the header
//!      8     32  envelope_id
//!     40     32  salt, random
//!     72      h  header
//!   72+h     32  commitment
//!  104+h      …  AES-256-GCM ciphertext ‖ tag (16)
//! ```
//!
//! The commitment is compared before anything is decrypted: AES-GCM alone lets one ciphertext be made that opens under
//! two keys.

use std::cell::RefCell;
use std::fmt;

use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::{Aes256Gcm, Nonce, Tag};
use bytes::Bytes;
use rand::Rng;
use zeroize::{Zeroize, Zeroizing};

use super::kdf::{hkdf, is_same, sha256};
use super::padme::padded;
use super::read::Reader;
use super::{ContentKey, Digest, Envelope, Header, Refusal, Suite};

const MAGIC: &[u8] = b"MCPY\x01";
const RECORD: &[u8] = b"mcpg.payload/1 record";
const COMMIT: &[u8] = b"mcpg.payload/1 commit";
const TAG: usize = 16;
/// Flag, raw length and body length before the body.
const FRONT: usize = 9;
/// The greatest that a cap may be.
pub const MAX_CAP: usize = 16 << 20;
/// The compression level: each one above costs more than it saves.
const LEVEL: i32 = 1;

thread_local! {
    // To make a context costs as much as to seal 1 KiB.
    static COMPRESSOR: RefCell<Option<zstd::bulk::Compressor<'static>>> = const { RefCell::new(None) };
}

/// What was opened. It is wiped when it is dropped, and shows itself nowhere.
pub struct Plaintext(Zeroizing<Vec<u8>>);

impl Plaintext {
    /// The bytes.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Plaintext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Plaintext")
    }
}

/// What is to be sealed. It is wiped when it is dropped, and shows itself nowhere.
pub struct Content(Zeroizing<Vec<u8>>);

impl Content {
    /// Takes over bytes, of which at most `cap` are kept. Says how many there were where some were cut off; text is cut
    /// where a character ends.
    pub fn new(bytes: Vec<u8>, cap: usize) -> (Self, Option<u64>) {
        let mut content = Self(Zeroizing::new(bytes));
        let whole = content.0.len();
        if whole <= cap {
            return (content, None);
        }
        let mut end = cap;
        // A UTF-8 character's bytes after the first begin with 10.
        while end > 0 && content.0.get(end).is_some_and(|byte| byte & 0xC0 == 0x80) {
            end -= 1;
        }
        if let Some(rest) = content.0.get_mut(end..) {
            rest.zeroize();
        }
        content.0.truncate(end);
        (content, Some(whole as u64))
    }

    /// How many bytes are kept.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Content")
    }
}

/// Seals records under one envelope.
#[derive(Debug, Clone)]
pub struct Sealer {
    envelope: Digest,
    suite: Suite,
    key: ContentKey,
}

impl Sealer {
    /// Under this envelope, with the key that was made with it.
    pub fn new(envelope: &Envelope, key: ContentKey) -> Self {
        Self { envelope: envelope.id(), suite: envelope.suite(), key }
    }

    /// Seals one direction of one call.
    ///
    /// # Errors
    /// [`Refusal::Format`] when the header is too long, [`Refusal::Length`] when the content is.
    pub fn seal(&self, header: &Header, content: &Content, compress: bool) -> Result<Bytes, Refusal> {
        let mut salt = [0; 32];
        rand::rng().fill_bytes(&mut salt);
        let plaintext = plaintext(&content.0, compress)?;
        self.seal_with(&header.write()?, salt, plaintext)
    }

    pub(super) fn seal_with(
        &self,
        header: &[u8],
        salt: [u8; 32],
        mut plaintext: Zeroizing<Vec<u8>>,
    ) -> Result<Bytes, Refusal> {
        let length = u16::try_from(header.len()).map_err(|_| Refusal::Format)?;
        let mut record = Vec::with_capacity(104 + header.len() + plaintext.len() + TAG);
        record.extend_from_slice(MAGIC);
        record.push(self.suite.byte());
        record.extend_from_slice(&length.to_be_bytes());
        record.extend_from_slice(&self.envelope.0);
        record.extend_from_slice(&salt);
        record.extend_from_slice(header);
        let keys = RecordKeys::derive(&self.key, &salt, &record);
        record.extend_from_slice(&keys.commitment);
        let cipher = Aes256Gcm::new(&keys.key.into());
        let tag = cipher.encrypt_inout_detached(&Nonce::from(keys.nonce), &record, plaintext.as_mut_slice().into());
        let tag = tag.map_err(|_| Refusal::Length)?;
        // What stands there now is ciphertext.
        record.extend_from_slice(&plaintext);
        record.extend_from_slice(&tag);
        Ok(record.into())
    }
}

/// What one record is sealed with.
struct RecordKeys {
    key: [u8; 32],
    nonce: [u8; 12],
    commitment: [u8; 32],
}

impl RecordKeys {
    /// Of the record's bytes up to its commitment.
    fn derive(key: &ContentKey, salt: &[u8], front: &[u8]) -> Self {
        let d = sha256(&[front]);
        let mut both: [u8; 44] = hkdf(salt, key.expose(), &[RECORD, &d]);
        let (mut record_key, mut nonce) = ([0; 32], [0; 12]);
        let (front, back) = both.split_at(32);
        record_key.copy_from_slice(front);
        nonce.copy_from_slice(back);
        both.zeroize();
        Self { key: record_key, nonce, commitment: hkdf(salt, key.expose(), &[COMMIT, &d]) }
    }
}

impl Drop for RecordKeys {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

/// Flag, lengths, body and padding.
fn plaintext(content: &[u8], compress: bool) -> Result<Zeroizing<Vec<u8>>, Refusal> {
    let raw = u32::try_from(content.len()).map_err(|_| Refusal::Length)?;
    let packed = compress.then(|| packed(content)).flatten().map(Zeroizing::new);
    let packed = packed.filter(|packed| packed.len() < content.len());
    let (flag, body) = match &packed {
        Some(packed) => (1, packed.as_slice()),
        None => (0, content),
    };
    let length = u32::try_from(body.len()).map_err(|_| Refusal::Length)?;
    let mut out = Zeroizing::new(Vec::with_capacity(padded(FRONT + body.len())));
    out.push(flag);
    out.extend_from_slice(&raw.to_be_bytes());
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(body);
    out.resize(padded(FRONT + body.len()), 0);
    Ok(out)
}

/// One zstd frame; none where the library cannot make one, and what is sealed is then not compressed.
fn packed(content: &[u8]) -> Option<Vec<u8>> {
    COMPRESSOR.with_borrow_mut(|kept| {
        if kept.is_none() {
            *kept = zstd::bulk::Compressor::new(LEVEL).ok();
        }
        kept.as_mut()?.compress(content).ok()
    })
}

/// A record as it was read.
#[derive(Debug, Clone)]
pub struct Record {
    bytes: Bytes,
    suite: Suite,
    envelope: Digest,
    header: Header,
    /// Where the header ends.
    end: usize,
}

impl Record {
    /// Reads a record.
    ///
    /// # Errors
    /// [`Refusal::Format`] and [`Refusal::Suite`].
    pub fn parse(bytes: Bytes) -> Result<Self, Refusal> {
        let mut reader = Reader::new(&bytes);
        reader.expect(MAGIC)?;
        let suite = Suite::of(reader.u8()?)?;
        let length = reader.u16()?;
        let envelope = Digest(reader.array()?);
        let _salt: [u8; 32] = reader.array()?;
        let header = Header::read(reader.take(length)?)?;
        let _commitment: [u8; 32] = reader.array()?;
        if reader.rest().len() < TAG {
            return Err(Refusal::Format);
        }
        Ok(Self { suite, envelope, header, end: 72 + length, bytes })
    }

    /// Its bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// SHA-256 of all of them: what the ledger calls it by.
    pub fn hash(&self) -> Digest {
        Digest::of(&self.bytes)
    }

    /// The envelope that it was sealed under.
    pub fn envelope(&self) -> Digest {
        self.envelope
    }

    /// How the envelope's shares are sealed.
    pub fn suite(&self) -> Suite {
        self.suite
    }

    /// Where its header ends and the commitment begins.
    #[cfg(test)]
    pub(super) fn end_of_header(&self) -> usize {
        self.end
    }

    /// What it says of itself.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Whether it is a record of this envelope, as far as the two say.
    ///
    /// # Errors
    /// [`Refusal::Suite`], [`Refusal::Envelope`].
    pub fn check(&self, envelope: &Envelope) -> Result<(), Refusal> {
        if self.suite != envelope.suite() {
            return Err(Refusal::Suite);
        }
        let is_its = self.envelope == envelope.id()
            && self.header.org == *envelope.org()
            && self.header.epoch == envelope.epoch();
        if is_its { Ok(()) } else { Err(Refusal::Envelope) }
    }

    /// Opens it. A server calls this after it has put the view on the ledger.
    ///
    /// # Errors
    /// The first reason of the specification that applies.
    pub fn open(&self, envelope: &Envelope, key: &ContentKey, cap: usize) -> Result<Plaintext, Refusal> {
        self.check(envelope)?;
        let (front, rest) = self.bytes.split_at_checked(self.end).ok_or(Refusal::Format)?;
        let (commitment, sealed) = rest.split_first_chunk::<32>().ok_or(Refusal::Format)?;
        let salt = front.get(40..72).ok_or(Refusal::Format)?;
        let keys = RecordKeys::derive(key, salt, front);
        if !is_same(keys.commitment, *commitment) {
            return Err(Refusal::Commitment);
        }
        let (ciphertext, tag) = sealed.split_last_chunk::<TAG>().ok_or(Refusal::Format)?;
        let aad = self.bytes.get(..self.end + 32).ok_or(Refusal::Format)?;
        let mut opened = Zeroizing::new(ciphertext.to_vec());
        Aes256Gcm::new(&keys.key.into())
            .decrypt_inout_detached(&Nonce::from(keys.nonce), aad, opened.as_mut_slice().into(), &Tag::from(*tag))
            .map_err(|_| Refusal::Tag)?;
        unpadded(&opened, cap)
    }
}

fn unpadded(plaintext: &[u8], cap: usize) -> Result<Plaintext, Refusal> {
    let mut reader = Reader::new(plaintext);
    let mut front = || Ok::<_, Refusal>((reader.u8()?, reader.u32()?, reader.u32()?));
    let (flag, raw, length) = front().map_err(|_| Refusal::Padding)?;
    let (raw, length) = (raw as usize, length as usize);
    if raw > cap.min(MAX_CAP) {
        return Err(Refusal::Length);
    }
    let body = reader.take(length).map_err(|_| Refusal::Padding)?;
    let is_padded = reader.rest().iter().all(|byte| *byte == 0) && plaintext.len() == padded(FRONT + length);
    if !is_padded || flag > 1 {
        return Err(Refusal::Padding);
    }
    if flag == 0 {
        return if length == raw { Ok(Plaintext(Zeroizing::new(body.to_vec()))) } else { Err(Refusal::Length) };
    }
    if zstd::zstd_safe::find_frame_compressed_size(body).ok() != Some(length) {
        return Err(Refusal::Length);
    }
    let unpacked = zstd::bulk::decompress(body, raw).map_err(|_| Refusal::Length)?;
    let unpacked = Zeroizing::new(unpacked);
    if unpacked.len() == raw { Ok(Plaintext(unpacked)) } else { Err(Refusal::Length) }
}
