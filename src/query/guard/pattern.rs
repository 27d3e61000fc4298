//! Bounds on regular expressions.

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{BinaryOperator, Expr};

use super::inspector::{Verdict, refuse, value_text};
use crate::query::QueryError;

/// Characters of a regular expression.
const MAX_PATTERN_CHARS: usize = 1_000;
/// How often its counted repetitions, multiplied, may repeat a part of it.
const MAX_PATTERN_REPEATS: u64 = 1_000;

/// Regular expressions are linear in the text, but also in their own size, which counted repetitions multiply.
pub(super) fn check_pattern(pattern: &Expr) -> Verdict {
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
