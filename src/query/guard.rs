//! What is refused before anything is planned.
//!
//! The text is bounded before it is parsed, because parsers and planners recurse and multiply: its bytes, its tokens, its nesting, and
//! its operators, since a chain of them is a tree as deep as it is long. The parsed statement is bounded by what it would become:
//! a common table expression is copied wherever it is named, so tables are counted with those copies.
//!
//! Allowed is one `SELECT`, `WITH` or `VALUES` over tables and offered functions. The list of what is refused makes good errors and keeps values
//! small; isolation does not rest on it, see [`super::session`].

use std::collections::HashMap;
use std::ops::ControlFlow;

use datafusion::execution::context::SQLOptions;
use datafusion::sql::parser::Statement as EngineStatement;
use datafusion::sql::sqlparser::ast::{
    ArrayElemTypeDef, BinaryOperator, DataType, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, Ident,
    ObjectName, Query, Select, SetExpr, Spanned, Statement, TableFactor, Value, Visit, Visitor,
};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::parser::Parser;
use datafusion::sql::sqlparser::tokenizer::{Location, Token, TokenWithSpan, Tokenizer};
use hashbrown::HashSet;
use serde_json::Value as Json;

use super::functions::{self, MAX_VALUE_BYTES};
use super::{Position, QueryError, params};

/// Words, symbols and literals of a text.
const MAX_TOKENS: usize = 12_000;
/// Operators of a text. Each may deepen the tree by one, and planning takes time that grows with the square of its depth.
const MAX_OPERATORS: usize = 1_000;
/// Brackets within brackets.
const MAX_NESTING: usize = 32;
/// How deep the parser itself may recurse.
const PARSER_DEPTH: usize = 50;
/// Tables, each counted as often as it would be read.
const MAX_TABLES: u64 = 64;
/// `SELECT`s.
const MAX_SELECTS: usize = 128;
/// A literal longer than this makes a query run in small batches.
const LARGE_LITERAL: usize = 512;
/// Characters of a regular expression.
const MAX_PATTERN_CHARS: usize = 1_000;
/// How often its counted repetitions, multiplied, may repeat a part of it.
const MAX_PATTERN_REPEATS: u64 = 1_000;

/// A statement that may be planned.
#[derive(Debug)]
pub(super) struct Checked {
    /// The statement, its parameters put in.
    pub(super) statement: EngineStatement,
    /// Whether it can make or repeat large values, and so should run in small batches.
    pub(super) large_values: bool,
    /// Names that its tables may have, in lower case.
    pub(super) tables: HashSet<String>,
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
    if !matches!(statement, Statement::Query(_)) {
        return Err(QueryError::not_allowed(ONLY_QUERIES));
    }
    params::bind(&mut statement, params)?;
    let mut inspector = Inspector::default();
    if let ControlFlow::Break(error) = statement.visit(&mut inspector) {
        return Err(*error);
    }
    let large_values = inspector.large_values;
    let tables = inspector.tables;
    Ok(Checked { statement: EngineStatement::Statement(Box::new(statement)), large_values, tables })
}

const ONLY_QUERIES: &str =
    "only one SELECT, WITH or VALUES statement is allowed: the tables are read-only, and there are no settings";

fn position(location: Location) -> Option<Position> {
    (location.line > 0).then_some(Position { line: location.line, column: location.column })
}

fn check_tokens(tokens: &[TokenWithSpan]) -> Result<(), QueryError> {
    let too_large = |message: String| Err(QueryError::TooLarge(message));
    let (mut count, mut operators, mut nesting) = (0, 0, 0_usize);
    for token in tokens {
        match &token.token {
            Token::Whitespace(_) | Token::EOF => continue,
            Token::LParen | Token::LBracket | Token::LBrace => nesting += 1,
            Token::RParen | Token::RBracket | Token::RBrace => nesting = nesting.saturating_sub(1),
            other if is_operator(other) => operators += 1,
            _ => {}
        }
        count += 1;
        if nesting > MAX_NESTING {
            return too_large(format!("brackets are nested more than {MAX_NESTING} deep"));
        }
        if operators > MAX_OPERATORS {
            return too_large(format!(
                "the query has more than {MAX_OPERATORS} operators; a long list of values belongs in IN (…)"
            ));
        }
        if count > MAX_TOKENS {
            return too_large(format!("the query has more than {MAX_TOKENS} words and symbols"));
        }
    }
    Ok(())
}

/// Whether a token can make the tree deeper: every symbol that is no bracket and no separator, and the words that act like one.
fn is_operator(token: &Token) -> bool {
    match token {
        Token::Word(word) => matches!(
            word.keyword,
            Keyword::AND
                | Keyword::OR
                | Keyword::NOT
                | Keyword::XOR
                | Keyword::IS
                | Keyword::IN
                | Keyword::LIKE
                | Keyword::ILIKE
                | Keyword::RLIKE
                | Keyword::REGEXP
                | Keyword::SIMILAR
                | Keyword::BETWEEN
                | Keyword::COLLATE
                | Keyword::AT
                | Keyword::DIV
                | Keyword::CASE
                | Keyword::PRIOR
                | Keyword::UNION
                | Keyword::EXCEPT
                | Keyword::INTERSECT
                | Keyword::JOIN
        ),
        Token::Comma
        | Token::Period
        | Token::SemiColon
        | Token::Placeholder(_)
        | Token::Number(..)
        | Token::Char(_) => false,
        Token::Whitespace(_) | Token::EOF => false,
        other => literal_text(other).is_none(),
    }
}

/// The text of a string literal.
fn literal_text(token: &Token) -> Option<&str> {
    match token {
        Token::SingleQuotedString(text)
        | Token::DoubleQuotedString(text)
        | Token::TripleSingleQuotedString(text)
        | Token::TripleDoubleQuotedString(text)
        | Token::SingleQuotedByteStringLiteral(text)
        | Token::DoubleQuotedByteStringLiteral(text)
        | Token::TripleSingleQuotedByteStringLiteral(text)
        | Token::TripleDoubleQuotedByteStringLiteral(text)
        | Token::SingleQuotedRawStringLiteral(text)
        | Token::DoubleQuotedRawStringLiteral(text)
        | Token::TripleSingleQuotedRawStringLiteral(text)
        | Token::TripleDoubleQuotedRawStringLiteral(text)
        | Token::NationalStringLiteral(text)
        | Token::EscapedStringLiteral(text)
        | Token::UnicodeStringLiteral(text)
        | Token::HexStringLiteral(text) => Some(text),
        Token::DollarQuotedString(quoted) => Some(&quoted.value),
        Token::QuoteDelimitedStringLiteral(quoted) | Token::NationalQuoteDelimitedStringLiteral(quoted) => {
            Some(&quoted.value)
        }
        _ => None,
    }
}

/// Refuses a statement by its first word, so that what is no query is told so even where the parser does not know it.
fn check_verb(tokens: &[TokenWithSpan]) -> Result<(), QueryError> {
    let meaningful = tokens.iter().find(|token| !matches!(token.token, Token::Whitespace(_) | Token::LParen));
    let Some(first) = meaningful.filter(|token| token.token != Token::EOF) else {
        return Err(QueryError::invalid("the query is empty"));
    };
    match &first.token {
        Token::Word(word) => match word.keyword {
            Keyword::SELECT | Keyword::WITH | Keyword::VALUES | Keyword::FROM | Keyword::TABLE | Keyword::NoKeyword => {
                Ok(())
            }
            _ => Err(QueryError::NotAllowed {
                message: format!("{} is not allowed: {ONLY_QUERIES}", word.value.to_uppercase()),
                position: position(first.span.start),
            }),
        },
        _ => Ok(()),
    }
}

/// Walks a statement and stops at the first thing that is not offered.
#[derive(Default)]
struct Inspector {
    scopes: Vec<Scope>,
    selects: usize,
    large_values: bool,
    tables: HashSet<String>,
}

/// One query within the statement: the common table expressions it defines, and how many tables it reads.
#[derive(Default)]
struct Scope {
    /// Where the queries of its common table expressions lie, and the name of each.
    pending: HashMap<usize, String>,
    /// How many tables each of them reads.
    weights: HashMap<String, u64>,
    /// How many tables it reads itself.
    weight: u64,
}

type Verdict = ControlFlow<Box<QueryError>>;

fn refuse(message: impl Into<String>) -> Verdict {
    ControlFlow::Break(Box::new(QueryError::not_allowed(message)))
}

fn refuse_at(message: impl Into<String>, location: Location) -> Verdict {
    ControlFlow::Break(Box::new(QueryError::NotAllowed { message: message.into(), position: position(location) }))
}

/// Where a query lies in memory: its identity while the statement is walked.
fn address(query: &Query) -> usize {
    std::ptr::from_ref(query).addr()
}

impl Inspector {
    fn add(&mut self, weight: u64) -> Verdict {
        if let Some(scope) = self.scopes.last_mut() {
            scope.weight = scope.weight.saturating_add(weight);
            if scope.weight > MAX_TABLES {
                return ControlFlow::Break(Box::new(QueryError::TooLarge(format!(
                    "the query reads more than {MAX_TABLES} tables, counting a WITH table as often as it is named"
                ))));
            }
        }
        ControlFlow::Continue(())
    }

    fn function(&mut self, function: &Function) -> Verdict {
        let name = lower(&function.name);
        let at = function.name.span().start;
        if functions::is_withheld(&name) {
            return refuse_at(
                format!("the function {name} is not offered; information_schema.routines lists those that are"),
                at,
            );
        }
        if functions::gathers(&name) && function.over.is_some() {
            return refuse_at(
                format!("{name} is not offered as a window function: each row would hold its whole window"),
                at,
            );
        }
        self.large_values |= functions::makes_large_values(&name);
        if name.starts_with("regexp_") {
            let FunctionArguments::List(list) = &function.args else { return ControlFlow::Continue(()) };
            if let Some(FunctionArg::Unnamed(FunctionArgExpr::Expr(pattern))) = list.args.get(1) {
                return check_pattern(pattern);
            }
        }
        ControlFlow::Continue(())
    }
}

impl Visitor for Inspector {
    type Break = Box<QueryError>;

    fn pre_visit_query(&mut self, query: &Query) -> Verdict {
        let mut scope = Scope::default();
        if let Some(with) = &query.with {
            if with.recursive {
                return refuse_at("WITH RECURSIVE is not offered", with.with_token.0.span.start);
            }
            let named = with.cte_tables.iter().map(|cte| (address(&cte.query), cte.alias.name.value.to_lowercase()));
            scope.pending = named.collect();
        }
        self.scopes.push(scope);
        if !query.locks.is_empty() || query.for_clause.is_some() {
            return refuse("FOR … is not offered: the tables are read-only");
        }
        if query.settings.is_some() || query.format_clause.is_some() {
            return refuse("SETTINGS and FORMAT are not offered; the Accept header chooses the format");
        }
        if !query.pipe_operators.is_empty() {
            return refuse("pipe operators are not offered; write the query as nested SELECTs");
        }
        if !is_query(&query.body) {
            return refuse(ONLY_QUERIES);
        }
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, query: &Query) -> Verdict {
        let Some(scope) = self.scopes.pop() else { return ControlFlow::Continue(()) };
        let weight = scope.weight.max(1);
        if let Some(outer) = self.scopes.last_mut()
            && let Some(name) = outer.pending.remove(&address(query))
        {
            outer.weights.insert(name, weight);
            return ControlFlow::Continue(());
        }
        self.add(weight)
    }

    fn pre_visit_select(&mut self, select: &Select) -> Verdict {
        self.selects += 1;
        if self.selects > MAX_SELECTS {
            return ControlFlow::Break(Box::new(QueryError::TooLarge(format!(
                "the query has more than {MAX_SELECTS} SELECTs"
            ))));
        }
        if select.into.is_some() {
            return refuse("SELECT INTO is not offered: the tables are read-only");
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> Verdict {
        match factor {
            TableFactor::Table { name, args: Some(_), .. } => match lower(name).as_str() {
                "generate_series" | "range" | "unnest" => ControlFlow::Continue(()),
                other => {
                    let message = format!("there is no table function {other}; generate_series and range are offered");
                    refuse_at(message, name.span().start)
                }
            },
            TableFactor::Table { .. }
            | TableFactor::Derived { .. }
            | TableFactor::NestedJoin { .. }
            | TableFactor::UNNEST { .. } => ControlFlow::Continue(()),
            _ => refuse("in FROM only tables, subqueries, UNNEST, generate_series and range are offered"),
        }
    }

    fn pre_visit_relation(&mut self, relation: &ObjectName) -> Verdict {
        let Some(name) = relation.0.last().and_then(|part| part.as_ident()).map(|ident| ident.value.to_lowercase())
        else {
            return ControlFlow::Continue(());
        };
        let weight = if relation.0.len() == 1 {
            self.scopes.iter().rev().find_map(|scope| scope.weights.get(&name))
        } else {
            None
        };
        let weight = weight.copied().unwrap_or(1);
        self.tables.insert(name);
        self.add(weight)
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> Verdict {
        match expr {
            Expr::Function(function) => self.function(function),
            Expr::BinaryOp { op: BinaryOperator::StringConcat, .. } => {
                self.large_values = true;
                ControlFlow::Continue(())
            }
            Expr::BinaryOp { op, right, .. } if is_pattern_operator(op) => check_pattern(right),
            Expr::SimilarTo { pattern, .. } | Expr::RLike { pattern, .. } => check_pattern(pattern),
            Expr::Overlay { .. } => {
                self.large_values = true;
                ControlFlow::Continue(())
            }
            Expr::Cast { data_type, .. } if is_sized_array(data_type) => {
                refuse("arrays of a fixed size are not offered")
            }
            Expr::TypedString(typed) if is_sized_array(&typed.data_type) => {
                refuse("arrays of a fixed size are not offered")
            }
            Expr::Convert { data_type: Some(data_type), .. } if is_sized_array(data_type) => {
                refuse("arrays of a fixed size are not offered")
            }
            Expr::Array(_) | Expr::Struct { .. } | Expr::Dictionary(_) | Expr::Map(_) | Expr::Named { .. } => {
                refuse("array, struct and map literals are not offered")
            }
            Expr::Tuple(parts) if parts.len() > 1 => refuse("tuples are not offered; compare each part by itself"),
            Expr::Lambda(_) => refuse("lambda functions are not offered"),
            _ => ControlFlow::Continue(()),
        }
    }

    fn pre_visit_value(&mut self, value: &datafusion::sql::sqlparser::ast::ValueWithSpan) -> Verdict {
        let Some(text) = value_text(&value.value) else { return ControlFlow::Continue(()) };
        self.large_values |= text.len() > LARGE_LITERAL;
        if text.len() <= MAX_VALUE_BYTES {
            return ControlFlow::Continue(());
        }
        ControlFlow::Break(Box::new(QueryError::TooLarge(format!(
            "a literal or parameter has {} bytes, and {MAX_VALUE_BYTES} are allowed",
            text.len()
        ))))
    }
}

fn lower(name: &ObjectName) -> String {
    let parts = name.0.iter().filter_map(|part| part.as_ident()).map(|ident: &Ident| ident.value.to_lowercase());
    parts.collect::<Vec<_>>().join(".")
}

fn is_query(body: &SetExpr) -> bool {
    match body {
        SetExpr::Select(_) | SetExpr::Query(_) | SetExpr::Values(_) | SetExpr::Table(_) => true,
        SetExpr::SetOperation { left, right, .. } => is_query(left) && is_query(right),
        SetExpr::Insert(_) | SetExpr::Update(_) | SetExpr::Delete(_) | SetExpr::Merge(_) => false,
    }
}

fn is_pattern_operator(op: &BinaryOperator) -> bool {
    matches!(
        op,
        BinaryOperator::PGRegexMatch
            | BinaryOperator::PGRegexIMatch
            | BinaryOperator::PGRegexNotMatch
            | BinaryOperator::PGRegexNotIMatch
            | BinaryOperator::Regexp
    )
}

/// A cast to such a type makes an array of that size for every row, even of a null.
fn is_sized_array(data_type: &DataType) -> bool {
    match data_type {
        DataType::Array(ArrayElemTypeDef::SquareBracket(_, Some(_))) => true,
        DataType::Array(
            ArrayElemTypeDef::SquareBracket(inner, None)
            | ArrayElemTypeDef::AngleBracket(inner)
            | ArrayElemTypeDef::Parenthesis(inner),
        ) => is_sized_array(inner),
        _ => false,
    }
}

fn value_text(value: &Value) -> Option<&str> {
    match value {
        Value::Number(text, _)
        | Value::SingleQuotedString(text)
        | Value::TripleSingleQuotedString(text)
        | Value::TripleDoubleQuotedString(text)
        | Value::EscapedStringLiteral(text)
        | Value::UnicodeStringLiteral(text)
        | Value::SingleQuotedByteStringLiteral(text)
        | Value::DoubleQuotedByteStringLiteral(text)
        | Value::TripleSingleQuotedByteStringLiteral(text)
        | Value::TripleDoubleQuotedByteStringLiteral(text)
        | Value::SingleQuotedRawStringLiteral(text)
        | Value::DoubleQuotedRawStringLiteral(text)
        | Value::TripleSingleQuotedRawStringLiteral(text)
        | Value::TripleDoubleQuotedRawStringLiteral(text)
        | Value::NationalStringLiteral(text)
        | Value::HexStringLiteral(text)
        | Value::DoubleQuotedString(text) => Some(text),
        Value::DollarQuotedString(quoted) => Some(&quoted.value),
        Value::QuoteDelimitedStringLiteral(quoted) | Value::NationalQuoteDelimitedStringLiteral(quoted) => {
            Some(&quoted.value)
        }
        Value::Boolean(_) | Value::Null | Value::Placeholder(_) => None,
    }
}

/// Regular expressions are linear in the text, but also in their own size, which counted repetitions multiply.
fn check_pattern(pattern: &Expr) -> Verdict {
    let literal = match pattern {
        Expr::Value(value) => value_text(&value.value),
        _ => None,
    };
    let Some(text) = literal else {
        return refuse("a regular expression must be a literal or a parameter");
    };
    if text.chars().count() > MAX_PATTERN_CHARS || counted_repeats(text) > MAX_PATTERN_REPEATS {
        return ControlFlow::Break(Box::new(QueryError::TooLarge(format!(
            "a regular expression may have {MAX_PATTERN_CHARS} characters, and {MAX_PATTERN_REPEATS} as the product of its counted repetitions"
        ))));
    }
    ControlFlow::Continue(())
}

/// The product of the greatest number in each `{…}`.
fn counted_repeats(pattern: &str) -> u64 {
    let counted = pattern.split('{').skip(1).filter_map(|rest| rest.split_once('}')).map(|(counts, _)| {
        let numbers = counts.split(',').filter_map(|number| number.trim().parse::<u64>().ok());
        numbers.max().unwrap_or(1).max(1)
    });
    counted.fold(1, u64::saturating_mul)
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
}
