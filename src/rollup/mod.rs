//! Rollups: the latency histogram, its SQL functions, the partial rollups of a flush, the running totals that a scrape
//! reads, and their exposition.
mod digest;
mod error;
pub mod exposition;
mod functions;
mod granularity;
mod totals;
mod upkeep;

pub use digest::Digest;
pub use error::RollupError;
pub use functions::{aggregate_functions, scalar_functions};
pub use granularity::{Granularity, UnknownGranularity};
pub use totals::{RunningTotals, SnapshotError};
pub use upkeep::{partials, partials_sql};
