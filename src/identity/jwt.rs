//! JSON Web Tokens of one issuer (RFC 7519), checked as RFC 8725 advises.
//!
//! The signature algorithm must be one of the configured ones, which are all of public keys, and fit the key. The key
//! comes from the issuer alone: what a token's header says of keys (`jku`, `jwk`, `x5u`) is never followed, and a
//! header that marks an extension as critical is refused. `iss` must be the issuer, `aud` be or hold the audience,
//! `exp` be there and lie ahead, `nbf`, if there, lie behind, both within the leeway.

use std::fmt;
use std::sync::Arc;

use jsonwebtoken::{Algorithm, Validation};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::jwks::{Jwks, NoKey};
use super::{Caller, Unidentified};
use crate::config::{self, JwtAlgorithm};
use crate::model::{CallerKind, CallerName};

/// The most groups of a caller that are looked at, and the longest name of one, in bytes.
const MAX_GROUPS: usize = 256;
const MAX_GROUP: usize = 256;

/// An issuer whose tokens are taken. Cheap enough to clone: the keys are shared.
#[derive(Debug, Clone)]
pub struct Issuer {
    settings: config::Jwt,
    algorithms: Vec<Algorithm>,
    leeway: i64,
    keys: Arc<Jwks>,
}

/// A token that was checked.
#[derive(Debug)]
pub struct Checked {
    /// What it says.
    pub claims: Claims,
    /// The generation of the keys it was checked with.
    pub generation: u64,
    /// When it expires, in seconds since the epoch, the leeway included.
    pub expires: i64,
}

/// What a checked token says. `Debug` shows the claims' names alone.
#[derive(Clone, Default)]
pub struct Claims(Map<String, Value>);

impl fmt::Debug for Claims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Claims {
    /// A claim.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }

    /// The same but for one of them.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.0.remove(name);
        self
    }

    /// A claim that is a text and not blank.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.get(name).and_then(Value::as_str).filter(|text| !text.trim().is_empty())
    }

    /// A claim that is a time, in whole seconds since the epoch; fractions are cut off.
    pub fn time(&self, name: &str) -> Option<i64> {
        self.get(name).and_then(seconds)
    }

    /// Whether a claim is this text, or a list that holds it. A name that no claim has is looked for within claims,
    /// step by step, parted by dots: `realm_access.roles`.
    pub fn holds(&self, name: &str, text: &str) -> bool {
        let is = |value: &Value| value.as_str() == Some(text);
        let nested = || {
            let mut steps = name.split('.');
            let first = self.get(steps.next()?)?;
            steps.try_fold(first, |value, step| value.get(step))
        };
        match self.get(name).or_else(nested) {
            Some(Value::Array(all)) => all.iter().any(is),
            Some(one) => is(one),
            None => false,
        }
    }
}

impl From<Map<String, Value>> for Claims {
    fn from(claims: Map<String, Value>) -> Self {
        Self(claims)
    }
}

/// Whether a token could be a JSON Web Token: three parts.
pub(super) fn looks_like(token: &str) -> bool {
    token.bytes().filter(|b| *b == b'.').count() == 2
}

/// The issuer that a token says it is of. Only good for choosing whose rules to check it by.
pub(super) fn issuer_of(token: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Named {
        iss: String,
    }
    jsonwebtoken::dangerous::insecure_decode_claims::<Named>(token).ok().map(|named| named.iss)
}

impl Issuer {
    /// The issuer of these settings, its keys being fetched by `client`, see [`super::client`].
    pub fn new(settings: &config::Jwt, client: reqwest::Client) -> Self {
        let keys = Jwks::start(
            (*settings.jwks_url).clone(),
            client,
            settings.jwks_lifetime.as_duration(),
            settings.jwks_min_interval.as_duration(),
        );
        Self {
            algorithms: settings.algorithms.iter().copied().map(algorithm).collect(),
            leeway: i64::try_from(settings.leeway.as_duration().as_secs()).unwrap_or(0),
            settings: settings.clone(),
            keys,
        }
    }

    /// Its name: the claim `iss` of its tokens.
    pub fn name(&self) -> &str {
        &self.settings.issuer
    }

    /// The generation of its keys.
    pub fn generation(&self) -> u64 {
        self.keys.generation()
    }

    /// What a token says, and how long that can be relied on.
    ///
    /// # Errors
    /// [`Unidentified::Invalid`] and [`Unidentified::Unavailable`].
    pub async fn verify(&self, token: &str, now: i64) -> Result<Checked, Unidentified> {
        let invalid = Unidentified::Invalid;
        let header = jsonwebtoken::decode_header(token)
            .map_err(|_| invalid("the token's header is not one that is taken here"))?;
        if !self.algorithms.contains(&header.alg) {
            return Err(invalid("the token's signature algorithm is not taken here"));
        }
        if header.crit.is_some() {
            return Err(invalid("the token's header marks an extension as critical"));
        }
        let (key, generation) = self.keys.find(header.kid.as_deref(), header.alg).await.map_err(|none| match none {
            NoKey::Unknown => invalid("the token's issuer has no such key"),
            NoKey::Unavailable => Unidentified::Unavailable,
        })?;
        // The claims are checked here, against the program's own clock and more strictly than the library would.
        let mut validation = Validation::new(header.alg);
        validation.required_spec_claims.clear();
        (validation.validate_exp, validation.validate_aud) = (false, false);
        let claims = jsonwebtoken::decode::<Map<String, Value>>(token, key.decoding(), &validation)
            .map_err(|_| invalid("the token's signature does not verify"))?
            .claims;
        let claims = Claims(claims);
        let expires = self.check(&claims, now)?;
        Ok(Checked { claims, generation, expires })
    }

    /// Checks the claims that say whether the token holds, here and now; until when.
    fn check(&self, claims: &Claims, now: i64) -> Result<i64, Unidentified> {
        let invalid = Unidentified::Invalid;
        if claims.get("iss").and_then(Value::as_str) != Some(&self.settings.issuer) {
            return Err(invalid("the token's issuer is not trusted here"));
        }
        if !claims.holds("aud", &self.settings.audience) {
            return Err(invalid("the token is for another audience"));
        }
        let expires = claims.time("exp").ok_or(invalid("the token has no time of expiry"))?;
        let expires = expires.saturating_add(self.leeway);
        if now >= expires {
            return Err(invalid("the token has expired"));
        }
        if let Some(not_before) = claims.get("nbf") {
            let not_before = seconds(not_before).ok_or(invalid("the token's nbf is no time"))?;
            if now < not_before.saturating_sub(self.leeway) {
                return Err(invalid("the token is not valid yet"));
            }
        }
        Ok(expires)
    }

    /// The caller that the claims name.
    ///
    /// # Errors
    /// [`Unidentified::Invalid`] when they name none, or too many groups.
    pub fn caller(&self, claims: &Claims) -> Result<Caller, Unidentified> {
        let name = claims
            .text(&self.settings.caller_claim)
            .ok_or(Unidentified::Invalid("the token does not name its caller"))?;
        let name = format!("{}{name}", self.settings.caller_prefix);
        let name = CallerName::new(CallerKind::from(self.settings.kind), &name).map_err(|_| {
            Unidentified::Invalid("the token's name of its caller is too long, or has control characters")
        })?;
        let groups: Vec<String> = match claims.get(&self.settings.groups_claim) {
            Some(Value::Array(groups)) => groups.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            Some(Value::String(groups)) => groups.split_whitespace().map(str::to_owned).collect(),
            _ => Vec::new(),
        };
        // A forbidding policy may hang on any of them: rather none than some.
        if groups.len() > MAX_GROUPS || groups.iter().any(|group| group.len() > MAX_GROUP) {
            return Err(Unidentified::Invalid("the token names too many groups, or too long ones"));
        }
        Ok(Caller::new(name, groups))
    }
}

/// A time of a claim, in whole seconds since the epoch; fractions are allowed and cut off.
fn seconds(claim: &Value) -> Option<i64> {
    const FAR: f64 = 1e15;
    claim.as_i64().or_else(|| claim.as_f64().filter(|time| time.abs() < FAR).map(|time| time.floor() as i64))
}

const fn algorithm(algorithm: JwtAlgorithm) -> Algorithm {
    match algorithm {
        JwtAlgorithm::RS256 => Algorithm::RS256,
        JwtAlgorithm::RS384 => Algorithm::RS384,
        JwtAlgorithm::RS512 => Algorithm::RS512,
        JwtAlgorithm::PS256 => Algorithm::PS256,
        JwtAlgorithm::PS384 => Algorithm::PS384,
        JwtAlgorithm::PS512 => Algorithm::PS512,
        JwtAlgorithm::ES256 => Algorithm::ES256,
        JwtAlgorithm::ES384 => Algorithm::ES384,
        JwtAlgorithm::EdDSA => Algorithm::EdDSA,
    }
}
