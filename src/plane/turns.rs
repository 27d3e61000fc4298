//! Turns: a bounded number is taken at once, and none is kept for good (rule L10).
//!
//! A turn is given back when the work ends, or once it has lasted for a while: then the work goes on without one, and
//! the next in the queue begins. So what hangs uses up no turn for good, and where there is much to do not all of it is
//! begun at once, however long the queue is. The trade-off: each that hangs holds up the queue once, for as long as a
//! turn lasts.

use std::pin::pin;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::timeout;

/// A bounded number of turns.
#[derive(Debug)]
pub(super) struct Turns {
    permits: Semaphore,
    longest: Duration,
}

impl Turns {
    /// Turns of which so many are had at once, each for at most so long.
    pub(super) fn new(at_once: usize, longest: Duration) -> Self {
        Self { permits: Semaphore::new(at_once), longest }
    }

    /// Does some work when it is its turn.
    pub(super) async fn run<T>(&self, work: impl Future<Output = T>) -> T {
        // It is never closed.
        let turn = self.permits.acquire().await;
        let mut work = pin!(work);
        match timeout(self.longest, &mut work).await {
            Ok(done) => done,
            Err(_) => {
                drop(turn);
                work.await
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use futures::future::join_all;
    use tokio::time::{Instant, sleep, timeout};

    use super::Turns;

    const LONGEST: Duration = Duration::from_secs(2);

    #[tokio::test(start_paused = true)]
    async fn never_more_are_at_work_than_there_are_turns_however_long_the_queue_is() {
        let (turns, at_work, most) = (Turns::new(3, LONGEST), AtomicUsize::new(0), AtomicUsize::new(0));
        let work = || async {
            most.fetch_max(at_work.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
            sleep(LONGEST / 2).await;
            at_work.fetch_sub(1, Ordering::Relaxed);
        };
        join_all((0..100).map(|_| turns.run(work()))).await;
        assert_eq!(most.load(Ordering::Relaxed), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn what_hangs_gives_its_turn_back() {
        let (turns, began) = (Turns::new(1, LONGEST), Instant::now());
        let hanging = timeout(10 * LONGEST, turns.run(pending::<()>()));
        let (hung, ()) = tokio::join!(hanging, turns.run(async { assert_eq!(began.elapsed(), LONGEST) }));
        assert!(hung.is_err());
    }
}
