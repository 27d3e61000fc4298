//! (to be written)
use std::sync::Arc;

use datafusion::logical_expr::{AggregateUDF, ScalarUDF};

/// `latency_hist(duration_ms)` and `latency_merge(latency)`.
pub fn aggregate_functions() -> Vec<Arc<AggregateUDF>> {
    Vec::new()
}

/// `latency_quantile(latency, q)`.
pub fn scalar_functions() -> Vec<Arc<ScalarUDF>> {
    Vec::new()
}
