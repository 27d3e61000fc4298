//! Invariant I4 over HTTP: no path, header or statement gives one org a byte of another, of the server's files or of
//! its settings; and the server is alive and within its memory after all attempts.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use reqwest::Method;
use reqwest::header::HeaderName;

use crate::harness::{Config, Sample, Server, ndjson};

/// Stands in every text that the other org stores.
const FOREIGN: &str = "acme-secret-tool";

async fn two_orgs() -> Server {
    let server = Config::new().with("orgs: [{ name: default }, { name: acme }]").start().await;
    server.client().post(ndjson(&[Sample::new("github", "list_repos", 5.0)]), Some("k")).await;
    let foreign = Sample::new("acme-plugin", FOREIGN, 5.0).with("caller", FOREIGN);
    server.client().with_org("acme").post(ndjson(&[foreign]), Some("k")).await;
    server
}

/// The answer to a request line exactly as it is written, which no client library would send.
fn raw(server: &Server, target: &str) -> String {
    let mut stream = TcpStream::connect(server.authority()).unwrap();
    write!(stream, "GET {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn no_path_leaves_its_org() {
    let server = two_orgs().await;
    for target in [
        "/v1/orgs/default/../acme/metrics",
        "/v1/orgs/default/%2e%2e/acme/metrics",
        "/v1/orgs/default%2f..%2facme/metrics",
        "/v1/orgs/default%00/metrics",
        "/v1/orgs/..%2f..%2fetc%2fpasswd/metrics",
        "/v1/orgs/ACME/metrics",
        "/v1/orgs/acme%20/metrics",
        "/v1/orgs//acme/metrics",
        "/v1/orgs/*/metrics",
        "/v1/orgs/default;acme/metrics",
        "//v1/orgs/acme/../../../etc/passwd",
        "/../../../../etc/passwd",
        "/orgs/acme/tool_invocations/_delta_log/00000000000000000000.json",
        "/v1/orgs/default/metrics?org=acme",
        "/v1/orgs/default/metrics?granularity=hour&granularity=../acme",
    ] {
        let answer = raw(&server, target);
        assert!(!answer.contains(FOREIGN) && !answer.contains("root:"), "{target}: {answer}");
        let status: u16 = answer.split(' ').nth(1).unwrap().parse().unwrap();
        assert!(status == 200 || (400..500).contains(&status), "{target}: {answer}");
    }
}

#[tokio::test]
async fn no_header_changes_the_org() {
    let server = two_orgs().await;
    for (name, value) in [
        ("x-org", "acme"),
        ("x-original-url", "/v1/orgs/acme/metrics"),
        ("x-rewrite-url", "/v1/orgs/acme/metrics"),
        ("x-forwarded-prefix", "/v1/orgs/acme"),
        ("host", "acme"),
        ("forwarded", "host=acme"),
        ("x-scope-orgid", "acme"),
    ] {
        let headers = [(HeaderName::from_static(name), value)];
        let answer = server.client().send(Method::GET, "metrics", &headers, Vec::new()).await.unwrap();
        assert!(!answer.text().contains(FOREIGN), "{name}: {value}");
    }
}

#[tokio::test]
async fn each_org_lies_in_its_own_folder() {
    let mut server = two_orgs().await;
    assert!(server.stop().await.success());
    let orgs = server.storage().join("orgs");
    for (org, tool, foreign) in [("default", "list_repos", FOREIGN), ("acme", FOREIGN, "list_repos")] {
        let folder = orgs.join(org);
        let found = crate::harness::python("search.py", &[folder.to_str().unwrap(), tool]).await;
        assert!(!found.as_array().unwrap().is_empty(), "{org} has its own");
        let found = crate::harness::python("search.py", &[folder.to_str().unwrap(), foreign]).await;
        assert_eq!(found, serde_json::json!([]), "{org} has another's");
    }
}
