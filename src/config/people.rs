//! The settings of the people that come to a control plane: who they are, what they may do, how long they stay.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::identity::{default_algorithms, default_leeway, one_or_many};
use super::settings::OrgScope;
use super::{Jwt, JwtAlgorithm, Period, Secret};
use crate::model::Role;

/// People: how they are known, and what their claims open.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct People {
    /// Issuers whose JSON Web Tokens are taken as bearer tokens of the API; in a file one, or a list.
    #[serde(deserialize_with = "one_or_many")]
    pub jwt: Vec<Jwt>,
    /// The provider that people log in at for a session of the dashboard.
    pub oidc: Option<Oidc>,
    /// What claims open.
    pub grants: Vec<Grant>,
}

impl People {
    /// Whether anyone can come in otherwise than by a configured token.
    pub fn is_configured(&self) -> bool {
        !self.jwt.is_empty() || self.oidc.is_some()
    }
}

/// An OpenID Connect provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Oidc {
    /// The provider, as its ID tokens name it; what else is to be known of it is at
    /// `<issuer>/.well-known/openid-configuration`.
    pub issuer: String,
    /// This control plane's name there.
    pub client_id: String,
    /// Its secret there; none of a public client.
    #[serde(default)]
    pub client_secret: Option<Secret>,
    /// What is asked for.
    #[serde(default = "default_scopes")]
    pub scopes: Vec<String>,
    /// The claim that holds a person's name; `email` counts only with `email_verified`.
    #[serde(default = "default_caller_claim")]
    pub caller_claim: String,
    /// What is put before the name, to keep people of several providers apart.
    #[serde(default)]
    pub caller_prefix: String,
    /// The signature algorithms of ID tokens that are taken.
    #[serde(default = "default_algorithms")]
    pub algorithms: Vec<JwtAlgorithm>,
    /// How far the provider's clock may be off.
    #[serde(default = "default_leeway")]
    pub leeway: Period,
}

fn default_scopes() -> Vec<String> {
    ["openid", "email"].map(str::to_owned).into()
}

fn default_caller_claim() -> String {
    "email".to_owned()
}

/// Roles in an org, for people who have a claim of a value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    /// The claim; dots lead into claims within claims.
    pub claim: String,
    /// What it must be, or hold.
    pub value: String,
    /// The org that it opens; `"*"` every org.
    pub org: OrgScope,
    /// What may be done there.
    pub roles: Vec<Role>,
    /// The issuer whose claims count; any if not set.
    #[serde(default)]
    pub issuer: Option<String>,
}

/// Sessions of browsers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Session {
    /// How long a session lasts without use.
    pub idle: Period,
    /// How long it lasts at most.
    pub absolute: Period,
    /// The file of the key that cookies are sealed with, 64 hex digits; the ledger's key is used if not set.
    pub key_file: Option<PathBuf>,
    /// The file of the key before, whose cookies are taken for the time of a change.
    pub previous_key_file: Option<PathBuf>,
}

impl Default for Session {
    fn default() -> Self {
        Self {
            idle: Period::new(Duration::from_secs(15 * 60)),
            absolute: Period::new(Duration::from_secs(8 * 3_600)),
            key_file: None,
            previous_key_file: None,
        }
    }
}
