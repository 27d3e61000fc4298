//! The real provider, and the way through it: `tests/fixtures/oidc/provider.mjs`.

use std::path::Path;
use std::time::Duration;

use reqwest::Url;

use super::browser::Browser;
use super::{ORGS, tokens_without};
use crate::harness::{Answer, Config, Program, Server, node};

const CLIENT: &str = "mcpg";
pub(super) const SECRET: &str = "s3cret-of-the-tests";

/// A provider that runs.
pub(super) struct Provider {
    program: Program,
    issuer: String,
}

impl Provider {
    /// One that sends people back to this control plane.
    pub(super) async fn start(base: &str) -> Self {
        let settings = serde_json::json!({ "client_id": CLIENT, "client_secret": SECRET,
            "redirect_uris": [format!("{base}/v1/session/callback")] });
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/oidc/provider.mjs");
        let mut program = Program::new("the OpenID Connect provider");
        program.spawn(node(&script).arg(settings.to_string()));
        let issuer = |logs: &str| logs.lines().find(|line| line.starts_with("http://localhost:")).map(str::to_owned);
        crate::harness::eventually("the provider", Duration::from_secs(60), async || issuer(&program.logs()).map(drop))
            .await;
        let issuer = issuer(&program.logs()).unwrap();
        Self { program, issuer }
    }

    pub(super) fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Ends it.
    pub(super) fn kill(&mut self) {
        self.program.kill();
    }

    /// The settings of a control plane that takes its people.
    pub(super) fn settings(&self, base: &str) -> String {
        let issuer = &self.issuer;
        format!(
            "public_url: \"{base}\"\nidentity:\n  jwt: {{ issuer: \"{issuer}\", audience: mcpg-api, jwks_url: \"{issuer}/jwks\" }}\n\
             \x20 oidc: {{ issuer: \"{issuer}\", client_id: {CLIENT}, client_secret: \"{SECRET}\", scopes: [openid, email, groups] }}\n\
             \x20 grants:\n\
             \x20 - {{ claim: groups, value: acme-security, org: acme, roles: [read, payload] }}\n\
             \x20 - {{ claim: groups, value: umbrella-readers, org: umbrella, roles: [read] }}\n\
             \x20 - {{ claim: groups, value: fleet-operators, org: \"*\", roles: [read, operator] }}\n\
             \x20 - {{ claim: email, value: alice@acme.example, org: umbrella, roles: [read] }}\n"
        )
    }
}

/// A control plane whose people come by a provider, and that; `more` are further settings.
pub(super) async fn provided(more: &str) -> (Server, Provider) {
    let config = Config::new();
    let base = config.url();
    let provider = Provider::start(&base).await;
    let config = config.with(ORGS).with(&tokens_without(&[])).with(&provider.settings(&base)).with(more);
    (config.token(super::OPERATOR).start().await, provider)
}

impl Browser {
    /// Goes through the provider's pages from one of them on, as a person of this name; to the page where that ends.
    pub(super) async fn through(&self, at: (Url, Answer), name: &str) -> (Url, Answer) {
        let (mut url, mut answer) = at;
        for _ in 0..3 {
            let page = answer.text();
            if page.contains(r#"name="prompt" value="login""#) {
                (url, answer) = self.submit(&url, &format!("prompt=login&login={name}&password=any")).await;
            } else if page.contains(r#"name="prompt" value="consent""#) {
                (url, answer) = self.submit(&url, "prompt=consent").await;
            } else {
                break;
            }
        }
        (url, answer)
    }

    /// Logs in by the provider as a person of this name, and goes on to a path; to the page where that ends.
    pub(super) async fn log_in(&self, base: &str, name: &str, return_to: &str) -> (Url, Answer) {
        let mut url = Url::parse(&format!("{base}/v1/session/login")).unwrap();
        url.query_pairs_mut().append_pair("return_to", return_to);
        let at = self.follow(url.as_str(), Some(base)).await;
        self.through(at, name).await
    }
}
