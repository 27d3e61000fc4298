//! What `mcpg demo` and `mcpg loadgen` run.
//!
//! The demo is the real thing on a small scale: [`Servers`] are MCP servers with a dozen tools, [`call_tools`] drives
//! the agents that call them, and [`GatewaySetup`] configures the gateway between the two.
//!
//! The load generator simulates a whole fleet of gateways. [`Fleet`] makes samples that look like a company's: a few
//! dozen tools of well-known plugins, latencies with a heavy tail, episodes in which one tool fails, callers that
//! policy denies. All of it follows from a seed and from the times that the caller asks for; nothing there reads a
//! clock. [`Template`] turns samples into request bodies, again and again with fresh ids and times, at little more than
//! the cost of copying them. [`Sender`] posts bodies as a gateway does: at least once, each under one idempotency key.

mod agents;
mod catalog;
mod fleet;
mod gateway;
mod sender;
mod servers;
mod template;
mod tools;

pub use agents::{Credentials, call_tools};
pub use fleet::Fleet;
pub use gateway::GatewaySetup;
pub use sender::{Delivery, Refusal, Sender};
pub use servers::Servers;
pub use template::{Body, DemoError, Template};
