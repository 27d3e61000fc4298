//! Integer arithmetic that is checked: `+`, `-`, `*` and the unary minus fail where the engine's own would wrap.
//!
//! The engine's kernels for decimals, dates and intervals are checked as they are, and floats have infinities, so only
//! integers are rewritten. The rewrite comes after the engine's type coercion, which leaves both operands of one type,
//! and before constants are folded, since folding would wrap too. `/` and `%` are checked by the engine.
//!
//! Here too, since it is the one place where types are known and nothing has run: `LIKE` over what is no text is
//! refused, which the engine would meet as an error of its own.

use std::sync::{Arc, LazyLock};

use arrow::compute::kernels::numeric::{add, mul, neg, sub};
use arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DFSchema, Result, ScalarValue, exec_err, plan_err};
use datafusion::logical_expr::utils::merge_schema;
use datafusion::logical_expr::{
    BinaryExpr, ColumnarValue, Expr, ExprSchemable, LogicalPlan, Operator, ReturnFieldArgs, ScalarFunctionArgs,
    ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use datafusion::optimizer::analyzer::AnalyzerRule;
use datafusion::physical_expr_common::datum::apply;

/// Puts checked operations in the place of the engine's.
#[derive(Debug)]
pub(in crate::query) struct CheckedArithmetic;

impl AnalyzerRule for CheckedArithmetic {
    fn analyze(&self, plan: LogicalPlan, _: &ConfigOptions) -> Result<LogicalPlan> {
        let checked = plan.transform_up_with_subqueries(|plan| {
            let schema = merge_schema(&plan.inputs());
            let mapped = plan.map_expressions(|expr| expr.transform_up(|expr| checked(expr, &schema)))?;
            if mapped.transformed { mapped.map_data(LogicalPlan::recompute_schema) } else { Ok(mapped) }
        });
        checked.map(|checked| checked.data)
    }

    fn name(&self) -> &'static str {
        "checked_arithmetic"
    }
}

/// The checked form of an expression, if it is integer arithmetic.
fn checked(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    match expr {
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
            let operation = match op {
                Operator::Plus => Some(&ADD),
                Operator::Minus => Some(&SUBTRACT),
                Operator::Multiply => Some(&MULTIPLY),
                _ => None,
            };
            match operation {
                Some(operation) if is_integer(&right, schema)? && is_integer(&left, schema)? => {
                    Ok(Transformed::yes(operation.call(vec![*left, *right])))
                }
                _ => Ok(Transformed::no(Expr::BinaryExpr(BinaryExpr { left, op, right }))),
            }
        }
        Expr::Negative(inner) if is_integer(&inner, schema)? => Ok(Transformed::yes(NEGATE.call(vec![*inner]))),
        Expr::Like(like) | Expr::SimilarTo(like) if !are_texts([&like.expr, &like.pattern], schema)? => {
            plan_err!("LIKE and SIMILAR TO compare texts, and here is something else")
        }
        other => Ok(Transformed::no(other)),
    }
}

/// Whether an operand is a whole number. Operands were looked at before their operations, so what arithmetic they are
/// themselves tells it: asking for the type of a long chain at each of its links would take the square of its length.
fn is_integer(operand: &Expr, schema: &DFSchema) -> Result<bool> {
    match operand {
        Expr::ScalarFunction(call) if call.func.inner().is::<Checked>() => Ok(true),
        Expr::BinaryExpr(BinaryExpr { op: Operator::Plus | Operator::Minus | Operator::Multiply, .. }) => Ok(false),
        other => Ok(other.get_type(schema)?.is_integer()),
    }
}

fn are_texts(operands: [&Expr; 2], schema: &DFSchema) -> Result<bool> {
    for operand in operands {
        let data_type = operand.get_type(schema)?;
        let value = match &data_type {
            DataType::Dictionary(_, value) => value.as_ref(),
            other => other,
        };
        if !(value.is_string() || value.is_null()) {
            return Ok(false);
        }
    }
    Ok(true)
}

static ADD: LazyLock<ScalarUDF> = LazyLock::new(|| Checked::function(Operation::Add));
static SUBTRACT: LazyLock<ScalarUDF> = LazyLock::new(|| Checked::function(Operation::Subtract));
static MULTIPLY: LazyLock<ScalarUDF> = LazyLock::new(|| Checked::function(Operation::Multiply));
static NEGATE: LazyLock<ScalarUDF> = LazyLock::new(|| Checked::function(Operation::Negate));

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Operation {
    Add,
    Subtract,
    Multiply,
    Negate,
}

/// One operation, as a function; no statement can spell its name.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Checked {
    operation: Operation,
    signature: Signature,
}

impl Checked {
    fn function(operation: Operation) -> ScalarUDF {
        ScalarUDF::new_from_impl(Self { operation, signature: Signature::user_defined(Volatility::Immutable) })
    }
}

impl ScalarUDFImpl for Checked {
    fn name(&self) -> &'static str {
        match self.operation {
            Operation::Add => "+",
            Operation::Subtract | Operation::Negate => "-",
            Operation::Multiply => "*",
        }
    }

    /// As the engine names the operation, so that a column keeps its name.
    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        Ok(match args {
            [left, right] => format!("{} {} {}", left.schema_name(), self.name(), right.schema_name()),
            [only] => format!("(- {})", only.schema_name()),
            _ => self.name().to_owned(),
        })
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        Ok(arg_types.to_vec())
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        match arg_types {
            [first, ..] => Ok(first.clone()),
            [] => exec_err!("{} has no operands", self.name()),
        }
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        let types: Vec<DataType> = args.arg_fields.iter().map(|field| field.data_type().clone()).collect();
        let nullable = args.arg_fields.iter().any(|field| field.is_nullable());
        Ok(Arc::new(Field::new(self.name(), self.return_type(&types)?, nullable)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        match (self.operation, args.args.as_slice()) {
            (Operation::Add, [left, right]) => apply(left, right, add),
            (Operation::Subtract, [left, right]) => apply(left, right, sub),
            (Operation::Multiply, [left, right]) => apply(left, right, mul),
            (Operation::Negate, [ColumnarValue::Array(array)]) => Ok(ColumnarValue::Array(neg(array)?)),
            (Operation::Negate, [ColumnarValue::Scalar(scalar)]) => {
                let negated = neg(&scalar.to_array_of_size(1)?)?;
                Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&negated, 0)?))
            }
            _ => exec_err!("{} has not the operands that it needs", self.name()),
        }
    }
}
