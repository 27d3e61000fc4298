//! What the parser takes and the engine passes over in silence: it would answer as if it were not written. So it is
//! refused by name.

use datafusion::sql::sqlparser::ast::{Function, FunctionArguments, GroupByExpr, Select, TableFactor, WindowSpec};

use super::inspector::{Verdict, refuse};

/// Refuses the first of these that is there; after a semicolon may stand what to write in its place.
fn none_of(parts: &[(bool, &str)]) -> Verdict {
    match parts.iter().find(|(is_there, _)| *is_there) {
        Some((_, name)) => refuse(match name.split_once("; ") {
            Some((name, advice)) => format!("{name} is not offered; {advice}"),
            None => format!("{name} is not offered"),
        }),
        None => Verdict::Continue(()),
    }
}

/// Checks the clauses of a `SELECT`.
pub(super) fn check_select(select: &Select) -> Verdict {
    let (GroupByExpr::All(modifiers) | GroupByExpr::Expressions(_, modifiers)) = &select.group_by;
    none_of(&[
        (select.prewhere.is_some(), "PREWHERE; use WHERE"),
        (!select.connect_by.is_empty(), "CONNECT BY"),
        (select.exclude.is_some(), "EXCLUDE after the columns; put it after the *"),
        (select.value_table_mode.is_some(), "SELECT AS STRUCT or VALUE"),
        (!modifiers.is_empty(), "WITH after GROUP BY; use GROUP BY ROLLUP (…) or CUBE (…)"),
    ])
}

/// Checks what stands beside a table in `FROM`.
pub(super) fn check_table(factor: &TableFactor) -> Verdict {
    match factor {
        TableFactor::Table {
            with_hints, version, with_ordinality, partitions, json_path, sample, index_hints, ..
        } => none_of(&[
            (sample.is_some(), "TABLESAMPLE"),
            (version.is_some(), "reading a table as it was"),
            (*with_ordinality, "WITH ORDINALITY"),
            (!partitions.is_empty(), "PARTITION after a table"),
            (json_path.is_some(), "a path after a table"),
            (!with_hints.is_empty() || !index_hints.is_empty(), "a hint after a table"),
        ]),
        TableFactor::Derived { sample, .. } => none_of(&[(sample.is_some(), "TABLESAMPLE")]),
        _ => Verdict::Continue(()),
    }
}

/// Checks how a function is called.
pub(super) fn check_call(name: &str, function: &Function) -> Verdict {
    let of_subquery = format!("{name} of a subquery");
    none_of(&[
        (function.parameters != FunctionArguments::None, "a function with two lists of arguments"),
        (matches!(function.args, FunctionArguments::Subquery(_)), of_subquery.as_str()),
    ])
}

/// Checks the definition of a window.
pub(super) fn check_window(window: &WindowSpec) -> Verdict {
    none_of(&[(window.window_name.is_some(), "a window that begins with the name of another; write it out")])
}
