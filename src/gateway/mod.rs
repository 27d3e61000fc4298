//! The gateway: MCP between agents and the servers they use, with every call identified, decided, dispatched, and told.
//!
//! | module | holds |
//! |---|---|
//! | [`emit`] | streams 1 and 3: samples and audit events on their way to the control plane |
//! | [`metrics`] | stream 1, the near half: the gateway's own Prometheus metrics |
//! | `spool` | the durable queue on disk that samples and events wait in |
//! | [`mcp`] | MCP as clients see it: HTTP, sessions, names, lists |
//! | [`call`] | one call's story: identity, policy, dispatch, and what is told of it |
//! | [`identity`] | who calls |
//! | [`policy`] | what a caller may do, and under which obligations |
//! | [`upstream`] | the MCP servers behind it, as a client of theirs |
//! | [`traces`] | stream 2: the spans of each request |
//! | [`message`] | JSON-RPC messages as a relay sees them |
//! | [`error`] | why it does not start |

mod call;
pub mod emit;
mod error;
pub mod identity;
mod mcp;
mod message;
pub mod metrics;
pub mod policy;
mod spool;
pub mod traces;
mod upstream;

use std::net::SocketAddr;
use std::sync::{Arc, Weak};

use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::error::GatewayError;

use self::call::Calls;
use self::mcp::{Doors, Relay, router};
use self::upstream::{Lifecycle, Plugin, http_client};
use crate::api::server::Server;
use crate::config;
use crate::model::{Clock, Random};

/// What a gateway is made of besides its settings.
#[derive(Debug)]
pub struct Parts {
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub random: Arc<dyn Random>,
}

/// A gateway that serves.
pub struct Gateway {
    address: SocketAddr,
    doors: Arc<Doors>,
    /// Requests under way.
    requests: TaskTracker,
    /// Sessions with plugins.
    links: TaskTracker,
    monitors: TaskTracker,
    drain: std::time::Duration,
    /// No connection is taken any more, and event streams end.
    stop: CancellationToken,
    stop_monitors: CancellationToken,
    server: JoinHandle<bool>,
    sweeper: JoinHandle<()>,
}

impl Gateway {
    /// Takes its address, begins to use the plugins, and serves. A plugin that is not up does not hinder it.
    ///
    /// # Errors
    /// See [`GatewayError`].
    pub async fn start(settings: &config::Gateway, parts: Parts) -> Result<Self, GatewayError> {
        let server = Server::bind(settings.listen)
            .await
            .map_err(|error| GatewayError::Listen { address: settings.listen, error })?;
        let address = server.address();
        let (requests, links, monitors) = (TaskTracker::new(), TaskTracker::new(), TaskTracker::new());
        let (stop, stop_monitors) = (CancellationToken::new(), CancellationToken::new());
        let lifecycle: Lifecycle = Arc::new(|_, _, _| {});
        let http = http_client()?;
        let plugins = settings
            .plugins
            .iter()
            .map(|plugin| {
                Plugin::new(plugin.clone(), http.clone(), Arc::clone(&lifecycle), links.clone()).map(Arc::new)
            })
            .collect::<Result<Vec<_>, _>>()?;
        let calls = Calls { clock: Arc::clone(&parts.clock), random: Arc::clone(&parts.random) };
        let relay = Arc::new(Relay::new(calls, requests.clone()));
        let doors = Doors::new(settings, &plugins, &relay, &parts.clock, &stop);
        for plugin in &plugins {
            let doors: Weak<Doors> = Arc::downgrade(&doors);
            monitors.spawn(Arc::clone(plugin).monitor(doors, stop_monitors.clone()));
        }
        let server = tokio::spawn(server.run(router(&doors), stop.clone().cancelled_owned(), GRACE));
        let sweeper = tokio::spawn(Arc::clone(&doors).sweep());
        Ok(Self {
            address,
            doors,
            requests,
            links,
            monitors,
            drain: settings.limits.drain.as_duration(),
            stop,
            stop_monitors,
            server,
            sweeper,
        })
    }

    /// Where it is reached.
    pub fn url(&self) -> String {
        format!("http://{}/mcp", self.address)
    }

    /// Takes nothing new, lets calls under way finish, then ends every session and every plugin. Says whether all
    /// calls ended in time.
    pub async fn drain(self) -> bool {
        self.doors.close();
        self.requests.close();
        let finished = timeout(self.drain, self.requests.wait()).await.is_ok();
        self.sweeper.abort();
        self.doors.end_all().await;
        self.stop.cancel();
        self.stop_monitors.cancel();
        self.monitors.close();
        self.links.close();
        if timeout(GRACE, async { tokio::join!(self.monitors.wait(), self.links.wait()) }).await.is_err() {
            tracing::warn!("a plugin did not end in time");
        }
        match self.server.await {
            Ok(true) => {}
            Ok(false) => tracing::warn!("connections that did not end in time were cut off"),
            Err(error) => tracing::error!(%error, "the server did not end well"),
        }
        finished
    }
}

/// How long connections and plugins may take to end once nothing is under way.
const GRACE: std::time::Duration = std::time::Duration::from_secs(8);
