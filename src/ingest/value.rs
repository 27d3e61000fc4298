//! A value of a field, as JSON has it.
//!
//! It borrows from the body and is gone once it has been put into its column: nothing keeps a value, and no message
//! repeats one.

/// Whole numbers up to here are exact as a double.
pub(super) const MAX_EXACT_INT: f64 = 9_007_199_254_740_992.0;

/// A value of a field, as JSON has it.
#[derive(Clone, Copy)]
pub(super) enum Value<'a> {
    /// A string.
    Text(&'a str),
    /// A number that is whole and not negative.
    Unsigned(u64),
    /// A number that is whole.
    Signed(i64),
    /// Any other number.
    Float(f64),
    /// `true` or `false`.
    Bool,
    /// `null`: as if the field were not there.
    Null,
    /// An array.
    List,
    /// An object.
    Object,
}

impl Value<'_> {
    /// What it is, for messages; never the value itself.
    pub(super) fn kind(self) -> &'static str {
        match self {
            Self::Text(_) => "a string",
            Self::Unsigned(_) | Self::Signed(_) | Self::Float(_) => "a number",
            Self::Bool => "a boolean",
            Self::Null => "null",
            Self::List => "an array",
            Self::Object => "an object",
        }
    }

    /// A number as a whole one of 64 bits, where it is one.
    pub(super) fn whole(self) -> Option<i64> {
        match self {
            Self::Unsigned(whole) => i64::try_from(whole).ok(),
            Self::Signed(whole) => Some(whole),
            Self::Float(float) if float.fract() == 0.0 && float.abs() <= MAX_EXACT_INT => Some(float as i64),
            _ => None,
        }
    }
}
