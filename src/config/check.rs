//! Rules of the control plane's settings that no single value's type can say, and how such rules are checked.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use super::fault::{Collector, Position};
use super::settings::ControlPlane;
use super::tree::{Node, Value};
use super::{ByteSize, Endpoint, Period, Secret, whole_days};

const MICROSECOND: Period = Period::new(Duration::from_micros(1));
pub(super) const MILLISECOND: Period = Period::new(Duration::from_millis(1));
pub(super) const SECOND: Period = Period::new(Duration::from_secs(1));
pub(super) const HOUR: Period = Period::new(Duration::from_secs(3_600));
pub(super) const DAY: Period = Period::new(Duration::from_secs(86_400));
const CENTURY: Period = Period::new(Duration::from_secs(36_525 * 86_400));
pub(super) const KIB: ByteSize = ByteSize::new(1 << 10);
pub(super) const MIB: ByteSize = ByteSize::mib(1);
pub(super) const MOST_BYTES: ByteSize = ByteSize::mib(1 << 30);

/// Adds a fault for each rule that `settings`, read from `root`, break.
pub(crate) fn control_plane(settings: &ControlPlane, root: &Node, faults: &mut Collector<'_>) {
    let mut check = Check { root, faults };
    check.name(&settings.name);
    check.orgs(settings);
    check.tokens(settings);
    check.people(settings);
    check.tls(settings.tls.as_ref());
    if let Some(reason) = settings.exposure() {
        check.fault("listen", reason);
    }
    if settings.audit.key_file.as_os_str().is_empty() {
        check.fault("audit.key_file", "empty; name the file that holds the ledger's key");
    }
    check.storage("storage", &settings.storage);
    if settings.log.shards != 1 {
        check.fault("log.shards", "this version keeps the log in one part; write 1");
    }
    check.range("log.park_after", settings.log.park_after, SECOND..=DAY);
    check.range("log.max_rest", settings.log.max_rest, DAY..=CENTURY);
    check.audit(settings);
    check.payloads(settings);
    check.ranges(settings);
    let traces = &settings.telemetry.otlp;
    check.range("telemetry.otlp.sample_rate", traces.sample_rate, 0.0..=1.0);
    check.collector("telemetry.otlp", traces.endpoint.as_ref(), &traces.headers, traces.ca_file.as_deref());
}

/// Checks what was read from `root`.
pub(super) struct Check<'a, 'f> {
    pub(super) root: &'a Node,
    pub(super) faults: &'a mut Collector<'f>,
}

impl Check<'_, '_> {
    /// A fault of the setting at `path`, its steps parted by dots, list items by their place: `tokens.1.org`. One that
    /// is not in the file is reported at the nearest setting above it that is. One that is known to be faulty already
    /// is passed over: what was read in its place is not what stands in the file.
    pub(super) fn fault(&mut self, path: &str, message: impl Into<String>) {
        let (mut node, mut at, mut steps) = (self.root, Position::START, Vec::new());
        for part in path.split('.') {
            let step = match &node.value {
                Value::Map(entries) => entries.iter().position(|entry| entry.key == part),
                Value::List(_) => part.parse().ok(),
                Value::Scalar { .. } => None,
            };
            let Some((step, child)) = step.and_then(|step| Some((step, node.child(step)?))) else { break };
            (node, at) = (child, child.at);
            steps.push(step);
        }
        let found = self.root.path(&steps);
        let path = if path.split('.').count() == steps.len() { found } else { path.to_owned() };
        if !self.faults.has(&path) {
            self.faults.add(at, path, message);
        }
    }

    /// Whether a list stands at the setting `path`, whose steps are keys alone.
    pub(super) fn is_list(&self, path: &str) -> bool {
        self.node(path).is_some_and(|node| matches!(node.value, Value::List(_)))
    }

    /// Whether the setting `path`, whose steps are keys alone, stands in the file.
    fn is_set(&self, path: &str) -> bool {
        self.node(path).is_some()
    }

    fn node(&self, path: &str) -> Option<&Node> {
        let mut node = self.root;
        for part in path.split('.') {
            let Value::Map(entries) = &node.value else { return None };
            node = &entries.iter().find(|entry| entry.key == part)?.node;
        }
        Some(node)
    }

    fn name(&mut self, name: &str) {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'.' || b == b'-';
        if name.is_empty() || name.len() > 253 || !name.bytes().all(allowed) {
            self.fault("name", "a host name: 1 to 253 letters, digits, '.' and '-'");
        }
    }

    fn orgs(&mut self, settings: &ControlPlane) {
        if settings.orgs.is_empty() {
            self.fault("orgs", "no org; add one, or remove the key for the org `default`");
        }
        let mut seen = HashSet::new();
        for (index, org) in settings.orgs.iter().enumerate() {
            if !seen.insert(&org.name) {
                self.fault(&format!("orgs.{index}.name"), format!("the org {} stands twice; remove one", org.name));
            }
        }
    }

    fn tokens(&mut self, settings: &ControlPlane) {
        let (mut names, mut hashes) = (HashSet::new(), HashSet::new());
        for (index, token) in settings.tokens.iter().enumerate() {
            if token.name.trim().is_empty() {
                self.fault(&format!("tokens.{index}.name"), "empty; name the token so that logs can");
            } else if !names.insert(&token.name) {
                self.fault(
                    &format!("tokens.{index}.name"),
                    format!("two tokens are named `{}`; rename one", token.name),
                );
            }
            if !hashes.insert(token.hash) {
                self.fault(
                    &format!("tokens.{index}.hash"),
                    "another token has this hash; each needs its own (`mcpg token new`)",
                );
            }
            if token.previous_hash.is_some_and(|previous| !hashes.insert(previous)) {
                self.fault(
                    &format!("tokens.{index}.previous_hash"),
                    "this hash stands elsewhere too; it is of the token before this one, and of no other",
                );
            }
            if token.roles.is_empty() {
                self.fault(&format!("tokens.{index}.roles"), "no role; add some of ingest, read, payload, operator");
            }
            self.org_of(&format!("tokens.{index}.org"), &token.org, settings);
        }
    }

    pub(super) fn range<T: PartialOrd + Display>(&mut self, path: &str, value: T, range: RangeInclusive<T>) {
        if !range.contains(&value) {
            self.fault(path, format!("{value} is out of range; from {} to {}", range.start(), range.end()));
        }
    }

    fn range_if_set<T: PartialOrd + Display>(&mut self, path: &str, value: Option<T>, range: RangeInclusive<T>) {
        if let Some(value) = value {
            self.range(path, value, range);
        }
    }

    fn ranges(&mut self, settings: &ControlPlane) {
        let (flush, limits, sql) = (&settings.flush, &settings.limits, &settings.limits.sql);
        self.range_if_set("commit.window", settings.commit.window, MICROSECOND..=Period::new(Duration::from_secs(10)));
        self.range_if_set("flush.interval", flush.interval, Period::new(Duration::from_millis(10))..=HOUR);
        self.range("flush.max_rows", flush.max_rows, 1..=100_000_000);
        self.range_if_set("flush.max_bytes", flush.max_bytes, MIB..=MOST_BYTES);
        self.range("maintenance.interval", settings.maintenance.interval, SECOND..=HOUR);
        self.range(
            "maintenance.removal_grace",
            settings.maintenance.removal_grace,
            SECOND..=Period::new(Duration::from_secs(365 * 24 * 3_600)),
        );
        self.range("maintenance.small_files", settings.maintenance.small_files, 2..=1_000);
        self.range("limits.body_bytes", limits.body_bytes, KIB..=MOST_BYTES);
        self.range("limits.decoded_bytes", limits.decoded_bytes, KIB..=MOST_BYTES);
        self.range("limits.batch_rows", limits.batch_rows, 1..=100_000_000);
        self.range("limits.buffer_bytes", limits.buffer_bytes, MIB..=MOST_BYTES);
        self.range("limits.request_timeout", limits.request_timeout, SECOND..=HOUR);
        self.range("limits.idempotency_keys", limits.idempotency_keys, 1..=100_000_000);
        self.range("limits.series", limits.series, 1..=1_000_000);
        self.range("limits.sql.memory_bytes", sql.memory_bytes, MIB..=MOST_BYTES);
        self.range("limits.sql.timeout", sql.timeout, Period::new(Duration::from_millis(1))..=HOUR);
        self.range("limits.sql.answer_timeout", sql.answer_timeout, SECOND..=DAY);
        self.range("limits.sql.slow_query", sql.slow_query, Period::new(Duration::ZERO)..=HOUR);
        self.range("limits.sql.rows", sql.rows, 1..=1_000_000_000);
        self.range("limits.sql.concurrency", sql.concurrency, 1..=1_024);
        self.range("limits.sql.query_bytes", sql.query_bytes, KIB..=ByteSize::mib(16));
        self.range("limits.sql.spill_bytes", sql.spill_bytes, ByteSize::new(0)..=MOST_BYTES);
        self.range("limits.sql.resident_bytes", sql.resident_bytes, MIB..=MOST_BYTES);
        if sql.memory_bytes > sql.resident_bytes {
            self.fault(
                "limits.sql.memory_bytes",
                "more than limits.sql.resident_bytes, at which queries are stopped; lower it",
            );
        }
    }

    fn audit(&mut self, settings: &ControlPlane) {
        let period = Period::new(Duration::from_millis(100))..=Period::new(Duration::from_secs(600));
        self.range_if_set("audit.period", settings.audit.period, period);
        self.range("audit.prune_interval", settings.audit.prune_interval, SECOND..=DAY);
        for (index, org) in settings.orgs.iter().enumerate() {
            let kept = &org.retention;
            self.range_if_set(&format!("orgs.{index}.retention.ledger"), kept.ledger, SECOND..=CENTURY);
            // Partitions go whole, of a day at least.
            self.range_if_set(&format!("orgs.{index}.retention.samples"), kept.samples, DAY..=CENTURY);
            self.range(&format!("orgs.{index}.retention.hourly"), kept.hourly, DAY..=CENTURY);
            self.range(&format!("orgs.{index}.retention.daily"), kept.daily, DAY..=CENTURY);
        }
        if let Some(witness) = &settings.audit.witness {
            self.url("audit.witness.url", &witness.url, "a witness");
            if witness.vkey.splitn(3, '+').count() != 3 {
                self.fault("audit.witness.vkey", "no verifier key; it is written <name>+<8 hex digits>+<base64>");
            }
        }
        if let Some(mirror) = &settings.audit.mirror {
            if !self.is_set("audit.mirror.url") {
                self.fault("audit.mirror", "the key `url` is missing; add it");
            } else if mirror.url == settings.storage.url && mirror.endpoint == settings.storage.endpoint {
                self.fault("audit.mirror.url", "the same as storage.url; a mirror is of use in another store alone");
            }
            self.storage("audit.mirror", mirror);
        }
    }

    fn payloads(&mut self, settings: &ControlPlane) {
        let advice = "payloads are kept for whole days, 1d to 3650d, since their keys are destroyed by the day";
        for (index, org) in settings.orgs.iter().enumerate() {
            let period = org.retention.payloads;
            if whole_days(period).is_none() {
                self.fault(&format!("orgs.{index}.retention.payloads"), format!("{period}: {advice}"));
            }
            for (plugin, period) in &org.payloads.plugins {
                let path = format!("orgs.{index}.payloads.plugins.{plugin}");
                if whole_days(*period).is_none() {
                    self.fault(&path, format!("{period}: {advice}"));
                }
                if plugin.is_empty() || plugin == "*" || plugin.chars().any(|c| c.is_whitespace() || c.is_control()) {
                    self.fault(&path, "no name of a plugin");
                }
            }
        }
        let keys = &settings.payload_keys;
        if [keys.key.is_some(), keys.vault.is_some(), keys.aws_kms.is_some()].into_iter().filter(|is| *is).count() > 1 {
            self.fault("payload_keys", "two of key, vault, aws_kms are set; keys are wrapped by one KEK");
        }
        if keys.file.as_os_str().is_empty() {
            self.fault("payload_keys.file", "empty; name the file that holds the KEK");
        }
        if let Some(vault) = &keys.vault {
            let path = "payload_keys.vault.url";
            self.url(path, &vault.url, "Vault");
            if vault.url.scheme() == "http" && !vault.url.is_confidential() {
                self.fault(
                    path,
                    "whoever is on the way reads every key; use https:// (http:// is taken on loopback only)",
                );
            }
            if vault.auth.ways() != 1 {
                let advice = "one way to log in: token, token_file, role_id with secret_id, or kubernetes_role";
                self.fault("payload_keys.vault.auth", advice);
            }
        }
        if let Some(endpoint) = keys.aws_kms.as_ref().and_then(|key| key.endpoint.as_ref()) {
            self.url("payload_keys.aws_kms.endpoint", endpoint, "AWS KMS");
        }
        if let Some(storage) = &keys.storage {
            if !self.is_set("payload_keys.storage.url") {
                self.fault("payload_keys.storage", "the key `url` is missing; add it");
            }
            self.storage("payload_keys.storage", storage);
        }
        let hour = HOUR..=Period::new(Duration::from_secs(366 * 86_400));
        self.range_if_set("payload_keys.rotate", keys.rotate, hour);
    }

    /// A collector that is spoken to over OTLP, at the setting `path`.
    pub(super) fn collector(
        &mut self,
        path: &str,
        endpoint: Option<&Endpoint>,
        headers: &BTreeMap<String, Secret>,
        ca_file: Option<&Path>,
    ) {
        if let Some(endpoint) = endpoint {
            self.url(&format!("{path}.endpoint"), endpoint, "a collector");
            if ca_file.is_some() && endpoint.scheme() == "http" {
                let message = "the endpoint is http://, where no certificate is looked at; make it https://";
                self.fault(&format!("{path}.ca_file"), message);
            }
        }
        self.headers(&format!("{path}.headers"), headers);
    }

    /// The URL of a server that is spoken to over HTTP.
    pub(super) fn url(&mut self, path: &str, url: &Endpoint, of: &str) {
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            self.fault(path, format!("neither an http:// nor an https:// URL of {of}"));
        }
    }

    /// Headers that are sent along.
    pub(super) fn headers(&mut self, path: &str, headers: &BTreeMap<String, Secret>) {
        for (name, value) in headers {
            let path = format!("{path}.{name}");
            if name.parse::<http::HeaderName>().is_err() {
                self.fault(&path, "no name of an HTTP header");
            }
            if value.expose().parse::<http::HeaderValue>().is_err() {
                self.fault(&path, "its value cannot stand in an HTTP header");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::ControlPlane;

    fn faults(text: &str) -> Vec<String> {
        let environment = |name: &str| (name == "BAD").then(|| "999h".to_owned());
        let faults = ControlPlane::parse("f", text, &environment).unwrap_err();
        faults.iter().map(ToString::to_string).collect()
    }

    #[track_caller]
    fn only_fault(text: &str, starts: &str) {
        let found = faults(text);
        assert!(found.len() == 1 && found[0].starts_with(starts), "{found:?} do not start with {starts:?}");
    }

    const HASH: &str = "0000000000000000000000000000000000000000000000000000000000000001";

    #[test]
    fn every_fault_of_a_file_is_reported_at_once_with_its_place() {
        let text = r#"lisen: 127.0.0.1:1
orgs:
  - name: acme
    tier: entreprise
  - tier: pro
  - name: "Not Good"
tokens:
  - { name: a, hash: zz, org: nope, roles: [read, reed] }
flush: { interval: 5 }
flush: { max_rows: 1 }
limits: { series: many, sql: { timeout: "${BAD}", row: 1 } }
telemetry: ${UNSET}
"#;
        let expected = [
            "f:1:1: lisen: unknown key; did you mean `listen`?",
            "f:4:11: orgs[0].tier: unknown value `entreprise`; did you mean `enterprise`?",
            "f:5:5: orgs[1]: the key `name` is missing; add it",
            "f:6:11: orgs[2].name: an org name is 1 to 63 of a-z, 0-9, '-' and '_', starting with a letter or a digit",
            "f:8:22: tokens[0].hash: a token's hash is 64 hex digits; make it with `mcpg token hash`, and never write the \
             token itself here",
            "f:8:51: tokens[0].roles[1]: unknown value `reed`; did you mean `read`?",
            "f:9:20: flush.interval: `5` is no duration; write a whole number and a unit, like 250us, 5ms, 10s, 5m, 24h \
             or 7d",
            "f:10:1: flush: the key stands twice, first on line 9; remove one",
            "f:11:19: limits.series: expected a whole number, found string \"many\"",
            "f:11:41: limits.sql.timeout: 999h is out of range; from 1ms to 1h",
            "f:11:51: limits.sql.row: unknown key; did you mean `rows`?",
            "f:12:12: telemetry: the environment variable UNSET is not set; set it, or write `${UNSET:-default}`",
        ];
        assert_eq!(faults(text), expected);
    }

    #[test]
    fn one_fault_does_not_cause_another() {
        only_fault("name: ${UNSET}", "f:1:7: name: the environment variable UNSET is not set");
        only_fault("orgs: [{name: Default}]", "f:1:15: orgs[0].name: an org name is");
        let token = format!("tokens: [{{name: a, hash: {HASH}, org: acme, roles: [read]}}]");
        only_fault(&format!("orgs: [{{name: Acme, tier: pro}}]\n{token}"), "f:1:15: orgs[0].name");
    }

    #[test]
    fn a_syntax_error_has_its_place_too() {
        let found = faults("a: [1\nb: 2\n");
        assert!(found.len() == 1 && found[0].starts_with("f:2:"), "{found:?}");
    }

    #[test]
    fn a_variable_that_must_be_quoted_is_hinted_at() {
        only_fault("limits: { series: ${N} }", "f:1:20: not YAML: ");
        assert!(faults("limits: { series: ${N} }")[0].contains("quotes"));
    }

    #[test]
    fn a_value_that_a_variable_leaves_empty_keeps_its_default() {
        let read = |text| ControlPlane::parse("f", text, &|_| None).unwrap();
        assert_eq!(read("telemetry: { otlp: { endpoint: \"${X:-}\" } }\nname: ${X:-}"), ControlPlane::default());
    }

    #[test]
    fn a_file_that_is_no_mapping_is_one_fault() {
        only_fault("- a\n", "f:1:1: expected a mapping of settings, found a list");
        only_fault("hello", "f:1:1: expected a mapping of settings, found string");
    }

    #[test]
    fn anchors_aliases_tags_and_second_documents_are_refused() {
        only_fault("name: &x y\n", "f:1:");
        only_fault("name: !!str y\n", "f:1:");
        only_fault("name: a\n---\nname: b\n", "f:2:");
        assert!(!faults("orgs: [&x {name: a}, *x]").is_empty());
    }

    #[test]
    fn deep_nesting_is_a_fault_and_not_a_crash() {
        assert!(!faults(&format!("a: {}", "[".repeat(100_000))).is_empty());
    }

    #[test]
    fn a_token_of_no_org_no_role_or_anothers_name_is_a_fault() {
        only_fault(
            &format!("tokens: [{{name: a, hash: {HASH}, org: acme, roles: [read]}}]"),
            "f:1:97: tokens[0].org: no org named acme",
        );
        only_fault(
            &format!("tokens: [{{name: a, hash: {HASH}, org: default, roles: []}}]"),
            "f:1:113: tokens[0].roles: no role",
        );
        let two = format!(
            "tokens:\n- {{name: a, hash: {HASH}, org: default, roles: [read]}}\n\
             - {{name: a, hash: {HASH}, org: '*', roles: [read]}}"
        );
        assert_eq!(faults(&two).len(), 2);
    }

    #[test]
    fn orgs_are_unique_and_at_least_one() {
        only_fault("orgs: []", "f:1:7: orgs: no org");
        only_fault("orgs: [{name: a}, {name: a}]", "f:1:26: orgs[1].name: the org a stands twice");
    }

    #[test]
    fn an_address_is_an_ip_and_a_port() {
        only_fault(
            "listen: localhost:7843",
            "f:1:9: listen: `localhost:7843` is no address; write an IP address and a port",
        );
    }

    #[test]
    fn an_address_that_others_reach_needs_tokens() {
        only_fault("listen: 0.0.0.0:7843", "f:1:9: listen: 0.0.0.0:7843 is reachable from other machines");
    }

    #[test]
    fn a_mirror_is_another_store_with_settings_of_its_own() {
        only_fault("audit: { mirror: {} }", "f:1:18: audit.mirror: the key `url` is missing");
        only_fault(
            "storage: { url: /a }\naudit: { mirror: { url: /a } }",
            "f:2:25: audit.mirror.url: the same as storage.url",
        );
        only_fault("audit: { mirror: { url: /b, region: x } }", "f:1:37: audit.mirror.region: of use with an s3://");
        let other = "storage: { url: \"s3://bucket\" }\n\
                     audit: { mirror: { url: \"s3://bucket\", endpoint: \"https://other.example\" } }";
        ControlPlane::parse("f", other, &|_| None).unwrap();
    }

    #[test]
    fn a_period_that_is_set_has_its_range() {
        only_fault("commit: { window: 11s }", "f:1:19: commit.window: 11s is out of range; from 1us to 10s");
        only_fault("audit: { period: 1ms }", "f:1:18: audit.period: 1ms is out of range; from 100ms to 10m");
    }

    #[test]
    fn a_collector_is_spoken_to_by_http_with_valid_headers() {
        only_fault("telemetry: {otlp: {endpoint: 'ftp://x'}}", "f:1:30: telemetry.otlp.endpoint");
        only_fault(
            "telemetry: {otlp: {sample_rate: 1.5}}",
            "f:1:33: telemetry.otlp.sample_rate: 1.5 is out of range; from 0 to 1",
        );
        only_fault(
            "telemetry: {otlp: {headers: {'a b': x}}}",
            "f:1:37: telemetry.otlp.headers.a b: no name of an HTTP header",
        );
        only_fault(
            "telemetry: {otlp: {endpoint: 'http://x', ca_file: ca.pem}}",
            "f:1:51: telemetry.otlp.ca_file: the endpoint is http://",
        );
    }

    #[test]
    fn a_secret_header_is_in_no_fault_and_no_debug_output() {
        let text = "telemetry: {otlp: {headers: {authorization: \"can\\nary\"}}}";
        assert!(!faults(text).concat().contains("ary"));
        let settings =
            ControlPlane::parse("f", "telemetry: {otlp: {headers: {authorization: canary}}}", &|_| None).unwrap();
        assert!(!format!("{settings:?}{}", serde_json::to_string(&settings).unwrap()).contains("canary"));
    }
}
