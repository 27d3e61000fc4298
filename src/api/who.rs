//! Who a request is of: settled once a request, before its route is looked at, and asked by every handler.
//!
//! | by | `Authorization` | rights |
//! |---|---|---|
//! | [`Way::Open`] | none needed: neither tokens nor people are configured | everything |
//! | [`Way::Token`] | a configured token | the token's org and roles |
//! | [`Way::Jwt`] | a JSON Web Token of an issuer in `identity.jwt` | what `identity.grants` says of its claims |
//! | [`Way::Session`] | none; a session that began at the provider | what `identity.grants` said of them then |
//! | [`Way::TokenSession`] | none; a session that began by a token | the token's org and roles, as they are now |
//!
//! A bad `Authorization` header is 401, whatever cookie comes with it.
//!
//! A handler takes a [`Who`] as an argument, which refuses callers who are not known, or a `Result<Who, Problem>` where
//! it has something to do before it refuses. Then [`super::Api::allow`] gives the org of a path, or 404 and 403 in this
//! order.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::Extensions;
use axum::http::request::Parts;
use chrono::{DateTime, Utc};
use serde::Serialize;

use super::session::Brought;
use super::{Api, Problem};
use crate::config::{Grant, OrgScope, Token};
use crate::identity::{Caller, Claims};
use crate::model::{CallerName, OrgName, Role};

/// Every role.
const ALL_ROLES: [Role; 4] = [Role::Ingest, Role::Read, Role::Payload, Role::Operator];

/// By which way someone came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Way {
    /// Nobody is asked: neither tokens nor people are configured.
    Open,
    /// A configured token.
    Token,
    /// A JSON Web Token, as a bearer token.
    Jwt,
    /// The session of someone who logged in at the provider.
    Session,
    /// The session of a token.
    TokenSession,
}

/// Roles in an org, or in all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Granted {
    pub(super) org: OrgScope,
    pub(super) roles: Vec<Role>,
}

/// Who a request is of. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Who(Arc<Known>);

#[derive(Debug)]
struct Known {
    way: Way,
    /// The name as the ledger has it.
    actor: String,
    /// The token's name; none of those who came in otherwise.
    token: Option<String>,
    grants: Vec<Granted>,
    auth_time: Option<DateTime<Utc>>,
    session: Option<Brought>,
}

/// What was found out of a request, for its handler.
#[derive(Debug, Clone)]
pub(super) struct Asked(pub(super) Result<Who, Problem>);

impl Who {
    /// Anyone, where tokens are not required.
    pub(super) fn open() -> Self {
        Self(Arc::new(Known {
            way: Way::Open,
            actor: CallerName::anonymous().into(),
            token: None,
            grants: vec![Granted { org: OrgScope::All, roles: ALL_ROLES.to_vec() }],
            auth_time: None,
            session: None,
        }))
    }

    /// The bearer of a configured token.
    pub(super) fn of_token(token: &Token) -> Self {
        Self(Arc::new(Known {
            way: Way::Token,
            actor: token_actor(token),
            token: Some(token.name.clone()),
            grants: of_token(token),
            auth_time: None,
            session: None,
        }))
    }

    /// Someone whose session it is, by the token that it stands on, or by what its cookie holds.
    pub(super) fn of_session(brought: Brought, token: Option<&Token>) -> Self {
        let auth_time = brought.session.auth_time.and_then(|seconds| DateTime::from_timestamp(seconds, 0));
        Self(Arc::new(match token {
            Some(token) => Known {
                way: Way::TokenSession,
                actor: token_actor(token),
                token: Some(token.name.clone()),
                grants: of_token(token),
                auth_time,
                session: Some(brought),
            },
            None => Known {
                way: Way::Session,
                actor: brought.session.caller.clone(),
                token: None,
                grants: brought.grants(),
                auth_time,
                session: Some(brought),
            },
        }))
    }

    /// The bearer of a token, by the session that has begun with it.
    pub(super) fn by_session(&self, brought: Brought) -> Self {
        let Known { actor, token, grants, .. } = &*self.0;
        let auth_time = brought.session.auth_time.and_then(|seconds| DateTime::from_timestamp(seconds, 0));
        Self(Arc::new(Known {
            way: Way::TokenSession,
            actor: actor.clone(),
            token: token.clone(),
            grants: grants.clone(),
            auth_time,
            session: Some(brought),
        }))
    }

    /// The caller that the claims of a JSON Web Token name, with what they open.
    pub(super) fn of_claims(caller: &Caller, grants: Vec<Granted>, auth_time: Option<DateTime<Utc>>) -> Self {
        let actor = caller.name().as_str().to_owned();
        Self(Arc::new(Known { way: Way::Jwt, actor, token: None, grants, auth_time, session: None }))
    }

    /// By which way they came in.
    pub(super) fn way(&self) -> Way {
        self.0.way
    }

    /// The actor of what they do, as the ledger names them: `user:alice@acme`, `service:ci`, `anonymous`.
    pub(super) fn actor(&self) -> &str {
        &self.0.actor
    }

    /// Whether it is a person that is known by name: an actor `user:…`.
    pub(super) fn is_person(&self) -> bool {
        self.0.actor.starts_with("user:")
    }

    /// What logs and fair shares know them by: the token's name, or the actor; `None` where tokens are not required.
    pub(super) fn label(&self) -> Option<&str> {
        match self.0.way {
            Way::Open => None,
            _ => Some(self.0.token.as_deref().unwrap_or(self.actor())),
        }
    }

    /// When they last said who they are: of a JSON Web Token what its issuer says of it (`auth_time`, else `iat`); none
    /// of a configured token.
    pub(super) fn auth_time(&self) -> Option<DateTime<Utc>> {
        self.0.auth_time
    }

    /// The session that the request brought.
    pub(super) fn session(&self) -> Option<&Brought> {
        self.0.session.as_ref()
    }

    /// The orgs that they have a right of their own in.
    pub(super) fn own_orgs(&self) -> impl Iterator<Item = &OrgName> {
        self.0.grants.iter().filter_map(|granted| match &granted.org {
            OrgScope::One(org) => Some(org),
            OrgScope::All => None,
        })
    }

    /// What they may do in the org.
    pub(super) fn roles(&self, org: &OrgName) -> Vec<Role> {
        ALL_ROLES.into_iter().filter(|role| self.has(org, *role)).collect()
    }

    /// Whether there is anything that they may do in the org. Where not, the org is not there for them.
    pub(super) fn sees(&self, org: &OrgName) -> bool {
        self.0.grants.iter().any(|granted| granted.org.covers(org))
    }

    /// Whether they have the role in the org.
    pub(super) fn has(&self, org: &OrgName, role: Role) -> bool {
        self.0.grants.iter().any(|granted| granted.org.covers(org) && granted.roles.contains(&role))
    }

    /// Whether they have the role by a right in this very org, and not only by one in all of them, an operator's.
    pub(super) fn has_of_its_own(&self, org: &OrgName, role: Role) -> bool {
        let own = |granted: &&Granted| matches!(&granted.org, OrgScope::One(one) if one == org);
        self.0.grants.iter().filter(own).any(|granted| granted.roles.contains(&role))
    }

    /// What they may do, and where.
    pub(super) fn grants(&self) -> &[Granted] {
        &self.0.grants
    }

    /// The org whose ledger records what they were refused elsewhere: the first that they have a right of their own in.
    pub(super) fn home(&self) -> Option<&OrgName> {
        self.own_orgs().next()
    }

    /// How problems name them: `the token \`ci\``, or the actor.
    pub(super) fn described(&self) -> String {
        match &self.0.token {
            Some(token) => format!("the token `{token}`"),
            None => self.actor().to_owned(),
        }
    }

    /// Who the request is of, for a handler that takes the whole request.
    ///
    /// # Errors
    /// 401, and 503 where an issuer's keys cannot be had.
    pub(super) fn asked(extensions: &Extensions) -> Result<Self, Problem> {
        // Every route under `/v1` is asked for it; were one not, it would refuse everyone.
        extensions.get::<Asked>().map_or_else(|| Err(Problem::internal()), |Asked(asked)| asked.clone())
    }
}

impl FromRequestParts<Arc<Api>> for Who {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<Api>) -> Result<Self, Problem> {
        Self::asked(&parts.extensions)
    }
}

fn of_token(token: &Token) -> Vec<Granted> {
    vec![Granted { org: token.org.clone(), roles: token.roles.clone() }]
}

/// The bearer of a token as an actor of the ledger: who it says, else a service of its name.
fn token_actor(token: &Token) -> String {
    token.caller.as_ref().map_or_else(|| format!("service:{}", token.name), |caller| caller.as_str().to_owned())
}

/// What claims of an issuer open.
pub(super) fn granted(grants: &[Grant], issuer: &str, claims: &Claims) -> Vec<Granted> {
    let mut granted: Vec<Granted> = Vec::new();
    let of_issuer = |grant: &&Grant| grant.issuer.as_ref().is_none_or(|only| only == issuer);
    for grant in grants.iter().filter(of_issuer).filter(|grant| claims.holds(&grant.claim, &grant.value)) {
        match granted.iter_mut().find(|granted| granted.org == grant.org) {
            Some(granted) => {
                let more = grant.roles.iter().filter(|role| !granted.roles.contains(role)).copied();
                let more: Vec<_> = more.collect();
                granted.roles.extend(more);
            }
            None => granted.push(Granted { org: grant.org.clone(), roles: grant.roles.clone() }),
        }
    }
    granted
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{Granted, Who, granted};
    use crate::config::ControlPlane;
    use crate::identity::{Caller, Claims};
    use crate::model::Role;

    fn claims(claims: Value) -> Claims {
        claims.as_object().unwrap().clone().into()
    }

    fn who(issuer: &str, value: Value) -> Who {
        let text = "orgs: [{name: acme}, {name: umbrella}]\n\
                    identity:\n  jwt:\n\
                    \x20 - {issuer: 'https://a', audience: x, jwks_url: 'https://a/k'}\n\
                    \x20 - {issuer: 'https://b', audience: x, jwks_url: 'https://b/k'}\n\
                    \x20 grants:\n\
                    \x20 - {claim: groups, value: readers, org: acme, roles: [read]}\n\
                    \x20 - {claim: groups, value: security, org: acme, roles: [read, payload]}\n\
                    \x20 - {claim: realm_access.roles, value: ops, org: '*', roles: [operator], issuer: 'https://a'}\n";
        let settings = ControlPlane::parse("f", text, &|_| None).unwrap();
        let rights = granted(&settings.identity.grants, issuer, &claims(value));
        Who::of_claims(&Caller::new("user:alice".parse().unwrap(), Vec::new()), rights, None)
    }

    #[test]
    fn claims_open_what_the_grants_say_and_nothing_else() {
        let (acme, umbrella) = ("acme".parse().unwrap(), "umbrella".parse().unwrap());
        let nobody = who("https://a", json!({ "groups": ["others"], "realm_access": "ops" }));
        assert!(!nobody.sees(&acme) && nobody.home().is_none());
        let reader = who("https://b", json!({ "groups": "readers" }));
        assert!(reader.has(&acme, Role::Read) && !reader.has(&acme, Role::Payload) && !reader.sees(&umbrella));
        let both = who("https://a", json!({ "groups": ["readers", "security"] }));
        assert_eq!(
            both.grants(),
            [Granted { org: both.grants()[0].org.clone(), roles: vec![Role::Read, Role::Payload] }]
        );
    }

    #[test]
    fn a_claim_of_another_issuer_does_not_count_and_a_fleet_wide_right_is_no_right_of_its_own() {
        let ops = json!({ "realm_access": { "roles": ["ops"] } });
        let acme = "acme".parse().unwrap();
        assert!(!who("https://b", ops.clone()).sees(&acme));
        let operator = who("https://a", ops);
        assert!(operator.has(&acme, Role::Operator) && !operator.has_of_its_own(&acme, Role::Operator));
    }
}
