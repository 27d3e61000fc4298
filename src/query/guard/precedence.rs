//! Operators of JSON and lists (`->`, `->>`, `@>`, `<@`) bind tighter than comparisons, as in PostgreSQL: the parser's
//! dialect has it the other way round, and takes `detail ->> 'a' = 'b'` for `detail ->> ('a' = 'b')`.
//!
//! The parsed statement is put right: where such an operator has a comparison for an operand, and that is not in
//! brackets, which the parser keeps, it belongs to the operand of the comparison next to it.

use std::convert::Infallible;
use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{BinaryOperator, Expr, Statement, VisitMut, VisitorMut};

/// Puts a statement right.
pub(super) fn bind_tightly(statement: &mut Statement) {
    let ControlFlow::Continue(()) = statement.visit(&mut Tighten);
}

struct Tighten;

impl VisitorMut for Tighten {
    type Break = Infallible;

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<Infallible> {
        if matches!(expr, Expr::BinaryOp { op, .. } if is_tight(op)) {
            let whole = std::mem::replace(expr, Expr::Tuple(Vec::new()));
            *expr = match whole {
                Expr::BinaryOp { left, op, right } => bound(left, op, right),
                other => other,
            };
        }
        ControlFlow::Continue(())
    }
}

/// An operator and its operands, with the operator next to what it belongs to.
fn bound(mut left: Box<Expr>, op: BinaryOperator, mut right: Box<Expr>) -> Expr {
    if let Some(last) = last_operand(&mut left) {
        *last = bound(taken(last), op, right);
        return *left;
    }
    if let Some(first) = first_operand(&mut right) {
        *first = bound(left, op, taken(first));
        return *right;
    }
    Expr::BinaryOp { left, op, right }
}

fn taken(operand: &mut Expr) -> Box<Expr> {
    Box::new(std::mem::replace(operand, Expr::Tuple(Vec::new())))
}

fn is_tight(op: &BinaryOperator) -> bool {
    matches!(
        op,
        BinaryOperator::Arrow
            | BinaryOperator::LongArrow
            | BinaryOperator::HashArrow
            | BinaryOperator::HashLongArrow
            | BinaryOperator::AtArrow
            | BinaryOperator::ArrowAt
    )
}

fn compares(op: &BinaryOperator) -> bool {
    matches!(
        op,
        BinaryOperator::Eq
            | BinaryOperator::NotEq
            | BinaryOperator::Lt
            | BinaryOperator::LtEq
            | BinaryOperator::Gt
            | BinaryOperator::GtEq
            | BinaryOperator::PGRegexMatch
            | BinaryOperator::PGRegexIMatch
            | BinaryOperator::PGRegexNotMatch
            | BinaryOperator::PGRegexNotIMatch
            | BinaryOperator::PGLikeMatch
            | BinaryOperator::PGILikeMatch
            | BinaryOperator::PGNotLikeMatch
            | BinaryOperator::PGNotILikeMatch
    )
}

/// The first operand of what binds less tight, as the operand on the right of a tight operator.
fn first_operand(expr: &mut Expr) -> Option<&mut Expr> {
    match expr {
        // Of the same strength, and so what comes first is done first.
        Expr::BinaryOp { left, op, .. } if compares(op) || *op == BinaryOperator::StringConcat => Some(left.as_mut()),
        Expr::IsFalse(of)
        | Expr::IsNotFalse(of)
        | Expr::IsTrue(of)
        | Expr::IsNotTrue(of)
        | Expr::IsNull(of)
        | Expr::IsNotNull(of)
        | Expr::IsUnknown(of)
        | Expr::IsNotUnknown(of)
        | Expr::IsDistinctFrom(of, _)
        | Expr::IsNotDistinctFrom(of, _)
        | Expr::InList { expr: of, .. }
        | Expr::InSubquery { expr: of, .. }
        | Expr::Between { expr: of, .. }
        | Expr::Like { expr: of, .. }
        | Expr::ILike { expr: of, .. }
        | Expr::SimilarTo { expr: of, .. }
        | Expr::AnyOp { left: of, .. }
        | Expr::AllOp { left: of, .. } => Some(of.as_mut()),
        _ => None,
    }
}

/// The last operand of what binds less tight, as the operand on the left of a tight operator.
fn last_operand(expr: &mut Expr) -> Option<&mut Expr> {
    match expr {
        Expr::BinaryOp { right, op, .. } if compares(op) => Some(right.as_mut()),
        Expr::IsDistinctFrom(_, of) | Expr::IsNotDistinctFrom(_, of) | Expr::Between { high: of, .. } => {
            Some(of.as_mut())
        }
        Expr::Like { pattern, escape_char: None, .. }
        | Expr::ILike { pattern, escape_char: None, .. }
        | Expr::SimilarTo { pattern, escape_char: None, .. } => Some(pattern.as_mut()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use datafusion::sql::sqlparser::ast::{Expr, Statement, VisitMut, VisitorMut};
    use datafusion::sql::sqlparser::dialect::GenericDialect;
    use datafusion::sql::sqlparser::parser::Parser;

    use super::bind_tightly;

    struct Unwrap;

    impl VisitorMut for Unwrap {
        type Break = ();

        fn post_visit_expr(&mut self, expr: &mut Expr) -> std::ops::ControlFlow<()> {
            while let Expr::Nested(inner) = expr {
                *expr = (**inner).clone();
            }
            std::ops::ControlFlow::Continue(())
        }
    }

    fn parsed(expr: &str) -> Statement {
        Parser::parse_sql(&GenericDialect {}, &format!("SELECT 1 WHERE {expr}")).unwrap().remove(0)
    }

    /// A condition is taken as the same one with all of its brackets.
    #[track_caller]
    fn assert_means(expr: &str, bracketed: &str) {
        let (mut found, mut meant) = (parsed(expr), parsed(bracketed));
        bind_tightly(&mut found);
        assert!(meant.visit(&mut Unwrap).is_continue());
        assert_eq!(found, meant, "{expr}");
    }

    #[test]
    fn members_are_taken_before_they_are_compared() {
        assert_means("detail ->> 'a' = 'b'", "(detail ->> 'a') = 'b'");
        assert_means("'b' = detail ->> 'a'", "'b' = (detail ->> 'a')");
        assert_means("detail -> 'a' ->> 'b' <> 'c'", "((detail -> 'a') ->> 'b') <> 'c'");
        assert_means("x ->> 'a' = y ->> 'b'", "(x ->> 'a') = (y ->> 'b')");
        assert_means("x -> 'a' ->> 'b' = y -> 'c' ->> 'd'", "((x -> 'a') ->> 'b') = ((y -> 'c') ->> 'd')");
        assert_means("x ->> 'a' = 'b' AND NOT y ->> 'c' = 'd'", "((x ->> 'a') = 'b') AND (NOT ((y ->> 'c') = 'd'))");
        assert_means("detail ->> 'a' IS NOT NULL", "(detail ->> 'a') IS NOT NULL");
        assert_means("detail ->> 'a' IN ('b', 'c')", "(detail ->> 'a') IN ('b', 'c')");
        assert_means("detail ->> 'a' NOT LIKE 'b%'", "(detail ->> 'a') NOT LIKE 'b%'");
        assert_means("detail ->> 'a' BETWEEN 'b' AND 'c'", "(detail ->> 'a') BETWEEN 'b' AND 'c'");
        assert_means("detail ->> 'a' ~ 'b'", "(detail ->> 'a') ~ 'b'");
        assert_means("detail ->> 'a' || 'b' = 'c'", "((detail ->> 'a') || 'b') = 'c'");
        assert_means("policy_ids @> ['a'] = true", "(policy_ids @> ['a']) = true");
    }

    #[test]
    fn what_is_in_brackets_stays_as_it_is() {
        for expr in ["(x = y) -> 'a'", "x -> ('a' = 'b')", "x ->> 'a'", "x = 'a' AND y IS NULL", "x -> 'a' + 1"] {
            let mut after = parsed(expr);
            bind_tightly(&mut after);
            assert_eq!(after, parsed(expr), "{expr}");
        }
    }
}
