//! SQL over HTTP on a long history, beside DuckDB and ClickHouse on the same Parquet files in the same run; what a
//! sample takes on disk; and dashboard queries from the rollups.
//!
//! The history is the fleet's last week, sent in order, with ids of their own for all samples. Then the server is
//! drained and started again, so that all of it lies in the tables and nothing in memory. Each query runs once untimed
//! and five times timed, and the median counts: for the server from sending the request to the last byte of its JSON
//! answer; for the others, which run in a Python process, from the call until all rows are fetched. While one is timed
//! the others idle. A query counts only if all give the same answer. Where quantiles are estimated, the server's answer
//! must be within 1 % of the exact one, which DuckDB computes untimed; the others' estimates are theirs.
//!
//! The files are as the flushes left them. For the rollups the number of samples hardly matters; that of windows,
//! series and flushes does.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use mcpg::model::{Clock, SystemClock};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::Result;
use super::figures::{geometric_mean, median, mib, ms, readable};
use super::options::Options;
use super::report::{Budget, Finding, say};
use super::samples::{Past, tell_past};
use super::server::{Home, Server, folder_bytes};

/// The history's length.
const SPAN: TimeDelta = TimeDelta::days(7);
/// Timed runs of each query, after one that is not.
const RUNS: usize = 5;
/// Geometric mean of the speeds relative to the better of the other engines.
const RELATIVE_SPEED: f64 = 0.8;
const BYTES_A_SAMPLE: f64 = 80.0;
/// For a dashboard query on so many samples.
const DASHBOARD_MS: f64 = 100.0;
const DASHBOARD_SAMPLES: u64 = 100_000_000;
/// By how much numbers of two answers may differ: sums of doubles depend on their order.
const ROUNDING: f64 = 1e-9;
/// By how much an estimated quantile may differ from the exact one.
const QUANTILE_ERROR: f64 = 0.01;

/// A question that a person would ask of the samples.
struct Question {
    asks: &'static str,
    sql: &'static str,
    estimate: Option<Estimate>,
}

/// How the other engines are asked for estimated quantiles, which have no common name; and how DuckDB is for exact
/// ones.
struct Estimate {
    duckdb: &'static str,
    clickhouse: &'static str,
    exact: &'static str,
}

impl Question {
    const fn exact(asks: &'static str, sql: &'static str) -> Self {
        Self { asks, sql, estimate: None }
    }

    fn duckdb(&self) -> &'static str {
        self.estimate.as_ref().map_or(self.sql, |estimate| estimate.duckdb)
    }

    fn clickhouse(&self) -> &'static str {
        self.estimate.as_ref().map_or(self.sql, |estimate| estimate.clickhouse)
    }

    /// What DuckDB is asked for the answer that the server's is held against.
    fn truth(&self) -> &'static str {
        self.estimate.as_ref().map_or(self.sql, |estimate| estimate.exact)
    }
}

const QUESTIONS: [Question; 8] = [
    Question {
        asks: "p50 and p99 of each tool",
        sql: include_str!("queries/quantiles.sql"),
        estimate: Some(Estimate {
            duckdb: include_str!("queries/quantiles.duckdb.sql"),
            clickhouse: include_str!("queries/quantiles.clickhouse.sql"),
            exact: include_str!("queries/quantiles.exact.sql"),
        }),
    },
    Question::exact("errors of a day", include_str!("queries/errors_of_a_day.sql")),
    Question::exact("top callers", include_str!("queries/top_callers.sql")),
    Question::exact("slowest calls of a plugin", include_str!("queries/slowest_calls.sql")),
    Question::exact("one call by its id", include_str!("queries/one_call.sql")),
    Question::exact("distinct callers and sessions", include_str!("queries/distinct_callers.sql")),
    Question::exact("hourly series of a tool", include_str!("queries/hourly_series.sql")),
    Question::exact("all samples summed up", include_str!("queries/all.sql")),
];

const DASHBOARD: [(&str, &str); 3] = [
    ("every tool in the last day", include_str!("queries/dashboard_tools.sql")),
    ("a tool's hours in a week", include_str!("queries/dashboard_hours.sql")),
    ("the ten worst tools of a week", include_str!("queries/dashboard_worst.sql")),
];

/// Measures it.
///
/// # Errors
/// When samples are missing, an engine fails, or answers differ.
pub(crate) async fn measure(options: &Options) -> Result<Vec<Finding>> {
    let home = Home::new("")?;
    let until = SystemClock.now();
    let past = tell(&home, until, options.history()).await?;
    let server = home.start().await?;
    for count in
        ["count(*) FROM tool_invocations", "sum(calls) FROM tool_usage_hourly", "sum(calls) FROM tool_usage_daily"]
    {
        let counted = server.number(&format!("SELECT {count}")).await?;
        if counted != past.samples {
            return Err(format!("{} samples were acknowledged, and {count} says {counted}", past.samples).into());
        }
    }
    let table = home.store().join("orgs/default/tool_invocations");
    let filled = |text: &str| {
        let (day, since) = (until - TimeDelta::days(3), until - TimeDelta::days(1));
        let text = text.replace("{day}", &day.format("%Y-%m-%d").to_string()).replace("{id}", &past.some_id);
        text.replace("{since}", &since.format("%Y-%m-%dT%H:%M:%SZ").to_string())
    };

    say("query: the server");
    let mut ours = Vec::new();
    for question in &QUESTIONS {
        ours.push(ask(&server, &filled(question.sql)).await?);
    }
    let texts = |of: fn(&Question) -> &'static str| QUESTIONS.iter().map(|question| filled(of(question))).collect();
    say("query: DuckDB");
    let duckdb = Task::new("duckdb", &table, texts(Question::duckdb), RUNS).run().await?;
    say("query: ClickHouse");
    let clickhouse = Task::new("clickhouse", &table, texts(Question::clickhouse), RUNS).run().await?;
    let truth = Task::new("duckdb", &table, texts(Question::truth), 0).run().await?;

    let mut findings = vec![stored(&home, &past, &duckdb)?];
    findings.extend(compared(&past, &ours, &duckdb, &clickhouse, &truth)?);
    for (asks, text) in DASHBOARD {
        findings.push(dashboard(asks, &ask(&server, &filled(text)).await?, past.samples));
    }
    server.kill().await?;
    Ok(findings)
}

/// Has a server store the history and drain.
async fn tell(home: &Home, until: DateTime<Utc>, samples: u64) -> Result<Past> {
    say(&format!("query: storing {samples} samples of {} days", SPAN.num_days()));
    let server = Arc::new(home.start().await?);
    let past = tell_past(Arc::clone(&server), until - SPAN, until, samples).await?;
    Arc::into_inner(server).ok_or("the server is still in use")?.drain().await?;
    Ok(past)
}

/// An engine's answer to a question.
#[derive(Debug, Deserialize)]
struct Answered {
    /// Times of the timed runs.
    ms: Vec<f64>,
    rows: Vec<Vec<Value>>,
}

impl Answered {
    fn median(&self) -> f64 {
        median(&self.ms)
    }
}

/// What another engine says of the same files.
#[derive(Debug, Deserialize)]
struct Engine {
    version: String,
    files: u64,
    /// Bytes of these files.
    bytes: u64,
    answers: Vec<Answered>,
}

async fn ask(server: &Server, text: &str) -> Result<Answered> {
    let (rows, _) = server.sql(text).await?;
    let mut times = Vec::with_capacity(RUNS);
    for _ in 0..RUNS {
        times.push(ms(server.sql(text).await?.1));
    }
    Ok(Answered { ms: times, rows })
}

/// What another engine is to do.
#[derive(Debug, Serialize)]
struct Task<'a> {
    engine: &'static str,
    /// The folder of the Delta table.
    table: &'a Path,
    queries: Vec<String>,
    /// Timed runs of each query, after one that is not.
    runs: usize,
}

impl<'a> Task<'a> {
    fn new(engine: &'static str, table: &'a Path, queries: Vec<String>, runs: usize) -> Self {
        Self { engine, table, queries, runs }
    }

    async fn run(&self) -> Result<Engine> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let python = root.join(".venv/bin/python");
        if !python.exists() {
            return Err("there is no Python environment .venv: run `make bench`".into());
        }
        let mut child = Command::new(python)
            .arg(root.join("benches/budgets/engines.py"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        // Taken and dropped, so that the script sees the end of its input.
        child.stdin.take().ok_or("no standard input")?.write_all(&serde_json::to_vec(self)?).await?;
        let output = child.wait_with_output().await?;
        if !output.status.success() {
            return Err(format!("{}: {}", self.engine, String::from_utf8_lossy(&output.stderr)).into());
        }
        let engine: Engine = serde_json::from_slice(&output.stdout)?;
        let all = engine.answers.len() == self.queries.len();
        if all { Ok(engine) } else { Err(format!("{} left a question unanswered", self.engine).into()) }
    }
}

fn stored(home: &Home, past: &Past, files: &Engine) -> Result<Finding> {
    let whole = folder_bytes(&home.store())?;
    let rollups = folder_bytes(&home.store().join("orgs/default/tool_usage_hourly"))?
        + folder_bytes(&home.store().join("orgs/default/tool_usage_daily"))?;
    let note = format!(
        "{} samples in {} files of {} MiB; the two rollups {} MiB, the whole store {} MiB",
        readable(past.samples as f64),
        files.files,
        readable(mib(files.bytes)),
        readable(mib(rollups)),
        readable(mib(whole))
    );
    let detail = json!({
        "samples": past.samples, "files": files.files, "bytes": files.bytes, "store_bytes": whole, "rollup_bytes": rollups,
        "seconds_to_acknowledge": past.seconds,
    });
    let value = files.bytes as f64 / past.samples as f64;
    let finding = Finding::new("query", "stored bytes a sample, all ids filled", value, "bytes");
    Ok(finding.budget(Budget::AtMost(BYTES_A_SAMPLE)).note(note).detail(detail))
}

fn compared(
    past: &Past,
    ours: &[Answered],
    duckdb: &Engine,
    clickhouse: &Engine,
    truth: &Engine,
) -> Result<Vec<Finding>> {
    let (mut findings, mut to_duckdb, mut to_better) = (Vec::new(), Vec::new(), Vec::new());
    let answers = ours.iter().zip(&duckdb.answers).zip(&clickhouse.answers).zip(&truth.answers);
    for (question, (((own, duck), click), truth)) in QUESTIONS.iter().zip(answers) {
        let (own_error, other_error) =
            if question.estimate.is_some() { (QUANTILE_ERROR, f64::INFINITY) } else { (ROUNDING, ROUNDING) };
        for (engine, other, error) in
            [("truth", truth, own_error), ("DuckDB", duck, other_error), ("ClickHouse", click, other_error)]
        {
            agree(&own.rows, &other.rows, error)
                .map_err(|how| format!("{}: not the answer of {engine}: {how}", question.asks))?;
        }
        let (own_ms, duck_ms, click_ms) = (own.median(), duck.median(), click.median());
        to_duckdb.push(duck_ms / own_ms);
        to_better.push(duck_ms.min(click_ms) / own_ms);
        let note = format!("DuckDB {} ms, ClickHouse {} ms", readable(duck_ms), readable(click_ms));
        let detail = json!({ "ms": own.ms, "duckdb_ms": duck.ms, "clickhouse_ms": click.ms, "rows": own.rows.len() });
        findings.push(Finding::new("query", format!("SQL: {}", question.asks), own_ms, "ms").note(note).detail(detail));
    }
    let mean = geometric_mean(&to_better);
    let note = format!(
        "{} × DuckDB {} alone; ClickHouse is {}; {} samples, over HTTP",
        readable(geometric_mean(&to_duckdb)),
        duckdb.version,
        clickhouse.version,
        readable(past.samples as f64)
    );
    let what = "SQL: speed relative to the better of DuckDB and ClickHouse, geometric mean";
    findings.push(Finding::new("query", what, mean, "×").budget(Budget::AtLeast(RELATIVE_SPEED)).note(note));
    Ok(findings)
}

fn dashboard(asks: &str, answered: &Answered, samples: u64) -> Finding {
    let detail = json!({ "ms": answered.ms, "rows": answered.rows.len(), "samples": samples });
    let note = format!("{} rows, from {} samples", answered.rows.len(), readable(samples as f64));
    let what = format!("from the rollups: {asks}");
    let finding = Finding::new("query", what, answered.median(), "ms")
        .budget(Budget::AtMost(DASHBOARD_MS))
        .note(note)
        .detail(detail);
    if samples < DASHBOARD_SAMPLES {
        finding.only(format!("on {} samples only", readable(samples as f64)))
    } else {
        finding
    }
}

/// Says how two answers differ, if they do: numbers by more than a share `error`, times by a second, other cells at
/// all.
fn agree(ours: &[Vec<Value>], theirs: &[Vec<Value>], error: f64) -> Result<(), String> {
    if ours.len() != theirs.len() {
        return Err(format!("{} rows, and there {}", ours.len(), theirs.len()));
    }
    let same = |own: &[Value], other: &[Value]| {
        own.len() == other.len() && own.iter().zip(other).all(|(own, other)| same_cell(own, other, error))
    };
    match ours.iter().zip(theirs).find(|(own, other)| !same(own, other)) {
        Some((own, other)) => Err(format!("{}, and there {}", json!(own), json!(other))),
        None => Ok(()),
    }
}

fn same_cell(own: &Value, other: &Value, error: f64) -> bool {
    match (own, other) {
        (Value::Number(own), Value::Number(other)) => match (own.as_f64(), other.as_f64()) {
            (Some(own), Some(other)) => own == other || (own - other).abs() <= error * other.abs(),
            _ => false,
        },
        (Value::String(own), Value::String(other)) if own != other => {
            to_the_second(own).is_some_and(|time| to_the_second(other) == Some(time))
        }
        _ => own == other,
    }
}

/// A time as any of the engines writes it, in UTC.
fn to_the_second(text: &str) -> Option<DateTime<Utc>> {
    let text = format!("{}Z", text.get(..19)?.replace(' ', "T"));
    Some(DateTime::parse_from_rfc3339(&text).ok()?.to_utc())
}
