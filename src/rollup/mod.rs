//! Rollups: the latency histogram, its SQL functions, the partial rollups of a flush, the running totals that a scrape
//! reads, and their exposition.
mod codec;
mod digest;
mod error;
pub mod exposition;
mod functions;
mod granularity;
mod histogram;
mod labels;
#[cfg(test)]
mod properties;
mod snapshot;
#[cfg(test)]
mod testing;
mod totals;
mod upkeep;
mod windows;
mod wire;

pub use codec::{DecodeError, Encoded, encode};
pub use digest::Digest;
pub use error::RollupError;
pub use functions::{aggregate_functions, scalar_functions};
pub use granularity::{Granularity, UnknownGranularity};
pub use histogram::{Histogram, SCALE, ZERO_THRESHOLD_SECONDS};
pub use snapshot::SnapshotError;
pub use totals::RunningTotals;
pub use upkeep::{partials, partials_sql};
pub use wire::Malformed;
