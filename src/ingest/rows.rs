//! Row by row into columns: what the two JSON forms share once the text is parsed.
//!
//! Each value goes straight into the Arrow builder of its column. At the end of a row each builder has grown by exactly
//! one, also when the row is at fault: the batch is then refused as a whole, but reading on finds the other faults.
//!
//! What hangs on more than one field of a row is seen to here: a field given twice or not at all, and `error_message`,
//! whose hash fills `error_hash` or must agree with it.
//!
//! A row that lacks a required field is a fault at once. That bounds memory: a row that is not refused takes some 150
//! bytes of JSON at least, which is more than its columns' fixed parts take.

use std::borrow::Cow;

use super::column_builder::{ColumnBuilder, Fault};
use super::detail;
use super::draft::Draft;
use super::error::{Faults, HASH_DIFFERS, IngestError, NO_SUCH_FIELD, ORG_DIFFERS, shown};
use super::layout::{ERROR_MESSAGE, Field, Layout};
use super::plaintext::ErrorMessage;
use super::value::Value;

/// Bytes of JSON a sample takes, roughly: for the first size of the builders only.
const TYPICAL_SAMPLE_BYTES: usize = 450;

/// Builds columns from rows of fields.
pub(super) struct RowBuilder<'a> {
    layout: &'static Layout,
    org: &'a str,
    max_rows: usize,
    /// None for a column that is not filled from a body.
    columns: Vec<Option<ColumnBuilder>>,
    /// Columns that have a builder, as bits.
    built: u64,
    faults: Faults,
    rows: usize,
    /// The field last seen at each position of an object: emitters write their fields in one order.
    order: [usize; 64],
    /// Fields of this row met so far, as bits by field.
    seen: u64,
    /// Columns of this row that have their value, as bits by column.
    filled: u64,
    /// Columns of this row that have a fault, as bits by column.
    faulty: u64,
    /// The hash of this row's `error_message`, and its column.
    message_hash: Option<(usize, blake3::Hash)>,
    /// This row's `error_hash` as given; empty if it is missing.
    given_hash: String,
}

const fn bit(index: usize) -> u64 {
    1 << (index as u32 % u64::BITS)
}

impl<'a> RowBuilder<'a> {
    /// A builder for a body of `bytes` of JSON, for `org`.
    pub(super) fn new(layout: &'static Layout, org: &'a str, bytes: usize, max_rows: usize) -> Self {
        let capacity = (bytes / TYPICAL_SAMPLE_BYTES + 1).min(max_rows);
        let mut built = 0;
        let columns = layout
            .columns
            .iter()
            .enumerate()
            .map(|(index, column)| {
                if column.rule.is_stamped() {
                    return None;
                }
                built |= bit(index);
                Some(ColumnBuilder::new(column.data_type, capacity))
            })
            .collect();
        Self {
            layout,
            org,
            max_rows,
            columns,
            built,
            faults: Faults::default(),
            rows: 0,
            order: [usize::MAX; 64],
            seen: 0,
            filled: 0,
            faulty: 0,
            message_hash: None,
            given_hash: String::new(),
        }
    }

    /// Samples ended so far, which is the row that is being read.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Whether reading on is of no use: too many faults, or too many samples.
    pub(super) fn should_stop(&self) -> bool {
        self.faults.is_full() || self.rows > self.max_rows
    }

    /// The field called `name`, found at `position` of its object; none when it was noted as a fault.
    pub(super) fn enter(&mut self, position: usize, name: &str) -> Option<usize> {
        let guess = self.order.get(position).copied();
        let index = match guess.filter(|&index| self.layout.field(index).is_some_and(|(known, _)| known == name)) {
            Some(index) => index,
            None => {
                let Some(index) = self.layout.find(name) else {
                    self.faults.field(self.rows, shown(name), NO_SUCH_FIELD);
                    return None;
                };
                if let Some(slot) = self.order.get_mut(position) {
                    *slot = index;
                }
                index
            }
        };
        if self.seen & bit(index) != 0 {
            if let Some((name, _)) = self.layout.field(index) {
                self.faults.field(self.rows, name, "given twice");
            }
            return None;
        }
        self.seen |= bit(index);
        Some(index)
    }

    /// Puts the value of a field of this row in its place.
    pub(super) fn put(&mut self, field: usize, value: Value<'_>) {
        let Some((name, field)) = self.layout.field(field) else { return };
        match (field, value) {
            (Field::Stamped, _) | (_, Value::Null) => {}
            (Field::Org, Value::Text(org)) if org == self.org => {}
            (Field::Org, Value::Text(_)) => self.faults.field(self.rows, name, ORG_DIFFERS),
            (Field::ErrorMessage(column), Value::Text(text)) => {
                self.message_hash = Some((column, ErrorMessage::new(text).hash()));
            }
            (Field::Detail(_), other) => self.wrong_type(name, "an object", other),
            (Field::Org | Field::ErrorMessage(_), other) => self.wrong_type(name, "a string", other),
            (Field::Column(column), value) => self.put_column(name, column, value),
        }
    }

    /// Whether a field's value is kept as JSON text.
    pub(super) fn takes_json(&self, field: usize) -> bool {
        matches!(self.layout.field(field), Some((_, Field::Detail(_))))
    }

    /// Puts the JSON text of a value of this row in its place.
    pub(super) fn put_json(&mut self, field: usize, json: &str) {
        let Some((name, Field::Detail(column))) = self.layout.field(field) else { return };
        let Some(Some(ColumnBuilder::Text(builder))) = self.columns.get_mut(column) else { return };
        match detail::compact(json) {
            Ok(None) => {}
            Ok(Some(text)) => {
                builder.append_value(text);
                self.filled |= bit(column);
            }
            Err(reason) => {
                self.faulty |= bit(column);
                self.faults.field(self.rows, name, reason);
            }
        }
    }

    /// Whether a field's value is an array of texts.
    pub(super) fn takes_texts(&self, field: usize) -> bool {
        let column = match self.layout.field(field) {
            Some((_, Field::Column(column))) => self.columns.get(column),
            _ => None,
        };
        matches!(column, Some(Some(ColumnBuilder::Texts(_))))
    }

    /// Puts one text of an array in its place; the array is ended by [`RowBuilder::end_texts`].
    pub(super) fn put_text(&mut self, field: usize, value: Value<'_>) {
        let Some((name, Field::Column(column))) = self.layout.field(field) else { return };
        let Some(Some(ColumnBuilder::Texts(builder))) = self.columns.get_mut(column) else { return };
        match value {
            Value::Text(text) => builder.values().append_value(text),
            other => {
                self.faulty |= bit(column);
                self.wrong_type(name, "an array of strings", other);
            }
        }
    }

    /// Ends an array of texts. An empty one is as none.
    pub(super) fn end_texts(&mut self, field: usize, texts: usize) {
        let Some((_, Field::Column(column))) = self.layout.field(field) else { return };
        if let Some(Some(ColumnBuilder::Texts(builder))) = self.columns.get_mut(column)
            && texts > 0
        {
            builder.append(true);
            self.filled |= bit(column);
        }
    }

    fn put_column(&mut self, name: &'static str, column: usize, value: Value<'_>) {
        let Some(Some(builder)) = self.columns.get_mut(column) else { return };
        match builder.append(value) {
            Ok(()) => {
                self.filled |= bit(column);
                if let Value::Text(text) = value
                    && name == "error_hash"
                {
                    self.given_hash.push_str(text);
                }
            }
            Err(fault) => {
                self.faulty |= bit(column);
                match fault {
                    Fault::Form(message) => self.faults.field(self.rows, name, message),
                    Fault::Type(expected) => self.wrong_type(name, expected, value),
                }
            }
        }
    }

    fn wrong_type(&mut self, name: &'static str, expected: &str, found: Value<'_>) {
        self.faults.field(self.rows, name, format!("expected {expected}, found {}", found.kind()));
    }

    /// Ends the row: completes columns that have no value yet.
    pub(super) fn end_row(&mut self) {
        if let Some((column, hash)) = self.message_hash.take() {
            self.put_message_hash(column, hash);
        }
        let mut lacking = self.built & !self.filled;
        while lacking != 0 {
            let index = lacking.trailing_zeros() as usize;
            lacking &= lacking - 1;
            if let Some(Some(builder)) = self.columns.get_mut(index) {
                builder.append_null();
            }
            if let Some(column) = self.layout.columns.get(index)
                && column.required
                && self.faulty & bit(index) == 0
            {
                self.faults.missing(self.rows, column.name);
            }
        }
        self.rows += 1;
        (self.seen, self.filled, self.faulty) = (0, 0, 0);
        self.given_hash.clear();
    }

    fn put_message_hash(&mut self, column: usize, hash: blake3::Hash) {
        if self.filled & bit(column) != 0 {
            if !self.given_hash.eq_ignore_ascii_case(&hash.to_hex()) {
                self.faults.field(self.rows, ERROR_MESSAGE, HASH_DIFFERS);
            }
        } else if self.faulty & bit(column) == 0
            && let Some(Some(ColumnBuilder::Text(builder))) = self.columns.get_mut(column)
        {
            builder.append_value(hash.to_hex());
            self.filled |= bit(column);
        }
    }

    /// Ends a row that could not be read as a sample at all.
    pub(super) fn end_unreadable_row(&mut self, reason: impl Into<Cow<'static, str>>) {
        self.faults.sample(self.rows, reason);
        self.faulty = u64::MAX;
        self.message_hash = None;
        self.end_row();
    }

    /// Notes a fault of a row that has ended.
    pub(super) fn fault_of(&mut self, row: usize, reason: String) {
        self.faults.sample(row, reason);
    }

    /// The columns.
    ///
    /// # Errors
    /// [`IngestError::TooLarge`] when there were too many rows.
    pub(super) fn finish(self) -> Result<Draft, IngestError> {
        if self.rows > self.max_rows {
            return Err(IngestError::too_many_rows(self.layout.kind, self.max_rows));
        }
        let columns = self.columns.into_iter().map(|builder| builder.map(ColumnBuilder::finish)).collect();
        Ok(Draft { columns, rows: self.rows, faults: self.faults })
    }

    /// The error of a text that broke off being JSON in the row that is being read.
    pub(super) fn into_malformed(mut self, detail: String) -> IngestError {
        self.faults.sample(self.rows, detail.clone());
        IngestError::Malformed { detail, errors: self.faults.into_sorted() }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::fixtures::*;

    #[test]
    fn an_error_message_is_hashed_in_place_of_the_hash() {
        let mut sample = sample_without("error_hash");
        sample["error_message"] = "connection reset by \"peer\"\n".into();
        let batch = decode_json(&sample).unwrap();
        let expected = blake3::hash(b"connection reset by \"peer\"\n").to_hex();
        assert_eq!(text(&batch, "error_hash"), expected.as_str());
    }

    #[test]
    fn a_null_hash_gives_way_to_the_message() {
        let mut sample = sample_with("error_hash", Value::Null);
        sample["error_message"] = "x".into();
        assert_eq!(text(&decode_json(&sample).unwrap(), "error_hash"), blake3::hash(b"x").to_hex().as_str());
    }

    #[test]
    fn a_message_and_a_hash_of_another_text_contradict_each_other() {
        let mut agreeing = sample_with("error_message", "x");
        agreeing["error_hash"] = blake3::hash(b"x").to_hex().to_uppercase().into();
        decode_json(&agreeing).unwrap();
        assert!(fault_of(&sample_with("error_message", "x"), "error_message").contains("does not hash"));
    }

    #[test]
    fn hashes_of_one_row_do_not_reach_the_next() {
        let mut first = sample_without("error_hash");
        first["error_message"] = "x".into();
        let batch = decode_json(&json!([first, sample_without("error_hash"), sample()])).unwrap();
        let hashes = batch.column_by_name("error_hash").unwrap();
        assert!(hashes.is_null(1) && hashes.is_valid(2));
    }

    #[test]
    fn the_org_must_be_the_paths() {
        decode_json(&sample_with("org", "acme")).unwrap();
        fault_of(&sample_with("org", "other"), "org");
        fault_of(&sample_with("org", 1), "org");
    }

    #[test]
    fn what_the_control_plane_fills_may_be_sent_and_changes_nothing() {
        let mut sent = sample_with("ingested_at", "1999-01-01T00:00:00Z");
        sent["date"] = "1999-01-01".into();
        assert_eq!(decode_json(&sent).unwrap(), decode_json(&sample()).unwrap());
    }

    #[test]
    fn a_time_that_is_no_date_time_is_refused() {
        for bad in ["yesterday", "2026-11-22", "1763812798", ""] {
            assert!(fault_of(&sample_with("started_at", bad), "started_at").contains("RFC 3339"));
        }
        fault_of(&sample_with("started_at", 1_763_812_798), "started_at");
    }
}
