//! What the fields of a sample and of an audit event are, read from their schemas: which a body may carry, where each
//! goes, and by which rule it is judged.
//!
//! The schema says name, type and whether a field may be null. What it cannot say is added here, by name: the lengths,
//! the words and the forms of the contract's field table.

use std::sync::LazyLock;

use arrow::datatypes::{DataType, SchemaRef};

use super::error::{IngestError, RowKind};
use crate::model::schema::{SchemaError, schemas};

/// The field that JSON or Arrow may carry in place of `error_hash`.
pub(super) const ERROR_MESSAGE: &str = "error_message";

/// The most characters of a required name.
const NAME_MAX_CHARS: usize = 128;
/// The most characters of an optional text: room for a long caller or session id, and not for a payload.
const TEXT_MAX_CHARS: usize = 256;
/// The most characters of a target: a path or an address.
const TARGET_MAX_CHARS: usize = 1_024;

/// How a column's values are judged and completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    /// `invocation_id`: a UUID, made if it is missing.
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
    /// `arrived_at`: `started_at` if it is missing.
    Arrived,
    /// A duration: not negative, finite.
    Duration,
    /// A number of bytes: not negative.
    Count,
    /// `ingested_at`: the control plane's own clock, whatever a body says.
    IngestedAt,
    /// `date`: cut from `started_at`, whatever a body says.
    Date,
    /// `invocation_id` of an event: a UUID that the emitter knows, or none.
    Uuid,
    /// `actor` of an event that was sent in: anyone but the control plane.
    Actor {
        /// The most characters.
        max_chars: usize,
    },
    /// `action` of an event that was sent in: dotted words in lower case, none that only the control plane writes.
    Action,
    /// `action` of an event of the control plane's own.
    OwnAction,
    /// A required name in an event of the control plane's own: escaped and cut rather than refused.
    OwnName {
        /// The most characters.
        max_chars: usize,
    },
    /// An optional text in an event of the control plane's own: escaped and cut rather than refused.
    OwnText {
        /// The most characters.
        max_chars: usize,
    },
    /// `occurred_at`: the emitter's clock, `recorded_at` if it is missing.
    Occurred,
    /// `recorded_at`: the control plane's own clock, whatever a body says.
    RecordedAt,
    /// `reason`: text for people, of any characters.
    Prose,
    /// Texts in an array.
    Texts,
    /// `detail`: an object, kept as its JSON text.
    Detail,
    /// `salt`: drawn here.
    Salt,
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
    /// As JSON text into the column of this index.
    Detail(usize),
    /// Nowhere: the control plane fills it itself. Taken so that what SQL gives out can be sent in again.
    Stamped,
    /// Hashed into the column of this index.
    ErrorMessage(usize),
}

/// The columns and fields of a sample, or of an event.
#[derive(Debug)]
pub(super) struct Layout {
    /// Which of the two.
    pub(super) kind: RowKind,
    /// The canonical schema.
    pub(super) schema: &'static SchemaRef,
    /// Its columns, in its order.
    pub(super) columns: Vec<Column>,
    fields: Vec<(&'static str, Field)>,
}

static SAMPLES: LazyLock<Result<Layout, SchemaError>> = LazyLock::new(|| {
    let mut layout = Layout::of(RowKind::Sample, &schemas()?.tool_invocations, sample_rule);
    if let Some(hash) = layout.columns.iter().position(|column| column.name == "error_hash") {
        layout.fields.push((ERROR_MESSAGE, Field::ErrorMessage(hash)));
    }
    Ok(layout)
});

static EVENTS: LazyLock<Result<Layout, SchemaError>> = LazyLock::new(|| {
    let mut layout = Layout::of(RowKind::Event, &schemas()?.audit_event, event_rule);
    layout.fields.push(("org", Field::Org));
    Ok(layout)
});

static OWN_EVENTS: LazyLock<Result<Layout, SchemaError>> =
    LazyLock::new(|| Ok(Layout::of(RowKind::Event, &schemas()?.audit_event, own_event_rule)));

/// The rule of a sample's column: by name where the contract has one for it, else by type.
fn sample_rule(name: &str, data_type: &DataType, nullable: bool) -> Rule {
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

/// The rule of a column of an event of the control plane's own: it may say what no emitter may.
fn own_event_rule(name: &str, data_type: &DataType, nullable: bool) -> Rule {
    match name {
        "actor" => Rule::OwnName { max_chars: TEXT_MAX_CHARS },
        "target" => Rule::OwnText { max_chars: TARGET_MAX_CHARS },
        "action" => Rule::OwnAction,
        _ => event_rule(name, data_type, nullable),
    }
}

/// The rule of an event's column.
fn event_rule(name: &str, data_type: &DataType, nullable: bool) -> Rule {
    match name {
        "event_id" => Rule::Id,
        "occurred_at" => Rule::Occurred,
        "recorded_at" => Rule::RecordedAt,
        "actor" => Rule::Actor { max_chars: TEXT_MAX_CHARS },
        "action" => Rule::Action,
        "target" => Rule::Text { max_chars: TARGET_MAX_CHARS },
        "reason" => Rule::Prose,
        "invocation_id" => Rule::Uuid,
        "detail" => Rule::Detail,
        "salt" => Rule::Salt,
        _ if data_type.is_nested() => Rule::Texts,
        _ => sample_rule(name, data_type, nullable),
    }
}

impl Rule {
    /// Whether the control plane fills the column itself, with no regard to what a body says.
    pub(super) const fn is_stamped(self) -> bool {
        matches!(self, Self::Org | Self::IngestedAt | Self::Date | Self::RecordedAt | Self::Salt)
    }
}

impl Layout {
    /// The layout of samples, made at the first call.
    ///
    /// # Errors
    /// When the DDL compiled into the program does not parse.
    pub(super) fn samples() -> Result<&'static Self, IngestError> {
        SAMPLES.as_ref().map_err(|error| IngestError::Internal(error.to_string()))
    }

    /// The layout of events, made at the first call.
    ///
    /// # Errors
    /// When the DDL compiled into the program does not parse.
    pub(super) fn events() -> Result<&'static Self, IngestError> {
        EVENTS.as_ref().map_err(|error| IngestError::Internal(error.to_string()))
    }

    /// The layout of the control plane's own events, made at the first call.
    ///
    /// # Errors
    /// When the DDL compiled into the program does not parse.
    pub(super) fn own_events() -> Result<&'static Self, IngestError> {
        OWN_EVENTS.as_ref().map_err(|error| IngestError::Internal(error.to_string()))
    }

    fn of(kind: RowKind, schema: &'static SchemaRef, rule: impl Fn(&str, &DataType, bool) -> Rule) -> Self {
        let columns: Vec<Column> = schema
            .fields()
            .iter()
            .map(|field| {
                let (data_type, nullable) = (field.data_type(), field.is_nullable());
                let rule = rule(field.name(), data_type, nullable);
                let completed = rule.is_stamped() || matches!(rule, Rule::Id | Rule::Arrived | Rule::Occurred);
                Column { name: field.name(), data_type, rule, required: !nullable && !completed }
            })
            .collect();
        let fields = columns.iter().enumerate().filter_map(|(index, column)| {
            let field = match column.rule {
                Rule::Org => Field::Org,
                Rule::IngestedAt | Rule::Date | Rule::RecordedAt => Field::Stamped,
                Rule::Detail => Field::Detail(index),
                // Drawn here and nowhere else.
                Rule::Salt => return None,
                _ => Field::Column(index),
            };
            Some((column.name, field))
        });
        let fields = fields.collect();
        Self { kind, schema, columns, fields }
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
        let layout = Layout::samples().unwrap();
        let required: Vec<_> = layout.columns.iter().filter(|c| c.required).map(|c| c.name).collect();
        assert_eq!(required, ["workspace", "instance", "plugin", "tool", "started_at", "duration_ms", "outcome"]);
    }

    #[test]
    fn the_required_fields_of_an_event_are_who_and_what() {
        let layout = Layout::events().unwrap();
        let required: Vec<_> = layout.columns.iter().filter(|c| c.required).map(|c| c.name).collect();
        assert_eq!(required, ["actor", "action"]);
    }

    #[test]
    fn each_special_rule_governs_one_column() {
        let layout = Layout::samples().unwrap();
        for rule in [Rule::Id, Rule::Org, Rule::Started, Rule::Arrived, Rule::IngestedAt, Rule::Date] {
            assert_eq!(layout.columns.iter().filter(|c| c.rule == rule).count(), 1, "{rule:?}");
        }
    }
}
