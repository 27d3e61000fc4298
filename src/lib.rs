//! MCPG's observability plane: how a company sees and proves what its agents did through the gateway.
//!
//! The map of the house, top to bottom. An arrow between modules only ever points down this list.
//!
//! | module | holds |
//! |---|---|
//! | [`cli`] | one file a subcommand |
//! | [`demo`] | the MCP servers and agents of `mcpg demo`, the simulated fleet of `mcpg loadgen` |
//! | [`api`] | the HTTP API of the control plane: one file a resource |
//! | [`gateway`] | the MCP gateway; it stands beside `api` |
//! | [`plane`] | the control plane's state, composed of the four below: group commit, following the log, loading |
//! | [`inspect`] | what `mcpg store` says of a store: status, check, copy; it stands beside `plane` |
//! | [`flush`] | from the live buffer to the tables and the stored state; trimming the log |
//! | [`state`] | one org's state at one position of the log |
//! | [`ledger`] | one org's ledger as a node keeps it: publisher, retention, replication |
//! | [`keys`] | the private keys of sealed payloads: wrapped, kept, unwrapped, destroyed |
//! | [`node`] | what the parts of a node share: store, log, clock, settings, errors |
//! | [`log`] | the log: its objects, floor, authenticity |
//! | [`identity`] | bearer tokens of a request: the one verifier of JSON Web Tokens |
//! | [`query`] | SQL sessions of one org each, their limits and result formats |
//! | [`audit`] | the ledger: canonical entries, chain, Merkle tree, signed checkpoints, verification |
//! | [`ingest`] | request bodies to canonical record batches; idempotency keys |
//! | [`rollup`] | the latency histogram, its SQL functions, running totals and their exposition |
//! | [`payload`] | sealed payloads: their format |
//! | [`storage`] | the durable object store, Parquet, the Delta tables |
//! | [`tls`] | TLS of a server, from files that are watched |
//! | [`telemetry`] | the program's own logs, metrics and spans |
//! | [`config`] | YAML to typed settings, every fault at once with its line |
//! | [`model`] | plain types without I/O: org, outcome, schemas, clock |

#![deny(missing_docs)]

pub mod api;
pub mod audit;
pub mod cli;
pub mod config;
pub mod demo;
pub mod flush;
pub mod gateway;
pub mod identity;
pub mod ingest;
pub mod inspect;
pub mod keys;
pub mod ledger;
pub mod log;
pub mod maintenance;
pub mod model;
pub mod node;
pub mod payload;
pub mod plane;
pub mod query;
pub mod rollup;
pub mod state;
pub mod storage;
pub mod telemetry;
pub mod tls;
