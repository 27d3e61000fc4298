//! `latency_buckets(latency, per_octave)`: the counts of an encoded histogram as a list, for heat maps and charts.
//!
//! An item is a struct of `lower_ms` (exclusive), `upper_ms` (inclusive) and `calls`, ascending, empty ones left out.
//! `per_octave` says into how many each doubling is cut: a power of two up to the 64 of the histogram itself, so that
//! each bucket is a sum of whole ones and the counts are exact. What counts as zero is the item whose `lower_ms` is 0.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Float64Builder, Int64Builder, ListArray, StructArray};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{DataType, Field, Fields};
use datafusion::common::cast::as_int64_array;
use datafusion::common::{Result, ScalarValue, exec_err, plan_err};
use datafusion::logical_expr::{
    ColumnarValue, DocSection, Documentation, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility,
};

use super::input::{binary, for_each_binary};
use crate::rollup::Histogram;
use crate::rollup::histogram::{PER_OCTAVE, ZERO_THRESHOLD_SECONDS, upper_bound_seconds};

const NAME: &str = "latency_buckets";

/// The function, as SQL knows it.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct LatencyBuckets {
    signature: Signature,
    documentation: Documentation,
}

impl LatencyBuckets {
    pub(super) fn new() -> Self {
        let section = DocSection { include: true, label: "Latency histograms", description: None };
        let description = "The counts of a latency histogram, a list of {lower_ms, upper_ms, calls}: each doubling is cut into per_octave buckets, \
                           a power of two up to 64.";
        Self {
            signature: Signature::user_defined(Volatility::Immutable),
            documentation: Documentation::builder(section, description, "latency_buckets(latency, per_octave)").build(),
        }
    }
}

impl ScalarUDFImpl for LatencyBuckets {
    fn name(&self) -> &str {
        NAME
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::List(Arc::new(item())))
    }

    fn coerce_types(&self, given: &[DataType]) -> Result<Vec<DataType>> {
        match given {
            [latency, per_octave] if per_octave.is_integer() || per_octave.is_null() => {
                Ok(vec![binary(NAME, latency)?, DataType::Int64])
            }
            [_, other] => plan_err!("{NAME}: the buckets of a doubling are a whole number, not {other}"),
            _ => plan_err!(
                "{NAME} takes a latency histogram and the number of buckets of a doubling, not {} arguments",
                given.len()
            ),
        }
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [latency, per_octave] = args.args.as_slice() else {
            return exec_err!("{NAME} takes two arguments, not {}", args.args.len());
        };
        if let (ColumnarValue::Scalar(_), ColumnarValue::Scalar(_)) = (latency, per_octave) {
            let answer = buckets(&latency.to_array(1)?, &per_octave.to_array(1)?)?;
            return Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&answer, 0)?));
        }
        let answer = buckets(&latency.to_array(args.number_rows)?, &per_octave.to_array(args.number_rows)?)?;
        Ok(ColumnarValue::Array(Arc::new(answer)))
    }

    fn documentation(&self) -> Option<&Documentation> {
        Some(&self.documentation)
    }
}

/// What the list holds.
fn item() -> Field {
    Field::new_list_field(DataType::Struct(fields()), true)
}

fn fields() -> Fields {
    Fields::from(vec![
        Field::new("lower_ms", DataType::Float64, false),
        Field::new("upper_ms", DataType::Float64, false),
        Field::new("calls", DataType::Int64, false),
    ])
}

/// The buckets of each row's histogram; both columns are of one length.
fn buckets(latency: &ArrayRef, per_octave: &ArrayRef) -> Result<ListArray> {
    let per_octave = as_int64_array(per_octave)?;
    let mut rows: Vec<Option<Vec<Bucket>>> = vec![None; latency.len()];
    for_each_binary(latency, |row, bytes| {
        if per_octave.is_null(row) {
            return Ok(());
        }
        let Some(width) = width(per_octave.value(row)) else {
            return exec_err!(
                "{NAME}: a doubling is cut into 1, 2, 4, 8, 16, 32 or 64 buckets, not {}",
                per_octave.value(row)
            );
        };
        let mut histogram = Histogram::new();
        histogram.merge_encoded(bytes).or_else(|e| exec_err!("{NAME}: {e}"))?;
        if let Some(answer) = rows.get_mut(row) {
            *answer = Some(summed(&histogram, width));
        }
        Ok(())
    })?;
    let (mut lower, mut upper, mut calls) = (Float64Builder::new(), Float64Builder::new(), Int64Builder::new());
    for bucket in rows.iter().flatten().flatten() {
        lower.append_value(bucket.lower_ms);
        upper.append_value(bucket.upper_ms);
        calls.append_value(i64::try_from(bucket.calls).unwrap_or(i64::MAX));
    }
    let columns: Vec<ArrayRef> = vec![Arc::new(lower.finish()), Arc::new(upper.finish()), Arc::new(calls.finish())];
    let items = StructArray::try_new(fields(), columns, None)?;
    let offsets = OffsetBuffer::from_lengths(rows.iter().map(|row| row.as_ref().map_or(0, Vec::len)));
    let nulls = NullBuffer::from_iter(rows.iter().map(Option::is_some));
    Ok(ListArray::try_new(Arc::new(item()), offsets, Arc::new(items), Some(nulls))?)
}

/// How many of the histogram's buckets make one.
fn width(per_octave: i64) -> Option<i32> {
    let per_octave = i32::try_from(per_octave).ok().filter(|per_octave| (1..=PER_OCTAVE).contains(per_octave))?;
    (per_octave.count_ones() == 1).then_some(PER_OCTAVE / per_octave)
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    lower_ms: f64,
    upper_ms: f64,
    calls: u64,
}

fn summed(histogram: &Histogram, width: i32) -> Vec<Bucket> {
    let zeros = histogram.zero_count();
    let zero = Bucket { lower_ms: 0.0, upper_ms: ZERO_THRESHOLD_SECONDS * 1000.0, calls: zeros };
    let mut answer = if zeros > 0 { vec![zero] } else { Vec::new() };
    let mut last = None;
    histogram.for_each_bucket(|index, calls| {
        let group = i32::from(index).div_euclid(width);
        if let (true, Some(bucket)) = (last == Some(group), answer.last_mut()) {
            bucket.calls += calls;
            return;
        }
        last = Some(group);
        let bound = |group: i32| 1000.0 * i16::try_from(group * width - 1).map_or(f64::MAX, upper_bound_seconds);
        answer.push(Bucket { lower_ms: bound(group), upper_ms: bound(group + 1), calls });
    });
    answer
}
