//! What pages of other sites can have a browser do: nothing.

use reqwest::{Method, StatusCode};
use serde_json::json;

use super::browser::Browser;
use super::{READER, with_tokens};
use crate::harness::{Config, Server};

const QUERY: &str = "SELECT 1 AS one";
const JSON: (&str, &str) = ("content-type", "application/json");
const CSRF: (&str, &str) = ("mcpg-csrf", "1");

async fn sql(server: &Server, org: &str, browser: &Browser, headers: &[(&str, &str)]) -> (u16, String) {
    let url = format!("{}/v1/orgs/{org}/sql", server.url());
    let headers = [&[JSON][..], headers].concat();
    let answer = browser.fetch_with(Method::POST, &url, &headers, Some(json!({ "query": QUERY }))).await;
    let code = if answer.status.is_success() { String::new() } else { answer.problem() };
    (answer.status.as_u16(), code)
}

/// With a session's cookie, and where nobody is asked for anything.
#[tokio::test]
async fn a_page_of_another_port_another_site_or_no_origin_is_refused() {
    let (closed, open) = (with_tokens().start().await, Config::new().start().await);
    let session = Browser::new();
    session.paste(&closed.url(), READER).await.ok();
    for (server, org, browser) in [(&closed, "acme", &session), (&open, "default", &Browser::new())] {
        let own = server.url();
        assert_eq!(sql(server, org, browser, &[("origin", &own), CSRF]).await.0, 200);
        let missing = sql(server, org, browser, &[("origin", &own)]).await;
        assert_eq!(missing, (403, "csrf_header_missing".to_owned()));
        for origin in ["http://127.0.0.1:7951", "http://localhost:7951", "https://evil.example", "null"] {
            for site in ["same-site", "cross-site"] {
                let headers = [("origin", origin), CSRF, ("sec-fetch-site", site)];
                let refused = sql(server, org, browser, &headers).await;
                assert_eq!(refused, (403, "origin_not_allowed".to_owned()), "{origin} {site}");
            }
        }
        let url = format!("{own}/v1/orgs/{org}/metrics");
        let read = browser.fetch_with(Method::GET, &url, &[("sec-fetch-site", "same-site")], None).await;
        assert_eq!((read.status, read.problem().as_str()), (StatusCode::FORBIDDEN, "origin_not_allowed"));
        assert!(read.headers.keys().all(|name| !name.as_str().starts_with("access-control")), "{:?}", read.headers);
    }
    // A session is asked for an origin even where nothing else says that a browser sends.
    assert_eq!(sql(&closed, "acme", &session, &[]).await, (403, "origin_not_allowed".to_owned()));
    // A program is not.
    assert_eq!(sql(&open, "default", &Browser::new(), &[]).await.0, 200);
}

#[tokio::test]
async fn a_page_that_comes_by_a_name_of_its_own_is_refused() {
    let (closed, open) = (with_tokens().start().await, Config::new().start().await);
    for server in [&closed, &open] {
        let port = server.authority().split_once(':').unwrap().1.to_owned();
        let rebound = format!("http://evil.example:{port}");
        let browser = Browser::new().balanced_to(&server.url());
        for path in ["/", "/v1/session", "/v1/orgs/acme/metrics", "/openapi.json"] {
            let answer = browser.fetch(Method::GET, &format!("{rebound}{path}"), None).await;
            assert_eq!(
                (answer.status, answer.problem().as_str()),
                (StatusCode::FORBIDDEN, "host_not_allowed"),
                "{path}"
            );
            let told = answer.text();
            assert!(told.contains("evil.example") && told.contains("allowed_hosts"), "{told}");
        }
        let pasted = browser.paste(&rebound, READER).await;
        assert_eq!(pasted.problem(), "host_not_allowed", "logging a browser in is for our own pages, too");
        for path in ["/healthz", "/readyz"] {
            assert_eq!(
                browser.fetch(Method::GET, &format!("{rebound}{path}"), None).await.status,
                StatusCode::OK,
                "{path}"
            );
        }
        // A gateway or a Prometheus that comes by a service's name.
        let bearer = format!("Bearer {READER}");
        let url = format!("{rebound}/v1/orgs/acme/metrics");
        let named = browser.fetch_with(Method::GET, &url, &[("authorization", &bearer)], None).await;
        let own = browser.fetch(Method::GET, &format!("{rebound}/metrics"), None).await;
        if std::ptr::eq(server, &closed) {
            assert_eq!((named.status, own.status), (StatusCode::OK, StatusCode::OK));
        } else {
            assert_eq!(
                (named.status, own.status),
                (StatusCode::FORBIDDEN, StatusCode::FORBIDDEN),
                "there are no tokens"
            );
        }
    }
}

#[tokio::test]
async fn nobody_is_asked_for_a_session_where_nobody_is_asked_for_a_token() {
    let server = Config::new().start().await;
    let (base, browser) = (server.url(), Browser::new());
    let me = browser.me(&base).await.ok().json();
    assert_eq!((&me["actor"], &me["way"], &me["person"]), (&json!("anonymous"), &json!("open"), &json!(false)));
    assert_eq!(me["orgs"][0]["org"], "default");
    assert_eq!(browser.paste(&base, "any").await.problem(), "session_not_needed");
}
