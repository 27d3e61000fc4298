//! The control plane away, the gateway killed: after both are back every call is recorded exactly once, in all that
//! counts it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use reqwest::header::HeaderMap;
use serde_json::json;

use crate::harness::{Client, Config, Disk, Gateway, GatewayConfig, Mcp, Server, Upstream, alone, eventually};

/// How long what waits in the spool may take to arrive once the control plane is back: the longest pause and more.
const ARRIVAL: Duration = Duration::from_secs(180);

/// What a full disk has left for the spool, and more calls than find room for their events in it.
const ROOM: u64 = 256 << 10;
const EVENTS: usize = 1_500;

/// Clients that call at the same time.
const CLIENTS: usize = 4;

/// What became of calls.
#[derive(Debug, Default)]
struct Tally {
    /// The request ids of those that got their result.
    answered: BTreeSet<String>,
    /// How many were sent and never answered, or answered by a gateway in doubt: it may or may not have known of them.
    unanswered: usize,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.answered.extend(other.answered);
        self.unanswered += other.unanswered;
    }
}

/// Clients that call without pause until they are asked to stop, or until the gateway does not answer.
struct Callers {
    stop: Arc<AtomicBool>,
    in_doubt: Arc<AtomicBool>,
    /// How many calls have been answered so far.
    answered: Arc<AtomicUsize>,
    tasks: Vec<tokio::task::JoinHandle<Tally>>,
}

impl Callers {
    async fn start(gateway: &Gateway) -> Self {
        let (stop, in_doubt) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (answered, mut tasks) = (Arc::new(AtomicUsize::new(0)), Vec::new());
        for _ in 0..CLIENTS {
            let (stop, in_doubt, answered) = (Arc::clone(&stop), Arc::clone(&in_doubt), Arc::clone(&answered));
            tasks.push(tokio::spawn(call_on(gateway.client().await, stop, in_doubt, answered)));
        }
        Self { stop, in_doubt, answered, tasks }
    }

    /// Lets them call for a second, and for as long as it takes until so many calls more have been answered.
    async fn go_on(&self, calls: usize) {
        let goal = self.answered.load(Ordering::SeqCst) + calls;
        tokio::time::sleep(Duration::from_secs(1)).await;
        eventually(&format!("{goal} calls to be answered"), ARRIVAL, async || {
            (self.answered.load(Ordering::SeqCst) >= goal).then_some(())
        })
        .await;
    }

    /// From now on an answer promises nothing.
    fn doubt(&self) {
        self.in_doubt.store(true, Ordering::SeqCst);
    }

    async fn finish(self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        self.ended().await
    }

    /// Waits until all have met a gateway that does not answer.
    async fn ended(self) -> Tally {
        let mut tally = Tally::default();
        for task in self.tasks {
            tally.add(task.await.unwrap());
        }
        tally
    }
}

async fn call_on(client: Mcp, stop: Arc<AtomicBool>, in_doubt: Arc<AtomicBool>, answered: Arc<AtomicUsize>) -> Tally {
    let mut tally = Tally::default();
    while !stop.load(Ordering::Relaxed) {
        let Some(id) = call(&client).await else {
            tally.unanswered += 1;
            break;
        };
        if in_doubt.load(Ordering::SeqCst) {
            tally.unanswered += 1;
        } else {
            tally.answered.insert(id);
            answered.fetch_add(1, Ordering::SeqCst);
        }
    }
    tally
}

/// The request id of a call that got its result.
async fn call(client: &Mcp) -> Option<String> {
    let params = json!({ "name": "fixture__echo", "arguments": { "message": "hi" } });
    let message = json!({ "jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": params });
    let response = client.post(message.to_string().into_bytes(), &HeaderMap::new()).await.ok()?;
    let id = response.headers()["x-request-id"].to_str().unwrap().to_owned();
    response.text().await.ok()?.contains("\"result\"").then_some(id)
}

/// How often each request id is in the answer to a query.
async fn by_request(client: &Client, query: &str) -> BTreeMap<String, i64> {
    let rows = client.sql(query).await;
    rows.iter().map(|row| (row[0].as_str().unwrap().to_owned(), row[1].as_i64().unwrap())).collect()
}

const SAMPLES: &str = "SELECT request_id, count(*) FROM tool_invocations GROUP BY request_id LIMIT 100000";
const PERMITS: &str =
    "SELECT request_id, count(*) FROM audit_log WHERE action = 'tool.permit' GROUP BY request_id LIMIT 100000";

/// Waits until nothing is in the gateway's spool, and the control plane has as many calls as were answered.
async fn delivered(gateway: &Gateway, server: &Server, tally: &Tally) {
    let client = server.client();
    let answered = i64::try_from(tally.answered.len()).unwrap();
    eventually("the spool to be empty", ARRIVAL, async || {
        let empty = gateway.metrics().await.total("mcpg_gateway_spool_records") == 0.0;
        let permits = client.number("SELECT count(*) FROM audit_log WHERE action = 'tool.permit'").await;
        (empty && permits >= answered).then_some(())
    })
    .await;
}

/// That each answered call is there once, and of those that were not answered none twice.
#[track_caller]
fn assert_told(what: &str, told: &BTreeMap<String, i64>, tally: &Tally) {
    let missing: Vec<_> = tally.answered.iter().filter(|id| !told.contains_key(*id)).collect();
    assert!(missing.is_empty(), "{what}: {} calls are missing: {missing:?}", missing.len());
    let more: Vec<_> = told.iter().filter(|(_, count)| **count != 1).collect();
    assert!(more.is_empty(), "{what}: recorded more than once: {more:?}");
    let beside = told.len() - tally.answered.len();
    assert!(beside <= tally.unanswered, "{what}: {beside} more than were answered, {} were not", tally.unanswered);
}

/// What the client, SQL, the counters and the ledger say is the same.
async fn assert_equal(server: &Server, tally: &Tally) {
    let client = server.client();
    let (samples, permits) = (by_request(&client, SAMPLES).await, by_request(&client, PERMITS).await);
    assert_told("samples", &samples, tally);
    assert_told("ledger", &permits, tally);
    let counted = client.metrics().await.total("mcpg_tool_calls_total");
    assert_eq!(counted as usize, samples.len(), "the counters and SQL");
    let rollup = client.number("SELECT sum(calls) FROM tool_usage_hourly").await;
    assert_eq!(rollup as usize, samples.len(), "the rollup and SQL");
    let undispatched = samples.keys().filter(|id| !permits.contains_key(*id)).count();
    assert_eq!(undispatched, 0, "no call without its decision");
    let seqs = client
        .sql("SELECT min(emitter_seq), max(emitter_seq) - count(*), count(*) - count(DISTINCT emitter_seq) FROM audit_log WHERE instance = 'gw-1'")
        .await;
    assert_eq!(seqs, [[json!(0), json!(-1), json!(0)]], "the gateway's own count has no hole and no double");
}

#[tokio::test(flavor = "multi_thread")]
async fn control_plane_away_and_gateway_killed_every_call_is_told_exactly_once() {
    let _alone = alone().await;
    let fixture = Upstream::fixture().await;
    let mut server = Config::new().start().await;
    let mut gateway = GatewayConfig::new().http("fixture", &fixture.url()).control_plane(&server).start().await;
    let mut tally = Tally::default();

    // All is well, then the control plane goes under load.
    let callers = Callers::start(&gateway).await;
    callers.go_on(60).await;
    server.kill();
    callers.go_on(60).await;
    // The gateway is killed under load, twice, and goes on without a control plane.
    gateway.kill();
    tally.add(callers.ended().await);
    for _ in 0..2 {
        gateway.start().await;
        let callers = Callers::start(&gateway).await;
        callers.go_on(30).await;
        gateway.kill();
        tally.add(callers.ended().await);
    }
    gateway.start().await;
    let callers = Callers::start(&gateway).await;
    callers.go_on(30).await;
    // The control plane is back, under load too.
    server.start().await;
    callers.go_on(30).await;
    tally.add(callers.finish().await);

    assert!(tally.answered.len() > 200, "only {} calls were answered", tally.answered.len());
    assert!(tally.unanswered <= 3 * CLIENTS, "{} calls were not answered", tally.unanswered);
    delivered(&gateway, &server, &tally).await;
    assert_equal(&server, &tally).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_without_a_control_plane_keeps_all_for_the_next_start() {
    let _alone = alone().await;
    let fixture = Upstream::fixture().await;
    let mut server = Config::new().start().await;
    let mut gateway = GatewayConfig::new().http("fixture", &fixture.url()).control_plane(&server).start().await;
    assert!(server.stop().await.success());
    let callers = Callers::start(&gateway).await;
    callers.go_on(1).await;
    let tally = callers.finish().await;
    assert!(gateway.stop().await.success());
    server.start().await;
    gateway.start().await;
    delivered(&gateway, &server, &tally).await;
    assert!(tally.unanswered == 0 && !tally.answered.is_empty());
    assert_equal(&server, &tally).await;
    let actions = server.client().sql("SELECT action, count(*) FROM audit_log WHERE action LIKE 'operator.gateway%' GROUP BY action ORDER BY action").await;
    assert_eq!(actions, [[json!("operator.gateway_started"), json!(2)], [json!("operator.gateway_stopped"), json!(1)]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk_calls_go_on_unless_audit_is_set_to_fail_closed() {
    let _alone = alone().await;
    let fixture = Upstream::fixture().await;
    for (on_failure, goes_on) in [("open", true), ("closed", false)] {
        let Some(disk) = Disk::new() else { return };
        let filler = disk.fill(ROOM);
        // The control plane is away, so nothing leaves the spool.
        let gateway = GatewayConfig::new()
            .http("fixture", &fixture.url())
            .with(json!({ "control_plane": { "spool": { "path": disk.path().join("spool") } } }))
            .with(json!({ "observability": { "audit": { "on_failure": on_failure } } }))
            .start()
            .await;
        let client = gateway.client().await;
        let mut refused = None;
        for _ in 0..EVENTS {
            let reply = client.call("fixture__echo", json!({ "message": "hi" })).await;
            refused = reply.message.get("error").cloned();
            if refused.is_some() {
                break;
            }
        }
        let metrics = gateway.metrics().await;
        assert!(metrics.total("mcpg_gateway_audit_failures_total") > 0.0, "{on_failure}");
        let lost = metrics.sum_by("mcpg_gateway_telemetry_lost_total", &["stream"]);
        assert!(lost[&vec!["samples".to_owned()]] > 0.0, "samples made room: {lost:?}");
        match refused {
            None => assert!(goes_on, "a call without a record was let through"),
            Some(error) => {
                assert!(!goes_on, "{error}");
                assert!(error["message"].as_str().unwrap().contains("record"), "{error}");
            }
        }
        std::fs::remove_file(filler).unwrap();
        // The disk is tried again a second after it was found full.
        eventually("a call to go on", ARRIVAL, async || {
            client.call("fixture__echo", json!({ "message": "hi" })).await.message.get("result").cloned()
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_takes_no_decision_that_a_call_waited_for() {
    let _alone = alone().await;
    let Some(disk) = Disk::new() else { return };
    let fixture = Upstream::fixture().await;
    let mut server = Config::new().start().await;
    let closed = json!({ "observability": { "audit": { "on_failure": "closed" } } });
    let spool = json!({ "control_plane": { "spool": { "path": disk.path().join("spool") } } });
    let config = GatewayConfig::new().http("fixture", &fixture.url()).control_plane(&server).with(closed).with(spool);
    let mut gateway = config.start().await;
    assert!(server.stop().await.success());
    let callers = Callers::start(&gateway).await;
    callers.go_on(1).await;
    callers.doubt();
    disk.cut_power();
    let tally = callers.finish().await;
    gateway.kill();
    disk.power_up();
    server.start().await;
    gateway.start().await;
    delivered(&gateway, &server, &tally).await;
    let client = server.client();
    let (samples, permits) = (by_request(&client, SAMPLES).await, by_request(&client, PERMITS).await);
    assert!(!tally.answered.is_empty());
    assert_told("ledger", &permits, &tally);
    // The last samples may be gone with the power; none is doubled, and none has no decision.
    assert!(samples.iter().all(|(id, count)| *count == 1 && permits.contains_key(id)), "{samples:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_hangs_holds_up_no_other_call() {
    let _alone = alone().await;
    let Some(disk) = Disk::new() else { return };
    let fixture = Upstream::fixture().await;
    let server = Config::new().start().await;
    let spool = json!({ "control_plane": { "spool": { "path": disk.path().join("spool") } } });
    let config = GatewayConfig::new().http("fixture", &fixture.url()).control_plane(&server).with(spool);
    let gateway = config.start().await;
    let mut clients = Vec::new();
    for _ in 0..8 {
        clients.push(gateway.client().await);
    }
    let frozen = disk.freeze();
    let mut tasks = Vec::new();
    for client in clients {
        tasks.push(tokio::spawn(async move {
            let mut done = BTreeSet::new();
            for _ in 0..20 {
                done.extend(call(&client).await);
            }
            done
        }));
    }
    eventually("all but one client to be served", ARRIVAL, async || {
        (tasks.iter().filter(|task| task.is_finished()).count() >= tasks.len() - 1).then_some(())
    })
    .await;
    drop(frozen);
    let mut tally = Tally::default();
    for task in tasks {
        tally.answered.extend(task.await.unwrap());
    }
    assert_eq!(tally.answered.len(), 8 * 20);
    delivered(&gateway, &server, &tally).await;
    assert_equal(&server, &tally).await;
}
