//! API tokens are stored as hashes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The hash under which a token is configured: BLAKE3 of its bytes, as 64 lower-case hex digits.
///
/// An API token is random (`mcpg token new` makes 256 bits), so a fast hash is the right one: it cannot be guessed, and
/// each request is checked by hashing what it brings. A reader of the configuration learns nothing that authenticates.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TokenHash([u8; 32]);

/// Why a text is no token hash.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a token's hash is 64 hex digits; make it with `mcpg token hash`, and never write the token itself here")]
pub struct TokenHashError;

impl TokenHash {
    /// The hash of a token.
    pub fn of(token: &str) -> Self {
        Self(*blake3::hash(token.as_bytes()).as_bytes())
    }

    /// The hash's 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl FromStr for TokenHash {
    type Err = TokenHashError;

    fn from_str(text: &str) -> Result<Self, TokenHashError> {
        // `from_hex` takes exactly 64 hex digits of either case.
        blake3::Hash::from_hex(text).map(|hash| Self(*hash.as_bytes())).map_err(|_| TokenHashError)
    }
}

impl TryFrom<String> for TokenHash {
    type Error = TokenHashError;

    fn try_from(text: String) -> Result<Self, TokenHashError> {
        text.parse()
    }
}

impl From<TokenHash> for String {
    fn from(hash: TokenHash) -> Self {
        hash.to_string()
    }
}

impl fmt::Display for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::TokenHash;

    #[test]
    fn a_hash_survives_being_written_and_read() {
        let hash = TokenHash::of("secret");
        assert_eq!(hash.to_string().parse::<TokenHash>().unwrap(), hash);
        assert_eq!(hash.to_string().to_uppercase().parse::<TokenHash>().unwrap(), hash);
    }

    #[test]
    fn a_token_in_the_place_of_its_hash_is_refused() {
        for bad in ["secret", "", &"g".repeat(64), &"a".repeat(63)] {
            assert!(bad.parse::<TokenHash>().is_err(), "{bad}");
        }
    }
}
