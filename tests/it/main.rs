//! The one integration-test binary: each module is one part of the specification, tried on the real `mcpg` program over
//! HTTP, with the programs its users have at the other end: Prometheus, DuckDB, `deltalake`, MCP clients and servers, a
//! file system whose power is cut.
//!
//! What it needs is installed by `tests/setup.sh` (`make test` runs it first). A missing tool is a failure, never a
//! skipped test.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    clippy::large_futures,
    reason = "a failed test should stop where it failed, and say all it knows"
)]

mod alerts;
mod auth;
mod bring_over;
mod browsers;
mod cases;
mod cli;
mod crash;
mod damage;
mod dashboard;
mod demo;
mod deploy;
mod door;
mod duckdb;
mod faults;
mod flights;
mod formats;
mod gateway;
mod harness;
mod idempotency;
mod idle_connections;
mod isolation;
#[path = "../fixtures/jwt/issuer.rs"]
mod issuer;
mod ledger;
mod maintenance;
mod malformed;
mod metrics_page;
mod operators;
mod pages;
mod payloads;
mod power_cut;
mod privacy;
mod promises;
mod protocol_model;
mod removal;
mod s3;
mod scrape;
mod simulation;
mod sql;
mod sql_cases;
mod sql_http;
mod store_cli;
mod store_hang;
mod store_repair;
mod two_nodes;
