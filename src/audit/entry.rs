//! An entry's canonical bytes: what `entry_hash` is the SHA-256 of.
//!
//! They are the RFC 8785 (JCS) JSON of one object whose members are the columns that are not null, and `v` and
//! `origin`. There are no JSON numbers: integers are decimal strings, times are RFC 3339 in UTC with six fraction
//! digits. An empty list counts as null. The bytes are made of the columns of a batch, whether the entry is about to be
//! chained or was read from a segment, so no column of a row can differ from what was hashed.

use std::collections::BTreeMap;

use arrow::array::{Array, AsArray, Int64Array, ListArray, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;
use serde::{Deserialize, Serialize};

use super::{AuditError, Hash};

/// The version of the format.
pub const VERSION: &str = "mcpg.audit/1";

/// The greatest time that four digits of a year can say, in µs: the end of 9999.
const LAST_MICROS: i64 = 253_402_300_799_999_999;
/// The least, in µs: the beginning of year 0.
const FIRST_MICROS: i64 = -62_167_219_200_000_000;

/// Where a member's value comes from.
#[derive(Debug, Clone, Copy)]
enum Source {
    Text(usize),
    List(usize),
    Time(usize),
    EmitterSeq,
    Origin,
    PrevHash,
    Seq,
    Version,
}

const TEXTS: [&str; 14] = [
    "action",
    "actor",
    "decision",
    "detail",
    "event_id",
    "instance",
    "invocation_id",
    "reason",
    "request_id",
    "salt",
    "span_id",
    "target",
    "trace_id",
    "workspace",
];
/// The columns that every entry which this program makes has.
const NEEDED: [&str; 6] = ["action", "actor", "event_id", "occurred_at", "recorded_at", "salt"];
const LISTS: [&str; 2] = ["obligations", "policy_ids"];
const TIMES: [&str; 2] = ["occurred_at", "recorded_at"];

/// A member of the object: its name, what begins it, where its value comes from.
type Slot = (&'static str, &'static str, Source);

macro_rules! member {
    ($name:literal, $source:expr) => {
        ($name, concat!(",\"", $name, "\":"), $source)
    };
}

/// The members in the order of RFC 8785, which for these names is the alphabet's.
const MEMBERS: [Slot; 23] = [
    member!("action", Source::Text(0)),
    member!("actor", Source::Text(1)),
    member!("decision", Source::Text(2)),
    member!("detail", Source::Text(3)),
    member!("emitter_seq", Source::EmitterSeq),
    member!("event_id", Source::Text(4)),
    member!("instance", Source::Text(5)),
    member!("invocation_id", Source::Text(6)),
    member!("obligations", Source::List(0)),
    member!("occurred_at", Source::Time(0)),
    member!("origin", Source::Origin),
    member!("policy_ids", Source::List(1)),
    member!("prev_hash", Source::PrevHash),
    member!("reason", Source::Text(7)),
    member!("recorded_at", Source::Time(1)),
    member!("request_id", Source::Text(8)),
    member!("salt", Source::Text(9)),
    member!("seq", Source::Seq),
    member!("span_id", Source::Text(10)),
    member!("target", Source::Text(11)),
    member!("trace_id", Source::Text(12)),
    member!("v", Source::Version),
    member!("workspace", Source::Text(13)),
];

/// The columns of a batch that entries are made of, found once.
#[derive(Debug)]
pub struct Columns<'a> {
    texts: [&'a StringArray; 14],
    lists: [(&'a ListArray, &'a StringArray); 2],
    times: [&'a TimestampMicrosecondArray; 2],
    emitter_seq: &'a Int64Array,
}

impl<'a> Columns<'a> {
    /// Finds them in a batch of the schema `audit_log` or `audit_event`.
    ///
    /// # Errors
    /// [`AuditError::Form`] when one is missing or of another type.
    pub fn of(batch: &'a RecordBatch) -> Result<Self, AuditError> {
        fn each<'a, T, const N: usize>(
            batch: &'a RecordBatch,
            names: [&'static str; N],
            cast: impl Fn(&'a dyn Array) -> Option<&'a T>,
        ) -> Result<[&'a T; N], AuditError> {
            let columns = names.map(|name| {
                let column = batch.column_by_name(name).ok_or_else(|| AuditError::Form(format!("no column {name}")))?;
                cast(column.as_ref()).ok_or_else(|| AuditError::Form(format!("{name} is a {}", column.data_type())))
            });
            let columns: Vec<_> = columns.into_iter().collect::<Result<_, _>>()?;
            columns.try_into().map_err(|_| AuditError::Form("a column is missing".to_owned()))
        }
        let [emitter_seq] = each(batch, ["emitter_seq"], |column| column.as_primitive_opt::<Int64Type>())?;
        let [obligations, policy_ids] = each(batch, LISTS, |column| column.as_list_opt::<i32>())?;
        let of_strings = |list: &'a ListArray| {
            let items = list.values().as_string_opt::<i32>();
            items
                .map(|items| (list, items))
                .ok_or_else(|| AuditError::Form(format!("a list of {}", list.values().data_type())))
        };
        Ok(Self {
            texts: each(batch, TEXTS, |column| column.as_string_opt::<i32>())?,
            lists: [of_strings(obligations)?, of_strings(policy_ids)?],
            times: each(batch, TIMES, |column| column.as_primitive_opt::<TimestampMicrosecondType>())?,
            emitter_seq,
        })
    }

    /// Makes sure that no event lacks what every entry has.
    ///
    /// # Errors
    /// [`AuditError::Entry`] when one does.
    pub fn check_complete(&self) -> Result<(), AuditError> {
        let texts = TEXTS.into_iter().zip(self.texts.map(|texts| texts.null_count()));
        let times = TIMES.into_iter().zip(self.times.map(|times| times.null_count()));
        match texts.chain(times).find(|(name, nulls)| *nulls > 0 && NEEDED.contains(name)) {
            Some((column, _)) => {
                Err(AuditError::Entry { column, reason: "it is null, and every entry has one".to_owned() })
            }
            None => Ok(()),
        }
    }

    /// Adds the canonical bytes of the entry in `row`, which is numbered `seq` and follows `prev_hash`, to `out`.
    ///
    /// # Errors
    /// [`AuditError::Entry`] when a time has no form in four digits of a year, or a list holds a null.
    pub fn write_canonical(
        &self,
        row: usize,
        origin: &str,
        seq: u64,
        prev_hash: &Hash,
        out: &mut Vec<u8>,
    ) -> Result<(), AuditError> {
        let begin = out.len();
        for (name, key, source) in MEMBERS {
            let key = key.as_bytes();
            match source {
                Source::Text(at) => {
                    let Some(texts) = self.texts.get(at).filter(|texts| texts.is_valid(row)) else { continue };
                    out.extend_from_slice(key);
                    write_string(texts.value(row), out);
                }
                Source::List(at) => {
                    let Some((lists, items)) = self.lists.get(at).filter(|(lists, _)| lists.is_valid(row)) else {
                        continue;
                    };
                    write_list(name, key, row, lists, items, out)?;
                }
                Source::Time(at) => {
                    let Some(times) = self.times.get(at).filter(|times| times.is_valid(row)) else { continue };
                    out.extend_from_slice(key);
                    write_time(name, times.value(row), out)?;
                }
                Source::EmitterSeq if self.emitter_seq.is_null(row) => {}
                Source::EmitterSeq => {
                    write_plain(key, itoa::Buffer::new().format(self.emitter_seq.value(row)).as_bytes(), out)
                }
                Source::Seq => write_plain(key, itoa::Buffer::new().format(seq).as_bytes(), out),
                Source::Version => write_plain(key, VERSION.as_bytes(), out),
                Source::PrevHash => write_plain(key, &prev_hash.hex(), out),
                Source::Origin => {
                    out.extend_from_slice(key);
                    write_string(origin, out);
                }
            }
        }
        // Each member began with a comma, and the first begins the object.
        out.get_mut(begin).into_iter().for_each(|first| *first = b'{');
        out.push(b'}');
        Ok(())
    }
}

/// The value of a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Member {
    /// A string.
    Text(String),
    /// An array of strings.
    List(Vec<String>),
}

/// The members of an entry, out of its canonical bytes; none if these are not written as RFC 8785 says, or have a
/// member that no entry has.
pub fn parse(canonical: &str) -> Option<BTreeMap<String, Member>> {
    let members: BTreeMap<String, Member> = serde_json::from_str(canonical).ok()?;
    let mut written = Vec::with_capacity(canonical.len());
    for (name, value) in &members {
        let (_, key, _) = MEMBERS.iter().find(|(known, ..)| known == name)?;
        written.extend_from_slice(key.as_bytes());
        match value {
            Member::Text(text) => write_string(text, &mut written),
            Member::List(texts) => {
                written.push(b'[');
                for (at, text) in texts.iter().enumerate() {
                    if at > 0 {
                        written.push(b',');
                    }
                    write_string(text, &mut written);
                }
                written.push(b']');
            }
        }
    }
    // The first key began with a comma.
    written.get_mut(0).into_iter().for_each(|first| *first = b'{');
    written.push(b'}');
    (written == canonical.as_bytes()).then_some(members)
}

/// A value without special bytes.
fn write_plain(key: &[u8], value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(key);
    out.push(b'"');
    out.extend_from_slice(value);
    out.push(b'"');
}

/// Whether a byte of a string may not stand for itself.
const fn is_special(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

/// Whether one of eight bytes is special, looked at together: a byte's highest bit is set in a result if the byte is
/// below 0x20, or is zero once `"` or `\` is taken from it. (A borrow may set further bits, but only beside one that is
/// rightly set.)
const fn has_special(bytes: [u8; 8]) -> bool {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const HIGHEST: u64 = ONES << 7;
    const fn zeros(word: u64) -> u64 {
        word.wrapping_sub(ONES) & !word
    }
    let word = u64::from_ne_bytes(bytes);
    let controls = word.wrapping_sub(ONES * 0x20) & !word;
    (controls | zeros(word ^ (ONES * b'"' as u64)) | zeros(word ^ (ONES * b'\\' as u64))) & HIGHEST != 0
}

/// A string as RFC 8785, section 3.2.2.2 writes it.
fn write_string(text: &str, out: &mut Vec<u8>) {
    let bytes = text.as_bytes();
    let (words, rest) = bytes.as_chunks::<8>();
    // Nearly no string has a special byte, and to look at all of its bytes without a branch is many times faster.
    let any = words.iter().fold(false, |any, word| any | has_special(*word));
    let any = any | rest.iter().fold(false, |any, byte| any | is_special(*byte));
    out.push(b'"');
    if any {
        for byte in bytes {
            if is_special(*byte) { write_special(*byte, out) } else { out.push(*byte) }
        }
    } else {
        out.extend_from_slice(bytes);
    }
    out.push(b'"');
}

fn write_special(byte: u8, out: &mut Vec<u8>) {
    match byte {
        b'"' => out.extend_from_slice(b"\\\""),
        b'\\' => out.extend_from_slice(b"\\\\"),
        0x08 => out.extend_from_slice(b"\\b"),
        b'\t' => out.extend_from_slice(b"\\t"),
        b'\n' => out.extend_from_slice(b"\\n"),
        0x0c => out.extend_from_slice(b"\\f"),
        b'\r' => out.extend_from_slice(b"\\r"),
        other => out.extend_from_slice(format!("\\u{other:04x}").as_bytes()),
    }
}

/// The list in `row` under its key; nothing if it is empty, which counts as null.
fn write_list(
    column: &'static str,
    key: &[u8],
    row: usize,
    lists: &ListArray,
    items: &StringArray,
    out: &mut Vec<u8>,
) -> Result<(), AuditError> {
    let fault = |reason: &str| AuditError::Entry { column, reason: reason.to_owned() };
    let bound = |at: usize| lists.value_offsets().get(at).and_then(|offset| usize::try_from(*offset).ok());
    let (Some(from), Some(to)) = (bound(row), bound(row + 1)) else { return Err(fault("it has no end")) };
    if from == to {
        return Ok(());
    }
    out.extend_from_slice(key);
    for at in from..to {
        if items.is_null(at) {
            return Err(fault("it holds a null"));
        }
        out.push(if at == from { b'[' } else { b',' });
        write_string(items.value(at), out);
    }
    out.push(b']');
    Ok(())
}

/// RFC 3339 in UTC with exactly six fraction digits. The days are turned into a date by the proleptic Gregorian
/// calendar's cycle of 400 years, counted from March on so that a leap day is the last of its year.
fn write_time(column: &'static str, micros: i64, out: &mut Vec<u8>) -> Result<(), AuditError> {
    if !(FIRST_MICROS..=LAST_MICROS).contains(&micros) {
        return Err(AuditError::Entry { column, reason: format!("{micros} µs is outside of the years 0 to 9999") });
    }
    const DAY: i64 = 86_400_000_000;
    let (days, of_day) = (micros.div_euclid(DAY), micros.rem_euclid(DAY));
    let from_march_0000 = days + 719_468;
    let (cycle, day_of_cycle) = (from_march_0000.div_euclid(146_097), from_march_0000.rem_euclid(146_097));
    let year_of_cycle = (day_of_cycle - day_of_cycle / 1_460 + day_of_cycle / 36_524 - day_of_cycle / 146_096) / 365;
    let day_of_year = day_of_cycle - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = cycle * 400 + year_of_cycle + i64::from(month <= 2);
    let (seconds, fraction) = (of_day / 1_000_000, of_day % 1_000_000);
    let ([y1, y2], [y3, y4]) = (two_digits(year / 100), two_digits(year % 100));
    let ([mo1, mo2], [d1, d2]) = (two_digits(month), two_digits(day));
    let ([h1, h2], [mi1, mi2], [s1, s2]) =
        (two_digits(seconds / 3_600), two_digits(seconds / 60 % 60), two_digits(seconds % 60));
    let ([f1, f2], [f3, f4], [f5, f6]) =
        (two_digits(fraction / 10_000), two_digits(fraction / 100 % 100), two_digits(fraction % 100));
    out.extend_from_slice(&[
        b'"', y1, y2, y3, y4, b'-', mo1, mo2, b'-', d1, d2, b'T', h1, h2, b':', mi1, mi2, b':', s1, s2, b'.', f1, f2,
        f3, f4, f5, f6, b'Z', b'"',
    ]);
    Ok(())
}

/// The two decimal digits of a number below 100.
fn two_digits(number: i64) -> [u8; 2] {
    let number = u8::try_from(number).unwrap_or(0);
    [b'0' + number / 10, b'0' + number % 10]
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, SecondsFormat};
    use proptest::prelude::*;

    use super::{FIRST_MICROS, LAST_MICROS, LISTS, MEMBERS, Source, TEXTS, TIMES, write_string, write_time};

    #[test]
    fn members_are_in_the_order_of_the_alphabet_and_name_their_own_columns() {
        assert!(MEMBERS.is_sorted_by(|a, b| a.0 < b.0));
        for (name, key, source) in MEMBERS {
            assert_eq!(key, format!(",\"{name}\":"));
            let column = match source {
                Source::Text(at) => TEXTS[at],
                Source::List(at) => LISTS[at],
                Source::Time(at) => TIMES[at],
                _ => name,
            };
            assert_eq!(name, column);
        }
    }

    #[test]
    fn every_column_of_the_ledger_is_a_member() {
        let schema = &crate::model::schema::schemas().unwrap().audit_log;
        let mut columns: Vec<_> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        columns.retain(|name| *name != "entry_hash");
        columns.extend(["origin", "v"]);
        columns.sort_unstable();
        assert_eq!(columns, MEMBERS.map(|(name, ..)| name));
    }

    proptest! {
        #[test]
        fn strings_are_those_of_any_json_writer_without_needless_escapes(
            text in prop_oneof![any::<String>(), "[a!#\\[\\]\"\\\\\u{0}-\u{21}\u{7f}é€]{0,40}"],
        ) {
            let mut written = Vec::new();
            write_string(&text, &mut written);
            prop_assert_eq!(String::from_utf8(written).unwrap(), serde_json::to_string(&text).unwrap());
        }

        #[test]
        fn times_are_rfc_3339_with_six_digits(micros in FIRST_MICROS..=LAST_MICROS) {
            let mut written = Vec::new();
            write_time("occurred_at", micros, &mut written).unwrap();
            let expected = DateTime::from_timestamp_micros(micros).unwrap().to_rfc3339_opts(SecondsFormat::Micros, true);
            prop_assert_eq!(String::from_utf8(written).unwrap(), format!("\"{expected}\""));
        }
    }
}
