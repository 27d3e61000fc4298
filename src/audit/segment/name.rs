//! A segment's name: the numbers of its first and last entry, `<first>-<last>.parquet`, both in 20 digits. Names sort
//! as the entries do, and the same name always has the same entries.

use std::fmt;
use std::str::FromStr;

/// The entries that a segment holds, which are its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentName {
    /// `seq` of the first entry.
    pub first: u64,
    /// `seq` of the last entry.
    pub last: u64,
}

impl SegmentName {
    /// How many entries there are.
    pub fn entries(self) -> u64 {
        self.last - self.first + 1
    }

    /// Whether all of `other`'s entries are among its own.
    pub fn holds(self, other: Self) -> bool {
        self.first <= other.first && other.last <= self.last
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:020}-{:020}.parquet", self.first, self.last)
    }
}

/// Said of a file name that is no segment's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is not named <first>-<last>.parquet, both in 20 digits")]
pub struct NoSegment;

impl FromStr for SegmentName {
    type Err = NoSegment;

    fn from_str(name: &str) -> Result<Self, NoSegment> {
        let number = |digits: &str| {
            let digits = Some(digits).filter(|digits| digits.len() == 20 && digits.bytes().all(|b| b.is_ascii_digit()));
            digits.and_then(|digits| digits.parse::<u64>().ok())
        };
        let ends = name.strip_suffix(".parquet").and_then(|ends| ends.split_once('-'));
        let ends = ends.and_then(|(first, last)| number(first).zip(number(last)));
        ends.filter(|(first, last)| first <= last).map(|(first, last)| Self { first, last }).ok_or(NoSegment)
    }
}

#[cfg(test)]
mod tests {
    use super::SegmentName;

    #[test]
    fn a_name_is_both_ends_in_20_digits() {
        let name = SegmentName { first: 7, last: 123 };
        assert_eq!(name.to_string(), "00000000000000000007-00000000000000000123.parquet");
        assert_eq!(name.to_string().parse(), Ok(name));
        for bad in ["7-123.parquet", "00000000000000000123-00000000000000000007.parquet", "x", ""] {
            assert!(bad.parse::<SegmentName>().is_err(), "{bad}");
        }
    }
}
