//! Where data lies: the durable object store, the write-ahead log, the live buffer and the Delta tables.
//!
//! ```text
//! <store>/wal/<seq>                          the log: one object a group commit, total order over all nodes
//! <store>/orgs/<org>/<table>/_delta_log/…    Delta tables, partitioned by date, that other engines open as they are
//! <store>/orgs/<org>/<table>/date=…/*.parquet
//! <store>/orgs/<org>/totals/<position>       snapshots of the running totals
//! <store>/orgs/<org>/keys/<from>-<to>        idempotency keys of a range of the log
//! ```
//!
//! A **position** is the sequence number of a WAL object: "up to position 17" means the effects of `wal/…17` and of
//! all before it. Every table and snapshot carries its position, so replay applies to each exactly what it lacks.
//!
//! This module holds the primitives and knows nothing of rollups or requests; [`crate::plane`] puts them together.

mod error;
mod live;
mod local;
pub mod parquet;
mod store;
pub mod table;
pub mod wal;

pub use error::StorageError;
pub use live::{LiveBuffer, held_bytes};
pub use store::Store;
