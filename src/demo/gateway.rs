//! The demo's gateway: its configuration and its policy, as files in the data folder, to be looked at and played with.

use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde_json::Value;
use url::Url;

use super::agents::Credentials;
use crate::config::TokenHash;

/// What agents may do: the policy that a new demo starts with.
const POLICY: &str = include_str!("policy.cedar");

/// Where the demo's gateway is, and what it stands between.
#[derive(Clone, Copy)]
pub struct GatewaySetup<'a> {
    /// The folder of the demo's data.
    pub data: &'a Path,
    /// Where it serves MCP.
    pub listen: SocketAddr,
    /// Where it serves its own metrics.
    pub metrics: SocketAddr,
    /// The control plane's URL.
    pub control_plane: &'a str,
    /// Where traces go; none: nowhere.
    pub collector: Option<&'a Url>,
    /// Each plugin and its URL.
    pub plugins: &'a [(&'static str, String)],
    /// The callers and their tokens.
    pub credentials: &'a [Credentials],
}

impl GatewaySetup<'_> {
    /// The configuration's file, which is written anew at each start.
    pub fn file(&self) -> PathBuf {
        self.data.join("demo").join("gateway.yaml")
    }

    /// The policy's file, which is left as it is if there is one.
    pub fn policy_file(&self) -> PathBuf {
        self.data.join("demo").join("policy.cedar")
    }

    /// Writes both files; gives the configuration's text.
    ///
    /// # Errors
    /// When the folder cannot be written to.
    pub fn write(&self) -> io::Result<String> {
        std::fs::create_dir_all(self.data.join("demo"))?;
        if !self.policy_file().exists() {
            std::fs::write(self.policy_file(), POLICY)?;
        }
        let text = self.yaml();
        std::fs::write(self.file(), &text)?;
        Ok(text)
    }

    fn yaml(&self) -> String {
        // What cannot fail: writing into a text.
        let mut plugins = String::new();
        for (name, url) in self.plugins {
            let _ = writeln!(plugins, "  - {{ name: {name}, url: {} }}", quoted(url));
        }
        let mut tokens = String::new();
        for known in self.credentials {
            let (caller, hash) = (quoted(known.caller), TokenHash::of(&known.token));
            let _ = writeln!(tokens, "    - {{ caller: {caller}, hash: \"{hash}\" }}");
        }
        let (listen, metrics, control_plane) = (self.listen, self.metrics, quoted(self.control_plane));
        let spool = quoted(&self.data.join("spool").to_string_lossy());
        let policy = quoted(&self.policy_file().to_string_lossy());
        let otlp = self
            .collector
            .map_or_else(String::new, |url| format!("  otlp: {{ endpoint: {} }}\n", quoted(url.as_str())));
        format!(
            "# The gateway of `mcpg demo`, written by it at each start. deploy/gateway.yaml explains every key.\n\
             listen: {listen}\n\
             org: default\n\
             workspace: prod\n\
             instance: gw-1\n\
             control_plane:\n  url: {control_plane}\n  spool: {{ path: {spool} }}\n\
             plugins:\n{plugins}\
             identity:\n  anonymous: true\n  tokens:\n{tokens}\
             policy: {{ files: [{policy}] }}\n\
             observability:\n  metrics: {{ listen: {metrics} }}\n{otlp}\
             telemetry: {{ log: {{ level: warn }} }}\n"
        )
    }
}

/// A text as YAML takes it, whatever is in it.
fn quoted(text: &str) -> String {
    Value::from(text.replace("${", "$${")).to_string()
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::super::tools::Tool;
    use super::{Credentials, GatewaySetup};
    use crate::config::{Gateway, PolicySource, TokenHash};
    use crate::gateway::identity::Caller;
    use crate::gateway::policy::{Abilities, Action, Policy, Question};
    use crate::model::{Decision, SystemClock};

    fn setup<'a>(
        data: &'a Path,
        plugins: &'a [(&'static str, String)],
        credentials: &'a [Credentials],
    ) -> GatewaySetup<'a> {
        GatewaySetup {
            data,
            listen: "127.0.0.1:8080".parse().unwrap(),
            metrics: "127.0.0.1:9090".parse().unwrap(),
            control_plane: "http://127.0.0.1:7843",
            collector: None,
            plugins,
            credentials,
        }
    }

    #[test]
    fn the_configuration_is_sound_wherever_the_data_lies() {
        let plugins = [("github", "http://127.0.0.1:4000/github/mcp".to_owned())];
        let credentials = [Credentials { caller: "service:ci", token: "t-1".to_owned() }];
        for data in ["./mcpg-data", "/tmp/with blank \"quote\" ${NAME} #x"] {
            let setup = setup(Path::new(data), &plugins, &credentials);
            let settings = Gateway::parse("gateway.yaml", &setup.yaml(), &|_| None).unwrap();
            assert_eq!(settings.control_plane.spool.path, Path::new(data).join("spool"));
            assert_eq!(settings.identity.tokens[0].hash, TokenHash::of("t-1"));
            assert!(settings.observability.otlp.endpoint.is_none());
            assert!(!setup.yaml().contains("t-1"), "the token itself stands nowhere");
        }
    }

    /// What the policy says of a call.
    fn decided(policy: &Policy, caller: &str, plugin: &str, tool: &str) -> (Decision, Vec<String>) {
        let arguments = Tool::find(plugin, tool).unwrap().arguments(&mut SmallRng::seed_from_u64(1));
        let caller = Caller::new(caller.parse().unwrap(), Vec::new());
        let action = Action::CallTool;
        let verdict =
            policy.decide(&Question { arguments: Some(&arguments), ..Question::new(&caller, action, plugin, tool) });
        (verdict.decision, verdict.obligations.names())
    }

    #[test]
    fn the_policy_permits_denies_and_obliges() {
        let folder = tempfile::TempDir::new().unwrap();
        let setup = setup(folder.path(), &[], &[]);
        setup.write().unwrap();
        let files = PolicySource::Files(vec![setup.policy_file().display().to_string()]);
        let policy = Policy::start(&files, "prod", Abilities::default(), Arc::new(SystemClock)).unwrap();
        let (permit, deny, obliged) = (Decision::Permit, Decision::Deny, Decision::PermitWithObligations);
        for (caller, plugin, tool, decision, obligation) in [
            ("anonymous", "github", "list_repos", permit, None),
            ("user:alice@acme", "github", "delete_repo", deny, None),
            ("user:alice@acme", "github", "create_issue", permit, None),
            ("service:ci", "files", "write_file", permit, None),
            ("anonymous", "files", "write_file", deny, None),
            ("user:bob@acme", "jira", "get_issue", obliged, Some("redact:result:/reporter/email")),
            ("service:ci", "files", "read_file", obliged, Some("max_result_bytes:65536")),
            ("user:bob@acme", "jira", "export_report", obliged, Some("timeout_ms:2000")),
            ("service:code-review-bot", "github", "merge_pull_request", permit, None),
            ("user:bob@acme", "github", "merge_pull_request", deny, None),
        ] {
            let expected = (decision, obligation.map(str::to_owned).into_iter().collect());
            assert_eq!(decided(&policy, caller, plugin, tool), expected, "{caller} {plugin}/{tool}");
        }
    }

    #[test]
    fn a_policy_that_was_edited_is_left_as_it_is() {
        let folder = tempfile::TempDir::new().unwrap();
        let setup = setup(folder.path(), &[], &[]);
        setup.write().unwrap();
        assert_eq!(std::fs::read_to_string(setup.policy_file()).unwrap(), super::POLICY);
        std::fs::write(setup.policy_file(), "permit (principal, action, resource);").unwrap();
        setup.write().unwrap();
        assert_eq!(std::fs::read_to_string(setup.policy_file()).unwrap(), "permit (principal, action, resource);");
    }
}
