//! What web pages may ask of a control plane, by requests that browsers make without a bearer token: with a session's
//! cookie, or where no token is required.
//!
//! A browser sends its cookies, and reaches this machine's own ports, whatever site the page is of that has it do so.
//! So:
//!
//! | a request without a bearer token | must |
//! |---|---|
//! | any | name a host that this control plane is reached at ([`Site`]), against DNS rebinding |
//! | that is not GET or HEAD | be of a page of exactly our origin, port included, and bear `Mcpg-Csrf: 1` |
//! | GET or HEAD under `/v1` | not be made by a page of another site; the way back from a provider is |
//!
//! `/healthz` and `/readyz` answer to any host: a kubelet's probes name the pod's address. So does `/metrics` where
//! tokens are asked for. Where tokens are not required, a bearer token opens nothing, and exempts from nothing. A
//! program sends neither `Origin` nor `Sec-Fetch-Site`, which every browser does; without a session's cookie it is
//! asked for neither of them nor for `Mcpg-Csrf`. No answer ever has a CORS header.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, HOST, ORIGIN};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::session::has_cookie;
use super::site::{Place, Site};
use super::{Api, Problem};

/// What reveals nothing of an org.
const HEALTH: [&str; 2] = ["/healthz", "/readyz"];
/// Sent to everyone where tokens are asked for.
const METRICS: &str = "/metrics";
/// Where people come back to from their provider: by a link of another site.
const CALLBACK: &str = "/v1/session/callback";
/// What a page of ours sends, and a form cannot.
const CSRF: HeaderName = HeaderName::from_static("mcpg-csrf");
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Lets a request through, or refuses it.
pub(super) async fn check(State(api): State<Arc<Api>>, mut request: Request, next: Next) -> Response {
    let asked = Asked {
        method: request.method(),
        path: request.uri().path(),
        authority: request.uri().authority().map(|authority| authority.as_str()),
        headers: request.headers(),
    };
    match asked.judge(&api.access.site, api.access.is_open()) {
        Ok(Some(place)) => {
            request.extensions_mut().insert(place);
        }
        Ok(None) => {}
        Err(problem) => return problem.into_response(),
    }
    next.run(request).await
}

/// What is looked at of a request.
struct Asked<'a> {
    method: &'a Method,
    path: &'a str,
    authority: Option<&'a str>,
    headers: &'a HeaderMap,
}

impl Asked<'_> {
    fn text(&self, name: &HeaderName) -> Option<&str> {
        self.headers.get(name).map(|value: &HeaderValue| value.to_str().unwrap_or_default())
    }

    /// The place that it came to, if that was looked at.
    fn judge(&self, site: &Site, open: bool) -> Result<Option<Place>, Problem> {
        let bearer = !open && self.headers.contains_key(AUTHORIZATION);
        if bearer || HEALTH.contains(&self.path) || (!open && self.path == METRICS) {
            return Ok(None);
        }
        // HTTP/2 names the host in the request line; HTTP/1.0 need not name one at all, and no browser speaks that.
        let Some(host) = self.text(&HOST).or(self.authority) else {
            return if has_cookie(self.headers) { Err(host_not_allowed("")) } else { Ok(None) };
        };
        let place = site.place(host).ok_or_else(|| host_not_allowed(host))?;
        let fetched_from = self.text(&FETCH_SITE);
        let across = fetched_from.is_some_and(|from| from != "same-origin" && from != "none");
        let origin = self.text(&ORIGIN);
        let foreign = origin.is_some_and(|origin| origin != place.origin());
        if self.method == Method::GET || self.method == Method::HEAD {
            let api = self.path.starts_with("/v1/") && self.path != CALLBACK;
            return if api && (foreign || across) { Err(origin_not_allowed()) } else { Ok(Some(place)) };
        }
        let program = origin.is_none() && fetched_from.is_none() && !has_cookie(self.headers);
        if program {
            return Ok(Some(place));
        }
        let nameless = origin.is_none_or(|origin| origin == "null");
        let own = if nameless { fetched_from == Some("same-origin") } else { !foreign && !across };
        if !own {
            return Err(origin_not_allowed());
        }
        if self.text(&CSRF) != Some("1") {
            let detail = "a page sends `Mcpg-Csrf: 1` with every request that is not GET or HEAD";
            return Err(Problem::new(StatusCode::FORBIDDEN, "csrf_header_missing", detail));
        }
        Ok(Some(place))
    }
}

fn host_not_allowed(host: &str) -> Problem {
    let host: String = host.chars().filter(|c| c.is_ascii_graphic()).take(253).collect();
    let detail = format!(
        "`{host}` is none of the hosts that a request without a bearer token may name; add it to allowed_hosts, or say public_url"
    );
    Problem::new(StatusCode::FORBIDDEN, "host_not_allowed", detail)
}

fn origin_not_allowed() -> Problem {
    let detail = "a page of another origin made this request; only pages of this control plane's own may";
    Problem::new(StatusCode::FORBIDDEN, "origin_not_allowed", detail)
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderMap, Method};

    use super::Asked;
    use crate::api::site::Site;
    use crate::config::ControlPlane;

    const HERE: (&str, &str) = ("host", "localhost:7843");
    const OURS: (&str, &str) = ("origin", "http://localhost:7843");
    const CSRF: (&str, &str) = ("mcpg-csrf", "1");
    const COOKIE: (&str, &str) = ("cookie", "a=b; mcpg-7843=sealed");

    fn code(open: bool, method: Method, path: &str, headers: &[(&'static str, &str)]) -> &'static str {
        let settings = ControlPlane::parse("f", "public_url: 'https://mcpg.example:8443'", &|_| None).unwrap();
        let headers: HeaderMap =
            headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        let asked = Asked { method: &method, path, authority: None, headers: &headers };
        asked.judge(&Site::new(&settings, 7843), open).map_or_else(|problem| problem.code(), |_| "ok")
    }

    fn get(headers: &[(&'static str, &str)]) -> &'static str {
        code(true, Method::GET, "/v1/orgs/a/metrics", headers)
    }

    fn post(headers: &[(&'static str, &str)]) -> &'static str {
        code(true, Method::POST, "/v1/orgs/a/sql", headers)
    }

    #[test]
    fn a_request_names_a_host_that_is_reached_here() {
        for open in [true, false] {
            for path in ["/", "/v1/orgs/a/metrics", "/openapi.json", "/v1/session"] {
                assert_eq!(
                    code(open, Method::GET, path, &[("host", "evil.example:7843")]),
                    "host_not_allowed",
                    "{path}"
                );
                assert_eq!(code(open, Method::GET, path, &[HERE]), "ok", "{path}");
            }
            for path in ["/healthz", "/readyz"] {
                assert_eq!(code(open, Method::GET, path, &[("host", "10.0.0.7:7843")]), "ok", "probes name addresses");
            }
        }
        let rebound = ("host", "evil.example:7843");
        assert_eq!(code(true, Method::GET, "/metrics", &[rebound]), "host_not_allowed");
        assert_eq!(code(false, Method::GET, "/metrics", &[rebound]), "ok");
    }

    #[test]
    fn a_bearer_token_exempts_where_tokens_are_asked_for_and_nowhere_else() {
        let headers = [("host", "mcpg.svc:7843"), ("authorization", "Bearer x"), ("origin", "http://evil.example")];
        assert_eq!(code(false, Method::POST, "/v1/orgs/a/sql", &headers), "ok");
        assert_eq!(code(true, Method::POST, "/v1/orgs/a/sql", &headers), "host_not_allowed");
    }

    #[test]
    fn what_a_page_changes_it_changes_from_our_very_origin_with_the_header_that_no_form_sends() {
        assert_eq!(post(&[HERE, OURS, CSRF, ("sec-fetch-site", "same-origin")]), "ok");
        assert_eq!(post(&[HERE, OURS, CSRF]), "ok");
        assert_eq!(post(&[HERE, OURS]), "csrf_header_missing");
        assert_eq!(post(&[HERE, CSRF, ("sec-fetch-site", "same-origin")]), "ok");
        assert_eq!(post(&[HERE, CSRF, ("origin", "null"), ("sec-fetch-site", "same-origin")]), "ok");
        for foreign in
            ["http://localhost:7951", "http://127.0.0.1:7843", "https://localhost:7843", "null", "", "file://"]
        {
            assert_eq!(post(&[HERE, CSRF, ("origin", foreign)]), "origin_not_allowed", "{foreign}");
            let same_site = ("sec-fetch-site", "same-site");
            assert_eq!(post(&[HERE, CSRF, ("origin", foreign), same_site]), "origin_not_allowed", "{foreign}");
        }
        for site in ["cross-site", "same-site", "none"] {
            assert_eq!(post(&[HERE, CSRF, ("sec-fetch-site", site)]), "origin_not_allowed", "{site}");
        }
        let public = [("host", "mcpg.example:8443"), CSRF];
        assert_eq!(post(&[public[0], CSRF, ("origin", "https://mcpg.example:8443")]), "ok");
        assert_eq!(post(&[public[0], CSRF, ("origin", "http://mcpg.example:8443")]), "origin_not_allowed");
    }

    #[test]
    fn a_program_says_nothing_of_pages_and_a_session_is_no_program() {
        assert_eq!(post(&[HERE]), "ok");
        assert_eq!(code(false, Method::POST, "/v1/orgs/a/sql", &[HERE]), "ok", "it is for authentication to refuse it");
        for open in [true, false] {
            let alone = code(open, Method::POST, "/v1/orgs/a/sql", &[HERE, COOKIE]);
            assert_eq!(alone, "origin_not_allowed");
            let without_header = code(open, Method::DELETE, "/v1/session", &[HERE, COOKIE, OURS]);
            assert_eq!(without_header, "csrf_header_missing");
        }
    }

    #[test]
    fn a_page_of_another_site_reads_nothing_and_links_lead_in() {
        for across in
            [("sec-fetch-site", "cross-site"), ("sec-fetch-site", "same-site"), ("origin", "http://localhost:1")]
        {
            assert_eq!(get(&[HERE, across]), "origin_not_allowed");
            assert_eq!(code(true, Method::GET, "/v1/session/login", &[HERE, across]), "origin_not_allowed");
            assert_eq!(code(true, Method::GET, "/v1/session/callback", &[HERE, across]), "ok");
            assert_eq!(code(true, Method::GET, "/ledger", &[HERE, across]), "ok", "a link from mail or an alert");
        }
        assert_eq!(get(&[HERE, ("sec-fetch-site", "none")]), "ok", "typed into the address bar");
    }
}
