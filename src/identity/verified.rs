//! Tokens whose signature has been checked, so that it is not checked again with every request.
//!
//! Held by the token's hash, never the token. An entry counts until its token expires, and only for the generation of
//! keys that it was checked with: a key that its issuer withdraws ends all tokens that it signed. Bounded: when it is
//! full, what has expired goes, and if that is nothing, all of it goes, which costs each caller one more check.

use std::collections::HashMap;

use parking_lot::Mutex;

use super::jwt::Checked;
use crate::config::TokenHash;

/// How many tokens are remembered.
const CAPACITY: usize = 10_000;

#[derive(Debug)]
struct Entry<T> {
    made: T,
    generation: u64,
    expires: i64,
}

/// Tokens whose signature has been checked, and what was made of each.
#[derive(Debug)]
pub(super) struct Verified<T>(Mutex<HashMap<TokenHash, Entry<T>>>);

impl<T> Default for Verified<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Clone> Verified<T> {
    /// What was made of the token, if it was checked with these keys and has not expired.
    pub(super) fn get(&self, token: &TokenHash, generation: u64, now: i64) -> Option<T> {
        let entries = self.0.lock();
        let entry = entries.get(token)?;
        (entry.generation == generation && now < entry.expires).then(|| entry.made.clone())
    }

    /// Remembers a token that was checked.
    pub(super) fn put(&self, token: TokenHash, checked: &Checked, made: T, now: i64) {
        let mut entries = self.0.lock();
        if entries.len() >= CAPACITY {
            entries.retain(|_, entry| now < entry.expires);
        }
        if entries.len() >= CAPACITY {
            entries.clear();
        }
        entries.insert(token, Entry { made, generation: checked.generation, expires: checked.expires });
    }
}

#[cfg(test)]
mod tests {
    use super::{CAPACITY, Verified};
    use crate::config::TokenHash;
    use crate::identity::{Checked, Claims};

    fn checked() -> Checked {
        Checked { claims: Claims::default(), generation: 1, expires: 100 }
    }

    #[test]
    fn a_token_is_remembered_until_it_expires_and_for_its_keys_only() {
        let verified = Verified::default();
        let token = TokenHash::of("t");
        verified.put(token, &checked(), "alice", 0);
        assert_eq!(verified.get(&token, 1, 99), Some("alice"));
        assert!(verified.get(&token, 1, 100).is_none());
        assert!(verified.get(&token, 2, 99).is_none());
    }

    #[test]
    fn it_holds_no_more_than_it_may() {
        let verified = Verified::default();
        for n in 0..CAPACITY + 5 {
            verified.put(TokenHash::of(&n.to_string()), &checked(), n, 0);
        }
        assert!(verified.0.lock().len() <= CAPACITY);
        assert_eq!(verified.get(&TokenHash::of(&(CAPACITY + 4).to_string()), 1, 0), Some(CAPACITY + 4));
    }
}
