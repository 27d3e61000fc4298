//! The engine as a whole: the cases, and the behaviours that a case cannot tell.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::TryStreamExt;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};
use serde_json::{Value, json};

use super::case::{Case, Expected};
use super::case_files::cases;
use super::fixture::{ACME, World, samples, small, view};
use super::formats::Format;
use super::watchdog::resident_bytes;
use super::{Asker, Engine, Evidence, QueryError, SqlLimits, SqlRequest};
use crate::storage::StorageError;
use crate::storage::table::DataFile;

/// Runs the cases of a folder: those that may end by their time with a short one, the others with a long one. A build
/// without optimization plans some for seconds, on a machine that does other things too.
async fn run(folder: &str) -> [World; 2] {
    let times = [Duration::from_secs(10), Duration::from_secs(60)];
    let [short, long] = times.map(|time| SqlLimits { time, ..small() });
    let worlds = [World::new(short).await, World::new(long).await];
    let found = cases(folder);
    assert!(!found.is_empty(), "no cases in {folder}");
    let mut faults = Vec::new();
    for (file, document) in found {
        let case = Case::of(&file, &document);
        let may_end_by_time = match &case.expected {
            Expected::Refused(codes) => codes.iter().any(|code| code == "query_timeout"),
            Expected::Rows { .. } => false,
            Expected::Harmless => true,
        };
        let which = usize::from(!may_end_by_time);
        let (world, time) = (&worlds[which], times[which]);
        // What was refused may take a moment to notice; the next case is not to pay for it.
        for world in &worlds {
            idle(world).await;
        }
        let started = Instant::now();
        let answer = world.json(&case.sql, case.params.clone()).await;
        let checked = match &answer {
            Ok(answer) => case.check(Ok(answer)),
            Err(error) => case.check(Err((error.code(), &error.to_string()))),
        };
        faults.extend(checked.err());
        if started.elapsed() > 2 * time {
            faults.push(format!("{}\n  took {:?}", case.name, started.elapsed()));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    worlds
}

#[tokio::test(flavor = "multi_thread")]
async fn good_queries_answer_as_the_cases_say() {
    run("sql").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_queries_end_as_the_cases_say_and_the_engine_is_alive_within_its_memory() {
    for world in run("isolation").await {
        idle(&world).await;
        assert_eq!(
            world.json("SELECT count(*) AS n FROM tool_invocations", vec![]).await.unwrap()["rows"],
            json!([[12]])
        );
    }
    assert!(resident_bytes().unwrap() < 2 << 30, "{:?}", resident_bytes());
}

fn nobody() -> Asker {
    Asker::sql(None)
}

fn endless() -> SqlRequest {
    request("SELECT sum(a.value) FROM generate_series(1, 10000000000) a")
}

fn request(sql: &str) -> SqlRequest {
    SqlRequest { query: sql.to_owned(), params: Vec::new() }
}

async fn idle(world: &World) {
    tokio::time::timeout(Duration::from_secs(120), async {
        while world.engine.running() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("queries still run");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_query_more_than_may_run_is_refused_and_told_when_to_come_again() {
    let world = World::new(SqlLimits { concurrency: 1, rows: usize::MAX, ..small() }).await;
    let busy = world.engine.query(world.acme.clone(), request("SELECT * FROM generate_series(1, 9000000)"), nobody());
    let busy = busy.await.unwrap();
    let refused = world.engine.query(world.acme.clone(), request("SELECT 1"), nobody()).await.unwrap_err();
    assert_eq!((refused.code(), refused.status()), ("too_many_queries", 429));
    assert!(refused.retry_after().is_some());
    drop(busy);
    idle(&world).await;
    world.engine.query(world.acme.clone(), request("SELECT 1"), nobody()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_nobody_reads_any_more_stops_its_query() {
    let world = World::new(small()).await;
    let answer = world.engine.query(world.acme.clone(), endless(), nobody()).await.unwrap();
    assert_eq!(world.engine.running(), 1);
    drop(answer);
    idle(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_past_its_time_is_stopped() {
    let world = World::new(SqlLimits { time: Duration::from_millis(300), ..small() }).await;
    // On a busy machine it may be past its time before it has begun to answer.
    let error = match world.engine.query(world.acme.clone(), endless(), nobody()).await {
        Ok(answer) => answer.stream.try_collect::<Vec<_>>().await.unwrap_err(),
        Err(error) => error,
    };
    assert_eq!(error, QueryError::Timeout { limit: Duration::from_millis(300) });
    idle(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn past_the_resident_bound_a_query_is_stopped() {
    let world = World::new(SqlLimits { resident_bytes: 1, ..small() }).await;
    let answer = world.engine.query(world.acme.clone(), endless(), nobody()).await;
    let error = match answer {
        Ok(answer) => answer.stream.try_collect::<Vec<_>>().await.unwrap_err(),
        Err(error) => error,
    };
    assert_eq!(error.code(), "query_memory");
}

#[tokio::test(flavor = "multi_thread")]
async fn exactly_as_many_rows_as_allowed_are_answered_and_one_more_is_not() {
    let world = World::new(SqlLimits { rows: 5, ..small() }).await;
    let rows = |n: u64| format!("SELECT * FROM generate_series(1, {n})");
    assert_eq!(world.json(&rows(5), vec![]).await.unwrap()["rows"].as_array().unwrap().len(), 5);
    assert_eq!(world.json(&rows(6), vec![]).await.unwrap_err(), QueryError::TooManyRows { limit: 5 });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_file_is_the_servers_fault_and_does_not_tell_its_path() {
    let world = World::new(small()).await;
    for file in world.acme.samples.files.iter() {
        world.store.delete(&file.path).await.unwrap();
    }
    let error = world.json("SELECT max(duration_ms) FROM tool_invocations", vec![]).await.unwrap_err();
    assert_eq!((error.code(), error.status()), ("storage_unavailable", 503));
    assert!(!error.to_string().contains("orgs/"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_with_a_file_of_another_org_is_refused() {
    let mut world = World::new(small()).await;
    let mut files = world.acme.daily.files.as_ref().clone();
    files[0].path = "orgs/globex/tool_usage_daily/x.parquet".into();
    world.acme.daily.files = Arc::new(files);
    assert_eq!(world.json("SELECT 1", vec![]).await.unwrap_err(), QueryError::Internal);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_whose_times_cannot_match_is_not_opened() {
    let mut world = World::new(small()).await;
    let mut files = world.acme.samples.files.as_ref().clone();
    // 2026-03-04: the day's midnight, and its ninth hour.
    let midnight = i64::from(files[0].date) * 86_400_000_000;
    for file in &mut files {
        file.time_range = Some((midnight + 9 * 3_600_000_000, midnight + 11 * 3_600_000_000));
        world.store.delete(&file.path).await.unwrap();
    }
    world.acme.samples.files = Arc::new(files);
    for condition in [
        "date = '2026-03-05'",
        "date > '2026-03-04'",
        "started_at >= '2026-03-05T00:00:00Z'",
        "started_at < '2026-03-04T08:00:00Z'",
        "started_at BETWEEN '2026-03-04T12:00:00Z' AND '2026-03-04T13:00:00Z'",
    ] {
        world.json(&format!("SELECT request_id FROM tool_invocations WHERE {condition}"), vec![]).await.unwrap();
    }
    world
        .json("SELECT request_id FROM tool_invocations WHERE started_at > '2026-03-04T10:00:00Z'", vec![])
        .await
        .unwrap_err();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_window_of_a_rollup_opens_only_files_of_its_day() {
    let world = World::new(small()).await;
    for file in world.acme.hourly.files.iter() {
        world.store.delete(&file.path).await.unwrap();
    }
    let answer =
        |condition: &str| world.json_owned(format!("SELECT sum(calls) AS n FROM tool_usage_hourly WHERE {condition}"));
    assert_eq!(answer("window_start >= '2026-03-05T00:00:00Z'").await.unwrap()["rows"], json!([[3]]));
    answer("window_start >= '2026-03-04T00:00:00Z'").await.unwrap_err();
}

#[tokio::test(flavor = "multi_thread")]
async fn wherever_the_line_between_stored_and_live_runs_the_answers_are_the_same() {
    let world = World::new(small()).await;
    let all = samples("acme", ACME);
    let questions = [
        "SELECT tool, count(*), sum(duration_ms), max(started_at) FROM tool_invocations GROUP BY tool ORDER BY tool",
        "SELECT request_id FROM tool_invocations WHERE caller = 'user:bob' ORDER BY request_id",
        "SELECT window_start, tool, workspace, calls, sum_ms, latency FROM tool_usage_hourly ORDER BY 1, 2, 3",
        "SELECT window_start, tool, workspace, errors, max_ms, latency FROM tool_usage_daily ORDER BY 1, 2, 3",
    ];
    let mut answers: Vec<Vec<Value>> = Vec::new();
    for flushed in [2, 6, 11, 12] {
        let acme = view(&world.store, "acme", &all, (flushed, flushed)).await;
        let mut told = Vec::new();
        for question in questions {
            let result = world.engine.query(acme.clone(), request(question), nobody()).await.unwrap();
            let body = super::formats::begin(result, Format::Json).await.unwrap().body;
            let bytes = body.try_collect::<Vec<_>>().await.unwrap().concat();
            told.push(serde_json::from_slice(&bytes).unwrap());
        }
        answers.push(told);
    }
    assert!(answers.windows(2).all(|pair| pair[0] == pair[1]), "{answers:#?}");
}

impl World {
    async fn json_owned(&self, sql: String) -> Result<Value, QueryError> {
        self.json(&sql, vec![]).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_is_told_with_its_files_and_bytes_and_without_a_path() {
    let world = World::new(small()).await;
    let query = "SELECT tool, count(*) FROM tool_invocations WHERE started_at >= '2026-03-04T00:00:00Z' GROUP BY tool";
    for (explain, ran) in [("EXPLAIN", false), ("explain analyze", true)] {
        let answer = world.json(&format!("{explain} {query}"), vec![]).await.unwrap();
        let lines: Vec<_> = answer["rows"].as_array().unwrap().iter().map(|row| row[0].as_str().unwrap()).collect();
        let text = lines.join("\n");
        assert!(lines[0].starts_with("reads ") && text.contains("files=") && text.contains("AggregateExec"), "{text}");
        assert!(!text.contains("orgs/") && !text.contains(".parquet") && !text.contains("Metered"), "{text}");
        assert_eq!(text.contains("bytes_scanned"), ran, "{text}");
    }
    for refused in [
        "EXPLAIN VERBOSE SELECT 1",
        "EXPLAIN DELETE FROM tool_invocations",
        "EXPLAIN ANALYZE DROP TABLE tool_invocations",
    ] {
        assert_eq!(world.json(refused, vec![]).await.unwrap_err().code(), "sql_not_allowed", "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_that_would_read_too_much_is_refused_before_it_begins() {
    let everything = "SELECT max(duration_ms) FROM tool_invocations";
    let world = World::new(SqlLimits { scan_files: 1, ..small() }).await;
    let error = world.json(everything, vec![]).await.unwrap_err();
    assert_eq!((error.code(), error.status()), ("scan_too_large", 422));
    assert!(error.to_string().contains("started_at"), "{error}");
    world.json("SELECT max(duration_ms) FROM tool_invocations WHERE date = '2020-01-01'", vec![]).await.unwrap();
    world.json(&format!("EXPLAIN {everything}"), vec![]).await.unwrap();
    let own = [("acme".parse().unwrap(), 1)].into();
    let world = World::new(SqlLimits { scan_bytes_of: own, ..small() }).await;
    assert_eq!(world.json(everything, vec![]).await.unwrap_err().code(), "scan_too_large");
}

/// A running sum holds what is alike in what it is ordered by, and little else; a frame that reaches back by values
/// holds what these say. Neither is counted by the engine.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_window_holds_between_its_rows_is_charged() {
    let world = World::new(SqlLimits { time: Duration::from_secs(60), ..small() }).await;
    let windows = |over: &str, rows: u64| {
        format!(
            "SELECT count(x) FROM (SELECT sum(value) OVER ({over}) AS x FROM (SELECT value, value / 1000000000 AS one \
             FROM generate_series(1, {rows})))"
        )
    };
    let apart = "ORDER BY value";
    assert_eq!(world.json(&windows(apart, 200_000), vec![]).await.unwrap()["rows"], json!([[200_000]]));
    let near = "ORDER BY value RANGE BETWEEN 10 PRECEDING AND CURRENT ROW";
    assert_eq!(world.json(&windows(near, 200_000), vec![]).await.unwrap()["rows"], json!([[200_000]]));
    let error = world.json(&windows("ORDER BY one", 20_000_000), vec![]).await.unwrap_err();
    assert_eq!(error.code(), "query_memory");
}

/// What proves the files of a ledger, and counts for how many it was asked.
#[derive(Debug)]
struct Proofs(AtomicUsize, Arc<dyn ObjectStore>);

#[async_trait]
impl Evidence for Proofs {
    async fn prove(&self, file: &DataFile) -> Result<ObjectMeta, StorageError> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Err(StorageError::damaged(&file.path, "it is not there"))
    }

    fn store(&self) -> Arc<dyn ObjectStore> {
        Arc::clone(&self.1)
    }
}

/// A segment is read whole to be proved: that happens only within the bound of what a query reads, and only where it
/// runs.
#[tokio::test(flavor = "multi_thread")]
async fn segments_past_the_bound_are_not_even_proved() {
    let mut world = World::new(SqlLimits { scan_bytes: 1_500, ..small() }).await;
    let proofs = Arc::new(Proofs(AtomicUsize::new(0), Arc::clone(&world.store) as Arc<dyn ObjectStore>));
    let segment = |first: i64| DataFile {
        path: format!("orgs/acme/audit/segments/{first}.parquet").into(),
        size: 1_000,
        rows: 10,
        date: 0,
        time_range: None,
        seq_range: Some((first, first + 9)),
        id_range: None,
    };
    world.acme.audit.files = Arc::new(vec![segment(0), segment(10)]);
    world.acme.audit.evidence = Some(Arc::clone(&proofs) as Arc<dyn Evidence>);
    let asked = || proofs.0.load(Ordering::Relaxed);
    let everything = "SELECT max(action) FROM audit_log";
    assert_eq!(world.json(everything, vec![]).await.unwrap_err().code(), "scan_too_large");
    world.json(&format!("EXPLAIN {everything}"), vec![]).await.unwrap();
    world.json(&format!("{everything} WHERE seq >= 20"), vec![]).await.unwrap();
    assert_eq!(asked(), 0);
    let error = world.json(&format!("{everything} WHERE seq BETWEEN 12 AND 14"), vec![]).await.unwrap_err();
    assert_eq!((error.code(), asked()), ("storage_damaged", 1));
}

/// What a query has read of a file's footer is not read again.
#[tokio::test(flavor = "multi_thread")]
async fn footers_are_remembered() {
    let world = World::new(small()).await;
    // No row group of any file can have it, says its footer.
    let query = "SELECT count(*) AS n FROM tool_invocations WHERE duration_ms > 1e9";
    assert_eq!(world.json(query, vec![]).await.unwrap()["rows"], json!([[0]]));
    for file in world.acme.samples.files.iter() {
        world.store.delete(&file.path).await.unwrap();
    }
    assert_eq!(world.json(query, vec![]).await.unwrap()["rows"], json!([[0]]));
}

/// A window function over a whole input holds it: that is charged to the pool, and what it computes in one go is
/// bounded.
#[tokio::test(flavor = "multi_thread")]
async fn a_window_over_a_whole_input_is_charged_and_bounded() {
    let world = World::new(SqlLimits { time: Duration::from_secs(60), ..small() }).await;
    let windows = |rows: u64| {
        format!(
            "SELECT count(x) FROM (SELECT sum(value) OVER (ORDER BY value ROWS BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING) AS x \
             FROM generate_series(1, {rows}))"
        )
    };
    assert_eq!(world.json(&windows(100_000), vec![]).await.unwrap()["rows"], json!([[100_000]]));
    assert_eq!(world.json(&windows(20_000_000), vec![]).await.unwrap_err().code(), "query_memory");
}

#[tokio::test]
async fn a_frame_of_values_says_what_it_should_and_is_charged_for_what_it_reaches_over() {
    let world = World::new(SqlLimits { time: Duration::from_secs(60), ..small() }).await;
    let sums = |order: &str, by: &str| {
        format!(
            "SELECT sum(x) FROM (SELECT count(*) OVER ({by} ORDER BY value {order} RANGE BETWEEN 10 PRECEDING AND CURRENT ROW) AS x \
             FROM generate_series(1, 30000))"
        )
    };
    for (order, by, expected) in [
        ("ASC", "", 30_000 * 11 - 55),
        ("DESC", "", 30_000 * 11 - 55),
        // Of every third one there are three in reach, besides the row itself.
        ("ASC", "PARTITION BY value % 3", 30_000 * 4 - 3 * 6),
    ] {
        let answer = world.json(&sums(order, by), vec![]).await.unwrap();
        assert_eq!(answer["rows"], json!([[expected]]), "{order} {by}");
    }
}
