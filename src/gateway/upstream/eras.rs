//! What is known of the generations that a plugin's server speaks, and since when.
//!
//! That a server is modern holds until a request fails as no modern one would. That it is not is asked again after a
//! while: a server that was upgraded goes on to serve old clients, so nothing would ever fail. The same for whether a
//! modern server serves the old generation, too, which only its answer to `initialize` says.

use std::time::Duration;

use tokio::time::Instant;

/// How long it counts that a server does not speak a generation.
pub(super) const FORGET_AFTER: Duration = Duration::from_secs(3_600);

/// How long it counts that a server did not answer at all.
pub(super) const ASK_AGAIN_AFTER: Duration = Duration::from_secs(30);

/// The generations that a plugin's server is known to speak.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Eras {
    /// And since when.
    modern: Option<(bool, Instant)>,
    /// And until when a no counts.
    old: Option<(bool, Instant)>,
}

impl Eras {
    /// Whether it is modern; `None`: not known.
    pub(super) fn modern(&self) -> Option<bool> {
        self.modern.map(|(is_modern, _)| is_modern)
    }

    /// Whether it serves the old generation; `None`: not known, or not since lately.
    pub(super) fn old(&self, now: Instant) -> Option<bool> {
        match self.old? {
            (false, until) if now >= until => None,
            (serves, _) => Some(serves),
        }
    }

    pub(super) fn set_modern(&mut self, is_modern: bool, now: Instant) {
        if self.modern() != Some(is_modern) {
            self.old = None;
        }
        self.modern = Some((is_modern, now));
    }

    pub(super) fn set_old(&mut self, serves: bool, now: Instant) {
        self.old = Some((serves, now + FORGET_AFTER));
    }

    /// It did not say whether it serves the old generation: it is taken not to, for a while.
    pub(super) fn doubt_old(&mut self, now: Instant) {
        self.old = Some((false, now + ASK_AGAIN_AFTER));
    }

    /// Whether it is time to ask again whether it is modern.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        matches!(self.modern, Some((false, since)) if is_over(since, now))
    }
}

fn is_over(since: Instant, now: Instant) -> bool {
    now.saturating_duration_since(since) >= FORGET_AFTER
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::{Eras, FORGET_AFTER};

    #[test]
    fn a_no_is_asked_again_and_a_yes_counts_until_it_fails() {
        let (mut eras, now) = (Eras::default(), Instant::now());
        let later = now + FORGET_AFTER;
        assert!(!eras.is_due(later) && eras.modern().is_none());
        eras.set_modern(false, now);
        assert!(!eras.is_due(now) && eras.is_due(later));
        eras.set_modern(true, now);
        eras.set_old(false, now);
        assert!(!eras.is_due(later));
        assert_eq!((eras.old(now), eras.old(later)), (Some(false), None));
        eras.set_old(true, now);
        assert_eq!(eras.old(later), Some(true));
        eras.doubt_old(now);
        assert_eq!((eras.old(now), eras.old(now + super::ASK_AGAIN_AFTER)), (Some(false), None));
        eras.set_modern(false, later);
        assert_eq!(eras.old(later), None, "a server of another generation is another server");
    }
}
