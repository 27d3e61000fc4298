//! A scalar function whose values may not grow past the bound: measured before it runs, and again after.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array};
use arrow::compute::cast;
use arrow::datatypes::{DataType, FieldRef, Int64Type};
use datafusion::common::{DataFusionError, Result, ScalarValue};
use datafusion::logical_expr::{
    ColumnarValue, Documentation, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
};

use super::MAX_VALUE_BYTES;
use crate::query::QueryError;

/// What a call might make at most, in bytes, before it is refused unrun. Estimates of the patterns' functions are far
/// above what they make in fact, so this is more than [`MAX_VALUE_BYTES`], which holds for what is made in fact.
const MAX_ESTIMATE_BYTES: usize = 16 * MAX_VALUE_BYTES;

/// What an element of a list takes besides its own bytes.
const ELEMENT_BYTES: usize = 8;

/// How large a function's value can be, by its arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Growth {
    /// All arguments together.
    Sum,
    /// All arguments together, and the first between each two.
    Separated,
    /// The first, twice over.
    Twofold,
    /// The first, four times over: each character may become the longest one.
    Fourfold,
    /// The first, as often as the second says.
    Repeat,
    /// As many characters as the second says.
    Pad,
    /// The first with each occurrence of the second turned into the third.
    Replace,
    /// The first with each match of the second turned into the third, in which groups of the match may stand.
    ReplaceMatches,
    /// The first, for each group of the pattern in the second.
    Groups,
    /// What the directives of the second, two bytes each, spell: at most 32 bytes each.
    Format,
    /// The elements of the first, and the second between each two.
    Join,
    /// The first, each of whose elements may become the third.
    Elements,
    /// The first, each of whose characters may become an element.
    Split,
}

impl Growth {
    fn estimate(self, args: &[Sizes], row: usize) -> usize {
        let bytes = |index: usize| args.get(index).map_or(0, |sizes| sizes.bytes(row));
        let number = |index: usize| args.get(index).map_or(0, |sizes| sizes.number(row));
        let sum = || args.iter().fold(0, |sum: usize, sizes| sum.saturating_add(sizes.bytes(row)));
        let first = bytes(0);
        match self {
            Self::Sum => sum(),
            Self::Separated => sum().saturating_add(first.saturating_mul(args.len())),
            Self::Twofold => first.saturating_mul(2),
            Self::Fourfold => first.saturating_mul(4),
            Self::Repeat => first.saturating_mul(number(1)),
            Self::Pad => number(1).saturating_mul(4),
            Self::Replace => {
                let occurrences = first / bytes(1).max(1) + 1;
                first.saturating_add(occurrences.saturating_mul(bytes(2)))
            }
            Self::ReplaceMatches => {
                first.saturating_add(first.saturating_mul(2).saturating_add(1).saturating_mul(bytes(2)))
            }
            Self::Groups => first.saturating_mul(bytes(1) / 2 + 1),
            Self::Format => bytes(1).saturating_mul(16),
            Self::Join => first.saturating_add(number(0).saturating_mul(bytes(1))),
            Self::Elements => first.saturating_add(number(0).saturating_mul(bytes(2))),
            Self::Split => first.saturating_mul(1 + ELEMENT_BYTES),
        }
    }
}

/// How large the values of one argument are.
enum Sizes {
    Same { bytes: usize, number: usize },
    Each { bytes: Vec<usize>, numbers: Vec<usize> },
}

impl Sizes {
    fn of(value: &ColumnarValue) -> Result<Self> {
        match value {
            ColumnarValue::Scalar(scalar) => {
                let one = scalar.to_array_of_size(1)?;
                Ok(Self::Same {
                    bytes: byte_sizes(&one).first().copied().unwrap_or_default(),
                    number: numbers(&one)?.first().copied().unwrap_or_default(),
                })
            }
            ColumnarValue::Array(array) => Ok(Self::Each { bytes: byte_sizes(array), numbers: numbers(array)? }),
        }
    }

    fn bytes(&self, row: usize) -> usize {
        match self {
            Self::Same { bytes, .. } => *bytes,
            Self::Each { bytes, .. } => bytes.get(row).copied().unwrap_or_default(),
        }
    }

    fn number(&self, row: usize) -> usize {
        match self {
            Self::Same { number, .. } => *number,
            Self::Each { numbers, .. } => numbers.get(row).copied().unwrap_or_default(),
        }
    }
}

/// The bytes of each value: of text and bytes their length, of lists what their elements take, of all else a few.
fn byte_sizes(array: &ArrayRef) -> Vec<usize> {
    let lengths = |length: &dyn Fn(usize) -> usize| {
        (0..array.len()).map(|row| if array.is_null(row) { 0 } else { length(row) }).collect()
    };
    match array.data_type() {
        DataType::Utf8 => lengths(&|row| array.as_string::<i32>().value(row).len()),
        DataType::LargeUtf8 => lengths(&|row| array.as_string::<i64>().value(row).len()),
        DataType::Utf8View => lengths(&|row| array.as_string_view().value(row).len()),
        DataType::Binary => lengths(&|row| array.as_binary::<i32>().value(row).len()),
        DataType::LargeBinary => lengths(&|row| array.as_binary::<i64>().value(row).len()),
        DataType::BinaryView => lengths(&|row| array.as_binary_view().value(row).len()),
        DataType::List(_) => lengths(&|row| elements(&array.as_list::<i32>().value(row))),
        DataType::LargeList(_) => lengths(&|row| elements(&array.as_list::<i64>().value(row))),
        _ => vec![24; array.len()],
    }
}

/// The bytes of a list's elements.
fn elements(items: &ArrayRef) -> usize {
    byte_sizes(items).iter().fold(0, |sum, bytes| sum + bytes + ELEMENT_BYTES)
}

/// The number that each value is, at least 0; of a list its length, of all else 0.
fn numbers(array: &ArrayRef) -> Result<Vec<usize>> {
    let count = |value: i64| usize::try_from(value).unwrap_or_default();
    Ok(match array.data_type() {
        data_type if data_type.is_integer() => {
            // What does not fit 64 bits is null after the cast, and refused by the function itself.
            let numbers = cast(array, &DataType::Int64)?;
            let numbers: &Int64Array = numbers.as_primitive();
            numbers.iter().map(|value| value.map_or(0, count)).collect()
        }
        DataType::List(_) => array.as_list::<i32>().offsets().lengths().collect(),
        DataType::LargeList(_) => array.as_list::<i64>().offsets().lengths().collect(),
        _ => vec![0; array.len()],
    })
}

/// The arguments of a function that pads, with no length below nothing: the engine would take it for a huge one.
fn not_negative(mut args: ScalarFunctionArgs) -> Result<ScalarFunctionArgs> {
    if let Some(length) = args.args.get_mut(1) {
        let clamped = |array: &ArrayRef| -> Result<ArrayRef> {
            let lengths = cast(array, &DataType::Int64)?;
            Ok(Arc::new(lengths.as_primitive::<Int64Type>().unary::<_, Int64Type>(|length| length.max(0))))
        };
        *length = match &*length {
            ColumnarValue::Array(array) => ColumnarValue::Array(clamped(array)?),
            ColumnarValue::Scalar(scalar) => {
                ColumnarValue::Scalar(ScalarValue::try_from_array(&clamped(&scalar.to_array_of_size(1)?)?, 0)?)
            }
        };
    }
    Ok(args)
}

/// The error of a value that is too large.
pub(super) fn too_large(function: &str) -> DataFusionError {
    DataFusionError::External(Box::new(QueryError::Memory(format!(
        "{function} would make a value of more than {MAX_VALUE_BYTES} bytes; no value of a query may be that large"
    ))))
}

/// Whether a single value is within the bound.
pub(super) fn scalar_fits(value: &ScalarValue) -> Result<bool> {
    Ok(byte_sizes(&value.to_array_of_size(1)?).iter().all(|bytes| *bytes <= MAX_VALUE_BYTES))
}

/// The function, bounded.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Bounded {
    inner: Arc<ScalarUDF>,
    growth: Growth,
}

impl Bounded {
    /// `inner`, which grows values as `growth` says.
    pub(super) fn new(inner: Arc<ScalarUDF>, growth: Growth) -> Self {
        Self { inner, growth }
    }
}

impl ScalarUDFImpl for Bounded {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn aliases(&self) -> &[String] {
        self.inner.aliases()
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        self.inner.schema_name(args)
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        self.inner.return_type(arg_types)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        self.inner.return_field_from_args(args)
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        self.inner.inner().coerce_types(arg_types)
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.inner.documentation()
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let sizes = args.args.iter().map(Sizes::of).collect::<Result<Vec<_>>>()?;
        let rows = if sizes.iter().all(|sizes| matches!(sizes, Sizes::Same { .. })) { 1 } else { args.number_rows };
        if (0..rows).any(|row| self.growth.estimate(&sizes, row) > MAX_ESTIMATE_BYTES) {
            return Err(too_large(self.name()));
        }
        let args = if self.growth == Growth::Pad { not_negative(args)? } else { args };
        let made = self.inner.invoke_with_args(args)?;
        let fits = match &made {
            ColumnarValue::Scalar(scalar) => scalar_fits(scalar)?,
            ColumnarValue::Array(array) => byte_sizes(array).iter().all(|bytes| *bytes <= MAX_VALUE_BYTES),
        };
        if fits { Ok(made) } else { Err(too_large(self.name())) }
    }
}
