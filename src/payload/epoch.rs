//! The epoch of a key: a UTC date and how many days payloads of that date are kept, `2026-11-26.30d`.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, NaiveDate, NaiveTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

/// The longest period, in days.
pub const MAX_DAYS: u32 = 3_650;

/// The epoch of a key, ordered by date, then by period.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Epoch {
    date: NaiveDate,
    days: u32,
}

/// Why a text is no epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an epoch is a UTC date and a period of 1 to 3650 whole days, like 2026-11-26.30d")]
pub struct EpochError;

impl Epoch {
    /// The first day of the Unix epoch, for a day.
    pub const FIRST: Self = {
        let date = match NaiveDate::from_ymd_opt(1970, 1, 1) {
            Some(date) => date,
            None => NaiveDate::MIN,
        };
        Self { date, days: 1 }
    };

    /// The epoch of what began on `date` and is kept for `days`.
    ///
    /// # Errors
    /// When the period is zero, or longer than [`MAX_DAYS`], or the year has not four digits.
    pub fn new(date: NaiveDate, days: u32) -> Result<Self, EpochError> {
        use chrono::Datelike;
        let is_sane = (1..=MAX_DAYS).contains(&days) && (1..=9_000).contains(&date.year());
        if is_sane { Ok(Self { date, days }) } else { Err(EpochError) }
    }

    /// The UTC date of `started_at` of its calls.
    pub fn date(self) -> NaiveDate {
        self.date
    }

    /// The period in days.
    pub fn days(self) -> u32 {
        self.days
    }

    /// When its private key is to be destroyed: at 00:00 UTC of the date + 1 day + the period.
    pub fn ends_at(self) -> DateTime<Utc> {
        let midnight = self.date.and_time(NaiveTime::MIN).and_utc();
        // Years end at 9000 and a period at ten years.
        midnight.checked_add_signed(TimeDelta::days(i64::from(self.days) + 1)).unwrap_or(DateTime::<Utc>::MAX_UTC)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}d", self.date.format("%Y-%m-%d"), self.days)
    }
}

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Epoch {
    type Err = EpochError;

    fn from_str(text: &str) -> Result<Self, EpochError> {
        let (date, days) = text.split_once('.').ok_or(EpochError)?;
        let date = NaiveDate::parse_from_str(date, "%Y-%m-%d").map_err(|_| EpochError)?;
        let days = days.strip_suffix('d').and_then(|days| days.parse().ok()).ok_or(EpochError)?;
        let epoch = Self::new(date, days)?;
        // One form for each: no sign, no leading zero, no space.
        if epoch.to_string() == text { Ok(epoch) } else { Err(EpochError) }
    }
}

impl TryFrom<String> for Epoch {
    type Error = EpochError;

    fn try_from(text: String) -> Result<Self, EpochError> {
        text.parse()
    }
}

impl From<Epoch> for String {
    fn from(epoch: Epoch) -> Self {
        epoch.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::Epoch;

    #[test]
    fn an_epoch_has_one_form() {
        let epoch: Epoch = "2026-11-26.30d".parse().unwrap();
        assert_eq!((epoch.to_string().as_str(), epoch.days()), ("2026-11-26.30d", 30));
        for bad in [
            "",
            "2026-11-26",
            "2026-11-26.d",
            "2026-11-26.0d",
            "2026-11-26.3651d",
            "2026-11-26.030d",
            "2026-11-26.+3d",
            "2026-11-26.30",
            "2026-1-26.30d",
            "2026-11-31.30d",
            " 2026-11-26.30d",
            "2026-11-26.30d ",
            "2026-11-26.30D",
        ] {
            assert!(bad.parse::<Epoch>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn its_key_lives_for_the_day_and_the_whole_period_after_it() {
        let epoch: Epoch = "2026-11-26.30d".parse().unwrap();
        assert_eq!(epoch.ends_at().to_rfc3339(), "2026-12-27T00:00:00+00:00");
    }
}
