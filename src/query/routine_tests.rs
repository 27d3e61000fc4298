//! Every routine that is offered, called as a person would call it, and called with the worst that fits.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::fixture::{World, small};
use super::{QueryError, SqlLimits};

const CALLS: &str = include_str!("../../tests/it/cases/routines.txt");

/// The rows that aggregates and window functions are called over.
const ROWS: &str = "(VALUES (1, 1.5, 'a', true), (2, 2.5, 'b', false), (3, 4.0, 'c', true)) AS r(n, x, s, b)";

struct Call {
    expression: &'static str,
    sql: String,
    expected: Option<Value>,
}

fn calls() -> Vec<Call> {
    let lines = CALLS.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let (call, expected) = line.rsplit_once(" => ").unwrap();
            let (sql, expression) = match call.split_once(": ") {
                Some(("r", call)) if call.contains(" FROM (") => (format!("SELECT {call} FROM {ROWS})"), call),
                Some(("r", call)) if call.ends_with(" GROUP") => {
                    (format!("SELECT {} FROM {ROWS} GROUP BY b", call.trim_end_matches(" GROUP")), call)
                }
                Some(("r", call)) => (format!("SELECT {call} FROM {ROWS}"), call),
                Some(("w", call)) => (format!("SELECT {call}, n FROM {ROWS} ORDER BY n"), call),
                Some(("t", call)) => (format!("SELECT * FROM {call}"), call),
                _ => (format!("SELECT {call}"), call),
            };
            let expected = if expected == "*" { None } else { Some(serde_json::from_str(expected).unwrap()) };
            Call { expression, sql, expected }
        })
        .collect()
}

/// The names that are offered, of one kind or of all.
async fn routines(world: &World, kind: &str) -> Vec<String> {
    let sql = format!("SELECT routine_name FROM information_schema.routines WHERE function_type LIKE '{kind}'");
    let answer = world.json(&sql, vec![]).await.unwrap();
    answer["rows"].as_array().unwrap().iter().map(|row| row[0].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_routine_answers_a_sensible_call() {
    let world = World::new(small()).await;
    let calls = calls();
    let mut faults = Vec::new();
    for name in routines(&world, "%").await {
        let is_called = |call: &Call| {
            let mut words = call.expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            words.any(|word| word.eq_ignore_ascii_case(&name))
        };
        if !calls.iter().any(is_called) {
            faults.push(format!("{name} is offered, and not called"));
        }
    }
    for call in &calls {
        match world.json(&call.sql, vec![]).await {
            Ok(answer) => {
                let got = &answer["rows"][0][0];
                let same = |expected: &Value| {
                    expected == got
                        || expected.as_f64().is_some_and(|e| got.as_f64().is_some_and(|g| (e - g).abs() < 1e-9))
                };
                if !call.expected.as_ref().is_none_or(same) {
                    faults.push(format!("{}\n  gave {got} and not {:?}", call.sql, call.expected));
                }
            }
            Err(error) => faults.push(format!("{}\n  {}: {error}", call.sql, error.code())),
        }
    }
    assert!(faults.is_empty(), "{} faults\n{}", faults.len(), faults.join("\n"));
}

/// Values at the ends of their types, and of the wrong type.
const EXTREMES: [&str; 22] = [
    "NULL",
    "(-9223372036854775807 - 1)",
    "9223372036854775807",
    "18446744073709551615",
    "0",
    "-1",
    "CAST(-128 AS TINYINT)",
    "1.7976931348623157e308",
    "CAST('NaN' AS DOUBLE)",
    "CAST('-Infinity' AS DOUBLE)",
    "CAST('99999999999999999999999999999999999999' AS DECIMAL(38, 0))",
    "''",
    "'a'",
    "'\u{1f600}\u{301}('",
    "'[1, {\"a\": 1e999}]'",
    "DATE '9999-12-31'",
    "TIMESTAMP '2262-04-11T23:47:16Z'",
    "INTERVAL '178956970 years'",
    "[1, NULL, 9223372036854775807]",
    "['', NULL, 'b']",
    "[]",
    "true",
];

/// Numbers that look like chance and are the same each time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> &'static str {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        EXTREMES[usize::try_from(self.0 >> 33).unwrap() % EXTREMES.len()]
    }
}

/// Runs the statements, and tells which the server was at fault for.
async fn faults(world: &World, statements: impl IntoIterator<Item = String>) -> BTreeSet<String> {
    let mut faults = BTreeSet::new();
    // What the server says of each: shown when the test fails. A second test that begins so finds it begun.
    tracing_subscriber::fmt().with_test_writer().with_max_level(tracing::Level::ERROR).try_init().ok();
    for sql in statements {
        if let Err(error @ (QueryError::Internal | QueryError::Storage)) = world.json(&sql, vec![]).await {
            faults.insert(format!("{sql}\n  {}", error.code()));
        }
    }
    faults
}

#[tokio::test(flavor = "multi_thread")]
async fn no_call_of_a_function_with_the_worst_values_is_a_fault_of_the_server() {
    let world = World::new(SqlLimits { queue_wait: std::time::Duration::from_secs(60), ..small() }).await;
    let mut statements = Vec::new();
    let mut dice = Dice(7);
    for name in routines(&world, "SCALAR").await {
        for round in 0..44 {
            let (one, arity) = (EXTREMES.get(round), 2 + round % 3);
            let args: Vec<&str> = one.map_or_else(|| (0..arity).map(|_| dice.roll()).collect(), |one| vec![*one]);
            let arity = args.len();
            // Half as constants, which are folded as the query is planned; half as columns, which are not.
            if round % 2 == 0 {
                statements.push(format!("SELECT {name}({})", args.join(", ")));
            } else {
                let names: Vec<_> = (0..arity).map(|index| format!("c{index}")).collect();
                let (names, args) = (names.join(", "), args.join(", "));
                statements.push(format!("SELECT {name}({names}) FROM (VALUES ({args})) AS v({names})"));
            }
        }
    }
    for name in routines(&world, "AGGREGATE").await {
        for value in EXTREMES {
            statements.push(format!("SELECT {name}(a) FROM (VALUES ({value}), ({value})) AS v(a)"));
            statements.push(format!("SELECT {name}(a) OVER (ORDER BY a) FROM (VALUES ({value}), ({value})) AS v(a)"));
            let other = dice.roll();
            statements.push(format!("SELECT {name}(a, {other}) FROM (VALUES ({value}), ({value})) AS v(a)"));
        }
    }
    for name in routines(&world, "WINDOW").await {
        for value in EXTREMES {
            statements.push(format!("SELECT {name}(a, a) OVER (ORDER BY a) FROM (VALUES ({value})) AS v(a)"));
            statements.push(format!("SELECT {name}({value}) OVER (ORDER BY a) FROM (VALUES (1), (2)) AS v(a)"));
        }
    }
    for operator in
        ["+", "-", "*", "/", "%", "||", "<<", ">>", "&", "|", "=", "<", "~", "LIKE", "->", "->>", "@>", "AND"]
    {
        for left in EXTREMES {
            for _ in 0..3 {
                let right = dice.roll();
                statements.push(format!("SELECT {left} {operator} {right}"));
                statements.push(format!("SELECT a {operator} b FROM (VALUES ({left}, {right})) AS v(a, b)"));
            }
        }
    }
    for data_type in [
        "TINYINT",
        "INT",
        "BIGINT",
        "BIGINT UNSIGNED",
        "DOUBLE",
        "DECIMAL(38, 10)",
        "DATE",
        "TIMESTAMP",
        "TIME",
        "BOOLEAN",
        "INTERVAL",
        "VARCHAR",
        "BYTEA",
    ] {
        for value in EXTREMES {
            statements.push(format!("SELECT CAST({value} AS {data_type})"));
            statements.push(format!("SELECT TRY_CAST(a AS {data_type}) FROM (VALUES ({value})) AS v(a)"));
        }
    }
    let found = faults(&world, statements).await;
    assert!(found.is_empty(), "{} faults\n{}", found.len(), found.into_iter().collect::<Vec<_>>().join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_number_past_its_type_is_an_error_of_the_query_and_never_wraps() {
    // What was refused may take a moment to notice; the next one waits for it.
    let patient = std::time::Duration::from_secs(60);
    let world = World::new(SqlLimits { queue_wait: patient, time: patient, ..small() }).await;
    let most = "9223372036854775807";
    let refused = [
        format!("SELECT {most} + 1"),
        format!("SELECT a + 1 FROM (VALUES ({most})) AS v(a)"),
        format!("SELECT 1 + a FROM (VALUES ({most})) AS v(a)"),
        format!("SELECT -2 - a FROM (VALUES ({most})) AS v(a)"),
        format!("SELECT a * 2 FROM (VALUES ({most})) AS v(a)"),
        format!("SELECT -(a - 1) FROM (VALUES (-{most})) AS v(a)"),
        format!("SELECT 1 FROM (VALUES ({most})) AS v(a) WHERE a + 1 < 0"),
        format!("SELECT count(*) FROM (VALUES ({most})) AS v(a) GROUP BY a + 1"),
        format!("SELECT 1 FROM (VALUES ({most})) AS v(a) ORDER BY a + 1"),
        format!("SELECT 1 FROM (VALUES ({most})) AS v(a) JOIN (VALUES (1)) AS w(b) ON a + 1 = b"),
        format!("SELECT (SELECT a + 1 FROM (VALUES ({most})) AS v(a))"),
        format!("SELECT sum(a) FROM (VALUES ({most}), (1)) AS v(a)"),
        format!("SELECT sum(DISTINCT a) FROM (VALUES ({most}), (1)) AS v(a)"),
        format!("SELECT b, sum(a) FROM (VALUES ({most}, 1), (1, 1), (1, 2)) AS v(a, b) GROUP BY b"),
        format!("SELECT sum(a + 1) FROM (VALUES ({most})) AS v(a)"),
        format!("SELECT sum(a) OVER (ORDER BY a) FROM (VALUES ({most}), (1)) AS v(a)"),
        format!("SELECT sum(a) OVER (ORDER BY a ROWS 1 PRECEDING) FROM (VALUES ({most}), (1)) AS v(a)"),
        format!(
            "SELECT sum(a) OVER (ORDER BY a ROWS BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING) FROM (VALUES ({most}), (1)) AS v(a)"
        ),
        format!("SELECT abs(a - 1) FROM (VALUES (-{most})) AS v(a)"),
        format!("SELECT (a - 1) / -1 FROM (VALUES (-{most})) AS v(a)"),
        format!("SELECT CAST({most} AS INT)"),
        "SELECT CAST(300 AS TINYINT)".to_owned(),
        "SELECT power(10, 30)::bigint".to_owned(),
        "SELECT factorial(30)".to_owned(),
        format!("SELECT lcm({most}, 9223372036854775806)"),
        "SELECT TIMESTAMP '2026-01-01T00:00:00Z' + INTERVAL '178956970 years'".to_owned(),
    ];
    let mut faults = Vec::new();
    for sql in refused {
        match world.json(&sql, vec![]).await {
            Err(QueryError::Invalid { .. }) => {}
            other => faults.push(format!("{sql}\n  {other:?}")),
        }
    }
    let exact = [
        (format!("SELECT sum(a) FROM (VALUES ({most}), (1), (-1)) AS v(a)"), json!(i64::MAX)),
        (format!("SELECT {most} - 1"), json!(i64::MAX - 1)),
        ("SELECT -9223372036854775808".to_owned(), json!(i64::MIN)),
        ("SELECT sum(a) FROM (VALUES (1), (NULL), (2)) AS v(a)".to_owned(), json!(3)),
        ("SELECT sum(a) FROM (VALUES (1)) AS v(a) WHERE a > 1".to_owned(), Value::Null),
        ("SELECT sum(1.5)".to_owned(), json!(1.5)),
        (
            "SELECT sum(a)::text FROM (VALUES (CAST('99999999999999999999999999999999999999' AS DECIMAL(38, 0))), \
             (CAST('99999999999999999999999999999999999999' AS DECIMAL(38, 0)))) AS v(a)"
                .to_owned(),
            json!("199999999999999999999999999999999999998"),
        ),
        ("SELECT sum(CAST(a AS DECIMAL(5, 2))) FROM (VALUES (1.25), (2.5)) AS v(a)".to_owned(), json!(3.75)),
    ];
    for (sql, expected) in exact {
        match world.json(&sql, vec![]).await {
            Ok(answer) if answer["rows"][0][0] == expected => {}
            other => faults.push(format!("{sql}\n  {other:?}")),
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
