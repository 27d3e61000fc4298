//! A link to an upstream that the test plays.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use rmcp::model::{ClientJsonRpcMessage, ErrorData, RequestId, ServerJsonRpcMessage};
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

    fn send(&mut self, message: ClientJsonRpcMessage) -> impl Future<Output = Result<(), Infallible>> + Send + 'static {
        let heard = serde_json::from_slice(&envelope::body(&message).unwrap()).unwrap();
        let _ = self.heard.send(heard);
        std::future::ready(Ok(()))
    }

    async fn receive(&mut self) -> Option<ServerJsonRpcMessage> {
        let message = Message::parse(self.says.recv().await?.to_string().as_bytes()).unwrap();
        Some(match &message {
            Message::Response(response) if response.id == Some(RequestId::Number(super::handshake::ID)) => {
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
    let opened =
        json!({"protocolVersion": "2025-11-25", "capabilities": {"x": 1}, "serverInfo": {"name": "s", "version": "1"}});
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
    tokio::spawn(async move { link.ask(Ask { stream: Some(stream), ..Ask::plain("tools/call", Some(params)) }).await })
}

#[tokio::test]
async fn what_comes_before_the_answer_is_told_before_it_and_on_the_requests_stream() {
    let (link, mut upstream, client) = linked().await;
    let one = call(&link, 7, json!({"name": "a", "_meta": {"progressToken": "p7"}}));
    let id = upstream.heard.recv().await.unwrap()["id"].clone();
    let two = call(&link, 8, json!({"name": "b"}));
    let other = upstream.heard.recv().await.unwrap()["id"].clone();
    let progress =
        json!({"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progressToken": "p7", "progress": 1}});
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
