//! One plugin: opening sessions with it, within its limits, and what is known of its health.
//!
//! A child process that fails is started again after a growing wait; a call that would need it before that is refused
//! at once. An HTTP server is simply tried: a refused connection costs nothing, and whether it is up again is seen
//! soonest by whoever needs it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use prometheus::IntGauge;
use rmcp::transport::common::client_side_sse::ExponentialBackoff;
use rmcp::transport::streamable_http_client::{StreamableHttpClientTransport, StreamableHttpClientTransportConfig};
use serde_json::Value;
use tokio::process::Command;
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;
use url::Url;

use super::backoff::Backoff;
use super::child::ChildTransport;
use super::fault::UpstreamFault;
use super::http::Wire;
use super::link::{Link, LinkParts, Upcalls};
use crate::config;
use crate::gateway::error::GatewayError;
use crate::gateway::traces::Upstream;

/// How long a handshake may take at least: a child may have to be fetched before it runs.
const HANDSHAKE: Duration = Duration::from_secs(60);

/// How long an HTTP server may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(5);

/// How often an interrupted stream is resumed before the request that it answers is given up.
const RESUMPTIONS: usize = 5;

/// A step of a plugin's life, for the audit ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// The gateway began to use it.
    Started,
    /// It answered `initialize`.
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

/// Who is told of the steps.
pub(crate) type Lifecycle = Arc<dyn Fn(&str, Step, Option<&'static str>) + Send + Sync>;

/// What is known of a plugin.
#[derive(Debug, Clone, Default)]
pub(crate) struct Health {
    /// What it answered to `initialize`, last time it did.
    pub(crate) opened: Option<Arc<Value>>,
    /// Whether it can be reached; `None`: it was not tried yet.
    pub(crate) up: Option<bool>,
}

/// One plugin.
pub(crate) struct Plugin {
    name: String,
    settings: config::Plugin,
    reach: Reach,
    sessions: Arc<Semaphore>,
    requests: Semaphore,
    backoff: Mutex<Backoff>,
    health: watch::Sender<Health>,
    lifecycle: Lifecycle,
    /// Requests under way.
    running: IntGauge,
    tasks: TaskTracker,
}

/// A turn to send a request; over when it is dropped.
pub(crate) struct Turn<'a> {
    running: &'a IntGauge,
    _permit: SemaphorePermit<'a>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.running.dec();
    }
}

/// How it is reached.
enum Reach {
    Http { url: Arc<str>, wire: Box<Wire> },
    Child,
}

impl Plugin {
    /// # Errors
    /// When a configured header is none.
    pub(crate) fn new(
        settings: config::Plugin,
        http: reqwest::Client,
        lifecycle: Lifecycle,
        running: IntGauge,
        tasks: TaskTracker,
    ) -> Result<Self, GatewayError> {
        let name = settings.name.as_str().to_owned();
        let reach = match &settings.transport {
            config::Transport::Http { url, headers } => {
                let headers = header_map(headers).ok_or_else(|| GatewayError::Header { plugin: name.clone() })?;
                let wire = Wire::new(http, Url::clone(url), headers, settings.max_result_bytes.as_usize());
                Reach::Http { url: url.as_str().into(), wire: Box::new(wire) }
            }
            config::Transport::Child { .. } => Reach::Child,
        };
        let permits = |count: u64| usize::try_from(count).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Ok(Self {
            name,
            reach,
            sessions: Arc::new(Semaphore::new(permits(settings.sessions()))),
            requests: Semaphore::new(permits(settings.max_concurrency)),
            backoff: Mutex::new(Backoff::new(&settings.restart)),
            health: watch::Sender::default(),
            lifecycle,
            running,
            tasks,
            settings,
        })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// As spans tell of it.
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

    pub(super) fn restart(&self) -> &config::Restart {
        &self.settings.restart
    }

    pub(super) fn is_child(&self) -> bool {
        matches!(self.reach, Reach::Child)
    }

    /// What is known of it.
    pub(crate) fn health(&self) -> Health {
        self.health.borrow().clone()
    }

    pub(super) fn set_health(&self, change: impl FnOnce(&mut Health)) {
        self.health.send_modify(change);
    }

    pub(super) fn tell(&self, step: Step, why: Option<&'static str>) {
        (self.lifecycle)(&self.name, step, why);
    }

    /// What it answered to `initialize`, waiting a while for the first time it does.
    pub(crate) async fn opened(&self, patience: Duration) -> Option<Arc<Value>> {
        let mut health = self.health.subscribe();
        let known = timeout(patience, health.wait_for(|health| health.opened.is_some() || health.up == Some(false)));
        known.await.ok()?.ok()?.opened.clone()
    }

    /// A turn to send a request; waits for it as long as the request may take.
    pub(crate) async fn turn(&self, patience: Duration) -> Result<Turn<'_>, UpstreamFault> {
        match timeout(patience, self.requests.acquire()).await {
            Ok(Ok(permit)) => {
                self.running.inc();
                Ok(Turn { running: &self.running, _permit: permit })
            }
            _ => {
                Err(UpstreamFault::Busy { limit: usize::try_from(self.settings.max_concurrency).unwrap_or(usize::MAX) })
            }
        }
    }

    /// A session that had ended by itself is open again.
    pub(crate) fn revived(&self) {
        if self.is_child() {
            self.tell(Step::ProcessRestarted, None);
        }
    }

    /// Opens a session for a client's, with the parameters the client said hello with.
    pub(crate) async fn connect(&self, hello: Value, upcalls: Arc<dyn Upcalls>) -> Result<Link, UpstreamFault> {
        let Ok(permit) = Arc::clone(&self.sessions).try_acquire_owned() else {
            let limit = usize::try_from(self.settings.sessions()).unwrap_or(usize::MAX);
            return Err(UpstreamFault::Full { limit });
        };
        if self.is_child() && !self.backoff().may_try(Instant::now()) {
            return Err(UpstreamFault::Unreachable);
        }
        let outcome = self.open(hello, upcalls, Some(permit)).await;
        match &outcome {
            Ok(link) => {
                self.backoff().succeeded();
                self.mourn(link);
            }
            Err(fault) if fault.is_of_the_connection() => {
                self.backoff().failed(Instant::now());
            }
            Err(_) => {}
        }
        outcome
    }

    /// Tells when a child of a client's session ends by itself.
    fn mourn(&self, link: &Link) {
        if self.is_child() {
            let (died, lifecycle, name) = (link.died(), Arc::clone(&self.lifecycle), self.name.clone());
            self.tasks.spawn(async move {
                if died.await {
                    lifecycle(&name, Step::ProcessFailed, Some(UpstreamFault::Broken.code()));
                }
            });
        }
    }

    /// Opens a session, whatever happened before.
    pub(super) async fn open(
        &self,
        hello: Value,
        upcalls: Arc<dyn Upcalls>,
        permit: Option<tokio::sync::OwnedSemaphorePermit>,
    ) -> Result<Link, UpstreamFault> {
        let patience = self.timeout().max(HANDSHAKE);
        let mut parts = LinkParts { hello, upcalls, patience, wire: None, permit, tasks: self.tasks.clone() };
        match &self.reach {
            Reach::Http { url, wire } => {
                let wire = wire.of_one_session();
                parts.wire = Some(wire.clone());
                let transport = StreamableHttpClientTransport::with_client(wire, self.http_config(url));
                Link::open(transport, parts).await
            }
            Reach::Child => {
                let limit = self.settings.max_result_bytes.as_usize();
                let transport = ChildTransport::start(self.command(), limit)?;
                Link::open(transport, parts).await
            }
        }
    }

    fn http_config(&self, url: &Arc<str>) -> StreamableHttpClientTransportConfig {
        let mut retry = ExponentialBackoff::default();
        retry.max_times = Some(RESUMPTIONS);
        retry.base_duration = self.settings.restart.first_wait.as_duration();
        retry.max_delay = Some(self.settings.restart.longest_wait.as_duration());
        let mut config = StreamableHttpClientTransportConfig::with_uri(Arc::clone(url));
        config.retry_config = Arc::new(retry);
        config.max_concurrent_requests = usize::try_from(self.settings.max_concurrency).unwrap_or(usize::MAX).max(1);
        config
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

    fn backoff(&self) -> MutexGuard<'_, Backoff> {
        self.backoff.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A client for all HTTP plugins.
///
/// # Errors
/// When TLS cannot be set up.
pub(crate) fn http_client() -> Result<reqwest::Client, GatewayError> {
    reqwest::Client::builder()
        .connect_timeout(CONNECT)
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
