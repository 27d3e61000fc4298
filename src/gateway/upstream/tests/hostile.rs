//! Servers that ask and notify more than they may.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{Client, plugin, shell};
use crate::gateway::message::Message;
use crate::gateway::protocol::Generation;
use crate::gateway::upstream::dispatch::{Dispatch, Outbox};
use crate::gateway::upstream::{Upcalls, UpstreamError};

/// A server that takes no answers.
struct Deaf;

#[async_trait]
impl Outbox for Deaf {
    async fn send(&self, _: Bytes) {
        std::future::pending().await
    }
}

fn deaf() -> Arc<dyn Outbox> {
    Arc::new(Deaf)
}

fn message(value: &Value) -> Message {
    Message::parse(&Bytes::from(value.to_string())).unwrap()
}

fn ping(id: u64) -> Message {
    message(&json!({ "jsonrpc": "2.0", "id": id, "method": "ping" }))
}

/// Whether a message is taken at once.
async fn is_taken(dispatch: &Arc<Dispatch>, sent: Message) -> bool {
    timeout(Duration::from_millis(100), dispatch.receive(sent, None, &deaf())).await.is_ok()
}

#[tokio::test]
async fn a_server_that_asks_without_end_is_read_no_further() {
    let dispatch = Arc::new(Dispatch::new("p".into(), Generation::Old));
    for id in 0..64 {
        assert!(is_taken(&dispatch, ping(id)).await, "{id}");
    }
    assert!(!is_taken(&dispatch, ping(64)).await, "it has to take an answer first");
}

#[tokio::test]
async fn two_questions_of_one_id_are_one() {
    let dispatch = Arc::new(Dispatch::new("p".into(), Generation::Old));
    assert!(is_taken(&dispatch, ping(1)).await);
    assert!(!is_taken(&dispatch, ping(1)).await, "else it would be counted once, however often it is asked");
}

#[tokio::test]
async fn a_modern_server_ends_a_subscription_by_cancelling_it_and_no_call() {
    let dispatch = Arc::new(Dispatch::new("p".into(), Generation::Modern));
    let client: Arc<dyn Upcalls> = Arc::new(Client::default());
    let mut call = dispatch.wait(5, "tools/call", Arc::clone(&client));
    let listen = dispatch.wait(6, "subscriptions/listen", client);
    for id in [5, 6] {
        let cancelled = json!({ "jsonrpc": "2.0", "method": "notifications/cancelled", "params": { "requestId": id } });
        dispatch.receive(message(&cancelled), None, &deaf()).await;
    }
    assert!(listen.await.unwrap().is_ok());
    assert!(call.try_recv().is_err(), "it is not answered with a result that no server gave");
}

#[tokio::test]
async fn the_state_of_a_task_is_the_sessions_to_pass_on() {
    let dispatch = Arc::new(Dispatch::new("p".into(), Generation::Old));
    let (call, session) = (Arc::new(Client::default()), Arc::new(Client::default()));
    dispatch.add_listener(1, Arc::clone(&session) as Arc<dyn Upcalls>);
    let _waiting = dispatch.wait(5, "tools/call", Arc::clone(&call) as Arc<dyn Upcalls>);
    let status = json!({ "jsonrpc": "2.0", "method": "notifications/tasks/status",
        "params": { "taskId": "anothers", "status": "working", "statusMessage": "secret" } });
    dispatch.receive(message(&status), Some(5), &deaf()).await;
    assert_eq!((call.heard.lock().len(), session.heard.lock().len()), (0, 1), "the session knows whose task it is");
}

#[tokio::test]
async fn an_old_client_waits_no_longer_than_it_may_for_a_modern_child_that_does_not_initialize() {
    let modern = r#"server/discover) result '{"resultType":"complete","supportedVersions":["2026-07-28"],"capabilities":{}}' ;;
                initialize) sleep 600 ;;"#;
    let plugin = plugin(shell(modern));
    let _monitor = super::monitored(&plugin);
    plugin.generation(Generation::Modern, Duration::from_secs(60)).await.unwrap();
    for _ in 0..2 {
        let waited = timeout(Duration::from_secs(60), plugin.generation(Generation::Old, Duration::from_millis(200)));
        assert!(matches!(waited.await.unwrap(), Err(UpstreamError::TimedOut { .. })));
    }
}
