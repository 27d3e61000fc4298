//! The SQL functions over latency histograms, for a DataFusion session.
//!
//! | function | kind | answers |
//! |---|---|---|
//! | `latency_hist(duration_ms)` | aggregate | the histogram of durations in milliseconds, in its binary form |
//! | `latency_merge(latency)` | aggregate | the merged histogram of histograms |
//! | `latency_quantile(latency, q)` | scalar | the quantile `q` of a histogram, in milliseconds, within 0.542 % |
//! | `latency_buckets(latency, per_octave)` | scalar | its counts, a list of `{lower_ms, upper_ms, calls}` |
//!
//! As in all of SQL, NULLs are passed over by the aggregates, an aggregate of no rows is NULL, and a NULL argument of
//! the scalar gives NULL. What is no duration, no histogram or no quantile is an error that says so.

mod aggregate;
mod buckets;
mod input;
mod quantile;

use std::sync::Arc;

use datafusion::logical_expr::{AggregateUDF, ScalarUDF};

use aggregate::LatencyAggregate;
use buckets::LatencyBuckets;
use quantile::LatencyQuantile;

/// `latency_hist` and `latency_merge`.
pub fn aggregate_functions() -> Vec<Arc<AggregateUDF>> {
    [LatencyAggregate::hist(), LatencyAggregate::merge()]
        .map(|function| Arc::new(AggregateUDF::new_from_impl(function)))
        .to_vec()
}

/// `latency_quantile` and `latency_buckets`.
pub fn scalar_functions() -> Vec<Arc<ScalarUDF>> {
    vec![
        Arc::new(ScalarUDF::new_from_impl(LatencyQuantile::new())),
        Arc::new(ScalarUDF::new_from_impl(LatencyBuckets::new())),
    ]
}

#[cfg(test)]
mod tests;
