//! Where data lies: the durable object store, Parquet files and the Delta tables.
//!
//! This module holds the primitives and knows nothing of the log, of rollups or of requests.

mod error;
mod local;
pub mod parquet;
pub(crate) mod pinned;
mod probe;
mod s3;
mod store;
pub mod table;
mod transport;
mod versions;
mod watched;

pub use error::{StorageError, is_hiccup};
pub use store::{Created, Ensured, Store};
pub use transport::RequestCounts;
pub use versions::Versions;
