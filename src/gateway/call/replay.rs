//! States that clients brought back: the first time one is brought its call goes on, which has been counted.
//!
//! A sealed state says by itself that it is the gateway's and whose it is, not how often it was brought. A server that
//! keeps no call is asked again by each retry, so a state that is brought again is another call, and counts as one.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// States that are remembered; past it each retry counts as a call.
const MAX_STATES: usize = 65_536;

/// The sealed states that were brought back, until they are too old.
#[derive(Debug, Default)]
pub(crate) struct Replays(Mutex<HashMap<[u8; 16], Instant>>);

impl Replays {
    /// Whether a state, which is of no use after `lifetime`, is brought for the first time.
    pub(crate) fn is_first(&self, state: &str, lifetime: Duration) -> bool {
        let mut key = [0; 16];
        blake3::Hasher::new().update(state.as_bytes()).finalize_xof().fill(&mut key);
        let mut brought = self.0.lock();
        let now = Instant::now();
        if brought.len() >= MAX_STATES {
            brought.retain(|_, until| *until > now);
        }
        let is_known = brought.contains_key(&key);
        if is_known || brought.len() >= MAX_STATES {
            return false;
        }
        brought.insert(key, now + lifetime);
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{MAX_STATES, Replays};

    #[tokio::test(start_paused = true)]
    async fn a_state_is_brought_for_the_first_time_once() {
        let (replays, lifetime) = (Replays::default(), Duration::from_secs(300));
        assert!(replays.is_first("a", lifetime) && replays.is_first("b", lifetime));
        assert!(!replays.is_first("a", lifetime));
        for n in 0..MAX_STATES {
            replays.is_first(&n.to_string(), lifetime);
        }
        assert!(!replays.is_first("new", lifetime), "without room each counts as a call");
        tokio::time::advance(lifetime).await;
        assert!(replays.is_first("new", lifetime), "what has expired makes room");
    }
}
