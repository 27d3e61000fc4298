//! Bounds on window functions.
//!
//! A frame that reaches some rows back or forward is held in memory, and so are the rows that `lag` and `lead` reach
//! over: they are bounded here. Which aggregates are offered over windows is with the functions.

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, WindowFrameBound, WindowFrameUnits, WindowSpec,
    WindowType,
};

use super::ignored;
use super::inspector::{Verdict, value_text};
use crate::query::QueryError;

/// Rows that a frame may reach to either side of a row, and `lag` and `lead` over.
const MAX_REACH: u64 = 100_000;

/// Checks the window of a call.
pub(super) fn check_call(name: &str, function: &Function) -> Verdict {
    let Some(WindowType::WindowSpec(window)) = &function.over else { return ControlFlow::Continue(()) };
    if matches!(name, "lag" | "lead")
        && let FunctionArguments::List(list) = &function.args
        && let Some(FunctionArg::Unnamed(FunctionArgExpr::Expr(offset))) = list.args.get(1)
    {
        check_reach(offset)?;
    }
    check_window(window)
}

/// Checks a window's frame.
pub(super) fn check_window(window: &WindowSpec) -> Verdict {
    ignored::check_window(window)?;
    let Some(frame) = &window.window_frame else { return ControlFlow::Continue(()) };
    // What a range of values reaches over depends on the values: it is charged to the query as it runs.
    if frame.units == WindowFrameUnits::Range {
        return ControlFlow::Continue(());
    }
    for bound in std::iter::once(&frame.start_bound).chain(&frame.end_bound) {
        if let WindowFrameBound::Preceding(Some(reach)) | WindowFrameBound::Following(Some(reach)) = bound {
            check_reach(reach)?;
        }
    }
    ControlFlow::Continue(())
}

fn check_reach(reach: &Expr) -> Verdict {
    let number = match reach {
        Expr::Value(value) => value_text(&value.value).and_then(|text| text.parse::<u64>().ok()),
        Expr::UnaryOp { expr, .. } | Expr::Nested(expr) => return check_reach(expr),
        _ => None,
    };
    // What is no whole number is refused by the planner.
    if number.is_none_or(|number| number <= MAX_REACH) {
        return ControlFlow::Continue(());
    }
    ControlFlow::Break(Box::new(QueryError::TooLarge(format!(
        "a window frame, lag and lead reach over at most {MAX_REACH} rows; UNBOUNDED costs less"
    ))))
}
