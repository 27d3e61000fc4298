//! Sessions over several nodes, which remember none, and a key that changes under them.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use reqwest::Method;

use super::browser::Browser;
use super::{OPERATOR, ORGS, READER, tokens_without};
use crate::harness::{Cluster, Server, free_port};

fn key(folder: &Path, name: &str, digits: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, digits.repeat(32)).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path.display().to_string()
}

/// The configuration of every node, without the key.
fn settings(public: &str) -> String {
    format!("{ORGS}\n{}\npublic_url: {public}", tokens_without(&[]))
}

async fn node(cluster: &Cluster, session: &str) -> Server {
    cluster.node().with(session).token(OPERATOR).start().await
}

#[tokio::test]
async fn a_session_of_one_node_is_one_of_the_other_until_it_ends_on_either() {
    let public = format!("http://127.0.0.1:{}", free_port());
    let cluster = Cluster::new(&settings(&public));
    // By the ledger's key, which nodes share anyway.
    let (a, b) = (node(&cluster, "").await, node(&cluster, "").await);
    let (at_a, thief) = {
        let browser = Browser::new().balanced_to(&a.url());
        browser.paste(&public, READER).await.ok();
        let thief = browser.stolen().balanced_to(&b.url());
        (browser, thief)
    };
    at_a.balanced_to(&b.url()).me(&public).await.ok();
    thief.me(&public).await.ok();
    at_a.fetch(Method::DELETE, &format!("{public}/v1/session"), None).await;
    assert_eq!(thief.me(&public).await.problem(), "session_ended", "the other node has applied the log");
    // What ended is remembered by nodes that start later, too.
    let c = node(&cluster, "").await;
    assert_eq!(thief.balanced_to(&c.url()).me(&public).await.problem(), "session_ended");

    let other = Browser::new().balanced_to(&a.url());
    other.paste(&public, READER).await.ok();
    b.client().with_org("acme").send(Method::POST, "sessions/revoke", &[], b"{}".to_vec()).await.unwrap().ok();
    assert_eq!(other.me(&public).await.problem(), "session_ended");
    other.paste(&public, READER).await.ok();
    other.balanced_to(&b.url()).me(&public).await.ok();
}

#[tokio::test]
async fn a_key_of_sessions_changes_node_by_node_and_nobody_is_logged_out() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (key(folder.path(), "old.key", "ab"), key(folder.path(), "new.key", "cd"));
    let public = format!("http://127.0.0.1:{}", free_port());
    let cluster = Cluster::new(&settings(&public));
    let with = |current: &str, previous: Option<&str>| {
        let previous = previous.map(|path| format!(", previous_key_file: {path}")).unwrap_or_default();
        format!("session: {{ key_file: {current}{previous} }}")
    };
    let browser = Browser::new();
    let at = |server: &Server| browser.balanced_to(&server.url());
    let a = node(&cluster, &with(&old, None)).await;
    at(&a).paste(&public, READER).await.ok();
    drop(a);
    // First every node takes the new key beside its own, then each seals by it, then the old one goes.
    let (a, b) = (node(&cluster, &with(&old, Some(&new))).await, node(&cluster, &with(&new, Some(&old))).await);
    at(&a).me(&public).await.ok();
    at(&b).me(&public).await.ok();
    let fresh = Browser::new();
    fresh.balanced_to(&b.url()).paste(&public, READER).await.ok();
    fresh.balanced_to(&a.url()).me(&public).await.ok();
    drop(a);
    let c = node(&cluster, &with(&new, None)).await;
    fresh.balanced_to(&c.url()).me(&public).await.ok();
    assert_eq!(at(&c).me(&public).await.problem(), "token_missing", "what the old key sealed opens nowhere any more");
}
