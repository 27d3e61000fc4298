//! The result formats of SQL, each read back by a program that is not ours.

use chrono::{TimeZone, Utc};
use mcpg::model::Outcome;
use reqwest::StatusCode;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{Client, Config, Sample, Server, ndjson, python};

const QUERY: &str = "SELECT plugin, tool, started_at, duration_ms, outcome, error_code, request_bytes, date
    FROM tool_invocations ORDER BY started_at";

async fn server() -> Server {
    // The samples are of a day long past, and are not to go while a slow run reads them.
    let orgs = "orgs: [{ name: default, retention: { samples: 36500d } }]";
    let server = Config::new().with(orgs).start().await;
    let at = |second| Utc.with_ymd_and_hms(2026, 3, 4, 5, 6, second).unwrap();
    let samples = [
        Sample::new("github", "list \"repos\", all", 84.25)
            .started_at(at(7))
            .with("request_bytes", 9_007_199_254_740_993_i64),
        Sample::new("jira", "créate\\issue", 0.0)
            .started_at(at(8))
            .outcome(Outcome::ServerError)
            .with("error_code", "UPSTREAM_5XX"),
    ];
    server.client().post(ndjson(&samples), None).await;
    server
}

fn expected() -> Value {
    json!([
        [
            "github",
            "list \"repos\", all",
            "2026-03-04T05:06:07",
            84.25,
            "ok",
            null,
            9_007_199_254_740_993_i64,
            "2026-03-04"
        ],
        ["jira", "créate\\issue", "2026-03-04T05:06:08", 0.0, "server_error", "UPSTREAM_5XX", null, "2026-03-04"],
    ])
}

async fn read_back(client: &Client, query: &str, accept: &str, format: &str) -> Value {
    let answer = client.sql_as(query, json!([]), accept).await.ok();
    assert!(answer.header("content-type").starts_with(accept), "{accept}: {}", answer.header("content-type"));
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("result");
    std::fs::write(&file, answer.body).unwrap();
    python("read_result.py", &[format, file.to_str().unwrap()]).await
}

const FORMATS: [(&str, &str); 5] = [
    ("application/json", "json"),
    ("application/x-ndjson", "ndjson"),
    ("text/csv", "csv"),
    ("application/vnd.apache.arrow.stream", "arrow"),
    ("application/vnd.apache.parquet", "parquet"),
];

#[tokio::test]
async fn each_format_gives_the_same_rows_to_another_reader() {
    let server = server().await;
    for (accept, format) in FORMATS {
        let read = read_back(&server.client(), QUERY, accept, format).await;
        assert_eq!(read["rows"], expected(), "{format}");
        let columns =
            json!(["plugin", "tool", "started_at", "duration_ms", "outcome", "error_code", "request_bytes", "date"]);
        assert_eq!(read["columns"], columns, "{format}");
    }
}

#[tokio::test]
async fn an_empty_result_is_whole_in_each_format() {
    let server = server().await;
    for (accept, format) in FORMATS {
        let read =
            read_back(&server.client(), "SELECT tool FROM tool_invocations WHERE tool = 'x'", accept, format).await;
        assert_eq!(read["rows"], json!([]), "{format}");
    }
}

#[tokio::test]
async fn many_rows_arrive_whole_in_each_format() {
    let server = Config::new().start().await;
    let client = server.client();
    for part in 0..10 {
        let sample = |n: u32| Sample::new("github", "list_repos", f64::from(part * 2_000 + n));
        client.post(ndjson(&(0..2_000).map(sample).collect::<Vec<_>>()), None).await;
    }
    for (accept, format) in FORMATS {
        let read = read_back(&client, "SELECT duration_ms FROM tool_invocations", accept, format).await;
        let mut values: Vec<f64> =
            read["rows"].as_array().unwrap().iter().map(|row| row[0].as_f64().unwrap()).collect();
        values.sort_by(f64::total_cmp);
        assert_eq!(values, (0..20_000).map(f64::from).collect::<Vec<_>>(), "{format}");
    }
}

#[tokio::test]
async fn json_names_its_columns_and_their_types() {
    let server = server().await;
    let answer = server.client().sql_as(QUERY, json!([]), "application/json").await.ok().json();
    let types: Vec<_> = answer["columns"].as_array().unwrap().iter().map(|column| column["type"].clone()).collect();
    assert_eq!(json!(types), json!(["string", "string", "timestamp", "double", "string", "string", "bigint", "date"]));
    assert_eq!(answer["rows"][0][2], "2026-03-04T05:06:07Z");
}

#[tokio::test]
async fn parameters_are_values_and_nothing_else() {
    let server = server().await;
    let client = server.client();
    let query = "SELECT count(*) FROM tool_invocations WHERE plugin = $1 AND duration_ms > $2";
    let count = async |params: Value| client.sql_as(query, params, "application/json").await;
    assert_eq!(count(json!(["github", 50])).await.ok().json()["rows"][0][0], 1);
    assert_eq!(count(json!(["github", 84.5])).await.ok().json()["rows"][0][0], 0);
    assert_eq!(count(json!(["' OR 1 = 1 --", 0])).await.ok().json()["rows"][0][0], 0);
    let short = count(json!(["github"])).await;
    assert_eq!(short.status, StatusCode::BAD_REQUEST);
    assert_eq!(short.problem(), "invalid_parameter");
}

#[tokio::test]
async fn a_format_that_is_not_served_is_named() {
    let server = server().await;
    let answer = server.client().sql_as(QUERY, json!([]), "image/png").await;
    assert_eq!(answer.status, StatusCode::NOT_ACCEPTABLE);
    answer.problem();
    for (accept, _) in FORMATS {
        assert!(answer.text().contains(accept), "{accept}: {}", answer.text());
    }
}
