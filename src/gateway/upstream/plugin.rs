//! One plugin: how it is reached, within which limits, and what is known of it.
//!
//! A child process that fails is started again after a growing wait; a call that would need it before that is refused
//! at once. An HTTP server is simply tried: a refused connection costs nothing, and whether it is up again is seen
//! soonest by who needs it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use ::http::{HeaderMap, HeaderName, HeaderValue};
use parking_lot::Mutex;
use prometheus::IntGauge;
use tokio::process::Command;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;
use url::Url;

use super::backoff::Backoff;
use super::dispatch::Dispatch;
use super::eras::Eras;
use super::http::HttpServer;
use super::lists::Lists;
use super::own::OwnSessions;
use super::pool::Pool;
use super::session::{Reach as SessionReach, SessionParts};
use super::share::Share;
use super::stdio::{Logged, StdioConnection, StdioParts};
use super::{ListKind, Listeners, Upcalls, UpstreamError, UpstreamSession, next_id};
use crate::config;
use crate::gateway::budget::Budget;
use crate::gateway::error::GatewayError;
use crate::gateway::message::Json;
use crate::gateway::protocol::Generation;
use crate::gateway::traces::Upstream;

/// How long opening a session may take: a child may have to be fetched before it runs.
const HTTP_OPEN_TIMEOUT: Duration = Duration::from_secs(20);
const CHILD_OPEN_TIMEOUT: Duration = Duration::from_secs(60);

/// How long room for a session may take to become free once an unused one is closed: a child ends within that.
const ROOM_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an HTTP server may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A step of a plugin's life, for the audit ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// The gateway began to use it.
    Started,
    /// It said what it offers.
    Ready,
    /// It failed, or is gone, and is tried again from now on.
    Failed,
    /// It was started, or connected to, again.
    Restarted,
    /// The gateway does not use it any more.
    Stopped,
    /// It offers other tools than before.
    ToolsChanged,
    /// A process that one session of a client had ended by itself; the plugin as such may be well.
    ProcessFailed,
    /// Such a process was started again.
    ProcessRestarted,
}

impl Step {
    /// Its name in the ledger.
    pub(crate) fn action(self) -> &'static str {
        match self {
            Self::Started => "plugin.started",
            Self::Ready => "plugin.ready",
            Self::Failed | Self::ProcessFailed => "plugin.failed",
            Self::Restarted | Self::ProcessRestarted => "plugin.restarted",
            Self::Stopped => "plugin.stopped",
            Self::ToolsChanged => "plugin.tools_changed",
        }
    }
}

/// Takes the steps.
pub(crate) type Lifecycle = Arc<dyn Fn(&str, Step, Option<&'static str>) + Send + Sync>;

/// What a plugin offers, as it said last.
#[derive(Debug, Clone)]
pub(crate) struct Offer {
    /// How it was asked.
    pub(crate) generation: Generation,
    /// An object.
    pub(crate) capabilities: Json,
    pub(crate) instructions: Option<Json>,
    pub(crate) server_info: Option<Json>,
    /// All of its answer to `initialize` or `server/discover`.
    pub(crate) raw: Json,
}

/// What is known of a plugin.
#[derive(Clone, Default)]
pub(super) struct Health {
    pub(super) offer: Option<Arc<Offer>>,
    /// Whether it can be reached; `None`: it was not tried yet.
    pub(super) up: Option<bool>,
    pub(super) eras: Eras,
    /// Why it is down.
    pub(super) error: Option<UpstreamError>,
}

/// One plugin.
pub(crate) struct Plugin {
    name: Arc<str>,
    settings: config::Plugin,
    reach: Reach,
    sessions: Arc<Semaphore>,
    backoff: Mutex<Backoff>,
    health: watch::Sender<Health>,
    lifecycle: Lifecycle,
    /// Requests under way.
    running: IntGauge,
    tasks: TaskTracker,
    share: Share,
    logged: Arc<Logged>,
    lists: Lists,
    pool: Pool,
    own: OwnSessions,
    listeners: OnceLock<Weak<dyn Listeners>>,
    /// A request failed as none would at a server of the generation it is taken for.
    doubt: Notify,
    /// Held while it is tried whether a modern server serves the old generation, too.
    pub(super) trying_old: tokio::sync::Mutex<()>,
}

/// How it is reached.
enum Reach {
    Http(Arc<HttpServer>),
    Child,
}

impl Plugin {
    /// # Errors
    /// When a configured header has a name or value that HTTP does not allow.
    pub(crate) fn new(
        settings: config::Plugin,
        http: reqwest::Client,
        lifecycle: Lifecycle,
        running: IntGauge,
        tasks: TaskTracker,
        budget: Arc<Budget>,
    ) -> Result<Self, GatewayError> {
        let name: Arc<str> = settings.name.as_str().into();
        let share = Share::new(budget, &name);
        let reach = match &settings.transport {
            config::Transport::Http { url, headers } => {
                let headers = header_map(headers).ok_or_else(|| GatewayError::Header { plugin: name.to_string() })?;
                let limit = settings.max_result_bytes.as_usize();
                let server = HttpServer::new(Arc::clone(&name), http, Url::clone(url), headers, limit, share.clone());
                Reach::Http(Arc::new(server))
            }
            config::Transport::Child { .. } => Reach::Child,
        };
        let sessions = usize::try_from(settings.sessions()).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Ok(Self {
            name,
            reach,
            sessions: Arc::new(Semaphore::new(sessions)),
            backoff: Mutex::new(Backoff::new(&settings.restart)),
            health: watch::Sender::default(),
            lifecycle,
            running,
            tasks,
            share,
            logged: Arc::default(),
            lists: Lists::default(),
            pool: Pool::default(),
            own: OwnSessions::default(),
            listeners: OnceLock::new(),
            doubt: Notify::new(),
            trying_old: tokio::sync::Mutex::default(),
            settings,
        })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn settings(&self) -> &config::Plugin {
        &self.settings
    }

    /// As spans describe it.
    pub(crate) fn described(&self) -> Upstream<'_> {
        match &self.settings.transport {
            config::Transport::Http { url, .. } => Upstream::Http {
                address: url.host_str().unwrap_or_default(),
                port: url.port_or_known_default().unwrap_or_default(),
            },
            config::Transport::Child { .. } => Upstream::Stdio,
        }
    }

    /// How long a request may take, unless policy says less.
    pub(crate) fn timeout(&self) -> Duration {
        self.settings.timeout.as_duration()
    }

    /// The largest result that is passed on, unless policy says less.
    pub(crate) fn max_result_bytes(&self) -> u64 {
        self.settings.max_result_bytes.as_u64()
    }

    /// How many requests to it are under way.
    pub(crate) fn running(&self) -> &IntGauge {
        &self.running
    }

    /// What it offers, as it said last; `None`: it never did.
    pub(crate) fn offer(&self) -> Option<Arc<Offer>> {
        self.health.borrow().offer.clone()
    }

    /// The same, waiting until it is known, or the plugin is known to be down.
    pub(crate) async fn offered(&self, patience: Duration) -> Option<Arc<Offer>> {
        let mut health = self.health.subscribe();
        let known = timeout(patience, health.wait_for(|health| health.offer.is_some() || health.up == Some(false)));
        known.await.ok()?.ok()?.offer.clone()
    }

    /// Whether it can be reached; `None`: it was not tried yet.
    pub(crate) fn is_up(&self) -> Option<bool> {
        self.health.borrow().up
    }

    /// Why a plugin that is down cannot be used: what an operator can mend is said, what passes is not.
    pub(super) fn down(&self) -> UpstreamError {
        match &self.health.borrow().error {
            Some(
                error @ (UpstreamError::Redirected(_)
                | UpstreamError::Status(_)
                | UpstreamError::NotMcp
                | UpstreamError::NoCommonVersion),
            ) => error.clone(),
            _ => UpstreamError::Unreachable,
        }
    }

    /// A session of a client that had ended by itself is open again.
    pub(crate) fn reconnected(&self) {
        if self.is_child() {
            self.report(Step::ProcessRestarted, None);
        }
    }

    /// Opens a session for a client's of this caller, with the parameters of its `initialize`.
    pub(crate) async fn connect(
        self: &Arc<Self>,
        owner: &str,
        initialize: Json,
        upcalls: Arc<dyn Upcalls>,
    ) -> Result<Arc<UpstreamSession>, UpstreamError> {
        self.connect_as(owner, initialize, (next_id(), upcalls)).await
    }

    pub(super) async fn connect_as(
        &self,
        owner: &str,
        initialize: Json,
        listener: (i64, Arc<dyn Upcalls>),
    ) -> Result<Arc<UpstreamSession>, UpstreamError> {
        let permit = self.permit(owner).await?;
        let outcome = self.open(initialize, listener, Some(permit)).await;
        self.note(outcome.as_ref().err());
        let session = Arc::new(outcome?);
        if let Some(died) = session.died() {
            self.report_when_died(died);
        }
        Ok(session)
    }

    /// Starts a process of a modern child for a caller.
    pub(super) async fn start_modern(&self, caller: &str) -> Result<StdioConnection, UpstreamError> {
        let permit = self.permit(caller).await?;
        let outcome = self.start(Generation::Modern, Some(permit));
        self.note(outcome.as_ref().err());
        let connection = outcome?;
        self.report_when_died(connection.died());
        Ok(connection)
    }

    /// Room for one more session of a caller's, where it may be tried now.
    async fn permit(&self, owner: &str) -> Result<OwnedSemaphorePermit, UpstreamError> {
        let permit = match Arc::clone(&self.sessions).try_acquire_owned() {
            Ok(permit) => Some(permit),
            // What is closed gives its room back when it has ended.
            Err(_) if self.make_room(owner).await => {
                let room = timeout(ROOM_TIMEOUT, Arc::clone(&self.sessions).acquire_owned());
                room.await.ok().and_then(Result::ok)
            }
            Err(_) => None,
        };
        let limit = usize::try_from(self.settings.sessions()).unwrap_or(usize::MAX);
        let permit = permit.ok_or(UpstreamError::Full { limit })?;
        if self.is_child() && !self.backoff.lock().may_try(Instant::now()) {
            return Err(UpstreamError::Unreachable);
        }
        Ok(permit)
    }

    /// Closes what nobody uses, else a session of the client that has most; whether there was anything.
    async fn make_room(&self, owner: &str) -> bool {
        if self.pool.make_room() {
            return true;
        }
        match self.listeners.get().and_then(Weak::upgrade) {
            Some(listeners) => listeners.make_room(&self.name, owner).await,
            None => false,
        }
    }

    /// Notes how opening a session went.
    fn note(&self, error: Option<&UpstreamError>) {
        match error {
            None => self.backoff.lock().succeeded(),
            Some(error) if error.is_of_the_connection() => {
                self.backoff.lock().failed(Instant::now());
            }
            Some(_) => {}
        }
    }

    fn report_when_died(&self, died: impl Future<Output = bool> + Send + 'static) {
        let (lifecycle, name) = (Arc::clone(&self.lifecycle), Arc::clone(&self.name));
        self.tasks.spawn(async move {
            if died.await {
                lifecycle(&name, Step::ProcessFailed, Some(UpstreamError::Broken.code()));
            }
        });
    }

    /// Opens a session, whatever happened before.
    pub(super) async fn open(
        &self,
        initialize: Json,
        listener: (i64, Arc<dyn Upcalls>),
        permit: Option<OwnedSemaphorePermit>,
    ) -> Result<UpstreamSession, UpstreamError> {
        let restart = &self.settings.restart;
        let parts = SessionParts {
            plugin: Arc::clone(&self.name),
            initialize,
            listener,
            max_result_bytes: self.settings.max_result_bytes.as_usize(),
            budget: self.share.clone(),
            logged: Arc::clone(&self.logged),
            open_timeout: self.open_timeout(),
            retry: (restart.first_wait.as_duration(), restart.longest_wait.as_duration()),
            permit,
            tasks: self.tasks.clone(),
        };
        let reach = match &self.reach {
            Reach::Http(server) => SessionReach::Http(server),
            Reach::Child => SessionReach::Child(self.command()),
        };
        UpstreamSession::open(reach, parts).await
    }

    /// Starts its program, without a word to it.
    pub(super) fn start(
        &self,
        generation: Generation,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Result<StdioConnection, UpstreamError> {
        let parts = StdioParts {
            plugin: Arc::clone(&self.name),
            max_result_bytes: self.settings.max_result_bytes.as_usize(),
            budget: self.share.clone(),
            logged: Arc::clone(&self.logged),
            dispatch: Arc::new(Dispatch::new(Arc::clone(&self.name), generation)),
            permit,
            tasks: self.tasks.clone(),
        };
        StdioConnection::start(self.command(), parts)
    }

    /// How long opening a session may take.
    pub(super) fn open_timeout(&self) -> Duration {
        if self.is_child() { self.timeout().max(CHILD_OPEN_TIMEOUT) } else { self.timeout().min(HTTP_OPEN_TIMEOUT) }
    }

    fn command(&self) -> Command {
        let config::Transport::Child { command, args, env, folder } = &self.settings.transport else {
            // Only a child is started by a command.
            return Command::new("false");
        };
        let mut program = Command::new(command);
        program.args(args.iter().map(config::Secret::expose));
        program.envs(env.iter().map(|(name, value)| (name, value.expose())));
        if let Some(folder) = folder {
            program.current_dir(folder);
        }
        program
    }

    pub(super) fn http(&self) -> Option<&Arc<HttpServer>> {
        match &self.reach {
            Reach::Http(server) => Some(server),
            Reach::Child => None,
        }
    }

    pub(super) fn is_child(&self) -> bool {
        matches!(self.reach, Reach::Child)
    }

    pub(super) fn health(&self) -> &watch::Sender<Health> {
        &self.health
    }

    pub(super) fn report(&self, step: Step, why: Option<&'static str>) {
        (self.lifecycle)(&self.name, step, why);
    }

    pub(super) fn lists(&self) -> &Lists {
        &self.lists
    }

    pub(super) fn pool(&self) -> &Pool {
        &self.pool
    }

    pub(super) fn own(&self) -> &OwnSessions {
        &self.own
    }

    pub(super) fn listeners(&self) -> &OnceLock<Weak<dyn Listeners>> {
        &self.listeners
    }

    /// A session of this caller's said that a list of it changed.
    pub(crate) async fn list_changed_for(&self, caller: &Arc<str>, kind: ListKind) {
        if let Some(listeners) = self.listeners.get().and_then(Weak::upgrade) {
            listeners.list_changed(&self.name, kind, Some(caller)).await;
        }
    }

    pub(super) fn doubt(&self) -> &Notify {
        &self.doubt
    }
}

/// A client for all HTTP plugins.
///
/// # Errors
/// When TLS cannot be set up.
pub(crate) fn http_client() -> Result<reqwest::Client, GatewayError> {
    reqwest::Client::builder()
        .user_agent(concat!("mcpg/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        // A plugin is where its setting says, and its headers are for nobody else.
        .redirect(reqwest::redirect::Policy::none())
        .tcp_nodelay(true)
        .build()
        .map_err(GatewayError::HttpClient)
}

fn header_map(headers: &BTreeMap<String, config::Secret>) -> Option<HeaderMap> {
    headers
        .iter()
        .map(|(name, value)| {
            let mut value = HeaderValue::from_str(value.expose()).ok()?;
            value.set_sensitive(true);
            Some((HeaderName::from_bytes(name.as_bytes()).ok()?, value))
        })
        .collect()
}

impl fmt::Debug for Plugin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plugin").field("name", &self.name).finish_non_exhaustive()
    }
}
