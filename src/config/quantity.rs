//! Durations like `5ms` and sizes like `64MiB`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// Why a text is no duration or size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct QuantityError(String);

/// A length of time as it is written in a configuration: `250us`, `5ms`, `10s`, `5m`, `24h` or `7d`, whole numbers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Period(Duration);

impl Period {
    /// The period of `duration`.
    pub const fn new(duration: Duration) -> Self {
        Self(duration)
    }

    /// As the standard library's type.
    pub const fn as_duration(self) -> Duration {
        self.0
    }
}

/// Units of time, largest first, in µs.
const TIME_UNITS: [(&str, u64); 6] =
    [("d", 86_400_000_000), ("h", 3_600_000_000), ("m", 60_000_000), ("s", 1_000_000), ("ms", 1_000), ("us", 1)];

impl FromStr for Period {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let fault = || {
            QuantityError(format!(
                "`{text}` is no duration; write a whole number and a unit, like 250us, 5ms, 10s, 5m, 24h or 7d"
            ))
        };
        let (number, unit) = split(text);
        let (_, micros) = TIME_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(fault)?;
        let number: u64 = number.parse().map_err(|_| fault())?;
        Ok(Self(Duration::from_micros(number.checked_mul(*micros).ok_or_else(fault)?)))
    }
}

impl fmt::Display for Period {
    /// In the largest unit that holds it as a whole number; below a microsecond is cut off.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = self.0.as_micros();
        for (unit, size) in TIME_UNITS {
            if micros > 0 && micros.is_multiple_of(u128::from(size)) {
                return write!(f, "{}{unit}", micros / u128::from(size));
            }
        }
        f.write_str("0s")
    }
}

/// A number of bytes as it is written in a configuration: `1048576`, `64KiB`, `64MiB`, `2GiB`, or decimal `64kB`,
/// `64MB`, `2GB`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(u64);

impl ByteSize {
    /// So many bytes.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// So many MiB.
    pub const fn mib(count: u64) -> Self {
        Self(count << 20)
    }

    /// In bytes.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// In bytes; the greatest `usize` where it does not fit.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

/// Units of size in bytes; the first that divides a size is the one it is shown in.
const SIZE_UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

impl FromStr for ByteSize {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let fault = || {
            QuantityError(format!(
                "`{text}` is no size; write whole bytes, or a whole number and a unit, like 64KiB, 64MiB, 2GiB or 64MB"
            ))
        };
        let (number, unit) = split(text);
        let factor = match unit {
            "" => 1,
            unit => SIZE_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(fault)?.1,
        };
        let number: u64 = number.parse().map_err(|_| fault())?;
        Ok(Self(number.checked_mul(factor).ok_or_else(fault)?))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, size) in SIZE_UNITS {
            if self.0 > 0 && self.0.is_multiple_of(size) {
                return write!(f, "{}{unit}", self.0 / size);
            }
        }
        f.write_str("0B")
    }
}

/// The digits at the front, and what follows them, blanks around it removed.
fn split(text: &str) -> (&str, &str) {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    (number, unit.trim_start())
}

/// What `Debug`, `Serialize` and `Deserialize` are for a quantity: its text form.
macro_rules! as_text {
    ($type:ty, $expecting:literal) => {
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;
                impl Visitor<'_> for Text {
                    type Value = $type;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expecting)
                    }

                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                deserializer.deserialize_str(Text)
            }
        }
    };
}

as_text!(Period, "a duration like 5ms or 10s");
as_text!(ByteSize, "a size like 1048576 or 64MiB");

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{ByteSize, Period};

    #[test]
    fn a_duration_needs_its_unit() {
        assert_eq!("5ms".parse::<Period>().unwrap().as_duration(), Duration::from_millis(5));
        assert_eq!("24h".parse::<Period>().unwrap().as_duration(), Duration::from_secs(86_400));
        for bad in ["5", "ms", "", "5 parsecs", "-5s", "1.5s", "999999999999999999d"] {
            assert!(bad.parse::<Period>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_size_may_be_plain_bytes_binary_or_decimal() {
        for (text, bytes) in [("10", 10), ("64KiB", 65_536), ("1 MiB", 1_048_576), ("2GB", 2_000_000_000), ("0", 0)] {
            assert_eq!(text.parse::<ByteSize>().unwrap().as_u64(), bytes, "{text}");
        }
        for bad in ["", "MiB", "64mib", "1.5GiB", "-1", "99999999999999TiB"] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_quantity_is_shown_as_it_would_be_written() {
        assert_eq!(Period::new(Duration::from_millis(1_500)).to_string(), "1500ms");
        assert_eq!(Period::new(Duration::from_secs(120)).to_string(), "2m");
        assert_eq!(ByteSize::mib(384).to_string(), "384MiB");
        assert_eq!(ByteSize::new(1_500).to_string(), "1500B");
    }
}
