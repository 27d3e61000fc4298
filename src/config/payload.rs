//! The settings of sealed payloads: what an org wants of them, the keys that wrap their keys, and what a gateway does.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{ByteSize, Endpoint, OnFailure, Period, Secret, Storage};
use crate::payload::PublicKey;

/// What an org wants of its payloads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OrgPayloads {
    /// The tenant's own public key, `<suite> <base64>`: with it nothing opens without the tenant, nor without the
    /// control plane.
    pub recipient: Option<PublicKey>,
    /// Whether payloads are compressed before they are sealed. How well content compresses shows in its length.
    pub compress: bool,
    /// How long payloads of a plugin are kept, in whole days, where that is not `retention.payloads`.
    pub plugins: BTreeMap<String, Period>,
    /// Whether a token that names no caller counts as a person who may view.
    pub shared_tokens: bool,
    /// Whether an operator's token, of all orgs, may view.
    pub operator_view: bool,
    /// Whether anyone may view where there are no tokens: for trials on one machine.
    pub anonymous_view: bool,
}

impl Default for OrgPayloads {
    fn default() -> Self {
        Self {
            recipient: None,
            compress: true,
            plugins: BTreeMap::new(),
            shared_tokens: false,
            operator_view: false,
            anonymous_view: false,
        }
    }
}

/// What the private keys of payloads are wrapped by, and where they lie.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PayloadKeys {
    /// The file of the KEK: `<number> <64 hex>` a line, mode 0600; made where an org is entitled and it is missing.
    pub file: PathBuf,
    /// The same lines from the environment, in place of the file.
    pub key: Option<Secret>,
    /// A key of Vault's or OpenBao's transit engine, in place of the file.
    pub vault: Option<VaultKey>,
    /// A key of AWS KMS, in place of the file.
    pub aws_kms: Option<AwsKmsKey>,
    /// Where wrapped keys lie; left out: under `payload-keys/` of the store.
    pub storage: Option<Storage>,
    /// How often the KEK is rotated, so that destroyed keys cannot be had from a copy; left out: only by
    /// `mcpg payload kek rotate`.
    pub rotate: Option<Period>,
}

impl Default for PayloadKeys {
    fn default() -> Self {
        Self {
            file: PathBuf::from("./mcpg-data/keys/payload.kek"),
            key: None,
            vault: None,
            aws_kms: None,
            storage: None,
            rotate: None,
        }
    }
}

/// A key of a transit engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VaultKey {
    /// The server.
    pub url: Endpoint,
    /// Where the engine is mounted.
    #[serde(default = "transit")]
    pub mount: String,
    /// The key's name.
    pub key: String,
    /// How to log in.
    pub auth: VaultAuth,
    /// The namespace, where the server has them.
    #[serde(default)]
    pub namespace: Option<String>,
    /// The authority of the server's certificate, in PEM.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
}

fn transit() -> String {
    "transit".to_owned()
}

/// How to log in to Vault: by one of these.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VaultAuth {
    /// A token.
    pub token: Option<Secret>,
    /// A file that holds a token, read at each login: an agent's.
    pub token_file: Option<PathBuf>,
    /// An AppRole's id, with `secret_id`.
    pub role_id: Option<String>,
    /// Its secret.
    pub secret_id: Option<Secret>,
    /// A role of the Kubernetes method, with the pod's own service account token.
    pub kubernetes_role: Option<String>,
}

impl VaultAuth {
    /// How many ways to log in it names.
    pub fn ways(&self) -> usize {
        [
            self.token.is_some(),
            self.token_file.is_some(),
            self.role_id.is_some() && self.secret_id.is_some(),
            self.kubernetes_role.is_some(),
        ]
        .into_iter()
        .filter(|way| *way)
        .count()
    }
}

/// A key of AWS KMS. Credentials come from the environment, as for S3.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AwsKmsKey {
    /// Its id, ARN or alias. Only behind an alias it can be rotated so that the old one is destroyed.
    pub key_id: String,
    /// The region.
    pub region: String,
    /// Another endpoint than AWS's own.
    #[serde(default)]
    pub endpoint: Option<Endpoint>,
}

/// What a gateway does about payloads that a policy has captured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CaptureSettings {
    /// The tenant's own public key, which the control plane's note must name; another, or none, is refused then.
    pub recipient: Option<PublicKey>,
    /// Whether payloads are compressed before they are sealed, if the control plane says so too.
    pub compress: bool,
    /// How many bytes of a payload are kept; what is beyond is cut off, and marked.
    pub max_bytes: ByteSize,
    /// The share of calls of which payloads are kept, of those that policies capture: 0 to 1.
    pub sample: f64,
    /// Plugins with a cap or a share of their own.
    pub plugins: BTreeMap<String, PluginCapture>,
    /// How many bytes of sealed payloads wait on disk; past it the oldest are lost, and counted.
    pub spool_bytes: ByteSize,
    /// Whether a call goes on that a policy captures and that cannot be captured.
    pub on_failure: OnFailure,
}

impl Default for CaptureSettings {
    fn default() -> Self {
        Self {
            recipient: None,
            compress: true,
            max_bytes: ByteSize::mib(1),
            sample: 1.0,
            plugins: BTreeMap::new(),
            spool_bytes: ByteSize::mib(256),
            on_failure: OnFailure::Open,
        }
    }
}

/// What is another of a plugin's payloads.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PluginCapture {
    /// In place of `payloads.max_bytes`.
    pub max_bytes: Option<ByteSize>,
    /// In place of `payloads.sample`.
    pub sample: Option<f64>,
}

/// A period in whole days, if it is one.
pub fn whole_days(period: Period) -> Option<u32> {
    const DAY: u64 = 86_400;
    let seconds = period.as_duration().as_secs();
    let is_whole = period.as_duration() == Duration::from_secs(seconds) && seconds.is_multiple_of(DAY);
    let days = u32::try_from(seconds / DAY).ok().filter(|days| (1..=crate::payload::MAX_DAYS).contains(days));
    days.filter(|_| is_whole)
}

#[cfg(test)]
mod tests {
    use crate::config::{ControlPlane, Gateway};

    fn only_fault(found: Vec<String>, starts: &str) {
        assert!(found.len() == 1 && found[0].starts_with(starts), "{found:?} do not start with {starts:?}");
    }

    fn faults(text: &str) -> Vec<String> {
        ControlPlane::parse("f", text, &|_| None).unwrap_err().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_period_of_payloads_is_whole_days() {
        only_fault(faults("orgs: [{name: a, retention: {payloads: 36h}}]"), "f:1:40: orgs[0].retention.payloads: 36h");
        only_fault(
            faults("orgs: [{name: a, payloads: {plugins: {github: 12h}}}]"),
            "f:1:47: orgs[0].payloads.plugins.github: 12h",
        );
    }

    #[test]
    fn there_is_one_kek_and_one_way_to_log_in() {
        only_fault(
            faults("payload_keys: {key: '1 aa', aws_kms: {key_id: k, region: r}}"),
            "f:1:15: payload_keys: two of key, vault, aws_kms",
        );
        only_fault(
            faults("payload_keys: {vault: {url: 'https://v', key: k, auth: {token: a, kubernetes_role: b}}}"),
            "f:1:56: payload_keys.vault.auth: ",
        );
        only_fault(
            faults("payload_keys: {vault: {url: 'http://v.example', key: k, auth: {token: a}}}"),
            "f:1:29: payload_keys.vault.url: ",
        );
    }

    #[test]
    fn a_share_is_between_none_and_all() {
        let text = "plugins: [{name: a, url: 'http://h/'}]\nidentity: {anonymous: true}\npayloads: {sample: 1.5}";
        let found = Gateway::parse("f", text, &|_| None).unwrap_err();
        only_fault(found.iter().map(ToString::to_string).collect(), "f:3:20: payloads.sample: 1.5 is out of range");
    }

    #[test]
    fn secrets_of_keys_are_in_no_debug_output() {
        let text = "payload_keys: {vault: {url: 'https://v', key: k, auth: {role_id: r, secret_id: canary}}}";
        let settings = ControlPlane::parse("f", text, &|_| None).unwrap();
        assert!(!format!("{settings:?}{}", serde_json::to_string(&settings).unwrap()).contains("canary"));
    }
}
