//! The sessions of one endpoint: opening, finding, evicting.
//!
//! There are at most so many, and at most so many of one caller. Past the latter a caller's own session that it used
//! least lately makes room; past the former that of the caller who has most, unless the newcomer has most itself: then
//! only one that was long unused. A session with calls or streams under way makes room for nobody. A session that has
//! made room is unknown afterwards (404).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};

use super::session::Session;
use crate::gateway::call::client::{ClientSession, Endpoint};
use crate::gateway::identity::Caller;
use crate::gateway::message::Notification;
use crate::gateway::metrics::GatewayMetrics;

/// How long a session was unused at least that makes room for another of the same caller.
const UNUSED: Duration = Duration::from_secs(60);

/// Counts that all endpoints share.
pub(super) struct Counts {
    pub(super) most: usize,
    pub(super) of_caller: usize,
    all: AtomicUsize,
    of_callers: Mutex<HashMap<Arc<str>, usize>>,
    metrics: Arc<GatewayMetrics>,
}

/// There is no room for another session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full;

/// The sessions of one endpoint.
pub(super) struct Sessions {
    pub(super) endpoint: Endpoint,
    sessions: RwLock<HashMap<Arc<str>, Arc<Session>>>,
    counts: Arc<Counts>,
}

impl Counts {
    pub(super) fn new(most: usize, of_caller: usize, metrics: Arc<GatewayMetrics>) -> Arc<Self> {
        Arc::new(Self { most, of_caller, all: AtomicUsize::new(0), of_callers: Mutex::default(), metrics })
    }

    fn of(&self, owner: &str) -> usize {
        self.of_callers.lock().get(owner).copied().unwrap_or(0)
    }

    /// Who has most sessions.
    fn greatest(&self) -> Option<Arc<str>> {
        let of_callers = self.of_callers.lock();
        of_callers.iter().max_by_key(|(_, count)| **count).map(|(owner, _)| Arc::clone(owner))
    }

    fn opened(&self, owner: &Arc<str>) {
        self.all.fetch_add(1, Ordering::Relaxed);
        *self.of_callers.lock().entry(Arc::clone(owner)).or_default() += 1;
        self.metrics.sessions.opened.inc();
        self.metrics.sessions.open.inc();
    }

    fn ended(&self, owner: &Arc<str>) {
        self.all.fetch_sub(1, Ordering::Relaxed);
        let mut of_callers = self.of_callers.lock();
        if let Some(count) = of_callers.get_mut(owner) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                of_callers.remove(owner);
            }
        }
        self.metrics.sessions.open.dec();
    }
}

impl Sessions {
    pub(super) fn new(endpoint: Endpoint, counts: Arc<Counts>) -> Self {
        Self { endpoint, sessions: RwLock::default(), counts }
    }

    /// Makes a session known.
    pub(super) fn insert(&self, session: &Arc<Session>) {
        self.counts.opened(&session.owner);
        self.sessions.write().insert(Arc::clone(&session.id), Arc::clone(session));
    }

    /// The session of this id, if it is the caller's.
    pub(super) fn get(&self, id: &str, caller: &Caller) -> Option<Arc<Session>> {
        let session = self.sessions.read().get(id).cloned()?;
        if session.caller.name() != caller.name() {
            return None;
        }
        session.touch();
        Some(session)
    }

    /// The sessions as they are now.
    pub(super) fn all(&self) -> Vec<Arc<Session>> {
        self.sessions.read().values().cloned().collect()
    }

    /// Ends a session.
    pub(super) async fn end(&self, id: &str) {
        let session = self.sessions.write().remove(id);
        if let Some(session) = session {
            self.counts.ended(&session.owner);
            session.close().await;
        }
    }

    /// Ends sessions that nobody used for `idle`, and drops what nobody came for in the others.
    pub(super) async fn sweep(&self, idle: Duration) {
        for session in self.all() {
            session.streams.sweep();
            if !session.streams.listens() {
                session.listens(false);
            }
            if session.unused_since().is_some_and(|since| since.elapsed() >= idle) {
                self.end(&session.id).await;
            }
        }
    }

    /// Ends every session.
    pub(super) async fn end_all(&self) {
        for session in self.all() {
            self.end(&session.id).await;
        }
    }

    /// Tells sessions that a list changed, those that do not hear it from the plugin itself. `plugin`: of this one
    /// alone.
    pub(super) fn list_changed(&self, plugin: Option<&str>, method: &str) {
        let index = plugin.map(|plugin| self.endpoint.plugins.iter().position(|known| known.name() == plugin));
        let index = match index {
            Some(None) => return,
            Some(Some(index)) => Some(index),
            None => None,
        };
        let notification = Notification { method: method.into(), params: None };
        for session in self.all() {
            let hears = index.is_some_and(|index| session.open_upstream(index).is_some());
            // A client that does not listen asks for the list when it needs it.
            if !hears && session.streams.listens() {
                session.notify(&notification, super::streams::STANDALONE);
            }
        }
    }

    /// The session of `owner` that was used least lately, if it has been unused for so long. `at`: of those with a
    /// session with this plugin.
    fn oldest(&self, owner: &str, unused: Duration, at: Option<&str>) -> Option<(Arc<Session>, Duration)> {
        let sessions = self.sessions.read();
        let is_there = |session: &&Arc<Session>| at.is_none_or(|plugin| self.is_at(session, plugin));
        let of_owner = sessions.values().filter(|session| *session.owner == *owner).filter(is_there);
        let ages = of_owner.filter_map(|session| Some((Arc::clone(session), session.unused_since()?.elapsed())));
        ages.filter(|(_, age)| *age >= unused).max_by_key(|(_, age)| *age)
    }

    /// Whether a session has one with a plugin.
    fn is_at(&self, session: &Session, plugin: &str) -> bool {
        let index = self.endpoint.plugins.iter().position(|known| known.name() == plugin);
        index.is_some_and(|index| session.open_upstream(index).is_some())
    }
}

/// Makes room for a session of `owner`, among all endpoints.
///
/// # Errors
/// When nobody makes room.
pub(super) async fn make_room(all: &[Arc<Sessions>], counts: &Counts, owner: &Arc<str>) -> Result<(), Full> {
    while counts.of(owner) >= counts.of_caller {
        evict(all, owner, Duration::ZERO, None).await?;
    }
    while counts.all.load(Ordering::Relaxed) >= counts.most {
        let greatest = counts.greatest().ok_or(Full)?;
        let unused = if greatest == *owner { UNUSED } else { Duration::ZERO };
        evict(all, &greatest, unused, None).await?;
    }
    Ok(())
}

/// Makes room for a session of `owner` with a plugin that has as many as it may: a session makes room of the caller
/// that has most there, at once if that is clearly more than `owner` has, else one that was long unused.
///
/// # Errors
/// When nobody makes room.
pub(super) async fn make_room_at(all: &[Arc<Sessions>], plugin: &str, owner: &str) -> Result<(), Full> {
    let mut of_callers: HashMap<Arc<str>, usize> = HashMap::new();
    for sessions in all {
        for session in sessions.all().iter().filter(|session| sessions.is_at(session, plugin)) {
            *of_callers.entry(Arc::clone(&session.owner)).or_default() += 1;
        }
    }
    let own = of_callers.get(owner).copied().unwrap_or(0);
    let (greatest, most) = of_callers.into_iter().max_by_key(|(_, count)| *count).ok_or(Full)?;
    let unused = if most > own + 1 { Duration::ZERO } else { UNUSED };
    evict(all, &greatest, unused, Some(plugin)).await
}

async fn evict(all: &[Arc<Sessions>], owner: &str, unused: Duration, at: Option<&str>) -> Result<(), Full> {
    let oldest = all.iter().filter_map(|sessions| Some((sessions, sessions.oldest(owner, unused, at)?)));
    let oldest = oldest.max_by_key(|(_, (_, age))| *age);
    let (sessions, (session, _)) = oldest.ok_or(Full)?;
    tracing::debug!("a session that was unused made room for another");
    sessions.end(&session.id).await;
    Ok(())
}
