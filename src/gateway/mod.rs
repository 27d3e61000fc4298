//! The gateway: MCP between agents and the servers they use, with every call identified, decided, dispatched, and told.
//!
//! | module | holds |
//! |---|---|
//! | [`identity`] | who calls |
//! | [`traces`] | stream 2: the spans of each request |

pub mod identity;
pub mod traces;
