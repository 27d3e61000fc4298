//! RFC 3339 date-times to microseconds.
//!
//! The grammar of RFC 3339, section 5.6, in full: `T` and `Z` in either case or a space for the `T`, a fraction of any
//! length, an offset `±hh:mm`. Digits past the microsecond are cut off, never rounded up, so that a time does not move
//! into the next hour. A leap second (`:60`) is the first second of the next minute, as POSIX time has it. Years run
//! from 0000 to 9999, as the grammar's four digits say.

use chrono::NaiveDate;

const MICROS_PER_SECOND: i64 = 1_000_000;
const SECONDS_PER_DAY: i64 = 86_400;

/// Microseconds since the Unix epoch of a date-time; none when `text` is not one.
pub(super) fn parse_rfc3339(text: &str) -> Option<i64> {
    let bytes = text.as_bytes();
    let (date_time, rest) = bytes.split_first_chunk::<19>()?;
    let [y1, y2, y3, y4, b'-', mo1, mo2, b'-', d1, d2, b'T' | b't' | b' ', h1, h2, b':', mi1, mi2, b':', s1, s2] =
        *date_time
    else {
        return None;
    };
    let year = number(&[y1, y2, y3, y4])?;
    let date = NaiveDate::from_ymd_opt(i32::try_from(year).ok()?, number(&[mo1, mo2])?, number(&[d1, d2])?)?;
    let (hour, minute, second) = (number(&[h1, h2])?, number(&[mi1, mi2])?, number(&[s1, s2])?);
    if hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let (micros, rest) = fraction(rest)?;
    let offset = offset_seconds(rest)?;
    let local = i64::from(date.to_epoch_days()) * SECONDS_PER_DAY
        + i64::from(hour) * 3600
        + i64::from(minute) * 60
        + i64::from(second);
    Some((local - offset) * MICROS_PER_SECOND + micros)
}

/// The number that a few decimal digits make.
fn number(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0, |sum, &digit| digit.is_ascii_digit().then(|| sum * 10 + u32::from(digit - b'0')))
}

/// Microseconds of an optional fraction, and what follows it.
fn fraction(text: &[u8]) -> Option<(i64, &[u8])> {
    let Some(digits) = text.strip_prefix(b".") else { return Some((0, text)) };
    let len = digits.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (digits, rest) = digits.split_at_checked(len)?;
    if digits.is_empty() {
        return None;
    }
    let micros = digits
        .iter()
        .map(|digit| i64::from(digit - b'0'))
        .chain(std::iter::repeat(0))
        .take(6)
        .fold(0, |sum, digit| sum * 10 + digit);
    Some((micros, rest))
}

/// Seconds east of UTC that `Z` or `±hh:mm` stands for.
fn offset_seconds(text: &[u8]) -> Option<i64> {
    let (sign, h1, h2, m1, m2) = match *text {
        [b'Z' | b'z'] => return Some(0),
        [b'+', h1, h2, b':', m1, m2] => (1, h1, h2, m1, m2),
        [b'-', h1, h2, b':', m1, m2] => (-1, h1, h2, m1, m2),
        _ => return None,
    };
    let (hours, minutes) = (number(&[h1, h2])?, number(&[m1, m2])?);
    (hours <= 23 && minutes <= 59).then(|| sign * (i64::from(hours) * 3600 + i64::from(minutes) * 60))
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, SecondsFormat};
    use proptest::prelude::*;

    use super::parse_rfc3339;

    #[test]
    fn the_offset_is_honoured() {
        let utc = parse_rfc3339("2026-11-22T12:00:00Z").unwrap();
        assert_eq!(parse_rfc3339("2026-11-22T14:30:00+02:30"), Some(utc));
        assert_eq!(parse_rfc3339("2026-11-22t04:00:00-08:00"), Some(utc));
        assert_eq!(parse_rfc3339("2026-11-22 12:00:00z"), Some(utc));
        assert_eq!(parse_rfc3339("2026-11-22T12:00:00-00:00"), Some(utc));
    }

    #[test]
    fn digits_past_the_microsecond_are_cut_off() {
        assert_eq!(parse_rfc3339("1970-01-01T00:00:00.9999999999Z"), Some(999_999));
        assert_eq!(parse_rfc3339("1970-01-01T00:00:00.5Z"), Some(500_000));
    }

    #[test]
    fn a_leap_second_is_the_first_of_the_next_minute() {
        assert_eq!(parse_rfc3339("2016-12-31T23:59:60Z"), parse_rfc3339("2017-01-01T00:00:00Z"));
    }

    #[test]
    fn what_is_no_date_time_is_refused() {
        for bad in [
            "",
            "2026-11-22",
            "2026-11-22T12:00:00",
            "2026-11-22T12:00Z",
            "2026-02-30T12:00:00Z",
            "2026-13-01T12:00:00Z",
            "2026-11-22T24:00:00Z",
            "2026-11-22T12:60:00Z",
            "2026-11-22T12:00:61Z",
            "2026-11-22T12:00:00.Z",
            "2026-11-22T12:00:00+0200",
            "2026-11-22T12:00:00+24:00",
            "2026-11-22T12:00:00Z ",
            "+2026-11-22T12:00:00Z",
            "２026-11-22T12:00:00Z",
        ] {
            assert_eq!(parse_rfc3339(bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn every_time_is_read_as_chrono_reads_it(micros in -62_135_596_800_000_000_i64..253_402_300_800_000_000, east in -1439..1440) {
            let offset = chrono::FixedOffset::east_opt(east * 60).unwrap();
            let time = DateTime::from_timestamp_micros(micros).unwrap().with_timezone(&offset);
            let text = time.to_rfc3339_opts(SecondsFormat::Micros, true);
            prop_assume!(text.len() <= 32 && text.starts_with(|c: char| c.is_ascii_digit()));
            prop_assert_eq!(parse_rfc3339(&text), Some(micros));
        }
    }
}
