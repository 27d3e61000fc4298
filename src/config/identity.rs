//! The settings of who may call the gateway, and under which name.

use std::time::Duration;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::{Endpoint, Period, TokenHash};
use crate::model::{CallerKind, CallerName};

/// Who may call the gateway, and under which name.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Identity {
    /// Whether a request without a token is taken, as `anonymous`. One with a bad token never is.
    pub anonymous: bool,
    /// Bearer tokens, each of one caller.
    pub tokens: Vec<CallerToken>,
    /// Issuers whose JSON Web Tokens are taken; in a file one, or a list.
    #[serde(deserialize_with = "one_or_many")]
    pub jwt: Vec<Jwt>,
}

/// A bearer token of one caller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CallerToken {
    /// The token's hash, made by `mcpg token hash`.
    pub hash: TokenHash,
    /// Who presents it.
    pub caller: CallerName,
    /// The groups the caller is in, for policies.
    #[serde(default)]
    pub groups: Vec<String>,
}

/// An issuer whose JSON Web Tokens are taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Jwt {
    /// What the claim `iss` must be.
    pub issuer: String,
    /// What the claim `aud` must be, or hold.
    pub audience: String,
    /// Where the issuer publishes its keys.
    pub jwks_url: Endpoint,
    /// The signature algorithms that are taken.
    #[serde(default = "default_algorithms")]
    pub algorithms: Vec<JwtAlgorithm>,
    /// Whether the issuer's callers are users or services.
    #[serde(default = "default_kind")]
    pub kind: JwtKind,
    /// The claim that holds the caller's name.
    #[serde(default = "default_caller_claim")]
    pub caller_claim: String,
    /// What is put before the caller's name, to keep the callers of several issuers apart.
    #[serde(default)]
    pub caller_prefix: String,
    /// The claim that holds the caller's groups, for policies: a list of texts, or texts parted by blanks.
    #[serde(default = "default_groups_claim")]
    pub groups_claim: String,
    /// How far the issuer's clock may be off.
    #[serde(default = "default_leeway")]
    pub leeway: Period,
    /// How long fetched keys are used before they are fetched again.
    #[serde(default = "default_jwks_lifetime")]
    pub jwks_lifetime: Period,
    /// How long to wait at least between two fetches because of a key that is not known.
    #[serde(default = "default_jwks_min_interval")]
    pub jwks_min_interval: Period,
}

pub(super) fn default_algorithms() -> Vec<JwtAlgorithm> {
    vec![JwtAlgorithm::RS256, JwtAlgorithm::PS256, JwtAlgorithm::ES256, JwtAlgorithm::EdDSA]
}

const fn default_kind() -> JwtKind {
    JwtKind::User
}

fn default_caller_claim() -> String {
    "sub".to_owned()
}

fn default_groups_claim() -> String {
    "groups".to_owned()
}

pub(super) const fn default_leeway() -> Period {
    Period::new(Duration::from_secs(30))
}

const fn default_jwks_lifetime() -> Period {
    Period::new(Duration::from_secs(600))
}

const fn default_jwks_min_interval() -> Period {
    Period::new(Duration::from_secs(30))
}

/// A signature algorithm of RFC 7518 and RFC 8037. Only those whose keys can be published: a shared secret would let a
/// verifier make tokens, and `none` is no signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names are the RFC's own")]
pub enum JwtAlgorithm {
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
    ES256,
    ES384,
    EdDSA,
}

/// What an issuer's callers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JwtKind {
    /// People.
    User,
    /// Programs.
    Service,
}

impl From<JwtKind> for CallerKind {
    fn from(kind: JwtKind) -> Self {
        match kind {
            JwtKind::User => Self::User,
            JwtKind::Service => Self::Service,
        }
    }
}

/// Reads one mapping or a list of them.
pub(super) fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Jwt>, D::Error> {
    struct OneOrMany;
    impl<'de> Visitor<'de> for OneOrMany {
        type Value = Vec<Jwt>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an issuer, or a list of issuers")
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Vec<Jwt>, A::Error> {
            Jwt::deserialize(MapAccessDeserializer::new(map)).map(|jwt| vec![jwt])
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<Jwt>, A::Error> {
            let mut issuers = Vec::new();
            while let Some(issuer) = items.next_element()? {
                issuers.push(issuer);
            }
            Ok(issuers)
        }
    }
    deserializer.deserialize_any(OneOrMany)
}
