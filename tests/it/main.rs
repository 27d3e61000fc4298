//! The one integration-test binary: each module is one part of the specification, tried on the real `mcpg` program over HTTP,
//! with the programs its users have at the other end: Prometheus, DuckDB, `deltalake`, MCP clients and servers, a file system whose
//! power is cut.
//!
//! What it needs is installed by `tests/setup.sh` (`make test` runs it first). A missing tool is a failure, never a skipped test.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a failed test should stop where it failed, and say all it knows"
)]

mod auth;
mod cases;
mod cli;
mod crash;
mod damage;
mod demo;
mod duckdb;
mod flights;
mod formats;
mod gateway;
mod harness;
mod idempotency;
mod isolation;
mod ledger;
mod malformed;
mod power_cut;
mod privacy;
mod scrape;
mod simulation;
mod sql;
mod sql_cases;
mod store_hang;
mod two_nodes;
