//! Sessions with old servers for modern clients, and processes of modern children: what lives longer than a request,
//! and belongs to a caller.
//!
//! An old session fixes at `initialize` what a modern client says with every request: who it is and what it can. So
//! sessions are pooled by caller, version, capabilities and client, and nothing of one caller's reaches another's. A
//! client that can be asked (sampling, elicitation, roots) has a session for itself during a call, so that every
//! question has one call it can be of; others share one. An anonymous caller is everybody: its sessions are made for
//! one use.
//!
//! A listen of a client holds a session with its subscriptions, and calls of the same client use that session before
//! others: what a server notifies of a session's own state, it does on that session alone.
//!
//! What nobody uses is closed after [`IDLE`], sooner when the plugin has no room for another.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::json;
use tokio::time::{Instant, timeout};

use super::stdio::StdioConnection;
use super::{Ask, Plugin, Upcalls, UpstreamError, UpstreamSession, next_id};
use crate::gateway::message::Json;

/// How long what nobody uses is kept.
const IDLE: Duration = Duration::from_secs(60);

/// How long a server may take to end a subscription.
const UNSUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(10);

/// Exclusive sessions that are kept for one key while nobody uses them.
const IDLE_PER_KEY: usize = 4;

/// Which sessions may serve a modern client.
#[derive(Clone)]
pub(crate) struct PoolKey {
    /// Nobody: the caller is anonymous.
    pub(crate) caller: Option<Arc<str>>,
    /// The version to offer.
    pub(crate) version: Box<str>,
    /// What the client can.
    pub(crate) capabilities: Json,
    /// Name and version of the client.
    pub(crate) client_info: Json,
}

/// What a key comes down to.
pub(super) type Digest = [u8; 32];

impl PoolKey {
    fn digest(&self) -> Digest {
        let caller = self.caller.as_deref().unwrap_or_default();
        digest(&[caller.as_bytes(), self.version.as_bytes(), self.capabilities.as_bytes(), self.client_info.as_bytes()])
    }

    /// Whether the client can be asked something.
    fn is_exclusive(&self) -> bool {
        let capabilities = self.capabilities.object().unwrap_or_default();
        ["sampling", "elicitation", "roots"].into_iter().any(|name| capabilities.has(name))
    }

    /// The caller's name.
    fn owner(&self) -> &str {
        self.caller.as_deref().unwrap_or("anonymous")
    }

    fn initialize(&self) -> Json {
        let mut params = Json::of(&json!({})).object().unwrap_or_default();
        params.set("protocolVersion", Json::text(&self.version));
        params.set("capabilities", self.capabilities.clone());
        params.set("clientInfo", self.client_info.clone());
        params.to_json()
    }
}

/// A digest of texts, each delimited from the next.
pub(super) fn digest(parts: &[&[u8]]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
    }
    *hasher.finalize().as_bytes()
}

/// A plugin's pooled sessions and processes.
#[derive(Default)]
pub(super) struct Pool {
    shared: Mutex<HashMap<Digest, Arc<Slot>>>,
    idle: Mutex<HashMap<Digest, Vec<Unused>>>,
    processes: Mutex<HashMap<Arc<str>, Arc<ProcessSlot>>>,
    /// The process that the gateway itself watches; it serves who has no name, too.
    own_process: Mutex<Option<Arc<StdioConnection>>>,
}

type Unused = (Arc<UpstreamSession>, Instant);
type Slot = tokio::sync::Mutex<Option<Unused>>;
type ProcessSlot = tokio::sync::Mutex<Option<(Arc<StdioConnection>, Instant)>>;

impl Pool {
    /// A session that nobody uses: one with subscriptions before others, else the last that was used.
    fn take_idle(&self, key: &Digest) -> Option<Arc<UpstreamSession>> {
        self.take_idle_if(key, |_| true)
    }

    fn take_idle_if(&self, key: &Digest, may: impl Fn(&UpstreamSession) -> bool) -> Option<Arc<UpstreamSession>> {
        let mut idle = self.idle.lock();
        let sessions = idle.get_mut(key)?;
        sessions.retain(|(session, _)| !session.is_closed());
        let listened = sessions.iter().position(|(session, _)| session.is_listened() && may(session));
        let found = listened.or_else(|| sessions.iter().rposition(|(session, _)| may(session)));
        let found = found.map(|index| sessions.remove(index));
        if sessions.is_empty() {
            idle.remove(key);
        }
        found.map(|(session, _)| session)
    }

    fn give_back(&self, key: Digest, session: Arc<UpstreamSession>) {
        let mut idle = self.idle.lock();
        let sessions = idle.entry(key).or_default();
        if session.is_idle() && !session.is_closed() {
            if sessions.len() >= IDLE_PER_KEY
                && let Some(index) = sessions.iter().position(|(session, _)| !session.is_listened())
            {
                sessions.remove(index);
            }
            if sessions.len() < IDLE_PER_KEY || session.is_listened() {
                sessions.push((session, Instant::now()));
            }
        }
        if sessions.is_empty() {
            idle.remove(&key);
        }
    }

    /// Closes what nobody used for `idle`; how much that was.
    fn sweep_older(&self, idle: Duration) -> usize {
        let is_over = |since: &Instant| since.elapsed() >= idle;
        let mut closed = 0;
        self.idle.lock().retain(|_, sessions| {
            let before = sessions.len();
            sessions.retain(|(session, since)| !session.is_closed() && (session.is_listened() || !is_over(since)));
            closed += before - sessions.len();
            !sessions.is_empty()
        });
        self.shared.lock().retain(|_, slot| {
            // Who holds the lock opens it now.
            let Ok(mut session) = slot.try_lock() else { return true };
            let unused = session.as_ref().is_none_or(|(session, since)| {
                session.is_closed() || (Arc::strong_count(session) == 1 && session.is_idle() && is_over(since))
            });
            if unused {
                closed += usize::from(session.take().is_some());
            }
            !unused || Arc::strong_count(slot) > 1
        });
        self.processes.lock().retain(|_, slot| {
            let Ok(mut process) = slot.try_lock() else { return true };
            let unused = process
                .as_ref()
                .is_none_or(|(process, since)| process.is_closed() || (process.dispatch().is_idle() && is_over(since)));
            if unused {
                closed += usize::from(process.take().is_some());
            }
            !unused || Arc::strong_count(slot) > 1
        });
        closed
    }

    pub(super) fn set_own_process(&self, process: Option<Arc<StdioConnection>>) {
        *self.own_process.lock() = process;
    }

    /// Closes what nobody used for a while.
    pub(super) fn sweep(&self) {
        self.sweep_older(IDLE);
    }

    /// Closes what nobody uses, to make room; whether there was anything.
    pub(super) fn make_room(&self) -> bool {
        self.sweep_older(Duration::ZERO) > 0
    }
}

/// How many leases of a session are subscribed to each resource.
#[derive(Default)]
pub(super) struct Subscribers(Mutex<HashMap<Box<str>, usize>>);

impl Subscribers {
    fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }

    pub(super) fn has(&self, uri: &str) -> bool {
        self.0.lock().contains_key(uri)
    }

    /// One more, if there is one already.
    fn join(&self, uri: &str) -> bool {
        let mut all = self.0.lock();
        let count = all.get_mut(uri);
        count.map(|count| *count += 1).is_some()
    }

    /// The server has taken it.
    fn begin(&self, uri: Box<str>) {
        *self.0.lock().entry(uri).or_insert(0) += 1;
    }

    /// One less; whether it was the last.
    fn leave(&self, uri: &str) -> bool {
        let mut all = self.0.lock();
        match all.get_mut(uri) {
            Some(count) if *count > 1 => {
                *count -= 1;
                false
            }
            _ => {
                all.remove(uri);
                true
            }
        }
    }
}

/// A session that is used for a while.
pub(crate) struct Lease {
    session: Arc<UpstreamSession>,
    listener: i64,
    /// Where it goes when it is not used any more, if others may use it then.
    back: Option<(Weak<Plugin>, Digest)>,
}

impl Lease {
    /// The session itself, for what is to be said after the lease.
    pub(crate) fn session(&self) -> Arc<UpstreamSession> {
        Arc::clone(&self.session)
    }
}

impl Deref for Lease {
    type Target = UpstreamSession;

    fn deref(&self) -> &UpstreamSession {
        &self.session
    }
}

impl UpstreamSession {
    /// Whether a listen holds it, with its subscriptions.
    fn is_listened(&self) -> bool {
        !self.subscribers().is_empty()
    }
}

impl Lease {
    /// What it holds it for is not a call: calls of the same client may use the session meanwhile, one at a time.
    pub(crate) fn share(&mut self) {
        if let Some((plugin, key)) = self.back.take()
            && let Some(plugin) = plugin.upgrade()
        {
            plugin.pool().give_back(key, Arc::clone(&self.session));
        }
    }

    /// Asks, and waits for the answer. A resource that another lease of the session is subscribed to as well is
    /// subscribed to once.
    pub(crate) async fn ask(&self, ask: Ask) -> Result<Json, UpstreamError> {
        let uri = ask.params.as_ref().and_then(|params| params.get("uri")?.as_text().map(Box::<str>::from));
        let Some(uri) = uri.filter(|_| &*ask.method == "resources/subscribe") else {
            return self.session.ask(ask).await;
        };
        if self.session.subscribers().join(&uri) {
            return Ok(Json::empty_object());
        }
        let result = self.session.ask(ask).await?;
        self.session.subscribers().begin(uri);
        Ok(result)
    }

    /// Ends its subscriptions to these resources; the future unsubscribes at the server from those that no other lease
    /// has.
    pub(crate) fn unsubscribe(&self, uris: Vec<String>) -> impl Future<Output = ()> + Send + use<> {
        let last: Vec<String> = uris.into_iter().filter(|uri| self.session.subscribers().leave(uri)).collect();
        let session = self.session();
        async move {
            for uri in last.iter().filter(|uri| !session.subscribers().has(uri)) {
                let ask = Ask::own("resources/unsubscribe", Some(Json::of(&json!({ "uri": uri }))));
                // A server that is gone keeps no subscription.
                let _ = timeout(UNSUBSCRIBE_TIMEOUT, session.ask(ask)).await;
            }
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.session.remove_listener(self.listener);
        if let Some((plugin, key)) = self.back.take()
            && let Some(plugin) = plugin.upgrade()
        {
            plugin.pool().give_back(key, Arc::clone(&self.session));
        }
    }
}

impl Plugin {
    /// A session for a call of a modern client.
    pub(crate) async fn lease(
        self: &Arc<Self>,
        key: PoolKey,
        upcalls: Arc<dyn Upcalls>,
    ) -> Result<Lease, UpstreamError> {
        let (listener, digest) = (next_id(), key.digest());
        if key.caller.is_none() {
            let session = self.connect_as(key.owner(), key.initialize(), (listener, upcalls)).await?;
            return Ok(Lease { session, listener, back: None });
        }
        if key.is_exclusive() {
            let back = Some((Arc::downgrade(self), digest));
            if let Some(session) = self.pool().take_idle(&digest) {
                session.add_listener(listener, upcalls);
                return Ok(Lease { session, listener, back });
            }
            let session = self.connect_as(key.owner(), key.initialize(), (listener, upcalls)).await?;
            return Ok(Lease { session, listener, back });
        }
        let slot = Arc::clone(self.pool().shared.lock().entry(digest).or_default());
        let mut shared = slot.lock().await;
        if let Some((session, used)) = shared.as_mut().filter(|(session, _)| !session.is_closed()) {
            *used = Instant::now();
            session.add_listener(listener, upcalls);
            return Ok(Lease { session: Arc::clone(session), listener, back: None });
        }
        let session = self.connect_as(key.owner(), key.initialize(), (listener, upcalls)).await?;
        *shared = Some((Arc::clone(&session), Instant::now()));
        Ok(Lease { session, listener, back: None })
    }

    /// A session of this client's that says by itself that its lists changed, or whose own count for it; if nobody uses
    /// it now.
    pub(super) fn changed_session(self: &Arc<Self>, key: &PoolKey) -> Option<Lease> {
        key.caller.as_ref()?;
        let (listener, digest) = (next_id(), key.digest());
        if key.is_exclusive() {
            let session = self.pool().take_idle_if(&digest, |session| self.is_listed_by(session))?;
            return Some(Lease { session, listener, back: Some((Arc::downgrade(self), digest)) });
        }
        let slot = self.pool().shared.lock().get(&digest).cloned()?;
        let session = Arc::clone(&slot.try_lock().ok()?.as_ref()?.0);
        self.is_listed_by(&session).then_some(Lease { session, listener, back: None })
    }

    /// The process that serves a caller's modern requests, started where it does not run. Callers without a name share
    /// the one that the gateway watches.
    pub(super) async fn process(&self, caller: Option<&str>) -> Result<Arc<StdioConnection>, UpstreamError> {
        let Some(caller) = caller else {
            let own = self.pool().own_process.lock().clone();
            return own.filter(|process| !process.is_closed()).ok_or(UpstreamError::Unreachable);
        };
        let slot = Arc::clone(self.pool().processes.lock().entry(caller.into()).or_default());
        let mut process = slot.lock().await;
        if let Some((running, used)) = process.as_mut().filter(|(running, _)| !running.is_closed()) {
            *used = Instant::now();
            return Ok(Arc::clone(running));
        }
        let died = process.take().is_some();
        let running = Arc::new(self.start_modern(caller).await?);
        if died {
            self.reconnected();
        }
        *process = Some((Arc::clone(&running), Instant::now()));
        Ok(running)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::PoolKey;
    use crate::gateway::message::Json;

    fn key(caller: Option<&str>, capabilities: serde_json::Value, client: &str) -> PoolKey {
        PoolKey {
            caller: caller.map(Into::into),
            version: "2025-11-25".into(),
            capabilities: Json::of(&capabilities),
            client_info: Json::of(&json!({ "name": client, "version": "1" })),
        }
    }

    #[test]
    fn a_session_is_of_one_caller_client_and_set_of_capabilities() {
        let one = key(Some("a"), json!({}), "c").digest();
        assert_eq!(one, key(Some("a"), json!({}), "c").digest());
        for other in
            [key(Some("b"), json!({}), "c"), key(Some("a"), json!({"roots": {}}), "c"), key(Some("a"), json!({}), "d")]
        {
            assert_ne!(one, other.digest());
        }
    }

    #[test]
    fn who_can_be_asked_has_a_session_for_itself() {
        assert!(key(None, json!({"elicitation": {}}), "c").is_exclusive());
        assert!(!key(None, json!({"tasks": {}}), "c").is_exclusive());
        let initialize = key(None, json!({"roots": {}}), "c").initialize().value().unwrap();
        assert_eq!(initialize["capabilities"], json!({"roots": {}}));
    }
}
