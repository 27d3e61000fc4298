//! Sessions with old servers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::FutureExt;
use serde_json::json;

use super::{
    Client, INITIALIZE, Late, Server, ask, endless, events, eventually, http_plugin, initialize, initialized, plugin,
    result, shell, status,
};
use crate::gateway::message::Json;
use crate::gateway::upstream::{PoolKey, UpstreamError};

#[tokio::test]
async fn every_message_but_initialize_carries_version_session_and_agent_and_its_bytes_as_they_were() {
    let server = Server::start(|got| match (got.method.as_str(), got.asks().as_str()) {
        ("DELETE", _) | (_, "notifications/initialized") => status(202),
        (_, "initialize") => initialized(got, "s1"),
        _ => result(got, &json!({"n": 1})),
    })
    .await;
    let (plugin, client) = (http_plugin(&server), Arc::new(Client::default()));
    let session = plugin.connect("user:ann", initialize(), client.clone()).await.unwrap();
    let params = r#"{"wei": 1000000000000000000001, "e":1E400, "u": "\u00e9"}"#;
    let mut call = ask("tools/call", params, &client);
    call.headers.insert("traceparent", "00-1".parse().unwrap());
    assert!(session.ask(call).await.is_ok());
    assert_eq!(session.opened().get("protocolVersion").unwrap().as_text().unwrap(), "2025-11-25");
    drop(session);
    eventually("the session to be ended", || server.got().iter().any(|got| got.method == "DELETE").then_some(())).await;
    let got = server.got();
    assert_eq!(got[0].asks(), "initialize");
    assert_eq!(got[0].header("mcp-protocol-version"), None, "an older server may not know it");
    for got in &got[1..] {
        assert_eq!(got.header("mcp-protocol-version"), Some("2025-11-25"), "{}", got.asks());
        assert_eq!(got.header("mcp-session-id"), Some("s1"), "{}", got.asks());
    }
    assert!(got.iter().all(|got| got.header("user-agent").unwrap().starts_with("mcpg/")));
    let call = got.iter().find(|got| got.asks() == "tools/call").unwrap();
    assert!(call.text.contains(&format!(r#""params":{params}"#)), "{}", call.text);
    assert_eq!(call.header("traceparent"), Some("00-1"));
}

#[tokio::test]
async fn what_comes_on_a_calls_stream_belongs_to_the_call_and_is_told_before_its_answer() {
    let server = Server::start(|got| match got.asks().as_str() {
        "initialize" => initialized(got, "s1"),
        "tools/call" => {
            let id = &got.message()["id"];
            events(format!(
                "data: {}\n\ndata: {}\n\ndata: {}\n\ndata: {}\n\n",
                json!({"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progressToken": id, "progress": 1}}),
                json!({"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info"}}),
                json!({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"}),
                json!({"jsonrpc": "2.0", "id": id, "result": {}}),
            ))
        }
        _ => status(202),
    })
    .await;
    let (plugin, of_session, of_call) =
        (http_plugin(&server), Arc::new(Client::default()), Arc::new(Client::default()));
    let session = plugin.connect("user:ann", initialize(), of_session.clone()).await.unwrap();
    session.ask(ask("tools/call", "{}", &of_call)).await.unwrap();
    assert_eq!(*of_call.heard.lock(), ["notifications/progress", "notifications/message"]);
    assert_eq!(*of_session.heard.lock(), ["notifications/tools/list_changed"]);
    assert!(session.lists_changed());
}

#[tokio::test]
async fn a_question_on_a_calls_stream_is_answered_by_the_call() {
    let server = Server::start(|got| match got.asks().as_str() {
        "initialize" => initialized(got, "s1"),
        "tools/call" => {
            let question = json!({"jsonrpc": "2.0", "id": "q", "method": "elicitation/create", "params": {}});
            // The stream stays open, as one does whose answer waits for the client.
            let first = futures::stream::iter([Ok::<_, std::io::Error>(format!("data: {question}\n\n"))]);
            let body = axum::body::Body::from_stream(futures::StreamExt::chain(first, futures::stream::pending()));
            super::answer(http::StatusCode::OK, "text/event-stream", body)
        }
        _ => status(202),
    })
    .await;
    let (plugin, client) = (http_plugin(&server), Arc::new(Client::default()));
    client.answers.lock().push_back(json!({"action": "accept", "content": {}}));
    let session = plugin.connect("user:ann", initialize(), client.clone()).await.unwrap();
    let call = tokio::spawn({
        let client = client.clone();
        async move { session.ask(ask("tools/call", "{}", &client)).await }
    });
    let answer = eventually("the answer", || server.got().into_iter().find(|got| got.message()["id"] == "q")).await;
    assert_eq!(answer.message()["result"]["action"], "accept");
    call.abort();
    eventually("the cancellation", || server.asked("notifications/cancelled").pop()).await;
}

#[tokio::test]
async fn a_stream_that_ends_before_the_answer_is_resumed_where_it_broke_off() {
    let server = Server::start(|got| match (got.method.as_str(), got.asks().as_str()) {
        (_, "initialize") => initialized(got, "s1"),
        (_, "tools/call") => events(format!("id: {}\nretry: 60\ndata:\n\n", got.message()["id"])),
        ("GET", _) => {
            let id: i64 = got.header("last-event-id").unwrap().parse().unwrap();
            events(format!("data: {}\n\n", json!({"jsonrpc": "2.0", "id": id, "result": {"resumed": true}})))
        }
        _ => status(202),
    })
    .await;
    let (plugin, client) = (http_plugin(&server), Arc::new(Client::default()));
    let session = plugin.connect("user:ann", initialize(), client.clone()).await.unwrap();
    let answer = session.ask(ask("tools/call", "{}", &client)).await.unwrap();
    assert_eq!(answer.as_bytes(), br#"{"resumed":true}"#);
    assert_eq!(server.asked("tools/call").len(), 1);
}

#[tokio::test]
async fn a_call_whose_stream_is_lost_is_not_sent_again() {
    let server = Server::start(|got| match got.asks().as_str() {
        "initialize" => initialized(got, "s1"),
        "tools/call" => events(": no event\n\n".to_owned()),
        _ => status(202),
    })
    .await;
    let (plugin, client) = (http_plugin(&server), Arc::new(Client::default()));
    let session = plugin.connect("user:ann", initialize(), client.clone()).await.unwrap();
    let lost = session.ask(ask("tools/call", "{}", &client)).await;
    assert!(matches!(lost, Err(UpstreamError::Broken)));
    assert_eq!(server.asked("tools/call").len(), 1);
}

#[tokio::test]
async fn an_answer_to_another_request_and_garbage_are_errors_of_the_call() {
    for body in [r#"{"jsonrpc":"2.0","id":999999,"result":{}}"#, "<html>", "", "[]", "{\"jsonrpc\":\"2.0\"}"] {
        let server = Server::start(move |got| match got.asks().as_str() {
            "initialize" => initialized(got, "s1"),
            "tools/call" => super::answer(http::StatusCode::OK, "application/json", body),
            _ => status(202),
        })
        .await;
        let (plugin, client) = (http_plugin(&server), Arc::new(Client::default()));
        let session = plugin.connect("user:ann", initialize(), client.clone()).await.unwrap();
        if body.is_empty() {
            // Nothing was said: the answer may come on the other stream, which this server does not have.
            continue;
        }
        let answer = session.ask(ask("tools/call", "{}", &client)).await;
        assert!(matches!(answer, Err(UpstreamError::NotMcp)), "{body}");
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed_and_is_called_one() {
    let elsewhere = Server::start(|got| result(got, &json!({}))).await;
    let to = elsewhere.url.clone();
    let server = Server::start(move |_| {
        http::Response::builder().status(307).header("location", &to).body(axum::body::Body::empty()).unwrap()
    })
    .await;
    let (plugin, client) = (http_plugin(&server), Arc::new(Client::default()));
    let refused = plugin.connect("user:ann", initialize(), client).await.err().unwrap();
    assert_eq!(refused.code(), "UPSTREAM_REDIRECT");
    assert!(elsewhere.got().is_empty(), "the plugin's headers are for nobody else");
}

#[tokio::test]
async fn the_stream_for_everything_else_is_open_while_it_is_wanted_and_a_refusal_is_remembered() {
    let gets = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&gets);
    let server = Server::start(move |got| match (got.method.as_str(), got.asks().as_str()) {
        (_, "initialize") => initialized(got, "s1"),
        ("GET", _) => {
            counted.fetch_add(1, Ordering::SeqCst);
            status(405)
        }
        _ => status(202),
    })
    .await;
    let (plugin, client) = (http_plugin(&server), Arc::new(Client::default()));
    let session = plugin.connect("user:ann", initialize(), client.clone()).await.unwrap();
    assert_eq!(gets.load(Ordering::SeqCst), 0, "nobody wants it");
    let guard = session.want_stream();
    eventually("the stream to be asked for", || (gets.load(Ordering::SeqCst) == 1).then_some(())).await;
    drop(guard);
    // Once it is known that there is no stream, wanting it sends no request.
    eventually("the refusal to be known", || {
        drop(session.want_stream());
        (gets.load(Ordering::SeqCst) <= 2).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_request_waits_until_the_stream_for_everything_else_is_open() {
    let open = Arc::new(AtomicUsize::new(0));
    let opened = Arc::clone(&open);
    let server = Server::start_late(move |got| match (got.method.as_str(), got.asks().as_str()) {
        (_, "initialize") => Late::at_once(initialized(got, "s1")),
        ("GET", _) => {
            let opened = Arc::clone(&opened);
            Late::after(Duration::from_millis(50), move || {
                opened.store(1, Ordering::SeqCst);
                endless()
            })
        }
        _ => Late::at_once(status(202)),
    })
    .await;
    let (plugin, client) = (http_plugin(&server), Arc::new(Client::default()));
    let session = plugin.connect("user:ann", initialize(), client.clone()).await.unwrap();
    let guard = session.want_stream();
    session.stream_opened().await;
    assert_eq!(open.load(Ordering::SeqCst), 1, "what was said before would be lost");
    drop(guard);
    // One that never opens is waited for once, and not for ever.
    let hung = Server::start_late(|got| match (got.method.as_str(), got.asks().as_str()) {
        (_, "initialize") => Late::at_once(initialized(got, "s1")),
        ("GET", _) => Late::after(Duration::from_secs(3_600), endless),
        _ => Late::at_once(status(202)),
    })
    .await;
    let plugin = http_plugin(&hung);
    let session = plugin.connect("user:ann", initialize(), client).await.unwrap();
    let _guard = session.want_stream();
    session.stream_opened().await;
    assert!(session.stream_opened().now_or_never().is_some(), "not again");
}

#[tokio::test]
async fn a_pool_keeps_sessions_of_one_caller_apart_from_anothers_and_of_nobody_not_at_all() {
    let server = Server::start(|got| match got.asks().as_str() {
        "initialize" => initialized(got, "s"),
        "resources/subscribe" | "resources/unsubscribe" => result(got, &json!({})),
        _ => status(202),
    })
    .await;
    let (plugin, client) = (http_plugin(&server), Arc::new(Client::default()));
    let key = |caller: Option<&str>, capabilities| PoolKey {
        caller: caller.map(Into::into),
        version: "2025-11-25".into(),
        capabilities: Json::of(&capabilities),
        client_info: Json::of(&json!({"name": "c", "version": "1"})),
    };
    let opened = || server.asked("initialize").len();
    let (one, two) = (
        plugin.lease(key(Some("a"), json!({})), client.clone()),
        plugin.lease(key(Some("a"), json!({})), client.clone()),
    );
    let (one, two) = tokio::join!(one, two);
    assert_eq!(opened(), 1, "one caller's requests share a session");
    let other = plugin.lease(key(Some("b"), json!({})), client.clone()).await.unwrap();
    assert_eq!(opened(), 2);
    let exclusive = plugin.lease(key(Some("a"), json!({"roots": {}})), client.clone()).await.unwrap();
    let beside = plugin.lease(key(Some("a"), json!({"roots": {}})), client.clone()).await.unwrap();
    assert_eq!(opened(), 4, "who can be asked has a session for itself");
    drop(exclusive);
    let again = plugin.lease(key(Some("a"), json!({"roots": {}})), client.clone()).await.unwrap();
    assert_eq!(opened(), 4, "and leaves it to its next call");
    for _ in 0..2 {
        drop(plugin.lease(key(None, json!({})), client.clone()).await.unwrap());
    }
    assert_eq!(opened(), 6, "who has no name shares nothing");
    let (one, two) = (one.unwrap(), two.unwrap());
    for lease in [&one, &two] {
        lease.ask(ask("resources/subscribe", r#"{"uri":"x:/a"}"#, &client)).await.unwrap();
    }
    one.unsubscribe(vec!["x:/a".to_owned()]).await;
    let asked = |method| server.asked(method).len();
    assert_eq!((asked("resources/subscribe"), asked("resources/unsubscribe")), (1, 0), "the other goes on");
    two.unsubscribe(vec!["x:/a".to_owned()]).await;
    assert_eq!(asked("resources/unsubscribe"), 1);
    drop((one, two, other, beside, again));
}

#[tokio::test]
async fn a_child_has_its_session_and_goes_with_it() {
    let script = shell(&format!("{INITIALIZE} tools/call) result '{{\"ok\":true}}' ;;"));
    let (plugin, client) = (plugin(script), Arc::new(Client::default()));
    let session = plugin.connect("user:ann", initialize(), client.clone()).await.unwrap();
    let answer = session.ask(ask("tools/call", "{\n}", &client)).await.unwrap();
    assert_eq!(answer.as_bytes(), br#"{"ok":true}"#);
    let refused = session.ask(ask("tools/none", "{}", &client)).await;
    assert!(matches!(refused, Err(UpstreamError::Refused(error)) if error.code == -32601));
}

#[tokio::test]
async fn more_sessions_than_a_plugin_may_have_are_refused() {
    let mut settings = shell(INITIALIZE);
    settings["max_sessions"] = json!(1);
    let (plugin, client) = (plugin(settings), Arc::new(Client::default()));
    let session = plugin.connect("user:ann", initialize(), client.clone()).await.unwrap();
    let full = plugin.connect("user:ann", initialize(), client.clone()).await.err().unwrap();
    assert_eq!(full.code(), "SESSION_LIMIT");
    drop(session);
}
