//! A client of the HTTP API, as plain as a test wants it.

use std::time::{Duration, Instant};

use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::{Exposition, plain_http};

/// A response, read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{}: no JSON: {e}: {}", self.status, self.text()))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The stable `code` of a problem document; fails unless the answer is a whole problem document.
    #[track_caller]
    pub(crate) fn problem(&self) -> String {
        assert_eq!(self.header("content-type"), "application/problem+json", "{}: {}", self.status, self.text());
        let problem = self.json();
        assert_eq!(problem["status"], self.status.as_u16(), "{problem}");
        for member in ["type", "title", "detail", "code"] {
            assert!(problem[member].as_str().is_some_and(|text| !text.is_empty()), "no {member}: {problem}");
        }
        problem["code"].as_str().unwrap().to_owned()
    }

    /// The body of a 200; fails with the reason otherwise.
    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        assert_eq!(self.status, StatusCode::OK, "{}", self.text());
        self
    }
}

/// A client of one control plane, for one org.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    base: String,
    org: String,
    token: Option<String>,
}

impl Client {
    pub(crate) fn new(base: &str) -> Self {
        let http = plain_http().timeout(Duration::from_secs(90)).build().unwrap();
        Self { http, base: base.to_owned(), org: "default".to_owned(), token: None }
    }

    /// The base URL that it asks at.
    pub(crate) fn base(&self) -> &str {
        &self.base
    }

    pub(crate) fn with_token(&self, token: &str) -> Self {
        Self { token: Some(token.to_owned()), ..self.clone() }
    }

    pub(crate) fn with_org(&self, org: &str) -> Self {
        Self { org: org.to_owned(), ..self.clone() }
    }

    /// Gives up on an answer after `limit`.
    pub(crate) fn with_timeout(&self, limit: Duration) -> Self {
        let http = plain_http().timeout(limit).build().unwrap();
        Self { http, ..self.clone() }
    }

    /// Any request; a path that starts with `/` is the server's, another one is the org's.
    ///
    /// # Errors
    /// When there is no whole answer: refused, reset, cut off or out of time.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(HeaderName, &str)],
        body: Vec<u8>,
    ) -> reqwest::Result<Answer> {
        let (answer, broken_off) = read(self.request(method, path, headers, body).send().await?).await;
        broken_off.map_or(Ok(answer), Err)
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        headers: &[(HeaderName, &str)],
        body: Vec<u8>,
    ) -> reqwest::RequestBuilder {
        let url = match path.strip_prefix('/') {
            Some(path) => format!("{}/{path}", self.base),
            None => format!("{}/v1/orgs/{}/{path}", self.base, self.org),
        };
        let mut request = self.http.request(method, url).body(body);
        for (name, value) in headers {
            request = request.header(name, *value);
        }
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        request
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], Vec::new()).await.unwrap()
    }

    pub(crate) async fn get_as(&self, path: &str, accept: &str) -> Answer {
        self.send(Method::GET, path, &[(ACCEPT, accept)], Vec::new()).await.unwrap()
    }

    /// `Some` once the control plane says it is ready.
    pub(crate) async fn ready(&self) -> Option<()> {
        let answer = self.send(Method::GET, "/readyz", &[], Vec::new()).await.ok()?;
        answer.status.is_success().then_some(())
    }

    /// Whether anything good is answered at a path.
    pub(crate) async fn answers(&self, path: &str) -> bool {
        self.send(Method::GET, path, &[], Vec::new()).await.is_ok_and(|answer| answer.status.is_success())
    }

    /// Posts a body of samples.
    ///
    /// # Errors
    /// When there is no whole answer.
    pub(crate) async fn try_post(
        &self,
        media: &str,
        encoding: Option<&str>,
        key: Option<&str>,
        body: Vec<u8>,
    ) -> reqwest::Result<Answer> {
        let mut headers = vec![(CONTENT_TYPE, media)];
        headers.extend(encoding.map(|encoding| (CONTENT_ENCODING, encoding)));
        headers.extend(key.map(|key| (HeaderName::from_static("idempotency-key"), key)));
        self.send(Method::POST, "invocations", &headers, body).await
    }

    /// Posts NDJSON and has it acknowledged; gives back `(accepted, duplicate)`.
    pub(crate) async fn post(&self, body: Vec<u8>, key: Option<&str>) -> (u64, bool) {
        let answer = self.try_post("application/x-ndjson", None, key, body).await.unwrap().ok().json();
        (answer["accepted"].as_u64().unwrap(), answer["duplicate"].as_bool().unwrap())
    }

    /// Asks SQL, in the result format `accept`.
    pub(crate) async fn sql_as(&self, query: &str, params: Value, accept: &str) -> Answer {
        let body = json!({"query": query, "params": params}).to_string().into_bytes();
        let headers = [(CONTENT_TYPE, "application/json"), (ACCEPT, accept)];
        self.send(Method::POST, "sql", &headers, body).await.unwrap()
    }

    /// Asks SQL as JSON: the rows and columns, or the code and text of what it was refused for, be it in the status or,
    /// once rows were sent, in a last member of an answer that is then broken off.
    pub(crate) async fn sql_outcome(&self, query: &str, params: Value) -> Result<Value, (String, String)> {
        let body = json!({"query": query, "params": params}).to_string().into_bytes();
        let headers = [(CONTENT_TYPE, "application/json"), (ACCEPT, "application/json")];
        let response = self.request(Method::POST, "sql", &headers, body).send().await.unwrap();
        let (answer, broken_off) = read(response).await;
        if !answer.status.is_success() {
            return Err((answer.problem(), answer.text()));
        }
        let document = answer.json();
        match document["error"]["code"].as_str() {
            Some(code) => Err((code.to_owned(), document["error"].to_string())),
            None => {
                assert!(broken_off.is_none(), "{query}: broken off without a word: {broken_off:?}");
                Ok(document)
            }
        }
    }

    /// The rows of an SQL query.
    pub(crate) async fn sql(&self, query: &str) -> Vec<Vec<Value>> {
        rows(query, &self.sql_as(query, json!([]), "application/json").await)
    }

    /// The same as [`Self::sql`], of a node that may still be loading the org: it asks again when it is told to.
    pub(crate) async fn sql_once_loaded(&self, query: &str) -> Vec<Vec<Value>> {
        rows(query, &once_loaded(async || self.sql_as(query, json!([]), "application/json").await).await)
    }

    /// The one number that an SQL query answers with.
    pub(crate) async fn number(&self, query: &str) -> i64 {
        let rows = self.sql(query).await;
        rows[0][0].as_i64().unwrap_or_else(|| panic!("{query}: no whole number: {rows:?}"))
    }

    /// Samples stored.
    pub(crate) async fn count(&self) -> i64 {
        self.number("SELECT count(*) FROM tool_invocations").await
    }

    /// The same as [`Self::get`], of a node that may still be loading the org: it asks again when it is told to.
    pub(crate) async fn get_once_loaded(&self, path: &str) -> Answer {
        once_loaded(async || self.get(path).await).await
    }

    /// The same as [`Self::metrics`], of a node that may still be loading the org: it asks again when it is told to.
    pub(crate) async fn metrics_once_loaded(&self) -> Exposition {
        Exposition::parse(&self.get_once_loaded("metrics?granularity=hour").await.ok().text())
    }

    /// The org's metrics, in text.
    pub(crate) async fn metrics(&self) -> Exposition {
        Exposition::parse(&self.get("metrics?granularity=hour").await.ok().text())
    }
}

/// Asks again for as long as the answer is that the org, or the log, is not loaded yet. What is refused for any other
/// reason, an org that is stopped above all, is an answer.
async fn once_loaded(mut ask: impl AsyncFnMut() -> Answer) -> Answer {
    let began = Instant::now();
    loop {
        let answer = ask().await;
        let is_passing = answer.status == StatusCode::SERVICE_UNAVAILABLE
            && ["unavailable", "busy"].contains(&answer.problem().as_str());
        if !is_passing || began.elapsed() > Duration::from_secs(90) {
            return answer;
        }
        tokio::time::sleep(Duration::from_secs(answer.header("retry-after").parse().unwrap())).await;
    }
}

/// The rows of an answer to a query.
fn rows(query: &str, answer: &Answer) -> Vec<Vec<Value>> {
    assert_eq!(answer.status, StatusCode::OK, "{query}: {}", answer.text());
    serde_json::from_value(answer.json()["rows"].clone()).unwrap()
}

/// Reads an answer as far as it comes; also says how it was broken off, if it was.
async fn read(mut response: reqwest::Response) -> (Answer, Option<reqwest::Error>) {
    let mut answer = Answer { status: response.status(), headers: response.headers().clone(), body: Vec::new() };
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) => answer.body.extend_from_slice(&chunk),
            Ok(None) => return (answer, None),
            Err(e) => return (answer, Some(e)),
        }
    }
}
