//! The dashboard in a real browser, before the real control plane: an anomaly is planted and found from the map to the
//! policy, filters, reload and back, live, SQL, a ledger that is sound and one with a changed tile, the keyboard,
//! barriers, widths, hostile names. What is looked for is in `browser.mjs`; here it is planted.
//!
//! Pictures of every view are left in the folder of the test's temporary files.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use mcpg::model::Outcome;
use reqwest::header::CONTENT_TYPE;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{Client, Config, Sample, eventually, node, now, run};

/// How long a checkpoint may take on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Names that would be more than names to a careless page.
const HOSTILE: [&str; 4] = [
    "<img src=x onerror=alert(1)>",
    "\u{05d0}\u{05d1}\u{05d2} \u{0627}\u{0644}\u{0639}\u{0631}\u{0628}\u{064a}\u{0629}",
    "\u{1f469}\u{200d}\u{1f680}\u{1f4a5}",
    "\"'><script>alert(1)</script>&amp;",
];

/// Calls outside the planted quarter of an hour, and in it.
const USUAL: i64 = 600;
const SLOW: i64 = 40;

/// A call with its entry of the ledger.
struct Planted {
    sample: Value,
    event: Value,
}

/// A call of `caller` under a policy.
fn call(sample: Sample, caller: &str, policy: &str) -> Planted {
    let denied = matches!(sample.outcome, Outcome::PolicyDenied);
    let decision = if denied { "deny" } else { "permit" };
    let (target, at) = (format!("{}/{}", sample.plugin, sample.tool), sample.started_at);
    let sample =
        sample.with("caller", caller).with("decision", decision).with("session_id", format!("s-{caller}")).json();
    let event = json!({
        "actor": caller, "action": format!("tool.{decision}"), "target": target, "decision": decision, "policy_ids": [policy],
        "occurred_at": time(at), "invocation_id": sample["invocation_id"], "workspace": "prod", "instance": "gw-1",
    });
    Planted { sample, event }
}

fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// The hour's usual calls, and a quarter of it in which one tool is slow for one caller, from one version of one
/// client.
fn usual_and_slow(from: DateTime<Utc>, with_clients: bool) -> (Vec<Planted>, Vec<Planted>) {
    let tools = [("github", "search_code"), ("github", "get_file"), ("jira", "get_issue"), ("files", "read_file")];
    let callers = ["user:alice@acme", "user:bob@acme", "service:ci", "user:chen@acme", "service:review"];
    let client = |sample: Sample, version: &str| {
        if with_clients { sample.with("client_name", "agent").with("client_version", version) } else { sample }
    };
    let usual = (0..USUAL).map(|i| {
        let (plugin, tool) = tools[(i % 4) as usize];
        let caller = callers[(i % 5) as usize];
        let at = from + TimeDelta::milliseconds(3_590_000 * i / USUAL);
        let mut sample = Sample::new(plugin, tool, 8.0 + (i * 37 % 290) as f64).started_at(at);
        let mut policy = "everyone-reads";
        if i % 20 == 7 {
            sample = sample.outcome(Outcome::ServerError).with("error_code", "UPSTREAM_5XX");
        } else if i % 20 == 13 {
            (sample, policy) = (sample.outcome(Outcome::PolicyDenied), "nobody-deletes");
        }
        call(client(sample, if i % 3 == 0 { "2.0.0" } else { "1.9.4" }), caller, policy)
    });
    let slow = (0..SLOW).map(|i| {
        let at = from + TimeDelta::minutes(25) + TimeDelta::seconds(15 * 60 * i / SLOW);
        let sample = Sample::new("github", "search_code", 9_000.0 + (i * 53 % 900) as f64).started_at(at);
        call(client(sample, "2.1.0"), "user:bob@acme", "slow-lane")
    });
    (usual.collect(), slow.collect())
}

/// Calls whose every name is hostile, one of 128 characters among them.
fn hostile(from: DateTime<Utc>) -> Vec<Planted> {
    let long = "w".repeat(128);
    let names: Vec<&str> =
        HOSTILE.iter().copied().filter(|name| !name.contains('\u{200d}')).chain([long.as_str()]).collect();
    let outcomes = [Outcome::Ok, Outcome::ServerError, Outcome::PolicyDenied];
    let of = |i: usize| {
        let name = |shift: usize| names[(i + shift) % names.len()];
        let at = from + TimeDelta::seconds(60 * i as i64);
        let sample = Sample::new(name(0), name(1), 50.0 * (1 + i) as f64).started_at(at).outcome(outcomes[i % 3]);
        let sample = sample.with("error_code", name(2)).with("instance", name(0));
        call(sample, &format!("user:{}", name(0)), name(3))
    };
    (0..24).map(of).collect()
}

async fn send(client: &Client, planted: &[Planted]) {
    let samples = planted.iter().map(|call| call.sample.to_string() + "\n").collect::<String>();
    client.try_post("application/x-ndjson", None, None, samples.into_bytes()).await.unwrap().ok();
    let events = planted.iter().map(|call| call.event.to_string() + "\n").collect::<String>();
    let headers = [(CONTENT_TYPE, "application/x-ndjson")];
    client.send(Method::POST, "audit", &headers, events.into_bytes()).await.unwrap().ok();
}

/// Waits until a checkpoint covers all entries.
async fn covered(client: &Client) {
    let entries = client.number("SELECT count(*) FROM audit_log").await;
    eventually("a checkpoint of all entries", PATIENCE, async || {
        let checkpoint = client.get("audit/checkpoint").await;
        let size: i64 = checkpoint.text().lines().nth(1)?.parse().ok()?;
        (size >= entries).then_some(())
    })
    .await;
}

/// The first full hash tile of an org's ledger.
fn tile(storage: &Path, org: &str) -> PathBuf {
    storage.join("orgs").join(org).join("audit/tile/0/000")
}

#[tokio::test]
async fn a_person_finds_the_planted_anomaly_and_all_else_holds() {
    let config = Config::new().with("orgs: [{name: default}, {name: tampered}, {name: hostile}]");
    let server = config.start().await;
    let client = server.client();
    let page = client.get("/").await;
    assert_eq!(page.status, StatusCode::OK, "the dashboard is not in the binary: run tests/setup.sh, and build again");

    let to = now();
    let from = to - TimeDelta::hours(1);
    let columns = "SELECT count(*) FROM information_schema.columns WHERE table_name = 'tool_invocations' AND column_name = 'client_version'";
    let with_clients = client.number(columns).await > 0;
    let (usual, slow) = usual_and_slow(from, with_clients);
    send(&client, &usual).await;
    send(&client, &slow).await;
    covered(&client).await;

    let hostile_org = client.with_org("hostile");
    let named = hostile(from);
    send(&hostile_org, &named).await;
    covered(&hostile_org).await;

    // A tile is full with 256 entries.
    let tampered = client.with_org("tampered");
    send(&tampered, &usual_and_slow(from, with_clients).0).await;
    covered(&tampered).await;
    let path = tile(server.storage(), "tampered");
    let mut bytes = fs::read(&path).unwrap();
    bytes[33] ^= 1;
    fs::write(&path, bytes).unwrap();

    let id = |call: &Planted| call.sample["invocation_id"].clone();
    let bobs = usual.iter().chain(&slow).filter(|call| call.sample["caller"] == "user:bob@acme").count();
    let not_ok = usual.iter().filter(|call| call.sample["outcome"] != "ok").count();
    let (slow_from, slow_to) = (from + TimeDelta::minutes(25), from + TimeDelta::minutes(40));
    let mut different = vec!["search_code", "user:bob@acme", "slow-lane"];
    if with_clients {
        different.push("2.1.0");
    }
    let pictures = Path::new(env!("CARGO_TARGET_TMPDIR")).join("dashboard");
    let given = json!({
        "url": server.url(),
        "pictures": pictures,
        "tampered": "tile/0/000",
        "only": std::env::var("MCPG_DASHBOARD").ok().map(|names| names.split(',').map(str::to_owned).collect::<Vec<_>>()),
        "planted": {
            "from": time(from), "to": time(to), "calls": USUAL + SLOW, "bobs": bobs, "not_ok": not_ok,
            "slow_from": time(slow_from), "slow_to": time(slow_to), "slow": SLOW,
            "box": format!("{}~{}~5000~20000", time(slow_from), time(slow_to)),
            "different": different, "sentence": ["user:bob@acme", "github/search_code", "gw-1", "slow-lane", "it succeeded"],
            "call": id(&slow[3]), "hostile_call": id(&named[0]),
        },
    });
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/dashboard/browser.mjs");
    let ended = tokio::task::spawn_blocking(move || run(node(&script).arg(given.to_string()))).await.unwrap();
    let (out, errors) = (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
    eprintln!("{out}");
    assert!(ended.status.success(), "{out}\n{errors}");
}

#[tokio::test]
async fn the_page_is_served_protected_and_never_kept() {
    let server = Config::new().with("tokens: [{name: t, hash: \"0000000000000000000000000000000000000000000000000000000000000000\", org: default, roles: [read]}]").start().await;
    let client = server.client();
    for path in ["/", "/ledger", "/calls/none", "/lag", "/sql", "/status", "/login"] {
        let page = client.get(path).await;
        assert_eq!(page.status, StatusCode::OK, "{path}: the page needs no token; what it asks for does");
        assert_eq!(page.header("cache-control"), "no-store");
        assert_eq!(page.header("x-content-type-options"), "nosniff");
        assert_eq!(page.header("referrer-policy"), "no-referrer");
        assert_eq!(page.header("cross-origin-opener-policy"), "same-origin");
        let policy = page.header("content-security-policy");
        assert!(policy.contains("frame-ancestors 'none'") && policy.contains("script-src 'self';"), "{policy}");
        let (_, nonce) = policy.split_once("'nonce-").unwrap();
        let nonce = nonce.split('\'').next().unwrap();
        assert!(page.text().contains(&format!("nonce=\"{nonce}\"")), "{}", page.text());
    }
    let page = client.get("/").await.text();
    let script = page.split('"').find(|part| part.starts_with("/assets/") && part.ends_with(".js")).unwrap();
    let asset = client.get(script).await;
    assert!(asset.header("cache-control").contains("immutable"), "{script}");
    assert_eq!(asset.header("content-type"), "text/javascript; charset=utf-8");
    assert_eq!(client.get("/assets/none.js").await.status, StatusCode::NOT_FOUND);
    assert_eq!(client.get("/nothing").await.problem(), "no_such_route");
}

#[test]
fn what_people_type_as_times_is_understood_and_numbers_are_written_as_people_do() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/dashboard/units.mjs");
    let ended = run(node(&script).env("TZ", "UTC"));
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
}
