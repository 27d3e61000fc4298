//! Subscriptions of the modern generation (`subscriptions/listen`): a request that stays open, on which the server
//! tells.
//!
//! It begins when the server has acknowledged what it grants, and ends when the handle is dropped, when the server ends
//! it with a result, or with the connection. A connection that is lost is not opened again here: who listens decides
//! that.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::dispatch::without_subscription;
use super::{Ask, Plugin, Upcalls, UpstreamError, next_id};
use crate::gateway::message::{Json, Notification, Request, RpcError};
use crate::gateway::pass::Pass;

/// How long the acknowledgement may take.
const ACKNOWLEDGE_TIMEOUT: Duration = Duration::from_secs(10);

/// A subscription. It ends when this is dropped.
pub(crate) struct Listening {
    granted: Json,
    /// Whether the server ended it gracefully, once it has ended.
    ended: watch::Receiver<Option<bool>>,
    _stop: DropGuard,
}

impl Listening {
    /// What the server grants: the `notifications` object of its acknowledgement.
    pub(crate) fn granted(&self) -> &Json {
        &self.granted
    }

    /// Waits for its end; whether the server said that it ended.
    pub(crate) async fn ended(&self) -> bool {
        let mut ended = self.ended.clone();
        let outcome = ended.wait_for(Option::is_some).await;
        outcome.is_ok_and(|outcome| *outcome == Some(true))
    }
}

impl Plugin {
    /// Opens a subscription; waits until the server has acknowledged it.
    pub(crate) async fn listen(
        self: &Arc<Self>,
        caller: Option<&str>,
        filter: Json,
        meta: Json,
        upcalls: Arc<dyn Upcalls>,
    ) -> Result<Listening, UpstreamError> {
        let (acknowledge, acknowledged) = oneshot::channel();
        let (end, ended) = watch::channel(None);
        let stop = CancellationToken::new();
        let mut params = Json::of(&json!({})).object().unwrap_or_default();
        params.set("_meta", meta);
        params.set("notifications", filter);
        let ask = Ask {
            id: next_id(),
            method: "subscriptions/listen".into(),
            params: Some(params.to_json()),
            headers: http::HeaderMap::new(),
            pass: Pass::own(),
            upcalls: Arc::new(Subscriber { acknowledge: Mutex::new(Some(acknowledge)), upcalls }),
        };
        let (plugin, stopped) = (Arc::clone(self), stop.clone());
        let caller = caller.map(Arc::<str>::from);
        let (fail, failed) = oneshot::channel();
        tokio::spawn(async move {
            let outcome = tokio::select! {
                outcome = plugin.request(caller.as_deref(), ask) => outcome,
                () = stopped.cancelled() => Err(UpstreamError::Broken),
            };
            end.send_replace(Some(outcome.is_ok()));
            // Ignore the error: nobody waits for the acknowledgement any more.
            let _ = fail.send(outcome.err().unwrap_or(UpstreamError::NotMcp));
        });
        let guard = stop.drop_guard();
        let granted = timeout(ACKNOWLEDGE_TIMEOUT, async {
            tokio::select! {
                biased;
                Ok(granted) = acknowledged => Ok(granted),
                error = failed => Err(error.unwrap_or(UpstreamError::Broken)),
            }
        });
        let granted = granted.await.unwrap_or(Err(UpstreamError::TimedOut { after: ACKNOWLEDGE_TIMEOUT }))?;
        Ok(Listening { granted, ended, _stop: guard })
    }
}

/// Takes the acknowledgement out of what a subscription brings.
struct Subscriber {
    acknowledge: Mutex<Option<oneshot::Sender<Json>>>,
    upcalls: Arc<dyn Upcalls>,
}

#[async_trait]
impl Upcalls for Subscriber {
    async fn asked(&self, _: Request) -> Result<Json, RpcError> {
        Err(RpcError::method_not_found("a subscription answers nothing"))
    }

    async fn notified(&self, mut notification: Notification) {
        if &*notification.method == "notifications/subscriptions/acknowledged" {
            let granted = notification.params.and_then(|params| params.get("notifications"));
            if let Some(acknowledge) = self.acknowledge.lock().take() {
                // Ignore the error: nobody waits for it any more.
                let _ = acknowledge.send(granted.unwrap_or_else(Json::empty_object));
            }
            return;
        }
        notification.params = notification.params.as_ref().map(without_subscription);
        self.upcalls.notified(notification).await;
    }
}
