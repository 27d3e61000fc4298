//! The operator `||` as a function, so that it is bounded like the others: the engine's own joins without a limit.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, StringViewBuilder};
use arrow::datatypes::DataType;
use datafusion::common::{DFSchema, Result, ScalarValue, plan_err};
use datafusion::logical_expr::planner::{ExprPlanner, PlannerResult, RawBinaryExpr};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use datafusion::sql::sqlparser::ast::BinaryOperator;

use super::MAX_VALUE_BYTES;
use super::bounded::too_large;

/// Plans `a || b`.
#[derive(Debug)]
pub(super) struct ConcatenationPlanner;

impl ExprPlanner for ConcatenationPlanner {
    fn plan_binary_op(&self, expr: RawBinaryExpr, _: &DFSchema) -> Result<PlannerResult<RawBinaryExpr>> {
        if expr.op != BinaryOperator::StringConcat {
            return Ok(PlannerResult::Original(expr));
        }
        let operator = Arc::new(ScalarUDF::new_from_impl(Concatenation::new()));
        Ok(PlannerResult::Planned(operator.call(vec![expr.left, expr.right])))
    }
}

/// Two texts joined; null if either is.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Concatenation {
    signature: Signature,
}

impl Concatenation {
    fn new() -> Self {
        Self { signature: Signature::user_defined(Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for Concatenation {
    fn name(&self) -> &'static str {
        "||"
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        Ok(args.iter().map(|arg| arg.schema_name().to_string()).collect::<Vec<_>>().join(" || "))
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        match arg_types.iter().find(|data_type| data_type.is_nested() || data_type.is_binary()) {
            Some(other) => plan_err!("|| joins texts, not a value of type {other}"),
            None => Ok(vec![DataType::Utf8View; arg_types.len()]),
        }
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8View)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let all_scalar = args.args.iter().all(|arg| matches!(arg, ColumnarValue::Scalar(_)));
        let rows = if all_scalar { 1 } else { args.number_rows };
        let mut columns = Vec::with_capacity(args.args.len());
        for arg in &args.args {
            columns.push(match arg {
                ColumnarValue::Array(array) => (Arc::clone(array), false),
                ColumnarValue::Scalar(scalar) => (scalar.to_array_of_size(1)?, true),
            });
        }
        let mut joined = StringViewBuilder::with_capacity(rows);
        let mut text = String::new();
        for row in 0..rows {
            text.clear();
            if !push_all(&mut text, &columns, row) {
                joined.append_null();
            } else if text.len() > MAX_VALUE_BYTES {
                return Err(too_large("||"));
            } else {
                joined.append_value(&text);
            }
        }
        let joined: ArrayRef = Arc::new(joined.finish());
        Ok(if all_scalar {
            ColumnarValue::Scalar(ScalarValue::try_from_array(&joined, 0)?)
        } else {
            ColumnarValue::Array(joined)
        })
    }
}

/// Appends a row's texts; false if one is null.
fn push_all(text: &mut String, columns: &[(ArrayRef, bool)], row: usize) -> bool {
    columns.iter().all(|(array, same)| {
        let row = if *same { 0 } else { row };
        if array.is_null(row) {
            return false;
        }
        text.push_str(array.as_string_view().value(row));
        true
    })
}
