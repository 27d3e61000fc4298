//! Invariant I6: an error message is hashed as it arrives, and is found in no file, log, answer or metric.

use std::time::Duration;

use mcpg::model::Outcome;
use serde_json::{Value, json};

use crate::harness::{Config, Sample, arrow_stream, eventually, ndjson, python};

const CANARY: &str = "plaintext-canary-4e1c: password=hunter2 for alice";

#[tokio::test]
async fn no_error_message_is_ever_found_anywhere() {
    let mut server =
        Config::new().with("flush: { interval: 300ms }\ntelemetry: { log: { level: trace } }").start().await;
    let client = server.client();
    let mut answers = Vec::new();
    let failed = |message: Value| {
        Sample::new("github", "list_repos", 5.0).outcome(Outcome::ServerError).with("error_message", message)
    };
    let good = failed(json!(CANARY));
    let post = async |media: &str, body: Vec<u8>| client.try_post(media, None, None, body).await.unwrap();
    answers.push(post("application/x-ndjson", ndjson(std::slice::from_ref(&good))).await.ok());
    answers.push(post("application/json", good.json().to_string().into_bytes()).await.ok());

    // Refused for another field, for the message's own type, for syntax, and for the message among the known columns.
    let bad = good.clone().with("duration_ms", "x");
    answers.push(post("application/x-ndjson", ndjson(&[bad])).await);
    answers.push(post("application/x-ndjson", ndjson(&[failed(json!({ CANARY: CANARY }))])).await);
    answers.push(post("application/x-ndjson", ndjson(&[failed(json!([CANARY]))])).await);
    let mut cut = ndjson(std::slice::from_ref(&good));
    cut.truncate(cut.len() - 4);
    answers.push(post("application/x-ndjson", cut).await);
    let mismatch = good.clone().with("error_hash", "00".repeat(32));
    answers.push(post("application/json", mismatch.json().to_string().into_bytes()).await);
    let (refused, taken) = (&answers[2..], &answers[..2]);
    assert!(taken.iter().all(|answer| answer.status.is_success()));
    assert!(refused.iter().all(|answer| answer.status.is_client_error()));

    let hash = blake3::hash(CANARY.as_bytes()).to_hex().to_string();
    let stored = client.sql("SELECT error_hash FROM tool_invocations").await;
    assert_eq!(stored, vec![vec![json!(hash)]; 2]);
    let everything = client.sql_as("SELECT * FROM tool_invocations", json!([]), "application/json").await;
    answers.extend([everything, client.get("metrics").await, client.get("/metrics").await]);
    for answer in &answers {
        assert!(!answer.text().contains("canary") && !answer.text().contains("hunter2"), "{}", answer.text());
    }

    // In the WAL first, then in the tables: raw, and in whatever compressed block a file holds.
    let store = server.storage().to_str().unwrap().to_owned();
    assert_eq!(python("search.py", &[&store, "plaintext-canary", "hunter2"]).await, json!([]));
    eventually("a flush", Duration::from_secs(90), async || {
        let rows = python("delta.py", &[&store, "default", "tool_invocations", "SELECT count(*) FROM t"]).await;
        (rows[0][0] == 2).then_some(())
    })
    .await;
    assert!(server.stop().await.success());
    assert_eq!(python("search.py", &[&store, "plaintext-canary", "hunter2"]).await, json!([]));
    let found = python("search.py", &[&store, &hash]).await;
    assert!(!found.as_array().unwrap().is_empty(), "the search finds what is there: the hash");
    assert!(!server.logs().contains("canary") && !server.logs().contains("hunter2"));
}

#[tokio::test]
async fn a_message_in_an_arrow_column_is_hashed_too() {
    let server = Config::new().start().await;
    let samples = [Sample::new("github", "list_repos", 5.0)];
    let plain = arrow_stream(&samples);
    let with_message = with_string_column(&plain, "error_message", CANARY);
    let client = server.client();
    let answer = client.try_post("application/vnd.apache.arrow.stream", None, None, with_message).await.unwrap();
    answer.ok();
    let hash = blake3::hash(CANARY.as_bytes()).to_hex().to_string();
    assert_eq!(client.sql("SELECT error_hash FROM tool_invocations").await, vec![vec![json!(hash)]]);
}

/// The Arrow stream of one row with a further column.
fn with_string_column(stream: &[u8], name: &str, value: &str) -> Vec<u8> {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, RecordBatch, StringArray};
    use arrow::datatypes::{DataType, Field, Schema};
    use arrow::ipc::{reader::StreamReader, writer::StreamWriter};

    let batch = StreamReader::try_new(stream, None).unwrap().next().unwrap().unwrap();
    let kept = (0..batch.num_columns())
        .filter(|index| batch.schema().field(*index).name() != "error_hash")
        .collect::<Vec<_>>();
    let batch = batch.project(&kept).unwrap();
    let mut fields = batch.schema().fields().iter().map(|field| field.as_ref().clone()).collect::<Vec<_>>();
    fields.push(Field::new(name, DataType::Utf8, true));
    let mut columns = batch.columns().to_vec();
    columns.push(Arc::new(StringArray::from(vec![value])) as ArrayRef);
    let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap();
    let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema()).unwrap();
    writer.write(&batch).unwrap();
    writer.into_inner().unwrap()
}
