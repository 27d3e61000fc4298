//! The parameters of a request as its server gets them.
//!
//! Replaced or put in: the plugin's own name for what is asked for, redacted arguments, and of `_meta` the trace, the
//! progress token (the request's own number) and what each generation says there of its client. All other members keep
//! the bytes that their client wrote.

use super::client::Client;
use crate::gateway::message::{Json, Object};
use crate::gateway::protocol::{
    Generation, META_CAPABILITIES, META_CLIENT_INFO, META_LOG_LEVEL, META_VERSION, MODERN, PROGRESS_TOKEN,
    TASKS_EXTENSION,
};
use crate::telemetry::w3c;

/// Fields of the trace in `_meta`.
const TRACE: [&str; 3] = ["traceparent", "tracestate", "baggage"];

/// Capabilities of clients that servers of the other generation get to know.
const CAPABILITIES: [&str; 4] = ["sampling", "elicitation", "roots", "experimental"];

/// What is put into the `_meta` of a request.
#[derive(Clone, Copy)]
pub(crate) struct Meta<'a> {
    pub(crate) client: &'a Client,
    /// The generation that the server is spoken to in.
    pub(crate) server: Generation,
    pub(crate) trace: &'a w3c::Outbound,
    /// The request's number, where its client asked for progress.
    pub(crate) progress: Option<i64>,
    /// The log level that an old client set.
    pub(crate) log_level: Option<&'a Json>,
    /// A modern server may make a task of it: the gateway waits for it in an old client's place.
    pub(crate) tasks: bool,
}

impl Meta<'_> {
    /// The `_meta` of a request whose client wrote `meta`. `None`: there is nothing to say.
    fn of(&self, meta: Option<&Json>) -> Option<Json> {
        let was_there = meta.is_some();
        let mut meta = meta.and_then(Json::object).unwrap_or_default();
        TRACE.iter().for_each(|field| drop(meta.take(field)));
        for (name, value) in self.trace.fields() {
            meta.set(name, Json::text(value));
        }
        meta.take(PROGRESS_TOKEN);
        if let Some(token) = self.progress {
            meta.set(PROGRESS_TOKEN, Json::of(&token));
        }
        match (self.client.generation, self.server) {
            (_, Generation::Old) => {
                for name in [META_VERSION, META_CLIENT_INFO, META_CAPABILITIES, META_LOG_LEVEL] {
                    meta.take(name);
                }
            }
            (Generation::Old, Generation::Modern) => {
                meta.set(META_VERSION, Json::text(MODERN));
                if let Some(info) = &self.client.info {
                    meta.set(META_CLIENT_INFO, info.clone());
                }
                meta.set(META_CAPABILITIES, modern_capabilities(self.client, self.tasks));
                if let Some(level) = self.log_level {
                    meta.set(META_LOG_LEVEL, level.clone());
                }
            }
            (Generation::Modern, Generation::Modern) => {}
        }
        // What held nothing but the words of another generation is gone with them.
        let is_rest = self.client.generation != self.server && meta.is_empty();
        ((was_there && !is_rest) || !meta.is_empty()).then(|| meta.to_json())
    }

    /// The same on its own.
    pub(crate) fn alone(&self) -> Json {
        self.of(None).unwrap_or_else(Json::empty_object)
    }

    /// The parameters with it.
    pub(crate) fn put(&self, params: &mut Object) {
        match self.of(params.get("_meta")) {
            Some(meta) => params.set("_meta", meta),
            None => drop(params.take("_meta")),
        }
    }
}

/// The capabilities of an old client for a modern server: those that the gateway can bring to it.
fn modern_capabilities(client: &Client, tasks: bool) -> Json {
    let mut capabilities = client.capabilities.object().unwrap_or_default();
    capabilities.retain(|name, value| CAPABILITIES.contains(&name) && value.is_object());
    if capabilities.has("roots") {
        capabilities.set("roots", Json::empty_object());
    }
    if !client.knows("2025-06-18") {
        capabilities.take("elicitation");
    }
    if tasks {
        capabilities.set("extensions", Json::of(&serde_json::json!({ TASKS_EXTENSION: {} })));
    }
    capabilities.to_json()
}

/// The capabilities of a modern client for an old server.
pub(crate) fn old_capabilities(client: &Client) -> Json {
    let mut capabilities = client.capabilities.object().unwrap_or_default();
    capabilities.retain(|name, value| CAPABILITIES.contains(&name) && value.is_object());
    capabilities.to_json()
}

/// The client's name and version for an old server, which needs some.
pub(crate) fn client_info(client: &Client) -> Json {
    let info = client.info.clone().filter(Json::is_object);
    info.unwrap_or_else(|| Json::of(&serde_json::json!({ "name": "unknown", "version": "0" })))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::json;

    use super::{Client, Meta};
    use crate::gateway::message::{Json, Object};
    use crate::gateway::protocol::Generation::{self, Modern, Old};
    use crate::telemetry::w3c::Outbound;

    fn client(generation: Generation) -> Client {
        let capabilities =
            json!({ "roots": { "listChanged": true }, "elicitation": {}, "tasks": {}, "extensions": { "x/y": {} } });
        let info = Json::of(&json!({ "name": "c", "version": "1" }));
        Client::new(generation, "2025-11-25", Json::of(&capabilities), Some(info))
    }

    fn sent(client: Generation, server: Generation, params: &str) -> String {
        let client = self::client(client);
        let (trace, level) = (Outbound::default(), Json::text("info"));
        let mut params: Object = Json::parse(&Bytes::copy_from_slice(params.as_bytes())).unwrap().object().unwrap();
        Meta { client: &client, server, trace: &trace, progress: Some(7), log_level: Some(&level), tasks: false }
            .put(&mut params);
        String::from_utf8(params.to_json().as_bytes().to_vec()).unwrap()
    }

    #[test]
    fn an_old_client_says_to_a_modern_server_what_a_modern_one_would() {
        let sent = sent(
            Old,
            Modern,
            r#"{"arguments":{"wei":1000000000000000000001},"_meta":{"own":1.0,"progressToken":"p","traceparent":"x"}}"#,
        );
        let value: serde_json::Value = serde_json::from_str(&sent).unwrap();
        assert!(sent.contains(r#"{"wei":1000000000000000000001}"#) && sent.contains(r#""own":1.0"#), "{sent}");
        assert_eq!(
            value["_meta"],
            json!({
                "own": 1.0, "progressToken": 7,
                "io.modelcontextprotocol/protocolVersion": "2026-07-28",
                "io.modelcontextprotocol/clientInfo": { "name": "c", "version": "1" },
                "io.modelcontextprotocol/clientCapabilities": { "roots": {}, "elicitation": {} },
                "io.modelcontextprotocol/logLevel": "info",
            })
        );
    }

    #[test]
    fn an_old_server_is_told_nothing_of_what_only_modern_ones_know() {
        let params = r#"{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{},"io.modelcontextprotocol/logLevel":"info"}}"#;
        assert_eq!(sent(Modern, Old, params), r#"{"_meta":{"progressToken":7}}"#);
    }
}
