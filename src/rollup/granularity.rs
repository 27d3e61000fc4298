//! The two windows that rollups are cut by: the hour and the day of event time, in UTC.

use std::fmt;
use std::str::FromStr;

/// How wide a window is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Granularity {
    /// A UTC hour.
    Hour,
    /// A UTC day.
    Day,
}

impl Granularity {
    /// Every granularity, the finest first.
    pub const ALL: [Self; 2] = [Self::Hour, Self::Day];

    /// The word that stands for it in a URL.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hour => "hour",
            Self::Day => "day",
        }
    }

    /// The width of a window, in microseconds. UTC as Unix counts it has no leap seconds, so every window is as wide.
    pub const fn width(self) -> i64 {
        match self {
            Self::Hour => 3_600_000_000,
            Self::Day => 86_400_000_000,
        }
    }

    /// The start of the window that `micros` lies in; both are microseconds since the Unix epoch. A window holds its
    /// start and not its end, before 1970 as after it.
    pub const fn window_start(self, micros: i64) -> i64 {
        micros.saturating_sub(micros.rem_euclid(self.width()))
    }
}

impl fmt::Display for Granularity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a word is no granularity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("granularity is `hour` or `day`")]
pub struct UnknownGranularity;

impl FromStr for Granularity {
    type Err = UnknownGranularity;

    fn from_str(word: &str) -> Result<Self, UnknownGranularity> {
        Self::ALL.into_iter().find(|granularity| granularity.as_str() == word).ok_or(UnknownGranularity)
    }
}

#[cfg(test)]
mod tests {
    use super::Granularity;

    #[test]
    fn a_window_holds_its_start_and_not_its_end() {
        for granularity in Granularity::ALL {
            let width = granularity.width();
            for start in [-width, 0, width, 500_000 * width] {
                assert_eq!(granularity.window_start(start), start);
                assert_eq!(granularity.window_start(start + width - 1), start);
                assert_eq!(granularity.window_start(start - 1), start - width);
            }
        }
    }

    #[test]
    fn the_ends_of_time_do_not_overflow() {
        for granularity in Granularity::ALL {
            assert_eq!(granularity.window_start(i64::MIN), i64::MIN);
            assert!(granularity.window_start(i64::MAX) > i64::MAX - granularity.width());
        }
    }

    #[test]
    fn only_the_words_hour_and_day_are_granularities() {
        assert_eq!("hour".parse(), Ok(Granularity::Hour));
        assert_eq!("day".parse(), Ok(Granularity::Day));
        for word in ["", "Hour", "hours", "minute", "day "] {
            assert!(word.parse::<Granularity>().is_err(), "{word:?}");
        }
    }
}
