//! Sessions with old servers for modern clients.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{Client, INITIALIZE, ask, plugin, shell};
use crate::gateway::message::Json;
use crate::gateway::upstream::{Plugin, PoolKey};

fn child(more: &str, max_sessions: u64) -> Arc<Plugin> {
    let mut settings = shell(&format!("{INITIALIZE} {more}"));
    settings["max_sessions"] = json!(max_sessions);
    plugin(settings)
}

fn key(caller: &str, capabilities: &Value) -> PoolKey {
    PoolKey {
        caller: Some(caller.into()),
        version: "2025-11-25".into(),
        capabilities: Json::of(capabilities),
        client_info: Json::of(&json!({ "name": "c", "version": "1" })),
    }
}

#[tokio::test]
async fn an_unused_session_makes_room_for_another_callers() {
    let plugin = child("", 1);
    for (caller, capabilities) in [("ann", json!({})), ("bob", json!({})), ("eve", json!({ "roots": {} }))] {
        let lease = plugin.lease(key(caller, &capabilities), Arc::new(Client::default())).await;
        drop(lease.unwrap_or_else(|error| panic!("{caller}: {error:?}")));
    }
}

#[tokio::test]
async fn calls_use_the_session_that_a_listen_holds() {
    let plugin = child("resources/subscribe) result '{}' ;; ", 8);
    let (asks, client) = (json!({ "elicitation": {} }), Arc::new(Client::default()));
    let lease = async || plugin.lease(key("ann", &asks), Arc::new(Client::default())).await.unwrap();
    let mut listen = lease().await;
    listen.ask(ask("resources/subscribe", r#"{"uri":"x://y"}"#, &client)).await.unwrap();
    let other = lease().await;
    assert!(!Arc::ptr_eq(&listen.session(), &other.session()), "until it is shared it is the listen's alone");
    listen.share();
    drop(other);
    let call = lease().await;
    assert!(Arc::ptr_eq(&listen.session(), &call.session()));
    let at_once = lease().await;
    assert!(!Arc::ptr_eq(&call.session(), &at_once.session()), "one call at a time");
}

#[tokio::test]
async fn a_subscription_lasts_until_the_last_listen_ends_and_is_made_anew_after_that() {
    let subscribed = "resources/subscribe) result '{}' ;; resources/unsubscribe) result '{}' ;; ";
    let plugin = child(subscribed, 8);
    let lease = async || plugin.lease(key("ann", &json!({})), Arc::new(Client::default())).await.unwrap();
    let subscribe = async |lease: &crate::gateway::upstream::Lease| {
        lease.ask(ask("resources/subscribe", r#"{"uri":"x://y"}"#, &Arc::new(Client::default()))).await.unwrap();
    };
    let (one, other) = (lease().await, lease().await);
    subscribe(&one).await;
    subscribe(&other).await;
    one.unsubscribe(vec!["x://y".to_owned()]).await;
    assert!(one.session().subscribers().has("x://y"), "the other listens still");
    other.unsubscribe(vec!["x://y".to_owned()]).await;
    assert!(!one.session().subscribers().has("x://y"), "who comes next subscribes anew");
}
