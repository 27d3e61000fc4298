//! JSON Web Tokens of one issuer (RFC 7519), checked as RFC 8725 advises.
//!
//! The signature algorithm must be one of the configured ones, which are all of public keys, and fit the key. The key
//! comes from the issuer alone: what a token's header says of keys (`jku`, `jwk`, `x5u`) is never followed, and a header
//! that marks an extension as critical is refused. `iss` must be the issuer, `aud` be or hold the audience, `exp` be there
//! and lie ahead, `nbf`, if there, lie behind, both within the leeway.

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

/// An issuer whose tokens are taken.
#[derive(Debug)]
pub(super) struct Issuer {
    settings: config::Jwt,
    algorithms: Vec<Algorithm>,
    leeway: i64,
    keys: Arc<Jwks>,
}

/// A token that was checked.
#[derive(Debug)]
pub(super) struct Checked {
    /// Whose it is.
    pub(super) caller: Caller,
    /// The generation of the keys it was checked with.
    pub(super) generation: u64,
    /// When it expires, in seconds since the epoch, the leeway included.
    pub(super) expires: i64,
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
    /// The issuer of these settings, its keys being fetched.
    pub(super) fn new(settings: &config::Jwt, client: reqwest::Client) -> Self {
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

    /// Whether it is the issuer of this name.
    pub(super) fn is(&self, name: &str) -> bool {
        self.settings.issuer == name
    }

    /// The generation of its keys.
    pub(super) fn generation(&self) -> u64 {
        self.keys.generation()
    }

    /// The caller that a token is of, and how long that can be relied on.
    pub(super) async fn verify(&self, token: &str, now: i64) -> Result<Checked, Unidentified> {
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
        let expires = self.check(&claims, now)?;
        Ok(Checked { caller: self.caller(&claims)?, generation, expires })
    }

    /// Checks the claims that say whether the token holds, here and now; until when.
    fn check(&self, claims: &Map<String, Value>, now: i64) -> Result<i64, Unidentified> {
        let invalid = Unidentified::Invalid;
        let is = |claim: &Value, wanted: &str| claim.as_str() == Some(wanted);
        if !claims.get("iss").is_some_and(|iss| is(iss, &self.settings.issuer)) {
            return Err(invalid("the token's issuer is not trusted here"));
        }
        let audience = &self.settings.audience;
        let ours = match claims.get("aud") {
            Some(Value::Array(all)) => all.iter().any(|aud| is(aud, audience)),
            Some(one) => is(one, audience),
            None => false,
        };
        if !ours {
            return Err(invalid("the token is for another audience"));
        }
        let expires = claims.get("exp").and_then(seconds).ok_or(invalid("the token has no time of expiry"))?;
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
    fn caller(&self, claims: &Map<String, Value>) -> Result<Caller, Unidentified> {
        let name =
            claims.get(&self.settings.caller_claim).and_then(Value::as_str).filter(|name| !name.trim().is_empty());
        let name = name.ok_or(Unidentified::Invalid("the token does not name its caller"))?;
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
