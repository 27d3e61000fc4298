//! Who calls: the first thing that is settled of every request.
//!
//! A request is of the caller whose token it brings as `Authorization: Bearer …`:
//!
//! 1. a token whose hash is configured is of that entry's caller;
//! 2. a JSON Web Token of a configured issuer is of the caller that its claims name (`jwt`);
//! 3. a request without an `Authorization` header is `anonymous`, where that is allowed;
//! 4. all others are nobody's, also where anonymous callers are taken: who presents a bad token wanted to be someone.
//!
//! Nothing here ever shows a token: errors say what is wrong with it in words of their own, and [`Caller`] shows its name
//! alone. A verified JSON Web Token is remembered by its hash until it expires or its issuer's keys change, so that a
//! signature is checked once a token and not once a request.

mod jwks;
mod jwt;
#[cfg(test)]
mod tests;
mod verified;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue, StatusCode};

use self::jwt::Issuer;
use self::verified::Verified;
use crate::config::{self, TokenHash};
use crate::model::{CallerName, Clock};

/// The longest token that is looked at. A longer one would not fit into most servers' headers either.
const MAX_TOKEN: usize = 16 << 10;

/// A caller that has been identified. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Caller(Arc<Known>);

#[derive(PartialEq, Eq, Hash)]
struct Known {
    name: CallerName,
    groups: Vec<String>,
}

impl Caller {
    /// The caller of a name, in groups.
    pub fn new(name: CallerName, mut groups: Vec<String>) -> Self {
        groups.sort_unstable();
        groups.dedup();
        Self(Arc::new(Known { name, groups }))
    }

    /// The caller that did not say who it is.
    pub fn anonymous() -> Self {
        Self::new(CallerName::anonymous(), Vec::new())
    }

    /// Its name: `user:…`, `service:…` or `anonymous`.
    pub fn name(&self) -> &CallerName {
        &self.0.name
    }

    /// The groups it is in, sorted, each once.
    pub fn groups(&self) -> &[String] {
        &self.0.groups
    }
}

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0.name, f)
    }
}

/// Why a request is nobody's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unidentified {
    /// It brings no token, and anonymous callers are not taken.
    #[error("send a token: Authorization: Bearer …")]
    Missing,
    /// What it brings is no good; the reason holds nothing of it.
    #[error("{0}")]
    Invalid(&'static str),
    /// Its issuer's keys cannot be had at the moment, so that nothing can be said of it.
    #[error("the keys of the token's issuer cannot be fetched at the moment; try again")]
    Unavailable,
}

impl Unidentified {
    /// How HTTP answers it.
    pub const fn status(&self) -> StatusCode {
        match self {
            Self::Missing | Self::Invalid(_) => StatusCode::UNAUTHORIZED,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The `WWW-Authenticate` header of a 401 (RFC 6750).
    pub fn challenge(&self) -> Option<HeaderValue> {
        match self {
            Self::Missing => Some(HeaderValue::from_static(r#"Bearer realm="mcpg""#)),
            Self::Invalid(why) => {
                let text = format!(r#"Bearer realm="mcpg", error="invalid_token", error_description="{why}""#);
                HeaderValue::try_from(text).ok()
            }
            Self::Unavailable => None,
        }
    }
}

/// The identity stage.
#[derive(Debug)]
pub struct Identity {
    anonymous: Option<Caller>,
    tokens: HashMap<TokenHash, Caller>,
    issuers: Vec<Issuer>,
    verified: Verified,
    clock: Arc<dyn Clock>,
}

/// Why identity cannot start.
#[derive(Debug, thiserror::Error)]
#[error("identity: no HTTP client for keys: {0}")]
pub struct IdentityError(#[from] reqwest::Error);

impl Identity {
    /// What the settings say. Keys are fetched in the background, within a Tokio runtime: an issuer that is away keeps no
    /// gateway from starting.
    ///
    /// # Errors
    /// When no HTTP client can be made.
    pub fn start(settings: &config::Identity, clock: Arc<dyn Clock>) -> Result<Self, IdentityError> {
        let mut issuers = Vec::with_capacity(settings.jwt.len());
        if !settings.jwt.is_empty() {
            let client = jwks::client()?;
            issuers.extend(settings.jwt.iter().map(|jwt| Issuer::new(jwt, client.clone())));
        }
        let tokens = settings.tokens.iter().map(|token| {
            let caller = Caller::new(token.caller.clone(), token.groups.clone());
            (token.hash, caller)
        });
        Ok(Self {
            anonymous: settings.anonymous.then(Caller::anonymous),
            tokens: tokens.collect(),
            issuers,
            verified: Verified::default(),
            clock,
        })
    }

    /// Whose request this is. Waits for the network only where a token names a key that is not known, and then no
    /// other request waits with it.
    ///
    /// # Errors
    /// See [`Unidentified`].
    pub async fn identify(&self, headers: &HeaderMap) -> Result<Caller, Unidentified> {
        let token = match bearer(headers) {
            Presented::Nothing => return self.anonymous.clone().ok_or(Unidentified::Missing),
            Presented::Unusable(why) => return Err(Unidentified::Invalid(why)),
            Presented::Token(token) => token,
        };
        let hash = TokenHash::of(token);
        if let Some(caller) = self.tokens.get(&hash) {
            return Ok(caller.clone());
        }
        if self.issuers.is_empty() || !jwt::looks_like(token) {
            return Err(Unidentified::Invalid("no such token is configured here"));
        }
        let issuer = jwt::issuer_of(token).and_then(|name| self.issuers.iter().find(|issuer| issuer.is(&name)));
        let Some(issuer) = issuer else { return Err(Unidentified::Invalid("the token's issuer is not trusted here")) };
        let now = self.clock.now().timestamp();
        if let Some(caller) = self.verified.get(&hash, issuer.generation(), now) {
            return Ok(caller);
        }
        let checked = issuer.verify(token, now).await?;
        let caller = checked.caller.clone();
        self.verified.put(hash, checked, now);
        Ok(caller)
    }
}

/// What stands in the `Authorization` header.
enum Presented<'a> {
    Nothing,
    Token(&'a str),
    Unusable(&'static str),
}

/// The token of the one `Authorization` header; its scheme is not case-sensitive.
fn bearer(headers: &HeaderMap) -> Presented<'_> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let value = match (values.next(), values.next()) {
        (None, _) => return Presented::Nothing,
        (Some(_), Some(_)) => return Presented::Unusable("send one Authorization header"),
        (Some(value), None) => value,
    };
    let unusable = Presented::Unusable("the Authorization header is not of the form: Bearer <token>");
    let Some((scheme, token)) = value.to_str().ok().and_then(|text| text.split_once(' ')) else { return unusable };
    let token = token.trim();
    if !scheme.eq_ignore_ascii_case("bearer") || token.is_empty() {
        unusable
    } else if token.len() > MAX_TOKEN {
        Presented::Unusable("the token is too long")
    } else {
        Presented::Token(token)
    }
}
