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
use super::{
    ByteSize, Endpoint, Environment, Expiry, Limits, OrgPayloads, PayloadKeys, People, Period, Secret, Session,
    Storage, Telemetry, Tls, TokenHash,
};
use crate::model::{CallerName, Entitlement, OrgName, Role, Tier};

/// All settings of a control-plane node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ControlPlane {
    /// The control plane's own name, first part of every ledger's origin.
    pub name: String,
    /// The address to serve HTTP on. Anything but loopback needs `tokens`.
    #[serde(deserialize_with = "address")]
    pub listen: SocketAddr,
    /// The hosts that requests without a bearer token may name, beside this machine's own names and `public_url`'s,
    /// with or without a port: so that no web page reaches it through a name of its own (DNS rebinding).
    pub allowed_hosts: Vec<String>,
    /// How browsers reach it: where people come back to from their provider.
    pub public_url: Option<Endpoint>,
    /// TLS; without it HTTP is served as it is.
    pub tls: Option<Tls>,
    /// Where everything durable lives.
    pub storage: Storage,
    /// The tenants.
    pub orgs: Vec<Org>,
    /// Who may call the API; with none, everyone who reaches the loopback address may do everything.
    pub tokens: Vec<Token>,
    /// The people who come in by what a provider says of them.
    pub identity: People,
    /// Sessions of browsers.
    pub session: Session,
    /// The ledger's signing.
    pub audit: Audit,
    /// What the private keys of sealed payloads are wrapped by, and where they lie.
    pub payload_keys: PayloadKeys,
    /// The write-ahead log.
    pub log: LogSettings,
    /// Group commit of samples.
    pub commit: Commit,
    /// Moving samples from the WAL to the tables.
    pub flush: Flush,
    /// Keeping the tables.
    pub maintenance: Maintenance,
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
            allowed_hosts: ["localhost", "127.0.0.1", "::1"].map(str::to_owned).into(),
            public_url: None,
            tls: None,
            storage: Storage::default(),
            orgs: vec![Org::default()],
            tokens: Vec::new(),
            identity: People::default(),
            session: Session::default(),
            audit: Audit::default(),
            payload_keys: PayloadKeys::default(),
            log: LogSettings::default(),
            commit: Commit::default(),
            flush: Flush::default(),
            maintenance: Maintenance::default(),
            limits: Limits::default(),
            telemetry: Telemetry::default(),
        }
    }
}

/// The defaults that depend on the kind of store: a write to a disk costs milliseconds, one to a remote store tens of
/// milliseconds and money.
#[derive(Debug, Clone, Copy)]
struct Pace {
    commit_window: Duration,
    flush_interval: Duration,
    flush_max_bytes: ByteSize,
    ledger_period: Duration,
}

const LOCAL: Pace = Pace {
    commit_window: Duration::from_millis(5),
    flush_interval: Duration::from_secs(10),
    flush_max_bytes: ByteSize::mib(256),
    ledger_period: Duration::from_secs(1),
};

const REMOTE: Pace = Pace {
    commit_window: Duration::from_millis(250),
    flush_interval: Duration::from_secs(60),
    flush_max_bytes: ByteSize::mib(64),
    ledger_period: Duration::from_secs(10),
};

impl ControlPlane {
    /// Reads the settings from `text`, the content of `file`.
    ///
    /// # Errors
    /// Every fault of the file at once.
    pub fn parse(file: &str, text: &str, environment: Environment<'_>) -> Result<Self, Faults> {
        read(file, text, environment, check::control_plane)
    }

    /// How long the first batch of a group waits for others: as set, or by the kind of store.
    pub fn commit_window(&self) -> Duration {
        self.or_by_store(self.commit.window, LOCAL.commit_window, REMOTE.commit_window)
    }

    /// How old the oldest unflushed sample may become: as set, or by the kind of store.
    pub fn flush_interval(&self) -> Duration {
        self.or_by_store(self.flush.interval, LOCAL.flush_interval, REMOTE.flush_interval)
    }

    /// How many bytes of samples may wait for a flush: as set, or by the kind of store.
    pub fn flush_max_bytes(&self) -> ByteSize {
        let by_store = if self.storage.url.is_remote() { REMOTE } else { LOCAL };
        self.flush.max_bytes.unwrap_or(by_store.flush_max_bytes)
    }

    /// How often at most a ledger with new entries gets a segment and a checkpoint: as set, or by the kind of store.
    pub fn ledger_period(&self) -> Duration {
        self.or_by_store(self.audit.period, LOCAL.ledger_period, REMOTE.ledger_period)
    }

    fn or_by_store(&self, set: Option<Period>, local: Duration, remote: Duration) -> Duration {
        let by_store = if self.storage.url.is_remote() { remote } else { local };
        set.map_or(by_store, Period::as_duration)
    }

    /// Whether everyone may do everything: there are neither tokens nor people.
    pub fn is_open(&self) -> bool {
        self.tokens.is_empty() && !self.identity.is_configured()
    }

    /// Why these settings must not be served: where everyone may do everything, only loopback may be listened on.
    pub fn exposure(&self) -> Option<String> {
        let exposed = self.is_open() && !self.listen.ip().is_loopback();
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
    /// The most bytes of files that one query of its reads, in place of `limits.sql.scan_bytes`.
    #[serde(default)]
    pub scan_bytes: Option<ByteSize>,
    /// Its sealed payloads.
    #[serde(default)]
    pub payloads: OrgPayloads,
}

impl Org {
    /// Whether its payloads may be captured: it is entitled to that, and of the tier that has it.
    pub fn captures_payloads(&self) -> bool {
        self.tier == Tier::Enterprise && self.entitlements.contains(&Entitlement::PayloadCapture)
    }
}

/// How long an org's data is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retention {
    /// Samples; by the org's tier if not set.
    pub samples: Option<Period>,
    /// Hourly rollups.
    pub hourly: Period,
    /// Daily rollups.
    pub daily: Period,
    /// Entries of the audit ledger; by the org's tier if not set.
    pub ledger: Option<Period>,
    /// Sealed payloads, in whole days.
    pub payloads: Period,
}

impl Default for Retention {
    fn default() -> Self {
        let days = |days: u64| Period::new(Duration::from_secs(days * 86_400));
        Self { samples: None, hourly: days(400), daily: days(3_650), ledger: None, payloads: days(30) }
    }
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
    /// The hash of the token before this one, for the time of a change: both are taken.
    #[serde(default)]
    pub previous_hash: Option<TokenHash>,
    /// From when on it is not taken any more.
    #[serde(default)]
    pub expires: Option<Expiry>,
    /// Who presents it, for the ledger: `user:alice@acme`, a person, or `service:ci`; `service:<name>` if not set.
    #[serde(default)]
    pub caller: Option<CallerName>,
}

/// The ledger's signing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Audit {
    /// The file of the key that the ledgers' checkpoints are signed with; made at the first start.
    pub key_file: PathBuf,
    /// The key itself, as PKCS#8 PEM, from the environment; used in place of the file.
    pub key: Option<Secret>,
    /// The file of the key before this one: for the time of a change, checkpoints are signed with both.
    pub previous_key_file: Option<PathBuf>,
    /// How often at most a ledger with new entries gets a segment and a checkpoint; by the kind of store if not set,
    /// see [`ControlPlane::ledger_period`].
    pub period: Option<Period>,
    /// How often it is looked for entries that are older than they are kept.
    pub prune_interval: Period,
    /// Who cosigns each head.
    pub witness: Option<Witness>,
    /// Where each checkpoint is copied to: a second store, with the settings that a store has.
    pub mirror: Option<Storage>,
    /// Whether each SQL query is an entry of its org's ledger: who ran it, its digest, rows and bytes.
    pub queries: bool,
}

/// A witness, which speaks C2SP tlog-witness.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Witness {
    /// Its submission prefix: checkpoints are posted to `<url>/add-checkpoint`.
    pub url: Endpoint,
    /// Its verifier key.
    pub vkey: String,
}

impl Default for Audit {
    fn default() -> Self {
        Self {
            key_file: PathBuf::from("./mcpg-data/keys/ledger.key"),
            key: None,
            previous_key_file: None,
            period: None,
            prune_interval: Period::new(Duration::from_secs(3_600)),
            witness: None,
            mirror: None,
            queries: false,
        }
    }
}

/// The write-ahead log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogSettings {
    /// Into how many parts it is divided; this version knows one.
    pub shards: u64,
    /// After how long an org that holds the log back is parked: what the log has of it is kept apart, and the log is
    /// trimmed.
    pub park_after: Period,
    /// The longest that the log may have rested. A clock that says longer is taken for wrong, and nothing is written by
    /// it.
    pub max_rest: Period,
    /// Whether a store of version 1 is brought over. What such a store holds carries no MAC, and so is believed that
    /// once. Off by default: a thief who can write the store could put one of version 1 in its place, and have this
    /// node sign what is in it.
    pub bring_over: bool,
}

impl Default for LogSettings {
    fn default() -> Self {
        let (hour, day) = (Duration::from_secs(3_600), Duration::from_secs(86_400));
        Self { shards: 1, park_after: Period::new(hour), max_rest: Period::new(400 * day), bring_over: false }
    }
}

/// Group commit of samples: the batches of a short window go into one WAL object.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Commit {
    /// How long the first batch of a group waits for others. Longer: fewer, larger objects and a later answer. By the
    /// kind of store if not set, see [`ControlPlane::commit_window`].
    pub window: Option<Period>,
}

/// Moving samples from the WAL to the tables: at whichever of these comes first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Flush {
    /// How old the oldest unflushed sample may become; by the kind of store if not set, see
    /// [`ControlPlane::flush_interval`].
    pub interval: Option<Period>,
    /// How many samples may wait.
    pub max_rows: u64,
    /// How many bytes of samples may wait, as they lie in memory; by the kind of store if not set, see
    /// [`ControlPlane::flush_max_bytes`].
    pub max_bytes: Option<ByteSize>,
}

impl Default for Flush {
    fn default() -> Self {
        Self { interval: None, max_rows: 500_000, max_bytes: None }
    }
}

/// Maintenance of the tables: merging small files, removing what is older than it is kept, deleting unused files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Maintenance {
    /// How often it is looked for what is due.
    pub interval: Period,
    /// How many files of flushes of one hour are merged before it has ended.
    pub small_files: u64,
    /// How long after an org's removal all of it is deleted, and the removal can no longer be taken back.
    pub removal_grace: Period,
}

impl Default for Maintenance {
    fn default() -> Self {
        Self {
            interval: Period::new(Duration::from_secs(60)),
            small_files: 10,
            removal_grace: Period::new(Duration::from_secs(7 * 24 * 3_600)),
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
    fn a_remote_store_has_fewer_and_larger_writes_unless_the_file_says_otherwise() {
        let paces = |text| {
            let read = parse(text);
            let bytes = read.flush_max_bytes().as_u64() >> 20;
            let millis = [read.commit_window(), read.flush_interval(), read.ledger_period()].map(|d| d.as_millis());
            (millis, bytes)
        };
        for local in ["", "storage: { url: memory:// }", "storage: { url: /data }"] {
            assert_eq!(paces(local), ([5, 10_000, 1_000], 256), "{local}");
        }
        assert_eq!(paces("storage: { url: \"s3://bucket/x\" }"), ([250, 60_000, 10_000], 64));
        let set = "commit: { window: 1ms }\nflush: { interval: 2s, max_bytes: 3MiB }\naudit: { period: 4s }\n";
        assert_eq!(paces(set), ([1, 2_000, 4_000], 3));
        assert_eq!(paces(&format!("{set}storage: {{ url: \"s3://bucket\" }}")), ([1, 2_000, 4_000], 3));
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
