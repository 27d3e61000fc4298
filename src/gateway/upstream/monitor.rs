//! The gateway's own session with each plugin: it says whether the plugin is up, which generation it speaks, what it
//! offers, and when its lists change, to the audit ledger and to clients that have no session of their own with it yet.
//!
//! It is tried again for as long as the gateway runs, after a growing wait. A child process that ends is seen at once,
//! an HTTP server that goes away by a ping, or by a discovery where it is modern.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::backoff::Backoff;
use super::own::Watcher;
use super::plugin::Offer;
use super::probe::{self, Verdict, own_initialize, own_meta};
use super::stdio::StdioConnection;
use super::{Ask, ListKind, Listening, Plugin, Step, Upcalls, UpstreamError, UpstreamSession, next_id};
use crate::config;
use crate::gateway::message::Json;
use crate::gateway::protocol::{Generation, META_SERVER_INFO};

/// How often an HTTP server is asked whether it is there, and how long it may take to say so.
const PING_EVERY: Duration = Duration::from_secs(15);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// How often what nobody uses is looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(10);

/// The least time between two looks at a plugin whose generation is in doubt.
const DOUBT_EVERY: Duration = Duration::from_secs(1);

/// How long to wait before a subscription that was lost is opened again.
const LISTEN_AGAIN: Duration = Duration::from_secs(5);

/// The side that clients see: is notified when a plugin's lists change, and asked for room for another session.
#[async_trait]
pub(crate) trait Listeners: Send + Sync + 'static {
    /// A list of this kind changed: for all, or as this caller's own sessions with the plugin see it.
    async fn list_changed(&self, plugin: &str, kind: ListKind, caller: Option<&Arc<str>>);

    /// A plugin has as many sessions as it may, and this caller needs another: whether one was ended.
    async fn make_room(&self, plugin: &str, owner: &str) -> bool;
}

/// How the plugin is watched.
enum Watched {
    Old(Arc<UpstreamSession>),
    ModernHttp,
    ModernChild(Arc<StdioConnection>),
}

impl Plugin {
    /// Keeps the gateway's own session until `stop`.
    pub(crate) async fn monitor(self: Arc<Self>, listeners: Weak<impl Listeners>, stop: CancellationToken) {
        let listeners: Weak<dyn Listeners> = listeners;
        // A plugin is monitored once.
        let _ = self.listeners().set(listeners);
        self.report(Step::Started, None);
        tokio::select! {
            () = self.keep_watching() => {}
            () = self.keep_sweeping() => {}
            () = self.keep_refreshing() => {}
            () = stop.cancelled() => {}
        }
        self.own().set_watching(None);
        self.pool().set_own_process(None);
        self.own().close();
        self.pool().make_room();
        self.report(Step::Stopped, None);
    }

    async fn keep_sweeping(&self) {
        let mut tick = interval(SWEEP_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            self.pool().sweep();
            self.own().sweep();
        }
    }

    async fn keep_watching(self: &Arc<Self>) {
        let mut backoff = Backoff::new(&self.settings().restart);
        let (mut has_failed, mut failures) = (false, 0);
        loop {
            let error = match self.begin(failures).await {
                Ok(watched) => {
                    failures = 0;
                    if std::mem::take(&mut has_failed) {
                        self.report(Step::Restarted, None);
                    }
                    self.report(Step::Ready, None);
                    tracing::info!(plugin = self.name(), "the plugin is ready");
                    let (plugin, since) = (Arc::clone(self), Instant::now());
                    let reading = tokio::spawn(async move { plugin.read_own_lists().await });
                    let error = self.watch(&watched).await;
                    reading.abort();
                    self.own().set_watching(None);
                    self.pool().set_own_process(None);
                    if since.elapsed() >= self.settings().restart.longest_wait.as_duration() {
                        backoff.succeeded();
                    }
                    match error {
                        Some(error) => error,
                        // It is only to be asked anew what it speaks.
                        None => continue,
                    }
                }
                Err(error) => {
                    failures += 1;
                    error
                }
            };
            self.health().send_modify(|health| {
                health.up = Some(false);
                health.error = Some(error.clone());
            });
            // Once an outage, however often it is tried.
            if !std::mem::replace(&mut has_failed, true) {
                self.report(Step::Failed, Some(error.code()));
            }
            let wait = backoff.failed(Instant::now());
            let hint = hint(&error);
            tracing::warn!(
                plugin = self.name(),
                code = error.code(),
                ?wait,
                "the plugin failed{hint}; it is tried again"
            );
            sleep(wait).await;
        }
    }

    /// Finds out what the plugin speaks, and opens what it is watched by. `failures`: how often that failed in a row.
    async fn begin(self: &Arc<Self>, failures: u32) -> Result<Watched, UpstreamError> {
        let configured = self.settings().generation;
        if configured == config::PluginGeneration::Old {
            return self.begin_old(None).await;
        }
        let (mut verdict, connection) = match self.http() {
            Some(server) => (probe::of_http(server).await, None),
            None => {
                let connection = self.start(Generation::Old, None)?;
                (probe::of_child(&connection, probe::child_timeout(failures)).await, Some(connection))
            }
        };
        if configured == config::PluginGeneration::Modern && matches!(verdict, Verdict::Old) {
            verdict = Verdict::Modern(undiscovered());
        }
        match verdict {
            Verdict::Modern(discovery) => {
                let watched = match connection {
                    None => Watched::ModernHttp,
                    Some(connection) => {
                        connection.dispatch().speak_modern();
                        let connection = Arc::new(connection);
                        self.pool().set_own_process(Some(Arc::clone(&connection)));
                        Watched::ModernChild(connection)
                    }
                };
                self.offers(Generation::Modern, discovery);
                Ok(watched)
            }
            Verdict::Unusable(versions) => {
                let versions: Vec<_> =
                    versions.iter().take(8).map(|version| version.get(..10).unwrap_or("?")).collect();
                tracing::warn!(
                    plugin = self.name(),
                    ?versions,
                    "the server speaks only versions of MCP that the gateway does not know"
                );
                Err(UpstreamError::NoCommonVersion)
            }
            Verdict::NoEvidence(error) => Err(error),
            Verdict::OldInFreshProcess if configured == config::PluginGeneration::Modern => Err(UpstreamError::Broken),
            Verdict::Old => self.begin_old(connection).await,
            Verdict::OldInFreshProcess => {
                drop(connection);
                self.begin_old(None).await
            }
        }
    }

    /// Opens the monitor's session with an old server, in the process that was probed if it goes on.
    async fn begin_old(self: &Arc<Self>, probed: Option<StdioConnection>) -> Result<Watched, UpstreamError> {
        let watcher = || (next_id(), Arc::new(Watcher { plugin: Arc::downgrade(self) }) as Arc<dyn Upcalls>);
        let session = match probed {
            Some(connection) => {
                let (number, upcalls) = watcher();
                connection.dispatch().add_listener(number, upcalls);
                let opening = UpstreamSession::initialize(connection, own_initialize());
                match timeout(self.open_timeout(), opening).await {
                    Ok(Ok(session)) => session,
                    // Some end at any request before `initialize`, a little later than they answer it.
                    Ok(Err(UpstreamError::Broken)) | Err(_) => self.open(own_initialize(), watcher(), None).await?,
                    Ok(Err(error)) => return Err(error),
                }
            }
            None => self.open(own_initialize(), watcher(), None).await?,
        };
        let session = Arc::new(session);
        self.own().set_watching(Some(Arc::clone(&session)));
        self.offers(Generation::Old, session.opened().clone());
        Ok(Watched::Old(session))
    }

    /// It said what it offers.
    fn offers(&self, generation: Generation, raw: Json) {
        let server_info = match generation {
            Generation::Old => raw.get("serverInfo"),
            Generation::Modern => raw.at(&["_meta", META_SERVER_INFO]),
        };
        let capabilities = raw.get("capabilities").filter(Json::is_object).unwrap_or_else(Json::empty_object);
        let offer = Offer { generation, capabilities, instructions: raw.get("instructions"), server_info, raw };
        self.health().send_modify(|health| {
            health.eras.set_modern(generation == Generation::Modern, Instant::now());
            health.offer = Some(Arc::new(offer));
            health.up = Some(true);
        });
    }

    /// Until the plugin fails, with why; or until it is to be asked again what it speaks.
    async fn watch(self: &Arc<Self>, watched: &Watched) -> Option<UpstreamError> {
        let _stream = match watched {
            Watched::Old(session) => self.wants_stream(session),
            Watched::ModernHttp | Watched::ModernChild(_) => None,
        };
        tokio::select! {
            error = self.until_failed(watched) => error,
            () = self.keep_listening(), if !matches!(watched, Watched::Old(_)) => None,
        }
    }

    async fn until_failed(self: &Arc<Self>, watched: &Watched) -> Option<UpstreamError> {
        match watched {
            Watched::Old(session) if self.is_child() => {
                session.closed().await;
                return Some(UpstreamError::Broken);
            }
            Watched::ModernChild(connection) => {
                connection.closed().await;
                return Some(UpstreamError::Broken);
            }
            Watched::Old(_) | Watched::ModernHttp => {}
        }
        let mut opened = 1;
        loop {
            tokio::select! {
                () = sleep(PING_EVERY) => {}
                () = self.doubt().notified() => sleep(DOUBT_EVERY).await,
            }
            let is_over = match watched {
                Watched::Old(session) => self.look_at_old(session, &mut opened).await,
                Watched::ModernHttp => self.look_at_modern().await,
                Watched::ModernChild(_) => None,
            };
            if let Some(error) = is_over {
                return error;
            }
        }
    }

    /// Whether an old server is there. The error; none: it is to be asked again what it speaks.
    async fn look_at_old(
        self: &Arc<Self>,
        session: &UpstreamSession,
        opened: &mut u64,
    ) -> Option<Option<UpstreamError>> {
        match timeout(PING_TIMEOUT, session.ask(Ask::own("ping", None))).await {
            // An error is an answer.
            Ok(Ok(_) | Err(UpstreamError::Refused(_))) => {}
            Ok(Err(error)) => return Some(Some(error)),
            Err(_) => return Some(Some(UpstreamError::TimedOut { after: PING_TIMEOUT })),
        }
        let (number, last) = session.opened_last();
        if number != std::mem::replace(opened, number) {
            // It was restarted, and may be another.
            self.offers(Generation::Old, last);
            self.read_own_lists().await;
        }
        let is_due = self.health().borrow().eras.is_due(Instant::now());
        if is_due && self.running().get() == 0 && self.settings().generation == config::PluginGeneration::Auto {
            match probe::of_http(self.http()?).await {
                Verdict::Modern(_) => return Some(None),
                Verdict::Old | Verdict::OldInFreshProcess => {
                    self.health().send_modify(|health| health.eras.set_modern(false, Instant::now()));
                }
                Verdict::Unusable(_) | Verdict::NoEvidence(_) => {}
            }
        }
        None
    }

    /// Whether a modern server is there, and what it offers now.
    async fn look_at_modern(&self) -> Option<Option<UpstreamError>> {
        match probe::of_http(self.http()?).await {
            Verdict::Modern(discovery) => self.offers(Generation::Modern, discovery),
            Verdict::NoEvidence(error) => return Some(Some(error)),
            Verdict::Old if self.settings().generation == config::PluginGeneration::Modern => {}
            Verdict::Unusable(_) | Verdict::Old | Verdict::OldInFreshProcess => return Some(None),
        }
        None
    }

    /// Keeps a subscription to changes of the lists, where a modern server says that it sends them.
    async fn keep_listening(self: &Arc<Self>) {
        loop {
            let filter = self.offer().map(|offer| listens_to(&offer.capabilities)).filter(|filter| !filter.is_empty());
            if let Some(filter) = filter {
                let filter: HashMap<_, _> = filter.into_iter().map(|name| (name, true)).collect();
                let watcher = Arc::new(Watcher { plugin: Arc::downgrade(self) });
                match self.listen(None, Json::of(&filter), own_meta(), watcher).await {
                    Ok(listening) => until_ended(&listening).await,
                    Err(error) => {
                        tracing::debug!(plugin = self.name(), code = error.code(), "changes of lists are not heard of");
                    }
                }
            }
            sleep(LISTEN_AGAIN).await;
        }
    }
}

/// What a server is taken to offer that is configured as modern and cannot be discovered.
fn undiscovered() -> Json {
    Json::of(&json!({ "capabilities": { "tools": {}, "prompts": {}, "resources": {} } }))
}

/// Until a subscription has ended.
async fn until_ended(listening: &Listening) {
    listening.ended().await;
}

/// What a subscription asks for, of what the server says that it tells.
fn listens_to(capabilities: &Json) -> Vec<&'static str> {
    [("tools", "toolsListChanged"), ("prompts", "promptsListChanged"), ("resources", "resourcesListChanged")]
        .into_iter()
        .filter(|(capability, _)| capabilities.at(&[capability, "listChanged"]).is_some_and(|tells| tells.is_true()))
        .map(|(_, filter)| filter)
        .collect()
}

/// What the operator may want to know of an error that looks like a wrong setting.
fn hint(error: &UpstreamError) -> &'static str {
    match error {
        UpstreamError::Status(404 | 405) => {
            ": there is no Streamable HTTP at its url; the HTTP+SSE transport of 2024-11-05 is not supported"
        }
        UpstreamError::Redirected(_) => ": it redirects, which is not followed",
        UpstreamError::Status(401 | 403) => ": it does not accept the plugin's headers",
        _ => "",
    }
}
