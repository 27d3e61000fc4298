//! When to try again what has failed: after twice as long each time, up to a longest wait.

use std::time::Duration;

use tokio::time::Instant;

use crate::config::Restart;

/// The failures in a row, and when the next try may be.
#[derive(Debug)]
pub(super) struct Backoff {
    first_wait: Duration,
    longest_wait: Duration,
    failures: u32,
    next_try: Option<Instant>,
}

impl Backoff {
    pub(super) fn new(settings: &Restart) -> Self {
        Self {
            first_wait: settings.first_wait.as_duration(),
            longest_wait: settings.longest_wait.as_duration(),
            failures: 0,
            next_try: None,
        }
    }

    /// Whether it may be tried now.
    pub(super) fn may_try(&self, now: Instant) -> bool {
        self.next_try.is_none_or(|next| next <= now)
    }

    /// It failed: how long to wait before the next try.
    pub(super) fn failed(&mut self, now: Instant) -> Duration {
        let wait = self.first_wait.saturating_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX));
        let wait = wait.min(self.longest_wait);
        self.failures = self.failures.saturating_add(1);
        self.next_try = now.checked_add(wait);
        wait
    }

    /// It worked.
    pub(super) fn succeeded(&mut self) {
        self.failures = 0;
        self.next_try = None;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::Backoff;
    use crate::config::{Period, Restart};

    #[test]
    fn each_failure_doubles_the_wait_up_to_the_longest() {
        let settings = Restart {
            first_wait: Period::new(Duration::from_secs(1)),
            longest_wait: Period::new(Duration::from_secs(5)),
        };
        let (mut backoff, now) = (Backoff::new(&settings), Instant::now());
        let waits: Vec<_> = (0..5).map(|_| backoff.failed(now).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 5, 5]);
        for _ in 0..100 {
            assert_eq!(backoff.failed(now).as_secs(), 5);
        }
        assert!(!backoff.may_try(now + Duration::from_secs(4)));
        assert!(backoff.may_try(now + Duration::from_secs(5)));
        backoff.succeeded();
        assert!(backoff.may_try(now));
        assert_eq!(backoff.failed(now).as_secs(), 1);
    }
}
