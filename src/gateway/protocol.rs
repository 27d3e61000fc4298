//! Words of MCP that both sides of the gateway use: versions, generations, names of headers and of `_meta` members,
//! codes.
//!
//! **Old** are the versions with `initialize` and sessions, 2024-11-05 to 2025-11-25; **modern** is 2026-07-28, in
//! which every request says by itself who asks and in which version. The specification calls them legacy and modern.

use http::HeaderName;

/// The one modern version.
pub(crate) const MODERN: &str = "2026-07-28";

/// The old versions, oldest first.
pub(crate) const OLD: [&str; 4] = ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"];

/// The newest of [`OLD`]: what `initialize` is answered with where the client's version is not served.
pub(crate) const LATEST_OLD: &str = "2025-11-25";

/// Which generation of the protocol a peer speaks, or a request is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Generation {
    /// With `initialize` and a session.
    Old,
    /// Without either.
    Modern,
}

/// Names of HTTP headers.
pub(crate) const VERSION_HEADER: HeaderName = HeaderName::from_static("mcp-protocol-version");
pub(crate) const SESSION_HEADER: HeaderName = HeaderName::from_static("mcp-session-id");
pub(crate) const METHOD_HEADER: HeaderName = HeaderName::from_static("mcp-method");
pub(crate) const NAME_HEADER: HeaderName = HeaderName::from_static("mcp-name");
pub(crate) const LAST_EVENT_HEADER: HeaderName = HeaderName::from_static("last-event-id");

/// What the names of headers start with that carry a tool's arguments.
pub(crate) const PARAM_HEADERS: &str = "mcp-param-";

/// Members of `_meta`.
pub(crate) const META_VERSION: &str = "io.modelcontextprotocol/protocolVersion";
pub(crate) const META_CLIENT_INFO: &str = "io.modelcontextprotocol/clientInfo";
pub(crate) const META_CAPABILITIES: &str = "io.modelcontextprotocol/clientCapabilities";
pub(crate) const META_LOG_LEVEL: &str = "io.modelcontextprotocol/logLevel";
pub(crate) const META_SERVER_INFO: &str = "io.modelcontextprotocol/serverInfo";
pub(crate) const META_SUBSCRIPTION: &str = "io.modelcontextprotocol/subscriptionId";
pub(crate) const PROGRESS_TOKEN: &str = "progressToken";

/// The extension for tasks, as capabilities name it.
pub(crate) const TASKS_EXTENSION: &str = "io.modelcontextprotocol/tasks";

/// Codes of JSON-RPC and of MCP.
pub(crate) mod code {
    pub(crate) const PARSE_ERROR: i64 = -32700;
    pub(crate) const INVALID_REQUEST: i64 = -32600;
    pub(crate) const METHOD_NOT_FOUND: i64 = -32601;
    pub(crate) const INVALID_PARAMS: i64 = -32602;
    pub(crate) const INTERNAL_ERROR: i64 = -32603;
    /// Old versions only.
    pub(crate) const RESOURCE_NOT_FOUND: i64 = -32002;
    /// 2025-11-25 only.
    pub(crate) const URL_ELICITATION_REQUIRED: i64 = -32042;
    /// Modern: what HTTP headers say differs from the body.
    pub(crate) const HEADER_MISMATCH: i64 = -32020;
    /// Modern: the client did not declare what the request needs.
    pub(crate) const MISSING_CAPABILITY: i64 = -32021;
    /// Modern: the version is not served.
    pub(crate) const UNSUPPORTED_VERSION: i64 = -32022;
}
