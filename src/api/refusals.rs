//! Requests that were refused for want of rights, for the ledger.
//!
//! A known caller who asks for what it may not do is recorded in the ledger of the org: at once the first time, and
//! then at most once a minute for an actor, a route and a reason, with how often. So a token can bring about a few
//! entries a minute and no flood, and memory holds `MOST` of them. Requests without a known token concern no org and
//! have no actor: they are counted in `mcpg_cp_http_requests_total` alone.
//!
//! What is not recorded yet is lost with a process that is killed, up to a minute's counts.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::model::OrgName;
use crate::plane::{Plane, PlaneError, Readiness, SystemEvent};

/// How often pending counts are checked.
const TICK: Duration = Duration::from_millis(500);
/// How often one actor's refusals on one route are recorded at most.
const PERIOD: Duration = Duration::from_secs(60);
/// Actors and routes that are remembered at once; what is beyond waits for room, uncounted.
const MOST: usize = 10_000;

/// Who was refused, and why.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Refused {
    org: OrgName,
    actor: String,
    why: &'static str,
}

impl Refused {
    /// An actor of the ledger of `org`.
    pub(super) fn new(org: &OrgName, actor: &str, why: &'static str) -> Self {
        Self { org: org.clone(), actor: actor.to_owned(), why }
    }
}

#[derive(Debug, Default)]
struct Tally {
    count: u64,
    told_at: Option<Instant>,
}

impl Tally {
    fn is_due(&self, now: Instant, at_the_end: bool) -> bool {
        self.count > 0 && (at_the_end || self.told_at.is_none_or(|at| now.duration_since(at) >= PERIOD))
    }
}

/// Counts of refused requests that the ledgers do not have yet.
#[derive(Debug, Default)]
pub struct Refusals(Mutex<HashMap<(Refused, String), Tally>>);

impl Refusals {
    /// Counts a refusal on a route.
    pub(super) fn note(&self, refused: Refused, route: String) {
        let mut tallies = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (refused, route);
        if tallies.len() < MOST || tallies.contains_key(&key) {
            tallies.entry(key).or_default().count += 1;
        }
    }

    /// What is to be recorded now, with its counts; what cannot be is given back by [`Refusals::give_back`].
    fn due(&self, now: Instant, at_the_end: bool) -> Vec<(Refused, String, u64)> {
        let mut tallies = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // One that was recorded long ago and has not come again is forgotten.
        tallies.retain(|_, tally| tally.count > 0 || tally.told_at.is_some_and(|at| now.duration_since(at) < PERIOD));
        let due = tallies.iter_mut().filter(|(_, tally)| tally.is_due(now, at_the_end));
        let due = due.map(|((refused, route), tally)| {
            tally.told_at = Some(now);
            (refused.clone(), route.clone(), std::mem::take(&mut tally.count))
        });
        due.collect()
    }

    fn give_back(&self, refused: Refused, route: String, count: u64) {
        let mut tallies = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tallies.entry((refused, route)).or_default().count += count;
    }

    /// Tells the ledgers what is due, or all there is at the end.
    pub async fn record(&self, plane: &Plane, at_the_end: bool) {
        for (refused, route, count) in self.due(Instant::now(), at_the_end) {
            let action = action(&route);
            let event = SystemEvent::new(refused.actor.clone(), action)
                .target(&route)
                .decision("deny")
                .reason(refused.why)
                .detail(json!({ "count": count }));
            match plane.record(&refused.org, vec![event]).await {
                Ok(()) | Err(PlaneError::OrgStopped { .. }) => {}
                Err(error) => {
                    tracing::warn!(%error, "refused requests could not be put into the ledger; it is tried again");
                    self.give_back(refused, route, count);
                }
            }
        }
    }
}

/// What a refusal on a route is called.
fn action(route: &str) -> &'static str {
    if route.ends_with("/payloads/view") || route.ends_with("/payloads/export") {
        "payload.view_denied"
    } else {
        "operator.request_refused"
    }
}

/// Tells the ledgers until the plane drains.
pub async fn run(refusals: Arc<Refusals>, plane: Arc<Plane>) {
    loop {
        sleep(TICK).await;
        match plane.readiness() {
            Readiness::Replaying { .. } => {}
            Readiness::Ready => refusals.record(&plane, false).await,
            Readiness::Draining => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::{PERIOD, Refusals, Refused};

    fn refused(token: &str) -> Refused {
        Refused::new(&"acme".parse().unwrap(), token, "role_missing")
    }

    fn counts(refusals: &Refusals, now: Instant, at_the_end: bool) -> Vec<u64> {
        refusals.due(now, at_the_end).into_iter().map(|(.., count)| count).collect()
    }

    #[test]
    fn the_first_is_told_at_once_and_further_ones_once_a_minute() {
        let (refusals, now) = (Refusals::default(), Instant::now());
        refusals.note(refused("a"), "POST /x".to_owned());
        assert_eq!(counts(&refusals, now, false), [1]);
        for _ in 0..1_000 {
            refusals.note(refused("a"), "POST /x".to_owned());
        }
        assert!(counts(&refusals, now + Duration::from_secs(1), false).is_empty());
        assert_eq!(counts(&refusals, now + PERIOD, false), [1_000]);
        assert!(counts(&refusals, now + PERIOD * 3, false).is_empty());
    }

    #[test]
    fn each_token_and_route_is_told_of_apart_and_the_end_waits_for_nothing() {
        let (refusals, now) = (Refusals::default(), Instant::now());
        for (token, route) in [("a", "POST /x"), ("a", "POST /y"), ("b", "POST /x")] {
            refusals.note(refused(token), route.to_owned());
        }
        assert_eq!(counts(&refusals, now, false), [1, 1, 1]);
        refusals.note(refused("b"), "POST /x".to_owned());
        assert_eq!(counts(&refusals, now, true), [1]);
    }

    #[test]
    fn what_could_not_be_told_is_kept() {
        let (refusals, now) = (Refusals::default(), Instant::now());
        refusals.note(refused("a"), "POST /x".to_owned());
        for (refused, route, count) in refusals.due(now, false) {
            refusals.give_back(refused, route, count);
        }
        assert_eq!(counts(&refusals, now + PERIOD, false), [1]);
    }
}
