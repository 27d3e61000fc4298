//! The memory budget for samples: bodies being read, batches being committed, and samples not yet flushed.
//!
//! Invariant I7: a request is admitted before its body is read, with the bytes it may need, and refused when they do
//! not fit. The live buffer's bytes count too, so that a store that takes no flush makes new requests be refused
//! instead of memory grow.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::PlaneError;
use crate::telemetry::metrics::Metrics;

#[derive(Debug)]
pub(super) struct Budget {
    limit: usize,
    admitted: AtomicUsize,
    live: AtomicUsize,
    metrics: Arc<Metrics>,
}

impl Budget {
    pub(super) fn new(limit: usize, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self { limit, admitted: AtomicUsize::new(0), live: AtomicUsize::new(0), metrics })
    }

    pub(super) fn admit(budget: &Arc<Self>, bytes: usize) -> Result<Admission, PlaneError> {
        let mut admission = Admission { budget: Arc::clone(budget), bytes: 0 };
        admission.grow_to(bytes)?;
        Ok(admission)
    }

    /// Says how many bytes the live buffers of all orgs hold.
    pub(super) fn set_live(&self, bytes: usize) {
        self.live.store(bytes, Ordering::Release);
        self.metrics.buffer.bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// Whether the live buffers take more than half of the budget: time to flush.
    pub(super) fn is_half_full(&self) -> bool {
        self.live.load(Ordering::Acquire) > self.limit / 2
    }

    fn take(&self, more: usize) -> Result<(), PlaneError> {
        let live = self.live.load(Ordering::Acquire);
        let fits = |admitted: usize| admitted.checked_add(more).filter(|sum| sum.saturating_add(live) <= self.limit);
        self.admitted.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits).map(drop).map_err(|admitted| {
            self.metrics.buffer.refusals.inc();
            PlaneError::busy(format!(
                "the sample buffers are full: {live} bytes wait to be flushed and {admitted} to be committed, and {more} more \
                 would pass the limit of {} bytes",
                self.limit
            ))
        })
    }
}

/// Memory set aside for a request's body until its samples are acknowledged; dropped, it is free again.
#[derive(Debug)]
pub struct Admission {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Admission {
    /// Sets aside `bytes` in all, where that is more than before.
    ///
    /// # Errors
    /// [`PlaneError::Busy`] when there is no room; what was set aside before stays.
    pub fn grow_to(&mut self, bytes: usize) -> Result<(), PlaneError> {
        if bytes > self.bytes {
            self.budget.take(bytes - self.bytes)?;
            self.bytes = bytes;
        }
        Ok(())
    }

    /// Gives back what is set aside beyond `bytes`.
    pub fn shrink_to(&mut self, bytes: usize) {
        if bytes < self.bytes {
            self.budget.admitted.fetch_sub(self.bytes - bytes, Ordering::AcqRel);
            self.bytes = bytes;
        }
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.budget.admitted.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::Budget;
    use crate::plane::PlaneError;
    use crate::telemetry::metrics::Metrics;

    fn budget(limit: usize) -> Arc<Budget> {
        Budget::new(limit, Arc::new(Metrics::new()))
    }

    #[test]
    fn what_is_admitted_never_passes_the_limit_and_is_given_back() {
        let budget = budget(100);
        let mut first = Budget::admit(&budget, 60).unwrap();
        assert!(matches!(Budget::admit(&budget, 41), Err(PlaneError::Busy { .. })));
        first.grow_to(100).unwrap();
        assert!(matches!(first.grow_to(101), Err(PlaneError::Busy { .. })));
        drop(first);
        Budget::admit(&budget, 100).unwrap();
    }

    #[test]
    fn what_a_request_no_longer_needs_is_there_for_others() {
        let budget = budget(100);
        let mut first = Budget::admit(&budget, 90).unwrap();
        first.shrink_to(40);
        first.shrink_to(50);
        let second = Budget::admit(&budget, 60).unwrap();
        drop((first, second));
        Budget::admit(&budget, 100).unwrap();
    }

    #[test]
    fn samples_that_wait_to_be_flushed_count_against_the_limit() {
        let budget = budget(100);
        budget.set_live(80);
        assert!(Budget::admit(&budget, 21).is_err());
        budget.set_live(0);
        Budget::admit(&budget, 21).unwrap();
    }
}
