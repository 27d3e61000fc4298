//! What the gateway reads of a plugin by itself: its lists, in sessions of its own, and what it hears of their changes.
//!
//! The monitor's session serves clients without capabilities. For others one session is opened for each set of
//! capabilities in use, at most [`MAX_LIST_SESSIONS`], and closed when it was not used for [`LIST_SESSION_IDLE`].

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use ::http::HeaderMap;
use async_trait::async_trait;
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use super::lists::{listed_by, session_digest};
use super::pool::{Digest, digest};
use super::probe::own_info;
use super::session::StreamGuard;
use super::{ListKind, Listing, Plugin, Step, Upcalls, UpstreamError, UpstreamSession, View, next_id};
use crate::config;
use crate::gateway::message::{Json, Notification, Request, RpcError};
use crate::gateway::protocol::{Generation, LATEST_OLD, MODERN};

/// Sessions that lists are read in, and how long one is kept that nobody uses.
const MAX_LIST_SESSIONS: usize = 8;
const LIST_SESSION_IDLE: Duration = Duration::from_secs(300);

/// How often a session that lists are read in is closed for another; meanwhile lists are as the gateway itself sees
/// them.
const REPLACE_EVERY: Duration = Duration::from_secs(1);

/// How long changes of lists are gathered before they are announced, and how often they are.
const SETTLE: Duration = Duration::from_millis(50);
const REFRESH_EVERY: Duration = Duration::from_millis(500);

/// The gateway's own sessions with an old server.
#[derive(Default)]
pub(super) struct OwnSessions {
    /// The monitor's.
    watching: Mutex<Option<Arc<UpstreamSession>>>,
    /// Those that lists are read in for clients with other capabilities.
    listing: Mutex<HashMap<Digest, ListSession>>,
    opening: tokio::sync::Mutex<()>,
    /// When one of them was closed for another the last time.
    replaced: Mutex<Option<Instant>>,
    /// Lists that changed, and that there are some.
    kinds: Mutex<Vec<ListKind>>,
    changed: Notify,
}

struct ListSession {
    session: Arc<UpstreamSession>,
    used: Instant,
    _stream: Option<StreamGuard>,
}

impl OwnSessions {
    /// Whether a session may be closed for another now.
    fn may_replace(&self) -> bool {
        let mut replaced = self.replaced.lock();
        let may = replaced.is_none_or(|at| at.elapsed() >= REPLACE_EVERY);
        if may {
            *replaced = Some(Instant::now());
        }
        may
    }

    pub(super) fn set_watching(&self, session: Option<Arc<UpstreamSession>>) {
        *self.watching.lock() = session;
    }

    /// Closes what was not used for a while.
    pub(super) fn sweep(&self) {
        self.listing.lock().retain(|_, kept| {
            !kept.session.is_closed() && (kept.used.elapsed() < LIST_SESSION_IDLE || !kept.session.is_idle())
        });
    }

    pub(super) fn close(&self) {
        self.set_watching(None);
        self.listing.lock().clear();
    }
}

impl Plugin {
    /// Reads lists again that changed, and announces that. A server that reports changes without end is read once a
    /// while.
    pub(super) async fn keep_refreshing(self: &Arc<Self>) {
        loop {
            self.own().changed.notified().await;
            sleep(SETTLE).await;
            let kinds = std::mem::take(&mut *self.own().kinds.lock());
            for kind in kinds {
                self.read_own_list(kind).await;
                self.announce_list_changed(kind).await;
            }
            sleep(REFRESH_EVERY).await;
        }
    }

    /// A stream for changes, where the server says that it sends them.
    pub(super) fn wants_stream(&self, session: &UpstreamSession) -> Option<StreamGuard> {
        let tells = |kind: &ListKind| {
            session
                .opened()
                .at(&["capabilities", kind.capability(), "listChanged"])
                .is_some_and(|tells| tells.is_true())
        };
        ListKind::ALL.iter().any(tells).then(|| session.want_stream())
    }

    /// The session that a list is read in for this client.
    pub(super) async fn list_session(self: &Arc<Self>, view: &View) -> Result<Arc<UpstreamSession>, UpstreamError> {
        let of = session_digest(view);
        if of == own_digest() {
            let watching = self.own().watching.lock().clone();
            if let Some(session) = watching.filter(|session| !session.is_closed()) {
                return Ok(session);
            }
        }
        // A process only to read a list would cost more than it is worth where the client has one already.
        if let Some(session) = view.session.as_ref().filter(|session| self.is_child() && !session.is_closed()) {
            return Ok(Arc::clone(session));
        }
        let _opening = self.own().opening.lock().await;
        if let Some(kept) = self.own().listing.lock().get_mut(&of).filter(|kept| !kept.session.is_closed()) {
            kept.used = Instant::now();
            return Ok(Arc::clone(&kept.session));
        }
        if self.own().listing.lock().len() >= MAX_LIST_SESSIONS && !self.own().may_replace() {
            let watching = self.own().watching.lock().clone();
            return watching
                .filter(|session| !session.is_closed())
                .ok_or(UpstreamError::Full { limit: MAX_LIST_SESSIONS });
        }
        let version = if view.client == Generation::Modern { LATEST_OLD } else { &view.version };
        let initialize = json!({ "protocolVersion": version, "capabilities": {}, "clientInfo": own_info() });
        let mut initialize = Json::of(&initialize).object().unwrap_or_default();
        initialize.set("capabilities", listed_by(&view.capabilities));
        let watcher = Arc::new(Watcher { plugin: Arc::downgrade(self) });
        let session = Arc::new(self.open(initialize.to_json(), (next_id(), watcher), None).await?);
        let stream = self.wants_stream(&session);
        let mut listing = self.own().listing.lock();
        if listing.len() >= MAX_LIST_SESSIONS
            && let Some(oldest) = listing.iter().min_by_key(|(_, kept)| kept.used).map(|(of, _)| *of)
        {
            listing.remove(&oldest);
        }
        let kept = ListSession { session: Arc::clone(&session), used: Instant::now(), _stream: stream };
        listing.insert(of, kept);
        Ok(session)
    }

    /// Whether this session's own lists count for its client.
    pub(super) fn is_listed_by(&self, session: &UpstreamSession) -> bool {
        !session.is_closed() && (session.lists_changed() || self.settings().lists == config::ListsOf::Session)
    }

    /// Reads all lists as the gateway itself sees them: they say which names are known.
    pub(super) async fn read_own_lists(self: &Arc<Self>) {
        for kind in ListKind::ALL {
            let before = self.listed(kind).into_iter().next();
            self.lists().changed(kind);
            self.read_own_list(kind).await;
            let after = self.listed(kind).into_iter().next();
            if let (Some(before), Some(after)) = (before, after) {
                let names =
                    |listing: &Listing| -> Vec<Json> { listing.items.iter().map(|item| item.raw.clone()).collect() };
                if names(&before) != names(&after) {
                    self.announce_list_changed(kind).await;
                }
            }
        }
    }

    pub(super) async fn read_own_list(self: &Arc<Self>, kind: ListKind) {
        let generation = self.offer().map_or(Generation::Old, |offer| offer.generation);
        let view = own_view(generation);
        match self.list(kind, &view).await {
            Ok(_) => self.lists().pin(kind, &view, generation),
            Err(error) => {
                tracing::debug!(
                    plugin = self.name(),
                    method = kind.method(),
                    code = error.code(),
                    "a list is not read"
                );
            }
        }
    }

    async fn announce_list_changed(&self, kind: ListKind) {
        if kind == ListKind::Tools {
            self.report(Step::ToolsChanged, None);
        }
        if let Some(listeners) = self.listeners().get().and_then(Weak::upgrade) {
            listeners.list_changed(self.name(), kind, None).await;
        }
    }
}

/// The gateway as a client of a plugin.
fn own_view(generation: Generation) -> View {
    View {
        client: generation,
        version: if generation == Generation::Modern { MODERN.into() } else { LATEST_OLD.into() },
        capabilities: Json::empty_object(),
        client_info: Some(Json::of(&own_info())),
        caller: None,
        session: None,
        pool_key: None,
        meta: Json::empty_object(),
        headers: HeaderMap::new(),
    }
}

fn own_digest() -> Digest {
    digest(&[LATEST_OLD.as_bytes(), b"{}"])
}

/// Hears what the plugin tells the gateway. It answers no question.
pub(super) struct Watcher {
    pub(super) plugin: Weak<Plugin>,
}

#[async_trait]
impl Upcalls for Watcher {
    async fn asked(&self, _: Request) -> Result<Json, RpcError> {
        Err(RpcError::method_not_found("the gateway itself offers no capabilities"))
    }

    async fn notified(&self, notification: Notification) {
        let kinds: Vec<_> =
            ListKind::ALL.into_iter().filter(|kind| kind.notification() == &*notification.method).collect();
        let Some(plugin) = self.plugin.upgrade() else { return };
        if kinds.is_empty() {
            return;
        }
        let mut changed = plugin.own().kinds.lock();
        for kind in kinds {
            plugin.lists().changed(kind);
            if !changed.contains(&kind) {
                changed.push(kind);
            }
        }
        plugin.own().changed.notify_one();
    }
}
