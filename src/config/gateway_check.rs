//! Rules of the gateway's settings that no single value's type can say.

use std::collections::HashSet;
use std::time::Duration;

use super::check::{Check, DAY, HOUR, KIB, MIB, MILLISECOND, MOST_BYTES, SECOND};
use super::fault::Collector;
use super::gateway::Gateway;
use super::tree::Node;
use super::{ByteSize, Period, Plugin, PolicySource, Transport};

/// The longest name that stands in a label, in characters.
const MAX_NAME: usize = 128;

/// Adds a fault for each rule that `settings`, read from `root`, break.
pub(super) fn gateway(settings: &Gateway, root: &Node, faults: &mut Collector<'_>) {
    let mut check = Check { root, faults };
    check.names(settings);
    check.tls(settings.tls.as_ref());
    check.plugins(&settings.plugins);
    check.identity(settings);
    check.policy(&settings.policy);
    check.control_plane(settings);
    check.streams(settings);
    check.capture(settings);
    check.gateway_limits(settings);
}

impl Check<'_, '_> {
    fn capture(&mut self, settings: &Gateway) {
        let capture = &settings.payloads;
        let cap = KIB..=ByteSize::mib(16);
        self.range("payloads.max_bytes", capture.max_bytes, cap.clone());
        self.range("payloads.sample", capture.sample, 0.0..=1.0);
        self.range("payloads.spool_bytes", capture.spool_bytes, MIB..=MOST_BYTES);
        for (plugin, own) in &capture.plugins {
            if let Some(bytes) = own.max_bytes {
                self.range(&format!("payloads.plugins.{plugin}.max_bytes"), bytes, cap.clone());
            }
            if let Some(share) = own.sample {
                self.range(&format!("payloads.plugins.{plugin}.sample"), share, 0.0..=1.0);
            }
            if !settings.plugins.iter().any(|known| known.name.as_str() == plugin) && !self.faults.has("plugins") {
                self.fault(&format!("payloads.plugins.{plugin}"), "there is no plugin of this name");
            }
        }
        if let Some(vkey) = &settings.control_plane.vkey
            && vkey.splitn(3, '+').count() != 3
        {
            self.fault(
                "control_plane.vkey",
                "no verifier key; `mcpg audit vkey` prints it: <name>+<8 hex digits>+<base64>",
            );
        }
    }

    fn names(&mut self, settings: &Gateway) {
        for (path, name) in [("workspace", &settings.workspace), ("instance", &settings.instance)] {
            if !is_name(name) {
                self.fault(path, "a name is 1 to 128 characters without control characters");
            }
        }
        for (index, origin) in settings.allowed_origins.iter().enumerate() {
            let parsed = url::Url::parse(origin).map(|url| url.origin());
            if !parsed.is_ok_and(|parsed| parsed.ascii_serialization() == *origin) {
                let message = "an origin is a scheme and a host, and a port where it is not the scheme's own, like \
                               https://app.example.com";
                self.fault(&format!("allowed_origins.{index}"), message);
            }
        }
        let metrics = &settings.observability.metrics;
        if metrics.enabled && metrics.listen == settings.listen && metrics.listen.port() != 0 {
            self.fault("observability.metrics.listen", "the same address as `listen`; metrics need one of their own");
        }
    }

    fn plugins(&mut self, plugins: &[Plugin]) {
        if plugins.is_empty() && !self.faults.has("plugins") {
            self.fault("plugins", "no plugin; add one: { name: github, url: \"http://127.0.0.1:3001/mcp\" }");
        }
        let mut seen = HashSet::new();
        for (index, plugin) in plugins.iter().enumerate() {
            let at = |key: &str| format!("plugins.{index}.{key}");
            if !seen.insert(&plugin.name) {
                self.fault(&at("name"), format!("two plugins are named `{}`; rename one", plugin.name));
            }
            match &plugin.transport {
                Transport::Http { url, headers } => {
                    self.url(&at("url"), url, "an MCP server");
                    self.headers(&at("headers"), headers);
                }
                Transport::Child { command, env, .. } => {
                    if command.trim().is_empty() {
                        self.fault(&at("command"), "empty; name the program to run");
                    }
                    for name in env.keys().filter(|name| name.is_empty() || name.contains(['=', '\0'])) {
                        self.fault(&at(&format!("env.{name}")), "no name of an environment variable");
                    }
                }
            }
            self.range(&at("timeout"), plugin.timeout, MILLISECOND..=DAY);
            self.range(&at("max_result_bytes"), plugin.max_result_bytes, KIB..=MOST_BYTES);
            self.range(&at("max_concurrency"), plugin.max_concurrency, 1..=1_000_000);
            self.range(&at("max_sessions"), plugin.sessions(), 1..=1_000_000);
            self.range(&at("restart.first_wait"), plugin.restart.first_wait, MILLISECOND..=HOUR);
            self.range(&at("restart.longest_wait"), plugin.restart.longest_wait, plugin.restart.first_wait..=DAY);
        }
    }

    fn identity(&mut self, settings: &Gateway) {
        let identity = &settings.identity;
        if !identity.anonymous && identity.tokens.is_empty() && identity.jwt.is_empty() && !self.faults.has("identity")
        {
            let message = "nobody could call; add `tokens` or `jwt`, or say `anonymous: true`";
            self.fault("identity", message);
        }
        let mut hashes = HashSet::new();
        for (index, token) in identity.tokens.iter().enumerate() {
            if !hashes.insert(token.hash) {
                self.fault(
                    &format!("identity.tokens.{index}.hash"),
                    "another token has this hash; each needs its own (`mcpg token new`)",
                );
            }
            for (group, name) in token.groups.iter().enumerate().filter(|(_, name)| !is_name(name)) {
                let path = format!("identity.tokens.{index}.groups.{group}");
                self.fault(&path, format!("`{}` is no group's name: 1 to 128 characters", name.escape_debug()));
            }
        }
        self.issuers(&identity.jwt);
    }

    fn policy(&mut self, policy: &PolicySource) {
        let PolicySource::Files(patterns) = policy else { return };
        if patterns.is_empty() && !self.faults.has("policy") {
            self.fault("policy.files", "no file; name some, or say `policy: deny_all`");
        }
        for (index, pattern) in patterns.iter().enumerate() {
            if let Err(error) = glob::Pattern::new(pattern) {
                self.fault(&format!("policy.files.{index}"), format!("no glob pattern: {}", error.msg));
            }
        }
    }

    fn control_plane(&mut self, settings: &Gateway) {
        let link = &settings.control_plane;
        self.url("control_plane.url", &link.url, "a control plane");
        self.bearer("control_plane.token", link.token.as_ref());
        let files = [("ca_file", &link.ca_file), ("cert_file", &link.cert_file), ("key_file", &link.key_file)];
        for (key, path) in files.iter().filter_map(|(key, path)| Some((key, path.as_ref()?))) {
            let at = format!("control_plane.{key}");
            if path.as_os_str().is_empty() {
                self.fault(&at, "empty; name a PEM file");
            } else if link.url.scheme() == "http" {
                self.fault(&at, "the URL is http://, where no certificate is looked at; make it https://");
            }
        }
        if link.cert_file.is_some() != link.key_file.is_some() {
            let given = if link.cert_file.is_some() { "cert_file" } else { "key_file" };
            self.fault(&format!("control_plane.{given}"), "a certificate and its key go together; name both files");
        }
        if link.spool.path.as_os_str().is_empty() {
            self.fault("control_plane.spool.path", "empty; name a folder");
        }
        self.range("control_plane.spool.max_bytes", link.spool.max_bytes, MIB..=MOST_BYTES);
    }

    fn streams(&mut self, settings: &Gateway) {
        let streams = &settings.observability;
        let traces = &streams.otlp;
        self.range("observability.otlp.sample_rate", traces.sample_rate, 0.0..=1.0);
        self.collector("observability.otlp", traces.endpoint.as_ref(), &traces.headers, traces.ca_file.as_deref());
        if let Some(push) = &streams.metrics.push {
            let path = "observability.metrics.push";
            self.collector(path, Some(&push.endpoint), &push.headers, push.ca_file.as_deref());
            self.range(&format!("{path}.interval"), push.interval, SECOND..=HOUR);
        }
        for (path, destination) in [
            ("observability.metrics.control_plane", &streams.metrics.control_plane),
            ("observability.audit.control_plane", &streams.audit.control_plane),
        ] {
            if let Some(destination) = destination {
                self.url(&format!("{path}.url"), &destination.url, "a control plane");
                self.bearer(&format!("{path}.token"), destination.token.as_ref());
            }
        }
        if streams.audit.file.is_some() && streams.audit.control_plane.is_some() {
            self.fault("observability.audit.file", "events go to one place; keep `file` or `control_plane`");
        }
        if !streams.audit.enabled && streams.audit.on_failure == super::OnFailure::Closed {
            let message = "`closed` refuses calls that are not recorded, and with `enabled: false` none is";
            self.fault("observability.audit.on_failure", message);
        }
    }

    fn gateway_limits(&mut self, settings: &Gateway) {
        let limits = &settings.limits;
        self.range("limits.body_bytes", limits.body_bytes, KIB..=MOST_BYTES);
        self.range("limits.sessions", limits.sessions, 1..=10_000_000);
        self.range("limits.session_idle", limits.session_idle, SECOND..=Period::new(Duration::from_secs(7 * 86_400)));
        self.range("limits.calls", limits.calls, 1..=1_000_000);
        self.range("limits.memory", limits.memory, MIB..=MOST_BYTES);
        if limits.memory.as_u64() < limits.body_bytes.as_u64().saturating_mul(4) {
            self.fault("limits.memory", "less than four of the largest bodies; raise it, or lower `limits.body_bytes`");
        }
        if let Some(most) = limits.sessions_per_caller {
            self.range("limits.sessions_per_caller", most, 1..=10_000_000);
        }
        self.range("limits.answer", limits.answer, SECOND..=DAY);
        self.range("limits.resume", limits.resume, SECOND..=HOUR);
        self.range("limits.waiting_calls", limits.waiting_calls, 1..=100_000);
        self.rates(settings);
        for (index, key) in settings.state_keys.iter().enumerate() {
            if !is_name(&key.id) || key.id.len() > MAX_NAME {
                self.fault(&format!("state_keys.{index}.id"), "an id is 1 to 128 bytes without control characters");
            }
            if settings.state_keys.iter().take(index).any(|known| known.id == key.id) {
                self.fault(&format!("state_keys.{index}.id"), format!("two keys are called `{}`; rename one", key.id));
            }
        }
        self.range("limits.drain", limits.drain, Period::new(Duration::ZERO)..=HOUR);
    }

    fn rates(&mut self, settings: &Gateway) {
        for (index, rate) in settings.limits.rates.iter().enumerate() {
            let at = |key: &str| format!("limits.rates.{index}.{key}");
            if !is_name(&rate.name) {
                self.fault(&at("name"), "a name is 1 to 128 characters without control characters");
            }
            if rate.calls.is_none() && rate.concurrency.is_none() {
                self.fault(&at("calls"), "neither `calls` nor `concurrency`; say what the limit is");
            }
            for (key, count) in [("calls", rate.calls), ("burst", rate.burst), ("concurrency", rate.concurrency)] {
                if let Some(count) = count {
                    self.range(&at(key), count, 1..=1_000_000_000);
                }
            }
            self.range(&at("per"), rate.per, MILLISECOND..=DAY);
            let is_plugin = |name: &String| settings.plugins.iter().any(|plugin| plugin.name.as_str() == name);
            if let Some(plugin) = rate.plugin.as_ref().filter(|name| !is_plugin(name)) {
                self.fault(&at("plugin"), format!("there is no plugin `{}`", plugin.escape_debug()));
            }
        }
    }

    /// A token that the gateway presents.
    fn bearer(&mut self, path: &str, token: Option<&super::Secret>) {
        if token.is_some_and(|token| !token.expose().bytes().all(|b| b.is_ascii_graphic())) {
            self.fault(path, "a token is visible ASCII without blanks");
        }
    }
}

/// Whether a text may stand in a label.
fn is_name(name: &str) -> bool {
    !name.trim().is_empty() && name.chars().count() <= MAX_NAME && !name.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use crate::config::Gateway;

    const ENOUGH: &str = "plugins: [{name: a, url: 'http://h/'}]\nidentity: {anonymous: true}\n";

    fn faults(text: &str) -> Vec<String> {
        let faults = Gateway::parse("f", text, &|_| None).unwrap_err();
        faults.iter().map(ToString::to_string).collect()
    }

    /// What is wrong with `text`, added to a sound file.
    #[track_caller]
    fn only_fault(text: &str, starts: &str) {
        let found = faults(&format!("{ENOUGH}{text}"));
        assert!(found.len() == 1 && found[0].starts_with(starts), "{found:?} do not start with {starts:?}");
    }

    #[test]
    fn a_gateway_needs_plugins_and_a_way_to_know_its_callers() {
        assert_eq!(
            faults(""),
            [
                "f:1:1: plugins: no plugin; add one: { name: github, url: \"http://127.0.0.1:3001/mcp\" }",
                "f:1:1: identity: nobody could call; add `tokens` or `jwt`, or say `anonymous: true`",
            ]
        );
    }

    #[test]
    fn a_plugin_is_reached_in_one_way_only() {
        for (plugin, fault) in [
            ("{name: a}", "f:1:11: plugins[0]: has neither `url` nor `command`; say how it is reached"),
            ("{name: a, url: 'http://h/', command: x}", "f:1:11: plugins[0]: has both `url` and `command`"),
            (
                "{name: a, url: 'http://h/', args: [x]}",
                "f:1:11: plugins[0]: `args`, `env` and `folder` are for a `command`",
            ),
            ("{name: a, command: x, headers: {a: b}}", "f:1:11: plugins[0]: `headers` are for a `url`"),
            (
                "{name: a, url: 'ftp://h/'}",
                "f:1:26: plugins[0].url: neither an http:// nor an https:// URL of an MCP server",
            ),
            ("{name: a__b, command: x}", "f:1:18: plugins[0].name: a plugin's name is 1 to 48 of"),
            ("{name: a, command: x, timeout: 0s}", "f:1:42: plugins[0].timeout: 0s is out of range; from 1ms to 1d"),
            ("{name: a, comand: x}", "f:1:21: plugins[0].comand: unknown key; did you mean `command`?"),
        ] {
            let found = faults(&format!("plugins: [{plugin}]\nidentity: {{anonymous: true}}"));
            assert!(found.len() == 1 && found[0].starts_with(fault), "{found:?} do not start with {fault:?}");
        }
    }

    #[test]
    fn plugins_have_names_of_their_own() {
        let text = "plugins: [{name: a, command: x}, {name: a, command: y}]\nidentity: {anonymous: true}";
        assert_eq!(faults(text), ["f:1:41: plugins[1].name: two plugins are named `a`; rename one"]);
    }

    #[test]
    fn a_policy_is_a_word_or_files() {
        only_fault("policy: allow_al", "f:3:9: policy: unknown value `allow_al`; did you mean `allow_all`?");
        only_fault("policy: {file: [x]}", "f:3:10: policy.file: unknown key; did you mean `files`?");
        only_fault("policy: {files: []}", "f:3:17: policy.files: no file");
        only_fault("policy: {files: ['a***']}", "f:3:18: policy.files[0]: no glob pattern");
    }

    #[test]
    fn the_keys_of_an_issuer_cannot_be_changed_on_their_way() {
        let jwt = |rest: &str| {
            let text = format!(
                "plugins: [{{name: a, url: 'http://h/'}}]\nidentity: {{jwt: {{issuer: i, audience: a, {rest}}}}}"
            );
            Gateway::parse("f", &text, &|_| None).map_err(|faults| faults.to_string())
        };
        assert!(jwt("jwks_url: 'https://id.example/keys'").is_ok());
        assert!(jwt("jwks_url: 'http://127.0.0.1:1/keys'").is_ok());
        assert!(
            jwt("jwks_url: 'http://id.example/keys'")
                .unwrap_err()
                .starts_with("f:2:52: identity.jwt.jwks_url: whoever")
        );
        assert!(jwt("jwks_url: 'https://h', algorithms: [HS256]").unwrap_err().contains("unknown value `HS256`"));
        assert!(jwt("jwks_url: 'https://h', algorithms: [none]").unwrap_err().contains("unknown value `none`"));
    }

    #[test]
    fn a_caller_of_a_token_has_a_kind() {
        let hash = "0".repeat(64);
        let text =
            format!("plugins: [{{name: a, command: x}}]\nidentity:\n  tokens:\n  - {{hash: '{hash}', caller: ci}}\n");
        assert!(faults(&text)[0].starts_with("f:4:88: identity.tokens[0].caller: a caller is `user:<name>`"));
    }

    #[test]
    fn streams_that_contradict_themselves_are_refused() {
        only_fault(
            "observability: {audit: {enabled: false, on_failure: closed}}",
            "f:3:53: observability.audit.on_failure",
        );
        only_fault(
            "observability: {metrics: {listen: '127.0.0.1:8080'}}",
            "f:3:35: observability.metrics.listen: the same",
        );
        only_fault(
            "observability: {otlp: {sample_rate: 2}}",
            "f:3:37: observability.otlp.sample_rate: 2 is out of range",
        );
        only_fault(
            "observability: {metrics: {push: {endpoint: 'http://h', ca_file: ca.pem}}}",
            "f:3:65: observability.metrics.push.ca_file: the endpoint is http://",
        );
        only_fault(
            "control_plane: {url: 'http://h', ca_file: ca.pem}",
            "f:3:43: control_plane.ca_file: the URL is http://",
        );
        only_fault(
            "control_plane: {url: 'https://h', cert_file: c.pem}",
            "f:3:46: control_plane.cert_file: a certificate and its key go together",
        );
        only_fault(
            "observability: {audit: {file: a, control_plane: {url: 'http://h/'}}}",
            "f:3:31: observability.audit.file",
        );
    }

    #[test]
    fn an_origin_is_written_as_browsers_send_it() {
        only_fault("allowed_origins: ['https://app.example/']", "f:3:19: allowed_origins[0]: an origin is");
        assert!(
            Gateway::parse("f", &format!("{ENOUGH}allowed_origins: ['https://app.example:8443']"), &|_| None).is_ok()
        );
    }
}
