//! What one query holds: what it has reserved of the engine's memory pool, and the batches that are on their way in it.
//!
//! The pool counts what sorts, groups, joins and whole windows hold, for all queries together; [`QueryPool`] stands
//! before it and counts by query and org, so that one org leaves a share of the pool to the others. The pool does not
//! count batches on their way between operators: [`Usage`] has them from the plan's own streams, see `metered`.

use std::collections::HashMap;
use std::fmt::{self, Debug, Display};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use datafusion::common::{DataFusionError, Result};
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryLimit, MemoryPool, MemoryReservation};
use parking_lot::Mutex;

use super::QueryError;
use crate::model::OrgName;

/// The share of the pool, and of the room for spill files, that one org may have, in quarters.
pub(super) const SHARE_OF_ORG: usize = 3;

/// What a query holds, in bytes.
#[derive(Debug, Default)]
pub(super) struct Usage {
    reserved: AtomicUsize,
    flowing: AtomicUsize,
}

impl Usage {
    /// All of it.
    pub(super) fn bytes(&self) -> usize {
        self.reserved.load(Ordering::Relaxed).saturating_add(self.flowing.load(Ordering::Relaxed))
    }

    /// A batch of so many bytes takes the place of one of `before`.
    pub(super) fn flows(&self, before: usize, now: usize) {
        add(&self.flowing, now);
        subtract(&self.flowing, before);
    }
}

fn add(count: &AtomicUsize, bytes: usize) {
    count.fetch_add(bytes, Ordering::Relaxed);
}

fn subtract(count: &AtomicUsize, bytes: usize) {
    // Never below nothing: a count that wrapped would look like all memory there is.
    count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| Some(count.saturating_sub(bytes))).ok();
}

/// What each org has of the pool.
#[derive(Debug, Default)]
pub(super) struct Shares(Mutex<HashMap<OrgName, Weak<AtomicUsize>>>);

impl Shares {
    fn of(&self, org: &OrgName) -> Arc<AtomicUsize> {
        let mut shares = self.0.lock();
        shares.retain(|_, share| share.strong_count() > 0);
        if let Some(share) = shares.get(org).and_then(Weak::upgrade) {
            return share;
        }
        let share = Arc::new(AtomicUsize::new(0));
        shares.insert(org.clone(), Arc::downgrade(&share));
        share
    }
}

/// The pool as one query has it.
pub(super) struct QueryPool {
    pool: Arc<dyn MemoryPool>,
    usage: Arc<Usage>,
    org: Arc<AtomicUsize>,
    share: usize,
}

impl QueryPool {
    /// The pool of `bytes` for a query of `org`.
    pub(super) fn new(
        pool: Arc<dyn MemoryPool>,
        bytes: usize,
        shares: &Shares,
        org: &OrgName,
        usage: Arc<Usage>,
    ) -> Self {
        Self { pool, usage, org: shares.of(org), share: bytes / 4 * SHARE_OF_ORG }
    }
}

impl Debug for QueryPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueryPool").field("usage", &self.usage).finish_non_exhaustive()
    }
}

impl Display for QueryPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Display::fmt(&self.pool, f)
    }
}

impl MemoryPool for QueryPool {
    fn name(&self) -> &str {
        self.pool.name()
    }

    fn register(&self, consumer: &MemoryConsumer) {
        self.pool.register(consumer);
    }

    fn unregister(&self, consumer: &MemoryConsumer) {
        self.pool.unregister(consumer);
    }

    fn grow(&self, reservation: &MemoryReservation, additional: usize) {
        add(&self.org, additional);
        add(&self.usage.reserved, additional);
        self.pool.grow(reservation, additional);
    }

    fn shrink(&self, reservation: &MemoryReservation, shrink: usize) {
        self.pool.shrink(reservation, shrink);
        subtract(&self.org, shrink);
        subtract(&self.usage.reserved, shrink);
    }

    fn try_grow(&self, reservation: &MemoryReservation, additional: usize) -> Result<()> {
        if self.org.load(Ordering::Relaxed).saturating_add(additional) > self.share {
            return Err(DataFusionError::ResourcesExhausted("the org has its share of the memory".to_owned()));
        }
        self.pool.try_grow(reservation, additional)?;
        add(&self.org, additional);
        add(&self.usage.reserved, additional);
        Ok(())
    }

    fn reserved(&self) -> usize {
        self.pool.reserved()
    }

    fn memory_limit(&self) -> MemoryLimit {
        self.pool.memory_limit()
    }
}

/// That a query holds too much.
pub(super) fn too_much() -> QueryError {
    QueryError::Memory(
        "the queries together hold more than they may, and this one held the most; filter more, or select fewer columns".into(),
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use datafusion::execution::memory_pool::{GreedyMemoryPool, MemoryConsumer, MemoryPool};

    use super::{QueryPool, Shares, Usage};

    #[test]
    fn an_org_leaves_a_share_to_the_others_whatever_its_queries_take() {
        let pool: Arc<dyn MemoryPool> = Arc::new(GreedyMemoryPool::new(400));
        let shares = Shares::default();
        let query = |org: &str| -> (Arc<dyn MemoryPool>, Arc<Usage>) {
            let usage = Arc::new(Usage::default());
            let org = org.parse().unwrap();
            (Arc::new(QueryPool::new(Arc::clone(&pool), 400, &shares, &org, Arc::clone(&usage))), usage)
        };
        let ((first, usage), (second, _), (other, _)) = (query("acme"), query("acme"), query("globex"));
        let one = MemoryConsumer::new("sort").register(&first);
        let two = MemoryConsumer::new("sort").register(&second);
        one.try_grow(200).unwrap();
        assert_eq!(usage.bytes(), 200);
        two.try_grow(100).unwrap();
        two.try_grow(1).unwrap_err();
        let three = MemoryConsumer::new("sort").register(&other);
        three.try_grow(100).unwrap();
        drop(one);
        assert_eq!(usage.bytes(), 0);
        two.try_grow(200).unwrap();
    }

    #[test]
    fn batches_on_their_way_count_once_each() {
        let usage = Usage::default();
        usage.flows(0, 100);
        usage.flows(100, 30);
        assert_eq!(usage.bytes(), 30);
        usage.flows(40, 0);
        assert_eq!(usage.bytes(), 0);
    }
}
