//! The gateway between real MCP clients and real MCP servers.
//!
//! Each test starts a gateway and its upstreams on free ports: `harness::GatewayConfig` the one, `harness::Upstream`
//! the others.

mod airline;
mod attacks;
mod canaries;
mod clients;
mod collectors;
mod conformance;
mod everything;
mod faults;
pub(crate) mod governed;
mod identity;
mod matrix;
mod outage;
mod pass_through;
mod policy;
mod sessions;
mod streams;
mod tls;
mod traces;
mod unruly_upstreams;
