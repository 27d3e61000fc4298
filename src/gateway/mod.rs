//! The gateway: MCP between agents and the servers they use, with every call identified, decided, dispatched, and told.
//!
//! | module | holds |
//! |---|---|
//! | [`emit`] | streams 1 and 3: samples and audit events on their way to the control plane |
//! | [`metrics`] | stream 1, the near half: the gateway's own Prometheus metrics |
//! | `spool` | the durable queue on disk that samples and events wait in |
//! | [`traces`] | stream 2: the spans of each request |

pub mod emit;
pub mod metrics;
mod spool;
pub mod traces;
