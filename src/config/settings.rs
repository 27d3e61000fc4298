//! The control plane's settings, each with a default that suits one machine.
//!
//! `deploy/control-plane.yaml` shows every key with its default; tests keep the two in step.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};

use super::check;
use super::fault::Faults;
use super::read::read;
use super::{ByteSize, Endpoint, Environment, Period, Secret, Storage, StorageUrl, Telemetry, TokenHash};
use crate::model::{Entitlement, OrgName, Role, Tier};

/// Everything that a control-plane node can be told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ControlPlane {
    /// The control plane's own name, first part of every ledger's origin.
    pub name: String,
    /// The address to serve HTTP on. Anything but loopback needs `tokens`.
    #[serde(deserialize_with = "address")]
    pub listen: SocketAddr,
    /// Where everything durable lives.
    pub storage: Storage,
    /// The tenants.
    pub orgs: Vec<Org>,
    /// Who may call the API; with none, everyone who reaches the loopback address may do everything.
    pub tokens: Vec<Token>,
    /// The ledger's signing.
    pub audit: Audit,
    /// Group commit of samples.
    pub commit: Commit,
    /// Moving samples from the WAL to the tables.
    pub flush: Flush,
    /// What a client may ask for, and what memory may be used.
    pub limits: Limits,
    /// The program's own logs and traces.
    pub telemetry: Telemetry,
}

impl Default for ControlPlane {
    fn default() -> Self {
        Self {
            name: "mcpg.local".to_owned(),
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 7843)),
            storage: Storage::default(),
            orgs: vec![Org::default()],
            tokens: Vec::new(),
            audit: Audit::default(),
            commit: Commit::default(),
            flush: Flush::default(),
            limits: Limits::default(),
            telemetry: Telemetry::default(),
        }
    }
}

impl ControlPlane {
    /// Reads the settings from `text`, the content of `file`.
    ///
    /// # Errors
    /// Every fault of the file at once.
    pub fn parse(file: &str, text: &str, environment: Environment<'_>) -> Result<Self, Faults> {
        read(file, text, environment, check::control_plane)
    }

    /// Why these settings must not be served: without tokens everyone may do everything, so only loopback may be
    /// listened on.
    pub fn exposure(&self) -> Option<String> {
        let exposed = self.tokens.is_empty() && !self.listen.ip().is_loopback();
        exposed.then(|| {
            format!(
                "{} is reachable from other machines, and without tokens everyone there may do everything; listen on \
                 127.0.0.1, or add tokens (`mcpg token new` makes one)",
                self.listen
            )
        })
    }
}

/// Reads an IP address and a port.
pub(super) fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(|_| {
        let advice = "write an IP address and a port, like 127.0.0.1:7843 or [::1]:7843";
        D::Error::custom(format_args!("`{text}` is no address; {advice}"))
    })
}

/// A tenant.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Org {
    /// Its name, unique.
    pub name: OrgName,
    /// What it has bought.
    #[serde(default)]
    pub tier: Tier,
    /// Its extras.
    #[serde(default)]
    pub entitlements: Vec<Entitlement>,
    /// How long its data is kept, where that is not what its tier says.
    #[serde(default)]
    pub retention: Retention,
}

/// How long an org's data is kept.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retention {
    /// Entries of the audit ledger; by the org's tier if not set.
    pub ledger: Option<Period>,
}

/// The org that a token belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum OrgScope {
    /// Every org, written `"*"`: an operator's.
    All,
    /// One org.
    One(OrgName),
}

impl OrgScope {
    /// Whether `org` is within.
    pub fn covers(&self, org: &OrgName) -> bool {
        match self {
            Self::All => true,
            Self::One(one) => one == org,
        }
    }
}

impl TryFrom<String> for OrgScope {
    type Error = crate::model::OrgNameError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text == "*" { Ok(Self::All) } else { text.parse().map(Self::One) }
    }
}

impl From<OrgScope> for String {
    fn from(scope: OrgScope) -> Self {
        match scope {
            OrgScope::All => "*".to_owned(),
            OrgScope::One(name) => name.into(),
        }
    }
}

/// Who may call the API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// What people call it; shown in logs, unique.
    pub name: String,
    /// The token's hash, made by `mcpg token hash`.
    pub hash: TokenHash,
    /// The org whose data it opens.
    pub org: OrgScope,
    /// What its bearer may do there.
    pub roles: Vec<Role>,
}

/// The ledger's signing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Audit {
    /// The file that holds the key the ledgers' heads are signed with; made at the first start.
    pub key_file: PathBuf,
    /// The key itself, as PKCS#8 PEM, from the environment; used in place of the file.
    pub key: Option<Secret>,
    /// The file of the key before this one: for the time of a change, heads are signed with both.
    pub previous_key_file: Option<PathBuf>,
    /// How often it is looked for entries that are older than they are kept.
    pub prune_interval: Period,
    /// Who cosigns each head.
    pub witness: Option<Witness>,
    /// Where each head is copied to.
    pub mirror: Option<Mirror>,
}

/// A witness, which speaks C2SP tlog-witness.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Witness {
    /// Its submission prefix: heads are posted to `<url>/add-checkpoint`.
    pub url: Endpoint,
    /// Its verifier key.
    pub vkey: String,
}

/// A second store, for heads alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mirror {
    /// The object store.
    pub url: StorageUrl,
}

impl Default for Audit {
    fn default() -> Self {
        Self {
            key_file: PathBuf::from("./mcpg-data/keys/ledger.key"),
            key: None,
            previous_key_file: None,
            prune_interval: Period::new(Duration::from_secs(3_600)),
            witness: None,
            mirror: None,
        }
    }
}

/// Group commit of samples: the batches of a short window go into one WAL object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Commit {
    /// How long the first batch of a group waits for others. Longer: fewer, larger objects and a later answer.
    pub window: Period,
}

impl Default for Commit {
    fn default() -> Self {
        Self { window: Period::new(Duration::from_millis(5)) }
    }
}

/// Moving samples from the WAL to the tables: at whichever of these comes first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Flush {
    /// How old the oldest unflushed sample may become.
    pub interval: Period,
    /// How many samples may wait.
    pub max_rows: u64,
    /// How many bytes of samples may wait, as they lie in memory.
    pub max_bytes: ByteSize,
}

impl Default for Flush {
    fn default() -> Self {
        Self { interval: Period::new(Duration::from_secs(10)), max_rows: 500_000, max_bytes: ByteSize::mib(256) }
    }
}

/// What a client may ask for, and what memory may be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// The largest request body as it is sent, perhaps compressed.
    pub body_bytes: ByteSize,
    /// The largest request body once it is decompressed.
    pub decoded_bytes: ByteSize,
    /// The most samples in one request.
    pub batch_rows: u64,
    /// All samples in memory: requests under way and samples not yet flushed. Past it, requests are refused with 429. A
    /// request that could not be held even by an empty buffer is refused with 413, whatever the limits above.
    pub buffer_bytes: ByteSize,
    /// How long a request may take, from its first byte to the answer's first.
    pub request_timeout: Period,
    /// How many idempotency keys are remembered for each org.
    pub idempotency_keys: u64,
    /// How many metric series each org has; later ones are counted under `__other__`.
    pub series: u64,
    /// Limits of SQL.
    pub sql: SqlLimits,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes: ByteSize::mib(64),
            decoded_bytes: ByteSize::mib(128),
            batch_rows: 1_000_000,
            buffer_bytes: ByteSize::mib(384),
            request_timeout: Period::new(Duration::from_secs(60)),
            idempotency_keys: 4_000_000,
            series: 10_000,
            sql: SqlLimits::default(),
        }
    }
}

/// Limits of SQL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SqlLimits {
    /// Working memory of all queries together.
    pub memory_bytes: ByteSize,
    /// How long one query may run.
    pub timeout: Period,
    /// The most rows of one answer.
    pub rows: u64,
    /// How many queries run at once; more wait for a moment, then are refused with 429.
    pub concurrency: u64,
    /// The longest query text.
    pub query_bytes: ByteSize,
    /// Temporary files of all queries together.
    pub spill_bytes: ByteSize,
    /// When the process has more than this resident, the running queries are stopped.
    pub resident_bytes: ByteSize,
}

impl Default for SqlLimits {
    fn default() -> Self {
        Self {
            memory_bytes: ByteSize::mib(256),
            timeout: Period::new(Duration::from_secs(30)),
            rows: 1_000_000,
            concurrency: 4,
            query_bytes: ByteSize::new(64 << 10),
            spill_bytes: ByteSize::mib(2048),
            resident_bytes: ByteSize::mib(2048),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::path::PathBuf;

    use super::{ControlPlane, OrgScope};
    use crate::config::{StorageUrl, reference};
    use crate::model::{Entitlement, Tier};

    const REFERENCE: &str = include_str!("../../deploy/control-plane.yaml");

    fn none(_: &str) -> Option<String> {
        None
    }

    fn parse(text: &str) -> ControlPlane {
        ControlPlane::parse("cp.yaml", text, &none).unwrap()
    }

    #[test]
    fn an_empty_file_gives_the_defaults() {
        for text in ["", "# nothing\n", "---\n", "storage:\nflush:\n  interval:\n"] {
            assert_eq!(parse(text), ControlPlane::default(), "{text:?}");
        }
    }

    #[test]
    fn the_reference_file_shows_the_defaults() {
        let mut reference = parse(REFERENCE);
        assert_eq!(reference.tokens.len(), 2);
        assert_eq!(reference.tokens[1].org, OrgScope::All);
        reference.tokens.clear();
        assert_eq!(reference, ControlPlane::default());
    }

    #[test]
    fn the_reference_file_shows_every_key() {
        let expected = reference::keys(&parse(REFERENCE));
        assert!(expected.contains(&".tokens[].roles".to_owned()), "{expected:?}");
        assert_eq!(reference::absent(&expected, REFERENCE), [""; 0]);
    }

    #[test]
    fn the_example_of_the_documentation_is_taken() {
        let text = r#"
name: mcpg.local
listen: 127.0.0.1:7843
storage: { url: "file:///var/lib/mcpg" }
orgs:
  - { name: default, tier: enterprise, entitlements: [payload_capture] }
tokens:
  - { name: prometheus, hash: "5fe1b8dff1ee53d2f4d3a7c06e8bbd4bd1d1fe76b3e7a1d3b9f6ed6b2bcd0a4e",
      org: default, roles: [read] }
audit: { key_file: /etc/mcpg/ledger.key }
"#;
        let settings = parse(text);
        assert_eq!(settings.storage.url, StorageUrl::Folder(PathBuf::from("/var/lib/mcpg")));
        assert_eq!(settings.orgs[0].tier, Tier::Enterprise);
        assert_eq!(settings.orgs[0].entitlements, [Entitlement::PayloadCapture]);
    }

    #[test]
    fn a_name_of_digits_is_text_all_the_same() {
        let settings = parse("orgs: [{name: 007}, {name: 1e5}]");
        assert_eq!(settings.orgs[1].name.as_str(), "1e5");
    }

    #[test]
    fn serving_others_without_tokens_is_an_exposure() {
        let mut settings = ControlPlane::default();
        assert_eq!(settings.exposure(), None);
        settings.listen = SocketAddr::from(([0, 0, 0, 0], 7843));
        assert!(settings.exposure().unwrap().contains("tokens"));
        settings.tokens = parse(REFERENCE).tokens;
        assert_eq!(settings.exposure(), None);
    }
}
