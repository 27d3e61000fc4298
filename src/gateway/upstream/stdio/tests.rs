//! A connection with children that are shell scripts.

use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use serde_json::json;
use tokio::process::Command;
use tokio_util::task::TaskTracker;

use super::{StdioConnection, StdioParts};
use crate::gateway::budget::Budget;
use crate::gateway::message::{Json, Notification, Request, RpcError};
use crate::gateway::pass::Pass;
use crate::gateway::protocol::Generation;
use crate::gateway::upstream::dispatch::Dispatch;
use crate::gateway::upstream::share::Share;
use crate::gateway::upstream::{Ask, Upcalls, UpstreamError, next_id};

/// The questions and notifications, in order; a question is answered with its parameters.
#[derive(Default)]
struct Client(Mutex<Vec<String>>);

#[async_trait]
impl Upcalls for Client {
    async fn asked(&self, request: Request) -> Result<Json, RpcError> {
        self.0.lock().push(request.method.to_string());
        Ok(request.params.unwrap_or_else(Json::empty_object))
    }

    async fn notified(&self, notification: Notification) {
        self.0.lock().push(notification.method.to_string());
    }
}

fn shell(script: &str, limit: usize) -> (StdioConnection, Arc<Client>) {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]);
    let dispatch = Arc::new(Dispatch::new("p".into(), Generation::Old));
    let client = Arc::new(Client::default());
    dispatch.add_listener(0, Arc::clone(&client) as Arc<dyn Upcalls>);
    let tasks = TaskTracker::new();
    let budget = Share::new(Budget::new(1 << 20), "p");
    let parts = StdioParts {
        plugin: "p".into(),
        max_result_bytes: limit,
        budget,
        dispatch,
        logged: Arc::default(),
        permit: None,
        tasks,
    };
    (StdioConnection::start(command, parts).unwrap(), client)
}

fn ask(client: &Arc<Client>, id: i64, params: &str) -> Ask {
    let params = Json::parse(&params.to_owned().into());
    let upcalls = Arc::clone(client) as Arc<dyn Upcalls>;
    Ask { id, method: "tools/call".into(), params, headers: http::HeaderMap::new(), pass: Pass::own(), upcalls }
}

/// A script that answers the next request with what it read.
fn echo(id: i64) -> String {
    format!(r#"read line; printf '{{"jsonrpc":"2.0","id":{id},"result":%s}}\n' "$line""#)
}

#[tokio::test]
async fn a_message_goes_as_one_line_with_its_bytes_as_they_were() {
    let id = next_id();
    let (connection, client) = shell(&format!("echo hello; {}; read end", echo(id)), 10_000);
    let answer =
        connection.ask(ask(&client, id, "{\n \"wei\": 1000000000000000000001,\r\n \"e\": 1E400 }"), true).await;
    let sent = format!(
        r#"{{"jsonrpc":"2.0","id":{id},"method":"tools/call","params":{{ "wei": 1000000000000000000001, "e": 1E400 }}}}"#
    );
    assert_eq!(answer.unwrap().as_bytes(), sent.as_bytes());
}

#[tokio::test]
async fn what_comes_before_the_answer_is_told_before_it_and_questions_are_answered() {
    let id = next_id();
    let script = format!(
        r#"read line
        echo '{{"jsonrpc":"2.0","method":"notifications/progress","params":{{"progressToken":{id},"progress":1}}}}'
        echo '{{"jsonrpc":"2.0","id":"q","method":"sampling/createMessage","params":{{"a":1.0}}}}'
        {}; read end"#,
        echo(id)
    );
    let (connection, client) = shell(&script, 10_000);
    let answer = connection.ask(ask(&client, id, "{}"), true).await.unwrap();
    assert_eq!(answer.as_bytes(), br#"{"jsonrpc":"2.0","id":"q","result":{"a":1.0}}"#);
    assert_eq!(*client.0.lock(), ["notifications/progress", "sampling/createMessage"]);
}

#[tokio::test]
async fn who_stops_waiting_cancels_the_request() {
    let (id, other) = (next_id(), next_id());
    let script = format!("read line; {}; read end", echo(other));
    let (connection, client) = shell(&script, 10_000);
    // The first request is not answered; what the script reads next is its cancellation.
    let second = connection.dispatch().wait(other, "tools/call", Arc::clone(&client) as Arc<dyn Upcalls>);
    {
        let first = connection.ask(ask(&client, id, "{}"), true);
        tokio::pin!(first);
        assert!(futures::poll!(first.as_mut()).is_pending());
    }
    let read = second.await.unwrap().unwrap().value().unwrap();
    assert_eq!(read["method"], "notifications/cancelled");
    assert_eq!(read["params"], json!({ "requestId": id }));
}

#[tokio::test]
async fn a_child_that_ends_leaves_nobody_waiting() {
    for script in ["exit 3", "exec >/dev/null; sleep 1000", "sleep 1000 & exit"] {
        let (connection, client) = shell(script, 10_000);
        let answer = connection.ask(ask(&client, next_id(), "{}"), true).await;
        assert!(matches!(answer, Err(UpstreamError::Broken)), "{script}");
        assert!(connection.died().await, "{script}");
    }
}

#[tokio::test]
async fn an_answer_that_is_too_long_fails_its_request_and_no_other() {
    let (long, other) = (next_id(), next_id());
    let script = format!(
        r#"read a; read b
        printf '{{"result":{{"text":"'; head -c 20000 /dev/zero | tr '\0' x; echo '"}},"jsonrpc":"2.0","id":{long}}}'
        echo '{{"jsonrpc":"2.0","id":{other},"result":{{}}}}'; read end"#
    );
    let (connection, client) = shell(&script, 1_000);
    let (long, other) =
        tokio::join!(connection.ask(ask(&client, long, "{}"), true), connection.ask(ask(&client, other, "{}"), true));
    assert!(matches!(long, Err(UpstreamError::TooLarge { limit: 1_000 })));
    assert!(other.is_ok());
}
