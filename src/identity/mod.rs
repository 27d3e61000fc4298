//! Who presents a bearer token: the one verifier of JSON Web Tokens, which the gateway and the control plane share.
//!
//! [`Issuers`] holds the issuers whose tokens are taken and what was verified of them; [`Issuer`] checks a token of one
//! of them, and gives its [`Claims`]. What a program makes of the claims is its own: the gateway a [`Caller`] for its
//! policies, the control plane the rights of a person.
//!
//! Nothing here ever shows a token: errors say what is wrong with it in words of their own, and [`Caller`] shows its
//! name alone. A verified token is remembered by its hash until it expires or its issuer's keys change, so that a
//! signature is checked once a token and not once a request.

mod bearer;
mod caller;
mod jwks;
mod jwt;
mod verified;

use http::{HeaderValue, StatusCode};

pub use bearer::{Presented, presented};
pub use caller::Caller;
pub use jwks::client;
pub use jwt::{Checked, Claims, Issuer};
use verified::Verified;

use crate::config::{self, TokenHash};

/// Why a request's caller is unknown.
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

/// Why identity cannot start.
#[derive(Debug, thiserror::Error)]
#[error("identity: no HTTP client for keys: {0}")]
pub struct IdentityError(#[from] reqwest::Error);

/// The issuers whose tokens are taken, and a `T` of each token that was verified.
#[derive(Debug)]
pub struct Issuers<T> {
    issuers: Vec<Issuer>,
    verified: Verified<T>,
}

impl<T: Clone> Issuers<T> {
    /// The issuers of these settings. Keys are fetched in the background, within a Tokio runtime: an issuer that is
    /// away keeps no program from starting.
    ///
    /// # Errors
    /// When no HTTP client can be made.
    pub fn start(settings: &[config::Jwt]) -> Result<Self, IdentityError> {
        let mut issuers = Vec::with_capacity(settings.len());
        if !settings.is_empty() {
            let client = jwks::client()?;
            issuers.extend(settings.iter().map(|jwt| Issuer::new(jwt, client.clone())));
        }
        Ok(Self { issuers, verified: Verified::default() })
    }

    /// What `make` makes of a token's claims once it is verified; remembered by the token's `hash`, so `make` must
    /// depend on the claims alone. Waits for the network only where a token names a key that is not known, and then no
    /// other request waits with it.
    ///
    /// # Errors
    /// [`Unidentified::Invalid`] and [`Unidentified::Unavailable`], and what `make` says.
    pub async fn verify(
        &self,
        token: &str,
        hash: TokenHash,
        now: i64,
        make: impl FnOnce(&Issuer, &Claims) -> Result<T, Unidentified>,
    ) -> Result<T, Unidentified> {
        if self.issuers.is_empty() || !jwt::looks_like(token) {
            return Err(Unidentified::Invalid("no such token is configured here"));
        }
        let issuer = jwt::issuer_of(token).and_then(|name| self.issuers.iter().find(|issuer| issuer.name() == name));
        let Some(issuer) = issuer else { return Err(Unidentified::Invalid("the token's issuer is not trusted here")) };
        if let Some(made) = self.verified.get(&hash, issuer.generation(), now) {
            return Ok(made);
        }
        let checked = issuer.verify(token, now).await?;
        let made = make(issuer, &checked.claims)?;
        self.verified.put(hash, &checked, made.clone(), now);
        Ok(made)
    }

    /// Whether a token says that it is of one of the issuers.
    pub fn knows(&self, token: &str) -> bool {
        let of = |name: String| self.issuers.iter().any(|issuer| issuer.name() == name);
        jwt::looks_like(token) && jwt::issuer_of(token).is_some_and(of)
    }
}
