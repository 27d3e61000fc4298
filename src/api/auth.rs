//! Who may do what: bearer tokens and people, the orgs they open, the roles they hold there.
//!
//! * A token is presented as `Authorization: Bearer <token>` (RFC 6750). The configuration holds its BLAKE3 hash; what
//!   is presented is hashed and looked up by that hash. How long the look-up takes says something about hashes, and
//!   nothing about tokens, whose hashes cannot be steered.
//! * What is no configured token may be a JSON Web Token of an issuer in `identity.jwt`: it opens what
//!   `identity.grants` says of its claims ([`who`](super::who)).
//! * A request without `Authorization` may bring a session's cookie ([`session`](super::session)). A bad token never
//!   falls back to it.
//! * No token, or one that is no good: 401 with a challenge. Both look the same but for the challenge's `error`.
//! * An org that the bearer has no right in, and an org that does not exist: the same 404, so that names of other
//!   tenants cannot be probed (invariant I4). Only then the role is looked at: 403.
//! * A token may have two hashes, for the time of a change, and an end: past it 401 `token_expired`. When each was used
//!   last is a metric.
//! * Tokens follow the configuration's file while the program runs ([`Tokens`]). Whether anyone is asked at all does
//!   not: that is settled at the start.
//! * With neither tokens nor people configured, everyone may do everything; the program then listens on loopback only.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::header::{CACHE_CONTROL, SET_COOKIE, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use chrono::DateTime;

use super::refusals::Refused;
use super::session::{self, Brought, Sealer, Sessions};
use super::site::{Place, Site};
use super::tokens::Tokens;
use super::who::{Asked, Who, granted};
use super::{Api, Problem};
use crate::config::{ControlPlane, Grant, Token, TokenHash, TraceUrl};
use crate::identity::{IdentityError, Issuers, Presented, Unidentified, presented};
use crate::model::{Clock, OrgName, Role, SystemClock};
use crate::telemetry::metrics::Metrics;

/// How soon to come again when an issuer's keys cannot be had.
const ISSUER_RETRY: Duration = Duration::from_secs(5);

/// The tokens, people and orgs of a control plane.
#[derive(Debug)]
pub struct Access {
    /// As the configuration names them.
    orgs: Vec<OrgName>,
    known: HashSet<OrgName>,
    tokens: Tokens,
    issuers: Issuers<Who>,
    pub(super) grants: Vec<Grant>,
    pub(super) sessions: Sessions,
    pub(super) site: Site,
    /// Where pages lead to from a call to its trace.
    pub(super) trace_url: Option<TraceUrl>,
    clock: Arc<dyn Clock>,
    metrics: Option<Arc<Metrics>>,
}

impl Access {
    /// What the settings grant, at a port; sessions are sealed by `sealer`. Keys of issuers are fetched in the
    /// background, within a Tokio runtime.
    ///
    /// # Errors
    /// When no HTTP client can be made.
    pub fn new(settings: &ControlPlane, port: u16, sealer: Sealer) -> Result<Self, IdentityError> {
        let orgs: Vec<OrgName> = settings.orgs.iter().map(|org| org.name.clone()).collect();
        Ok(Self {
            known: orgs.iter().cloned().collect(),
            orgs,
            tokens: Tokens::new(settings),
            issuers: Issuers::start(&settings.identity.jwt)?,
            grants: settings.identity.grants.clone(),
            sessions: Sessions::new(settings, sealer)?,
            site: Site::new(settings, port),
            trace_url: settings.telemetry.trace_url.clone(),
            clock: Arc::new(SystemClock),
            metrics: None,
        })
    }

    /// The same by another clock, telling when tokens are used.
    #[must_use]
    pub fn with(self, clock: Arc<dyn Clock>, metrics: Arc<Metrics>) -> Self {
        Self { clock, metrics: Some(metrics), ..self }
    }

    /// The tokens, to be replaced.
    pub fn tokens(&self) -> Tokens {
        self.tokens.clone()
    }

    /// Whether tokens are not required.
    pub(super) fn is_open(&self) -> bool {
        self.tokens.is_open()
    }

    /// The orgs that there are, in the configuration's order.
    pub(super) fn orgs(&self) -> &[OrgName] {
        &self.orgs
    }

    /// Who a request to a place is of.
    ///
    /// # Errors
    /// 401, and 503 where the keys of a token's issuer cannot be had.
    pub(super) async fn identify(&self, headers: &HeaderMap, place: Option<&Place>) -> Result<Who, Problem> {
        if self.tokens.is_open() {
            return Ok(Who::open());
        }
        match presented(headers) {
            Presented::Nothing => {
                let now = self.clock.now().timestamp();
                if let Some(brought) = place.map_or(Ok(None), |place| self.sessions.find(place, headers, now))? {
                    return self.of_session(brought);
                }
                let problem =
                    Problem::new(StatusCode::UNAUTHORIZED, "token_missing", "send a token: Authorization: Bearer …");
                Err(problem.challenge(r#"Bearer realm="mcpg""#))
            }
            Presented::Unusable(why) => Err(unauthorized("token_unknown", why)),
            Presented::Token(token) => self.bearer(token).await,
        }
    }

    /// The bearer of a configured token.
    ///
    /// # Errors
    /// 401.
    pub(super) fn configured(&self, hash: &TokenHash) -> Result<Who, Problem> {
        let unknown = || unauthorized("token_unknown", "no such token is configured here");
        self.good(self.tokens.get(hash).ok_or_else(unknown)?).map(|token| Who::of_token(&token))
    }

    /// A token that has not expired, and is used now.
    fn good(&self, token: Arc<Token>) -> Result<Arc<Token>, Problem> {
        let now = self.clock.now();
        if token.expires.is_some_and(|expires| expires.has_come(now)) {
            return Err(unauthorized("token_expired", "this token has expired; ask for a new one"));
        }
        if let Some(metrics) = &self.metrics {
            metrics.http.token_used(&token.name, now.timestamp());
        }
        Ok(token)
    }

    /// Whose session it is; a token's ends with the token.
    fn of_session(&self, brought: Brought) -> Result<Who, Problem> {
        let Some(hash) = brought.token() else { return Ok(Who::of_session(brought, None)) };
        let token = self.good(self.tokens.get(&hash).ok_or_else(session::ended)?)?;
        Ok(Who::of_session(brought, Some(&token)))
    }

    async fn bearer(&self, presented: &str) -> Result<Who, Problem> {
        let (hash, now) = (TokenHash::of(presented), self.clock.now());
        if let Some(token) = self.tokens.get(&hash) {
            return self.good(token).map(|token| Who::of_token(&token));
        }
        let person = self.issuers.verify(presented, hash, now.timestamp(), |issuer, claims| {
            let grants = granted(&self.grants, issuer.name(), claims);
            let auth_time = claims.time("auth_time").or_else(|| claims.time("iat"));
            let auth_time = auth_time.and_then(|seconds| DateTime::from_timestamp(seconds, 0));
            Ok(Who::of_claims(&issuer.caller(claims)?, grants, auth_time))
        });
        person.await.map_err(|unidentified| match unidentified {
            Unidentified::Unavailable => {
                let problem =
                    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "issuer_unavailable", unidentified.to_string());
                problem.retry_after(ISSUER_RETRY)
            }
            // Of a token that is no JSON Web Token of an issuer that is known, nothing more is said.
            Unidentified::Invalid(why) if self.issuers.knows(presented) => unauthorized("token_invalid", why),
            Unidentified::Invalid(_) | Unidentified::Missing => {
                unauthorized("token_unknown", "no such token is configured here")
            }
        })
    }

    /// The org named `org` in a path, if they may act there in `role`.
    ///
    /// # Errors
    /// 404 or 403, in this order.
    pub(super) fn allow(&self, who: &Who, org: &str, role: Role) -> Result<OrgName, Problem> {
        let known = org.parse().ok().filter(|org| self.known.contains(org));
        let Some(org) = known.filter(|org| who.sees(org)) else {
            let detail = "there is no such org, or this token does not open it";
            let problem = Problem::new(StatusCode::NOT_FOUND, "org_not_found", detail);
            // It concerns the org that the token belongs to; whether there is another one of that name is not said.
            return Err(match who.home() {
                Some(home) => problem.refused(Refused::new(home, who.actor(), "org_not_found")),
                None => problem,
            });
        };
        if !who.has(&org, role) {
            let detail = format!("{} lacks the role {}", who.described(), word(role));
            let problem = Problem::new(StatusCode::FORBIDDEN, "role_missing", detail);
            return Err(problem.refused(Refused::new(&org, who.actor(), "role_missing")));
        }
        Ok(org)
    }
}

/// A token that is no good, and why, in words that hold nothing of it.
fn unauthorized(code: &'static str, why: &'static str) -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, code, why).challenge(r#"Bearer realm="mcpg", error="invalid_token""#)
}

/// Finds out who a request is of, for its handler, and renews the session that it brings. What stands outside `/v1`
/// requires no token.
pub(super) async fn identify(State(api): State<Arc<Api>>, mut request: Request, next: Next) -> Response {
    if !request.uri().path().starts_with("/v1/") {
        return next.run(request).await;
    }
    let place = request.extensions().get::<Place>().cloned();
    let who = api.access.identify(request.headers(), place.as_ref()).await;
    let mut renewed = None;
    if let Ok(who) = &who {
        note(who);
        let now = api.clock.now().timestamp();
        renewed =
            place.zip(who.session()).and_then(|(place, brought)| api.access.sessions.renewed(&place, brought, now));
    }
    request.extensions_mut().insert(Asked(who));
    let mut response = next.run(request).await;
    // What an org's data are is for who asked: no cache keeps it unless its handler says so of what never changes, and
    // no browser takes it for anything but what its type says.
    let headers = response.headers_mut();
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    // A session that has just been ended stays so.
    if response.status() != StatusCode::UNAUTHORIZED
        && !response.headers().contains_key(SET_COOKIE)
        && let Some(cookie) = renewed
    {
        response.headers_mut().insert(SET_COOKIE, cookie);
    }
    response
}

/// Tells the request's span who it is of.
fn note(who: &Who) {
    if let Some(label) = who.label() {
        tracing::Span::current().record("token", label);
    }
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

    use super::{Access, Sealer};
    use crate::api::Problem;
    use crate::config::{ControlPlane, TokenHash};
    use crate::model::{OrgName, Role};

    /// The org, if the bearer may act there.
    async fn allow(access: &Access, headers: &HeaderMap, org: &str, role: Role) -> Result<OrgName, Problem> {
        let who = access.identify(headers, None).await?;
        access.allow(&who, org, role)
    }

    fn access(tokens: bool) -> Access {
        let mut text = "orgs: [{name: acme}, {name: umbrella}]\n".to_owned();
        if tokens {
            let (reader, operator) = (TokenHash::of("reader"), TokenHash::of("operator"));
            text += &format!(
                "tokens:\n- {{name: r, hash: {reader}, org: acme, roles: [read]}}\n\
                 - {{name: o, hash: {operator}, org: '*', roles: [read, operator]}}\n"
            );
        }
        Access::new(&ControlPlane::parse("f", &text, &|_| None).unwrap(), 1, Sealer::new(&[7; 32], None).unwrap())
            .unwrap()
    }

    fn headers(authorization: &[&str]) -> HeaderMap {
        authorization.iter().map(|value| (AUTHORIZATION, value.parse().unwrap())).collect()
    }

    /// 200, or the status of the problem.
    async fn status(authorization: &[&str], org: &str, role: Role) -> u16 {
        match allow(&access(true), &headers(authorization), org, role).await {
            Ok(_) => 200,
            Err(problem) => problem.into_response().status().as_u16(),
        }
    }

    #[tokio::test]
    async fn a_token_opens_its_org_in_its_roles() {
        assert_eq!(status(&["Bearer reader"], "acme", Role::Read).await, 200);
        assert_eq!(status(&["bearer  reader"], "acme", Role::Read).await, 200);
        assert_eq!(status(&["Bearer reader"], "acme", Role::Ingest).await, 403);
    }

    #[tokio::test]
    async fn an_operators_token_opens_every_org_that_there_is() {
        assert_eq!(status(&["Bearer operator"], "acme", Role::Read).await, 200);
        assert_eq!(status(&["Bearer operator"], "umbrella", Role::Operator).await, 200);
        assert_eq!(status(&["Bearer operator"], "none", Role::Read).await, 404);
    }

    #[tokio::test]
    async fn anothers_org_looks_like_one_that_does_not_exist() {
        let access = access(true);
        let seen = async |org: &str| allow(&access, &headers(&["Bearer reader"]), org, Role::Read).await.unwrap_err();
        assert_eq!(seen("umbrella").await, seen("none").await);
        assert_eq!(status(&["Bearer reader"], "umbrella", Role::Ingest).await, 404);
        for odd in ["..", "ACME", "acme/../umbrella", "acme%2f", "", "acme\0"] {
            assert_eq!(status(&["Bearer reader"], odd, Role::Read).await, 404, "{odd:?}");
        }
    }

    #[tokio::test]
    async fn without_a_good_token_there_is_a_challenge() {
        for bad in [
            &[] as &[&str],
            &["Bearer wrong"],
            &["Bearer"],
            &["Bearer "],
            &["Basic reader"],
            &["Bearer reader", "Bearer reader"],
        ] {
            let problem = allow(&access(true), &headers(bad), "acme", Role::Read).await.unwrap_err();
            let response = problem.into_response();
            assert_eq!(response.status(), 401, "{bad:?}");
            assert!(response.headers().contains_key("www-authenticate"));
        }
    }

    fn changing(text: &str) -> Access {
        let (new, old) = (TokenHash::of("new"), TokenHash::of("old"));
        let text = format!(
            "orgs: [{{name: acme}}]\ntokens: [{{name: r, hash: {new}, previous_hash: {old}, org: acme, roles: [read]{text}}}]"
        );
        Access::new(&ControlPlane::parse("f", &text, &|_| None).unwrap(), 1, Sealer::new(&[7; 32], None).unwrap())
            .unwrap()
    }

    #[tokio::test]
    async fn for_the_time_of_a_change_both_tokens_of_a_name_are_taken() {
        let access = changing("");
        for token in ["Bearer new", "Bearer old"] {
            assert_eq!(access.identify(&headers(&[token]), None).await.unwrap().label(), Some("r"));
        }
    }

    #[tokio::test]
    async fn an_expired_token_is_refused_and_says_so() {
        let who = async |expires: &str| changing(expires).identify(&headers(&["Bearer new"]), None).await;
        assert_eq!(who(", expires: 2020-01-01T00:00:00Z").await.unwrap_err().code(), "token_expired");
        who(", expires: 2999-01-01T00:00:00Z").await.unwrap();
    }

    #[tokio::test]
    async fn tokens_are_replaced_and_never_by_none() {
        let access = changing("");
        let other = TokenHash::of("other");
        let with =
            |tokens: &str| ControlPlane::parse("f", &format!("orgs: [{{name: acme}}]\n{tokens}"), &|_| None).unwrap();
        let one = with(&format!("tokens: [{{name: r, hash: {other}, org: acme, roles: [read]}}]"));
        assert_eq!(access.tokens().replace(&one), Ok(true));
        assert_eq!(access.tokens().replace(&one), Ok(false));
        access.identify(&headers(&["Bearer other"]), None).await.unwrap();
        access.identify(&headers(&["Bearer new"]), None).await.unwrap_err();
        access.tokens().replace(&with("")).unwrap_err();
        access.identify(&headers(&["Bearer other"]), None).await.unwrap();
    }

    #[tokio::test]
    async fn the_hash_of_a_token_is_no_token() {
        let hash = TokenHash::of("reader");
        assert_eq!(status(&[&format!("Bearer {hash}")], "acme", Role::Read).await, 401);
    }

    #[tokio::test]
    async fn with_no_tokens_configured_everyone_may_do_everything() {
        let access = access(false);
        assert!(allow(&access, &HeaderMap::new(), "acme", Role::Operator).await.is_ok());
        assert!(allow(&access, &headers(&["Bearer any"]), "acme", Role::Ingest).await.is_ok());
        assert!(allow(&access, &HeaderMap::new(), "none", Role::Read).await.is_err());
    }

    #[tokio::test]
    async fn a_token_says_who_presents_it() {
        let who = async |caller: &str| changing(caller).identify(&headers(&["Bearer new"]), None).await.unwrap();
        let service = who("").await;
        assert_eq!((service.actor(), service.is_person()), ("service:r", false));
        let alice = who(", caller: 'user:alice@acme'").await;
        assert_eq!((alice.actor(), alice.is_person(), alice.label()), ("user:alice@acme", true, Some("r")));
    }
}
