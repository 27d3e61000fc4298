//! MCP as clients see it: Streamable HTTP at `/mcp` for all plugins together, at `/mcp/<plugin>` for one alone.
//!
//! | module | holds |
//! |---|---|
//! | [`http`] | the routes: who asks, how large, is it a message at all |
//! | [`inbound`] | what came with an HTTP request |
//! | [`sessions`] | the sessions, as the SDK's HTTP service manages them |
//! | [`session`] | one session of a client |
//! | [`streams`] | what it is sent, resumable |
//! | [`relay`] | a request, to the plugin it is for, and back |
//! | [`lists`] | lists of all plugins, joined |
//! | [`names`] | `<plugin>__<tool>` |
//!
//! The SDK (`rmcp`) has HTTP: methods, headers, versions, media types, server-sent events, protection against DNS
//! rebinding. Sessions are the gateway's own, behind the SDK's seam for that, so that messages go on as they were written.
//!
//! Versions with sessions are served, `2024-11-05` to `2025-11-25`. To a client that asks for a later one, which has none,
//! the gateway says which it serves, and such clients then open a session.

mod http;
mod inbound;
mod lists;
mod names;
mod relay;
mod session;
mod sessions;
mod streams;

pub(crate) use http::{Doors, router};
pub(crate) use inbound::Inbound;
pub(crate) use relay::Relay;
pub(crate) use session::Session;
