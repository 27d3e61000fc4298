//! An MCP client with as little of its own as can be: one request, one answer, on a connection that is kept.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::super::Result;

const VERSION: &str = "2025-11-25";
const MESSAGE: &str = "is anybody there?";

/// A session.
#[derive(Debug)]
pub(super) struct Client {
    http: reqwest::Client,
    url: String,
    headers: HeaderMap,
    next: AtomicU64,
}

impl Client {
    /// Opens a session.
    ///
    /// # Errors
    /// When it is refused.
    pub(super) async fn open(url: &str) -> Result<Self> {
        let http = reqwest::Client::builder().no_proxy().tcp_nodelay(true).build()?;
        Self::with(http, url).await
    }

    /// Opens one more, over the same pool of connections.
    ///
    /// # Errors
    /// When it is refused.
    pub(super) async fn another(&self) -> Result<Self> {
        Self::with(self.http.clone(), &self.url).await
    }

    async fn with(http: reqwest::Client, url: &str) -> Result<Self> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(ACCEPT, HeaderValue::from_static("application/json, text/event-stream"));
        let mut client = Self { http, url: url.to_owned(), headers, next: AtomicU64::new(1) };
        let info = json!({ "name": "bench", "version": "1" });
        let params = json!({ "protocolVersion": VERSION, "capabilities": {}, "clientInfo": info });
        let hello = json!({ "jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params });
        let answer = client.post(&hello).await?;
        let session = answer.headers().get("mcp-session-id").cloned();
        answer.bytes().await?;
        client.headers.insert("mcp-session-id", session.ok_or("no session was opened")?);
        client.headers.insert("mcp-protocol-version", HeaderValue::from_static(VERSION));
        client.post(&json!({ "jsonrpc": "2.0", "method": "notifications/initialized" })).await?;
        Ok(client)
    }

    /// Calls the tool; gives the time from sending the request to the end of the answer.
    ///
    /// # Errors
    /// When the answer is not the one expected.
    pub(super) async fn timed_call(&self) -> Result<Duration> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let params = json!({ "name": "echo", "arguments": { "message": MESSAGE } });
        let call = json!({ "jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params });
        let began = Instant::now();
        let answer = self.post(&call).await?.text().await?;
        let took = began.elapsed();
        // An answer comes as JSON, or as an event whose data it is.
        let mut lines = answer.lines().map(|line| line.strip_prefix("data:").unwrap_or(line));
        let result = lines.find_map(|line| serde_json::from_str::<Value>(line).ok()?.get("result").cloned());
        let text = result.as_ref().and_then(|result| result.pointer("/content/0/text"));
        if text.and_then(Value::as_str) == Some(MESSAGE) {
            Ok(took)
        } else {
            Err(format!("an answer of {answer}").into())
        }
    }

    async fn post(&self, message: &Value) -> Result<reqwest::Response> {
        let request = self.http.post(&self.url).headers(self.headers.clone()).body(message.to_string());
        Ok(request.send().await?.error_for_status()?)
    }
}
