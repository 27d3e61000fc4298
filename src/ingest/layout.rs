//! What a sample's fields are, read from the canonical schema: which a body may carry, where each goes, and by which
//! rule it is judged.
//!
//! The schema says name, type and whether a field may be null. What it cannot say is added here, by name: the lengths,
//! the words and the forms of the contract's field table.

use std::sync::LazyLock;

use arrow::datatypes::{DataType, SchemaRef};

use super::error::IngestError;
use crate::model::schema::{SchemaError, schemas};

/// The field that JSON or Arrow may carry in place of `error_hash`.
pub(super) const ERROR_MESSAGE: &str = "error_message";

/// The most characters of a required name.
const NAME_MAX_CHARS: usize = 128;
/// The most characters of an optional text: room for a long caller or session id, and not for a payload.
const TEXT_MAX_CHARS: usize = 256;

/// How a column's values are judged and completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    /// `invocation_id`: a UUID, minted where there is none.
    Id,
    /// `org`: the path's; a body that names it must agree.
    Org,
    /// A required name.
    Name {
        /// The most characters.
        max_chars: usize,
    },
    /// An optional text.
    Text {
        /// The most characters.
        max_chars: usize,
    },
    /// Hex digits of a fixed number, stored in lower case.
    Hex {
        /// How many.
        digits: usize,
        /// Whether all zeros stand for "none" and are therefore invalid, as W3C Trace Context has it.
        refuse_zero: bool,
    },
    /// One of [`Outcome::ALL`](crate::model::Outcome::ALL).
    Outcome,
    /// One of [`Decision::ALL`](crate::model::Decision::ALL).
    Decision,
    /// `started_at`: event time.
    Started,
    /// `arrived_at`: `started_at` where there is none.
    Arrived,
    /// A duration: not negative, finite.
    Duration,
    /// A number of bytes: not negative.
    Count,
    /// `ingested_at`: the control plane's own clock, whatever a body says.
    IngestedAt,
    /// `date`: cut from `started_at`, whatever a body says.
    Date,
}

/// One column of the canonical batch.
#[derive(Debug)]
pub(super) struct Column {
    /// Its name, in JSON, in Arrow and in SQL.
    pub(super) name: &'static str,
    /// Its Arrow type.
    pub(super) data_type: &'static DataType,
    /// How it is judged.
    pub(super) rule: Rule,
    /// Whether every sample must carry it.
    pub(super) required: bool,
}

/// Where a field of a body goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Field {
    /// Into the column of this index.
    Column(usize),
    /// Compared with the path's org.
    Org,
    /// Nowhere: the control plane fills it itself. Taken so that what SQL gives out can be sent in again.
    Stamped,
    /// Hashed into the column of this index.
    ErrorMessage(usize),
}

/// The columns and fields of a sample.
#[derive(Debug)]
pub(super) struct Layout {
    /// The canonical schema.
    pub(super) schema: &'static SchemaRef,
    /// Its columns, in its order.
    pub(super) columns: Vec<Column>,
    fields: Vec<(&'static str, Field)>,
}

static LAYOUT: LazyLock<Result<Layout, SchemaError>> = LazyLock::new(|| {
    let schema = &schemas()?.tool_invocations;
    let columns: Vec<Column> = schema
        .fields()
        .iter()
        .map(|field| {
            let (data_type, nullable) = (field.data_type(), field.is_nullable());
            let rule = rule(field.name(), data_type, nullable);
            let completed = rule.is_stamped() || matches!(rule, Rule::Id | Rule::Arrived);
            Column { name: field.name(), data_type, rule, required: !nullable && !completed }
        })
        .collect();
    let mut fields: Vec<_> = columns
        .iter()
        .enumerate()
        .map(|(index, column)| match column.rule {
            Rule::Org => (column.name, Field::Org),
            Rule::IngestedAt | Rule::Date => (column.name, Field::Stamped),
            _ => (column.name, Field::Column(index)),
        })
        .collect();
    if let Some(hash) = columns.iter().position(|column| column.name == "error_hash") {
        fields.push((ERROR_MESSAGE, Field::ErrorMessage(hash)));
    }
    Ok(Layout { schema, columns, fields })
});

/// The rule of a column: by name where the contract has one for it, else by type.
fn rule(name: &str, data_type: &DataType, nullable: bool) -> Rule {
    match name {
        "invocation_id" => Rule::Id,
        "org" => Rule::Org,
        "outcome" => Rule::Outcome,
        "decision" => Rule::Decision,
        "error_hash" => Rule::Hex { digits: 64, refuse_zero: false },
        "trace_id" => Rule::Hex { digits: 32, refuse_zero: true },
        "span_id" => Rule::Hex { digits: 16, refuse_zero: true },
        "arrived_at" => Rule::Arrived,
        "ingested_at" => Rule::IngestedAt,
        "date" => Rule::Date,
        _ => match data_type {
            DataType::Timestamp(..) => Rule::Started,
            DataType::Float64 => Rule::Duration,
            DataType::Int64 => Rule::Count,
            _ if nullable => Rule::Text { max_chars: TEXT_MAX_CHARS },
            _ => Rule::Name { max_chars: NAME_MAX_CHARS },
        },
    }
}

impl Rule {
    /// Whether the control plane fills the column itself, with no regard to what a body says.
    pub(super) const fn is_stamped(self) -> bool {
        matches!(self, Self::Org | Self::IngestedAt | Self::Date)
    }
}

impl Layout {
    /// The layout, made at the first call.
    ///
    /// # Errors
    /// When the DDL compiled into the program does not parse.
    pub(super) fn get() -> Result<&'static Self, IngestError> {
        LAYOUT.as_ref().map_err(|error| IngestError::Internal(error.to_string()))
    }

    /// The index of the field called `name`; see [`Layout::field`].
    pub(super) fn find(&self, name: &str) -> Option<usize> {
        self.fields.iter().position(|(known, _)| *known == name)
    }

    /// The name of a field, and where it goes.
    pub(super) fn field(&self, index: usize) -> Option<(&'static str, Field)> {
        self.fields.get(index).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::{Layout, Rule};

    #[test]
    fn the_required_fields_are_those_of_the_contract() {
        let layout = Layout::get().unwrap();
        let required: Vec<_> = layout.columns.iter().filter(|c| c.required).map(|c| c.name).collect();
        assert_eq!(required, ["workspace", "instance", "plugin", "tool", "started_at", "duration_ms", "outcome"]);
    }

    #[test]
    fn each_special_rule_governs_one_column() {
        let layout = Layout::get().unwrap();
        for rule in [Rule::Id, Rule::Org, Rule::Started, Rule::Arrived, Rule::IngestedAt, Rule::Date] {
            assert_eq!(layout.columns.iter().filter(|c| c.rule == rule).count(), 1, "{rule:?}");
        }
    }
}
