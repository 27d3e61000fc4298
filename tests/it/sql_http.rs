//! SQL over HTTP as clients, proxies and neighbours meet it: what now() says, how errors are reported, how answers end,
//! which query waits for which.

use std::process::Command;
use std::time::Duration;

use mcpg::model::Outcome;
use reqwest::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE, HeaderName};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{
    Answer, Client, Config, Program, Sample, Server, eventually, free_port, mcpg, ndjson, run_with_input, tool,
};

/// More than is made of an answer before it begins.
const LARGE: &str = "SELECT value, repeat('x', 100) AS x FROM generate_series(1, 400000)";

async fn ask(client: &Client, path: &str, query: &str, headers: &[(HeaderName, &str)]) -> Answer {
    let body = json!({ "query": query }).to_string().into_bytes();
    let headers = [&[(CONTENT_TYPE, "application/json")], headers].concat();
    client.send(Method::POST, path, &headers, body).await.unwrap()
}

/// A request written by hand, and all that comes back until the connection ends.
async fn raw(server: &Server, request: &str) -> String {
    let mut stream = TcpStream::connect(server.authority()).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // A connection that is broken off ends with an error, after what came before.
    let read = tokio::time::timeout(Duration::from_secs(180), stream.read_to_end(&mut answer)).await.unwrap();
    drop(read);
    String::from_utf8_lossy(&answer).into_owned()
}

fn request(server: &Server, version: &str, query: &str, headers: &str) -> String {
    let body = json!({ "query": query }).to_string();
    format!(
        "POST /v1/orgs/default/sql {version}\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n{headers}\r\n{body}",
        server.authority(),
        body.len()
    )
}

#[tokio::test]
async fn now_is_the_time_at_which_a_query_began() {
    let server = Config::new().start().await;
    let client = server.client();
    client.post(ndjson(&[Sample::new("github", "list_repos", 5.0)]), None).await;
    for query in ["SELECT now()", "SELECT current_timestamp", "SELECT current_date", "SELECT current_time"] {
        assert_eq!(client.sql(query).await.len(), 1, "{query}");
    }
    let recent = "SELECT count(*) FROM tool_invocations WHERE started_at > now() - INTERVAL '1 hour'";
    assert_eq!(client.number(recent).await, 1);
    let now = client.sql("SELECT now(), now() = now()").await.remove(0);
    assert!(now[0].as_str().unwrap().ends_with('Z') && now[1] == true, "{now:?}");
}

#[tokio::test]
async fn a_pattern_that_does_not_compile_is_an_error_of_the_query() {
    let server = Config::new().start().await;
    let client = server.client();
    client.post(ndjson(&[Sample::new("github", "list_repos", 5.0)]), None).await;
    for condition in [
        "tool ~ '('",
        "regexp_like(tool, '(')",
        "regexp_replace(tool, '(?<=a)b', 'x') = ''",
        "regexp_match(tool, '(') IS NULL",
        "regexp_like(tool, 'a', 'q')",
    ] {
        let answer = ask(&client, "sql", &format!("SELECT 1 FROM tool_invocations WHERE {condition}"), &[]).await;
        assert_eq!(
            (answer.status, answer.problem().as_str()),
            (StatusCode::BAD_REQUEST, "invalid_query"),
            "{condition}"
        );
        assert!(answer.json()["position"]["line"] == 1, "{}", answer.text());
    }
}

#[tokio::test]
async fn an_internal_error_bears_the_id_under_which_the_log_has_it_and_mcpg_sql_prints_it() {
    let server = Config::new().with("flush: { interval: 300ms }").start().await;
    let client = server.client();
    client.post(ndjson(&[Sample::new("github", "list_repos", 5.0)]), None).await;
    let table = server.storage().join("orgs/default/tool_invocations");
    let query = "SELECT max(duration_ms) FROM tool_invocations";
    let id = [(HeaderName::from_static("x-request-id"), "find-me-1")];
    // Files may be gone before the table names them; then what was in them is still live.
    let answer = eventually("a query that misses its file", Duration::from_secs(60), async || {
        remove_parquet(&table);
        let answer = ask(&client, "sql", query, &id).await;
        (answer.status != StatusCode::OK).then_some(answer)
    });
    let answer = answer.await;
    assert_eq!((answer.status, answer.problem().as_str()), (StatusCode::SERVICE_UNAVAILABLE, "storage_unavailable"));
    assert_eq!((answer.header("x-request-id"), &answer.json()["request_id"]), ("find-me-1", &json!("find-me-1")));
    let line = eventually("the fault to be logged", Duration::from_secs(60), async || {
        server.logs().lines().find(|line| line.contains("a query could not read its files")).map(str::to_owned)
    })
    .await;
    assert!(line.contains("find-me-1"), "{line}");
    let output = run_with_input(mcpg().args(["sql", "--url", &server.url(), query]), b"");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(2) && said.contains("request id: "), "{said}");
}

fn remove_parquet(folder: &std::path::Path) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.map(Result::unwrap) {
        if entry.path().is_dir() {
            remove_parquet(&entry.path());
        } else if entry.path().extension().is_some_and(|extension| extension == "parquet") {
            std::fs::remove_file(entry.path()).unwrap();
        }
    }
}

#[tokio::test]
async fn over_http_1_0_an_answer_has_its_length_or_is_refused() {
    let server = Config::new().with("limits: { sql: { timeout: 2m } }").start().await;
    let small = raw(&server, &request(&server, "HTTP/1.0", "SELECT 1 AS one", "")).await;
    assert!(small.starts_with("HTTP/1.0 200") && small.to_lowercase().contains("content-length: "), "{small}");
    let large = raw(&server, &request(&server, "HTTP/1.0", LARGE, "Accept: text/csv\r\n")).await;
    assert!(large.starts_with("HTTP/1.0 505") && large.contains("proxy_http_version 1.1"), "{:.300}", large);
    let large = raw(&server, &request(&server, "HTTP/1.1", LARGE, "Accept: text/csv\r\n")).await;
    assert!(large.starts_with("HTTP/1.1 200") && large.ends_with("0\r\n\r\n"));
}

#[tokio::test]
async fn an_answer_that_fails_half_way_does_not_look_whole() {
    let server = Config::new().with("limits: { sql: { rows: 300000, timeout: 2m } }").start().await;
    for (accept, says_why) in [
        ("application/json", true),
        ("application/x-ndjson", true),
        ("text/csv", false),
        ("application/vnd.apache.arrow.stream", false),
    ] {
        let answer = raw(&server, &request(&server, "HTTP/1.1", LARGE, &format!("Accept: {accept}\r\n"))).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{accept}: {answer:.200}");
        assert!(!answer.ends_with("0\r\n\r\n"), "{accept}: it ends as a whole answer does");
        let told = answer.contains("\"error\":{\"code\":\"too_many_rows\"");
        assert_eq!(told, says_why, "{accept}");
    }
}

/// A proxy as operators have it: `proxy_pass` and nothing else, which speaks HTTP/1.0 to the server; and one that
/// speaks HTTP/1.1.
#[tokio::test]
async fn through_nginx_no_half_answer_looks_whole() {
    let server = Config::new().with("limits: { sql: { rows: 300000, timeout: 2m } }").start().await;
    let (plain, modern, folder) = (free_port(), free_port(), TempDir::new().unwrap());
    let host = |port: u16, more: &str| {
        format!(
            "server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://{}; {more} }} }}",
            server.authority()
        )
    };
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {}/{kind};", folder.path().display()))
        .join(" ");
    let config = format!(
        "daemon off; worker_processes 1; pid {0}/pid; error_log {0}/error; events {{}} http {{ access_log off; {temporary} {1} {2} }}",
        folder.path().display(),
        host(plain, ""),
        host(modern, "proxy_http_version 1.1;"),
    );
    let file = folder.path().join("nginx.conf");
    std::fs::write(&file, config).unwrap();
    let mut nginx = Program::new("nginx");
    nginx.spawn(Command::new(tool("nginx")).arg("-c").arg(&file).args(["-e", "stderr"]));
    let [plain, modern] = [plain, modern].map(|port| Client::new(&format!("http://127.0.0.1:{port}")));
    nginx.ready(Duration::from_secs(60), async || plain.answers("/healthz").await).await;

    for proxy in [&plain, &modern] {
        assert_eq!(proxy.number("SELECT count(*) FROM generate_series(1, 1000)").await, 1_000);
    }
    let refused = ask(&plain, "sql", LARGE, &[(ACCEPT, "text/csv")]).await;
    assert_eq!(refused.problem(), "http_1_1_needed");
    let body = json!({ "query": LARGE }).to_string().into_bytes();
    let headers = [(CONTENT_TYPE, "application/json"), (ACCEPT, "text/csv")];
    let broken = modern.send(Method::POST, "sql", &headers, body).await;
    assert!(
        broken.is_err(),
        "it failed after 300,000 rows, and came as a whole of {} bytes",
        broken.unwrap().body.len()
    );
}

#[tokio::test]
async fn whoever_takes_trailers_is_told_after_the_last_row_how_many_there_were() {
    let server = Config::new().start().await;
    let query = "SELECT * FROM generate_series(1, 1234)";
    let answer = raw(&server, &request(&server, "HTTP/1.1", query, "TE: trailers\r\nAccept: text/csv\r\n")).await;
    assert!(
        answer.to_lowercase().contains("trailer: mcpg-rows") && answer.ends_with("mcpg-rows: 1234\r\n\r\n"),
        "{answer:.300}"
    );
}

#[tokio::test]
async fn answers_and_scrapes_are_compressed_for_whoever_takes_it() {
    let server = Config::new().start().await;
    let client = server.client();
    let samples: Vec<_> = (0..500).map(|n| Sample::new("github", &format!("tool_{n}"), 5.0)).collect();
    client.post(ndjson(&samples), None).await;
    let query = "SELECT tool FROM tool_invocations ORDER BY tool";
    let plain = ask(&client, "sql", query, &[(ACCEPT, "text/csv")]).await.ok();
    assert_eq!(plain.header("vary"), "accept, accept-encoding");
    let scrape = client.get("metrics").await.ok();
    for (coding, unpack) in [("gzip", gunzip as fn(&[u8]) -> Vec<u8>), ("zstd", unzstd)] {
        let packed = ask(&client, "sql", query, &[(ACCEPT, "text/csv"), (ACCEPT_ENCODING, coding)]).await.ok();
        assert_eq!(packed.header("content-encoding"), coding);
        assert_eq!(unpack(&packed.body), plain.body);
        let packed = client.send(Method::GET, "metrics", &[(ACCEPT_ENCODING, coding)], Vec::new()).await.unwrap().ok();
        assert_eq!(packed.header("content-encoding"), coding);
        assert!(unpack(&packed.body) == scrape.body && packed.body.len() * 10 < scrape.body.len());
    }
    assert_eq!(client.get("metrics?histogram=none").await.problem(), "invalid_parameter");
    let short = client.get("metrics?histogram=off").await.ok();
    assert!(short.body.len() * 2 < scrape.body.len() && !short.text().contains("mcpg_tool_duration_seconds"));
}

fn gunzip(bytes: &[u8]) -> Vec<u8> {
    std::io::read_to_string(flate2::read::GzDecoder::new(bytes)).unwrap().into_bytes()
}

fn unzstd(bytes: &[u8]) -> Vec<u8> {
    zstd::decode_all(bytes).unwrap()
}

#[tokio::test]
async fn how_values_are_written_is_the_clients_choice() {
    let server = Config::new().start().await;
    let client = server.client();
    let query = "SELECT 9007199254740993 AS big, '=1+1' AS formula, 1 AS n, 2 AS m";
    let json = ask(&client, "sql?numbers=text", query, &[]).await.ok().json();
    assert_eq!(json["rows"], json!([["9007199254740993", "=1+1", 1, 2]]));
    let csv = |path: &'static str| ask(&client, path, query, &[(ACCEPT, "text/csv")]);
    assert_eq!(csv("sql").await.ok().text(), "big,formula,n,m\r\n9007199254740993,'=1+1,1,2\r\n");
    assert_eq!(csv("sql?csv=raw").await.ok().text(), "big,formula,n,m\r\n9007199254740993,=1+1,1,2\r\n");
    for bad in ["sql?csv=1", "sql?numbers=big", "sql?format=csv"] {
        let answer = ask(&client, bad, query, &[]).await;
        assert_eq!((answer.status, answer.problem().as_str()), (StatusCode::BAD_REQUEST, "invalid_parameter"), "{bad}");
    }
    let same = "SELECT a.tool, b.tool FROM (VALUES ('x')) AS a(tool) CROSS JOIN (VALUES ('y')) AS b(tool)";
    let lines = ask(&client, "sql", same, &[(ACCEPT, "application/x-ndjson")]).await.ok();
    assert_eq!(serde_json::from_slice::<Value>(&lines.body).unwrap(), json!({ "tool": "x", "tool_2": "y" }));
}

#[tokio::test]
async fn readers_that_take_nothing_keep_neither_their_own_org_nor_another_waiting() {
    let server = Config::new()
        .with("orgs: [{ name: default }, { name: acme }]")
        .with("limits: { sql: { concurrency: 2 } }")
        .start()
        .await;
    let endless = "SELECT value, repeat('x', 1000) AS x FROM generate_series(1, 100000000)";
    let mut readers = Vec::new();
    for _ in 0..6 {
        let mut stream = TcpStream::connect(server.authority()).await.unwrap();
        stream.write_all(request(&server, "HTTP/1.1", endless, "Accept: text/csv\r\n").as_bytes()).await.unwrap();
        readers.push(stream);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    for org in ["acme", "default"] {
        let client = server.client().with_org(org);
        let answered = tokio::time::timeout(Duration::from_secs(60), async {
            // Refused while the readers' queries compute what they may, never for as long as they are not read.
            while ask(&client, "sql", "SELECT 1", &[]).await.status != StatusCode::OK {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        });
        answered.await.unwrap_or_else(|_| panic!("{org} waits for readers that take nothing"));
        client.get("audit?limit=1").await.ok();
    }
    drop(readers);
}

#[tokio::test]
async fn each_query_is_recorded_by_its_digest_and_a_slow_one_by_its_shape() {
    let server = Config::new()
        .with("audit: { queries: true }")
        .with("limits: { sql: { slow_query: 0s } }")
        .with("telemetry: { log: { level: info } }")
        .start()
        .await;
    let client = server.client();
    let sample = Sample::new("github", "list_repos", 5.0).outcome(Outcome::Ok);
    client.post(ndjson(&[sample]), None).await;
    let query = "SELECT tool FROM tool_invocations WHERE caller = 'user:very-secret'";
    client.sql(query).await;
    let digest = &blake3::hash(query.as_bytes()).to_hex()[..16];
    let entry = eventually("the query to be in the ledger", Duration::from_secs(60), async || {
        let page = client.get("audit?action=operator.query").await.ok().json();
        page["entries"].as_array().unwrap().first().cloned()
    })
    .await;
    assert_eq!((&entry["detail"]["digest"], &entry["detail"]["outcome"]), (&json!(digest), &json!("ok")));
    assert_eq!((&entry["actor"], &entry["detail"]["rows"]), (&json!("anonymous"), &json!(0)));
    eventually("the query's shape to be logged", Duration::from_secs(60), async || {
        let logs = server.logs();
        (logs.contains(digest) && logs.contains("WHERE caller = ?")).then_some(())
    })
    .await;
    assert!(!server.logs().contains("very-secret"));
}

#[tokio::test]
async fn a_filter_of_the_ledger_that_can_match_nothing_is_refused() {
    let server = Config::new().start().await;
    let client = server.client();
    let answer = client.get("audit?decision=denied").await;
    assert_eq!((answer.status, answer.problem().as_str()), (StatusCode::BAD_REQUEST, "invalid_parameter"));
    assert!(answer.text().contains("permit, deny, permit_with_obligations"), "{}", answer.text());
    let key = HeaderName::from_static("idempotency-key");
    let headers = [(CONTENT_TYPE, "application/x-ndjson"), (key, "")];
    let body = ndjson(&[Sample::new("github", "list_repos", 5.0)]);
    let answer = client.send(Method::POST, "invocations", &headers, body).await.unwrap();
    assert_eq!(answer.problem(), "invalid_idempotency_key");
}
