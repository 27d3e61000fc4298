//! The gateway's own session with each plugin: it says whether the plugin is up, what it answers to `initialize`, and
//! when its tools change, to the audit ledger and to clients that have no session of their own with it yet.
//!
//! It is tried again for as long as the gateway runs, after a growing wait. A child process that ends is seen at once, an
//! HTTP server that goes away by a ping.

use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use http::HeaderMap;
use rmcp::model::{ErrorData, ProtocolVersion};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::backoff::Backoff;
use super::fault::UpstreamFault;
use super::link::{Ask, Link, StreamNumber, Upcalls};
use super::plugin::{Plugin, Step};
use crate::gateway::message::Notification;

/// How often an HTTP server is asked whether it is there.
const PING: Duration = Duration::from_secs(15);

/// How long it may take to say so.
const PONG: Duration = Duration::from_secs(10);

/// Who is told when a plugin's lists change.
#[async_trait]
pub(crate) trait Listeners: Send + Sync + 'static {
    /// The plugin says so, with this notification.
    async fn list_changed(&self, plugin: &str, notification: &Notification);
}

impl Plugin {
    /// Keeps the gateway's own session until `stop`.
    pub(crate) async fn monitor(self: Arc<Self>, listeners: Weak<impl Listeners>, stop: CancellationToken) {
        self.tell(Step::Started, None);
        let watching = async {
            let mut backoff = Backoff::new(self.restart());
            let upcalls: Arc<dyn Upcalls> = Arc::new(Watcher { plugin: Arc::downgrade(&self), listeners });
            let mut failed = false;
            loop {
                let fault = match self.open(hello(), Arc::clone(&upcalls), None).await {
                    Ok(link) => {
                        self.set_health(|health| {
                            health.opened = Some(Arc::new(link.opened().clone()));
                            health.up = Some(true);
                        });
                        if std::mem::take(&mut failed) {
                            self.tell(Step::Restarted, None);
                        }
                        self.tell(Step::Ready, None);
                        tracing::info!(plugin = self.name(), "the plugin is ready");
                        let since = Instant::now();
                        let fault = self.watch(&link).await;
                        if since.elapsed() >= self.restart().longest_wait.as_duration() {
                            backoff.succeeded();
                        }
                        fault
                    }
                    Err(fault) => fault,
                };
                self.set_health(|health| health.up = Some(false));
                // Once an outage, however often it is tried.
                if !std::mem::replace(&mut failed, true) {
                    self.tell(Step::Failed, Some(fault.code()));
                }
                let wait = backoff.failed(Instant::now());
                tracing::warn!(
                    plugin = self.name(),
                    code = fault.code(),
                    ?wait,
                    "the plugin failed; it is tried again"
                );
                sleep(wait).await;
            }
        };
        tokio::select! {
            () = watching => {}
            () = stop.cancelled() => {}
        }
        self.tell(Step::Stopped, None);
    }

    /// Until the session is over.
    async fn watch(&self, link: &Link) -> UpstreamFault {
        if self.is_child() {
            link.closed().await;
            return UpstreamFault::Broken;
        }
        loop {
            tokio::select! {
                () = link.closed() => return UpstreamFault::Broken,
                () = sleep(PING) => {}
            }
            let ping = Ask { method: "ping".to_owned(), params: None, headers: HeaderMap::new(), stream: None };
            match timeout(PONG, link.ask(ping)).await {
                // An error is an answer.
                Ok(Ok(_) | Err(UpstreamFault::Refused(_))) => {}
                Ok(Err(fault)) => return fault,
                Err(_) => return UpstreamFault::TimedOut { after: PONG },
            }
        }
    }
}

/// What the gateway says of itself. It offers nothing that a server could ask for.
fn hello() -> Value {
    json!({
        "protocolVersion": ProtocolVersion::LATEST_WITH_INITIALIZE,
        "capabilities": {},
        "clientInfo": { "name": "mcpg", "version": env!("CARGO_PKG_VERSION") },
    })
}

/// Listens to what the plugin tells the gateway.
struct Watcher<L> {
    plugin: Weak<Plugin>,
    listeners: Weak<L>,
}

#[async_trait]
impl<L: Listeners> Upcalls for Watcher<L> {
    async fn asked(&self, method: String, _: Option<Value>, _: Option<StreamNumber>) -> Result<Value, ErrorData> {
        match method.as_str() {
            "ping" => Ok(json!({})),
            _ => Err(ErrorData::new(
                rmcp::model::ErrorCode::METHOD_NOT_FOUND,
                "the gateway itself offers no capabilities",
                None,
            )),
        }
    }

    async fn told(&self, notification: Notification, _: Option<StreamNumber>) {
        if !notification.method.ends_with("/list_changed") {
            return;
        }
        let Some(plugin) = self.plugin.upgrade() else { return };
        if notification.method == "notifications/tools/list_changed" {
            plugin.tell(Step::ToolsChanged, None);
        }
        if let Some(listeners) = self.listeners.upgrade() {
            listeners.list_changed(plugin.name(), &notification).await;
        }
    }
}
