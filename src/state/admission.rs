//! The memory budget for samples: bodies being read, batches being committed, and samples not yet flushed.
//!
//! Invariant I7: a request is admitted before its body is read, with the bytes it may need. When they do not fit it
//! waits for a short while, which makes a sender that is faster than the flush slow down rather than come again and
//! again; after that it is refused. The live buffer's bytes count too, so that a store that takes no flush makes new
//! requests be refused instead of memory grow.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::node::PlaneError;
use crate::telemetry::metrics::Metrics;

/// The share of the budget that bodies alone may not take, as a divisor: it is for decoding and committing those that
/// are there, so that bodies that wait for each other's room never fill it.
const HEADROOM: usize = 4;

/// How long a request waits for room. Longer than a flush of a full buffer takes when the store is well.
const ADMISSION_TIMEOUT: Duration = Duration::from_secs(2);

/// The memory budget; see the module's doc.
#[derive(Debug)]
pub struct Budget {
    limit: usize,
    admitted: AtomicUsize,
    live: AtomicUsize,
    /// Notified whenever there is more room than before.
    freed: Notify,
    /// Notified when the live buffers take so much that they should be flushed.
    crowded: Notify,
    metrics: Arc<Metrics>,
}

impl Budget {
    pub(crate) fn new(limit: usize, metrics: Arc<Metrics>) -> Arc<Self> {
        let (admitted, live) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Arc::new(Self { limit, admitted, live, freed: Notify::new(), crowded: Notify::new(), metrics })
    }

    /// Sets aside `bytes` for a body, leaving headroom, as soon as there is room for them.
    ///
    /// # Errors
    /// [`PlaneError::Busy`] when there was none in time.
    pub(crate) async fn admit(budget: &Arc<Self>, bytes: usize) -> Result<Admission, PlaneError> {
        let mut admission = Admission { budget: Arc::clone(budget), bytes: 0 };
        // What would not fit beside the headroom even into an empty buffer does without.
        let roomy = budget.limit - budget.limit / HEADROOM;
        admission.wait_for(bytes, if bytes > roomy { budget.limit } else { roomy }).await?;
        Ok(admission)
    }

    /// Says how many bytes the live buffers of all orgs hold.
    pub(crate) fn set_live(&self, bytes: usize) {
        let before = self.live.swap(bytes, Ordering::AcqRel);
        if bytes < before {
            self.freed.notify_waiters();
        }
        if self.is_crowded() {
            self.crowded.notify_one();
        }
        self.metrics.buffer.bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// Says that the live buffers hold so many bytes more.
    pub(crate) fn add_live(&self, bytes: usize) {
        self.live.fetch_add(bytes, Ordering::AcqRel);
        if self.is_crowded() {
            self.crowded.notify_one();
        }
    }

    /// Whether the live buffers take more than a quarter of the budget: time to flush. Not more, because samples keep
    /// coming while a flush runs, and a sender who has to wait for its end leaves a core idle.
    pub(crate) fn is_crowded(&self) -> bool {
        self.live.load(Ordering::Acquire) > self.limit / 4
    }

    /// Waits until [`Budget::is_crowded`].
    pub(crate) async fn crowded(&self) {
        self.crowded.notified().await;
    }

    fn take(&self, more: usize, limit: usize) -> bool {
        let live = self.live.load(Ordering::Acquire);
        let fits = |admitted: usize| admitted.checked_add(more).filter(|sum| sum.saturating_add(live) <= limit);
        self.admitted.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits).is_ok()
    }

    fn give_back(&self, bytes: usize) {
        if bytes > 0 {
            self.admitted.fetch_sub(bytes, Ordering::AcqRel);
            self.freed.notify_waiters();
        }
    }

    fn refusal(&self, more: usize) -> PlaneError {
        self.metrics.buffer.refusals.inc();
        PlaneError::busy(format!(
            "the sample buffers are full: {} bytes wait to be flushed and {} to be committed, and {more} more would pass \
             the limit of {} bytes",
            self.live.load(Ordering::Acquire),
            self.admitted.load(Ordering::Acquire),
            self.limit
        ))
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
        if self.try_grow_to(bytes, self.budget.limit) { Ok(()) } else { Err(self.budget.refusal(bytes - self.bytes)) }
    }

    /// As [`Admission::grow_to`], but waits a while for room.
    ///
    /// # Errors
    /// [`PlaneError::Busy`] when there was none in time.
    pub async fn wait_to_grow_to(&mut self, bytes: usize) -> Result<(), PlaneError> {
        self.wait_for(bytes, self.budget.limit).await
    }

    async fn wait_for(&mut self, bytes: usize, limit: usize) -> Result<(), PlaneError> {
        let deadline = Instant::now() + ADMISSION_TIMEOUT;
        let budget = Arc::clone(&self.budget);
        loop {
            // Listened to before the attempt, so that no room that comes between the two is missed.
            let mut freed = std::pin::pin!(budget.freed.notified());
            freed.as_mut().enable();
            if self.try_grow_to(bytes, limit) {
                return Ok(());
            }
            // What an empty buffer could not hold is not waited for.
            if bytes > limit || timeout_at(deadline, freed).await.is_err() {
                return Err(budget.refusal(bytes - self.bytes));
            }
        }
    }

    fn try_grow_to(&mut self, bytes: usize, limit: usize) -> bool {
        let fits = bytes <= self.bytes || self.budget.take(bytes - self.bytes, limit);
        if fits {
            self.bytes = self.bytes.max(bytes);
        }
        fits
    }

    /// Gives back what is set aside beyond `bytes`.
    pub fn shrink_to(&mut self, bytes: usize) {
        if bytes < self.bytes {
            self.budget.give_back(self.bytes - bytes);
            self.bytes = bytes;
        }
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{Admission, Budget};
    use crate::node::PlaneError;
    use crate::telemetry::metrics::Metrics;

    fn budget(limit: usize) -> Arc<Budget> {
        Budget::new(limit, Arc::new(Metrics::new()))
    }

    fn admit(budget: &Arc<Budget>, bytes: usize) -> Result<Admission, PlaneError> {
        let mut admission = Admission { budget: Arc::clone(budget), bytes: 0 };
        admission.grow_to(bytes).map(|()| admission)
    }

    #[test]
    fn what_is_admitted_never_passes_the_limit_and_is_given_back() {
        let budget = budget(100);
        let mut first = admit(&budget, 60).unwrap();
        assert!(matches!(admit(&budget, 41), Err(PlaneError::Busy { .. })));
        first.grow_to(100).unwrap();
        assert!(matches!(first.grow_to(101), Err(PlaneError::Busy { .. })));
        drop(first);
        admit(&budget, 100).unwrap();
    }

    #[test]
    fn what_a_request_no_longer_needs_is_there_for_others() {
        let budget = budget(100);
        let mut first = admit(&budget, 90).unwrap();
        first.shrink_to(40);
        first.shrink_to(50);
        let second = admit(&budget, 60).unwrap();
        drop((first, second));
        admit(&budget, 100).unwrap();
    }

    #[test]
    fn samples_that_wait_to_be_flushed_count_against_the_limit() {
        let budget = budget(100);
        budget.set_live(80);
        assert!(admit(&budget, 21).is_err());
        budget.set_live(0);
        admit(&budget, 21).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_room_gets_it_when_another_gives_it_back_or_a_flush_does() {
        let budget = budget(100);
        let first = admit(&budget, 90).unwrap();
        let mut second = admit(&budget, 0).unwrap();
        let (grown, ()) = tokio::join!(second.wait_to_grow_to(50), async { drop(first) });
        grown.unwrap();
        budget.set_live(50);
        let mut third = admit(&budget, 0).unwrap();
        let (grown, ()) = tokio::join!(third.wait_to_grow_to(20), async { budget.set_live(10) });
        grown.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_in_vain_is_refused_and_what_can_never_fit_is_refused_at_once() {
        let budget = budget(100);
        let _first = admit(&budget, 90).unwrap();
        let began = tokio::time::Instant::now();
        assert!(Budget::admit(&budget, 101).await.is_err());
        assert!(began.elapsed().is_zero());
        assert!(Budget::admit(&budget, 50).await.is_err());
        assert_eq!(began.elapsed(), super::ADMISSION_TIMEOUT);
    }

    #[tokio::test(start_paused = true)]
    async fn bodies_leave_headroom_for_what_becomes_of_those_that_are_there() {
        let budget = budget(100);
        let mut first = Budget::admit(&budget, 75).await.unwrap();
        assert!(Budget::admit(&budget, 1).await.is_err());
        first.wait_to_grow_to(100).await.unwrap();
        drop(first);
        Budget::admit(&budget, 100).await.unwrap();
    }
}
