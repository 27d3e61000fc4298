//! SHA-256 hashes, and their text: 64 lower-case hex digits.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};

/// A SHA-256 hash (FIPS 180-4).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// All zeros: what the first entry has for its predecessor's hash.
    pub const ZERO: Self = Self([0; 32]);

    /// The hash of `parts`, one after the other.
    pub fn of(parts: &[&[u8]]) -> Self {
        let mut hasher = Sha256::new();
        parts.iter().for_each(|part| hasher.update(part));
        Self(hasher.finalize().into())
    }

    /// Its text, in ASCII.
    pub fn hex(&self) -> [u8; 64] {
        let mut text = [0; 64];
        for (pair, byte) in text.as_chunks_mut::<2>().0.iter_mut().zip(self.0) {
            *pair = [digit(byte >> 4), digit(byte & 15)];
        }
        text
    }

    /// Adds its text to `out`.
    pub fn write_hex(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.hex());
    }
}

/// The hex digit of a number below 16.
const fn digit(number: u8) -> u8 {
    if number < 10 { b'0' + number } else { b'a' - 10 + number }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The number that a hex digit in lower case stands for; more than 15 for any other byte.
const fn value(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        b'a'..=b'f' => digit - b'a' + 10,
        _ => u8::MAX,
    }
}

/// Said of a text that is no hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a hash is 64 lower-case hex digits")]
pub struct InvalidHash;

impl FromStr for Hash {
    type Err = InvalidHash;

    fn from_str(text: &str) -> Result<Self, InvalidHash> {
        let pairs = text.as_bytes().as_chunks::<2>();
        if pairs.0.len() != 32 || !pairs.1.is_empty() {
            return Err(InvalidHash);
        }
        let (mut bytes, mut wrong) = ([0; 32], false);
        for (byte, [high, low]) in bytes.iter_mut().zip(pairs.0) {
            let (high, low) = (value(*high), value(*low));
            *byte = high << 4 | low & 15;
            // Looked at once, at the end: nearly all texts are hashes.
            wrong |= high > 15 || low > 15;
        }
        if wrong { Err(InvalidHash) } else { Ok(Self(bytes)) }
    }
}

#[cfg(test)]
mod tests {
    use super::Hash;

    #[test]
    fn a_hash_is_64_lower_case_digits_and_nothing_else() {
        let hash = Hash::of(&[b"a", b"bc"]);
        assert_eq!(hash.to_string(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(hash.to_string().parse(), Ok(hash));
        let mut hex = Vec::new();
        hash.write_hex(&mut hex);
        assert_eq!(hex, hash.to_string().into_bytes());
        for bad in ["", "ba78", &hash.to_string().to_uppercase(), &format!("{hash}0"), &"g".repeat(64)] {
            assert!(bad.parse::<Hash>().is_err(), "{bad}");
        }
    }
}
