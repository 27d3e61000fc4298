//! Columns of ids and hashes in the one form that is stored: UUIDs with hyphens, hex digits of a fixed number, in lower
//! case.
//!
//! A column is first put to a test of all its bytes at once, without a branch a byte, which nearly every column passes.
//! Only one that fails is gone through text by text: what has another spelling is rewritten, what has none is reported
//! by its row.

use arrow::array::{Array, StringArray};
use uuid::Uuid;
use uuid::fmt::{Hyphenated, Simple};

/// What a text is beside its canonical form.
enum Form {
    Canonical,
    Other(String),
    Invalid,
}

/// UUIDs; `invalid` hears of each row that has none.
pub(super) fn uuids(texts: &StringArray, invalid: impl FnMut(usize)) -> StringArray {
    if texts.iter().flatten().fold(true, |all, text| all & is_hyphenated(text)) {
        return texts.clone();
    }
    rewritten(texts, uuid, invalid)
}

/// So many hex digits, not all zero if that is refused; `invalid` hears of each row that has other text.
pub(super) fn hex(texts: &StringArray, digits: usize, refuse_zero: bool, invalid: impl FnMut(usize)) -> StringArray {
    if are_hex(texts, digits, refuse_zero) {
        return texts.clone();
    }
    rewritten(texts, |text| hex_digits(text, digits, refuse_zero), invalid)
}

fn rewritten(texts: &StringArray, form: impl Fn(&str) -> Form, mut invalid: impl FnMut(usize)) -> StringArray {
    let mut as_they_are = true;
    for (row, text) in texts.iter().enumerate() {
        match text.map(&form) {
            None | Some(Form::Canonical) => {}
            Some(Form::Other(_)) => as_they_are = false,
            Some(Form::Invalid) => invalid(row),
        }
    }
    if as_they_are {
        return texts.clone();
    }
    let rewritten = texts.iter().map(|text| {
        text.map(|text| match form(text) {
            Form::Other(other) => other,
            Form::Canonical | Form::Invalid => text.to_owned(),
        })
    });
    rewritten.collect()
}

/// A UUID in the hyphenated form, or as 32 digits, in either case.
fn uuid(text: &str) -> Form {
    if is_hyphenated(text) {
        return Form::Canonical;
    }
    if text.len() != Hyphenated::LENGTH && text.len() != Simple::LENGTH {
        return Form::Invalid;
    }
    Uuid::try_parse(text).map_or(Form::Invalid, |id| Form::Other(id.hyphenated().to_string()))
}

/// Whether it is a UUID as it is stored. Without a branch a byte, which makes it a few instructions.
fn is_hyphenated(text: &str) -> bool {
    let Ok(bytes) = <&[u8; Hyphenated::LENGTH]>::try_from(text.as_bytes()) else { return false };
    let hyphens = [bytes[8], bytes[13], bytes[18], bytes[23]] == [b'-'; 4];
    let digits: usize = bytes.iter().map(|&byte| usize::from(is_lower_hex(byte))).sum();
    hyphens & (digits == Hyphenated::LENGTH - 4)
}

/// Whether all texts are so many lower-case hex digits, and not all zero if that is refused.
fn are_hex(texts: &StringArray, digits: usize, refuse_zero: bool) -> bool {
    let length = |row: usize| if texts.is_valid(row) { digits } else { 0 };
    texts.offsets().lengths().enumerate().fold(true, |all, (row, len)| all & (len == length(row)))
        && value_bytes(texts).iter().fold(true, |all, &byte| all & is_lower_hex(byte))
        && !(refuse_zero && texts.iter().flatten().any(|text| text.bytes().all(|byte| byte == b'0')))
}

fn hex_digits(text: &str, digits: usize, refuse_zero: bool) -> Form {
    let bytes = text.as_bytes();
    if bytes.len() != digits || (refuse_zero && bytes.iter().all(|&byte| byte == b'0')) {
        Form::Invalid
    } else if bytes.iter().all(|&byte| is_lower_hex(byte)) {
        Form::Canonical
    } else if bytes.iter().all(u8::is_ascii_hexdigit) {
        Form::Other(text.to_ascii_lowercase())
    } else {
        Form::Invalid
    }
}

const fn is_lower_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

/// The bytes of all texts, one after the other.
pub(super) fn value_bytes(texts: &StringArray) -> &[u8] {
    let ends = texts.value_offsets().first().zip(texts.value_offsets().last());
    let range = ends.and_then(|(&start, &end)| Some(usize::try_from(start).ok()?..usize::try_from(end).ok()?));
    range.and_then(|range| texts.value_data().get(range)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::*;

    #[test]
    fn an_id_is_stored_lower_case_with_hyphens() {
        for form in ["0198C0DE-7A11-7000-8000-00000000002A", "0198c0de7a1170008000", "0198c0de7a117000800000000000002a"]
        {
            match decode_json(&sample_with("invocation_id", form)) {
                Ok(batch) => assert_eq!(text(&batch, "invocation_id"), "0198c0de-7a11-7000-8000-00000000002a"),
                Err(_) => assert_eq!(form.len(), 20, "{form}"),
            }
        }
    }

    #[test]
    fn an_id_of_another_form_is_refused() {
        for bad in [
            "",
            "42",
            "{0198c0de-7a11-7000-8000-00000000002a}",
            "urn:uuid:0198c0de-7a11-7000-8000-00000000002a",
            "0198c0de-7a11-7000-8000-00000000002g",
            "0198c0de 7a11 7000 8000 00000000002a",
        ] {
            fault_of(&sample_with("invocation_id", bad), "invocation_id");
        }
    }

    #[test]
    fn hex_ids_are_stored_in_lower_case() {
        for (field, digits) in [("error_hash", 64), ("trace_id", 32), ("span_id", 16)] {
            let batch = decode_json(&sample_with(field, "AB".repeat(digits / 2))).unwrap();
            assert_eq!(text(&batch, field), "ab".repeat(digits / 2));
            for bad in ["", &"a".repeat(digits - 1), &"a".repeat(digits + 1), &"g".repeat(digits)] {
                fault_of(&sample_with(field, bad), field);
            }
        }
    }

    #[test]
    fn a_trace_or_span_id_of_zeros_is_none() {
        fault_of(&sample_with("trace_id", "0".repeat(32)), "trace_id");
        fault_of(&sample_with("span_id", "0".repeat(16)), "span_id");
        decode_json(&sample_with("error_hash", "0".repeat(64))).unwrap();
    }
}
