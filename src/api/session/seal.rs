//! Sealing what a browser keeps: AES-256-GCM under a key that all nodes have, so that no node need remember a session.
//!
//! ```text
//! number (u8) ‖ nonce (12, random) ‖ ciphertext ‖ tag (16)      as base64url without padding
//! key    = HKDF-SHA256(no salt, the ledger key's seed or session.key_file, "mcpg.session/1", 32)
//! number = HKDF-SHA256(no salt, the same, "mcpg.session/1 number", 1)
//! AAD    = "mcpg.session/1" ‖ lp(cookie's name) ‖ lp(origin)     lp(x) = u16 length of x, big-endian ‖ x
//! ```
//!
//! The number tells which of the current and the previous key to open with; it is the key's own, so nodes that are
//! given a new key one after the other agree on it. A cookie of one name or origin does not open as another's.

use std::fmt;

use aes_gcm::aead::{Aead, Payload};
use aes_gcm::{Aes256Gcm, KeyInit, Nonce};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use hkdf::Hkdf;
use rand::Rng;
use sha2::Sha256;
use zeroize::Zeroizing;

const INFO: &[u8] = b"mcpg.session/1";
const NUMBER_INFO: &[u8] = b"mcpg.session/1 number";
const NONCE: usize = 12;

/// Seals and opens cookies.
pub struct Sealer {
    current: Key,
    previous: Option<Key>,
}

struct Key {
    number: u8,
    cipher: Aes256Gcm,
}

impl Key {
    /// The key of a secret; none where HKDF or AES refuse what is of the right length.
    fn new(secret: &[u8]) -> Option<Self> {
        let hkdf = Hkdf::<Sha256>::new(None, secret);
        let (mut key, mut number) = (Zeroizing::new([0_u8; 32]), [0_u8; 1]);
        hkdf.expand(INFO, key.as_mut_slice()).ok()?;
        hkdf.expand(NUMBER_INFO, &mut number).ok()?;
        let [number] = number;
        Some(Self { number, cipher: Aes256Gcm::new_from_slice(key.as_slice()).ok()? })
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer").field("overlap", &self.previous.is_some()).finish_non_exhaustive()
    }
}

impl Sealer {
    /// Seals with a key made of `current`; opens what was sealed with `previous` too. None where no key can be made.
    pub(crate) fn new(current: &[u8], previous: Option<&[u8]>) -> Option<Self> {
        let previous = match previous {
            Some(secret) => Some(Key::new(secret)?),
            None => None,
        };
        Some(Self { current: Key::new(current)?, previous })
    }

    /// Seals a text for a cookie; none where AES refuses.
    pub(super) fn seal(&self, name: &str, origin: &str, text: &[u8]) -> Option<String> {
        let mut nonce = [0; NONCE];
        rand::rng().fill_bytes(&mut nonce);
        let aad = aad(name, origin)?;
        let sealed = self.current.cipher.encrypt(&Nonce::from(nonce), Payload { msg: text, aad: &aad }).ok()?;
        Some(BASE64_URL_SAFE_NO_PAD.encode([&[self.current.number][..], &nonce, &sealed].concat()))
    }

    /// What was sealed for this cookie; none of what is anything else.
    pub(super) fn open(&self, name: &str, origin: &str, sealed: &str) -> Option<Zeroizing<Vec<u8>>> {
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(sealed).ok()?;
        let (number, rest) = bytes.split_first()?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE>()?;
        let aad = aad(name, origin)?;
        // Two keys may have the same number, one time in 256.
        let keys = [Some(&self.current), self.previous.as_ref()].into_iter().flatten();
        let mut keys = keys.filter(|key| key.number == *number);
        let open = |key: &Key| key.cipher.decrypt(&Nonce::from(*nonce), Payload { msg: sealed, aad: &aad }).ok();
        keys.find_map(open).map(Zeroizing::new)
    }
}

fn aad(name: &str, origin: &str) -> Option<Vec<u8>> {
    let mut aad = INFO.to_vec();
    for text in [name, origin] {
        aad.extend_from_slice(&u16::try_from(text.len()).ok()?.to_be_bytes());
        aad.extend_from_slice(text.as_bytes());
    }
    Some(aad)
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::prelude::BASE64_URL_SAFE_NO_PAD;

    use super::Sealer;

    const NAME: &str = "__Host-mcpg";
    const ORIGIN: &str = "https://mcpg.example";

    fn sealer(current: u8, previous: Option<u8>) -> Sealer {
        Sealer::new(&[current; 32], previous.map(|byte| [byte; 32]).as_ref().map(<[u8; 32]>::as_slice)).unwrap()
    }

    #[test]
    fn what_is_sealed_is_read_back_by_every_node_of_the_key_and_by_no_other() {
        let sealed = sealer(1, None).seal(NAME, ORIGIN, b"alice").unwrap();
        assert_eq!(sealer(1, None).open(NAME, ORIGIN, &sealed).unwrap().as_slice(), b"alice");
        assert!(sealer(2, None).open(NAME, ORIGIN, &sealed).is_none());
        assert_ne!(sealer(1, None).seal(NAME, ORIGIN, b"alice").unwrap(), sealed, "the nonce is fresh");
    }

    #[test]
    fn the_key_before_opens_for_the_time_of_a_change_in_either_order_of_nodes() {
        let (old, both, new) = (sealer(1, None), sealer(2, Some(1)), sealer(2, None));
        let of_old = old.seal(NAME, ORIGIN, b"x").unwrap();
        assert!(both.open(NAME, ORIGIN, &of_old).is_some());
        assert!(new.open(NAME, ORIGIN, &of_old).is_none());
        // A node whose previous key is the new one opens what the others seal already.
        let of_both = both.seal(NAME, ORIGIN, b"x").unwrap();
        assert!(sealer(1, Some(2)).open(NAME, ORIGIN, &of_both).is_some());
        assert!(old.open(NAME, ORIGIN, &of_both).is_none());
    }

    #[test]
    fn a_cookie_of_another_name_origin_or_byte_does_not_open() {
        let sealer = sealer(1, None);
        let sealed = sealer.seal(NAME, ORIGIN, b"alice").unwrap();
        assert!(sealer.open("__Host-mcpg-login", ORIGIN, &sealed).is_none());
        assert!(sealer.open(NAME, "https://mcpg.example:8443", &sealed).is_none());
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(&sealed).unwrap();
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(sealer.open(NAME, ORIGIN, &BASE64_URL_SAFE_NO_PAD.encode(changed)).is_none(), "byte {at}");
        }
        for odd in ["", "A", "====", &sealed[..20], &format!("{sealed}A")] {
            assert!(sealer.open(NAME, ORIGIN, odd).is_none(), "{odd}");
        }
    }
}
