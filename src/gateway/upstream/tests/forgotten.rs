//! Servers that were restarted and do not know their sessions any more.

use std::collections::HashSet;
use std::sync::Arc;

use axum::response::Response;
use parking_lot::Mutex;
use serde_json::json;

use super::{Client, Got, Server, ask, error, http_plugin, initialize, initialized, result, status};
use crate::gateway::upstream::UpstreamError;

/// A server that knows the sessions it gave since it was restarted, and refuses others with a given answer.
async fn restartable(refuse: fn(&Got) -> Response) -> (Server, Arc<Mutex<HashSet<String>>>) {
    let known = Arc::<Mutex<HashSet<String>>>::default();
    let (sessions, given) = (Arc::clone(&known), Mutex::new(0));
    let server = Server::start(move |got| {
        if got.asks() == "initialize" {
            let session = {
                let mut given = given.lock();
                *given += 1;
                format!("s{given}")
            };
            sessions.lock().insert(session.clone());
            return initialized(got, &session);
        }
        if !sessions.lock().contains(got.header("mcp-session-id").unwrap_or_default()) {
            return refuse(got);
        }
        match got.asks().as_str() {
            "notifications/initialized" | "notifications/cancelled" => status(202),
            _ => result(got, &json!({"ok": true})),
        }
    })
    .await;
    (server, known)
}

#[tokio::test]
async fn a_session_that_a_server_forgot_is_opened_anew_however_the_server_says_so() {
    let refusals: [fn(&Got) -> Response; 7] = [
        |_| status(404),
        |_| status(400),
        |_| status(410),
        |got| error(got, 400, -32000, "Bad Request: No valid session ID provided"),
        |got| error(got, 404, -32001, "Session not found"),
        |got| error(got, 200, -32600, "Session terminated"),
        |got| error(got, 500, -32603, "unknown session"),
    ];
    for (number, refuse) in refusals.into_iter().enumerate() {
        let (server, known) = restartable(refuse).await;
        let (plugin, client) = (http_plugin(&server), Arc::new(Client::default()));
        let session = plugin.connect("user:ann", initialize(), client.clone()).await.unwrap();
        session.ask(ask("logging/setLevel", r#"{"level":"info"}"#, &client)).await.unwrap();
        session.ask(ask("resources/subscribe", r#"{"uri":"x:/a"}"#, &client)).await.unwrap();
        known.lock().clear();
        let answer = session.ask(ask("tools/call", "{}", &client)).await;
        assert!(answer.is_ok(), "refusal {number}: {answer:?}");
        assert_eq!(server.asked("initialize").len(), 2, "refusal {number}");
        // What the client said to the old session is said to the new one.
        for said in ["logging/setLevel", "resources/subscribe"] {
            assert_eq!(server.asked(said).last().unwrap().header("mcp-session-id"), Some("s2"), "refusal {number}");
        }
        assert!(!session.is_closed());
    }
}

#[tokio::test]
async fn many_calls_at_once_open_one_new_session() {
    let (server, known) = restartable(|_| status(400)).await;
    let (plugin, client) = (http_plugin(&server), Arc::new(Client::default()));
    let session = plugin.connect("user:ann", initialize(), client.clone()).await.unwrap();
    known.lock().clear();
    let calls = (0..10).map(|_| session.ask(ask("tools/call", "{}", &client)));
    let answers = futures::future::join_all(calls).await;
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    assert_eq!(server.asked("initialize").len(), 2);
}

#[tokio::test]
async fn a_call_that_may_have_had_effects_is_not_sent_again() {
    let (server, known) = restartable(|_| status(500)).await;
    let (plugin, client) = (http_plugin(&server), Arc::new(Client::default()));
    let session = plugin.connect("user:ann", initialize(), client.clone()).await.unwrap();
    known.lock().clear();
    let answer = session.ask(ask("tools/call", "{}", &client)).await;
    assert!(matches!(answer, Err(UpstreamError::Status(500))), "{answer:?}");
    assert_eq!(server.asked("tools/call").len(), 1);
    assert!(session.ask(ask("tools/call", "{}", &client)).await.is_ok(), "but the next one finds a new session");
}

#[tokio::test]
async fn a_refusal_of_the_request_itself_opens_nothing() {
    let server = Server::start(|got| match got.asks().as_str() {
        "initialize" => initialized(got, "s1"),
        "ping" => result(got, &json!({})),
        "tools/call" => status(400),
        _ => status(202),
    })
    .await;
    let (plugin, client) = (http_plugin(&server), Arc::new(Client::default()));
    let session = plugin.connect("user:ann", initialize(), client.clone()).await.unwrap();
    let answer = session.ask(ask("tools/call", "{}", &client)).await;
    assert!(matches!(answer, Err(UpstreamError::Status(400))));
    assert_eq!((server.asked("initialize").len(), server.asked("tools/call").len()), (1, 1));
}
