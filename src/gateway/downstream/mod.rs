//! MCP as clients see it: Streamable HTTP at `/mcp` for all plugins together, at `/mcp/<plugin>` for one alone.
//!
//! | module | holds |
//! |---|---|
//! | [`http`] | the routes: who asks, how large, is it a message at all, of which generation |
//! | [`endpoints`], [`entry`] | where clients come in; what comes with a request |
//! | [`origin`], [`body`] | whose pages may ask; taking a body in within memory and time |
//! | [`session_request`] | requests of old versions: sessions, arrays, streams that can be resumed |
//! | [`modern_request`], [`modern`] | requests of the modern version, and what their headers have to say |
//! | [`sessions`], [`session`] | the sessions of an endpoint; one session of a client |
//! | [`streams`], [`outlet`], [`sse`] | what a client is sent, and how |
//! | [`listener`] | what a plugin says that belongs to no call |
//! | [`relay`] | a request, to what answers it |
//! | [`lists`], [`offer`], [`listen`] | lists of all plugins, joined; what the gateway says of itself; subscriptions |
//! | [`names`] | `<plugin>__<tool>` |
//!
//! Which generation a request is of is decided for each one, at the same URL: 2024-11-05 to 2025-11-25 with sessions,
//! 2026-07-28 without.

mod body;
mod endpoints;
mod entry;
mod http;
mod listen;
mod listener;
mod lists;
mod modern;
mod modern_request;
mod names;
mod offer;
mod origin;
mod outlet;
mod relay;
mod session;
mod session_request;
mod sessions;
mod sse;
mod streams;

pub(crate) use endpoints::{Downstream, DownstreamParts};
pub(crate) use http::router;
pub(crate) use relay::Relay;
