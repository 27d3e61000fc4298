//! `/v1/session`, and the end of others' sessions.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{ConnectInfo, Extension, Path, Request, State};
use axum::http::header::{CACHE_CONTROL, SET_COOKIE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, SecondsFormat, Utc};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, json};
use tokio::time::Instant;

use super::cookie::Cookie;
use super::{Beginning, Brought, By, ended, tls_required};
use crate::api::body::{Incoming, json as parse};
use crate::api::site::Place;
use crate::api::who::{Way, Who};
use crate::api::{Api, Problem};
use crate::config::{OrgScope, TokenHash};
use crate::model::{CallerName, OrgName, Role};

/// The longest body.
const BODY: usize = 64 << 10;
pub(super) const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");

/// Who a request is of.
#[derive(Debug, Serialize)]
struct Me {
    actor: String,
    person: bool,
    way: Way,
    orgs: Vec<Rights>,
    #[serde(skip_serializing_if = "Option::is_none")]
    auth_time: Option<String>,
    /// When the session ends unless it is used after this, and in any case.
    #[serde(skip_serializing_if = "Option::is_none")]
    expires: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ends: Option<String>,
    /// Whether there is a provider to log in at, also for a fresh login.
    login: bool,
    /// Where a page leads to from a call to its trace.
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_url: Option<String>,
}

/// What may be done in an org.
#[derive(Debug, Serialize)]
struct Rights {
    org: OrgName,
    roles: Vec<Role>,
}

fn time(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Secs, true)
}

fn me(api: &Api, who: &Who, is_over: impl Fn(&OrgName) -> bool) -> Me {
    let orgs = api.access.orgs().iter().filter(|org| who.sees(org) && !is_over(org));
    let orgs = orgs.map(|org| Rights { org: org.clone(), roles: who.roles(org) }).collect();
    let seconds = |seconds: i64| DateTime::from_timestamp(seconds, 0).map(time);
    let session = who.session().map(|brought| &brought.session);
    Me {
        actor: who.actor().to_owned(),
        person: who.is_person(),
        way: who.way(),
        orgs,
        auth_time: who.auth_time().map(time),
        expires: who
            .session()
            .and_then(|brought| seconds(api.access.sessions.expires(brought, api.clock.now().timestamp()))),
        ends: session.and_then(|session| seconds(session.ends)),
        login: api.access.sessions.provider.is_some(),
        trace_url: api.access.trace_url.as_ref().map(|url| url.as_str().to_owned()),
    }
}

/// Says who the request is of.
pub(in crate::api) async fn get(State(api): State<Arc<Api>>, request: Request) -> Result<Response, Problem> {
    let who = Who::asked(request.extensions());
    // A page that finds nobody is told what it can offer.
    let offer = |problem: Problem| problem.member("login", api.access.sessions.provider.is_some());
    let who = who.map_err(offer)?;
    let mut over = Vec::new();
    if let Some(brought) = who.session() {
        let own: Vec<OrgName> = who.own_orgs().cloned().collect();
        let standing = api.plane.session_stands(brought.mark(), &own).await?.ok_or_else(ended).map_err(offer)?;
        over = own.into_iter().filter(|org| !standing.contains(org)).collect();
        if standing.is_empty() && !who.grants().iter().any(|granted| granted.org == OrgScope::All) {
            return Err(offer(ended()));
        }
    }
    let me = me(&api, &who, |org| over.contains(org));
    Ok(([(CACHE_CONTROL, NO_STORE)], Json(me)).into_response())
}

/// A token to begin a session by.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Pasted {
    token: String,
}

/// Begins a session by a token.
pub(in crate::api) async fn post(
    State(api): State<Arc<Api>>,
    place: Option<Extension<Place>>,
    from: Option<Extension<ConnectInfo<SocketAddr>>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let Some(Extension(place)) = place else {
        let detail = "a session is for browsers: send the token in the body, and no Authorization header";
        return Err(Problem::new(StatusCode::BAD_REQUEST, "invalid_request", detail));
    };
    let advice = r#"send a token as JSON: {"token": "…"}"#;
    let Pasted { token } = read(&api, &headers, body, advice).await?;
    if api.access.is_open() {
        let detail = "nobody is asked for a token here: there are none";
        return Err(Problem::new(StatusCode::CONFLICT, "session_not_needed", detail));
    }
    if Cookie::Session.name(&place).is_none() {
        return Err(tls_required());
    }
    let who = api.access.configured(&TokenHash::of(&token))?;
    let mut roles = who.grants().iter().flat_map(|granted| &granted.roles);
    if roles.all(|role| *role == Role::Ingest) {
        let detail = "this token is for sending in; there is nothing that a session could show by it";
        return Err(Problem::new(StatusCode::FORBIDDEN, "session_refused", detail));
    }
    let now = api.clock.now().timestamp();
    let beginning = Beginning {
        caller: who.actor().to_owned(),
        by: By::Token { hash: TokenHash::of(&token) },
        auth_time: Some(now),
        grants: who.grants().to_vec(),
        detail: Map::from_iter([("by".to_owned(), json!("token")), ("token".to_owned(), json!(who.label()))]),
        from: from.map(|Extension(ConnectInfo(address))| address),
    };
    let (cookie, session) = api.begin_session(&place, beginning).await?;
    let me = me(&api, &who.by_session(Brought::begun(session)), |_| false);
    Ok(([(CACHE_CONTROL, NO_STORE), (SET_COOKIE, cookie)], Json(me)).into_response())
}

/// Ends the session that the request brings, if it brings one, on every node.
pub(in crate::api) async fn delete(State(api): State<Arc<Api>>, request: Request) -> Result<Response, Problem> {
    let (who, place) = (Who::asked(request.extensions()), request.extensions().get::<Place>().cloned());
    if let Some(brought) = who.as_ref().ok().and_then(Who::session)
        && api.plane.session_stands(brought.mark(), &[]).await?.is_some()
    {
        api.plane.end_session(brought.mark(), brought.session.ends).await?;
    }
    let mut response = (StatusCode::NO_CONTENT, [(CACHE_CONTROL, NO_STORE)]).into_response();
    let cleared = place.and_then(|place| Cookie::Session.clear(&place));
    response.headers_mut().extend(cleared.map(|cookie| (SET_COOKIE, cookie)));
    Ok(response)
}

/// Whose sessions are to end.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Revocation {
    #[serde(default)]
    caller: Option<CallerName>,
}

/// Ends sessions of others.
pub(in crate::api) async fn revoke(
    State(api): State<Arc<Api>>,
    Path(org): Path<String>,
    who: Who,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let org = api.allow(&who, &org, Role::Operator).await?;
    let advice = r#"send whose sessions are to end, as JSON: {"caller": "user:…"}, or {} for all"#;
    let Revocation { caller } = read(&api, &headers, body, advice).await?;
    let caller = caller.as_ref().map(CallerName::as_str);
    let not_before = api.plane.revoke_sessions(&org, who.actor(), caller).await?;
    let not_before = not_before.to_rfc3339_opts(SecondsFormat::Micros, true);
    Ok(Json(json!({ "not_before": not_before, "caller": caller })).into_response())
}

/// A small body of JSON.
async fn read<T: DeserializeOwned>(
    api: &Api,
    headers: &HeaderMap,
    body: Body,
    advice: &'static str,
) -> Result<T, Problem> {
    let deadline = Instant::now() + api.limits.request_timeout.as_duration();
    let mut body = Incoming::new(headers, body);
    let mut admission = api.plane.admit(body.announced().filter(|announced| *announced <= BODY).unwrap_or(0)).await?;
    let body = body.read(BODY, deadline, |bytes| Ok(admission.grow_to(bytes)?)).await?;
    // What was sent may be a token: nothing of it is told.
    parse(&body).map_err(|_| Problem::new(StatusCode::BAD_REQUEST, "invalid_request", advice))
}
