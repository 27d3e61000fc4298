//! Periodic work for every org: side by side, a bounded number at once, and no org waits for one that hangs (rule L10).
//!
//! A round begins the work of the orgs that are due, each in a task of its own, and waits for them, but not for long:
//! what takes longer goes on beside the next rounds, and its org is left out of these until it has ended. So an org
//! whose files hang keeps its own work from being done, and no other's. Each has its turn
//! ([`Turns`]), so that where all orgs are due at once not all of them take memory and threads at once.

use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::turns::Turns;
use crate::model::OrgName;
use crate::state::Org;

/// How long a round waits for those that it began.
const ROUND: Duration = Duration::from_secs(2);
/// How long a turn lasts at most.
const TURN: Duration = Duration::from_secs(2);

/// Rounds of one kind of work over all orgs.
#[derive(Debug)]
pub(super) struct Rounds {
    turns: Arc<Turns>,
    under_way: Arc<Mutex<HashSet<OrgName>>>,
}

impl Rounds {
    /// Rounds in which so many orgs have their turn at once.
    pub(super) fn new(at_once: usize) -> Self {
        Self { turns: Arc::new(Turns::new(at_once, TURN)), under_way: Arc::default() }
    }

    /// Does `work` for each of these orgs that it is not being done for, and waits for it for a while.
    pub(super) async fn run<F>(&self, orgs: impl IntoIterator<Item = Arc<Org>>, work: impl Fn(Arc<Org>) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut tasks = JoinSet::new();
        for org in orgs {
            if !self.under_way.lock().insert(org.name.clone()) {
                continue;
            }
            let (turns, under_way) = (Arc::clone(&self.turns), Arc::clone(&self.under_way));
            let done = UnderWay { name: org.name.clone(), under_way };
            let work = work(org);
            tasks.spawn(async move {
                let _done = done;
                turns.run(work).await;
            });
        }
        // What panicked has said so, and is begun anew with a later round.
        let ended = timeout(ROUND, async { while tasks.join_next().await.is_some() {} }).await;
        if ended.is_err() {
            tasks.detach_all();
        }
    }
}

/// Takes an org off the list when its work ends, however it does.
struct UnderWay {
    name: OrgName,
    under_way: Arc<Mutex<HashSet<OrgName>>>,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.under_way.lock().remove(&self.name);
    }
}
