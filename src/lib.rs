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
//! | [`plane`] | the control plane's state: the WAL applied; group commit, catch-up, flush |
//! | [`query`] | SQL sessions of one org each, their limits and result formats |
//! | [`audit`] | the ledger: canonical entries, chain, Merkle tree, signed heads, verification |
//! | [`ingest`] | request bodies to canonical record batches; idempotency keys |
//! | [`rollup`] | the latency histogram, its SQL functions, running totals and their exposition |
//! | [`storage`] | the durable object store, the WAL, the Delta tables |
//! | [`telemetry`] | the program's own logs, metrics and spans |
//! | [`config`] | YAML to typed settings, every fault at once with its line |
//! | [`model`] | plain types without I/O: org, outcome, schemas, clock |

#![deny(missing_docs)]

pub mod api;
pub mod audit;
pub mod cli;
pub mod config;
pub mod demo;
pub mod gateway;
pub mod ingest;
pub mod model;
pub mod plane;
pub mod query;
pub mod rollup;
pub mod storage;
pub mod telemetry;
