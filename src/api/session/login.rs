//! To the provider and back.
//!
//! What a login is known by when it comes back stands in a sealed cookie of its own, for ten minutes and one return.
//! The provider sends people back to `public_url`, whatever host the request named; the page they go on to is a path of
//! ours. An error of a login leads to `/?login_error=<code>`: a person sees it, not a program.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{ConnectInfo, Extension, RawQuery, State};
use axum::http::header::{CACHE_CONTROL, LOCATION, REFERRER_POLICY, SET_COOKIE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, json};
use url::Url;

use super::content::{Age, By, MOST_GRANTS};
use super::cookie::Cookie;
use super::oidc::{Login, OidcError, Person, Prompt, Provider, Returned};
use super::routes::NO_STORE;
use super::{Beginning, stored};
use crate::api::site::Place;
use crate::api::who::granted;
use crate::api::{Api, Problem};

/// How long a login may take, in seconds.
const LOGIN: i64 = 600;
/// The longest path to go on to.
const MAX_PATH: usize = 2_048;

/// Sends the browser to the provider.
pub(in crate::api) async fn login(
    State(api): State<Arc<Api>>,
    place: Option<Extension<Place>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let provider = provider(&api)?;
    let here = public(&api, place.map(|Extension(place)| place))?;
    let (mut return_to, mut prompt) = ("/".to_owned(), Prompt::Any);
    for (name, value) in url::form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
        match (&*name, &*value) {
            ("return_to", path) => return_to = own_path(&here, path).ok_or_else(invalid_path)?,
            ("prompt", "login") => prompt = Prompt::Login,
            _ => {
                let detail =
                    "there are two parameters: return_to, a path, and prompt, which is `login` where it is given";
                return Err(Problem::new(StatusCode::BAD_REQUEST, "invalid_parameter", detail));
            }
        }
    }
    // A session that was in use until it expired is renewed without asking the person, if the provider still knows
    // them.
    let spent = api.access.sessions.any(&here, &headers, api.clock.now().timestamp());
    if prompt == Prompt::Any && spent.is_some_and(|brought| brought.age == Age::Spent) {
        prompt = Prompt::None;
    }
    to_provider(&api, provider, &here, return_to, prompt).await
}

/// Takes the browser back from the provider.
pub(in crate::api) async fn callback(
    State(api): State<Arc<Api>>,
    place: Option<Extension<Place>>,
    from: Option<Extension<ConnectInfo<SocketAddr>>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let provider = provider(&api)?;
    let here = public(&api, place.map(|Extension(place)| place))?;
    let returned = Returned::parse(&query.unwrap_or_default());
    let now = api.clock.now().timestamp();
    let begun = begun(&api, &here, &headers);
    let begun =
        begun.filter(|login| now < login.begun.saturating_add(LOGIN) && returned.state.as_ref() == Some(&login.state));
    let Some(login) = begun else {
        tracing::info!("a login came back that did not begin here, or too long ago");
        return Ok(failed(&here, "login_expired"));
    };
    let person = match provider.finish(&login, &returned, &redirect_uri(&here), now).await {
        Ok(person) => person,
        Err(error) if login.prompt == Prompt::None && error.wants_to_ask() => {
            return to_provider(&api, provider, &here, login.return_to, Prompt::Any).await;
        }
        Err(error) => {
            log(&error);
            return Ok(failed(&here, error.code()));
        }
    };
    let Person { caller, claims, subject, auth_time } = person;
    let grants = granted(&api.access.grants, provider.issuer(), &claims);
    if grants.is_empty() {
        tracing::info!(caller = %caller.name(), "someone logged in whose claims open no org");
        return Ok(failed(&here, "no_access"));
    }
    let Some(kept) = stored(&grants) else {
        let detail = format!(
            "your rights are more than the {MOST_GRANTS} bytes that a session holds; an operator can grant fewer orgs, or one of \"*\""
        );
        return Err(Problem::new(StatusCode::FORBIDDEN, "too_many_rights", detail));
    };
    let beginning = Beginning {
        caller: caller.name().as_str().to_owned(),
        detail: Map::from_iter([
            ("by".to_owned(), json!("oidc")),
            ("issuer".to_owned(), json!(provider.issuer())),
            ("subject".to_owned(), json!(subject)),
        ]),
        by: By::Oidc { issuer: provider.issuer().to_owned(), subject, grants: kept },
        auth_time,
        grants,
        from: from.map(|Extension(ConnectInfo(address))| address),
    };
    let (cookie, _) = api.begin_session(&here, beginning).await?;
    let mut response = redirect(&format!("{}{}", here.origin(), login.return_to), Cookie::Login.clear(&here));
    response.headers_mut().append(SET_COOKIE, cookie);
    Ok(response)
}

/// Nobody is let in, and an operator reads why.
fn log(error: &OidcError) {
    match error {
        OidcError::Provider(_) => tracing::error!(%error, "nobody can log in"),
        OidcError::Mismatch(_) | OidcError::Refused(_) | OidcError::Token(_) => {
            tracing::warn!(%error, "a login failed")
        }
    }
}

fn provider(api: &Api) -> Result<&Provider, Problem> {
    let detail = "no provider is configured to log in at (identity.oidc); begin a session by a token";
    let none = || Problem::new(StatusCode::NOT_FOUND, "login_not_configured", detail);
    api.access.sessions.provider.as_ref().ok_or_else(none)
}

/// The place that the provider sends people back to, which the request must be at: the cookie is of it.
fn public(api: &Api, place: Option<Place>) -> Result<Place, Problem> {
    let public = api.access.site.public().ok_or_else(Problem::internal)?;
    if place.as_ref() == Some(public) {
        return Ok(public.clone());
    }
    let detail = format!("people log in at {}, where the provider sends them back to; go there", public.origin());
    Err(Problem::new(StatusCode::MISDIRECTED_REQUEST, "login_elsewhere", detail))
}

fn redirect_uri(here: &Place) -> String {
    format!("{}/v1/session/callback", here.origin())
}

async fn to_provider(
    api: &Api,
    provider: &Provider,
    here: &Place,
    return_to: String,
    prompt: Prompt,
) -> Result<Response, Problem> {
    let sessions = &api.access.sessions;
    let now = api.clock.now().timestamp();
    let (login, url) = match provider.begin(&redirect_uri(here), return_to, prompt, now).await {
        Ok(begun) => begun,
        Err(error) => {
            log(&error);
            return Ok(failed(here, error.code()));
        }
    };
    let sealed = (|| {
        let text = serde_json::to_vec(&login).ok()?;
        let sealed = sessions.sealer.seal(&Cookie::Login.name(here)?, &here.origin(), &text)?;
        Cookie::Login.set(here, &sealed, u64::try_from(LOGIN).ok())
    })();
    let cookie = sealed.ok_or_else(Problem::internal)?;
    Ok(redirect(url.as_str(), Some(cookie)))
}

/// The login that comes back, as its cookie has it.
fn begun(api: &Api, here: &Place, headers: &HeaderMap) -> Option<Login> {
    let name = Cookie::Login.name(here)?;
    let values = Cookie::Login.values(here, headers);
    let sealer = &api.access.sessions.sealer;
    let opened = values.into_iter().find_map(|value| sealer.open(&name, &here.origin(), value))?;
    serde_json::from_slice(&opened).ok()
}

/// Leads to the page that says so.
fn failed(here: &Place, code: &str) -> Response {
    redirect(&format!("{}/?login_error={code}", here.origin()), Cookie::Login.clear(here))
}

fn redirect(to: &str, cookie: Option<HeaderValue>) -> Response {
    let no_referrer = HeaderValue::from_static("no-referrer");
    let Ok(location) = HeaderValue::try_from(to) else { return Problem::internal().into_response() };
    let headers = [(LOCATION, location), (CACHE_CONTROL, NO_STORE), (REFERRER_POLICY, no_referrer)];
    let mut response = (StatusCode::SEE_OTHER, headers).into_response();
    response.headers_mut().extend(cookie.map(|cookie| (SET_COOKIE, cookie)));
    response
}

fn invalid_path() -> Problem {
    let detail =
        "return_to is a path of this control plane's own: it begins with one `/`, and neither with `//` nor with `/\\`";
    Problem::new(StatusCode::BAD_REQUEST, "invalid_parameter", detail)
}

/// A path, query and fragment of ours, as a browser would understand it; none if it leads elsewhere.
fn own_path(here: &Place, path: &str) -> Option<String> {
    let begins = path.starts_with('/') && !path.starts_with("//") && !path.starts_with("/\\");
    if !begins || path.len() > MAX_PATH || path.chars().any(char::is_control) {
        return None;
    }
    let base = Url::parse(&here.origin()).ok()?;
    let url = base.join(path).ok().filter(|url| url.origin() == base.origin())?;
    let own = url.as_str().strip_prefix(base.as_str().trim_end_matches('/'))?;
    (own.starts_with('/') && !own.starts_with("//")).then(|| own.to_owned())
}

#[cfg(test)]
mod tests {
    use super::own_path;
    use crate::api::site::Site;
    use crate::config::ControlPlane;

    #[test]
    fn a_login_leads_back_to_a_path_of_ours_and_nowhere_else() {
        let text = "public_url: https://mcpg.example:8443";
        let site = Site::new(&ControlPlane::parse("f", text, &|_| None).unwrap(), 1);
        let here = site.public().unwrap();
        for own in ["/", "/ledger?org=acme&from=now-1h#x", "/calls/01?q=//evil.example"] {
            assert_eq!(own_path(here, own).as_deref(), Some(own));
        }
        assert_eq!(own_path(here, "/a/../b").as_deref(), Some("/b"));
        for evil in [
            "",
            "//evil",
            "/\\evil",
            "/\t/evil",
            "\t//evil",
            "/\n/evil",
            "https://evil",
            "evil",
            "\\\\evil",
            "/.//evil",
            "javascript:alert(1)",
            "/x\r\nset-cookie: a=b",
            &format!("/{}", "a".repeat(3_000)),
        ] {
            assert_eq!(own_path(here, evil), None, "{evil:?}");
        }
    }
}
