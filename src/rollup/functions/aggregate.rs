//! `latency_hist` and `latency_merge`: one aggregate fed with durations or with histograms.
//!
//! Its state between the phases of an aggregation is its result, the encoded histogram: a histogram of part of the rows
//! is all that merging needs. Of no values it is NULL; of histograms of nothing it is one of nothing.

use std::sync::Arc;

use arrow::array::{Array, ArrayBuilder, ArrayRef, BinaryBuilder, BooleanArray};
use arrow::datatypes::DataType;
use datafusion::common::{Result, ScalarValue, exec_err, not_impl_err, resources_err};
use datafusion::logical_expr::function::AccumulatorArgs;
use datafusion::logical_expr::utils::AggregateOrderSensitivity;
use datafusion::logical_expr::{
    Accumulator, AggregateUDFImpl, DocSection, Documentation, EmitTo, GroupsAccumulator, ReversedUDAF, Signature,
    Volatility,
};

use super::input::Input;
use crate::rollup::{Histogram, encode};

/// The most bytes that one Arrow array of type `Binary` can hold: its offsets are signed 32-bit.
const ARRAY_MAX: usize = i32::MAX as usize;

/// The function, as SQL knows it.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct LatencyAggregate {
    name: &'static str,
    input: Input,
    signature: Signature,
    documentation: Documentation,
}

impl LatencyAggregate {
    /// `latency_hist(duration_ms)`
    pub(super) fn hist() -> Self {
        Self::new(
            "latency_hist",
            Input::Durations,
            "The histogram of durations in milliseconds: mergeable, and within 0.542 % at every quantile.",
            "duration_ms",
        )
    }

    /// `latency_merge(latency)`
    pub(super) fn merge() -> Self {
        Self::new(
            "latency_merge",
            Input::Histograms,
            "The merged histogram of histograms, without any loss.",
            "latency",
        )
    }

    fn new(name: &'static str, input: Input, description: &str, argument: &str) -> Self {
        let section = DocSection { include: true, label: "Latency histograms", description: None };
        Self {
            name,
            input,
            signature: Signature::user_defined(Volatility::Immutable),
            documentation: Documentation::builder(section, description, format!("{name}({argument})")).build(),
        }
    }
}

impl AggregateUDFImpl for LatencyAggregate {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Binary)
    }

    fn coerce_types(&self, given: &[DataType]) -> Result<Vec<DataType>> {
        self.input.coerce(self.name, given)
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        if args.is_distinct {
            return not_impl_err!("{}(DISTINCT …): every call counts", self.name);
        }
        Ok(Box::new(One { input: self.input, histogram: Histogram::new(), any: false }))
    }

    fn groups_accumulator_supported(&self, args: AccumulatorArgs) -> bool {
        !args.is_distinct
    }

    fn create_groups_accumulator(&self, _: AccumulatorArgs) -> Result<Box<dyn GroupsAccumulator>> {
        Ok(Box::new(Groups { input: self.input, histograms: Vec::new(), any: Vec::new(), heap_bytes: 0 }))
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        AggregateOrderSensitivity::Insensitive
    }

    fn reverse_expr(&self) -> ReversedUDAF {
        ReversedUDAF::Identical
    }

    fn documentation(&self) -> Option<&Documentation> {
        Some(&self.documentation)
    }
}

/// The one argument, or the one state.
fn only(values: &[ArrayRef]) -> Result<&ArrayRef> {
    match values {
        [only] => Ok(only),
        _ => exec_err!("a latency aggregate takes one argument, not {}", values.len()),
    }
}

/// The state of an aggregation without groups.
#[derive(Debug)]
struct One {
    input: Input,
    histogram: Histogram,
    /// Whether there was a value.
    any: bool,
}

impl One {
    fn feed(&mut self, input: Input, values: &[ArrayRef]) -> Result<()> {
        input.for_each(only(values)?, |_, item| {
            self.any = true;
            item.add_to(&mut self.histogram)
        })
    }
}

impl Accumulator for One {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.feed(self.input, values)
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.feed(Input::Histograms, states)
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let mut bytes = Vec::new();
        encode(&self.histogram, &mut bytes);
        Ok(ScalarValue::Binary(self.any.then_some(bytes)))
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![self.evaluate()?])
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.histogram.heap_bytes()
    }
}

/// The state of an aggregation by groups: one histogram a group.
struct Groups {
    input: Input,
    histograms: Vec<Histogram>,
    /// Whether each had a value.
    any: Vec<bool>,
    /// What the histograms hold on the heap, kept current so that asking for it costs nothing.
    heap_bytes: usize,
}

impl Groups {
    fn feed(
        &mut self,
        input: Input,
        values: &[ArrayRef],
        groups: &[usize],
        filter: Option<&BooleanArray>,
        group_count: usize,
    ) -> Result<()> {
        self.histograms.resize_with(group_count, Histogram::new);
        self.any.resize(group_count, false);
        input.for_each(only(values)?, |row, item| {
            if passes(filter, row)
                && let Some(&group) = groups.get(row)
                && let (Some(histogram), Some(any)) = (self.histograms.get_mut(group), self.any.get_mut(group))
            {
                *any = true;
                let before = histogram.heap_bytes();
                item.add_to(histogram)?;
                // A histogram may also shrink, when its counts find a narrower form.
                self.heap_bytes = (self.heap_bytes + histogram.heap_bytes()).saturating_sub(before);
            }
            Ok(())
        })
    }
}

impl GroupsAccumulator for Groups {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        group_indices: &[usize],
        opt_filter: Option<&BooleanArray>,
        total_num_groups: usize,
    ) -> Result<()> {
        self.feed(self.input, values, group_indices, opt_filter, total_num_groups)
    }

    fn merge_batch(&mut self, values: &[ArrayRef], group_indices: &[usize], total_num_groups: usize) -> Result<()> {
        self.feed(Input::Histograms, values, group_indices, None, total_num_groups)
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        let emitted = emit_to.take_needed(&mut self.histograms);
        let any = emit_to.take_needed(&mut self.any);
        self.heap_bytes = self.heap_bytes.saturating_sub(emitted.iter().map(Histogram::heap_bytes).sum());
        let mut array = Encoder::new(emitted.len());
        emitted.iter().zip(any).try_for_each(|(histogram, any)| array.push(histogram, any))?;
        Ok(array.finish())
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        Ok(vec![self.evaluate(emit_to)?])
    }

    fn convert_to_state(&self, values: &[ArrayRef], opt_filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        let values = only(values)?;
        let mut array = Encoder::new(values.len());
        let mut histogram = Histogram::new();
        self.input.for_each(values, |row, item| {
            if passes(opt_filter, row) {
                array.push_nulls_to(row);
                histogram.clear();
                item.add_to(&mut histogram)?;
                array.push(&histogram, true)?;
            }
            Ok(())
        })?;
        array.push_nulls_to(values.len());
        Ok(vec![array.finish()])
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.histograms.capacity() * size_of::<Histogram>() + self.any.capacity() + self.heap_bytes
    }
}

/// Whether a row is not filtered out.
fn passes(filter: Option<&BooleanArray>, row: usize) -> bool {
    filter.is_none_or(|filter| filter.is_valid(row) && filter.value(row))
}

/// Builds a column of encoded histograms, NULL where there was no value.
struct Encoder {
    array: BinaryBuilder,
    bytes: Vec<u8>,
}

impl Encoder {
    fn new(rows: usize) -> Self {
        Self { array: BinaryBuilder::with_capacity(rows, 0), bytes: Vec::new() }
    }

    fn push(&mut self, histogram: &Histogram, any: bool) -> Result<()> {
        if !any {
            self.array.append_null();
            return Ok(());
        }
        self.bytes.clear();
        encode(histogram, &mut self.bytes);
        if self.array.values_slice().len() + self.bytes.len() > ARRAY_MAX {
            return resources_err!("the histograms of all groups take more than 2 GiB: ask for fewer groups at once");
        }
        self.array.append_value(&self.bytes);
        Ok(())
    }

    /// Fills with NULL up to before `row`.
    fn push_nulls_to(&mut self, row: usize) {
        self.array.append_nulls(row - self.array.len());
    }

    fn finish(mut self) -> ArrayRef {
        Arc::new(self.array.finish())
    }
}
