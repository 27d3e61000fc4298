//! The functions a query may call.
//!
//! A list of what is offered, not of what is not: a function that a new version of the engine brings is not offered
//! until someone has looked at it. Left out are those that read what is not the org's (a file's name, the server's
//! version), those that make arrays or structs of any size out of nothing, and casts to types of any size.
//!
//! What makes a value larger than its arguments is bounded, since nested calls double it at every step and the memory
//! pool does not see it: such a call is measured before it runs, and no value that it, `||`, `array_agg` or
//! `string_agg` makes may exceed [`MAX_VALUE_BYTES`]. A query with any of them runs in smaller batches.
//!
//! Whole numbers never wrap: `arithmetic` and `sum` are checked. Of the aggregates, only those whose value at a row is
//! at hand are offered over windows ([`WINDOWED`]): the others would compute a window anew at each row, or hold it.

pub(super) mod arithmetic;
mod bounded;
mod bounded_aggregate;
mod concatenation;
mod json;
mod operators;
mod sum;

use std::collections::HashSet;
use std::sync::{Arc, LazyLock};

use datafusion::catalog::TableFunction;
use datafusion::execution::SessionStateBuilder;
use datafusion::execution::SessionStateDefaults;
use datafusion::functions::{core, datetime, math, unicode};
use datafusion::functions_nested::planner::FieldAccessPlanner;
use datafusion::logical_expr::planner::ExprPlanner;
use datafusion::logical_expr::{AggregateUDF, ScalarUDF, WindowUDF};

use self::bounded::{Bounded, Growth};
use self::bounded_aggregate::BoundedAggregate;
use self::concatenation::ConcatenationPlanner;
use self::operators::{JsonPlanner, ListPlanner};
use self::sum::CheckedSum;

/// The largest value, in bytes, that a query may make or hold as a literal.
pub(super) const MAX_VALUE_BYTES: usize = 16 << 10;

/// Scalar functions besides the mathematical ones, of which all are offered.
const SCALARS: &[&str] = &[
    // conditions
    "coalesce",
    "greatest",
    "least",
    "nullif",
    "nvl",
    "nvl2",
    "arrow_typeof",
    // time
    "current_date",
    "current_time",
    "date_bin",
    "date_part",
    "date_trunc",
    "from_unixtime",
    "make_date",
    "make_time",
    "now",
    "to_date",
    "to_local_time",
    "to_time",
    "to_timestamp",
    "to_timestamp_micros",
    "to_timestamp_millis",
    "to_timestamp_nanos",
    "to_timestamp_seconds",
    "to_unixtime",
    // text
    "ascii",
    "bit_length",
    "btrim",
    "character_length",
    "chr",
    "contains",
    "ends_with",
    "find_in_set",
    "initcap",
    "left",
    "lower",
    "ltrim",
    "octet_length",
    "reverse",
    "right",
    "rtrim",
    "split_part",
    "starts_with",
    "strpos",
    "substr",
    "substr_index",
    "to_hex",
    "upper",
    // patterns
    "regexp_count",
    "regexp_instr",
    "regexp_like",
    // bytes
    "decode",
    "digest",
    "md5",
    "sha224",
    "sha256",
    "sha384",
    "sha512",
    // lists
    "array_any_value",
    "array_dims",
    "array_distinct",
    "array_element",
    "array_except",
    "array_has",
    "array_has_all",
    "array_has_any",
    "array_intersect",
    "array_length",
    "array_max",
    "array_min",
    "array_ndims",
    "array_pop_back",
    "array_pop_front",
    "array_position",
    "array_positions",
    "array_remove",
    "array_remove_all",
    "array_remove_n",
    "array_reverse",
    "array_slice",
    "array_sort",
    "cardinality",
    "empty",
    "flatten",
];

/// Scalar functions whose values can be larger than their arguments, and by how much.
const GROWING: &[(&str, Growth)] = &[
    ("array_append", Growth::Sum),
    ("array_concat", Growth::Sum),
    ("array_prepend", Growth::Sum),
    ("array_replace", Growth::Elements),
    ("array_replace_all", Growth::Elements),
    ("array_replace_n", Growth::Elements),
    ("array_to_string", Growth::Join),
    ("array_union", Growth::Sum),
    ("concat", Growth::Sum),
    ("concat_ws", Growth::Separated),
    ("encode", Growth::Twofold),
    ("lpad", Growth::Pad),
    ("make_array", Growth::Sum),
    ("overlay", Growth::Sum),
    ("regexp_match", Growth::Groups),
    ("regexp_replace", Growth::ReplaceMatches),
    ("repeat", Growth::Repeat),
    ("replace", Growth::Replace),
    ("rpad", Growth::Pad),
    ("string_to_array", Growth::Split),
    ("to_char", Growth::Format),
    ("translate", Growth::Fourfold),
];

/// Aggregate functions whose value can be as large as their input.
const GATHERING: &[&str] = &["array_agg", "string_agg"];

/// Aggregate functions that are offered over windows: each takes a row in, and mostly out again, in a few steps, and so
/// gives its value.
const WINDOWED: &[&str] = &[
    "avg",
    "bit_and",
    "bit_or",
    "bit_xor",
    "bool_and",
    "bool_or",
    "corr",
    "count",
    "covar_pop",
    "covar_samp",
    "first_value",
    "last_value",
    "max",
    "min",
    "nth_value",
    "regr_avgx",
    "regr_avgy",
    "regr_count",
    "regr_intercept",
    "regr_r2",
    "regr_slope",
    "regr_sxx",
    "regr_sxy",
    "regr_syy",
    "stddev",
    "stddev_pop",
    "sum",
    "var",
    "var_pop",
];

static KNOWN: LazyLock<Known> = LazyLock::new(Known::new);

/// Names of functions, in lower case, aliases too.
struct Known {
    withheld: HashSet<String>,
    growing: HashSet<String>,
    gathering: HashSet<String>,
    not_windowed: HashSet<String>,
}

impl Known {
    fn new() -> Self {
        let offered = Functions::offered();
        let is_growing = |name: &str| GROWING.iter().any(|(growing, _)| *growing == name);
        let names =
            |name: &str, aliases: &[String]| [name.to_owned()].into_iter().chain(aliases.to_vec()).collect::<Vec<_>>();
        let all = engine_scalars();
        let offered_names: HashSet<String> =
            offered.scalars.iter().flat_map(|f| names(f.name(), f.aliases())).collect();
        let higher_order = SessionStateDefaults::default_higher_order_functions();
        let withheld = all.iter().flat_map(|f| names(f.name(), f.aliases()));
        let withheld = withheld.chain(higher_order.iter().flat_map(|f| names(f.name(), f.aliases())));
        Self {
            withheld: withheld.filter(|name| !offered_names.contains(name)).collect(),
            growing: all.iter().filter(|f| is_growing(f.name())).flat_map(|f| names(f.name(), f.aliases())).collect(),
            gathering: GATHERING.iter().map(|name| (*name).to_owned()).collect(),
            not_windowed: offered
                .aggregates
                .iter()
                .filter(|f| !WINDOWED.contains(&f.name()))
                .flat_map(|f| names(f.name(), f.aliases()))
                .collect(),
        }
    }
}

/// Whether the engine has a function of that name that is not offered.
pub(super) fn is_withheld(name: &str) -> bool {
    KNOWN.withheld.contains(name)
}

/// Whether a call of that name can make values larger than its arguments.
pub(super) fn makes_large_values(name: &str) -> bool {
    KNOWN.growing.contains(name) || KNOWN.gathering.contains(name)
}

/// Whether it is an aggregate that is not offered over windows.
pub(super) fn is_not_windowed(name: &str) -> bool {
    KNOWN.not_windowed.contains(name)
}

/// The aggregates that are offered over windows.
pub(super) fn windowed() -> String {
    WINDOWED.join(", ")
}

fn engine_scalars() -> Vec<Arc<ScalarUDF>> {
    SessionStateDefaults::default_scalar_functions()
}

/// Everything that can be called.
#[derive(Debug, Clone)]
pub(super) struct Functions {
    /// Of a row.
    pub(super) scalars: Vec<Arc<ScalarUDF>>,
    /// Of a group.
    pub(super) aggregates: Vec<Arc<AggregateUDF>>,
    /// Of a window.
    pub(super) windows: Vec<Arc<WindowUDF>>,
    /// In `FROM`.
    pub(super) tables: Vec<Arc<TableFunction>>,
    planners: Vec<Arc<dyn ExprPlanner>>,
}

impl Functions {
    /// The functions on the list.
    pub(super) fn offered() -> Self {
        let maths: HashSet<String> = math::functions().iter().map(|function| function.name().to_owned()).collect();
        let scalars = engine_scalars().into_iter().filter_map(|function| {
            if let Some((_, growth)) = GROWING.iter().find(|(name, _)| *name == function.name()) {
                return Some(Arc::new(ScalarUDF::new_from_impl(Bounded::new(function, *growth))));
            }
            (SCALARS.contains(&function.name()) || maths.contains(function.name())).then_some(function)
        });
        let scalars: Vec<_> = scalars.chain(latency::scalars()).chain(json::functions()).collect();
        let aggregates = SessionStateDefaults::default_aggregate_functions().into_iter().map(|function| {
            if function.name() == "sum" {
                return Arc::new(AggregateUDF::new_from_impl(CheckedSum::new()));
            }
            if GATHERING.contains(&function.name()) {
                return Arc::new(AggregateUDF::new_from_impl(BoundedAggregate::new(function)));
            }
            function
        });
        Self {
            aggregates: aggregates.chain(latency::aggregates()).collect(),
            windows: SessionStateDefaults::default_window_functions(),
            tables: SessionStateDefaults::default_table_functions(),
            planners: vec![
                Arc::new(ListPlanner::new(&scalars)),
                Arc::new(ConcatenationPlanner),
                Arc::new(JsonPlanner),
                Arc::new(core::planner::CoreFunctionPlanner::default()),
                Arc::new(FieldAccessPlanner),
                Arc::new(datetime::planner::DatetimeFunctionPlanner),
                Arc::new(unicode::planner::UnicodeFunctionPlanner),
                Arc::new(datafusion::functions_aggregate::planner::AggregateFunctionPlanner),
                Arc::new(datafusion::functions_window::planner::WindowFunctionPlanner),
            ],
            scalars,
        }
    }

    /// Gives a session these functions, and no others.
    pub(super) fn give_to(&self, session: SessionStateBuilder) -> SessionStateBuilder {
        session
            .with_scalar_functions(self.scalars.clone())
            .with_aggregate_functions(self.aggregates.clone())
            .with_window_functions(self.windows.clone())
            .with_table_function_list(self.tables.clone())
            .with_expr_planners(self.planners.clone())
    }
}

/// The functions of the latency histogram.
mod latency {
    use std::sync::Arc;

    use datafusion::logical_expr::{AggregateUDF, ScalarUDF};

    pub(super) fn scalars() -> Vec<Arc<ScalarUDF>> {
        crate::rollup::scalar_functions()
    }

    pub(super) fn aggregates() -> Vec<Arc<AggregateUDF>> {
        crate::rollup::aggregate_functions()
    }
}

#[cfg(test)]
mod tests {
    use super::{Functions, GATHERING, GROWING, SCALARS, WINDOWED, is_not_windowed, is_withheld, makes_large_values};

    #[test]
    fn every_name_on_the_list_is_a_function_of_the_engine() {
        let offered = Functions::offered();
        for name in SCALARS.iter().copied().chain(GROWING.iter().map(|(name, _)| *name)) {
            assert!(offered.scalars.iter().any(|function| function.name() == name), "{name}");
        }
        for name in GATHERING.iter().chain(WINDOWED) {
            assert!(offered.aggregates.iter().any(|function| function.name() == *name), "{name}");
        }
    }

    #[test]
    fn what_reads_the_server_or_makes_arrays_of_nothing_is_withheld_by_all_its_names() {
        for name in [
            "version",
            "input_file_name",
            "array_repeat",
            "list_repeat",
            "array_resize",
            "range",
            "generate_series",
            "arrow_cast",
            "named_struct",
        ] {
            assert!(is_withheld(name), "{name}");
        }
        assert!(!is_withheld("lower") && !is_withheld("power") && !is_withheld("no_such_function"));
    }

    #[test]
    fn what_can_grow_a_value_is_known_by_all_its_names() {
        assert!(makes_large_values("repeat") && makes_large_values("date_format") && makes_large_values("array_join"));
        for name in ["string_agg", "array_agg", "median", "latency_hist", "latency_merge", "approx_distinct"] {
            assert!(is_not_windowed(name), "{name}");
        }
        assert!(!is_not_windowed("count") && !is_not_windowed("mean") && !is_not_windowed("row_number"));
    }
}
