//! The names of data files: how often the rows of one were merged, how far, and when they arrived.
//!
//! | file | made by |
//! |---|---|
//! | `<position>-<id>.parquet` | a flush |
//! | `<stage>-<merges>-<hour>-<id>.parquet` | a merge: `part`, `hour`, `day` or `month`; how often its rows were merged; the UTC hour in which the last of them arrived, like `2026112613` |
//!
//! Names decide nothing but what is merged with what: any other counts as a flush's, of the time that Delta's log says
//! it was added at.

use chrono::{DateTime, NaiveDateTime};
use uuid::Uuid;

use crate::storage::table::LiveFile;

/// Microseconds of an hour.
pub(super) const HOUR: i64 = 3_600_000_000;
/// The form of an hour in a name.
const HOUR_FORM: &str = "%Y%m%d%H";

/// How far rows were merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Stage {
    /// Not at all.
    Flushed,
    /// With some of what arrived in the same hour.
    Part,
    /// With what arrived in the same hour.
    Hour,
    /// With what arrived on the same day.
    Day,
    /// With the rest of a partition of a month.
    Month,
}

impl Stage {
    const MERGED: [Self; 4] = [Self::Part, Self::Hour, Self::Day, Self::Month];

    fn name(self) -> &'static str {
        match self {
            Self::Flushed => "flush",
            Self::Part => "part",
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Month => "month",
        }
    }
}

/// What a file's name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Origin {
    pub(super) stage: Stage,
    /// How often its rows were merged, those that were merged most often.
    pub(super) merges: u8,
    /// The beginning of the hour in which the last of its rows arrived, µs since the epoch.
    pub(super) hour: i64,
}

impl Origin {
    pub(super) fn of(file: &LiveFile) -> Self {
        let name = file.name.rsplit('/').next().unwrap_or_default();
        let flushed = Self { stage: Stage::Flushed, merges: 0, hour: file.added_at.div_euclid(HOUR) * HOUR };
        Self::parse(name).unwrap_or(flushed)
    }

    fn parse(name: &str) -> Option<Self> {
        let mut parts = name.strip_suffix(".parquet")?.splitn(4, '-');
        let (stage, merges, hour) = (parts.next()?, parts.next()?, parts.next()?);
        parts.next()?;
        let stage = Stage::MERGED.into_iter().find(|known| known.name() == stage)?;
        let hour = NaiveDateTime::parse_from_str(&format!("{hour}00"), &format!("{HOUR_FORM}%M")).ok()?;
        Some(Self { stage, merges: merges.parse().ok()?, hour: hour.and_utc().timestamp_micros() })
    }

    /// Of a file whose rows are written again, and are no further merged for that.
    pub(super) fn again(self) -> Self {
        Self { stage: self.stage.max(Stage::Part), merges: self.merges.max(1), ..self }
    }

    /// The name of a new file.
    pub(super) fn name(&self, id: Uuid) -> String {
        let hour = DateTime::from_timestamp_micros(self.hour).unwrap_or_default().format(HOUR_FORM);
        format!("{}-{}-{hour}-{}.parquet", self.stage.name(), self.merges, id.simple())
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::{HOUR, Origin, Stage};

    #[test]
    fn a_name_says_what_it_was_made_of() {
        for stage in Stage::MERGED {
            let origin = Origin { stage, merges: 3, hour: 490_000 * HOUR };
            assert_eq!(Origin::parse(&origin.name(Uuid::from_u128(7))), Some(origin));
        }
    }

    #[test]
    fn other_names_are_no_merges() {
        let flush = format!("{:020}-{}.parquet", 7, Uuid::from_u128(7).simple());
        for name in
            [flush.as_str(), "day-1-2026112699-x.parquet", "day-1-2026112612", "year-1-2026112612-x.parquet", "x"]
        {
            assert_eq!(Origin::parse(name), None, "{name}");
        }
    }
}
