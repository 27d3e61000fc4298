//! What the tests of a ledger's life share: entries in, entries out, heads, and a verifier that is not ours to look at
//! all of it.

use std::path::PathBuf;
use std::time::Duration;

use reqwest::Method;
use reqwest::header::CONTENT_TYPE;
use serde_json::{Value, json};

use crate::harness::{Answer, Client, Server, eventually, python};

/// How long anything may take that happens about once a second, on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(90);

/// Sends events of one kind and has them acknowledged.
pub(crate) async fn emit(client: &Client, count: usize) {
    let event = json!({ "actor": "user:alice@acme", "action": "tool.permit", "target": "github/list_repos" });
    let body = vec![event.to_string(); count].join("\n").into_bytes();
    let headers = [(CONTENT_TYPE, "application/x-ndjson")];
    client.send(Method::POST, "audit", &headers, body).await.unwrap().ok();
}

/// Sends JSON to a path of the ledger.
pub(crate) async fn post(client: &Client, path: &str, body: &Value) -> Answer {
    let headers = [(CONTENT_TYPE, "application/json")];
    client.send(Method::POST, path, &headers, body.to_string().into_bytes()).await.unwrap()
}

/// All entries that a filter lets through, oldest first.
pub(crate) async fn entries(client: &Client, filter: &str) -> Vec<Value> {
    let (mut all, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = client.get(&format!("audit?order=asc&limit=1000&{filter}&cursor={cursor}")).await.ok().json();
        all.extend(page["entries"].as_array().unwrap().clone());
        match page["next_cursor"].as_str() {
            Some(next) => next.clone_into(&mut cursor),
            None => return all,
        }
    }
}

/// The values of a member of entries.
pub(crate) fn column<'a>(entries: &'a [Value], member: &str) -> Vec<&'a str> {
    entries.iter().map(|entry| entry[member].as_str().unwrap_or_default()).collect()
}

/// How many entries there have ever been.
pub(crate) async fn size(client: &Client) -> u64 {
    client.get("audit/retention").await.ok().json()["size"].as_u64().unwrap()
}

/// Waits until a signed head covers all entries that there are; gives the head.
pub(crate) async fn sealed(client: &Client) -> String {
    eventually("a head over all entries", SOON, async || {
        let head = client.get("audit/checkpoint").await;
        let signed = head.text().lines().nth(1)?.parse::<u64>().ok()?;
        (signed == size(client).await).then(|| head.text())
    })
    .await
}

/// The folder of an org's ledger.
pub(crate) fn folder(server: &Server, org: &str) -> PathBuf {
    server.storage().join("orgs").join(org).join("audit")
}

/// The verifier key that the server hands out.
pub(crate) async fn vkey(client: &Client) -> String {
    client.get("audit/vkey").await.ok().text().trim().to_owned()
}

/// What a verifier in another language says of a ledger that is sound; fails if it is not.
pub(crate) async fn verify(server: &Server, org: &str, keys: &[&str]) -> Value {
    let folder = folder(server, org);
    let args = [&[folder.to_str().unwrap(), org], keys].concat();
    python("ledger_verify.py", &args).await
}

/// The names of the segments on the store.
pub(crate) fn segments(server: &Server, org: &str) -> Vec<String> {
    let files = std::fs::read_dir(folder(server, org).join("segments")).unwrap();
    let mut names: Vec<_> = files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
