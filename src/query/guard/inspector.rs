//! What is refused in a parsed statement.

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    ArrayElemTypeDef, BinaryOperator, DataType, Expr, Function, Ident, NamedWindowExpr, ObjectName, Query, Select,
    SetExpr, Spanned, TableFactor, Value, ValueWithSpan, Visitor,
};
use datafusion::sql::sqlparser::tokenizer::Location;
use hashbrown::HashSet;

use super::ignored;
use super::pattern::{self, check_pattern, is_pattern_operator};
use super::scope::{Scope, columns_named};
use super::{ONLY_QUERIES, position, window};
use crate::query::QueryError;
use crate::query::functions::{self, MAX_VALUE_BYTES};

/// Tables, each counted as often as it would be read.
const MAX_TABLES: u64 = 64;
/// Columns of a query's expressions, once each column that a subquery computes is replaced by what computes it.
const MAX_EXPANSION: u64 = 20_000;
/// `SELECT`s.
const MAX_SELECTS: usize = 128;
/// Groupings that `CUBE`, `ROLLUP` and `GROUPING SETS` may stand for, multiplied with one another.
const MAX_GROUPINGS: u64 = 256;
/// A literal longer than this makes a query run in small batches.
const LARGE_LITERAL: usize = 512;

/// Walks a statement and stops at the first thing that is not offered.
#[derive(Default)]
pub(super) struct Inspector {
    scopes: Vec<Scope>,
    selects: usize,
    groupings: u64,
    pub(super) large_values: bool,
    pub(super) tables: HashSet<String>,
}

pub(super) type Verdict = ControlFlow<Box<QueryError>>;

pub(super) fn refuse(message: impl Into<String>) -> Verdict {
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

    fn multiply_groupings(&mut self, by: u64) -> Verdict {
        self.groupings = self.groupings.max(1).saturating_mul(by);
        if self.groupings <= MAX_GROUPINGS {
            return ControlFlow::Continue(());
        }
        ControlFlow::Break(Box::new(QueryError::TooLarge(format!(
            "CUBE, ROLLUP and GROUPING SETS stand for more than {MAX_GROUPINGS} groupings; group by fewer columns"
        ))))
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
        if functions::is_not_windowed(&name) && function.over.is_some() {
            return refuse_at(
                format!(
                    "{name} is not offered as a window function, since each row would compute or hold its whole window; group by, \
                     or use one of {}",
                    functions::windowed()
                ),
                at,
            );
        }
        self.large_values |= functions::makes_large_values(&name);
        ignored::check_call(&name, function)?;
        window::check_call(&name, function)?;
        pattern::check_call(&name, function)
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
        if scope.named.saturating_mul(scope.sources) > MAX_EXPANSION {
            return ControlFlow::Break(Box::new(QueryError::TooLarge(format!(
                "columns computed of computed columns, written out, come to more than {MAX_EXPANSION}; name each less often, or nest less"
            ))));
        }
        let (weight, expansion) = (scope.weight.max(1), scope.expansion());
        let Some(outer) = self.scopes.last_mut() else { return ControlFlow::Continue(()) };
        if let Some(name) = outer.pending.remove(&address(query)) {
            outer.expansions.insert(name.clone(), expansion);
            outer.weights.insert(name, weight);
            return ControlFlow::Continue(());
        }
        outer.sources = outer.sources.max(expansion);
        self.add(weight)
    }

    fn pre_visit_select(&mut self, select: &Select) -> Verdict {
        self.selects += 1;
        if self.selects > MAX_SELECTS {
            return ControlFlow::Break(Box::new(QueryError::TooLarge(format!(
                "the query has more than {MAX_SELECTS} SELECTs"
            ))));
        }
        if let Some(scope) = self.scopes.last_mut() {
            let widest = select.projection.iter().map(columns_named).max().unwrap_or_default();
            scope.widest = scope.widest.max(widest);
            scope.named = scope.named.max(columns_named(select));
        }
        if select.into.is_some() {
            return refuse("SELECT INTO is not offered: the tables are read-only");
        }
        ignored::check_select(select)?;
        for named in &select.named_window {
            if let NamedWindowExpr::WindowSpec(spec) = &named.1 {
                window::check_window(spec)?;
            }
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> Verdict {
        ignored::check_table(factor)?;
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
        let defined = if relation.0.len() == 1 {
            self.scopes.iter().rev().find_map(|scope| Some((*scope.weights.get(&name)?, *scope.expansions.get(&name)?)))
        } else {
            None
        };
        let (weight, expansion) = defined.unwrap_or((1, 1));
        if let Some(scope) = self.scopes.last_mut() {
            scope.sources = scope.sources.max(expansion);
        }
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
            Expr::Array(_) => {
                self.large_values = true;
                ControlFlow::Continue(())
            }
            Expr::Struct { .. } | Expr::Dictionary(_) | Expr::Map(_) | Expr::Named { .. } => {
                refuse("struct and map literals are not offered")
            }
            Expr::Tuple(parts) if parts.len() > 1 => refuse("tuples are not offered; compare each part by itself"),
            Expr::Cube(parts) => {
                let groupings = u32::try_from(parts.len()).ok().and_then(|columns| 1_u64.checked_shl(columns));
                self.multiply_groupings(groupings.unwrap_or(u64::MAX))
            }
            Expr::Rollup(parts) => self.multiply_groupings(parts.len() as u64 + 1),
            Expr::GroupingSets(sets) => self.multiply_groupings(sets.len() as u64),
            Expr::Lambda(_) => refuse("lambda functions are not offered"),
            _ => ControlFlow::Continue(()),
        }
    }

    fn pre_visit_value(&mut self, value: &ValueWithSpan) -> Verdict {
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

pub(super) fn value_text(value: &Value) -> Option<&str> {
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
