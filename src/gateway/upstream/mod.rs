//! The MCP servers behind the gateway, as a client of theirs.
//!
//! | module | holds |
//! |---|---|
//! | [`plugin`] | one plugin: opening sessions with it, within its limits; its health |
//! | [`monitor`] | the gateway's own session with each plugin: is it up, what does it offer, did that change |
//! | [`link`] | one session with an upstream, over either transport |
//! | [`handshake`], [`keeper`], [`waiters`] | how it begins; the task that owns its transport; who waits for which answer |
//! | [`http`], [`sse`] | Streamable HTTP |
//! | [`child`] | a child process |
//! | [`backoff`] | when to try again what has failed |
//! | [`envelope`] | raw JSON through the SDK's transports |
//! | [`fault`] | why there is no result |
//!
//! **A session of a client has its own session with each plugin it uses**, opened by the first request that needs it. That
//! alone is exact: an MCP server keeps state per session (subscriptions, log level, what a tool remembers), offers by the
//! client's capabilities, and asks its client back; shared, one caller's state would be another's. For a plugin that is a
//! child process it means a child per session, as MCP has it (the client starts the server). It costs memory for
//! sessions that are in use, and none for those that are idle from the start; how many a plugin may have is its setting,
//! past which there is a clear error.

mod backoff;
mod child;
mod envelope;
mod fault;
mod handshake;
mod http;
mod keeper;
mod link;
mod monitor;
mod plugin;
mod sse;
mod waiters;

pub(crate) use fault::UpstreamFault;
pub(crate) use link::{Ask, Link, StreamNumber, Upcalls};
pub(crate) use monitor::Listeners;
pub(crate) use plugin::{Lifecycle, Plugin, Step, http_client};
