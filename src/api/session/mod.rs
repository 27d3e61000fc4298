//! Sessions of browsers: people who came in by a provider or by a token, and are known by a sealed cookie from then on.
//!
//! | route | does |
//! |---|---|
//! | `GET /v1/session` | says who the request is of, and what they may do where |
//! | `POST /v1/session` | begins a session by a token: `{"token": "…"}` |
//! | `DELETE /v1/session` | ends it, on every node |
//! | `GET /v1/session/login?return_to=` | sends the browser to the provider (`login`) |
//! | `GET /v1/session/callback` | takes it back from there: a session begins |
//! | `POST /v1/orgs/{org}/sessions/revoke` | ends the sessions of an org, or of one caller there (`operator`) |
//!
//! No node remembers a session: the cookie holds it, sealed (`seal`, `content`), and what is over before its time
//! stands in the log. A session ends when it is not used for `session.idle`, when it has lasted for `session.absolute`,
//! at the logout, when an operator says so, and a token's session with the token. That it begins and ends is in the
//! ledgers of its orgs before it does.
//!
//! Over plain HTTP there is none but on loopback: 403 `tls_required`. What a page must do to be heard is in `browsers`.

mod content;
mod cookie;
mod key;
mod login;
mod oidc;
mod routes;
mod seal;

use std::net::SocketAddr;

use axum::http::{HeaderMap, HeaderValue, StatusCode};
use serde_json::{Map, Value, json};

pub(crate) use content::Session;
use content::{Age, By, Lifetimes, stored};
use cookie::Cookie;
pub(super) use cookie::has_cookie;
pub(super) use login::{callback, login};
use oidc::Provider;
pub(super) use routes::{delete, get, post, revoke};
pub use seal::Sealer;

use super::site::Place;
use super::who::{Granted, Who};
use super::{Api, Problem};
use crate::config::{ControlPlane, OrgScope};
use crate::identity::IdentityError;
use crate::model::OrgName;
use crate::plane::SessionMark;

/// Of so many orgs each is told of an operator's session that opens all of them; of more, the first.
const TOLD_ORGS: usize = 100;

/// What sessions are made with.
#[derive(Debug)]
pub(super) struct Sessions {
    sealer: Sealer,
    lifetimes: Lifetimes,
    provider: Option<Provider>,
}

/// A session that a request brought, and how it is doing.
#[derive(Debug, Clone)]
pub(super) struct Brought {
    pub(super) session: Session,
    age: Age,
}

impl Brought {
    /// One that has just begun.
    fn begun(session: Session) -> Self {
        Self { session, age: Age::Fresh }
    }

    /// What the plane is asked of it by.
    pub(super) fn mark(&self) -> SessionMark<'_> {
        let Session { id, caller, home, begun, .. } = &self.session;
        SessionMark { id, caller, home, begun: *begun }
    }

    /// The hash of the token that it stands on, if it does.
    pub(super) fn token(&self) -> Option<crate::config::TokenHash> {
        match &self.session.by {
            By::Token { hash } => Some(*hash),
            By::Oidc { .. } => None,
        }
    }

    /// The rights that its cookie holds; none of a token's, which are looked up.
    pub(super) fn grants(&self) -> Vec<Granted> {
        match &self.session.by {
            By::Token { .. } => Vec::new(),
            By::Oidc { grants, .. } => {
                grants.iter().map(|(org, roles)| Granted { org: org.clone(), roles: roles.clone() }).collect()
            }
        }
    }
}

impl Sessions {
    /// What these settings say, sealed by `sealer`.
    pub(super) fn new(settings: &ControlPlane, sealer: Sealer) -> Result<Self, IdentityError> {
        let seconds = |period: crate::config::Period| i64::try_from(period.as_duration().as_secs()).unwrap_or(i64::MAX);
        let session = &settings.session;
        let lifetimes = Lifetimes { idle: seconds(session.idle), absolute: seconds(session.absolute) };
        let provider = settings.identity.oidc.as_ref().map(Provider::new).transpose()?;
        Ok(Self { sealer, lifetimes, provider })
    }

    /// The session that a request brings to a place, however old it is.
    fn any(&self, place: &Place, headers: &HeaderMap, now: i64) -> Option<Brought> {
        let name = Cookie::Session.name(place)?;
        let values = Cookie::Session.values(place, headers);
        let opened = values.into_iter().find_map(|value| self.sealer.open(&name, &place.origin(), value))?;
        let session: Session = serde_json::from_slice(&opened).ok()?;
        let age = session.age(now, self.lifetimes);
        Some(Brought { session, age })
    }

    /// The session that a request brings to a place; none if it brings none that opens.
    ///
    /// # Errors
    /// 401 when it has ended by its time.
    pub(super) fn find(&self, place: &Place, headers: &HeaderMap, now: i64) -> Result<Option<Brought>, Problem> {
        match self.any(place, headers, now) {
            Some(Brought { age: Age::Idle | Age::Spent, .. }) => {
                let detail =
                    "the session has ended: it was not used for a while, or lasted as long as one may; log in again";
                Err(Problem::new(StatusCode::UNAUTHORIZED, "session_expired", detail))
            }
            found => Ok(found),
        }
    }

    /// The cookie that a used session gets, if it is time for another.
    pub(super) fn renewed(&self, place: &Place, brought: &Brought, now: i64) -> Option<HeaderValue> {
        match brought.age {
            Age::Aged => self.cookie(place, &brought.session.renewed(now, self.lifetimes)),
            Age::Fresh | Age::Idle | Age::Spent => None,
        }
    }

    /// When a session ends that nobody uses after the request that brought it.
    pub(super) fn expires(&self, brought: &Brought, now: i64) -> i64 {
        match brought.age {
            Age::Aged => brought.session.renewed(now, self.lifetimes).expires,
            Age::Fresh | Age::Idle | Age::Spent => brought.session.expires,
        }
    }

    fn cookie(&self, place: &Place, session: &Session) -> Option<HeaderValue> {
        let name = Cookie::Session.name(place)?;
        let text = serde_json::to_vec(session).ok()?;
        // Its end is inside: what the browser makes of the time is of no account.
        Cookie::Session.set(place, &self.sealer.seal(&name, &place.origin(), &text)?, None)
    }
}

/// Whose session begins, and by which way.
struct Beginning {
    caller: String,
    by: By,
    auth_time: Option<i64>,
    grants: Vec<Granted>,
    /// What the ledger is told beside.
    detail: Map<String, Value>,
    from: Option<SocketAddr>,
}

impl Api {
    /// Begins a session: it is in the ledgers first, then in the browser.
    async fn begin_session(&self, place: &Place, beginning: Beginning) -> Result<(HeaderValue, Session), Problem> {
        let Beginning { caller, by, auth_time, grants, mut detail, from } = beginning;
        let sessions = &self.access.sessions;
        let now = self.clock.now().timestamp();
        let (home, orgs) = self.told(&grants)?;
        let id = uuid::Uuid::new_v4().simple().to_string();
        let ends = now.saturating_add(sessions.lifetimes.absolute);
        detail.insert("session".to_owned(), json!(id));
        detail.insert("until".to_owned(), json!(ends));
        detail.extend(auth_time.map(|at| ("auth_time".to_owned(), json!(at))));
        detail.extend(from.map(|from| ("from".to_owned(), json!(from.ip().to_string()))));
        let begun = self.plane.begin_session(&home, &orgs, &caller, detail).await?;
        let expires = now.saturating_add(sessions.lifetimes.idle).min(ends);
        let session = Session { id, caller, by, home, auth_time, begun, expires, ends };
        tracing::info!(caller = %session.caller, session = %session.id, "a session began");
        let cookie = sessions.cookie(place, &session).ok_or_else(|| {
            tracing::error!("a session could not be sealed");
            Problem::internal()
        })?;
        Ok((cookie, session))
    }

    /// The org whose ledger keeps a session's end, and all whose ledgers are told of it.
    fn told(&self, grants: &[Granted]) -> Result<(OrgName, Vec<OrgName>), Problem> {
        let all = self.access.orgs();
        let own = grants.iter().filter_map(|granted| match &granted.org {
            OrgScope::One(org) => Some(org.clone()),
            OrgScope::All => None,
        });
        let mut orgs: Vec<OrgName> = own.collect();
        if grants.iter().any(|granted| granted.org == OrgScope::All) {
            orgs.extend(all.iter().take(if all.len() <= TOLD_ORGS { TOLD_ORGS } else { 1 }).cloned());
        }
        let mut seen = std::collections::HashSet::new();
        orgs.retain(|org| seen.insert(org.clone()));
        // Without a right in any org there is nothing that a session would be for.
        let home = orgs.first().cloned().ok_or_else(no_access)?;
        Ok((home, orgs))
    }

    /// That someone's session stands, in the org if there is one.
    ///
    /// # Errors
    /// 401 `session_ended`.
    pub(super) async fn check_session(&self, who: &Who, org: Option<&OrgName>) -> Result<(), Problem> {
        let Some(brought) = who.session() else { return Ok(()) };
        let orgs: Vec<OrgName> = org.into_iter().cloned().collect();
        let standing = self.plane.session_stands(brought.mark(), &orgs).await?;
        if standing.is_some_and(|standing| standing.len() == orgs.len()) { Ok(()) } else { Err(ended()) }
    }
}

/// That a session is over before its time.
pub(super) fn ended() -> Problem {
    let detail = "the session is over: it was logged out, or ended by an operator or with its token; log in again";
    Problem::new(StatusCode::UNAUTHORIZED, "session_ended", detail)
}

/// That someone is known, and may do nothing here.
fn no_access() -> Problem {
    Problem::new(
        StatusCode::FORBIDDEN,
        "no_access",
        "nothing that is known of you opens an org here; see identity.grants",
    )
}

/// That there is no session over plain HTTP.
fn tls_required() -> Problem {
    let detail = "no session is given over plain HTTP but on loopback; configure `tls`, or a proxy that speaks it and its https:// \
                  public_url";
    Problem::new(StatusCode::FORBIDDEN, "tls_required", detail)
}
