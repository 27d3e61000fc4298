//! Authenticity: what a node takes from the store carries a MAC under a key that is not in the store.
//!
//! A party that can write to the store can put any bytes there. Hashes and chains show that bytes are what was written,
//! not who wrote them. So log objects, floors, states, runs of keys and the layout end in a trailer of 83 bytes:
//!
//! ```text
//! "\n" ‖ key id, 16 hex ‖ " " ‖ MAC, 64 hex ‖ "\n"
//! ```
//!
//! The MAC is keyed BLAKE3 over the length of the object's name (u64 little-endian), the name, and all bytes before the
//! trailer: an object that is copied under another name, of another org for example, does not fit. The key is derived
//! from the ledger's signing key (BLAKE3 `derive_key`); its id is the beginning of a hash of it.
//!
//! A MAC under a key that this node lacks is no damage: the node is configured otherwise than those that write, and
//! stops.

use std::fmt;

use bytes::Bytes;

use crate::storage::StorageError;

/// What the log's keys are derived from the ledger's signing keys with.
pub const DERIVATION: &str = "mcpg 2026-11-26 MAC of log objects and states";

const ID: usize = 8;
const TRAILER: usize = 1 + 2 * ID + 1 + 64 + 1;

/// Names a key without telling it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyId([u8; ID]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

struct Key {
    id: KeyId,
    secret: [u8; 32],
}

impl Key {
    fn new(secret: [u8; 32]) -> Self {
        let hash = blake3::derive_key("mcpg 2026-11-26 id of a MAC key", &secret);
        let id = hash.first_chunk::<ID>().copied().unwrap_or_default();
        Self { id: KeyId(id), secret }
    }

    fn mac(&self, name: &str, body: &[u8]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.secret);
        hasher.update(&(name.len() as u64).to_le_bytes()).update(name.as_bytes()).update(body);
        hasher.finalize()
    }
}

/// The keys of a deployment: what is written is authenticated by the current one; the others are known to readers.
pub struct LogKeys {
    current: Key,
    others: Vec<Key>,
    /// Whether any MAC of a key that is known fits: without rule L8.
    credulous: bool,
}

impl fmt::Debug for LogKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let others: Vec<_> = self.others.iter().map(|key| key.id).collect();
        f.debug_struct("LogKeys").field("current", &self.current.id).field("others", &others).finish()
    }
}

impl LogKeys {
    /// Writes with `current`, reads with the others too.
    pub fn new(current: [u8; 32], others: impl IntoIterator<Item = [u8; 32]>) -> Self {
        Self { current: Key::new(current), others: others.into_iter().map(Key::new).collect(), credulous: false }
    }

    /// The same keys without rule L8, so that the simulation can show what it is for.
    pub(crate) fn without_macs(self) -> Self {
        Self { credulous: true, ..self }
    }

    /// The key that is written with.
    pub fn current(&self) -> KeyId {
        self.current.id
    }

    /// Appends the trailer to an object's bytes.
    pub fn seal(&self, name: &str, mut body: Vec<u8>) -> Bytes {
        let trailer = self.trailer(name, &body);
        body.extend_from_slice(&trailer);
        body.into()
    }

    /// The trailer of an object of this name and these bytes.
    pub fn trailer(&self, name: &str, body: &[u8]) -> Vec<u8> {
        format!("\n{} {}\n", self.current.id, self.current.mac(name, body).to_hex()).into_bytes()
    }

    /// Whether there are keys that are only read with: of the time of a change.
    pub fn has_others(&self) -> bool {
        !self.others.is_empty()
    }

    /// The same object under the current key, if it is under another one that is known.
    ///
    /// # Errors
    /// As [`LogKeys::open`].
    pub fn reseal(&self, name: &str, bytes: &Bytes) -> Result<Option<Bytes>, StorageError> {
        let body = self.open(name, bytes)?;
        let sealed = self.seal(name, body.to_vec());
        Ok(Some(sealed).filter(|sealed| sealed != bytes))
    }

    /// How many bytes a trailer has.
    pub const fn trailer_length() -> usize {
        TRAILER
    }

    /// The bytes before the trailer, once it fits.
    ///
    /// # Errors
    /// [`StorageError::Damaged`] when it does not; [`StorageError::Unusable`] when it is of a key that this node lacks.
    pub fn open(&self, name: &str, bytes: &Bytes) -> Result<Bytes, StorageError> {
        let damaged = |reason: &str| StorageError::damaged(name, reason);
        let at = bytes.len().checked_sub(TRAILER).ok_or_else(|| damaged("it is too short to carry a MAC"))?;
        self.check(name, bytes.get(..at).unwrap_or_default(), bytes.get(at..).unwrap_or_default())?;
        Ok(bytes.slice(..at))
    }

    /// Checks a trailer that is kept apart from its object's bytes.
    ///
    /// # Errors
    /// As [`LogKeys::open`].
    pub fn check(&self, name: &str, body: &[u8], trailer: &[u8]) -> Result<(), StorageError> {
        let damaged = |reason: &str| StorageError::damaged(name, reason);
        let text = std::str::from_utf8(trailer).ok();
        let text = text.and_then(|text| text.strip_prefix('\n')?.strip_suffix('\n'));
        let (id, mac) = text.and_then(|text| text.split_once(' ')).ok_or_else(|| damaged("it ends in no MAC"))?;
        let known = [&self.current].into_iter().chain(&self.others).find(|key| key.id.to_string() == id);
        // One form for each MAC: a letter in upper case is a changed byte as any other.
        let lower =
            |text: &str, digits| text.len() == digits && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if !lower(id, 2 * ID) || !lower(mac, 64) {
            return Err(damaged("it ends in no MAC"));
        }
        let mac = blake3::Hash::from_hex(mac).map_err(|_| damaged("it ends in no MAC"))?;
        let Some(key) = known else {
            return Err(StorageError::Unusable {
                url: name.to_owned(),
                reason: format!(
                    "it is authenticated by the key {id}, which this node lacks; start with the key that the other nodes \
                     have (audit.key_file), or keep the one before as audit.previous_key_file"
                ),
            });
        };
        // The comparison of hashes takes the same time wherever they differ.
        if key.mac(name, body) == mac || self.credulous {
            Ok(())
        } else {
            Err(damaged("its MAC does not fit: it is not what was written"))
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::LogKeys;
    use crate::storage::StorageError;

    fn keys(seed: u8) -> LogKeys {
        LogKeys::new([seed; 32], [])
    }

    #[test]
    fn sealed_bytes_open_under_their_name_alone() {
        let sealed = keys(1).seal("orgs/a/state/1", b"body".to_vec());
        assert_eq!(keys(1).open("orgs/a/state/1", &sealed).unwrap(), "body");
        assert!(keys(1).open("orgs/b/state/1", &sealed).unwrap_err().is_damage());
    }

    #[test]
    fn a_key_that_is_lacking_is_the_nodes_trouble_and_names_itself() {
        let sealed = keys(1).seal("x", Vec::new());
        let refused = keys(2).open("x", &sealed).unwrap_err();
        assert!(matches!(refused, StorageError::Unusable { .. }), "{refused}");
        assert!(refused.to_string().contains(&keys(1).current().to_string()));
        assert_eq!(LogKeys::new([2; 32], [[1; 32]]).open("x", &sealed).unwrap(), "");
    }

    #[test]
    fn a_letter_of_the_mac_in_upper_case_is_a_changed_byte() {
        let sealed = keys(1).seal("x", b"body".to_vec());
        let body = sealed.len() - LogKeys::trailer_length();
        let letters: Vec<_> = (body..sealed.len()).filter(|at| sealed[*at].is_ascii_lowercase()).collect();
        assert!(letters.len() > 10, "a trailer has letters: {sealed:?}");
        for at in letters {
            let mut changed = sealed.to_vec();
            changed[at] = changed[at].to_ascii_uppercase();
            let refused = keys(1).open("x", &Bytes::from(changed)).unwrap_err();
            assert!(refused.is_damage(), "byte {at}: {refused}");
        }
    }

    proptest! {
        #[test]
        fn a_changed_or_missing_byte_is_noticed(body in prop::collection::vec(any::<u8>(), 0..80), at in any::<prop::sample::Index>(), flip in 1u8..) {
            let sealed = keys(1).seal("x", body);
            let mut changed = sealed.to_vec();
            let at = at.index(changed.len());
            changed[at] ^= flip;
            prop_assert!(keys(1).open("x", &Bytes::from(changed)).is_err());
            prop_assert!(keys(1).open("x", &sealed.slice(..at)).is_err());
        }
    }
}
