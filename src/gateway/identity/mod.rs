//! Who calls: the first thing that is settled of every request.
//!
//! A request is of the caller whose token it brings as `Authorization: Bearer …`:
//!
//! 1. a token whose hash is configured is of that entry's caller;
//! 2. a JSON Web Token of a configured issuer is of the caller that its claims name ([`crate::identity`]);
//! 3. a request without an `Authorization` header is `anonymous`, where that is allowed;
//! 4. all others are refused, also where anonymous callers are accepted: a bad token is not the same as none.
//!
//! Nothing here ever shows a token: errors say what is wrong with it in words of their own, and [`Caller`] shows its
//! name alone. A verified JSON Web Token is remembered by its hash until it expires or its issuer's keys change, so
//! that a signature is checked once a token and not once a request.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;

use http::HeaderMap;

use crate::config::{self, TokenHash};
pub use crate::identity::{Caller, IdentityError, Unidentified};
use crate::identity::{Issuers, Presented, presented};
use crate::model::Clock;

/// The identity stage.
#[derive(Debug)]
pub struct Identity {
    anonymous: Option<Caller>,
    tokens: HashMap<TokenHash, Caller>,
    issuers: Issuers<Caller>,
    clock: Arc<dyn Clock>,
}

impl Identity {
    /// What the settings say. Keys are fetched in the background, within a Tokio runtime: an issuer that is away keeps
    /// no gateway from starting.
    ///
    /// # Errors
    /// When no HTTP client can be made.
    pub fn start(settings: &config::Identity, clock: Arc<dyn Clock>) -> Result<Self, IdentityError> {
        let tokens = settings.tokens.iter().map(|token| {
            let caller = Caller::new(token.caller.clone(), token.groups.clone());
            (token.hash, caller)
        });
        Ok(Self {
            anonymous: settings.anonymous.then(Caller::anonymous),
            tokens: tokens.collect(),
            issuers: Issuers::start(&settings.jwt)?,
            clock,
        })
    }

    /// Whose request this is. Waits for the network only where a token names a key that is not known, and then no
    /// other request waits with it.
    ///
    /// # Errors
    /// See [`Unidentified`].
    pub async fn identify(&self, headers: &HeaderMap) -> Result<Caller, Unidentified> {
        let token = match presented(headers) {
            Presented::Nothing => return self.anonymous.clone().ok_or(Unidentified::Missing),
            Presented::Unusable(why) => return Err(Unidentified::Invalid(why)),
            Presented::Token(token) => token,
        };
        let hash = TokenHash::of(token);
        if let Some(caller) = self.tokens.get(&hash) {
            return Ok(caller.clone());
        }
        let now = self.clock.now().timestamp();
        self.issuers.verify(token, hash, now, |issuer, claims| issuer.caller(claims)).await
    }
}
