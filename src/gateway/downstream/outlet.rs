//! The response stream of one modern request: what comes before its answer. Nobody can be asked on it, and it cannot be
//! resumed.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc;

use crate::gateway::budget::Budget;
use crate::gateway::call::client::Outlet;
use crate::gateway::message::{Json, Notification, RpcError, encode};

/// Messages that may wait for a connection to take them.
const QUEUE: usize = 1_024;

/// The response stream of one modern request.
pub(super) struct ModernOutlet {
    messages: mpsc::Sender<Bytes>,
    budget: Arc<Budget>,
    owner: Arc<str>,
}

impl ModernOutlet {
    pub(super) fn open(budget: &Arc<Budget>, owner: &Arc<str>) -> (Arc<dyn Outlet>, mpsc::Receiver<Bytes>) {
        let (messages, taken) = mpsc::channel(QUEUE);
        (Arc::new(Self { messages, budget: Arc::clone(budget), owner: Arc::clone(owner) }), taken)
    }
}

#[async_trait]
impl Outlet for ModernOutlet {
    fn notify(&self, notification: Notification) {
        let params = notification.params.as_ref().map(Json::one_line);
        let message = encode(None, &notification.method, params.as_ref());
        let Ok(charge) = self.budget.charge(&self.owner, message.len()) else { return };
        // A client that does not read misses what it does not read; its answer ends the stream all the same.
        let _ = self.messages.try_send(charge.hold(message.into()));
    }

    async fn ask(&self, _: usize, _: &str, _: Option<Json>) -> Result<Json, RpcError> {
        Err(RpcError::method_not_found("a client of this version is asked by the result of its request"))
    }
}
