//! What spans say of a request: attributes in the terms of OpenTelemetry's conventions for MCP.

use std::net::SocketAddr;

use http::Version;
use opentelemetry::trace::{Span as _, Status};
use opentelemetry::{KeyValue, Value};
use opentelemetry_sdk::trace::Span;

/// The longest text of a client, bytes, that becomes an attribute (ids of sessions and of requests).
const ID_BYTES: usize = 128;

/// The requests and notifications of MCP that reach a gateway, and the word for any other.
const METHODS: [&str; 30] = [
    "completion/complete",
    "elicitation/create",
    "initialize",
    "logging/setLevel",
    "notifications/cancelled",
    "notifications/elicitation/response",
    "notifications/initialized",
    "notifications/message",
    "notifications/progress",
    "notifications/roots/list_changed",
    "ping",
    "prompts/get",
    "prompts/list",
    "resources/directory/read",
    "resources/list",
    "resources/read",
    "resources/subscribe",
    "resources/templates/list",
    "resources/unsubscribe",
    "roots/list",
    "sampling/createMessage",
    "server/discover",
    "skills/get",
    "skills/list",
    "subscriptions/listen",
    "tasks/cancel",
    "tasks/get",
    "tasks/update",
    "tools/call",
    "tools/list",
];
const OTHER_METHOD: &str = "_OTHER";

pub(super) fn known(method: &str) -> &'static str {
    METHODS.into_iter().find(|known| *known == method).unwrap_or(OTHER_METHOD)
}

/// A request, as its spans describe it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Request<'a> {
    /// The JSON-RPC method.
    pub method: &'a str,
    /// The id that the client gave it, as text.
    pub jsonrpc_id: Option<&'a str>,
    /// The client's MCP session.
    pub session_id: Option<&'a str>,
    /// The version of MCP that was agreed on with the client.
    pub protocol_version: Option<&'a str>,
    /// The version of HTTP that brought it.
    pub http_version: Option<Version>,
    /// Where the client is.
    pub client: Option<SocketAddr>,
    /// The gateway's own ids of the call.
    pub request_id: Option<&'a str>,
    /// The id of the call's sample.
    pub invocation_id: Option<&'a str>,
}

impl Request<'_> {
    pub(super) fn describe(&self, method: &'static str, span: &mut Span) {
        span.set_attribute(KeyValue::new("mcp.method.name", method));
        for (name, value) in [
            ("jsonrpc.request.id", self.jsonrpc_id),
            ("mcp.session.id", self.session_id),
            ("mcp.protocol.version", self.protocol_version),
            ("mcpg.request_id", self.request_id),
            ("mcpg.invocation_id", self.invocation_id),
        ] {
            if let Some(value) = value.filter(|value| value.len() <= ID_BYTES) {
                span.set_attribute(KeyValue::new(name, value.to_owned()));
            }
        }
        span.set_attribute(KeyValue::new("network.transport", "tcp"));
        span.set_attribute(KeyValue::new("network.protocol.name", "http"));
        if let Some(version) = self.http_version.and_then(version_number) {
            span.set_attribute(KeyValue::new("network.protocol.version", version));
        }
        if let Some(client) = self.client {
            span.set_attribute(KeyValue::new("client.address", client.ip().to_string()));
            span.set_attribute(KeyValue::new("client.port", i64::from(client.port())));
        }
    }
}

fn version_number(version: Version) -> Option<&'static str> {
    match version {
        Version::HTTP_10 => Some("1.0"),
        Version::HTTP_11 => Some("1.1"),
        Version::HTTP_2 => Some("2"),
        _ => None,
    }
}

/// What a request is about, once the gateway knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target<'a> {
    /// A tool of a plugin.
    Tool(&'a str),
    /// A prompt of a plugin.
    Prompt(&'a str),
    /// Nothing of few names, like a resource.
    Unnamed,
}

impl Target<'_> {
    pub(super) fn describe(self, method: &'static str, plugin: &str, span: &mut Span) {
        span.set_attribute(KeyValue::new("mcpg.plugin", plugin.to_owned()));
        let (attribute, name) = match self {
            Self::Tool(name) => ("gen_ai.tool.name", name),
            Self::Prompt(name) => ("gen_ai.prompt.name", name),
            Self::Unnamed => return,
        };
        span.update_name(format!("{method} {name}"));
        span.set_attribute(KeyValue::new(attribute, name.to_owned()));
        if matches!(self, Self::Tool(_)) {
            span.set_attribute(KeyValue::new("gen_ai.operation.name", "execute_tool"));
        }
    }
}

/// An upstream, as a span describes it.
#[derive(Debug, Clone, Copy)]
pub enum Upstream<'a> {
    /// A server that is reached over HTTP.
    Http {
        /// Its host.
        address: &'a str,
        /// Its port.
        port: u16,
    },
    /// A process that is reached over its pipes.
    Stdio,
}

impl Upstream<'_> {
    pub(super) fn describe(&self, span: &mut Span) {
        match self {
            Self::Http { address, port } => {
                span.set_attribute(KeyValue::new("network.transport", "tcp"));
                span.set_attribute(KeyValue::new("network.protocol.name", "http"));
                span.set_attribute(KeyValue::new("server.address", (*address).to_owned()));
                span.set_attribute(KeyValue::new("server.port", i64::from(*port)));
            }
            Self::Stdio => span.set_attribute(KeyValue::new("network.transport", "pipe")),
        }
    }
}

/// How a request failed, as far as a span may say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// It was answered by a JSON-RPC error of this code.
    Rpc(i64),
    /// The tool says so itself: `isError`.
    Tool,
    /// Without an answer: a word of a small set, like `timeout`.
    Kind(&'static str),
}

impl Failure {
    /// The client went away before there was an answer.
    pub const CANCELLED: Self = Self::Kind("cancelled");

    pub(super) fn mark(self, span: &mut Span) {
        let kind: Value = match self {
            Self::Rpc(code) => {
                span.set_attribute(KeyValue::new("rpc.response.status_code", code.to_string()));
                code.to_string().into()
            }
            Self::Tool => "tool_error".into(),
            Self::Kind(kind) => kind.into(),
        };
        span.set_attribute(KeyValue::new("error.type", kind));
        // The description would be the error's text.
        span.set_status(Status::error(""));
    }
}
