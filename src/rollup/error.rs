//! Why a rollup could not be made.

use arrow::datatypes::DataType;
use datafusion::error::DataFusionError;

use crate::model::schema::SchemaError;

/// Why a rollup could not be made of a batch. Each is a fault of the program or of the store, never of a caller:
/// samples are validated before they become a canonical batch.
#[derive(Debug, thiserror::Error)]
pub enum RollupError {
    /// The batch is not of the canonical schema.
    #[error("a batch of samples has no column `{column}` of type {expected} without nulls")]
    Column {
        /// The column's name.
        column: &'static str,
        /// The type it has in `schemas/tool_invocations.sql`.
        expected: DataType,
    },
    /// A sample's outcome is not one of the six.
    #[error("row {row} of a batch of samples: `{outcome}` is no outcome")]
    UnknownOutcome {
        /// Counted from 0.
        row: usize,
        /// What stands there.
        outcome: String,
    },
    /// The SQL of the rollup failed.
    #[error("rollup query: {0}")]
    Query(#[from] DataFusionError),
    /// The DDL does not parse.
    #[error(transparent)]
    Schema(#[from] SchemaError),
}
