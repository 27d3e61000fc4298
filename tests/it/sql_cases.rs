//! The SQL cases against the real program, over HTTP: good queries answer, and no statement gives one org a byte of
//! another, of the server's files or of its settings, takes the server down, or takes it past its memory.

use std::time::Duration;

use serde_json::{Value, json};

use crate::cases::Case;
use crate::harness::{Config, Server, cases};

const ACME: &str = include_str!("cases/data/acme.ndjson");
const GLOBEX: &str = include_str!("cases/data/globex.ndjson");

/// Two orgs and their samples; small limits, so that what must run into one does so soon. Part of the samples is
/// flushed meanwhile.
async fn server() -> Server {
    let server = Config::new()
        // The samples are of a day long past, and are not to go while a slow run asks for them.
        .with(
            "orgs: [{ name: acme, retention: { samples: 36500d } }, { name: globex, retention: { samples: 36500d } }]",
        )
        .with("flush: { interval: 300ms }")
        .with("limits: { sql: { timeout: 10s, rows: 10000, memory_bytes: 64MiB, spill_bytes: 64MiB } }")
        .start()
        .await;
    server.client().with_org("globex").post(GLOBEX.into(), Some("globex")).await;
    let (stored, live) = ACME.split_at(ACME.match_indices('\n').nth(6).unwrap().0 + 1);
    server.client().with_org("acme").post(stored.into(), Some("stored")).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    server.client().with_org("acme").post(live.into(), Some("live")).await;
    server
}

async fn run(server: &Server, folder: &str) {
    let client = server.client().with_org("acme");
    let mut faults = Vec::new();
    for (file, document) in cases(folder) {
        let case = Case::of(&file, &document);
        let outcome = client.sql_outcome(&case.sql, Value::Array(case.params.clone())).await;
        let checked = case.check(outcome.as_ref().map_err(|(code, text)| (code.as_str(), text.as_str())));
        faults.extend(checked.err());
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[tokio::test]
async fn good_queries_answer_as_the_cases_say() {
    run(&server().await, "sql").await;
}

#[tokio::test]
async fn hostile_queries_end_as_the_cases_say_and_the_server_is_alive_within_its_memory() {
    let server = server().await;
    run(&server, "isolation").await;
    let client = server.client().with_org("acme");
    assert_eq!(client.sql("SELECT count(*) FROM tool_invocations").await, [[json!(12)]]);
    assert!(server.resident_bytes() < 2 << 30, "{}", server.resident_bytes());
}
