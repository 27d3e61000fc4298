//! Rollups: what is known of many calls without looking at each again.
//!
//! | part | is |
//! |---|---|
//! | [`Histogram`] | latencies, mergeable without loss, each quantile within 0.542 %; the proof is in its module |
//! | [`encode`], [`Encoded`] | its binary form, the column `latency` |
//! | [`aggregate_functions`], [`scalar_functions`] | SQL over that column |
//! | [`hourly_partials`], [`daily_partials`] | what a flush adds to `tool_usage_hourly` and `tool_usage_daily`, by the SQL in `queries/` |
//! | [`Digest`], [`RunningTotals`] | what a scrape reads: an org's series since ever and its recent windows |
//! | [`exposition`] | the three formats of a scrape |
//!
//! One invariant holds all this together: **order and batching leave no trace**. Counts, sums, least and greatest
//! durations and buckets are exact and commute, so the same samples give the same rollups to the last bucket, whether
//! they came early or late, in one batch or in many, through SQL or through the running totals. `properties.rs` tests
//! it.

mod codec;
mod digest;
mod error;
mod exemplars;
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
pub use exemplars::{Candidates, Exemplars};
pub use functions::{aggregate_functions, scalar_functions};
pub use granularity::{Granularity, UnknownGranularity};
pub use histogram::{Histogram, SCALE, ZERO_THRESHOLD_SECONDS};
pub use snapshot::SnapshotError;
pub use totals::RunningTotals;
pub use upkeep::{HOURS, SAMPLES, daily_partials, hourly_partials, partials_sql};
pub use wire::Malformed;
