//! HPKE (RFC 9180) in base mode: the two suites, key pairs, sealing a share to a public key.
//!
//! | | KEM | KDF | AEAD | public key | enc |
//! |---|---|---|---|---|---|
//! | 01 | X-Wing, MLKEM768-X25519 (0x647A) | HKDF-SHA256 | AES-256-GCM | 1,216 bytes | 1,120 bytes |
//! | 02 | DHKEM(X25519, HKDF-SHA256) (0x0020) | the same | the same | 32 bytes | 32 bytes |
//!
//! A private key is 32 bytes in both.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hpke::aead::AesGcm256;
use hpke::kdf::HkdfSha256;
use hpke::kem::{X25519HkdfSha256, XWing};
use hpke::{Deserializable, Kem, OpModeR, OpModeS, Serializable, single_shot_open, single_shot_seal_with_rng};
use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

use super::kdf::sha256;
use super::read::hex32;
use super::{Refusal, Secret};

/// How shares are sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Default)]
#[serde(try_from = "u8", into = "u8")]
pub enum Suite {
    /// X-Wing: safe as long as one of ML-KEM-768 and X25519 is not broken.
    #[default]
    XWing,
    /// X25519 alone.
    X25519,
}

impl Suite {
    /// The byte that stands for it.
    pub const fn byte(self) -> u8 {
        match self {
            Self::XWing => 1,
            Self::X25519 => 2,
        }
    }

    /// The suite of a byte.
    ///
    /// # Errors
    /// [`Refusal::Suite`] when there is no such suite.
    pub const fn of(byte: u8) -> Result<Self, Refusal> {
        match byte {
            1 => Ok(Self::XWing),
            2 => Ok(Self::X25519),
            _ => Err(Refusal::Suite),
        }
    }

    /// Bytes of a public key.
    pub const fn public_length(self) -> usize {
        match self {
            Self::XWing => 1_216,
            Self::X25519 => 32,
        }
    }

    /// Bytes of an encapsulated key.
    pub const fn enc_length(self) -> usize {
        match self {
            Self::XWing => 1_120,
            Self::X25519 => 32,
        }
    }
}

impl TryFrom<u8> for Suite {
    type Error = String;

    fn try_from(byte: u8) -> Result<Self, String> {
        Self::of(byte).map_err(|_| format!("there is no suite {byte}; 1 is X-Wing, 2 is X25519"))
    }
}

impl From<Suite> for u8 {
    fn from(suite: Suite) -> Self {
        suite.byte()
    }
}

/// SHA-256 of a public key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyId(pub [u8; 32]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<String> for KeyId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        hex32(&text).map(Self).ok_or_else(|| "a key id is 64 lower-case hex digits".to_owned())
    }
}

impl From<KeyId> for String {
    fn from(id: KeyId) -> Self {
        id.to_string()
    }
}

/// A public key of a suite. Written as `<suite> <base64>`.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey {
    suite: Suite,
    bytes: Vec<u8>,
}

impl PublicKey {
    /// A public key from its bytes.
    ///
    /// # Errors
    /// [`Refusal::Format`] when they are not of the suite.
    pub fn new(suite: Suite, bytes: &[u8]) -> Result<Self, Refusal> {
        let is_key = match suite {
            Suite::XWing => <XWing as Kem>::PublicKey::from_bytes(bytes).is_ok(),
            Suite::X25519 => <X25519HkdfSha256 as Kem>::PublicKey::from_bytes(bytes).is_ok(),
        };
        if is_key { Ok(Self { suite, bytes: bytes.to_vec() }) } else { Err(Refusal::Format) }
    }

    /// Its suite.
    pub fn suite(&self) -> Suite {
        self.suite
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// SHA-256 of its bytes.
    pub fn id(&self) -> KeyId {
        KeyId(sha256(&[&self.bytes]))
    }

    /// Seals a share: the encapsulated key, and the sealed share.
    pub(super) fn seal(&self, info: &[u8], share: &Secret) -> Result<(Vec<u8>, Vec<u8>), Refusal> {
        fn of<K: Kem>(key: &[u8], info: &[u8], share: &Secret) -> Result<(Vec<u8>, Vec<u8>), hpke::HpkeError> {
            let key = K::PublicKey::from_bytes(key)?;
            let (enc, sealed) = single_shot_seal_with_rng::<AesGcm256, HkdfSha256, K>(
                &OpModeS::Base,
                &key,
                info,
                share.expose(),
                b"",
                &mut rand::rng(),
            )?;
            Ok((enc.to_bytes().to_vec(), sealed))
        }
        let sealed = match self.suite {
            Suite::XWing => of::<XWing>(&self.bytes, info, share),
            Suite::X25519 => of::<X25519HkdfSha256>(&self.bytes, info, share),
        };
        sealed.map_err(|_| Refusal::Stanza)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.suite.byte(), BASE64.encode(&self.bytes))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.id())
    }
}

impl std::str::FromStr for PublicKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fault = || "a public key is its suite (1 or 2), a space, and its bytes in base64".to_owned();
        let (suite, key) = text.split_once(' ').ok_or_else(fault)?;
        let suite = match suite {
            "1" => Suite::XWing,
            "2" => Suite::X25519,
            _ => return Err(fault()),
        };
        let bytes = BASE64.decode(key).map_err(|_| fault())?;
        Self::new(suite, &bytes).map_err(|_| {
            format!("these are no {} bytes of a public key of suite {}", suite.public_length(), suite.byte())
        })
    }
}

impl TryFrom<String> for PublicKey {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> Self {
        key.to_string()
    }
}

/// A private key, as its seed, and the public key that is computed from it.
#[derive(Debug, Clone)]
pub struct KeyPair {
    seed: Secret,
    public: PublicKey,
}

impl KeyPair {
    /// A new key pair.
    ///
    /// # Errors
    /// Never in practice: every 32 bytes are a private key.
    pub fn random(suite: Suite) -> Result<Self, Refusal> {
        Self::of(suite, Secret::random())
    }

    /// The key pair of a seed.
    ///
    /// # Errors
    /// As [`KeyPair::random`].
    pub fn of(suite: Suite, seed: Secret) -> Result<Self, Refusal> {
        fn public<K: Kem>(seed: &Secret) -> Result<Vec<u8>, hpke::HpkeError> {
            let private = K::PrivateKey::from_bytes(seed.expose())?;
            Ok(K::sk_to_pk(&private).to_bytes().to_vec())
        }
        let bytes = match suite {
            Suite::XWing => public::<XWing>(&seed),
            Suite::X25519 => public::<X25519HkdfSha256>(&seed),
        };
        let bytes = bytes.map_err(|_| Refusal::Format)?;
        Ok(Self { seed, public: PublicKey { suite, bytes } })
    }

    /// The public key.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// The seed.
    pub fn seed(&self) -> &Secret {
        &self.seed
    }

    /// Opens a share.
    pub(super) fn open(&self, info: &[u8], enc: &[u8], sealed: &[u8]) -> Result<Secret, Refusal> {
        fn of<K: Kem>(seed: &Secret, info: &[u8], enc: &[u8], sealed: &[u8]) -> Result<Vec<u8>, hpke::HpkeError> {
            let private = K::PrivateKey::from_bytes(seed.expose())?;
            let enc = K::EncappedKey::from_bytes(enc)?;
            single_shot_open::<AesGcm256, HkdfSha256, K>(&OpModeR::Base, &private, &enc, info, sealed, b"")
        }
        let opened = match self.public.suite {
            Suite::XWing => of::<XWing>(&self.seed, info, enc, sealed),
            Suite::X25519 => of::<X25519HkdfSha256>(&self.seed, info, enc, sealed),
        };
        let mut opened = opened.map_err(|_| Refusal::Stanza)?;
        let share = opened.as_slice().try_into().map(Secret::new).map_err(|_| Refusal::Stanza);
        opened.zeroize();
        share
    }
}
