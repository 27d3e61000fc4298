//! What of a browser a door can tell: cookies that know hosts and no ports, `SameSite` over a chain of redirects,
//! `Origin`, `Sec-Fetch-Site`.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, COOKIE, HOST, LOCATION, SET_COOKIE};
use reqwest::{Method, Url};
use serde_json::Value;

use crate::harness::{Answer, eventually, plain_http};

#[derive(Debug, Clone)]
struct Cookie {
    host: String,
    path: String,
    name: String,
    value: String,
    strict: bool,
}

/// A browser with its cookies. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct Browser {
    http: reqwest::Client,
    jar: Arc<Mutex<Vec<Cookie>>>,
    /// Where requests go whatever host they are for: a node behind a balancer.
    node: Option<String>,
}

impl Browser {
    pub(super) fn new() -> Self {
        Self::over(plain_http())
    }

    /// One that trusts further authorities, say.
    pub(super) fn over(http: reqwest::ClientBuilder) -> Self {
        let none = reqwest::redirect::Policy::none();
        let http = http.no_proxy().redirect(none).timeout(Duration::from_secs(60)).build().unwrap();
        Self { http, jar: Arc::default(), node: None }
    }

    /// The same browser, whose requests a balancer sends to this node.
    pub(super) fn balanced_to(&self, node: &str) -> Self {
        Self { node: Some(node.to_owned()), ..self.clone() }
    }

    /// Another browser with a copy of the cookies: a thief's.
    pub(super) fn stolen(&self) -> Self {
        Self { jar: Arc::new(Mutex::new(self.jar.lock().unwrap().clone())), ..self.clone() }
    }

    /// The names of the cookies that it has for a host.
    pub(super) fn cookies(&self, host: &str) -> Vec<String> {
        self.jar.lock().unwrap().iter().filter(|cookie| cookie.host == host).map(|cookie| cookie.name.clone()).collect()
    }

    /// One request; `sites` are the hosts that it comes from, empty where it was typed in.
    async fn send(
        &self,
        method: Method,
        url: &Url,
        sites: &[String],
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Answer {
        let host = url.host_str().unwrap().to_owned();
        let same_site = sites.iter().all(|site| *site == host);
        let cookies: Vec<String> = {
            let jar = self.jar.lock().unwrap();
            let sent = jar.iter().filter(|cookie| {
                cookie.host == host && url.path().starts_with(&cookie.path) && (same_site || !cookie.strict)
            });
            sent.map(|cookie| format!("{}={}", cookie.name, cookie.value)).collect()
        };
        let target = match &self.node {
            Some(node) => format!("{node}{}{}", url.path(), url.query().map(|q| format!("?{q}")).unwrap_or_default()),
            None => url.to_string(),
        };
        let mut request = self.http.request(method, target).body(body);
        if self.node.is_some() {
            request = request.header(HOST, url[url::Position::BeforeHost..url::Position::AfterPort].to_owned());
        }
        if !cookies.is_empty() {
            request = request.header(COOKIE, cookies.join("; "));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.send().await.unwrap();
        for line in response.headers().get_all(SET_COOKIE) {
            self.keep(&host, line.to_str().unwrap());
        }
        let (status, headers) = (response.status(), response.headers().clone());
        Answer { status, headers, body: response.bytes().await.unwrap().to_vec() }
    }

    fn keep(&self, host: &str, line: &str) {
        let mut parts = line.split(';').map(str::trim);
        let (name, value) = parts.next().unwrap().split_once('=').unwrap();
        let attributes: Vec<String> = parts.map(str::to_ascii_lowercase).collect();
        let path = attributes.iter().find_map(|attribute| attribute.strip_prefix("path=")).unwrap_or("/").to_owned();
        let gone = attributes
            .iter()
            .any(|attribute| attribute == "max-age=0" || attribute.starts_with("expires=thu, 01 jan 1970"));
        let mut jar = self.jar.lock().unwrap();
        jar.retain(|cookie| !(cookie.host == host && cookie.name == name && cookie.path.eq_ignore_ascii_case(&path)));
        if !gone {
            let strict = attributes.contains(&"samesite=strict".to_owned());
            // Paths of the provider hold ids in upper case.
            let path = line
                .split(';')
                .map(str::trim)
                .find_map(|part| part.strip_prefix("Path=").or(part.strip_prefix("path=")));
            let path = path.unwrap_or("/").to_owned();
            jar.push(Cookie { host: host.to_owned(), path, name: name.to_owned(), value: value.to_owned(), strict });
        }
    }

    /// Follows a link on a page of `from`, or what was typed in; and all redirects, to the page where they end.
    pub(super) async fn follow(&self, url: &str, from: Option<&str>) -> (Url, Answer) {
        self.navigate(Method::GET, Url::parse(url).unwrap(), from, Vec::new()).await
    }

    /// Sends a form of a page of the same origin, and follows the redirects.
    pub(super) async fn submit(&self, url: &Url, form: &str) -> (Url, Answer) {
        let origin = url.origin().ascii_serialization();
        self.navigate(Method::POST, url.clone(), Some(&origin), form.as_bytes().to_vec()).await
    }

    async fn navigate(&self, mut method: Method, mut url: Url, from: Option<&str>, mut body: Vec<u8>) -> (Url, Answer) {
        let host = |url: &Url| url.host_str().unwrap().to_owned();
        let mut sites: Vec<String> = from.map(|from| host(&Url::parse(from).unwrap())).into_iter().collect();
        let mut origins: Vec<String> = from.map(str::to_owned).into_iter().collect();
        for _ in 0..20 {
            let origin = url.origin().ascii_serialization();
            let fetched_from = match () {
                () if origins.is_empty() => "none",
                () if origins.iter().all(|from| *from == origin) => "same-origin",
                () if sites.iter().all(|site| *site == host(&url)) => "same-site",
                () => "cross-site",
            };
            let mut headers = vec![("sec-fetch-site", fetched_from)];
            if method == Method::POST {
                headers.extend([("origin", origin.as_str()), ("content-type", "application/x-www-form-urlencoded")]);
            }
            let answer = self.send(method, &url, &sites, &headers, body).await;
            let Some(location) = answer.headers.get(LOCATION) else { return (url, answer) };
            let next = url.join(location.to_str().unwrap()).unwrap();
            sites.push(host(&url));
            origins.push(origin);
            (method, url, body) = (Method::GET, next, Vec::new());
        }
        panic!("redirects without end, at {url}");
    }

    /// Where a link leads to at first.
    pub(super) async fn first(&self, url: &str, from: &str) -> Answer {
        let origin = Url::parse(url).unwrap().origin().ascii_serialization();
        let fetched_from = if origin == from { "same-origin" } else { "cross-site" };
        let sites = [Url::parse(from).unwrap().host_str().unwrap().to_owned()];
        self.send(Method::GET, &Url::parse(url).unwrap(), &sites, &[("sec-fetch-site", fetched_from)], Vec::new()).await
    }

    /// What a page of ours does: a `fetch` of the same origin.
    pub(super) async fn fetch(&self, method: Method, url: &str, body: Option<Value>) -> Answer {
        let origin = Url::parse(url).unwrap().origin().ascii_serialization();
        let mut headers = vec![("sec-fetch-site", "same-origin")];
        if method != Method::GET {
            headers.extend([
                ("origin", origin.as_str()),
                ("mcpg-csrf", "1"),
                (CONTENT_TYPE.as_str(), "application/json"),
            ]);
        }
        self.fetch_with(method, url, &headers, body).await
    }

    /// Any request by the browser from a page of the same site, with these headers.
    pub(super) async fn fetch_with(
        &self,
        method: Method,
        url: &str,
        headers: &[(&str, &str)],
        body: Option<Value>,
    ) -> Answer {
        let url = Url::parse(url).unwrap();
        let sites = [url.host_str().unwrap().to_owned()];
        let body = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
        self.send(method, &url, &sites, headers, body).await
    }

    /// Who the browser's session is of.
    pub(super) async fn me(&self, base: &str) -> Answer {
        self.fetch(Method::GET, &format!("{base}/v1/session"), None).await
    }

    /// Begins a session by a token, as the page does that asks for one.
    pub(super) async fn paste(&self, base: &str, token: &str) -> Answer {
        let body = serde_json::json!({ "token": token });
        self.fetch(Method::POST, &format!("{base}/v1/session"), Some(body)).await
    }

    /// Waits until the session is over, and says by which code.
    pub(super) async fn until_over(&self, base: &str) -> String {
        eventually("the session to be over", Duration::from_secs(60), async || {
            let answer = self.me(base).await;
            (answer.status == 401).then(|| answer.problem())
        })
        .await
    }
}
