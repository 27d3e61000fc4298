//! Turns: so many at once, and who waits is served fairly between callers.
//!
//! Each caller that waits has a queue of its own, and the queues are served in turn, one from each. So a caller with a
//! thousand requests waiting delays another's first by one turn, not by a thousand. A request that gave its turn back
//! while a person was waited for comes before its caller's others when it wants it again.
//!
//! A turn is passed on to the next who waits the moment it is given back; one who stopped waiting is passed over.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus::IntGauge;
use tokio::sync::oneshot;

/// So many at once.
#[derive(Debug)]
pub(crate) struct Turns {
    most: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    taken: usize,
    /// Who waits, by caller.
    waiting: HashMap<Arc<str>, VecDeque<oneshot::Sender<Turn>>>,
    /// The callers that wait, in the order in which they are served.
    order: VecDeque<Arc<str>>,
}

/// A turn; over when it is dropped.
#[derive(Debug)]
pub(crate) struct Turn(Arc<Turns>);

/// The turns that a call has at its plugin and at the gateway.
#[derive(Debug)]
pub(crate) struct Held {
    running: IntGauge,
    _plugin: Turn,
    _gateway: Turn,
}

impl Held {
    pub(crate) fn new(plugin: Turn, gateway: Turn, running: &IntGauge) -> Self {
        running.inc();
        Self { running: running.clone(), _plugin: plugin, _gateway: gateway }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.running.dec();
    }
}

impl Turns {
    pub(crate) fn new(most: u64) -> Arc<Self> {
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        Arc::new(Self { most, state: Mutex::default() })
    }

    /// How many there are.
    pub(crate) fn most(&self) -> usize {
        self.most
    }

    /// A turn for `caller`; waits until it comes. `again`: it had one already, for the same request.
    pub(crate) async fn take(self: &Arc<Self>, caller: &Arc<str>, again: bool) -> Turn {
        let waits = {
            let mut state = self.state.lock();
            if state.taken < self.most && state.order.is_empty() {
                state.taken += 1;
                return Turn(Arc::clone(self));
            }
            let (turn, waits) = oneshot::channel();
            let queue = state.waiting.entry(Arc::clone(caller)).or_default();
            let is_new = queue.is_empty();
            if again {
                queue.push_front(turn);
            } else {
                queue.push_back(turn);
            }
            if is_new {
                state.order.push_back(Arc::clone(caller));
            }
            // Turns may be free where all who waited for them are gone.
            waits
        };
        self.pass_on();
        match waits.await {
            Ok(turn) => turn,
            // Senders are dropped with `self` alone, which is held here.
            Err(_) => std::future::pending().await,
        }
    }

    /// Gives free turns to those who wait.
    fn pass_on(self: &Arc<Self>) {
        loop {
            let waiter = {
                let mut state = self.state.lock();
                if state.taken >= self.most {
                    return;
                }
                let Some(waiter) = state.next() else { return };
                state.taken += 1;
                waiter
            };
            // One who stopped waiting drops the turn, which is then passed on from there; no lock is held.
            drop(waiter.send(Turn(Arc::clone(self))));
        }
    }
}

impl State {
    /// Who is served next.
    fn next(&mut self) -> Option<oneshot::Sender<Turn>> {
        while let Some(caller) = self.order.pop_front() {
            let Some(queue) = self.waiting.get_mut(&caller) else { continue };
            let waiter = loop {
                match queue.pop_front() {
                    Some(waiter) if waiter.is_closed() => {}
                    found => break found,
                }
            };
            if queue.is_empty() {
                self.waiting.remove(&caller);
            } else {
                self.order.push_back(caller);
            }
            if waiter.is_some() {
                return waiter;
            }
        }
        None
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.state.lock().taken -= 1;
        self.0.pass_on();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;
    use tokio::task::yield_now;

    use super::Turns;

    #[tokio::test]
    async fn callers_are_served_one_after_the_other_however_many_requests_they_have() {
        let turns = Turns::new(1);
        let first = turns.take(&"x".into(), false).await;
        let served = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for name in ["a", "a", "a", "b", "c", "b"] {
            let (waits, served) = (Arc::clone(&turns), Arc::clone(&served));
            tasks.push(tokio::spawn(async move {
                let _turn = waits.take(&name.into(), false).await;
                served.lock().push(name);
            }));
            yield_now().await;
        }
        drop(first);
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*served.lock(), ["a", "b", "c", "a", "b", "a"]);
    }

    #[tokio::test]
    async fn one_who_stops_waiting_keeps_nobody_from_its_turn() {
        let turns = Turns::new(1);
        let first = turns.take(&"x".into(), false).await;
        let impatient = tokio::spawn({
            let turns = Arc::clone(&turns);
            async move { turns.take(&"a".into(), false).await }
        });
        yield_now().await;
        impatient.abort();
        let _ = impatient.await;
        drop(first);
        drop(turns.take(&"b".into(), false).await);
    }

    #[tokio::test]
    async fn a_request_that_gave_its_turn_back_comes_before_its_callers_others() {
        let turns = Turns::new(1);
        let first = turns.take(&"a".into(), false).await;
        let served = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for (name, again) in [("new", false), ("again", true)] {
            let (waits, served) = (Arc::clone(&turns), Arc::clone(&served));
            tasks.push(tokio::spawn(async move {
                let _turn = waits.take(&"a".into(), again).await;
                served.lock().push(name);
            }));
            yield_now().await;
        }
        drop(first);
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*served.lock(), ["again", "new"]);
    }
}
