//! Rules of the settings of who comes in: issuers of both programs, people of the control plane, TLS.

use std::collections::HashSet;
use std::time::Duration;

use super::check::{Check, DAY, MILLISECOND, SECOND};
use super::settings::{ControlPlane, OrgScope};
use super::{Endpoint, Jwt, Period, Tls};

/// The longest that a session may last, after which its revocation need not be remembered.
const WEEK: Period = Period::new(Duration::from_secs(7 * 86_400));
const LEEWAYS: std::ops::RangeInclusive<Period> = Period::new(Duration::ZERO)..=Period::new(Duration::from_secs(300));

impl Check<'_, '_> {
    /// Issuers whose JSON Web Tokens are taken, at `identity.jwt`.
    pub(super) fn issuers(&mut self, issuers: &[Jwt]) {
        let mut seen = HashSet::new();
        for (index, jwt) in issuers.iter().enumerate() {
            // One issuer alone may stand without a list.
            let indexed = format!("identity.jwt.{index}");
            let path = if self.is_list("identity.jwt") { indexed.as_str() } else { "identity.jwt" };
            self.jwt(path, jwt);
            if !seen.insert(&jwt.issuer) {
                self.fault(&format!("{path}.issuer"), "this issuer stands twice; remove one");
            }
        }
    }

    fn jwt(&mut self, path: &str, jwt: &Jwt) {
        for (key, text) in [("issuer", &jwt.issuer), ("audience", &jwt.audience), ("caller_claim", &jwt.caller_claim)] {
            if text.trim().is_empty() {
                self.fault(&format!("{path}.{key}"), "empty");
            }
        }
        if !jwt.jwks_url.is_confidential() {
            let message = "whoever can change these keys on their way can be anyone; use https:// (http:// is taken \
                           on loopback only)";
            self.fault(&format!("{path}.jwks_url"), message);
        }
        if jwt.algorithms.is_empty() {
            self.fault(&format!("{path}.algorithms"), "no algorithm; remove the key for the usual ones");
        }
        self.range(&format!("{path}.leeway"), jwt.leeway, LEEWAYS);
        self.range(&format!("{path}.jwks_lifetime"), jwt.jwks_lifetime, SECOND..=DAY);
        self.range(&format!("{path}.jwks_min_interval"), jwt.jwks_min_interval, MILLISECOND..=DAY);
    }

    /// The people of a control plane, and their sessions.
    pub(super) fn people(&mut self, settings: &ControlPlane) {
        let people = &settings.identity;
        self.issuers(&people.jwt);
        self.public_url(settings);
        if people.is_configured() && people.grants.is_empty() && !self.faults.has("identity") {
            let message = "nobody who comes in could do anything; say which claim opens which org in which roles";
            self.fault("identity.grants", message);
        }
        for (index, grant) in people.grants.iter().enumerate() {
            let at = |key: &str| format!("identity.grants.{index}.{key}");
            for (key, text) in [("claim", &grant.claim), ("value", &grant.value)] {
                if text.trim().is_empty() {
                    self.fault(&at(key), "empty");
                }
            }
            if grant.roles.is_empty() {
                self.fault(&at("roles"), "no role; add some of ingest, read, payload, operator");
            }
            self.org_of(&at("org"), &grant.org, settings);
            let known = |issuer: &String| {
                people.jwt.iter().any(|jwt| jwt.issuer == *issuer)
                    || people.oidc.as_ref().is_some_and(|oidc| oidc.issuer == *issuer)
            };
            if grant.issuer.as_ref().is_some_and(|issuer| !known(issuer)) {
                self.fault(&at("issuer"), "no such issuer stands in `jwt` or `oidc`");
            }
        }
        let session = &settings.session;
        self.range("session.idle", session.idle, SECOND..=DAY);
        self.range("session.absolute", session.absolute, SECOND..=WEEK);
        if session.absolute < session.idle {
            self.fault("session.absolute", "shorter than session.idle; a session ends at whichever comes first");
        }
        if session.previous_key_file.is_some() && session.key_file.is_none() {
            self.fault("session.previous_key_file", "of use with session.key_file alone");
        }
        self.oidc(settings);
    }

    /// The org of a token or a grant.
    pub(super) fn org_of(&mut self, path: &str, scope: &OrgScope, settings: &ControlPlane) {
        if let OrgScope::One(name) = scope
            && !self.faults.has("orgs")
            && !settings.orgs.iter().any(|org| org.name == *name)
        {
            self.fault(path, format!("no org named {name}; add it to `orgs`, or write \"*\" for all"));
        }
    }

    fn oidc(&mut self, settings: &ControlPlane) {
        let Some(oidc) = &settings.identity.oidc else { return };
        let at = |key: &str| format!("identity.oidc.{key}");
        match url::Url::parse(&oidc.issuer).map(Endpoint::from) {
            Ok(url) if url.is_confidential() && url.query().is_none() && url.fragment().is_none() => {}
            _ => {
                let message =
                    "an issuer is an https:// URL without query and fragment (http:// is taken on loopback only)";
                self.fault(&at("issuer"), message);
            }
        }
        for (key, text) in [("client_id", &oidc.client_id), ("caller_claim", &oidc.caller_claim)] {
            if text.trim().is_empty() {
                self.fault(&at(key), "empty");
            }
        }
        if !oidc.scopes.iter().any(|scope| scope == "openid") {
            self.fault(&at("scopes"), "OpenID Connect needs the scope `openid`; add it");
        }
        if oidc.scopes.iter().any(|scope| scope.is_empty() || !scope.bytes().all(|b| b.is_ascii_graphic())) {
            self.fault(&at("scopes"), "a scope is visible ASCII without blanks");
        }
        if oidc.algorithms.is_empty() {
            self.fault(&at("algorithms"), "no algorithm; remove the key for the usual ones");
        }
        self.range(&at("leeway"), oidc.leeway, LEEWAYS);
        if settings.identity.jwt.iter().any(|jwt| jwt.audience == oidc.client_id) {
            let message = "an audience of identity.jwt is the same: an ID token, which says who logged in here, would open \
                           the API; give the API an audience of its own";
            self.fault(&at("client_id"), message);
        }
        if settings.public_url.is_none() {
            let message =
                "people come back from the provider to `public_url`; say there how browsers reach this control plane";
            self.fault("identity.oidc", message);
        }
    }

    fn public_url(&mut self, settings: &ControlPlane) {
        let Some(url) = &settings.public_url else { return };
        self.url("public_url", url, "this control plane, as browsers reach it");
        if url.path() != "/" || url.query().is_some() || url.fragment().is_some() || !url.username().is_empty() {
            self.fault("public_url", "a scheme and a host, and a port where it is not the scheme's own; nothing else");
        }
        if url.scheme() == "http" && settings.tls.is_some() {
            self.fault("public_url", "http://, and `tls` is configured; write https://");
        }
        if settings.identity.oidc.is_some() && !url.is_confidential() {
            let message = "no session is given over http:// but on loopback; write https://, and configure `tls` or a proxy \
                           that speaks it";
            self.fault("public_url", message);
        }
    }

    /// TLS of either program.
    pub(super) fn tls(&mut self, tls: Option<&Tls>) {
        let Some(tls) = tls else { return };
        for (key, path) in [
            ("cert_file", Some(&tls.cert_file)),
            ("key_file", Some(&tls.key_file)),
            ("client_ca_file", tls.client_ca_file.as_ref()),
        ] {
            if path.is_some_and(|path| path.as_os_str().is_empty()) {
                self.fault(&format!("tls.{key}"), "empty; name a PEM file");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::ControlPlane;

    const OIDC: &str = "oidc: {issuer: 'https://id.example', client_id: mcpg, client_secret: s}";
    const GRANTS: &str = "grants: [{claim: groups, value: a, org: default, roles: [read]}]";
    const URL: &str = "public_url: https://mcpg.example\n";

    #[track_caller]
    fn only_fault(text: &str, contains: &str) {
        let faults = ControlPlane::parse("f", text, &|_| None).unwrap_err();
        let found: Vec<_> = faults.iter().map(ToString::to_string).collect();
        assert!(found.len() == 1 && found[0].contains(contains), "{found:?} do not contain {contains:?}");
    }

    fn sound(text: &str) -> ControlPlane {
        ControlPlane::parse("f", text, &|_| None).unwrap()
    }

    #[test]
    fn people_come_in_by_claims_that_open_an_org() {
        let settings = sound(&format!("{URL}identity: {{{OIDC}, {GRANTS}}}"));
        let oidc = settings.identity.oidc.unwrap();
        assert_eq!(
            (oidc.caller_claim.as_str(), oidc.scopes.as_slice()),
            ("email", &["openid".into(), "email".into()][..])
        );
        only_fault(&format!("{URL}identity: {{{OIDC}}}"), "identity.grants: nobody who comes in could do anything");
        let grant = |grant: &str| format!("{URL}identity: {{{OIDC}, grants: [{{{grant}}}]}}");
        only_fault(&grant("claim: g, value: a, org: nope, roles: [read]"), "identity.grants[0].org: no org named nope");
        only_fault(&grant("claim: g, value: a, org: default, roles: []"), "identity.grants[0].roles: no role");
        only_fault(&grant("claim: g, value: '  ', org: default, roles: [read]"), "identity.grants[0].value: empty");
        only_fault(
            &grant("claim: g, value: a, org: default, roles: [read], issuer: x"),
            "identity.grants[0].issuer: no such",
        );
    }

    #[test]
    fn an_id_token_must_not_open_the_api() {
        let jwt = "jwt: {issuer: 'https://id.example', audience: mcpg, jwks_url: 'https://id.example/keys'}";
        only_fault(&format!("{URL}identity: {{{OIDC}, {GRANTS}, {jwt}}}"), "identity.oidc.client_id: an audience of");
        sound(&format!("{URL}identity: {{{OIDC}, {GRANTS}, {}}}", jwt.replace("mcpg", "api")));
    }

    #[test]
    fn a_provider_leads_people_back_over_a_safe_way() {
        only_fault(&format!("identity: {{{OIDC}, {GRANTS}}}"), "identity.oidc: people come back");
        let with = |url: &str| format!("public_url: '{url}'\nidentity: {{{OIDC}, {GRANTS}}}");
        sound(&with("http://127.0.0.1:7843"));
        only_fault(&with("http://mcpg.example"), "public_url: no session is given over http://");
        only_fault(&with("https://mcpg.example/ui"), "public_url: a scheme and a host");
        let insecure = format!("{URL}identity: {{{}, {GRANTS}}}", OIDC.replace("https://id", "http://id"));
        only_fault(&insecure, "identity.oidc.issuer: an issuer is an https:// URL");
        only_fault(
            &format!("{URL}identity: {{{}, {GRANTS}}}", OIDC.replace("mcpg", "''")),
            "identity.oidc.client_id: empty",
        );
        let scopes = OIDC.replace("client_secret: s", "scopes: [email]");
        only_fault(&format!("{URL}identity: {{{scopes}, {GRANTS}}}"), "identity.oidc.scopes: OpenID Connect needs");
    }

    #[test]
    fn a_session_ends() {
        only_fault("session: {absolute: 8d}", "session.absolute: 8d is out of range; from 1s to 7d");
        only_fault("session: {idle: 1h, absolute: 30m}", "session.absolute: shorter than session.idle");
        only_fault("session: {previous_key_file: a}", "session.previous_key_file: of use with");
    }

    #[test]
    fn tls_names_its_files() {
        only_fault("tls: {cert_file: a}", "the key `key_file` is missing");
        only_fault("tls: {cert_file: a, key_file: '', client_ca_file: ca}", "tls.key_file");
        only_fault(
            "tls: {cert_file: a, key_file: b}\npublic_url: 'http://mcpg.example'",
            "public_url: http://, and `tls`",
        );
    }
}
