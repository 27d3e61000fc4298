//! Bounds on regular expressions, and whether they are any.

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    BinaryOperator, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments,
};
use datafusion::sql::sqlparser::tokenizer::Location;
use regex::Regex;

use super::inspector::{Verdict, refuse, value_text};
use super::position;
use crate::query::QueryError;

/// Characters of a regular expression.
const MAX_PATTERN_CHARS: usize = 1_000;
/// How often its counted repetitions, multiplied, may repeat a part of it.
const MAX_PATTERN_REPEATS: u64 = 1_000;

/// The functions that take a pattern, as their second argument, and which of the further ones is its flags.
const FUNCTIONS: [(&str, usize); 5] =
    [("regexp_count", 3), ("regexp_instr", 4), ("regexp_like", 2), ("regexp_match", 2), ("regexp_replace", 3)];
/// The one whose flags may ask for every match.
const REPLACES: &str = "regexp_replace";

/// Checks the pattern of an operator.
pub(super) fn check_pattern(pattern: &Expr) -> Verdict {
    check(pattern, "")
}

/// Checks the pattern and the flags of a call, if the function `name` takes any.
pub(super) fn check_call(name: &str, function: &Function) -> Verdict {
    let Some((_, flags)) = FUNCTIONS.iter().find(|(taking, _)| *taking == name) else {
        return ControlFlow::Continue(());
    };
    let FunctionArguments::List(list) = &function.args else { return ControlFlow::Continue(()) };
    let given = |index: usize| match list.args.get(index) {
        Some(FunctionArg::Unnamed(FunctionArgExpr::Expr(given))) => Some(given),
        _ => None,
    };
    let Some(pattern) = given(1) else { return ControlFlow::Continue(()) };
    let Some(flags) = given(*flags) else { return check(pattern, "") };
    let Some((text, at)) = literal(flags) else {
        return refuse(format!("the flags of {name} must be a literal or a parameter"));
    };
    let offered = if name == REPLACES { "imsxURg" } else { "imsxUR" };
    if let Some(unknown) = text.chars().find(|flag| !offered.contains(*flag)) {
        let offered: Vec<String> = offered.chars().map(String::from).collect();
        return invalid(format!("{unknown:?} is no flag of {name}; there are {}", offered.join(", ")), at);
    }
    check(pattern, &text.replace('g', ""))
}

/// Regular expressions are linear in the text, but also in their own size, which counted repetitions multiply. One that
/// does not compile is refused here, where its place is known; the engine would meet it in the midst of the rows.
fn check(pattern: &Expr, flags: &str) -> Verdict {
    let Some((text, at)) = literal(pattern) else {
        return refuse("a regular expression must be a literal or a parameter");
    };
    if text.chars().count() > MAX_PATTERN_CHARS || counted_repeats(text) > MAX_PATTERN_REPEATS {
        return ControlFlow::Break(Box::new(QueryError::TooLarge(format!(
            "a regular expression may have {MAX_PATTERN_CHARS} characters, and {MAX_PATTERN_REPEATS} as the product of its counted repetitions"
        ))));
    }
    let whole = if flags.is_empty() { text.to_owned() } else { format!("(?{flags}){text}") };
    match Regex::new(&whole) {
        Ok(_) => ControlFlow::Continue(()),
        Err(error) => invalid(format!("the regular expression does not compile: {}", reason(&error)), at),
    }
}

/// The last line of what the compiler says: the lines before show the pattern, and point into it.
fn reason(error: &regex::Error) -> String {
    let said = error.to_string();
    let last = said.lines().last().unwrap_or_default().trim();
    last.strip_prefix("error: ").unwrap_or(last).to_owned()
}

fn literal(expr: &Expr) -> Option<(&str, Location)> {
    match expr {
        Expr::Value(value) => Some((value_text(&value.value)?, value.span.start)),
        Expr::Nested(inner) => literal(inner),
        _ => None,
    }
}

fn invalid(message: String, at: Location) -> Verdict {
    ControlFlow::Break(Box::new(QueryError::Invalid { message, position: position(at) }))
}

/// The product of the greatest number in each `{…}`.
fn counted_repeats(pattern: &str) -> u64 {
    let counted = pattern.split('{').skip(1).filter_map(|rest| rest.split_once('}')).map(|(counts, _)| {
        let numbers = counts.split(',').filter_map(|number| number.trim().parse::<u64>().ok());
        numbers.max().unwrap_or(1).max(1)
    });
    counted.fold(1, u64::saturating_mul)
}

/// Whether an operator matches a regular expression.
pub(super) fn is_pattern_operator(op: &BinaryOperator) -> bool {
    matches!(
        op,
        BinaryOperator::PGRegexMatch
            | BinaryOperator::PGRegexIMatch
            | BinaryOperator::PGRegexNotMatch
            | BinaryOperator::PGRegexNotIMatch
            | BinaryOperator::Regexp
    )
}
