//! An envelope: the shares of a content key, each sealed to one public key.
//!
//! ```text
//! "MCPE" ‖ 01 ‖ suite ‖ lp(org) ‖ lp(epoch) ‖ n (u8: 1 or 2) ‖ stanza × n
//! stanza = kind (u8: 01 epoch key, then 02 tenant's recipient) ‖ key id (32) ‖ lp(enc) ‖ sealed (48)
//! ```
//!
//! With two stanzas neither key alone opens anything: the content key is derived of both shares.

use bytes::Bytes;

use super::kdf::hkdf;
use super::read::{Reader, push_lp};
use super::{Digest, Epoch, KeyId, KeyPair, PublicKey, Refusal, Secret, Suite};
use crate::model::OrgName;
use zeroize::Zeroize;

const MAGIC: &[u8] = b"MCPE\x01";
const STANZA: &[u8] = b"mcpg.payload/1 stanza";
const CONTENT: &[u8] = b"mcpg.payload/1 content";
/// Bytes of a sealed share: the share and AES-GCM's tag.
const SEALED: usize = 48;
/// The kinds of stanzas, in their order.
const KINDS: [u8; 2] = [1, 2];

/// The most records of one envelope.
pub const MAX_RECORDS: u64 = 4_096;

/// Whom an envelope is sealed to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipients {
    /// The epoch's key.
    pub epoch: PublicKey,
    /// The tenant's own, of the same suite; with it neither side opens alone.
    pub tenant: Option<PublicKey>,
}

/// One of the shares that a content key is derived of.
pub type Share = Secret;

/// What records are sealed with.
#[derive(Debug, Clone)]
pub struct ContentKey(Secret);

impl ContentKey {
    pub(super) fn expose(&self) -> &[u8; 32] {
        self.0.expose()
    }

    /// The content key of an envelope's shares, in the order of its stanzas.
    pub(super) fn derive(envelope_id: &Digest, shares: &[&Share]) -> Self {
        let mut ikm: Vec<u8> = shares.iter().flat_map(|share| share.expose().iter().copied()).collect();
        let mut key = hkdf(&[0; 32], &ikm, &[CONTENT, &envelope_id.0]);
        let content = Secret::new(&key);
        ikm.zeroize();
        key.zeroize();
        Self(content)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Stanza {
    kind: u8,
    key_id: KeyId,
    enc: Vec<u8>,
    sealed: Vec<u8>,
}

/// A whole envelope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    bytes: Bytes,
    id: Digest,
    suite: Suite,
    org: OrgName,
    epoch: Epoch,
    stanzas: Vec<Stanza>,
}

fn info(kind: u8, org: &OrgName, epoch: Epoch, key_id: &KeyId) -> Result<Vec<u8>, Refusal> {
    let mut info = STANZA.to_vec();
    info.push(kind);
    push_lp(&mut info, org.as_str().as_bytes())?;
    push_lp(&mut info, epoch.to_string().as_bytes())?;
    info.extend_from_slice(&key_id.0);
    Ok(info)
}

impl Envelope {
    /// Makes fresh shares and seals them. Gives the envelope, and the key for its records.
    ///
    /// # Errors
    /// [`Refusal::Suite`] when the two keys are of different suites, [`Refusal::Stanza`] when a key cannot be sealed
    /// to.
    pub fn seal(org: &OrgName, epoch: Epoch, recipients: &Recipients) -> Result<(Self, ContentKey), Refusal> {
        let suite = recipients.epoch.suite();
        let keys: Vec<&PublicKey> =
            [Some(&recipients.epoch), recipients.tenant.as_ref()].into_iter().flatten().collect();
        let mut bytes = MAGIC.to_vec();
        bytes.push(suite.byte());
        push_lp(&mut bytes, org.as_str().as_bytes())?;
        push_lp(&mut bytes, epoch.to_string().as_bytes())?;
        bytes.push(u8::try_from(keys.len()).map_err(|_| Refusal::Format)?);
        let mut shares = Vec::with_capacity(keys.len());
        for (kind, key) in KINDS.into_iter().zip(&keys) {
            if key.suite() != suite {
                return Err(Refusal::Suite);
            }
            let (share, key_id) = (Share::random(), key.id());
            let (enc, sealed) = key.seal(&info(kind, org, epoch, &key_id)?, &share)?;
            bytes.push(kind);
            bytes.extend_from_slice(&key_id.0);
            push_lp(&mut bytes, &enc)?;
            bytes.extend_from_slice(&sealed);
            shares.push(share);
        }
        let envelope = Self::parse(bytes.into())?;
        let key = ContentKey::derive(&envelope.id, &shares.iter().collect::<Vec<_>>());
        Ok((envelope, key))
    }

    /// Reads an envelope.
    ///
    /// # Errors
    /// [`Refusal::Format`] and [`Refusal::Suite`].
    pub fn parse(bytes: Bytes) -> Result<Self, Refusal> {
        let mut reader = Reader::new(&bytes);
        reader.expect(MAGIC)?;
        let suite = Suite::of(reader.u8()?)?;
        let org = reader.text()?.parse().map_err(|_| Refusal::Format)?;
        let epoch = reader.text()?.parse().map_err(|_| Refusal::Format)?;
        let count = usize::from(reader.u8()?);
        if !(1..=KINDS.len()).contains(&count) {
            return Err(Refusal::Format);
        }
        let mut stanzas = Vec::with_capacity(count);
        for expected in KINDS.into_iter().take(count) {
            let kind = reader.u8()?;
            let key_id = KeyId(reader.array()?);
            let enc = reader.lp()?.to_vec();
            let sealed = reader.take(SEALED)?.to_vec();
            if kind != expected || enc.len() != suite.enc_length() {
                return Err(Refusal::Format);
            }
            stanzas.push(Stanza { kind, key_id, enc, sealed });
        }
        reader.end()?;
        let id = Digest::of(&bytes);
        Ok(Self { bytes, id, suite, org, epoch, stanzas })
    }

    /// SHA-256 of its bytes.
    pub fn id(&self) -> Digest {
        self.id
    }

    /// Its bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// How its shares are sealed.
    pub fn suite(&self) -> Suite {
        self.suite
    }

    /// Whose.
    pub fn org(&self) -> &OrgName {
        &self.org
    }

    /// The epoch of its records.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The id of the epoch's key that it is sealed to.
    pub fn epoch_key(&self) -> Option<KeyId> {
        self.stanzas.first().map(|stanza| stanza.key_id)
    }

    /// The id of the tenant's key, where it needs one to be opened.
    pub fn tenant_key(&self) -> Option<KeyId> {
        self.stanzas.get(1).map(|stanza| stanza.key_id)
    }

    /// Opens the share of the stanza at this place: 0 is the epoch's, 1 the tenant's.
    ///
    /// # Errors
    /// [`Refusal::Stanza`] when it is missing, is another key's, or does not open; [`Refusal::Suite`] when the
    /// key is of another suite.
    pub fn share(&self, place: usize, key: &KeyPair) -> Result<Share, Refusal> {
        let stanza = self.stanzas.get(place).ok_or(Refusal::Stanza)?;
        if key.public().suite() != self.suite {
            return Err(Refusal::Suite);
        }
        if key.public().id() != stanza.key_id {
            return Err(Refusal::Stanza);
        }
        key.open(&info(stanza.kind, &self.org, self.epoch, &stanza.key_id)?, &stanza.enc, &stanza.sealed)
    }

    /// The key of its records, from all of its shares in order.
    ///
    /// # Errors
    /// [`Refusal::Stanza`] when there are fewer or more shares than stanzas.
    pub fn content_key(&self, shares: &[&Share]) -> Result<ContentKey, Refusal> {
        if shares.len() == self.stanzas.len() { Ok(ContentKey::derive(&self.id, shares)) } else { Err(Refusal::Stanza) }
    }
}
