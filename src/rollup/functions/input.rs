//! The functions' arguments: durations, and histograms in any of Arrow's binary forms.

use arrow::array::{ArrayRef, AsArray};
use arrow::datatypes::{DataType, Float64Type};
use datafusion::common::{Result, exec_err, plan_err};

use crate::rollup::Histogram;

/// What an aggregate is fed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Input {
    /// Durations in milliseconds, `Float64`.
    Durations,
    /// Encoded histograms, in any binary form.
    Histograms,
}

impl Input {
    /// The type that an argument is cast to before it is fed.
    pub(super) fn coerce(self, function: &str, given: &[DataType]) -> Result<Vec<DataType>> {
        let [given] = given else {
            return plan_err!("{function} takes one argument, not {}", given.len());
        };
        Ok(vec![match self {
            Self::Durations => number(function, given)?,
            Self::Histograms => binary(function, given)?,
        }])
    }

    /// Calls `f` with each row of `values` that is not NULL.
    pub(super) fn for_each(self, values: &ArrayRef, mut f: impl FnMut(usize, Item<'_>) -> Result<()>) -> Result<()> {
        match self {
            Self::Durations => {
                let Some(durations) = values.as_primitive_opt::<Float64Type>() else {
                    return exec_err!("latency_hist: a duration is a double, not {}", values.data_type());
                };
                let mut rows = durations.iter().enumerate();
                rows.try_for_each(|(row, ms)| ms.map_or(Ok(()), |ms| f(row, Item::Duration(ms))))
            }
            Self::Histograms => for_each_binary(values, |row, bytes| f(row, Item::Histogram(bytes))),
        }
    }
}

/// One row's argument.
#[derive(Debug, Clone, Copy)]
pub(super) enum Item<'a> {
    /// A duration in milliseconds.
    Duration(f64),
    /// An encoded histogram.
    Histogram(&'a [u8]),
}

impl Item<'_> {
    /// Counts it.
    pub(super) fn add_to(self, histogram: &mut Histogram) -> Result<()> {
        match self {
            Self::Duration(ms) if ms.is_finite() && ms >= 0.0 => {
                histogram.record(ms);
                Ok(())
            }
            Self::Duration(ms) => exec_err!("latency_hist: {ms} is no duration: it must be finite and not negative"),
            Self::Histogram(bytes) => histogram.merge_encoded(bytes).or_else(|e| exec_err!("latency_merge: {e}")),
        }
    }
}

/// Calls `f` with each row that is not NULL.
pub(super) fn for_each_binary(values: &ArrayRef, mut f: impl FnMut(usize, &[u8]) -> Result<()>) -> Result<()> {
    let mut each = |(row, bytes): (usize, Option<&[u8]>)| bytes.map_or(Ok(()), |bytes| f(row, bytes));
    match values.data_type() {
        DataType::Binary => values.as_binary::<i32>().iter().enumerate().try_for_each(&mut each),
        DataType::LargeBinary => values.as_binary::<i64>().iter().enumerate().try_for_each(&mut each),
        DataType::BinaryView => values.as_binary_view().iter().enumerate().try_for_each(&mut each),
        DataType::Null => Ok(()),
        other => exec_err!("a latency histogram is binary, not {other}"),
    }
}

/// `Float64` for what is a number.
pub(super) fn number(function: &str, given: &DataType) -> Result<DataType> {
    if given.is_numeric() || given.is_null() {
        Ok(DataType::Float64)
    } else {
        plan_err!("{function} takes a number here, not {given}")
    }
}

/// The type itself for what is binary.
pub(super) fn binary(function: &str, given: &DataType) -> Result<DataType> {
    match given {
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => Ok(given.clone()),
        DataType::Null => Ok(DataType::Binary),
        other => plan_err!("{function} takes a latency histogram here, which is binary, not {other}"),
    }
}
