//! Operators and literals that stand for functions: lists (`[a, b]`, `||`, `@>`, `<@`) and members of JSON (`->`,
//! `->>`).
//!
//! They become calls of the functions that are offered, so that they are bounded as those are.

use std::sync::Arc;

use datafusion::common::utils::list_ndims;
use datafusion::common::{DFSchema, Result, plan_datafusion_err};
use datafusion::logical_expr::planner::{ExprPlanner, PlannerResult, RawBinaryExpr};
use datafusion::logical_expr::{Expr, ExprSchemable, ScalarUDF};
use datafusion::sql::sqlparser::ast::BinaryOperator;

use super::json::{AS_TEXT, GET_JSON};

/// Plans literals and operators of lists.
#[derive(Debug)]
pub(super) struct ListPlanner(Vec<Arc<ScalarUDF>>);

impl ListPlanner {
    /// A planner that calls functions of `offered`.
    pub(super) fn new(offered: &[Arc<ScalarUDF>]) -> Self {
        let needed = ["make_array", "array_concat", "array_append", "array_prepend", "array_has_all"];
        Self(offered.iter().filter(|function| needed.contains(&function.name())).map(Arc::clone).collect())
    }

    fn call(&self, name: &str, args: Vec<Expr>) -> Result<Expr> {
        let function = self.0.iter().find(|function| function.name() == name);
        Ok(function.ok_or_else(|| plan_datafusion_err!("lists are not offered"))?.call(args))
    }
}

impl ExprPlanner for ListPlanner {
    fn plan_array_literal(&self, exprs: Vec<Expr>, _: &DFSchema) -> Result<PlannerResult<Vec<Expr>>> {
        Ok(PlannerResult::Planned(self.call("make_array", exprs)?))
    }

    fn plan_binary_op(&self, expr: RawBinaryExpr, schema: &DFSchema) -> Result<PlannerResult<RawBinaryExpr>> {
        let is_ours =
            matches!(expr.op, BinaryOperator::StringConcat | BinaryOperator::AtArrow | BinaryOperator::ArrowAt);
        if !is_ours {
            return Ok(PlannerResult::Original(expr));
        }
        let (left, right) = (list_ndims(&expr.left.get_type(schema)?), list_ndims(&expr.right.get_type(schema)?));
        let planned = match expr.op {
            _ if left + right == 0 => return Ok(PlannerResult::Original(expr)),
            BinaryOperator::StringConcat if left == right => self.call("array_concat", vec![expr.left, expr.right])?,
            BinaryOperator::StringConcat if left > right => self.call("array_append", vec![expr.left, expr.right])?,
            BinaryOperator::StringConcat => self.call("array_prepend", vec![expr.left, expr.right])?,
            _ if left != right => return Ok(PlannerResult::Original(expr)),
            BinaryOperator::AtArrow => self.call("array_has_all", vec![expr.left, expr.right])?,
            _ => self.call("array_has_all", vec![expr.right, expr.left])?,
        };
        Ok(PlannerResult::Planned(planned))
    }
}

/// Plans `json -> member`, which gives JSON text, and `json ->> member`, which gives a text's content.
#[derive(Debug)]
pub(super) struct JsonPlanner;

impl ExprPlanner for JsonPlanner {
    fn plan_binary_op(&self, expr: RawBinaryExpr, _: &DFSchema) -> Result<PlannerResult<RawBinaryExpr>> {
        let (function, sign) = match expr.op {
            BinaryOperator::Arrow => (&GET_JSON, "->"),
            BinaryOperator::LongArrow => (&AS_TEXT, "->>"),
            _ => return Ok(PlannerResult::Original(expr)),
        };
        let name = format!("{} {sign} {}", expr.left.schema_name(), expr.right.schema_name());
        Ok(PlannerResult::Planned(function.call(vec![expr.left, expr.right]).alias(name)))
    }
}
