//! One MCP session with an upstream, over either transport.
//!
//! A link belongs to one session of a client, or to the gateway itself ([`super::monitor`]), and is never shared: so what
//! an upstream asks for (sampling, elicitation, roots) or tells (logging, list changes) reaches the client whose
//! session it is, by construction, and an upstream's per-session state is nobody else's.
//!
//! A task owns the transport. It gives each request an id, remembers who waits for the answer and on which of the
//! client's streams that request came, and keeps the upstream's own order: what an upstream tells before it answers
//! is passed on before the answer. When the transport ends, everyone who waits gets a fault at once, never a hang.
//! Whoever stops waiting (a timeout, the client's cancellation) tells the upstream so, with `notifications/cancelled`.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use http::HeaderMap;
use rmcp::model::{
    CancelledNotification, CancelledNotificationParam, ClientJsonRpcMessage, ClientNotification, ClientRequest,
    ClientResult, CustomNotification, CustomRequest, CustomResult, ErrorData, InitializeRequest,
    InitializeRequestParams, InitializedNotification, RequestId,
};
use rmcp::service::RoleClient;
use rmcp::transport::Transport;
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::envelope::{self, Outbound};
use super::fault::UpstreamFault;
use crate::gateway::message::{Message, Notification, Request, Response, progress_token};

/// Messages that may wait for the transport; more make their senders wait.
const QUEUE: usize = 64;

/// The id of `initialize`; every later request has a greater one.
const HELLO: i64 = 0;

/// Which of the client's streams a request came on.
pub(crate) type StreamNumber = u64;

/// What an upstream asks of, and tells, the other end of a link.
#[async_trait]
pub(crate) trait Upcalls: Send + Sync + 'static {
    /// The upstream asks; `stream` is that of the request it asks for the sake of, where that can be told.
    async fn asked(
        &self,
        method: String,
        params: Option<Value>,
        stream: Option<StreamNumber>,
    ) -> Result<Value, ErrorData>;

    /// The upstream tells.
    async fn told(&self, notification: Notification, stream: Option<StreamNumber>);
}

/// A request to an upstream.
pub(crate) struct Ask {
    pub(crate) method: String,
    pub(crate) params: Option<Value>,
    /// Headers of this request alone, where the transport has headers.
    pub(crate) headers: HeaderMap,
    /// Where what comes in between belongs.
    pub(crate) stream: Option<StreamNumber>,
}

/// One MCP session with an upstream. It ends when this is dropped.
pub(crate) struct Link {
    outgoing: mpsc::Sender<Outgoing>,
    abandoned: mpsc::UnboundedSender<i64>,
    next: AtomicI64,
    opened: Value,
    closed: CancellationToken,
    stop: CancellationToken,
    _stop: DropGuard,
}

enum Outgoing {
    Ask { id: i64, body: Bytes, ask: Ask, answer: oneshot::Sender<Result<Value, UpstreamFault>> },
    Tell { body: Bytes, notification: Notification },
    Answer { id: RequestId, outcome: Result<Value, ErrorData> },
}

/// What a link needs besides its transport.
pub(super) struct LinkParts {
    /// The parameters of `initialize`, as the client wrote them.
    pub(super) hello: Value,
    pub(super) upcalls: Arc<dyn Upcalls>,
    /// How long the handshake may take.
    pub(super) patience: Duration,
    /// Returned when the link has ended.
    pub(super) permit: Option<OwnedSemaphorePermit>,
    /// Where its task is waited for.
    pub(super) tasks: TaskTracker,
}

impl Link {
    /// Shakes hands over `transport` and keeps the session from then on.
    pub(super) async fn open<T>(mut transport: T, parts: LinkParts) -> Result<Self, UpstreamFault>
    where
        T: Transport<RoleClient> + 'static,
        UpstreamFault: From<T::Error>,
    {
        let opened = match tokio::time::timeout(parts.patience, shake_hands(&mut transport, &parts.hello)).await {
            Ok(Ok(opened)) => opened,
            Ok(Err(fault)) => {
                end(transport).await;
                return Err(fault);
            }
            Err(_) => {
                end(transport).await;
                return Err(UpstreamFault::TimedOut { after: parts.patience });
            }
        };
        let (outgoing, to_send) = mpsc::channel(QUEUE);
        // At most one a request that is under way, and those are bounded.
        let (abandoned, to_cancel) = mpsc::unbounded_channel();
        let (stop, closed) = (CancellationToken::new(), CancellationToken::new());
        let keeper = Keeper {
            upcalls: parts.upcalls,
            pending: HashMap::new(),
            answering: HashMap::new(),
            sending: FuturesUnordered::new(),
            outgoing: outgoing.downgrade(),
            _permit: parts.permit,
        };
        let (stopped, ended) = (stop.clone(), closed.clone().drop_guard());
        parts.tasks.spawn(async move { keeper.run(transport, (to_send, to_cancel), stopped, ended).await });
        let next = AtomicI64::new(HELLO + 1);
        Ok(Self { outgoing, abandoned, next, opened, closed, stop: stop.clone(), _stop: stop.drop_guard() })
    }

    /// What the upstream answered to `initialize`.
    pub(crate) fn opened(&self) -> &Value {
        &self.opened
    }

    /// Whether the upstream ended it.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }

    /// Waits until it has ended.
    pub(crate) async fn closed(&self) {
        self.closed.cancelled().await;
    }

    /// Whether, once it has ended, it was the upstream that ended it.
    pub(super) fn died(&self) -> impl Future<Output = bool> + Send + use<> {
        let (closed, stop) = (self.closed.clone(), self.stop.clone());
        async move {
            closed.cancelled().await;
            !stop.is_cancelled()
        }
    }

    /// Asks, and waits for the answer; dropping the future cancels the request.
    pub(crate) async fn ask(&self, ask: Ask) -> Result<Value, UpstreamFault> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let body = envelope::encode(Some(&RequestId::Number(id)), &ask.method, ask.params.as_ref())
            .map_err(|_| UpstreamFault::Broken)?;
        let (answer, answered) = oneshot::channel();
        self.outgoing.send(Outgoing::Ask { id, body, ask, answer }).await.map_err(|_| UpstreamFault::Broken)?;
        let mut waiting = Waiting { abandoned: &self.abandoned, id: Some(id) };
        let outcome = answered.await;
        waiting.id = None;
        outcome.unwrap_or(Err(UpstreamFault::Broken))
    }

    /// Tells, without waiting for more than a place in the queue.
    pub(crate) async fn tell(&self, notification: Notification) {
        let Ok(body) = envelope::encode(None, &notification.method, notification.params.as_ref()) else { return };
        // A link that has ended has nobody to tell.
        let _ = self.outgoing.send(Outgoing::Tell { body, notification }).await;
    }
}

/// Cancels its request when it is dropped before the answer is there.
struct Waiting<'a> {
    abandoned: &'a mpsc::UnboundedSender<i64>,
    id: Option<i64>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            // A link that has ended has nothing to cancel.
            let _ = self.abandoned.send(id);
        }
    }
}

/// `initialize`, its answer, `notifications/initialized`.
async fn shake_hands<T>(transport: &mut T, hello: &Value) -> Result<Value, UpstreamFault>
where
    T: Transport<RoleClient>,
    UpstreamFault: From<T::Error>,
{
    let id = RequestId::Number(HELLO);
    let body = envelope::encode(Some(&id), "initialize", Some(hello)).map_err(|_| UpstreamFault::NotMcp)?;
    // The transport reads the model, the upstream the raw parameters. A client's own were read by the model before.
    let params: InitializeRequestParams =
        serde_json::from_value(hello.clone()).map_err(|_| UpstreamFault::Refused(bad_hello()))?;
    let mut request = InitializeRequest::new(params);
    request.extensions.insert(Outbound { body, headers: HeaderMap::new() });
    transport.send(ClientJsonRpcMessage::request(ClientRequest::InitializeRequest(request), id)).await?;
    let opened = loop {
        let message = transport.receive().await.ok_or(UpstreamFault::Broken)?;
        match envelope::open(message).map(|inbound| inbound.message) {
            Some(Message::Response(Response { outcome: Ok(opened), .. })) => break opened,
            Some(Message::Response(Response { outcome: Err(error), .. })) => {
                return Err(envelope::fault(&error).unwrap_or(UpstreamFault::Refused(error)));
            }
            // Nothing else is of use before the session is open.
            Some(Message::Request(_) | Message::Notification(_)) | None => {}
        }
    };
    let initialized = ClientNotification::InitializedNotification(InitializedNotification::default());
    transport.send(ClientJsonRpcMessage::notification(initialized)).await?;
    Ok(opened)
}

fn bad_hello() -> ErrorData {
    ErrorData::invalid_params("the parameters of initialize are not as MCP says", None)
}

async fn end<T: Transport<RoleClient>>(mut transport: T) {
    if transport.close().await.is_err() {
        tracing::debug!("an upstream's session did not end well");
    }
}

/// Who waits for an answer.
struct Pending {
    answer: oneshot::Sender<Result<Value, UpstreamFault>>,
    stream: Option<StreamNumber>,
    progress: Option<Value>,
}

/// A send that is under way, and the request that fails with it.
type Sending = BoxFuture<'static, (Option<i64>, Result<(), UpstreamFault>)>;

/// The task that owns the transport.
struct Keeper {
    upcalls: Arc<dyn Upcalls>,
    pending: HashMap<i64, Pending>,
    /// Requests of the upstream that are being answered.
    answering: HashMap<RequestId, CancellationToken>,
    sending: FuturesUnordered<Sending>,
    /// For answers to the upstream. Weak: the link itself says how long this lives.
    outgoing: mpsc::WeakSender<Outgoing>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Keeper {
    async fn run<T>(
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
                    if let (Some(id), Err(fault)) = (id, outcome)
                        && let Some(pending) = self.pending.remove(&id)
                    {
                        // Whoever does not wait any more does not mind.
                        let _ = pending.answer.send(Err(fault));
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
        for (_, pending) in self.pending.drain() {
            let _ = pending.answer.send(Err(UpstreamFault::Broken));
        }
        drop(self.sending);
        end(transport).await;
    }

    fn send<T>(&mut self, transport: &mut T, outgoing: Outgoing)
    where
        T: Transport<RoleClient> + 'static,
        UpstreamFault: From<T::Error>,
    {
        let (id, message) = match outgoing {
            Outgoing::Ask { id, body, ask, answer } => {
                let progress = progress_token(ask.params.as_ref()).cloned();
                self.pending.insert(id, Pending { answer, stream: ask.stream, progress });
                // The raw body goes to the upstream; the model only has to say that it is a request.
                let mut request = CustomRequest::new(ask.method, None);
                request.extensions.insert(Outbound { body, headers: ask.headers });
                let request = ClientRequest::CustomRequest(request);
                (Some(id), ClientJsonRpcMessage::request(request, RequestId::Number(id)))
            }
            Outgoing::Tell { body, notification } => {
                let mut custom = CustomNotification::new(notification.method, None);
                custom.extensions.insert(Outbound { body, headers: HeaderMap::new() });
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
        if self.pending.remove(&id).is_some() {
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
                let stream = self.stream(inbound.origin, None);
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
                let stream = self.stream(inbound.origin, progress);
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
                    for (_, pending) in self.pending.drain() {
                        let _ = pending.answer.send(Err(fault.clone()));
                    }
                }
                return;
            }
        };
        if let Some(pending) = self.pending.remove(&id) {
            let outcome = response.outcome.map_err(|error| fault.unwrap_or(UpstreamFault::Refused(error)));
            // Whoever does not wait any more does not mind.
            let _ = pending.answer.send(outcome);
        }
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

    /// On which of the client's streams something belongs: that of the request whose response brought it, or whose
    /// progress it is, or of the only request there is.
    fn stream(&self, origin: Option<i64>, progress: Option<&Value>) -> Option<StreamNumber> {
        if let Some(pending) = origin.and_then(|id| self.pending.get(&id)) {
            return pending.stream;
        }
        if let Some(token) = progress {
            return self.pending.values().find(|pending| pending.progress.as_ref() == Some(token))?.stream;
        }
        let mut pending = self.pending.values();
        match (pending.next(), pending.next()) {
            (Some(only), None) => only.stream,
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use async_trait::async_trait;
    use rmcp::model::{ClientJsonRpcMessage, ErrorData, ServerJsonRpcMessage};
    use rmcp::service::RoleClient;
    use rmcp::transport::Transport;
    use serde_json::{Value, json};
    use tokio::sync::mpsc;
    use tokio_util::task::TaskTracker;

    use super::{Ask, Link, LinkParts, StreamNumber, Upcalls};
    use crate::gateway::message::{Message, Notification};
    use crate::gateway::upstream::UpstreamFault;
    use crate::gateway::upstream::envelope;

    /// An upstream that the test plays.
    struct Upstream {
        heard: mpsc::UnboundedReceiver<Value>,
        says: mpsc::UnboundedSender<Value>,
    }

    struct Pipe {
        heard: mpsc::UnboundedSender<Value>,
        says: mpsc::UnboundedReceiver<Value>,
    }

    impl From<Infallible> for UpstreamFault {
        fn from(never: Infallible) -> Self {
            match never {}
        }
    }

    impl Transport<RoleClient> for Pipe {
        type Error = Infallible;

        fn send(
            &mut self,
            message: ClientJsonRpcMessage,
        ) -> impl Future<Output = Result<(), Infallible>> + Send + 'static {
            let heard = serde_json::from_slice(&envelope::body(&message).unwrap()).unwrap();
            let _ = self.heard.send(heard);
            std::future::ready(Ok(()))
        }

        async fn receive(&mut self) -> Option<ServerJsonRpcMessage> {
            let message = Message::parse(self.says.recv().await?.to_string().as_bytes()).unwrap();
            Some(match &message {
                Message::Response(response) if response.id == Some(super::RequestId::Number(super::HELLO)) => {
                    envelope::seal_initialize(message).unwrap()
                }
                _ => envelope::seal(message, None),
            })
        }

        async fn close(&mut self) -> Result<(), Infallible> {
            Ok(())
        }
    }

    /// What the client's side was told and asked, in order.
    #[derive(Default)]
    struct Client(Mutex<Vec<(String, Option<StreamNumber>)>>);

    #[async_trait]
    impl Upcalls for Client {
        async fn asked(
            &self,
            method: String,
            params: Option<Value>,
            stream: Option<StreamNumber>,
        ) -> Result<Value, ErrorData> {
            self.0.lock().unwrap().push((method, stream));
            Ok(json!({ "echo": params }))
        }

        async fn told(&self, notification: Notification, stream: Option<StreamNumber>) {
            self.0.lock().unwrap().push((notification.method, stream));
        }
    }

    async fn linked() -> (Arc<Link>, Upstream, Arc<Client>) {
        let (heard, to_hear) = mpsc::unbounded_channel();
        let (says, to_say) = mpsc::unbounded_channel();
        let opened = json!({"protocolVersion": "2025-11-25", "capabilities": {"x": 1}, "serverInfo": {"name": "s", "version": "1"}});
        says.send(json!({"jsonrpc": "2.0", "id": 0, "result": opened})).unwrap();
        let client = Arc::new(Client::default());
        let hello = json!({"protocolVersion": "2025-11-25", "capabilities": {"roots": {}}, "clientInfo": {"name": "c", "version": "1"}, "more": 1});
        let parts = LinkParts {
            hello: hello.clone(),
            upcalls: Arc::clone(&client) as Arc<dyn Upcalls>,
            patience: Duration::from_secs(5),
            permit: None,
            tasks: TaskTracker::new(),
        };
        let link = Link::open(Pipe { heard, says: to_say }, parts).await.unwrap();
        let mut upstream = Upstream { heard: to_hear, says };
        assert_eq!(upstream.heard.recv().await.unwrap()["params"], hello, "what the client said, all of it");
        assert_eq!(upstream.heard.recv().await.unwrap()["method"], "notifications/initialized");
        assert_eq!(link.opened()["capabilities"]["x"], 1);
        (Arc::new(link), upstream, client)
    }

    fn call(
        link: &Arc<Link>,
        stream: StreamNumber,
        params: Value,
    ) -> tokio::task::JoinHandle<Result<Value, UpstreamFault>> {
        let link = Arc::clone(link);
        tokio::spawn(
            async move { link.ask(Ask { stream: Some(stream), ..Ask::plain("tools/call", Some(params)) }).await },
        )
    }

    #[tokio::test]
    async fn what_comes_before_the_answer_is_told_before_it_and_on_the_requests_stream() {
        let (link, mut upstream, client) = linked().await;
        let one = call(&link, 7, json!({"name": "a", "_meta": {"progressToken": "p7"}}));
        let id = upstream.heard.recv().await.unwrap()["id"].clone();
        let two = call(&link, 8, json!({"name": "b"}));
        let other = upstream.heard.recv().await.unwrap()["id"].clone();
        let progress = json!({"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progressToken": "p7", "progress": 1}});
        upstream.says.send(progress).unwrap();
        upstream.says.send(json!({"jsonrpc": "2.0", "method": "notifications/message"})).unwrap();
        upstream.says.send(json!({"jsonrpc": "2.0", "id": id, "result": {"n": 1}})).unwrap();
        assert_eq!(one.await.unwrap().unwrap(), json!({"n": 1}));
        let told = client.0.lock().unwrap().clone();
        // Of the two requests under way it cannot be told which one a log message is of.
        assert_eq!(told, [("notifications/progress".to_owned(), Some(7)), ("notifications/message".to_owned(), None)]);
        upstream.says.send(json!({"jsonrpc": "2.0", "id": other, "error": {"code": -32602, "message": "no"}})).unwrap();
        assert!(matches!(two.await.unwrap(), Err(UpstreamFault::Refused(_))));
    }

    #[tokio::test]
    async fn whoever_stops_waiting_cancels_the_request() {
        let (link, mut upstream, _) = linked().await;
        let waiting = call(&link, 1, json!({}));
        let id = upstream.heard.recv().await.unwrap()["id"].clone();
        waiting.abort();
        let cancelled = upstream.heard.recv().await.unwrap();
        assert_eq!((&cancelled["method"], &cancelled["params"]["requestId"]), (&json!("notifications/cancelled"), &id));
    }

    #[tokio::test]
    async fn an_upstream_that_goes_away_leaves_nobody_waiting() {
        let (link, mut upstream, _) = linked().await;
        let waiting = call(&link, 1, json!({}));
        upstream.heard.recv().await.unwrap();
        drop(upstream.says);
        assert!(matches!(waiting.await.unwrap(), Err(UpstreamFault::Broken)));
        assert!(link.is_closed());
        assert!(link.died().await);
        assert!(matches!(link.ask(Ask::plain("ping", None)).await, Err(UpstreamFault::Broken)));
    }

    #[tokio::test]
    async fn what_the_upstream_asks_is_answered_under_its_own_id() {
        let (link, mut upstream, client) = linked().await;
        let waiting = call(&link, 3, json!({}));
        let id = upstream.heard.recv().await.unwrap()["id"].clone();
        let question = json!({"jsonrpc": "2.0", "id": "q-1", "method": "sampling/createMessage", "params": {"a": [1], "_meta": {"m": 1}}});
        upstream.says.send(question.clone()).unwrap();
        let answer = upstream.heard.recv().await.unwrap();
        assert_eq!((&answer["id"], &answer["result"]["echo"]), (&json!("q-1"), &question["params"]));
        assert_eq!(*client.0.lock().unwrap(), [("sampling/createMessage".to_owned(), Some(3))]);
        upstream.says.send(json!({"jsonrpc": "2.0", "id": id, "result": {}})).unwrap();
        assert!(waiting.await.unwrap().is_ok());
    }
}
