//! How a table's files are put into partitions: by the UTC day of their rows, or by its month.
//!
//! Samples and hourly rollups are partitioned by `date`. Daily rollups have one row a day and series, so that a
//! partition a day would be thousands of tiny files in seven years: they are partitioned by `month`, the first day of
//! the month, a column that their Delta table has after those of `schemas/tool_usage_daily.sql`. Tables that were made
//! before go on by `date`.

use chrono::{Datelike, Days, Months, NaiveDate};

use super::epoch;
use crate::model::schema::PARTITION_COLUMN;

/// Microseconds of a day.
const DAY: i64 = 86_400_000_000;

/// A table's partitioning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Partitioning {
    /// By UTC day.
    Day,
    /// By UTC month.
    Month,
}

impl Partitioning {
    /// The partitioning by this column; none if it is not ours.
    pub(super) fn by(column: &str) -> Option<Self> {
        [Self::Day, Self::Month].into_iter().find(|partitioning| partitioning.column() == column)
    }

    /// The column whose values are the partitions.
    pub fn column(self) -> &'static str {
        match self {
            Self::Day => PARTITION_COLUMN,
            Self::Month => "month",
        }
    }

    /// The partition of a day, both in days since the epoch.
    pub fn partition_of(self, date: i32) -> i32 {
        match self {
            Self::Day => date,
            Self::Month => day(date).and_then(|day| day.with_day(1)).map_or(date, number),
        }
    }

    /// When a partition begins and ends, in µs since the epoch.
    pub fn range(self, partition: i32) -> (i64, i64) {
        let end = match self {
            Self::Day => partition.saturating_add(1),
            Self::Month => {
                day(partition).and_then(|day| day.checked_add_months(Months::new(1))).map_or(i32::MAX, number)
            }
        };
        (i64::from(partition).saturating_mul(DAY), i64::from(end).saturating_mul(DAY))
    }

    /// The path in the table's folder of a file of a partition.
    pub fn place(self, partition: i32, file_name: &str) -> String {
        format!("{}={}/{file_name}", self.column(), self.value(partition))
    }

    /// A partition as Delta's log and the names of folders have it.
    pub fn value(self, partition: i32) -> String {
        day(partition).map_or_else(|| partition.to_string(), |day| day.to_string())
    }
}

fn day(date: i32) -> Option<NaiveDate> {
    match u64::try_from(date) {
        Ok(days) => epoch().checked_add_days(Days::new(days)),
        Err(_) => epoch().checked_sub_days(Days::new(u64::from(date.unsigned_abs()))),
    }
}

/// Days since the epoch.
pub(super) fn number(day: NaiveDate) -> i32 {
    i32::try_from((day - epoch()).num_days()).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::{DAY, Partitioning, number};

    fn days(date: &str) -> i32 {
        number(date.parse().unwrap())
    }

    #[test]
    fn a_month_begins_with_its_first_day_and_ends_with_the_next() {
        let february = days("2028-02-01");
        for day in ["2028-02-01", "2028-02-17", "2028-02-29"] {
            assert_eq!(Partitioning::Month.partition_of(days(day)), february);
        }
        let (begin, end) = Partitioning::Month.range(february);
        assert_eq!((begin, end), (i64::from(february) * DAY, i64::from(days("2028-03-01")) * DAY));
        assert_eq!(Partitioning::Month.value(february), "2028-02-01");
        assert_eq!(Partitioning::Day.range(7), (7 * DAY, 8 * DAY));
        assert_eq!(Partitioning::Month.partition_of(days("1969-12-31")), days("1969-12-01"));
    }
}
