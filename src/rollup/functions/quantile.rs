//! `latency_quantile(latency, q)`: reads a quantile from an encoded histogram without unpacking it.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Float64Array};
use arrow::datatypes::DataType;
use datafusion::common::cast::as_float64_array;
use datafusion::common::{Result, ScalarValue, exec_err, plan_err};
use datafusion::logical_expr::{
    ColumnarValue, DocSection, Documentation, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility,
};

use super::input::{binary, for_each_binary, number};
use crate::rollup::Encoded;

const NAME: &str = "latency_quantile";

/// The function, as SQL knows it.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct LatencyQuantile {
    signature: Signature,
    documentation: Documentation,
}

impl LatencyQuantile {
    pub(super) fn new() -> Self {
        let section = DocSection { include: true, label: "Latency histograms", description: None };
        let description =
            "The quantile q, from 0 to 1, of a latency histogram: by nearest rank, in milliseconds, within 0.542 %.";
        Self {
            signature: Signature::user_defined(Volatility::Immutable),
            documentation: Documentation::builder(section, description, "latency_quantile(latency, q)").build(),
        }
    }
}

impl ScalarUDFImpl for LatencyQuantile {
    fn name(&self) -> &str {
        NAME
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Float64)
    }

    fn coerce_types(&self, given: &[DataType]) -> Result<Vec<DataType>> {
        match given {
            [latency, q] => Ok(vec![binary(NAME, latency)?, number(NAME, q)?]),
            _ => {
                plan_err!("{NAME} takes a latency histogram and a quantile from 0 to 1, not {} arguments", given.len())
            }
        }
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [latency, q] = args.args.as_slice() else {
            return exec_err!("{NAME} takes two arguments, not {}", args.args.len());
        };
        if let (ColumnarValue::Scalar(_), ColumnarValue::Scalar(_)) = (latency, q) {
            let answer = quantiles(&latency.to_array(1)?, &q.to_array(1)?)?;
            return Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&answer, 0)?));
        }
        let answer = quantiles(&latency.to_array(args.number_rows)?, &q.to_array(args.number_rows)?)?;
        Ok(ColumnarValue::Array(Arc::new(answer)))
    }

    fn documentation(&self) -> Option<&Documentation> {
        Some(&self.documentation)
    }
}

/// The quantile `q` of each row's histogram; both columns are of one length.
fn quantiles(latency: &ArrayRef, q: &ArrayRef) -> Result<Float64Array> {
    let q = as_float64_array(q)?;
    let mut answers = vec![None; latency.len()];
    for_each_binary(latency, |row, bytes| {
        if q.is_null(row) {
            return Ok(());
        }
        let q = q.value(row);
        if !(0.0..=1.0).contains(&q) {
            return exec_err!("{NAME}: the quantile must be from 0 to 1, and is {q}");
        }
        let histogram = Encoded::parse(bytes).or_else(|e| exec_err!("{NAME}: {e}"))?;
        if let Some(answer) = answers.get_mut(row) {
            *answer = histogram.quantile(q);
        }
        Ok(())
    })?;
    Ok(answers.into_iter().collect())
}
