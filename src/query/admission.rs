//! Which query runs next, so that no org takes every slot.
//!
//! A place is held while a query computes. With `places` of `n`, one token runs at most `n` queries at once, one org
//! `n + 1`, all together `n + 2`: whatever one token does, another of its org finds a place, and whatever one org does,
//! another org finds one. Who waits is let in by how few of its org run, then how few of its token, then how long it
//! has waited.
//!
//! Threads that compute are shared by whatever there is to compute. So the more queries of an org run as one begins,
//! the fewer parts it is cut into that run at once: an org that asks much has not much more of the processors than one
//! that asks one thing.
//!
//! A query whose reader is slow gives its place back and is *parked*: it goes on when its reader has read, once it has
//! a place again. What is parked holds memory, so an org may have only so many parked, and the answer of one more is
//! broken off: a slow reader costs its own.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::model::OrgName;

/// Parked queries of one org, for each place of a token.
const PARKED_A_PLACE: usize = 2;

/// Whose query: an org, and a token of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Party {
    pub(super) org: OrgName,
    /// None where no token was needed.
    pub(super) token: Option<Arc<str>>,
}

#[derive(Debug, Default)]
struct State {
    running: usize,
    by_org: HashMap<OrgName, usize>,
    by_party: HashMap<Party, usize>,
    parked: HashMap<OrgName, usize>,
    waiting: Vec<Waiting>,
    arrivals: u64,
}

#[derive(Debug)]
struct Waiting {
    party: Party,
    arrival: u64,
    place: oneshot::Sender<Place>,
}

/// The places of one kind of query.
#[derive(Debug)]
pub(super) struct Admission {
    places: usize,
    state: Mutex<State>,
}

/// A place; dropped, it goes to who waits.
#[derive(Debug)]
pub(super) struct Place {
    admission: Arc<Admission>,
    party: Option<Party>,
}

/// That a query is parked.
#[derive(Debug)]
pub(super) struct Parked {
    admission: Arc<Admission>,
    org: OrgName,
}

impl Admission {
    /// With so many places for one token.
    pub(super) fn new(places: usize) -> Arc<Self> {
        Arc::new(Self { places: places.max(1), state: Mutex::default() })
    }

    /// The most queries that run at once.
    pub(super) fn most(&self) -> usize {
        self.places.saturating_add(2)
    }

    /// A place within `patience`, if there is one.
    pub(super) async fn enter(self: &Arc<Self>, party: &Party, patience: Duration) -> Option<Place> {
        let place = {
            let mut state = self.state.lock();
            if state.waiting.is_empty() && self.has_room(&state, party) {
                return Some(self.take(&mut state, party));
            }
            // Who has left waits no more, though no place came that would have found it out.
            state.waiting.retain(|waiting| !waiting.place.is_closed());
            let (sender, place) = oneshot::channel();
            state.arrivals += 1;
            let arrival = state.arrivals;
            state.waiting.push(Waiting { party: party.clone(), arrival, place: sender });
            self.hand_out(&mut state);
            place
        };
        timeout(patience, place).await.ok()?.ok()
    }

    /// How many queries of an org run.
    pub(super) fn running_of(&self, org: &OrgName) -> usize {
        self.state.lock().by_org.get(org).copied().unwrap_or_default()
    }

    /// Notes a query as parked, if its org may have one more.
    pub(super) fn park(self: &Arc<Self>, org: &OrgName) -> Option<Parked> {
        let mut state = self.state.lock();
        let parked = state.parked.entry(org.clone()).or_default();
        if *parked >= self.places.saturating_mul(PARKED_A_PLACE) {
            return None;
        }
        *parked += 1;
        Some(Parked { admission: Arc::clone(self), org: org.clone() })
    }

    fn has_room(&self, state: &State, party: &Party) -> bool {
        state.running < self.places.saturating_add(2)
            && state.by_org.get(&party.org).is_none_or(|running| *running <= self.places)
            && state.by_party.get(party).is_none_or(|running| *running < self.places)
    }

    fn take(self: &Arc<Self>, state: &mut State, party: &Party) -> Place {
        state.running += 1;
        *state.by_org.entry(party.org.clone()).or_default() += 1;
        *state.by_party.entry(party.clone()).or_default() += 1;
        Place { admission: Arc::clone(self), party: Some(party.clone()) }
    }

    fn give_back(state: &mut State, party: &Party) {
        state.running = state.running.saturating_sub(1);
        less(&mut state.by_org, &party.org);
        less(&mut state.by_party, party);
    }

    /// Admits the queries that may run, of the least served org first.
    fn hand_out(self: &Arc<Self>, state: &mut State) {
        loop {
            let share = |waiting: &Waiting| {
                let of_org = state.by_org.get(&waiting.party.org).copied().unwrap_or_default();
                let of_party = state.by_party.get(&waiting.party).copied().unwrap_or_default();
                (of_org, of_party, waiting.arrival)
            };
            let next = state.waiting.iter().enumerate().filter(|(_, waiting)| self.has_room(state, &waiting.party));
            let Some(next) = next.min_by_key(|(_, waiting)| share(waiting)).map(|(index, _)| index) else { return };
            let Waiting { party, place: sender, .. } = state.waiting.swap_remove(next);
            let place = self.take(state, &party);
            // It waits no more: its place is the next one's. The lock is held, so it is not dropped as others are.
            if let Err(mut place) = sender.send(place)
                && let Some(party) = place.party.take()
            {
                Self::give_back(state, &party);
            }
        }
    }
}

fn less<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count = count.saturating_sub(1);
        if *count == 0 {
            counts.remove(key);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(party) = self.party.take() else { return };
        let mut state = self.admission.state.lock();
        Admission::give_back(&mut state, &party);
        self.admission.hand_out(&mut state);
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        less(&mut self.admission.state.lock().parked, &self.org);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::{Admission, Party};

    const SOON: Duration = Duration::from_millis(20);
    const LATER: Duration = Duration::from_secs(30);

    fn party(org: &str, token: &str) -> Party {
        Party { org: org.parse().unwrap(), token: Some(token.into()) }
    }

    #[tokio::test]
    async fn a_token_leaves_a_place_to_its_org_and_an_org_one_to_the_others() {
        let admission = Admission::new(2);
        let mut held = Vec::new();
        for (org, token, enters) in [
            ("acme", "a", true),
            ("acme", "a", true),
            ("acme", "a", false),
            ("acme", "b", true),
            ("acme", "b", false),
            ("globex", "c", true),
            ("globex", "c", false),
        ] {
            let place = admission.enter(&party(org, token), SOON).await;
            assert_eq!(place.is_some(), enters, "{org} {token} with {}", held.len());
            held.extend(place);
        }
        assert_eq!(held.len(), admission.most());
        assert_eq!(admission.running_of(&"acme".parse().unwrap()), 3);
        held.clear();
        assert!(admission.enter(&party("acme", "a"), SOON).await.is_some());
    }

    #[tokio::test]
    async fn who_has_least_is_let_in_first() {
        let admission = Admission::new(1);
        let busy = [
            admission.enter(&party("acme", "a"), SOON).await.unwrap(),
            admission.enter(&party("acme", "b"), SOON).await.unwrap(),
            admission.enter(&party("initech", "i"), SOON).await.unwrap(),
        ];
        let (sender, mut order) = tokio::sync::mpsc::unbounded_channel();
        for (org, token) in [("acme", "c"), ("acme", "d"), ("globex", "g")] {
            let (admission, sender) = (Arc::clone(&admission), sender.clone());
            tokio::spawn(async move {
                let place = admission.enter(&party(org, token), LATER).await;
                sender.send((org, place)).unwrap();
            });
            tokio::task::yield_now().await;
        }
        let [first, second, third] = busy;
        drop(third);
        let (org, _globex) = order.recv().await.unwrap();
        assert_eq!(org, "globex", "though two of acme waited longer");
        drop((first, second));
        assert_eq!(order.recv().await.unwrap().0, "acme");
    }

    #[tokio::test]
    async fn a_place_given_to_who_left_is_the_next_ones() {
        let admission = Admission::new(1);
        let held = admission.enter(&party("acme", "a"), SOON).await.unwrap();
        let left = tokio::spawn({
            let admission = Arc::clone(&admission);
            async move { admission.enter(&party("acme", "a"), LATER).await.is_some() }
        });
        tokio::task::yield_now().await;
        left.abort();
        assert!(left.await.is_err());
        drop(held);
        assert!(admission.enter(&party("acme", "a"), SOON).await.is_some());
    }

    #[tokio::test]
    async fn an_org_may_have_so_many_parked_and_no_more() {
        let admission = Admission::new(1);
        let acme = "acme".parse().unwrap();
        let parked = [admission.park(&acme).unwrap(), admission.park(&acme).unwrap()];
        assert!(admission.park(&acme).is_none());
        assert!(admission.park(&"globex".parse().unwrap()).is_some());
        drop(parked);
        assert!(admission.park(&acme).is_some());
    }
}
