//! Hostile and broken bodies: each is refused with a reason, none is stored, and the server does not so much as
//! stumble.

use std::io::Write as _;

use chrono::TimeDelta;
use flate2::write::GzEncoder;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::harness::{Answer, Client, Config, Sample, alone, arrow_stream, ndjson, now};

const NDJSON: &str = "application/x-ndjson";
const JSON: &str = "application/json";
const ARROW: &str = "application/vnd.apache.arrow.stream";
/// Refused bodies for each format and encoding.
const REFUSALS: usize = 1_000;

/// The body as it travels under a content encoding; a checksum in it tells every change of its bytes.
fn encoded(encoding: Option<&str>, body: &[u8]) -> Vec<u8> {
    match encoding {
        None => body.to_vec(),
        Some("gzip") => {
            let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::best());
            encoder.write_all(body).unwrap();
            encoder.finish().unwrap()
        }
        Some("zstd") => {
            let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
            encoder.include_checksum(true).unwrap();
            encoder.write_all(body).unwrap();
            encoder.finish().unwrap()
        }
        Some(other) => panic!("no encoder for {other}"),
    }
}

/// Asserts a 4xx problem with a reason that does not repeat what a field held.
fn assert_refused(answer: &Answer, what: &str) {
    assert!(answer.status.is_client_error(), "{what}: {}: {}", answer.status, answer.text());
    answer.problem();
    assert!(!answer.text().contains("do-not-repeat"), "{what}: {}", answer.text());
}

/// Objects that are no samples, each with one fault, made of a good one.
fn faulty_objects() -> Vec<(&'static str, Value)> {
    let good = || Sample::new("github", "list_repos", 5.0).json();
    let with = |field: &str, value: Value| {
        let mut object = good();
        object[field] = value;
        object
    };
    let mut objects = vec![
        ("org", with("org", json!("acme"))),
        ("nonsense", with("nonsense", json!(1))),
        ("started_at", with("started_at", json!((now() + TimeDelta::minutes(11)).to_rfc3339()))),
        ("workspace", with("workspace", json!("w".repeat(129)))),
        ("tool", with("tool", json!("do-not-repeat\u{7}"))),
        ("tool", with("tool", json!("a\0b"))),
        ("error_hash", with("error_hash", json!("ab".repeat(31)))),
        ("trace_id", with("trace_id", json!("xyz"))),
        ("span_id", with("span_id", json!("0123456789abcdeg"))),
        ("decision", with("decision", json!("perhaps"))),
        ("outcome", with("outcome", json!("OK"))),
        ("invocation_id", with("invocation_id", json!("not-a-uuid"))),
        ("request_bytes", with("request_bytes", json!(-1))),
        ("response_bytes", with("response_bytes", json!(1.5))),
        ("duration_ms", with("duration_ms", json!(-0.001))),
        ("duration_ms", with("duration_ms", json!("do-not-repeat"))),
        ("error_message", with("error_message", json!({"do-not-repeat": 1}))),
        ("error_message", with("error_message", json!(["do-not-repeat"]))),
    ];
    for field in ["workspace", "instance", "plugin", "tool", "started_at", "duration_ms", "outcome"] {
        let mut object = good();
        object.as_object_mut().unwrap().remove(field);
        objects.push((field, object));
        objects.push((field, with(field, Value::Null)));
        objects.push((field, with(field, json!({}))));
        objects.push((field, with(field, json!(""))));
        objects.push((field, with(field, json!(true))));
    }
    objects
}

#[tokio::test]
async fn each_fault_is_told_with_its_row_and_field() {
    let server = Config::new().start().await;
    let client = server.client();
    let good = Sample::new("github", "list_repos", 5.0).json();
    for (field, object) in faulty_objects() {
        let rows = [&good, &object, &good];
        let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
        for (media, body) in [(NDJSON, lines), (JSON, json!(rows).to_string())] {
            let answer = client.try_post(media, None, None, body.into_bytes()).await.unwrap();
            assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{object}: {}", answer.text());
            assert_refused(&answer, field);
            assert_eq!(answer.problem(), "invalid_sample", "{object}: {}", answer.text());
            let error = answer.json()["errors"][0].clone();
            assert_eq!((&error["row"], &error["field"]), (&json!(1), &json!(field)), "{object}: {error}");
            assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{error}");
        }
    }
    assert_eq!(client.count().await, 0, "a batch is taken whole or not at all");
}

#[tokio::test]
async fn a_body_of_the_wrong_kind_is_refused_as_http_means_it() {
    let server = Config::new().with("limits: { body_bytes: 64KiB, decoded_bytes: 256KiB }").start().await;
    let client = server.client();
    let good = ndjson(&[Sample::new("github", "list_repos", 5.0)]);
    let post = async |media: &str, encoding: Option<&str>, body: Vec<u8>| {
        let answer = client.try_post(media, encoding, None, body).await.unwrap();
        assert_refused(&answer, media);
        answer.status
    };
    assert_eq!(post("text/plain", None, good.clone()).await, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    assert_eq!(
        post("application/x-ndjson; charset=latin1", None, good.clone()).await,
        StatusCode::UNSUPPORTED_MEDIA_TYPE
    );
    assert_eq!(post(NDJSON, Some("br"), good.clone()).await, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    assert_eq!(post(NDJSON, Some("gzip"), good.clone()).await, StatusCode::BAD_REQUEST);
    assert_eq!(post(NDJSON, None, Vec::new()).await, StatusCode::BAD_REQUEST);
    assert_eq!(post(JSON, None, b"[]".to_vec()).await, StatusCode::BAD_REQUEST);
    assert_eq!(post(NDJSON, None, good.repeat(1_000)).await, StatusCode::PAYLOAD_TOO_LARGE);
    for encoding in ["gzip", "zstd"] {
        let bomb = encoded(Some(encoding), &vec![b'\n'; 8 << 20]);
        assert!(bomb.len() < 64 << 10);
        assert_eq!(post(NDJSON, Some(encoding), bomb).await, StatusCode::PAYLOAD_TOO_LARGE);
    }
    let nested = format!("{}{}", "[".repeat(20_000), "]".repeat(20_000));
    assert_eq!(post(JSON, None, nested.into_bytes()).await, StatusCode::BAD_REQUEST);
    assert_eq!(client.count().await, 0);
}

/// A body of the format, broken at random.
fn broken(rng: &mut StdRng, media: &str, good: &[u8]) -> Vec<u8> {
    let mut body = good.to_vec();
    let at = |rng: &mut StdRng, body: &[u8]| rng.random_range(0..body.len());
    match rng.random_range(0..6) {
        0 => body.truncate(at(rng, good)),
        1 => {
            let place = at(rng, &body);
            body[place] ^= 1 << rng.random_range(0..8);
        }
        2 => {
            let place = at(rng, &body);
            let noise: Vec<u8> = (0..rng.random_range(1..20)).map(|_| rng.random()).collect();
            body.splice(place..place, noise);
        }
        3 => {
            let (from, to) = (at(rng, &body), at(rng, &body));
            body.drain(from.min(to)..from.max(to));
        }
        4 if media != ARROW => {
            let objects = faulty_objects();
            let object = &objects[rng.random_range(0..objects.len())].1;
            body = if media == JSON { json!([object]).to_string() } else { format!("{object}\n") }.into_bytes();
        }
        _ => {
            let start = at(rng, &body);
            let end = (start + rng.random_range(1..64)).min(body.len());
            body[start..end].iter_mut().for_each(|byte| *byte = rng.random());
        }
    }
    body
}

async fn fuzz(client: &Client, media: &str, encoding: Option<&str>, seed: u64) -> u64 {
    let samples: Vec<_> = (0..4).map(|n| Sample::new("github", &format!("tool_{n}"), 5.0)).collect();
    let good = match media {
        ARROW => arrow_stream(&samples),
        JSON => json!(samples.iter().map(Sample::json).collect::<Vec<_>>()).to_string().into_bytes(),
        _ => ndjson(&samples),
    };
    let mut rng = StdRng::seed_from_u64(seed);
    let (mut refused, mut accepted, mut tried) = (0, 0, 0);
    while refused < REFUSALS {
        tried += 1;
        assert!(tried < 20 * REFUSALS, "{media} {encoding:?}: too few of the broken bodies are refused");
        // One in three breaks the compressed bytes, where there are any; the others what is inside.
        let body = if encoding.is_some() && rng.random_bool(0.33) {
            broken(&mut rng, ARROW, &encoded(encoding, &good))
        } else {
            encoded(encoding, &broken(&mut rng, media, &good))
        };
        let answer = client.try_post(media, encoding, None, body).await.unwrap();
        if answer.status == StatusCode::OK {
            // A changed letter of a name, a digit of a duration: still samples, and stored as what they say.
            accepted += answer.json()["accepted"].as_u64().unwrap();
        } else {
            assert_refused(&answer, &format!("{media} {encoding:?}, body {tried} of seed {seed}"));
            refused += 1;
        }
    }
    accepted
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_broken_bodies_in_each_format_and_encoding_are_refused_and_leave_no_trace() {
    let _alone = alone().await;
    // A byte that was changed may make a day long past, whose rows are not to go before they are counted.
    let orgs = "orgs: [{ name: default, retention: { samples: 36500d } }]";
    let mut server = Config::new().with(orgs).start().await;
    let client = server.client();
    let mut accepted = 0;
    for (number, media) in [NDJSON, JSON, ARROW].into_iter().enumerate() {
        for (other, encoding) in [None, Some("gzip"), Some("zstd")].into_iter().enumerate() {
            accepted += fuzz(&client, media, encoding, (number * 10 + other) as u64).await;
            let stored = u64::try_from(client.count().await).unwrap();
            assert_eq!(stored, accepted, "{media} {encoding:?}: rows stored, rows accepted");
        }
    }
    assert_eq!(client.metrics().await.total("mcpg_tool_calls_total"), accepted as f64);
    assert!(server.alive());
    let logs = server.logs();
    let panic: Vec<_> = logs.lines().skip_while(|line| !line.contains("panicked")).take(12).collect();
    assert!(panic.is_empty(), "a panic stands in the log: {panic:#?}");
}
