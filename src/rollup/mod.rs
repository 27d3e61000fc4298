//! (to be written)
mod totals;
pub use totals::RunningTotals;
