//! The task that owns a link's transport.
//!
//! It keeps the upstream's own order: what an upstream tells before it answers is passed on before the answer. When the
//! transport ends, everyone who waits gets a fault at once, never a hang. What the upstream asks is answered in tasks of
//! their own.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use http::HeaderMap;
use rmcp::model::{
    CancelledNotification, CancelledNotificationParam, ClientJsonRpcMessage, ClientNotification, ClientRequest,
    ClientResult, CustomNotification, CustomRequest, CustomResult, ErrorData, RequestId,
};
use rmcp::service::RoleClient;
use rmcp::transport::Transport;
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::envelope::{self, Outbound};
use super::fault::UpstreamFault;
use super::link::{StreamNumber, Upcalls};
use super::waiters::Waiters;
use crate::gateway::message::{Message, Notification, Request, Response};

/// A send that is under way, and the request that fails with it.
type Sending = BoxFuture<'static, (Option<i64>, Result<(), UpstreamFault>)>;

/// Ends a transport.
pub(super) async fn close<T: Transport<RoleClient>>(mut transport: T) {
    if transport.close().await.is_err() {
        tracing::debug!("an upstream's session did not end well");
    }
}

/// What a link has its keeper send.
pub(super) enum Outgoing {
    Ask { id: i64, method: String, outbound: Outbound },
    Tell { body: Bytes, notification: Notification },
    Answer { id: RequestId, outcome: Result<Value, ErrorData> },
}

/// The task that owns the transport.
pub(super) struct Keeper {
    upcalls: Arc<dyn Upcalls>,
    waiters: Arc<Waiters>,
    /// Requests of the upstream that are being answered.
    answering: HashMap<RequestId, CancellationToken>,
    sending: FuturesUnordered<Sending>,
    /// For answers to the upstream. Weak: the link itself says how long this lives.
    outgoing: mpsc::WeakSender<Outgoing>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Keeper {
    pub(super) fn new(
        upcalls: Arc<dyn Upcalls>,
        waiters: Arc<Waiters>,
        outgoing: mpsc::WeakSender<Outgoing>,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Self {
        let (answering, sending) = (HashMap::new(), FuturesUnordered::new());
        Self { upcalls, waiters, answering, sending, outgoing, _permit: permit }
    }

    /// Runs until the link or the transport ends.
    pub(super) async fn run<T>(
        mut self,
        mut transport: T,
        (mut to_send, mut to_cancel): (mpsc::Receiver<Outgoing>, mpsc::UnboundedReceiver<i64>),
        stopped: CancellationToken,
        ended: DropGuard,
    ) where
        T: Transport<RoleClient> + 'static,
        UpstreamFault: From<T::Error>,
    {
        loop {
            tokio::select! {
                () = stopped.cancelled() => break,
                Some(id) = to_cancel.recv() => self.cancel(&mut transport, id),
                Some(outgoing) = to_send.recv() => self.send(&mut transport, outgoing),
                Some((id, outcome)) = self.sending.next() => {
                    if let (Some(id), Err(fault)) = (id, outcome) {
                        self.waiters.tell(id, Err(fault));
                    }
                }
                message = transport.receive() => match message {
                    Some(message) => self.receive(message).await,
                    None => break,
                },
            }
        }
        // From here on nobody begins to wait, and who waits is told.
        drop(ended);
        drop((to_send, to_cancel));
        for (_, answering) in self.answering.drain() {
            answering.cancel();
        }
        self.waiters.fail_all(&UpstreamFault::Broken);
        drop(self.sending);
        close(transport).await;
    }

    fn send<T>(&mut self, transport: &mut T, outgoing: Outgoing)
    where
        T: Transport<RoleClient> + 'static,
        UpstreamFault: From<T::Error>,
    {
        let (id, message) = match outgoing {
            // Given up while it was in the queue, and cancelled before it was sent: it is not to be sent.
            Outgoing::Ask { id, .. } if !self.waiters.waits(id) => return,
            Outgoing::Ask { id, method, outbound } => {
                // The raw body goes to the upstream; the model only has to say that it is a request.
                let mut request = CustomRequest::new(method, None);
                request.extensions.insert(outbound);
                let request = ClientRequest::CustomRequest(request);
                (Some(id), ClientJsonRpcMessage::request(request, RequestId::Number(id)))
            }
            Outgoing::Tell { body, notification } => {
                let mut custom = CustomNotification::new(notification.method, None);
                custom.extensions.insert(Outbound::new(body, HeaderMap::new()));
                (None, ClientJsonRpcMessage::notification(ClientNotification::CustomNotification(custom)))
            }
            Outgoing::Answer { id, outcome } => {
                self.answering.remove(&id);
                let message = match outcome {
                    Ok(result) => ClientJsonRpcMessage::response(ClientResult::CustomResult(CustomResult(result)), id),
                    Err(error) => ClientJsonRpcMessage::error(error, Some(id)),
                };
                (None, message)
            }
        };
        self.post(transport, id, message);
    }

    fn cancel<T>(&mut self, transport: &mut T, id: i64)
    where
        T: Transport<RoleClient> + 'static,
        UpstreamFault: From<T::Error>,
    {
        // What has just been answered needs no cancelling.
        if self.waiters.forget(id) {
            let params = CancelledNotificationParam::new(Some(RequestId::Number(id)), None);
            let cancelled = CancelledNotification::new(params);
            let message = ClientJsonRpcMessage::notification(ClientNotification::CancelledNotification(cancelled));
            self.post(transport, None, message);
        }
    }

    fn post<T>(&mut self, transport: &mut T, id: Option<i64>, message: ClientJsonRpcMessage)
    where
        T: Transport<RoleClient> + 'static,
        UpstreamFault: From<T::Error>,
    {
        let sent = transport.send(message);
        self.sending.push(Box::pin(async move { (id, sent.await.map_err(UpstreamFault::from)) }));
    }

    async fn receive(&mut self, message: rmcp::model::ServerJsonRpcMessage) {
        let Some(inbound) = envelope::open(message) else { return };
        match inbound.message {
            Message::Response(response) => self.answered(response),
            Message::Request(request) => {
                let stream = self.waiters.stream(inbound.origin, None);
                self.asked(request, stream);
            }
            Message::Notification(notification) if notification.method == "notifications/cancelled" => {
                let id = notification.params.as_ref().and_then(|params| params.get("requestId"));
                let id = id.and_then(|id| serde_json::from_value::<RequestId>(id.clone()).ok());
                if let Some(answering) = id.and_then(|id| self.answering.remove(&id)) {
                    answering.cancel();
                }
            }
            Message::Notification(notification) => {
                let progress = (notification.method == "notifications/progress")
                    .then(|| notification.params.as_ref()?.get("progressToken"))
                    .flatten();
                let stream = self.waiters.stream(inbound.origin, progress);
                self.upcalls.told(notification, stream).await;
            }
        }
    }

    fn answered(&mut self, response: Response) {
        let fault = response.outcome.as_ref().err().and_then(envelope::fault);
        let id = match response.id {
            Some(RequestId::Number(id)) => id,
            // Some servers write a number as text.
            Some(RequestId::String(id)) => match id.parse() {
                Ok(id) => id,
                Err(_) => return,
            },
            None => {
                // What was too large to be read may be anyone's answer.
                if let Some(fault) = fault {
                    self.waiters.fail_all(&fault);
                }
                return;
            }
        };
        self.waiters.tell(id, response.outcome.map_err(|error| fault.unwrap_or(UpstreamFault::Refused(error))));
    }

    /// Answers the upstream's request in a task of its own, so that what comes next is not held up.
    fn asked(&mut self, request: Request, stream: Option<StreamNumber>) {
        let (upcalls, outgoing) = (Arc::clone(&self.upcalls), self.outgoing.clone());
        let cancelled = CancellationToken::new();
        self.answering.insert(request.id.clone(), cancelled.clone());
        tokio::spawn(async move {
            let outcome = tokio::select! {
                outcome = upcalls.asked(request.method, request.params, stream) => outcome,
                // A request that was cancelled gets no answer.
                () = cancelled.cancelled() => return,
            };
            if let Some(outgoing) = outgoing.upgrade() {
                // A link that has ended has nobody to answer.
                let _ = outgoing.send(Outgoing::Answer { id: request.id, outcome }).await;
            }
        });
    }
}
