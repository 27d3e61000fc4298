//! A client of MCP over Streamable HTTP, as plain as a test wants it: it sends what it is given, and shows what came
//! back.
//!
//! It answers no requests of a server's: what needs a whole client is tested with the official ones.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue};
use serde_json::{Value, json};

use super::plain_http;

/// The version of the protocol that it asks for.
const VERSION: &str = "2025-11-25";

/// A session.
#[derive(Debug)]
pub(crate) struct Mcp {
    http: reqwest::Client,
    url: String,
    headers: HeaderMap,
    next: AtomicU64,
    /// What the server said of itself.
    pub(crate) server: Value,
}

/// What came back for one request: the answer, and what was said before it on the same stream.
#[derive(Debug)]
pub(crate) struct Reply {
    /// The JSON-RPC message with `result` or `error`.
    pub(crate) message: Value,
    /// The messages before it.
    pub(crate) before: Vec<Value>,
}

impl Mcp {
    /// Opens a session; fails unless the server agrees to one.
    pub(crate) async fn connect(url: &str, headers: HeaderMap) -> Self {
        Self::try_connect(url, headers).await.unwrap_or_else(|(status, text)| panic!("{url}: {status}: {text}"))
    }

    /// Opens a session.
    ///
    /// # Errors
    /// The status and body of a refusal.
    pub(crate) async fn try_connect(url: &str, headers: HeaderMap) -> Result<Self, (StatusCode, String)> {
        Self { headers, ..Self::without_session(url) }.open().await
    }

    /// Opens one more session, over the same connections.
    pub(crate) async fn another(&self) -> Self {
        let (http, url, next) = (self.http.clone(), self.url.clone(), AtomicU64::new(1));
        let session = Self { http, url, headers: HeaderMap::new(), next, server: Value::Null };
        session.open().await.unwrap_or_else(|(status, text)| panic!("{status}: {text}"))
    }

    async fn open(mut self) -> Result<Self, (StatusCode, String)> {
        let client = json!({ "name": "mcpg-tests", "version": "1" });
        let params = json!({ "protocolVersion": VERSION, "capabilities": {}, "clientInfo": client });
        let hello = json!({ "jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params });
        let response = self.post(hello.to_string().into_bytes(), &HeaderMap::new()).await.unwrap();
        let status = response.status();
        let id = response.headers().get("mcp-session-id").cloned();
        let body = response.text().await.unwrap();
        let Some(result) = messages(&body).into_iter().find_map(|message| message.get("result").cloned()) else {
            return Err((status, body));
        };
        self.server = result;
        if let Some(id) = id {
            self.headers.insert("mcp-session-id", id);
        }
        self.headers.insert("mcp-protocol-version", HeaderValue::from_static(VERSION));
        self.notify("notifications/initialized", json!({})).await;
        Ok(self)
    }

    /// Posts a body as it is, with more headers.
    ///
    /// # Errors
    /// When there is no response: refused, reset, or out of time.
    pub(crate) async fn post(&self, body: Vec<u8>, headers: &HeaderMap) -> reqwest::Result<reqwest::Response> {
        let request = self.http.post(&self.url).header(CONTENT_TYPE, "application/json");
        let request = request.header(ACCEPT, "application/json, text/event-stream").headers(self.headers.clone());
        request.headers(headers.clone()).body(body).send().await
    }

    /// Sends a notification.
    pub(crate) async fn notify(&self, method: &str, params: Value) {
        let message = json!({ "jsonrpc": "2.0", "method": method, "params": params });
        let response = self.post(message.to_string().into_bytes(), &HeaderMap::new()).await.unwrap();
        assert_eq!(response.status(), StatusCode::ACCEPTED, "{method}");
    }

    /// Sends a request and reads to its answer.
    pub(crate) async fn request(&self, method: &str, params: Value) -> Reply {
        self.request_with(method, params, &HeaderMap::new()).await
    }

    /// Sends a request with more headers and reads to its answer.
    pub(crate) async fn request_with(&self, method: &str, params: Value, headers: &HeaderMap) -> Reply {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let message = json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params });
        let response = self.post(message.to_string().into_bytes(), headers).await.unwrap();
        let status = response.status();
        let body = response.text().await.unwrap();
        let mut before = messages(&body);
        let at = before.iter().position(|message| message["id"] == id && message.get("method").is_none());
        let at = at.unwrap_or_else(|| panic!("{method}: {status}: no answer: {body}"));
        Reply { message: before.remove(at), before }
    }

    /// Calls a tool.
    pub(crate) async fn call(&self, tool: &str, arguments: Value) -> Reply {
        self.request("tools/call", json!({ "name": tool, "arguments": arguments })).await
    }

    /// The names of all tools.
    pub(crate) async fn tools(&self) -> Vec<String> {
        let mut names = Vec::new();
        let mut cursor = Value::Null;
        loop {
            let params = if cursor.is_null() { json!({}) } else { json!({ "cursor": cursor }) };
            let result = self.request("tools/list", params).await.result();
            names.extend(
                result["tools"].as_array().unwrap().iter().map(|tool| tool["name"].as_str().unwrap().to_owned()),
            );
            cursor = result["nextCursor"].clone();
            if cursor.is_null() {
                return names;
            }
        }
    }

    /// From now on sends these headers in place of its own of the same names.
    pub(crate) fn act_as(&mut self, headers: &HeaderMap) {
        for (name, value) in headers {
            self.headers.insert(name, value.clone());
        }
    }

    /// A client that has opened no session.
    pub(crate) fn without_session(url: &str) -> Self {
        let http = plain_http().timeout(Duration::from_secs(90)).build().unwrap();
        let (next, server) = (AtomicU64::new(1), Value::Null);
        Self { http, url: url.to_owned(), headers: HeaderMap::new(), next, server }
    }

    /// The session's id.
    pub(crate) fn session_id(&self) -> HeaderValue {
        self.headers["mcp-session-id"].clone()
    }

    /// Opens the stream of what the server says by itself.
    pub(crate) async fn events(&self) -> Events {
        self.events_with(&HeaderMap::new()).await
    }

    /// Opens a stream with more headers, `last-event-id` say.
    pub(crate) async fn events_with(&self, headers: &HeaderMap) -> Events {
        let request = self.http.get(&self.url).header(ACCEPT, "text/event-stream");
        let response = request.headers(self.headers.clone()).headers(headers.clone()).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        Events::of(response)
    }

    /// Ends the session.
    pub(crate) async fn close(self) -> StatusCode {
        self.http.delete(&self.url).headers(self.headers.clone()).send().await.unwrap().status()
    }
}

impl Reply {
    /// The result; fails if it is an error.
    #[track_caller]
    pub(crate) fn result(&self) -> Value {
        self.message.get("result").cloned().unwrap_or_else(|| panic!("an error: {}", self.message))
    }

    /// The text of a tool's result; fails without one.
    #[track_caller]
    pub(crate) fn text(&self) -> String {
        let result = self.result();
        let text = result["content"][0]["text"].as_str();
        text.unwrap_or_else(|| panic!("no text: {}", self.message)).to_owned()
    }

    /// The error; fails if it is a result.
    #[track_caller]
    pub(crate) fn error(&self) -> Value {
        self.message.get("error").cloned().unwrap_or_else(|| panic!("no error: {}", self.message))
    }
}

/// A stream of what a server says by itself.
#[derive(Debug)]
pub(crate) struct Events {
    response: reqwest::Response,
    /// What came after the last whole line.
    text: String,
    seen: Vec<Value>,
}

impl Events {
    /// Of a response whose body is such a stream.
    pub(crate) fn of(response: reqwest::Response) -> Self {
        Self { response, text: String::new(), seen: Vec::new() }
    }

    /// The next message of a method.
    pub(crate) async fn next(&mut self, method: &str) -> Value {
        self.find(|message| message["method"] == method).await
    }

    /// Reads on to the first message that is looked for; fails if the stream ends before.
    pub(crate) async fn find(&mut self, is_it: impl Fn(&Value) -> bool) -> Value {
        loop {
            let chunk = self.response.chunk().await.unwrap();
            let chunk = chunk.unwrap_or_else(|| panic!("the stream ended: {:?}", self.seen));
            self.text.push_str(&String::from_utf8_lossy(&chunk));
            let Some(end) = self.text.rfind('\n') else { continue };
            let new = messages(&self.text.drain(..=end).collect::<String>());
            let found = new.iter().find(|message| is_it(message)).cloned();
            self.seen.extend(new);
            if let Some(found) = found {
                return found;
            }
        }
    }

    /// All messages so far.
    pub(crate) fn seen(&self) -> &[Value] {
        &self.seen
    }
}

/// The JSON-RPC messages of a body: one of JSON, or those of the events of a stream.
fn messages(body: &str) -> Vec<Value> {
    if let Ok(message) = serde_json::from_str(body) {
        return vec![message];
    }
    let data = body.lines().filter_map(|line| line.strip_prefix("data:"));
    data.filter_map(|data| serde_json::from_str(data.trim()).ok()).collect()
}
