//! (to be written)

/// The running totals of one org (to be written).
#[derive(Debug)]
pub struct RunningTotals;
