//! (to be written)
use arrow::record_batch::RecordBatch;

use super::RollupError;

/// The pre-aggregation of one canonical batch, made before it is committed.
#[derive(Debug, Clone)]
pub struct Digest;

impl Digest {
    /// Aggregates a canonical batch by series and window. Pure.
    ///
    /// # Errors
    /// When the batch is not of the canonical schema.
    pub fn of(batch: &RecordBatch) -> Result<Self, RollupError> {
        let _ = batch;
        Ok(Self)
    }

    /// Memory held, in bytes.
    pub fn size_bytes(&self) -> usize {
        0
    }
}
