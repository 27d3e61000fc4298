//! The gateway between real MCP clients and real MCP servers.
//!
//! Each test starts a gateway and its upstreams on free ports. `harness::GatewayConfig` starts the one, `harness::Upstream` the others.

mod canaries;
mod conformance;
mod identity;
mod policy;
