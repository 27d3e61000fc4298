//! A simulated fleet of gateways: the traffic of `mcpg demo` and `mcpg loadgen`.
//!
//! [`Fleet`] makes samples that look like a company's: a few dozen tools of well-known plugins, latencies with a heavy tail,
//! bursts, episodes in which one tool fails, callers that policy denies. All of it follows from a seed and from the times that
//! the caller asks for; nothing here reads a clock.
//!
//! [`Template`] turns samples into request bodies, again and again with fresh ids and times, at little more than the cost of
//! copying them. [`Sender`] posts bodies as a gateway does: at least once, each under one idempotency key.
//! [`simulate`] and [`backfill`] put the three together.

mod agents;
mod catalog;
mod fleet;
mod sender;
mod servers;
mod template;
mod tools;
mod traffic;

pub use agents::{Credentials, call_tools, callers};
pub use fleet::{Fleet, Gateway};
pub use sender::{Delivery, Refusal, Sender};
pub use servers::Servers;
pub use template::{Body, DemoError, Template};
pub use traffic::{TrafficError, backfill, simulate};
