//! One request's way through the gateway.
//!
//! Who asks is known when a request gets here. It is then decided on, and only what is permitted is dispatched:
//!
//! ```text
//! policy ─▶ its decision is on the record ─▶ rates ─▶ a turn at the plugin, and at the gateway ─▶ the server
//!   ─▶ what may be said of the result
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`table`] | the methods of MCP as data: who may send which, and what is done with it |
//! | [`client`] | whose a request is, and how its client is notified and asked |
//! | [`subject`], [`uri`] | what a request is about; the one form of a resource's URI |
//! | [`calls`] | what all calls share: policy, the record, turns, rates |
//! | [`telemetry`], [`error`] | what is recorded of a call; why it has no result |
//! | [`turns`], [`rates`] | so many at once, fairly; so often |
//! | [`dispatch`] | a request, decided on and sent, in the generation that its server speaks |
//! | [`scope`] | what comes for the sake of a call, on its way to the client |
//! | [`outgoing`], [`bridge`] | parameters and results from one generation to the other |
//! | [`park`], [`seal`], [`replay`] | calls that wait for a modern client; the state that it brings back, and how often |
//! | [`tasks`] | which task is whose |

pub(crate) mod bridge;
pub(crate) mod calls;
pub(crate) mod client;
pub(crate) mod dispatch;
pub(crate) mod error;
pub(crate) mod outgoing;
pub(crate) mod park;
pub(crate) mod rates;
pub(crate) mod replay;
pub(crate) mod scope;
pub(crate) mod seal;
pub(crate) mod subject;
pub(crate) mod table;
pub(crate) mod tasks;
pub(crate) mod telemetry;
pub(crate) mod turns;
pub(crate) mod uri;
