//! Who may do what: bearer tokens, the org they open, the roles they hold.
//!
//! * A token is presented as `Authorization: Bearer <token>` (RFC 6750). The configuration holds its BLAKE3 hash; what
//!   is presented is hashed and looked up by that hash. How long the look-up takes says something about hashes, and
//!   nothing about tokens, whose hashes nobody can steer.
//! * No token, or one that is not configured: 401 with a challenge. Both look the same but for the challenge's `error`.
//! * An org that the token does not open, and an org that does not exist: the same 404, so that names of other tenants
//!   cannot be probed (invariant I4). Only then the role is looked at: 403.
//! * With no token configured at all, everyone may do everything; the program then listens on loopback only.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, StatusCode};

use super::Problem;
use super::refusals::Refused;
use crate::config::{ControlPlane, OrgScope, Token, TokenHash};
use crate::model::{OrgName, Role};

/// The tokens and orgs of a control plane.
#[derive(Debug)]
pub struct Access {
    orgs: HashSet<OrgName>,
    /// `None`: no tokens are configured, and everyone may do everything.
    tokens: Option<HashMap<TokenHash, Arc<Token>>>,
}

impl Access {
    /// What the settings grant.
    pub fn new(settings: &ControlPlane) -> Self {
        let tokens = settings.tokens.iter().map(|token| (token.hash, Arc::new(token.clone())));
        Self {
            orgs: settings.orgs.iter().map(|org| org.name.clone()).collect(),
            tokens: (!settings.tokens.is_empty()).then(|| tokens.collect()),
        }
    }

    /// The org named `org` in a path, if the request's bearer may act there in `role`.
    ///
    /// # Errors
    /// 401, 404 or 403, in this order.
    pub(super) fn allow(&self, headers: &HeaderMap, org: &str, role: Role) -> Result<OrgName, Problem> {
        self.allow_actor(headers, org, role).map(|(org, _)| org)
    }

    /// As [`Access::allow`]; also gives the bearer as an actor of the ledger.
    ///
    /// # Errors
    /// As [`Access::allow`].
    pub(super) fn allow_actor(&self, headers: &HeaderMap, org: &str, role: Role) -> Result<(OrgName, String), Problem> {
        let token = self.authenticate(headers)?;
        let known = org.parse().ok().filter(|org| self.orgs.contains(org));
        let opened = known.filter(|org| token.as_ref().is_none_or(|token| token.org.covers(org)));
        let Some(org) = opened else {
            let detail = "there is no such org, or this token does not open it";
            let problem = Problem::new(StatusCode::NOT_FOUND, "org_not_found", detail);
            // It concerns the org that the token belongs to; whether there is another one of that name is not said.
            let home = token.and_then(|token| match &token.org {
                OrgScope::One(home) => Some(Refused::new(home, &token.name, "org_not_found")),
                OrgScope::All => None,
            });
            return Err(match home {
                Some(refused) => problem.refused(refused),
                None => problem,
            });
        };
        let Some(token) = token else { return Ok((org, "anonymous".to_owned())) };
        tracing::Span::current().record("token", &token.name);
        if !token.roles.contains(&role) {
            let detail = format!("the token `{}` lacks the role {}", token.name, word(role));
            let problem = Problem::new(StatusCode::FORBIDDEN, "role_missing", detail);
            return Err(problem.refused(Refused::new(&org, &token.name, "role_missing")));
        }
        Ok((org, actor(&token.name)))
    }

    /// The token that was presented; `None` where none is needed.
    fn authenticate(&self, headers: &HeaderMap) -> Result<Option<Arc<Token>>, Problem> {
        let Some(tokens) = &self.tokens else { return Ok(None) };
        let Some(presented) = bearer(headers) else {
            let problem =
                Problem::new(StatusCode::UNAUTHORIZED, "token_missing", "send a token: Authorization: Bearer …");
            return Err(problem.challenge(r#"Bearer realm="mcpg""#));
        };
        let Some(token) = tokens.get(&TokenHash::of(presented)) else {
            let problem = Problem::new(StatusCode::UNAUTHORIZED, "token_unknown", "no such token is configured here");
            return Err(problem.challenge(r#"Bearer realm="mcpg", error="invalid_token""#));
        };
        Ok(Some(Arc::clone(token)))
    }
}

/// The bearer of a token as an actor of the ledger.
pub(super) fn actor(token: &str) -> String {
    format!("service:{token}")
}

/// The token of the one `Authorization` header; its scheme is not case-sensitive.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// A role as it is written in the configuration.
const fn word(role: Role) -> &'static str {
    match role {
        Role::Ingest => "ingest",
        Role::Read => "read",
        Role::Payload => "payload",
        Role::Operator => "operator",
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderMap;
    use axum::http::header::AUTHORIZATION;
    use axum::response::IntoResponse;

    use super::Access;
    use crate::config::{ControlPlane, TokenHash};
    use crate::model::Role;

    fn access(tokens: bool) -> Access {
        let mut text = "orgs: [{name: acme}, {name: umbrella}]\n".to_owned();
        if tokens {
            let (reader, operator) = (TokenHash::of("reader"), TokenHash::of("operator"));
            text += &format!(
                "tokens:\n- {{name: r, hash: {reader}, org: acme, roles: [read]}}\n\
                 - {{name: o, hash: {operator}, org: '*', roles: [read, operator]}}\n"
            );
        }
        Access::new(&ControlPlane::parse("f", &text, &|_| None).unwrap())
    }

    fn headers(authorization: &[&str]) -> HeaderMap {
        authorization.iter().map(|value| (AUTHORIZATION, value.parse().unwrap())).collect()
    }

    /// 200, or the status of the problem.
    fn status(authorization: &[&str], org: &str, role: Role) -> u16 {
        match access(true).allow(&headers(authorization), org, role) {
            Ok(_) => 200,
            Err(problem) => problem.into_response().status().as_u16(),
        }
    }

    #[test]
    fn a_token_opens_its_org_in_its_roles() {
        assert_eq!(status(&["Bearer reader"], "acme", Role::Read), 200);
        assert_eq!(status(&["bearer  reader"], "acme", Role::Read), 200);
        assert_eq!(status(&["Bearer reader"], "acme", Role::Ingest), 403);
    }

    #[test]
    fn an_operators_token_opens_every_org_that_there_is() {
        assert_eq!(status(&["Bearer operator"], "acme", Role::Read), 200);
        assert_eq!(status(&["Bearer operator"], "umbrella", Role::Operator), 200);
        assert_eq!(status(&["Bearer operator"], "none", Role::Read), 404);
    }

    #[test]
    fn anothers_org_looks_like_one_that_does_not_exist() {
        let seen = |org: &str| access(true).allow(&headers(&["Bearer reader"]), org, Role::Read).unwrap_err();
        assert_eq!(seen("umbrella"), seen("none"));
        assert_eq!(status(&["Bearer reader"], "umbrella", Role::Ingest), 404);
        for odd in ["..", "ACME", "acme/../umbrella", "acme%2f", "", "acme\0"] {
            assert_eq!(status(&["Bearer reader"], odd, Role::Read), 404, "{odd:?}");
        }
    }

    #[test]
    fn without_a_good_token_there_is_a_challenge() {
        for bad in [
            &[] as &[&str],
            &["Bearer wrong"],
            &["Bearer"],
            &["Bearer "],
            &["Basic reader"],
            &["Bearer reader", "Bearer reader"],
        ] {
            let problem = access(true).allow(&headers(bad), "acme", Role::Read).unwrap_err();
            let response = problem.into_response();
            assert_eq!(response.status(), 401, "{bad:?}");
            assert!(response.headers().contains_key("www-authenticate"));
        }
    }

    #[test]
    fn the_hash_of_a_token_is_no_token() {
        let hash = TokenHash::of("reader");
        assert_eq!(status(&[&format!("Bearer {hash}")], "acme", Role::Read), 401);
    }

    #[test]
    fn with_no_tokens_configured_everyone_may_do_everything() {
        let access = access(false);
        assert!(access.allow(&HeaderMap::new(), "acme", Role::Operator).is_ok());
        assert!(access.allow(&headers(&["Bearer any"]), "acme", Role::Ingest).is_ok());
        assert!(access.allow(&HeaderMap::new(), "none", Role::Read).is_err());
    }
}
