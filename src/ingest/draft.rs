//! What a decoder hands to the judge (see `validate`), the same from every decoder.

use arrow::array::ArrayRef;

use super::error::Faults;

/// Columns as decoded, not yet judged: one entry a column of the canonical schema, none where no decoder filled it.
/// A required column with a null in it has a fault for it.
pub(super) struct Draft {
    /// The columns, each of `rows` values and of its canonical type.
    pub(super) columns: Vec<Option<ArrayRef>>,
    /// Samples.
    pub(super) rows: usize,
    /// Faults found so far.
    pub(super) faults: Faults,
}
