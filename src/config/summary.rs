//! What an org's ledger records of the configuration: nothing that is secret, nothing of other orgs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Expiry;
use super::settings::{ControlPlane, Org, OrgScope, Token};
use crate::model::{CallerName, OrgName, Role};

/// Settings that may differ from node to node, and so show no change.
const OF_A_NODE: [&str; 2] = ["listen", "tls"];
/// Digits of a digest.
const DIGITS: usize = 16;

/// The settings of one org as its ledger records them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OrgSummary {
    /// A digest of each setting that concerns every org, by its path.
    pub settings: BTreeMap<String, String>,
    /// The org's own settings.
    pub org: Value,
    /// The tokens that open it.
    pub tokens: BTreeMap<String, TokenSummary>,
}

/// What may be known of a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenSummary {
    /// The org that it opens, or `*`.
    pub org: OrgScope,
    /// What its bearer may do.
    pub roles: Vec<Role>,
    /// A digest of its hash: another one under the same name is another token.
    pub digest: String,
    /// The same of the token before it, while both are taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<String>,
    /// From when on it is not taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Expiry>,
    /// Who presents it, where that is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caller: Option<CallerName>,
}

impl OrgSummary {
    /// What the ledger of `org` records of these settings.
    pub fn of(settings: &ControlPlane, org: &OrgName) -> Self {
        let mut common = BTreeMap::new();
        // Settings are plain data under string keys, which can always be written.
        let all = serde_json::to_value(settings).unwrap_or_default();
        for (key, value) in all.as_object().into_iter().flatten() {
            if !["orgs", "tokens"].contains(&key.as_str()) && !OF_A_NODE.contains(&key.as_str()) {
                flatten(key, value, &mut common);
            }
        }
        let own = settings.orgs.iter().find(|own: &&Org| own.name == *org);
        let opens = |token: &&Token| token.org.covers(org);
        let tokens = settings.tokens.iter().filter(opens).map(|token| {
            let summary = TokenSummary {
                org: token.org.clone(),
                roles: token.roles.clone(),
                digest: digest(token.hash.as_bytes()),
                previous: token.previous_hash.map(|hash| digest(hash.as_bytes())),
                expires: token.expires,
                caller: token.caller.clone(),
            };
            (token.name.clone(), summary)
        });
        Self { settings: common, org: serde_json::to_value(own).unwrap_or_default(), tokens: tokens.collect() }
    }

    /// A digest of all of it.
    pub fn digest(&self) -> String {
        digest(&serde_json::to_vec(self).unwrap_or_default())
    }
}

fn flatten(path: &str, value: &Value, out: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(members) if !members.is_empty() => {
            for (key, value) in members {
                flatten(&format!("{path}.{key}"), value, out);
            }
        }
        value => {
            out.insert(path.to_owned(), digest(value.to_string().as_bytes()));
        }
    }
}

fn digest(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().chars().take(DIGITS).collect()
}

#[cfg(test)]
mod tests {
    use super::OrgSummary;
    use crate::config::ControlPlane;

    #[test]
    fn it_holds_no_secret_no_value_and_nothing_of_other_orgs() {
        let hash = "ab".repeat(32);
        let text = format!(
            "name: canary-name.example\norgs: [{{name: acme}}, {{name: canary-org}}]\n\
             tokens: [{{name: canary-token, hash: {hash}, org: canary-org, roles: [read]}}]\n\
             telemetry: {{otlp: {{headers: {{authorization: canary-secret}}}}}}"
        );
        let config = ControlPlane::parse("f", &text, &|_| None).unwrap();
        let summary = serde_json::to_string(&OrgSummary::of(&config, &"acme".parse().unwrap())).unwrap();
        assert!(
            !summary.contains("canary") && !summary.contains(&hash) && summary.contains("flush.interval"),
            "{summary}"
        );
    }

    #[test]
    fn where_a_node_listens_is_no_change() {
        let summary =
            |text| OrgSummary::of(&ControlPlane::parse("f", text, &|_| None).unwrap(), &"default".parse().unwrap());
        assert_eq!(summary("listen: 127.0.0.1:1"), summary("listen: 127.0.0.1:2"));
        assert_ne!(summary("name: a").digest(), summary("name: b").digest());
    }
}
