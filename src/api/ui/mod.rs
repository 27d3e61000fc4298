//! The dashboard: the files that `build.rs` put into the binary, and the headers that they go out with.
//!
//! | path | gives |
//! |---|---|
//! | `/`, `/calls/{id}`, `/ledger`, `/lag`, `/sql`, `/status`, `/login` | `index.html`: the page reads the path |
//! | `/assets/{*path}`, `/favicon.svg` | a file; the names of `assets` hold a hash of the content and never change |
//!
//! The page and its files tell nothing of any org and need no token: what the page shows it asks of `/v1` as any client
//! does. Styles that scripts insert need the nonce of the page's own Content-Security-Policy, which is drawn anew for
//! each answer and stands in place of [`NONCE`]; so the page is not kept by any cache, and its files are for a year.
//! Files are compressed when the page is built, and unpacked for who takes no gzip.
//!
//! A binary that was built without the page says on `/` how to build it.

mod files;

use std::io::Read;

use axum::Router;
use axum::extract::Path;
use axum::http::header::{
    ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, VARY,
    X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use bytes::Bytes;
use flate2::read::GzDecoder;

use super::Problem;
use files::File;

/// What stands in `index.html` for the nonce of the answer.
const NONCE: &str = "__MCPG_NONCE__";

/// The paths that the page knows; `/calls/{id}` beside them.
const VIEWS: [&str; 6] = ["/", "/ledger", "/lag", "/sql", "/status", "/login"];

/// What is served in place of a page that was not built. It has no style, and needs none.
const NOT_BUILT: &str = "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>mcpg</title>\n\
    <h1>The dashboard is not in this binary</h1>\n\
    <p>It was built without Node. To have it, install Node 20.19 or newer and npm, then run <code>ui/build.sh</code> and build again; \
    <code>make demo</code> does both.</p>\n\
    <p>Everything else is here: <a href=\"/openapi.json\">the API</a>.</p>\n</html>\n";

const OPENER_POLICY: HeaderName = HeaderName::from_static("cross-origin-opener-policy");
const RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");
const NEVER: HeaderValue = HeaderValue::from_static("no-store");
const FOREVER: HeaderValue = HeaderValue::from_static("public, max-age=31536000, immutable");

/// The dashboard's routes.
pub(super) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let views = VIEWS.into_iter().fold(Router::new(), |router, path| router.route(path, get(page)));
    views
        .route("/calls/{id}", get(page))
        .route("/assets/{*path}", get(asset))
        .route("/favicon.svg", get(|headers: HeaderMap| async move { file("favicon.svg", &headers) }))
}

/// The page, with a nonce of its own.
async fn page() -> Response {
    let nonce = BASE64_STANDARD_NO_PAD.encode(rand::random::<[u8; 18]>());
    let html = files::find("index.html").and_then(text).map(|html| html.replace(NONCE, &nonce));
    let (status, html) = match html {
        Some(html) => (StatusCode::OK, html),
        None => (StatusCode::NOT_FOUND, NOT_BUILT.to_owned()),
    };
    let mut response = (status, [(CONTENT_TYPE, "text/html; charset=utf-8")], html).into_response();
    protect(response.headers_mut(), Some(&nonce));
    response.headers_mut().insert(CACHE_CONTROL, NEVER);
    response
}

async fn asset(Path(path): Path<String>, headers: HeaderMap) -> Result<Response, Problem> {
    file(&format!("assets/{path}"), &headers)
}

fn file(path: &str, headers: &HeaderMap) -> Result<Response, Problem> {
    let absent = || {
        let detail = format!("the dashboard has no file {path}; load the page again, it may be of another version");
        Problem::new(StatusCode::NOT_FOUND, "no_such_route", detail)
    };
    let file = files::find(path).ok_or_else(absent)?;
    let plain = file.gzip && !takes_gzip(headers);
    let bytes = if plain { unpacked(file).map(Bytes::from) } else { Some(Bytes::from_static(file.bytes)) };
    let mut response = bytes.ok_or_else(Problem::internal)?.into_response();
    let set = response.headers_mut();
    set.insert(CONTENT_TYPE, HeaderValue::from_static(media(path)));
    set.insert(VARY, HeaderValue::from_static("accept-encoding"));
    if file.gzip && !plain {
        set.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    set.insert(CACHE_CONTROL, if path.starts_with("assets/") { FOREVER } else { NEVER });
    protect(set, None);
    Ok(response)
}

/// Whether a client takes gzip: it is named, and not with a weight of zero.
fn takes_gzip(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(ACCEPT_ENCODING).into_iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).any(|coding| {
        let (name, weight) = coding.split_once(';').unwrap_or((coding, ""));
        let weight = weight.trim().strip_prefix("q=").map_or(Ok(1.0), str::parse::<f32>);
        name.trim().eq_ignore_ascii_case("gzip") && weight.is_ok_and(|weight| weight > 0.0)
    })
}

fn unpacked(file: &File) -> Option<Vec<u8>> {
    if !file.gzip {
        return Some(file.bytes.to_vec());
    }
    let mut bytes = Vec::new();
    GzDecoder::new(file.bytes).read_to_end(&mut bytes).ok().map(|_| bytes)
}

fn text(file: &File) -> Option<String> {
    unpacked(file).and_then(|bytes| String::from_utf8(bytes).ok())
}

fn media(path: &str) -> &'static str {
    match path.rsplit_once('.').map_or("", |(_, ending)| ending) {
        "js" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "svg" => "image/svg+xml",
        "html" => "text/html; charset=utf-8",
        "json" | "map" => "application/json",
        "woff2" => "font/woff2",
        _ => "application/octet-stream",
    }
}

/// The headers that keep the page to itself. A worker lives under the policy of its own file, so files have one too.
fn protect(headers: &mut HeaderMap, nonce: Option<&str>) {
    let nonce = nonce.map(|nonce| format!(" 'nonce-{nonce}'")).unwrap_or_default();
    let policy = format!(
        "default-src 'none'; script-src 'self'; style-src 'self'{nonce}; style-src-attr 'none'; img-src 'self' data:; font-src 'self'; \
         connect-src 'self'; worker-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    );
    if let Ok(policy) = HeaderValue::try_from(policy) {
        headers.insert(CONTENT_SECURITY_POLICY, policy);
    }
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(OPENER_POLICY, HeaderValue::from_static("same-origin"));
    headers.insert(RESOURCE_POLICY, HeaderValue::from_static("same-origin"));
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use axum::Router;
    use axum::body::{Body, to_bytes};
    use axum::http::header::{ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY};
    use axum::http::{HeaderMap, HeaderValue, Request};
    use axum::response::Response;
    use tower::ServiceExt;

    use super::{VIEWS, files, routes, takes_gzip};

    async fn get(path: &str, encoding: &'static str) -> Response {
        let request = Request::get(path).header(ACCEPT_ENCODING, encoding).body(Body::empty()).unwrap();
        routes::<()>().with_state(()).into_service().oneshot(request).await.unwrap()
    }

    #[tokio::test]
    async fn every_view_is_the_page_under_a_policy_with_a_nonce_of_its_own() {
        let mut nonces = HashSet::new();
        for path in VIEWS.into_iter().chain(["/calls/0190b5d2-0000-7000-8000-000000000000", "/"]) {
            let response = get(path, "").await;
            let policy = response.headers()[CONTENT_SECURITY_POLICY].to_str().unwrap().to_owned();
            assert_eq!(response.headers()[CACHE_CONTROL], "no-store", "{path}");
            let (_, rest) = policy.split_once("'nonce-").unwrap();
            let nonce = rest.split('\'').next().unwrap().to_owned();
            assert!(policy.starts_with("default-src 'none'; script-src 'self';"), "{policy}");
            let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
            let html = String::from_utf8(body.to_vec()).unwrap();
            assert!(!html.contains(super::NONCE), "{html}");
            assert!(files::FILES.is_empty() || html.contains(&nonce), "{html}");
            assert!(nonces.insert(nonce), "each answer has its own");
        }
    }

    #[tokio::test]
    async fn files_are_kept_for_ever_and_unpacked_for_who_takes_no_gzip() {
        for file in files::FILES.iter().filter(|file| file.path.starts_with("assets/")) {
            let path = format!("/{}", file.path);
            let packed = get(&path, "br, gzip;q=0.5").await;
            assert_eq!(packed.headers().contains_key(CONTENT_ENCODING), file.gzip, "{path}");
            assert!(packed.headers()[CACHE_CONTROL].to_str().unwrap().contains("immutable"));
            let plain = get(&path, "gzip;q=0").await;
            assert!(!plain.headers().contains_key(CONTENT_ENCODING), "{path}");
            assert!(plain.headers().contains_key(CONTENT_SECURITY_POLICY), "{path}");
            let bytes = to_bytes(plain.into_body(), 64 << 20).await.unwrap();
            assert!(!file.gzip || bytes.len() > file.bytes.len(), "{path}");
        }
        assert_eq!(get("/assets/none.js", "").await.status(), 404);
        assert_eq!(get("/assets/..%2findex.html", "").await.status(), 404);
    }

    #[test]
    fn gzip_is_sent_to_who_names_it() {
        let takes =
            |line: &'static str| takes_gzip(&HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static(line))]));
        for line in ["gzip", "br, GZIP", "deflate;q=1, gzip; q=0.1"] {
            assert!(takes(line), "{line}");
        }
        for line in ["", "br", "gzip;q=0", "gzip;q=0.0", "gzip;q=x", "xgzip"] {
            assert!(!takes(line), "{line}");
        }
    }

    #[test]
    fn routes_do_not_overlap_those_of_the_api() {
        let api =
            crate::api::routes().into_iter().fold(Router::new(), |router, (path, methods)| router.route(path, methods));
        let _ = api.merge(routes());
    }
}
