//! `sum`, checked: the engine's own wraps when a sum leaves the range of its type.
//!
//! Whole numbers are added up as decimals, which hold any sum of 64-bit numbers, and the sum becomes a 64-bit number
//! again when it is asked for: so it is exact or an error, in whatever order the rows come. Decimals that are too wide
//! for a sum of them are widened before they are added. All else is as the engine does it.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::{Result, ScalarValue, exec_datafusion_err, plan_err};
use datafusion::functions_aggregate::sum::sum_udaf;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::AggregateOrderSensitivity;
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, Documentation, EmitTo, GroupsAccumulator, ReversedUDAF, Signature,
    Volatility,
};

/// What a whole number is added up as: it holds 10^18 times the largest one.
const TERM: DataType = DataType::Decimal128(20, 0);
const TOTAL: DataType = DataType::Decimal128(38, 0);

/// Digits of a decimal of which ten thousand million fit into a sum of 38 digits.
const NARROW: u8 = 28;

/// An error where a value does not fit, never a null.
const STRICT: CastOptions<'static> =
    CastOptions { safe: false, format_options: arrow::util::display::FormatOptions::new() };

/// `sum`, checked.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct CheckedSum {
    inner: Arc<AggregateUDF>,
    signature: Signature,
}

impl CheckedSum {
    pub(super) fn new() -> Self {
        Self { inner: sum_udaf(), signature: Signature::user_defined(Volatility::Immutable) }
    }

    /// Gives the engine's function what it needs to add up whole numbers as decimals; other types as they are.
    fn with_inner<T>(
        &self,
        args: AccumulatorArgs,
        make: impl FnOnce(&AggregateUDF, AccumulatorArgs) -> Result<T>,
        wrap: impl FnOnce(T, DataType) -> T,
    ) -> Result<T> {
        let whole = args.return_field.data_type().clone();
        if !whole.is_integer() {
            return make(&self.inner, args);
        }
        let terms: Vec<FieldRef> = args.expr_fields.iter().map(|field| retyped(field, TERM)).collect();
        let decimal = AccumulatorArgs { return_field: retyped(&args.return_field, TOTAL), expr_fields: &terms, ..args };
        Ok(wrap(make(&self.inner, decimal)?, whole))
    }
}

fn retyped(field: &Field, data_type: DataType) -> FieldRef {
    Arc::new(field.clone().with_data_type(data_type))
}

impl AggregateUDFImpl for CheckedSum {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        let [only] = arg_types else { return plan_err!("sum takes one argument, and {} were given", arg_types.len()) };
        let term = match only {
            DataType::Dictionary(_, value) => value.as_ref(),
            other => other,
        };
        Ok(vec![match term {
            DataType::Null => DataType::Int64,
            unsigned if unsigned.is_unsigned_integer() => DataType::UInt64,
            signed if signed.is_signed_integer() => DataType::Int64,
            float if float.is_floating() => DataType::Float64,
            DataType::Decimal32(precision, scale) | DataType::Decimal64(precision, scale) => {
                DataType::Decimal128(*precision, *scale)
            }
            DataType::Decimal128(precision, scale) if *precision > NARROW => DataType::Decimal256(*precision, *scale),
            decimal if decimal.is_decimal() => decimal.clone(),
            span @ (DataType::Interval(_) | DataType::Duration(_)) => span.clone(),
            other => return plan_err!("sum adds up numbers and intervals, not values of type {other}"),
        }])
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        self.inner.return_type(arg_types)
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        self.with_inner(args, |sum, args| sum.accumulator(args), |inner, whole| Box::new(Whole { inner, whole }))
    }

    fn create_sliding_accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        self.with_inner(
            args,
            |sum, args| sum.create_sliding_accumulator(args),
            |inner, whole| Box::new(Whole { inner, whole }),
        )
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        if !args.return_field.data_type().is_integer() {
            return self.inner.state_fields(args);
        }
        self.inner.state_fields(StateFieldsArgs { return_field: retyped(&args.return_field, TOTAL), ..args })
    }

    fn groups_accumulator_supported(&self, args: AccumulatorArgs) -> bool {
        self.inner.groups_accumulator_supported(args)
    }

    fn create_groups_accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn GroupsAccumulator>> {
        self.with_inner(
            args,
            |sum, args| sum.create_groups_accumulator(args),
            |inner, whole| Box::new(WholeGroups { inner, whole }),
        )
    }

    fn reverse_expr(&self) -> ReversedUDAF {
        ReversedUDAF::Identical
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        AggregateOrderSensitivity::Insensitive
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.inner.documentation()
    }
}

/// Whole numbers as the decimals that they are added up as.
fn terms(values: &[ArrayRef]) -> Result<Vec<ArrayRef>> {
    let cast = |value: &ArrayRef| Ok(cast_with_options(value, &TERM, &STRICT)?);
    // The kernels that add up look at the physical type alone, so the precision need not be that of the total.
    values.iter().map(cast).collect()
}

/// A sum as a whole number again, or the error that it does not fit the type.
fn whole(total: &ArrayRef, data_type: &DataType) -> Result<ArrayRef> {
    cast_with_options(total, data_type, &STRICT)
        .map_err(|_| exec_datafusion_err!("a sum leaves the range of its type, {data_type}; sum a decimal or a double"))
}

/// The accumulator of one sum of whole numbers.
#[derive(Debug)]
struct Whole {
    inner: Box<dyn Accumulator>,
    whole: DataType,
}

impl Accumulator for Whole {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.inner.update_batch(&terms(values)?)
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let total = self.inner.evaluate()?.to_array_of_size(1)?;
        ScalarValue::try_from_array(&whole(&total, &self.whole)?, 0)
    }

    fn size(&self) -> usize {
        self.inner.size()
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        self.inner.state()
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.inner.merge_batch(states)
    }

    fn retract_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.inner.retract_batch(&terms(values)?)
    }

    fn supports_retract_batch(&self) -> bool {
        self.inner.supports_retract_batch()
    }
}

/// The accumulator of many sums of whole numbers.
struct WholeGroups {
    inner: Box<dyn GroupsAccumulator>,
    whole: DataType,
}

impl GroupsAccumulator for WholeGroups {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        group_indices: &[usize],
        opt_filter: Option<&BooleanArray>,
        total_num_groups: usize,
    ) -> Result<()> {
        self.inner.update_batch(&terms(values)?, group_indices, opt_filter, total_num_groups)
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        whole(&self.inner.evaluate(emit_to)?, &self.whole)
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        self.inner.state(emit_to)
    }

    fn merge_batch(&mut self, values: &[ArrayRef], group_indices: &[usize], total_num_groups: usize) -> Result<()> {
        self.inner.merge_batch(values, group_indices, total_num_groups)
    }

    fn convert_to_state(&self, values: &[ArrayRef], opt_filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        let totals = values.iter().map(|value| Ok(cast_with_options(value, &TOTAL, &STRICT)?));
        self.inner.convert_to_state(&totals.collect::<Result<Vec<_>>>()?, opt_filter)
    }

    fn size(&self) -> usize {
        self.inner.size()
    }
}
