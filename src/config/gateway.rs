//! The gateway's settings, each with a default that suits one machine and admits no caller.
//!
//! `deploy/gateway.yaml` shows every key; tests keep the two in step. What must be said are the plugins, and a way for
//! callers to be known (`identity`); what is allowed is said by `policy`, and unsaid it is nothing.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::fault::Faults;
use super::read::read;
use super::settings::address;
use super::{
    ByteSize, CaptureSettings, Endpoint, Environment, Identity, Log, Observability, Period, Plugin, PolicySource,
    Secret, Tls, gateway_check,
};
use crate::model::OrgName;

/// All settings of a gateway.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Gateway {
    /// The address to serve MCP on.
    #[serde(deserialize_with = "address")]
    pub listen: SocketAddr,
    /// TLS; without it HTTP is served as it is.
    pub tls: Option<Tls>,
    /// The host names that clients may reach it by, with or without a port. Others are refused, so that no web page
    /// can reach it through a name of its own (DNS rebinding).
    pub allowed_hosts: Vec<String>,
    /// The origins whose web pages may call it. A request without an `Origin` header comes from no web page.
    pub allowed_origins: Vec<String>,
    /// The org that its calls belong to.
    pub org: OrgName,
    /// The workspace that its calls belong to.
    pub workspace: String,
    /// Its own name among the workspace's gateways.
    pub instance: String,
    /// Where samples and audit events go.
    pub control_plane: ControlPlaneLink,
    /// The MCP servers behind it.
    pub plugins: Vec<Plugin>,
    /// Who may call, and under which name.
    pub identity: Identity,
    /// What callers may do.
    pub policy: PolicySource,
    /// The three streams.
    pub observability: Observability,
    /// What is done about payloads that policies capture.
    pub payloads: CaptureSettings,
    /// What a client may ask for, and what memory may be used.
    pub limits: GatewayLimits,
    /// Keys of the states that modern clients carry between the requests of one call: the first seals, all of them
    /// open. None: one of the gateway's own, anew at each start.
    pub state_keys: Vec<StateKey>,
    /// The gateway's own telemetry, beside the three streams.
    pub telemetry: GatewayTelemetry,
}

/// A key of the states that modern clients carry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StateKey {
    /// What it is called in the states that it sealed.
    pub id: String,
    /// The file that holds it: 64 hexadecimal digits.
    pub file: PathBuf,
}

impl Default for Gateway {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            tls: None,
            allowed_hosts: ["localhost", "127.0.0.1", "::1"].map(str::to_owned).into(),
            allowed_origins: Vec::new(),
            org: OrgName::default(),
            workspace: "default".to_owned(),
            instance: host_name(),
            control_plane: ControlPlaneLink::default(),
            plugins: Vec::new(),
            identity: Identity::default(),
            policy: PolicySource::default(),
            observability: Observability::default(),
            payloads: CaptureSettings::default(),
            limits: GatewayLimits::default(),
            state_keys: Vec::new(),
            telemetry: GatewayTelemetry::default(),
        }
    }
}

/// This machine's name, by which its gateway is known where no other name is given.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "gateway".to_owned() } else { name.to_owned() }
}

impl Gateway {
    /// Reads the settings from `text`, the content of `file`.
    ///
    /// # Errors
    /// Every fault of the file at once.
    pub fn parse(file: &str, text: &str, environment: Environment<'_>) -> Result<Self, Faults> {
        read(file, text, environment, gateway_check::gateway)
    }

    /// What is allowed by these settings and still deserves a second look, for the log at the start.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.identity.anonymous && !self.listen.ip().is_loopback() {
            warnings.push(format!("{} is reachable from other machines and takes anonymous callers", self.listen));
        }
        match &self.policy {
            PolicySource::DenyAll => warnings.push("no policy: every call is denied; see `policy`".to_owned()),
            PolicySource::AllowAll => warnings.push("policy: allow_all: every caller may call every tool".to_owned()),
            PolicySource::Files(_) => {}
        }
        warnings
    }
}

/// Where samples and audit events go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ControlPlaneLink {
    /// The control plane's URL.
    pub url: Endpoint,
    /// The token it knows the gateway by, with the role `ingest`.
    pub token: Option<Secret>,
    /// The verifier key of the org's ledger, by which the note of payload keys is verified; left out, the first one
    /// seen is kept.
    pub vkey: Option<String>,
    /// The authorities of the control plane's certificate, in PEM; left out, those that the system trusts.
    pub ca_file: Option<PathBuf>,
    /// The certificate that the gateway shows a control plane with `tls.client_ca_file`, in PEM.
    pub cert_file: Option<PathBuf>,
    /// Its private key, in PEM.
    pub key_file: Option<PathBuf>,
    /// What waits on disk to be sent.
    pub spool: Spool,
}

impl Default for ControlPlaneLink {
    fn default() -> Self {
        Self {
            url: Endpoint::local_control_plane(),
            token: None,
            vkey: None,
            ca_file: None,
            cert_file: None,
            key_file: None,
            spool: Spool::default(),
        }
    }
}

/// What waits on disk to be sent to the control plane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Spool {
    /// Its folder; one gateway's alone.
    pub path: PathBuf,
    /// How large it may become. Past it the oldest samples are lost, and counted; audit events never are.
    pub max_bytes: ByteSize,
}

impl Default for Spool {
    fn default() -> Self {
        Self { path: PathBuf::from("./mcpg-data/spool"), max_bytes: ByteSize::mib(1024) }
    }
}

/// What a client may ask for, and what memory may be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GatewayLimits {
    /// The largest request body.
    pub body_bytes: ByteSize,
    /// The memory that requests and answers may take, all together; past it new ones are refused. One caller may have
    /// half.
    pub memory: ByteSize,
    /// How many sessions are kept; past it one that is unused makes room, or a new one is refused.
    pub sessions: u64,
    /// How many of them one caller may have; none: as many as there are.
    pub sessions_per_caller: Option<u64>,
    /// After how long without a request a session is ended.
    pub session_idle: Period,
    /// How many calls may be under way at once, over all plugins; past it a call is refused.
    pub calls: u64,
    /// How long a person may take to answer what a server asks in the middle of a call.
    pub answer: Period,
    /// How long a client that is asked may be without a connection.
    pub resume: Period,
    /// How many calls of one modern caller may wait for a person at once.
    pub waiting_calls: u64,
    /// How often, and how many at once. Read again while the gateway runs.
    pub rates: Vec<Rate>,
    /// How long calls under way may take to finish once the gateway is asked to stop.
    pub drain: Period,
}

/// A rate: how often those calls may be made that it matches, and how many may be under way at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rate {
    /// What it is called, to those who are refused by it.
    pub name: String,
    /// The caller it is of; none: any.
    pub caller: Option<String>,
    /// The group whose members it is of.
    pub group: Option<String>,
    /// The plugin it is of.
    pub plugin: Option<String>,
    /// The tool it is of, by the plugin's own name.
    pub tool: Option<String>,
    /// What calls are counted apart by; nothing: all together.
    pub by: Vec<RateBy>,
    /// How many calls in each `per`.
    pub calls: Option<u64>,
    /// The time in which so many calls come back.
    pub per: Period,
    /// How many may come at once; none: as many as `calls`.
    pub burst: Option<u64>,
    /// How many may be under way at once.
    pub concurrency: Option<u64>,
}

impl Default for Rate {
    fn default() -> Self {
        Self {
            name: String::new(),
            caller: None,
            group: None,
            plugin: None,
            tool: None,
            by: Vec::new(),
            calls: None,
            per: Period::new(Duration::from_secs(60)),
            burst: None,
            concurrency: None,
        }
    }
}

/// What calls are counted apart by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RateBy {
    /// The caller.
    Caller,
    /// Each group of the caller.
    Group,
    /// The plugin.
    Plugin,
    /// The tool.
    Tool,
}

impl Default for GatewayLimits {
    fn default() -> Self {
        Self {
            body_bytes: ByteSize::mib(4),
            memory: ByteSize::mib(256),
            sessions: 20_000,
            sessions_per_caller: None,
            session_idle: Period::new(Duration::from_secs(1_800)),
            calls: 1_024,
            answer: Period::new(Duration::from_secs(300)),
            resume: Period::new(Duration::from_secs(30)),
            waiting_calls: 8,
            rates: Vec::new(),
            drain: Period::new(Duration::from_secs(10)),
        }
    }
}

/// The gateway's own telemetry, beside the three streams.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GatewayTelemetry {
    /// Logs, on standard error.
    pub log: Log,
}

#[cfg(test)]
mod tests {
    use super::Gateway;
    use crate::config::{JwtKind, OnFailure, PolicySource, Transport, reference};

    const REFERENCE: &str = include_str!("../../deploy/gateway.yaml");

    fn parse(text: &str) -> Gateway {
        Gateway::parse("gw.yaml", text, &|_| None).unwrap()
    }

    #[test]
    fn the_reference_file_shows_the_defaults_of_all_that_has_one() {
        let mut reference = parse(REFERENCE);
        assert_eq!(reference.plugins.len(), 2);
        assert_eq!(reference.identity.tokens.len(), 1);
        assert_eq!(reference.identity.jwt.len(), 1);
        assert!(matches!(reference.policy, PolicySource::Files(_)));
        let defaults = Gateway::default();
        for plugin in &reference.plugins {
            let bare = parse(&format!(
                "plugins: [{{name: {}, url: 'http://h/'}}]\nidentity: {{anonymous: true}}",
                plugin.name
            ));
            let mut shown = plugin.clone();
            shown.transport = bare.plugins[0].transport.clone();
            shown.max_sessions = None;
            assert_eq!(shown, bare.plugins[0]);
        }
        let mut jwt = reference.identity.jwt[0].clone();
        let bare = parse(
            "plugins: [{name: a, url: 'http://h/'}]\nidentity: {jwt: {issuer: i, audience: a, jwks_url: 'https://h'}}",
        );
        (jwt.issuer, jwt.audience) = ("i".into(), "a".into());
        jwt.jwks_url = bare.identity.jwt[0].jwks_url.clone();
        assert_eq!(jwt, bare.identity.jwt[0]);
        let streams = &mut reference.observability;
        let push = streams.metrics.push.take().unwrap();
        assert_eq!(push.interval.to_string(), "30s");
        assert!(streams.metrics.control_plane.take().is_some() && streams.audit.control_plane.take().is_some());
        assert_eq!(reference.limits.rates.len(), 1);
        assert_eq!(reference.state_keys.len(), 1);
        reference.limits.rates.clear();
        reference.state_keys.clear();
        reference.plugins.clear();
        reference.identity = defaults.identity.clone();
        reference.policy = PolicySource::default();
        assert_eq!(reference, defaults);
    }

    #[test]
    fn the_reference_file_shows_every_key() {
        let expected = reference::keys(&parse(REFERENCE));
        for path in [".plugins[].folder", ".plugins[].command", ".identity.jwt[].leeway", ".observability.audit.file"] {
            assert!(expected.contains(&path.to_owned()), "{path} is not in {expected:?}");
        }
        assert_eq!(reference::absent(&expected, REFERENCE), [""; 0]);
    }

    #[test]
    fn the_example_of_the_documentation_is_taken() {
        let text = r#"
listen: 127.0.0.1:8080
org: default
workspace: prod
instance: gw-1
control_plane: { url: "http://127.0.0.1:7843", token: "${MCPG_TOKEN:-}", spool: { path: ./spool, max_bytes: 1073741824 } }
plugins:
  - { name: github, url: "http://127.0.0.1:3001/mcp" }
  - { name: files, command: npx, args: ["-y", "server-files"], env: {} }
identity:
  anonymous: true
  tokens: [ { hash: "5fe1b8dff1ee53d2f4d3a7c06e8bbd4bd1d1fe76b3e7a1d3b9f6ed6b2bcd0a4e", caller: "service:ci" } ]
  jwt: { issuer: "https://id.example", audience: "mcpg", jwks_url: "https://id.example/jwks" }
policy: { files: [policies/*.cedar] }
observability:
  metrics: { enabled: true, listen: "127.0.0.1:9090" }
  otlp:
    endpoint: https://otel-collector.example.com:4317
    headers: { authorization: "Bearer ${OTEL_TOKEN:-}" }
    sample_rate: 0.1
  audit: { enabled: true, on_failure: open }
"#;
        let settings = parse(text);
        assert!(settings.control_plane.token.is_none());
        assert!(matches!(&settings.plugins[1].transport, Transport::Child { args, .. } if args.len() == 2));
        assert_eq!(settings.identity.tokens[0].caller.as_str(), "service:ci");
        assert_eq!(settings.identity.jwt[0].kind, JwtKind::User);
        assert_eq!(settings.policy, PolicySource::Files(vec!["policies/*.cedar".to_owned()]));
        assert!((settings.observability.otlp.sample_rate - 0.1).abs() < f64::EPSILON);
        assert_eq!(settings.observability.audit.on_failure, OnFailure::Open);
    }

    #[test]
    fn a_stream_that_is_switched_off_exports_no_spans() {
        let text = "plugins: [{name: a, url: 'http://h/'}]\nidentity: {anonymous: true}\n\
                    observability: {otlp: {endpoint: 'http://h:4317', enabled: ENABLED}}";
        let endpoint = |enabled| parse(&text.replace("ENABLED", enabled)).observability.otlp.otlp().endpoint;
        assert!(endpoint("true").is_some());
        assert!(endpoint("false").is_none());
    }

    #[test]
    fn several_issuers_stand_in_a_list() {
        let text = "plugins: [{name: a, url: 'http://h/'}]\nidentity:\n  jwt:\n  \
                    - {issuer: a, audience: x, jwks_url: 'https://a/'}\n  \
                    - {issuer: b, audience: x, jwks_url: 'https://b/', kind: service, caller_prefix: 'b/'}\n";
        assert_eq!(parse(text).identity.jwt[1].kind, JwtKind::Service);
    }

    #[test]
    fn secrets_of_the_file_are_in_no_debug_output() {
        let text = "control_plane: {token: canary-1}\nplugins:\n\
                    - {name: a, url: 'http://h/', headers: {authorization: canary-2}}\n\
                    - {name: b, command: b, args: [canary-3], env: {KEY: canary-4}}\nidentity: {anonymous: true}\n\
                    observability: {otlp: {headers: {authorization: canary-5}}, audit: {control_plane: {url: 'http://h/', token: canary-6}}}";
        let settings = parse(text);
        assert!(!format!("{settings:?}{}", serde_json::to_string(&settings).unwrap()).contains("canary"));
    }
}
