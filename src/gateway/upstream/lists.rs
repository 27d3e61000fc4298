//! The lists of a plugin, kept.
//!
//! A list may depend on what the client can and, with modern servers, on who asks, unless the server says that it is
//! public. So lists are kept by that. Those of old servers are read in sessions of the gateway's own, one for each set
//! of capabilities in use: neither a caller's session nor its right is needed to know what a plugin offers. A session
//! that the server notified of a change of its own lists is read itself, for the client whose it is.
//!
//! A list is read again when the server says that it changed, or when it is too old. Who asks waits for that at most
//! [`LIST_PATIENCE`]; the reading goes on, and its outcome is there for who asks next. A plugin that is known to be
//! down is not asked at all.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use ::http::HeaderMap;
use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::paging::{Pages, Reading, read_all};
use super::pool::{Digest, Lease, PoolKey, digest};
use super::{Ask, Plugin, Refuses, UpstreamError, UpstreamSession, next_id};
use crate::gateway::message::{Json, Object};
use crate::gateway::pass::Pass;
use crate::gateway::protocol::{Generation, LATEST_OLD, META_CAPABILITIES, META_CLIENT_INFO, META_VERSION, MODERN};

/// How long who asks for a list waits for it to be read.
const LIST_PATIENCE: Duration = Duration::from_secs(5);

/// How long a list of a server that does not say is fresh, and the longest that any is.
const FRESH: Duration = Duration::from_secs(30);
const MAX_FRESH: Duration = Duration::from_secs(300);

/// How many lists of a plugin are kept.
const MAX_KEPT: usize = 64;

/// How old a list may be that is given when it cannot be read again.
const MAX_STALE: Duration = Duration::from_secs(600);

/// A kind of list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum ListKind {
    Tools,
    Prompts,
    Resources,
    Templates,
}

impl ListKind {
    pub(crate) const ALL: [Self; 4] = [Self::Tools, Self::Prompts, Self::Resources, Self::Templates];

    pub(crate) fn method(self) -> &'static str {
        match self {
            Self::Tools => "tools/list",
            Self::Prompts => "prompts/list",
            Self::Resources => "resources/list",
            Self::Templates => "resources/templates/list",
        }
    }

    /// The member of the result that holds the entries.
    pub(crate) fn member(self) -> &'static str {
        match self {
            Self::Tools => "tools",
            Self::Prompts => "prompts",
            Self::Resources => "resources",
            Self::Templates => "resourceTemplates",
        }
    }

    /// The capability of a server that has such a list.
    pub(crate) fn capability(self) -> &'static str {
        match self {
            Self::Tools => "tools",
            Self::Prompts => "prompts",
            Self::Resources | Self::Templates => "resources",
        }
    }

    /// The notification that such a list changed.
    pub(crate) fn notification(self) -> &'static str {
        match self {
            Self::Tools => "notifications/tools/list_changed",
            Self::Prompts => "notifications/prompts/list_changed",
            Self::Resources | Self::Templates => "notifications/resources/list_changed",
        }
    }

    /// The member of an entry that it is called by.
    pub(super) fn named_by(self) -> &'static str {
        match self {
            Self::Tools | Self::Prompts => "name",
            Self::Resources => "uri",
            Self::Templates => "uriTemplate",
        }
    }
}

/// For whom a list is.
#[derive(Clone)]
pub(crate) struct View {
    /// The client's generation.
    pub(crate) client: Generation,
    /// The version it speaks.
    pub(crate) version: Box<str>,
    /// What it can.
    pub(crate) capabilities: Json,
    pub(crate) client_info: Option<Json>,
    /// Nobody: the caller is anonymous.
    pub(crate) caller: Option<Arc<str>>,
    /// The client's own session with the plugin, if it is open.
    pub(crate) session: Option<Arc<UpstreamSession>>,
    /// Which sessions of the pool are the client's, where it is modern.
    pub(crate) pool_key: Option<PoolKey>,
    /// Members of `_meta`, and headers, for the trace.
    pub(crate) meta: Json,
    pub(crate) headers: HeaderMap,
}

/// A list, whole.
pub(crate) struct Listing {
    pub(crate) items: Vec<Item>,
    /// How long it is fresh, where the server says so.
    pub(crate) ttl_ms: Option<u64>,
    /// It is the same for every caller.
    pub(crate) public: bool,
}

/// An entry.
pub(crate) struct Item {
    /// A tool's or prompt's name, a resource's URI, a template.
    pub(crate) name: Box<str>,
    pub(crate) raw: Json,
}

/// The cached lists of a plugin.
#[derive(Default)]
pub(super) struct Lists(Mutex<HashMap<Key, Kept>>);

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    kind: ListKind,
    /// Of what the client can, and for modern servers who it is.
    of: Digest,
}

#[derive(Default)]
struct Kept {
    listing: Option<Arc<Listing>>,
    names: HashSet<Box<str>>,
    read_at: Option<Instant>,
    fresh_until: Option<Instant>,
    /// It is being read.
    reading: Option<watch::Receiver<Option<Outcome>>>,
    /// How often it changed.
    changes: u64,
    is_pinned: bool,
}

/// The entry of a key. What was read longest ago makes room for it.
fn entry<'a>(lists: &'a mut HashMap<Key, Kept>, key: &Key) -> &'a mut Kept {
    if lists.len() >= MAX_KEPT && !lists.contains_key(key) {
        let unused = lists.iter().filter(|(_, kept)| !kept.is_pinned);
        if let Some(oldest) = unused.min_by_key(|(_, kept)| kept.read_at).map(|(key, _)| key.clone()) {
            lists.remove(&oldest);
        }
    }
    lists.entry(key.clone()).or_default()
}

type Outcome = Result<Arc<Listing>, UpstreamError>;

impl Lists {
    /// All lists of a kind are to be read again.
    pub(super) fn changed(&self, kind: ListKind) {
        for (key, kept) in self.0.lock().iter_mut() {
            if key.kind == kind {
                kept.fresh_until = None;
                kept.reading = None;
                kept.changes += 1;
            }
        }
    }

    fn fresh(&self, key: &Key) -> Option<Arc<Listing>> {
        let lists = self.0.lock();
        let kept = lists.get(key)?;
        kept.listing.clone().filter(|_| kept.fresh_until.is_some_and(|until| Instant::now() < until))
    }

    /// What can be given in place of a list that cannot be read again.
    fn stale(&self, key: &Key) -> Option<Arc<Listing>> {
        let lists = self.0.lock();
        let kept = lists.get(key)?;
        kept.listing.clone().filter(|_| kept.read_at.is_some_and(|at| at.elapsed() < MAX_STALE))
    }

    /// The lists that the gateway reads for itself, which are not dropped for others.
    pub(super) fn pin(&self, kind: ListKind, view: &View, generation: Generation) {
        for is_public in [false, true] {
            if let Some(kept) = self.0.lock().get_mut(&key(kind, view, generation, is_public)) {
                kept.is_pinned = true;
            }
        }
    }

    fn store(&self, key: &Key, outcome: &Outcome, changes: u64) {
        let mut lists = self.0.lock();
        let Some(kept) = lists.get_mut(key) else { return };
        if kept.changes == changes {
            kept.reading = None;
        }
        let Ok(listing) = outcome else { return };
        let (now, fresh) = (Instant::now(), listing.ttl_ms.map_or(FRESH, Duration::from_millis).min(MAX_FRESH));
        kept.names = listing.items.iter().map(|item| item.name.clone()).collect();
        kept.read_at = Some(now);
        // What changed while it was read is not fresh.
        kept.fresh_until = (kept.changes == changes).then(|| now + fresh);
        kept.listing = Some(Arc::clone(listing));
    }

    fn has(&self, kind: ListKind, name: &str) -> bool {
        self.0.lock().iter().any(|(key, kept)| key.kind == kind && kept.names.contains(name))
    }

    fn all(&self, kind: ListKind) -> Vec<Arc<Listing>> {
        let lists = self.0.lock();
        let of_kind = lists.iter().filter(|(key, _)| key.kind == kind);
        let mut listings: Vec<_> =
            of_kind.filter_map(|(_, kept)| Some((kept.read_at?, Arc::clone(kept.listing.as_ref()?)))).collect();
        listings.sort_by_key(|(read_at, _)| std::cmp::Reverse(*read_at));
        listings.into_iter().map(|(_, listing)| listing).collect()
    }
}

impl Plugin {
    /// A list, as it is for this client.
    pub(crate) async fn list(self: &Arc<Self>, kind: ListKind, view: &View) -> Outcome {
        if self.is_up() == Some(false) {
            return Err(self.down());
        }
        let asked = async {
            let generation = self.generation(view.client, LIST_PATIENCE).await?;
            let offer = self.offered(LIST_PATIENCE).await.ok_or_else(|| self.down())?;
            if offer.capabilities.get(kind.capability()).is_none() {
                return Ok(Arc::new(Listing { items: Vec::new(), ttl_ms: None, public: false }));
            }
            if generation == Generation::Old {
                let own = view.session.clone().filter(|session| self.is_listed_by(session));
                let leased = view.pool_key.as_ref().and_then(|key| self.changed_session(key));
                if let Some(session) = own.or_else(|| leased.as_ref().map(Lease::session)) {
                    let source = Source { plugin: self, kind, view, via: Via::Session(session) };
                    return source.read().await.map(Arc::new);
                }
            }
            self.kept(kind, view.clone(), generation).await
        };
        match timeout(LIST_PATIENCE, asked).await {
            Ok(outcome) => outcome,
            Err(_) => {
                let generation = self.generation_known(view.client);
                let stale = generation.and_then(|generation| self.lists().stale(&key(kind, view, generation, false)));
                stale.ok_or(UpstreamError::TimedOut { after: LIST_PATIENCE })
            }
        }
    }

    /// Whether any list that is kept has this name.
    pub(crate) fn is_listed(&self, kind: ListKind, name: &str) -> bool {
        self.lists().has(kind, name)
    }

    /// Whether a tool can only run as a task, as an old server lists it.
    pub(crate) fn runs_as_task(&self, tool: &str) -> bool {
        let listings = self.listed(ListKind::Tools);
        let item = listings.iter().find_map(|listing| listing.items.iter().find(|item| *item.name == *tool));
        let support = item.and_then(|item| item.raw.at(&["execution", "taskSupport"]));
        support.is_some_and(|support| support.as_text().as_deref() == Some("required"))
    }

    /// The lists that are kept, the newest first.
    pub(crate) fn listed(&self, kind: ListKind) -> Vec<Arc<Listing>> {
        self.lists().all(kind)
    }

    /// The list that is kept, or is read now.
    async fn kept(self: &Arc<Self>, kind: ListKind, view: View, generation: Generation) -> Outcome {
        let public = key(kind, &view, generation, true);
        if generation == Generation::Modern
            && let Some(listing) = self.lists().fresh(&public).filter(|listing| listing.public)
        {
            return Ok(listing);
        }
        let own = key(kind, &view, generation, false);
        if let Some(listing) = self.lists().fresh(&own) {
            return Ok(listing);
        }
        let mut reading = self.begin_reading(kind, view, generation, own.clone());
        let outcome = reading.wait_for(Option::is_some).await.ok().and_then(|outcome| outcome.clone());
        match outcome.unwrap_or(Err(UpstreamError::Broken)) {
            Ok(listing) => Ok(listing),
            Err(error) => {
                let stale = self.lists().stale(&own).ok_or_else(|| error.clone())?;
                tracing::warn!(
                    plugin = self.name(),
                    method = kind.method(),
                    code = error.code(),
                    "the plugin's list cannot be read again; the last one is used"
                );
                Ok(stale)
            }
        }
    }

    /// Reads a list in a task of its own, unless it is being read already.
    fn begin_reading(
        self: &Arc<Self>,
        kind: ListKind,
        view: View,
        generation: Generation,
        own: Key,
    ) -> watch::Receiver<Option<Outcome>> {
        let mut lists = self.lists().0.lock();
        let kept = entry(&mut lists, &own);
        if let Some(reading) = &kept.reading {
            return reading.clone();
        }
        let (done, reading) = watch::channel(None);
        kept.reading = Some(reading.clone());
        let changes = kept.changes;
        let plugin = Arc::clone(self);
        tokio::spawn(async move {
            let after = plugin.timeout();
            let read = timeout(after, plugin.read_list(kind, &view, generation)).await;
            let outcome = read.unwrap_or(Err(UpstreamError::TimedOut { after })).map(Arc::new);
            plugin.lists().store(&own, &outcome, changes);
            if let Ok(listing) = outcome.as_ref()
                && listing.public
                && generation == Generation::Modern
            {
                let public = key(kind, &view, generation, true);
                entry(&mut plugin.lists().0.lock(), &public).changes = changes;
                plugin.lists().store(&public, &outcome, changes);
            }
            done.send_replace(Some(outcome));
        });
        reading
    }

    async fn read_list(
        self: &Arc<Self>,
        kind: ListKind,
        view: &View,
        generation: Generation,
    ) -> Result<Listing, UpstreamError> {
        let via = match generation {
            Generation::Modern => Via::Modern,
            Generation::Old => Via::Session(self.list_session(view).await?),
        };
        Source { plugin: self, kind, view, via }.read().await
    }
}

/// What a list is kept by. A modern server's may depend on the caller; an old server's is read without one.
fn key(kind: ListKind, view: &View, generation: Generation, is_public: bool) -> Key {
    let caller = match (generation, is_public, view.caller.as_deref()) {
        (Generation::Old, ..) | (_, true, _) => String::new(),
        (_, _, None) => "anonymous:".to_owned(),
        (_, _, Some(caller)) => format!("caller:{caller}"),
    };
    Key {
        kind,
        of: digest(&[
            session_digest(view).as_slice(),
            &[u8::from(generation == Generation::Modern)],
            caller.as_bytes(),
        ]),
    }
}

/// The key of the gateway's own sessions for lists.
pub(super) fn session_digest(view: &View) -> Digest {
    let version = if view.client == Generation::Modern { LATEST_OLD } else { &view.version };
    digest(&[version.as_bytes(), listed_by(&view.capabilities).as_bytes()])
}

/// What of a client's capabilities the lists of an old server may depend on: those that it can ask something by. All
/// others are the client's own words, and each would be another session.
pub(super) fn listed_by(capabilities: &Json) -> Json {
    const KNOWN: [(&str, &[&str]); 3] =
        [("sampling", &["tools", "context"]), ("elicitation", &["form", "url"]), ("roots", &["listChanged"])];
    let mut known = Object::default();
    for (name, details) in KNOWN {
        let Some(declared) = capabilities.get(name).filter(Json::is_object) else { continue };
        let mut kept = Object::default();
        for detail in details {
            match declared.get(detail) {
                Some(value) if value.is_object() => kept.add(detail, Json::empty_object()),
                Some(value) if value.is_true() => kept.add(detail, value),
                _ => {}
            }
        }
        known.add(name, kept.to_json());
    }
    known.to_json()
}

/// Where a list is read.
struct Source<'a> {
    plugin: &'a Arc<Plugin>,
    kind: ListKind,
    view: &'a View,
    via: Via,
}

enum Via {
    Session(Arc<UpstreamSession>),
    Modern,
}

impl Source<'_> {
    async fn read(&self) -> Result<Listing, UpstreamError> {
        let is_modern_http = matches!(self.via, Via::Modern) && !self.plugin.is_child();
        let reading = Reading {
            plugin: self.plugin.name(),
            kind: self.kind,
            max_bytes: self.plugin.max_result_bytes(),
            checks_headers: is_modern_http,
        };
        let mut listing = read_all(&reading, self).await?;
        if matches!(self.via, Via::Session(_)) {
            // These are words of the modern generation.
            (listing.ttl_ms, listing.public) = (None, false);
        }
        Ok(listing)
    }

    fn params(&self, cursor: Option<&Json>) -> Option<Json> {
        let mut meta = self.view.meta.object().unwrap_or_default();
        if matches!(self.via, Via::Modern) {
            meta.set(META_VERSION, Json::text(MODERN));
            if let Some(info) = &self.view.client_info {
                meta.set(META_CLIENT_INFO, info.clone());
            }
            meta.set(META_CAPABILITIES, self.view.capabilities.clone());
        }
        let mut params = Json::empty_object().object().unwrap_or_default();
        if let Some(cursor) = cursor {
            params.set("cursor", cursor.clone());
        }
        if !meta.is_empty() {
            params.set("_meta", meta.to_json());
        }
        (!params.is_empty()).then(|| params.to_json())
    }
}

#[async_trait]
impl Pages for Source<'_> {
    async fn page(&self, cursor: Option<&Json>) -> Result<Json, UpstreamError> {
        let ask = Ask {
            id: next_id(),
            method: self.kind.method().into(),
            params: self.params(cursor),
            headers: self.view.headers.clone(),
            pass: Pass::own(),
            upcalls: Arc::new(Refuses),
        };
        match &self.via {
            Via::Session(session) => session.ask(ask).await,
            Via::Modern => self.plugin.request_plain(self.view.caller.as_deref(), ask, &[]).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::listed_by;
    use crate::gateway::message::Json;

    #[test]
    fn lists_depend_on_what_a_server_can_ask_by_and_on_no_words_of_the_client() {
        let of = |capabilities| listed_by(&Json::of(&capabilities)).value().unwrap();
        let own = json!({ "roots": { "listChanged": true, "x": 1 }, "elicitation": {}, "experimental": { "a": {} }, "tasks": {} });
        assert_eq!(of(own), json!({ "elicitation": {}, "roots": { "listChanged": true } }));
        let asks = json!({ "sampling": { "tools": {}, "context": 7 }, "elicitation": { "url": { "deep": 1 } }, "extensions": {} });
        assert_eq!(of(asks), json!({ "sampling": { "tools": {} }, "elicitation": { "url": {} } }));
        assert_eq!(listed_by(&Json::empty_object()).as_bytes(), b"{}");
    }
}
