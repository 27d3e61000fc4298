//! What is refused before anything is planned.
//!
//! The text is bounded before it is parsed, because parsers and planners recurse and multiply: its bytes, its tokens,
//! its nesting, and its operators, since a chain of them is a tree as deep as it is long. The parsed statement is
//! bounded by what it would become: a common table expression is copied wherever it is named, so tables are counted
//! with those copies; and a condition is pushed down by putting what computes a column in its place, so where
//! `n + n AS n` is nested, columns are counted as often as that would name them.
//!
//! Allowed is one `SELECT`, `WITH` or `VALUES` over tables and offered functions. The list of what is refused makes
//! good errors and keeps values small; isolation does not rest on it, see [`super::session`].

mod ignored;
mod inspector;
mod pattern;
mod precedence;
mod scope;
mod tokens;
mod window;

use std::ops::ControlFlow;

use datafusion::execution::context::SQLOptions;
use datafusion::sql::parser::Statement as EngineStatement;
use datafusion::sql::sqlparser::ast::{Statement, Visit};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::parser::Parser;
use datafusion::sql::sqlparser::tokenizer::{Location, Token, TokenWithSpan, Tokenizer};
use hashbrown::HashSet;
use serde_json::Value as Json;

use self::inspector::Inspector;
use self::tokens::check_tokens;
use super::explain::Explain;
use super::{Position, QueryError, params};
use crate::model::schema::AUDIT_LOG;

/// How deep the parser itself may recurse.
const PARSER_DEPTH: usize = 128;

/// A statement that may be planned.
#[derive(Debug)]
pub(super) struct Checked {
    /// The statement, its parameters put in.
    pub(super) statement: EngineStatement,
    /// Whether its plan is asked for in place of its rows.
    pub(super) explain: Option<Explain>,
    /// Whether it can make or repeat large values, and so should run in small batches.
    pub(super) large_values: bool,
    /// Names that its tables may have, in lower case.
    pub(super) tables: HashSet<String>,
}

impl Checked {
    /// Whether it may read the ledger, whose texts are longer than others.
    pub(super) fn reads_ledger(&self) -> bool {
        self.tables.contains(AUDIT_LOG)
    }
}

/// The second line: what the planner made of a statement must be a query too.
pub(super) fn read_only() -> SQLOptions {
    SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false)
}

/// Refuses a text of more than `limit` bytes.
pub(super) fn check_size(text: &str, limit: usize) -> Result<(), QueryError> {
    if text.len() <= limit {
        return Ok(());
    }
    Err(QueryError::TooLarge(format!(
        "the query has {} bytes of text, and {limit} are allowed; give long values as parameters, long lists as a join with VALUES",
        text.len()
    )))
}

/// Parses a text, puts its parameters in, and refuses what may not be planned.
///
/// # Errors
/// `query_too_large`, `invalid_query`, `sql_not_allowed` or `invalid_parameter`.
pub(super) fn check(text: &str, params: &[Json]) -> Result<Checked, QueryError> {
    let dialect = GenericDialect {};
    // What editors and shells put before a text is no part of it.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let tokens = Tokenizer::new(&dialect, text)
        .tokenize_with_location()
        .map_err(|error| QueryError::Invalid { message: error.message.clone(), position: position(error.location) })?;
    check_tokens(&tokens)?;
    check_verb(&tokens)?;
    let mut parser = Parser::new(&dialect).with_recursion_limit(PARSER_DEPTH).with_tokens_with_locations(tokens);
    let mut statement = parser.parse_statement().map_err(|error| QueryError::from_parser(&error))?;
    let mut ended = false;
    while parser.consume_token(&Token::SemiColon) {
        ended = true;
    }
    let rest = parser.peek_token();
    if rest.token != Token::EOF {
        let position = position(rest.span.start);
        return Err(if ended {
            QueryError::NotAllowed {
                message: "a request holds one statement, and here starts a second one".into(),
                position,
            }
        } else {
            QueryError::Invalid {
                message: format!("expected the end of the statement, found {}", rest.token),
                position,
            }
        });
    }
    let explain = take_explain(&mut statement)?;
    if !matches!(statement, Statement::Query(_)) {
        return Err(QueryError::not_allowed(ONLY_QUERIES));
    }
    precedence::bind_tightly(&mut statement);
    params::bind(&mut statement, params)?;
    let mut inspector = Inspector::default();
    if let ControlFlow::Break(error) = statement.visit(&mut inspector) {
        return Err(*error);
    }
    let large_values = inspector.large_values;
    let tables = inspector.tables;
    Ok(Checked { statement: EngineStatement::Statement(Box::new(statement)), explain, large_values, tables })
}

/// Takes the query out of an `EXPLAIN`, and how it is to be explained.
fn take_explain(statement: &mut Statement) -> Result<Option<Explain>, QueryError> {
    let Statement::Explain { analyze, verbose, query_plan, estimate, format, options, statement: inner, .. } =
        statement
    else {
        return Ok(None);
    };
    if *verbose || *query_plan || *estimate || format.is_some() || options.is_some() {
        return Err(QueryError::not_allowed("of EXPLAIN there are EXPLAIN and EXPLAIN ANALYZE, without options"));
    }
    let explain = if *analyze { Explain::Analyze } else { Explain::Plan };
    let query = inner.as_ref().clone();
    *statement = query;
    Ok(Some(explain))
}

const ONLY_QUERIES: &str = "only one SELECT, WITH or VALUES statement is allowed, and EXPLAIN [ANALYZE] before it: the tables are read-only, and there are no settings";

fn position(location: Location) -> Option<Position> {
    (location.line > 0).then_some(Position { line: location.line, column: location.column })
}

/// Refuses a statement by its first word, so that what is no query gets that error even where the parser does not know
/// it.
fn check_verb(tokens: &[TokenWithSpan]) -> Result<(), QueryError> {
    let meaningful = tokens.iter().find(|token| !matches!(token.token, Token::Whitespace(_) | Token::LParen));
    let Some(first) = meaningful.filter(|token| token.token != Token::EOF) else {
        return Err(QueryError::invalid("the query is empty"));
    };
    match &first.token {
        Token::Word(word) => match word.keyword {
            Keyword::EXPLAIN
            | Keyword::SELECT
            | Keyword::WITH
            | Keyword::VALUES
            | Keyword::FROM
            | Keyword::TABLE
            | Keyword::NoKeyword => Ok(()),
            _ => Err(QueryError::NotAllowed {
                message: format!("{} is not allowed: {ONLY_QUERIES}", word.value.to_uppercase()),
                position: position(first.span.start),
            }),
        },
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::{check, check_size};
    use crate::query::QueryError;

    fn code(sql: &str) -> &'static str {
        check(sql, &[]).map_or_else(|error| error.code(), |_| "ok")
    }

    #[test]
    fn a_common_table_expression_counts_as_often_as_it_is_named() {
        let doubling = |levels: usize| {
            let ctes =
                (1..=levels).map(|n| format!("t{n} AS (SELECT 1 FROM t{} a, t{} b)", n - 1, n - 1)).collect::<Vec<_>>();
            format!("WITH t0 AS (SELECT 1), {} SELECT * FROM t{levels}", ctes.join(", "))
        };
        assert_eq!(code(&doubling(5)), "ok");
        assert_eq!(code(&doubling(30)), "query_too_large");
    }

    #[test]
    fn depth_is_refused_before_it_is_parsed() {
        assert_eq!(code(&format!("SELECT {}1{}", "(".repeat(30_000), ")".repeat(30_000))), "query_too_large");
        assert_eq!(code(&format!("SELECT 1{}", "+1".repeat(10_000))), "query_too_large");
        assert_eq!(code(&format!("SELECT 1 WHERE 1=1{}", " OR 1=1".repeat(5_000))), "query_too_large");
        assert_eq!(code(&format!("SELECT {}1", "- ".repeat(10_000))), "query_too_large");
        assert_eq!(code(&format!("SELECT {}1{}", "(".repeat(20), ")".repeat(20))), "ok");
    }

    #[test]
    fn a_column_counts_as_often_as_its_computation_names_it() {
        let chain = |levels: usize, computed: &str| {
            let ctes =
                (1..=levels).map(|n| format!("t{n} AS (SELECT {computed} AS n FROM t{})", n - 1)).collect::<Vec<_>>();
            format!(
                "WITH t0 AS (SELECT duration_ms AS n FROM t), {} SELECT n FROM t{levels} WHERE n > 0",
                ctes.join(", ")
            )
        };
        assert_eq!(code(&chain(30, "n + 1")), "ok");
        assert_eq!(code(&chain(10, "n + n")), "ok");
        assert_eq!(code(&chain(30, "n + n")), "query_too_large");
        let nested = |levels: usize| {
            format!("SELECT n FROM {}t{} WHERE n > 0", "(SELECT n + n AS n FROM ".repeat(levels), ")".repeat(levels))
        };
        assert_eq!(code(&nested(9)), "ok");
        assert_eq!(code(&nested(25)), "query_too_large");
    }

    #[test]
    fn a_cube_counts_as_all_the_groupings_it_stands_for() {
        let columns = |n: usize| (0..n).map(|column| format!("c{column}")).collect::<Vec<_>>().join(", ");
        assert_eq!(code(&format!("SELECT 1 FROM t GROUP BY CUBE({})", columns(8))), "ok");
        assert_eq!(code(&format!("SELECT 1 FROM t GROUP BY CUBE({})", columns(9))), "query_too_large");
        assert_eq!(code(&format!("SELECT 1 FROM t GROUP BY CUBE({})", columns(80))), "query_too_large");
        assert_eq!(
            code("SELECT 1 FROM t GROUP BY CUBE(a, b, c, d), CUBE(e, f, g, h), ROLLUP(i, j)"),
            "query_too_large"
        );
        assert_eq!(code("SELECT 1 FROM t GROUP BY GROUPING SETS ((a, b), (a), ())"), "ok");
    }

    #[test]
    fn a_long_list_of_values_is_no_depth() {
        assert_eq!(code(&format!("SELECT 1 WHERE 1 IN (1{})", ", 2".repeat(5_000))), "ok");
    }

    #[test]
    fn a_fault_tells_its_place() {
        let error = check("SELECT *\nFROM tool_invocations WHERE )", &[]).unwrap_err();
        assert_eq!(error.position().map(|p| p.line), Some(2));
        let error = check("SELECT 1,\n  version()", &[]).unwrap_err();
        assert_eq!(error.position().map(|p| (p.line, p.column)), Some((2, 3)));
    }

    #[test]
    fn an_overlong_text_is_refused_by_its_length_alone() {
        assert!(matches!(check_size("SELECT 1", 7), Err(QueryError::TooLarge(_))));
        check_size("SELECT 1", 8).unwrap();
    }

    #[test]
    fn a_pattern_is_bounded_by_what_it_unfolds_to() {
        assert_eq!(code("SELECT 'a' ~ '^[a-z]{1,20}$'"), "ok");
        assert_eq!(code("SELECT regexp_like('a', '((a{100}){100}){100}')"), "query_too_large");
        assert_eq!(code("SELECT 'a' ~ tool FROM tool_invocations"), "sql_not_allowed");
    }

    #[test]
    fn a_pattern_that_does_not_compile_is_told_with_its_place() {
        for sql in [
            "SELECT 'a' ~ '('",
            "SELECT 'a' !~* '('",
            "SELECT 'a' SIMILAR TO '('",
            "SELECT regexp_like('a', '(')",
            "SELECT regexp_match('a', '[b-a]')",
            "SELECT regexp_count('a', 'a{2,1}')",
            "SELECT regexp_instr('a', '\\')",
            "SELECT regexp_replace('a', '(?<=a)b', 'x')",
            "SELECT regexp_like('a', 'a', 'q')",
            "SELECT regexp_like('a', 'a', 'g')",
            "SELECT regexp_replace('a', 'a', 'b', 'gz')",
            "SELECT regexp_like('a', '(a)(?', 'i')",
        ] {
            let error = check(sql, &[]).map(|_| ()).unwrap_err();
            assert!(matches!(error, QueryError::Invalid { position: Some(_), .. }), "{sql}: {error:?}");
        }
        assert_eq!(code("SELECT regexp_replace('a', 'A', 'b', 'gi')"), "ok");
        assert_eq!(code("SELECT regexp_like('a', 'A', tool) FROM tool_invocations"), "sql_not_allowed");
        let error = check("SELECT 'a' ~ $1", &["(".into()]).unwrap_err();
        assert!(error.to_string().contains("does not compile"), "{error}");
    }

    #[test]
    fn what_the_engine_would_pass_over_is_refused() {
        for sql in [
            "SELECT count(*) FROM t TABLESAMPLE BERNOULLI (10)",
            "SELECT count(*) FROM (SELECT 1 FROM t) TABLESAMPLE BERNOULLI (10)",
            "SELECT a FROM t PREWHERE a > 1",
            "SELECT a FROM t START WITH a = 1 CONNECT BY PRIOR a = b",
            "SELECT a, count(*) FROM t GROUP BY a WITH ROLLUP",
            "SELECT a, count(*) FROM t GROUP BY ALL WITH TOTALS",
            "SELECT a FROM t WITH (NOLOCK)",
            "SELECT * FROM generate_series(1, 3) WITH ORDINALITY",
            "SELECT array(SELECT a FROM t)",
            "SELECT quantile(0.9)(a) FROM t",
            "SELECT sum(a) OVER (w ROWS 1 PRECEDING) FROM t WINDOW w AS (PARTITION BY b ORDER BY c)",
            "SELECT sum(a) OVER v FROM t WINDOW w AS (PARTITION BY b), v AS (w ORDER BY c)",
        ] {
            assert_eq!(code(sql), "sql_not_allowed", "{sql}");
        }
        for sql in [
            "SELECT * EXCLUDE (a) FROM t",
            "SELECT a, count(*) FROM t GROUP BY ROLLUP (a)",
            "SELECT a, count(*) FROM t GROUP BY ALL",
            "SELECT sum(a) OVER w FROM t WINDOW w AS (PARTITION BY b ORDER BY c)",
            "SELECT t.a, u.b FROM t AS t, LATERAL (SELECT b FROM u WHERE u.a = t.a) AS u",
        ] {
            assert_eq!(code(sql), "ok", "{sql}");
        }
    }

    #[test]
    fn what_a_window_reaches_over_is_bounded() {
        let window = |frame: &str| code(&format!("SELECT sum(a) OVER (ORDER BY b {frame}) FROM t"));
        assert_eq!(window("ROWS BETWEEN 100000 PRECEDING AND 1 FOLLOWING"), "ok");
        assert_eq!(window("ROWS BETWEEN 100001 PRECEDING AND CURRENT ROW"), "query_too_large");
        assert_eq!(window("ROWS BETWEEN CURRENT ROW AND 9000000000 FOLLOWING"), "query_too_large");
        assert_eq!(window("GROUPS BETWEEN CURRENT ROW AND 9000000000 FOLLOWING"), "query_too_large");
        assert_eq!(code("SELECT lag(a, 9000000000) OVER (ORDER BY b) FROM t"), "query_too_large");
        assert_eq!(code("SELECT lead(a, -9000000000) OVER (ORDER BY b) FROM t"), "query_too_large");
        let named = "SELECT sum(a) OVER w FROM t WINDOW w AS (ORDER BY b ROWS 9000000000 PRECEDING)";
        assert_eq!(code(named), "query_too_large");
        assert_eq!(code("SELECT latency_merge(latency) OVER (ORDER BY b) FROM t"), "sql_not_allowed");
        assert_eq!(code("SELECT median(a) OVER w FROM t WINDOW w AS (ORDER BY b)"), "sql_not_allowed");
    }
}
