//! The one judge of samples: columns as decoded, by whichever decoder, become a canonical batch or a list of faults.
//!
//! Column by column, not row by row: a column is first put to a test of all its values at once that nearly every column
//! passes, and only one that fails is gone through value by value to find the rows at fault.
//!
//! Decoders have noted nulls in required columns already; a null is therefore never a fault here.
//!
//! Beyond the contract's words: times lie in the year 2000 or later, which catches seconds sent as milliseconds and
//! clocks that were never set; a negative zero duration becomes zero.
//!
//! Ids and hashes are judged in `canonical`. What a body does not bring is filled in `completion`.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Float64Array, Int64Array, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{Float64Type, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;
use chrono::TimeDelta;

use super::draft::Draft;
use super::error::{Faults, IngestError};
use super::ids::IdSource;
use super::layout::{Column, Layout, Rule};
use super::names::{is_seen, is_unseen};
use super::{DecodeContext, canonical, completion};
use crate::model::{Decision, Outcome, micros};

/// How far a gateway's clock may be ahead of ours.
const MAX_AHEAD: TimeDelta = TimeDelta::minutes(10);
/// The longest that a call may take: 30 days. Above it lie microseconds and nanoseconds that were taken for
/// milliseconds.
const MAX_DURATION_MS: f64 = 30.0 * 86_400_000.0;
/// The year 2000 in µs since the Unix epoch.
const EARLIEST_MICROS: i64 = 946_684_800_000_000;
/// The years 1 and 10000 in µs since the Unix epoch.
const YEAR_1_MICROS: i64 = -62_135_596_800_000_000;
const YEAR_10000_MICROS: i64 = 253_402_300_800_000_000;
/// The longest action.
const ACTION_MAX_BYTES: usize = 128;
/// What the actions begin with that only the control plane may write. New prefixes of its own belong here.
const RESERVED_ACTIONS: [&str; 3] = ["ledger.", "operator.", "payload."];
/// What emitters may say under `operator.`: what a gateway reports of itself and of its policy. The control plane never
/// writes an action with one of these prefixes.
const EMITTERS_ACTIONS: [&str; 2] = ["operator.gateway_", "operator.policy_"];
const RESERVED: &str = "ledger.…, payload.… and operator.… are the control plane's own; of operator.… an emitter may send \
                        operator.gateway_… and operator.policy_…";
/// What the actor of the control plane's own events begins with: no emitter speaks in its name.
pub const OWN_ACTOR: &str = "system:control-plane";
/// The actor of `mcpg store repair`.
pub const REPAIR_ACTOR: &str = "system:store-repair";
const OWN_ACTORS_FAULT: &str = "system:control-plane… and system:store-repair… are the control plane itself, whatever \
                                the case and the blanks";
/// The longest reason.
const PROSE_MAX_BYTES: usize = 16 << 10;
/// The most texts in an array, and the longest.
const TEXTS_MAX: usize = 256;
const TEXTS_MAX_BYTES: usize = 1_024;
const TEXTS_FAULT: &str = "not at most 256 texts of 1 to 1024 bytes without control characters";

/// Judges and completes columns.
///
/// # Errors
/// [`IngestError::Invalid`] for faults found here or before, [`IngestError::EmptyBatch`] for no row.
pub(super) fn seal(
    draft: Draft,
    layout: &'static Layout,
    context: &DecodeContext<'_>,
    ids: &mut dyn IdSource,
) -> Result<RecordBatch, IngestError> {
    let Draft { columns, rows, mut faults } = draft;
    if rows == 0 && faults.is_empty() {
        return Err(IngestError::EmptyBatch(layout.kind));
    }
    let mut judge = Judge { rows, context, ids, faults: &mut faults };
    let mut judged = Vec::with_capacity(columns.len());
    for (column, values) in layout.columns.iter().zip(columns) {
        judged.push(judge.column(column, values)?);
    }
    if !faults.is_empty() {
        return Err(faults.into_error(layout.kind));
    }
    completion::complete(layout, judged, rows, context)
}

struct Judge<'a> {
    rows: usize,
    context: &'a DecodeContext<'a>,
    ids: &'a mut dyn IdSource,
    faults: &'a mut Faults,
}

impl Judge<'_> {
    /// The values of a column in their canonical form; none where it is completed later.
    fn column(&mut self, column: &Column, values: Option<ArrayRef>) -> Result<Option<ArrayRef>, IngestError> {
        let judged: Option<ArrayRef> = match (column.rule, values) {
            (Rule::Org | Rule::IngestedAt | Rule::RecordedAt | Rule::Salt, _) => {
                completion::stamped(column, self.rows, self.context, self.ids)
            }
            (Rule::Id, None) => Some(self.minted(&StringArray::new_null(self.rows))),
            (Rule::Date, _) | (_, None) => None,
            (_, Some(values)) if values.len() != self.rows || values.data_type() != column.data_type => {
                return Err(IngestError::Internal(format!("column {} was not decoded whole", column.name)));
            }
            (rule, Some(values)) => Some(self.judge(column.name, rule, values)),
        };
        Ok(judged)
    }

    fn judge(&mut self, name: &'static str, rule: Rule, values: ArrayRef) -> ArrayRef {
        match rule {
            Rule::Id => {
                let texts = self.uuids(name, values.as_string());
                if texts.null_count() > 0 { self.minted(&texts) } else { Arc::new(texts) }
            }
            Rule::Name { max_chars } => {
                let names = values.as_string();
                self.lengths(name, names, 1, max_chars);
                if !is_plain(names) || names.iter().flatten().any(|name| name.trim_ascii().is_empty()) {
                    // What is empty is reported already.
                    let seen = |name: &str| name.is_empty() || is_seen(name);
                    self.note(name, names.iter(), seen, "blank, or with zero-width or bidirectional characters");
                }
                values
            }
            Rule::Text { max_chars } => {
                self.lengths(name, values.as_string(), 0, max_chars);
                values
            }
            Rule::Hex { digits, refuse_zero } => {
                let fault = if refuse_zero {
                    format!("not {digits} hex digits, or all zero")
                } else {
                    format!("not {digits} hex digits")
                };
                let invalid = |row| self.faults.field(row, name, fault.clone());
                Arc::new(canonical::hex(values.as_string(), digits, refuse_zero, invalid))
            }
            Rule::Outcome => {
                self.words(name, values.as_string(), &Outcome::ALL.map(Outcome::as_str));
                values
            }
            Rule::Decision => {
                self.words(name, values.as_string(), &Decision::ALL.map(Decision::as_str));
                values
            }
            Rule::Started | Rule::Arrived => {
                self.times(name, values.as_primitive());
                values
            }
            Rule::Duration => Arc::new(self.durations(name, values.as_primitive())),
            Rule::Count => {
                self.counts(name, values.as_primitive());
                values
            }
            Rule::Uuid => Arc::new(self.uuids(name, values.as_string())),
            Rule::Actor { max_chars } => {
                let actors = values.as_string();
                self.lengths(name, actors, 1, max_chars);
                let free = |actor: &str| !reads_as_own(actor);
                self.note(name, actors.iter(), free, OWN_ACTORS_FAULT);
                values
            }
            Rule::Action => {
                self.actions(name, values.as_string());
                self.note(name, values.as_string::<i32>().iter(), |action| !is_reserved(action), RESERVED);
                values
            }
            Rule::OwnAction => {
                self.actions(name, values.as_string());
                values
            }
            Rule::OwnName { max_chars } => {
                let texts: StringArray =
                    values.as_string::<i32>().iter().map(|text| text.map(|text| plain(text, max_chars))).collect();
                self.lengths(name, &texts, 1, max_chars);
                Arc::new(texts)
            }
            Rule::OwnText { max_chars } => Arc::new(
                values
                    .as_string::<i32>()
                    .iter()
                    .map(|text| text.map(|text| plain(text, max_chars)))
                    .collect::<StringArray>(),
            ),
            Rule::Occurred => {
                self.note(
                    name,
                    values.as_primitive::<TimestampMicrosecondType>().iter(),
                    has_year,
                    "not in the years 1 to 9999",
                );
                values
            }
            Rule::Prose => {
                let fits = |text: &str| text.len() <= PROSE_MAX_BYTES;
                self.note(name, values.as_string::<i32>().iter(), fits, &format!("over {PROSE_MAX_BYTES} bytes"));
                values
            }
            Rule::Texts => {
                self.note(name, values.as_list::<i32>().iter(), |texts| are_texts(texts.as_string()), TEXTS_FAULT);
                values
            }
            // Judged as it was read.
            Rule::Detail | Rule::Salt => values,
            Rule::Org | Rule::IngestedAt | Rule::Date | Rule::RecordedAt => values,
        }
    }

    /// Notes the rows whose value fails.
    fn note<T>(
        &mut self,
        name: &'static str,
        values: impl Iterator<Item = Option<T>>,
        passes: impl Fn(T) -> bool,
        fault: &str,
    ) {
        for (row, value) in values.enumerate() {
            if value.is_some_and(|value| !passes(value)) {
                self.faults.field(row, name, fault.to_owned());
            }
        }
    }

    fn lengths(&mut self, name: &'static str, texts: &StringArray, least: usize, most: usize) {
        if is_plain(texts) && texts.offsets().lengths().all(|len| (least..=most).contains(&len)) {
            return;
        }
        let passes = |text: &str| {
            // A character has at most four bytes: what is longer need not be counted.
            text.len() >= least
                && text.len() <= most.saturating_mul(4)
                && text.chars().count() <= most
                && !text.chars().any(char::is_control)
        };
        let fault = format!("not {least} to {most} characters without control characters");
        self.note(name, texts.iter(), passes, &fault);
    }

    fn words(&mut self, name: &'static str, texts: &StringArray, words: &[&str]) {
        self.note(name, texts.iter(), |text| words.contains(&text), &format!("not one of {}", words.join(", ")));
    }

    fn times(&mut self, name: &'static str, times: &TimestampMicrosecondArray) {
        let latest = micros(self.context.now + MAX_AHEAD);
        let allowed = EARLIEST_MICROS..=latest;
        if times.null_count() == 0 && times.values().iter().fold(true, |all, time| all & allowed.contains(time)) {
            return;
        }
        self.note(name, times.iter(), |time| time >= EARLIEST_MICROS, "before the year 2000");
        self.note(name, times.iter(), |time| time <= latest, "more than 10 minutes in the future");
    }

    fn durations(&mut self, name: &'static str, durations: &Float64Array) -> Float64Array {
        self.note(name, durations.iter(), |ms| ms.is_finite() && ms >= 0.0, "not a finite number of at least 0");
        let fault = "over 30 days; a duration is in milliseconds";
        self.note(name, durations.iter(), |ms| !ms.is_finite() || ms <= MAX_DURATION_MS, fault);
        // Adding zero turns -0.0 into 0.0 and leaves everything else as it is.
        durations.unary::<_, Float64Type>(|ms| ms + 0.0)
    }

    fn counts(&mut self, name: &'static str, counts: &Int64Array) {
        self.note(name, counts.iter(), |count| count >= 0, "negative");
    }

    /// Dotted words in lower case.
    fn actions(&mut self, name: &'static str, actions: &StringArray) {
        let fault = format!("not dotted lower-case words of at most {ACTION_MAX_BYTES} bytes, like tool.permit");
        self.note(name, actions.iter(), is_action, &fault);
    }

    fn uuids(&mut self, name: &'static str, texts: &StringArray) -> StringArray {
        canonical::uuids(texts, |row| self.faults.field(row, name, "not a UUID"))
    }

    fn minted(&mut self, ids: &StringArray) -> ArrayRef {
        Arc::new(completion::minted(ids, self.context, self.ids))
    }
}

/// Whether a time has a year of four digits, as RFC 3339 wants it.
fn has_year(micros: i64) -> bool {
    (YEAR_1_MICROS..YEAR_10000_MICROS).contains(&micros)
}

/// Whether a text can be an event's action: dotted words in lower case.
pub fn is_action(action: &str) -> bool {
    let word = |word: &str| {
        !word.is_empty() && word.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'))
    };
    action.len() <= ACTION_MAX_BYTES && action.contains('.') && action.split('.').all(word)
}

/// Whether an action is one that only the control plane writes.
fn is_reserved(action: &str) -> bool {
    let begins = |prefixes: &[&str]| prefixes.iter().any(|prefix| action.starts_with(prefix));
    begins(&RESERVED_ACTIONS) && !begins(&EMITTERS_ACTIONS)
}

/// Whether an actor begins as one of the control plane's own does, to who reads it: blanks and characters that show
/// nothing are passed over, and so is case.
fn reads_as_own(actor: &str) -> bool {
    let shows = |c: &char| !c.is_whitespace() && !is_unseen(*c);
    [OWN_ACTOR, REPAIR_ACTOR].iter().any(|own| {
        let mut read = actor.chars().filter(shows).flat_map(char::to_lowercase);
        own.chars().all(|expected| read.next() == Some(expected))
    })
}

/// A text that the control plane did not choose, such as a token's name, made fit for a column of names: control
/// characters are escaped as in JSON, and what is longer than the column is cut and ends in `…`. The entry must be
/// written whatever the name: a refusal would keep what that token does out of the ledger.
fn plain(text: &str, max_chars: usize) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            escaped.push_str(&format!("\\u{:04x}", u32::from(character)));
        } else {
            escaped.push(character);
        }
    }
    if escaped.chars().count() > max_chars {
        escaped = escaped.chars().take(max_chars.saturating_sub(1)).chain(['…']).collect();
    }
    escaped
}

fn are_texts(texts: &StringArray) -> bool {
    let fits = |text: &str| (1..=TEXTS_MAX_BYTES).contains(&text.len()) && !text.chars().any(char::is_control);
    texts.len() <= TEXTS_MAX && texts.iter().flatten().all(fits)
}

/// Whether all is printable ASCII: one pass over the column's bytes, whatever its rows.
fn is_plain(texts: &StringArray) -> bool {
    canonical::value_bytes(texts).iter().fold(true, |all, byte| all & (0x20..0x7f).contains(byte))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::fixtures::*;
    use super::{is_reserved, plain, reads_as_own};
    use crate::model::{Decision, Outcome};

    #[test]
    fn what_the_control_plane_alone_writes_is_reserved_and_what_emitters_report_is_not() {
        for reserved in
            ["ledger.prune", "operator.started", "operator.gateway", "payload.viewed", "operator.request_refused"]
        {
            assert!(is_reserved(reserved), "{reserved}");
        }
        for free in ["tool.permit", "plugin.ready", "operators.x", "ledgers.x", "operator.gateway_started"] {
            assert!(!is_reserved(free), "{free}");
        }
    }

    #[test]
    fn no_actor_reads_as_one_of_the_control_planes_own() {
        for own in [
            "system:control-plane@03f66e8c",
            "system:control-plane",
            "System:Control-Plane@x",
            " system:control-plane@x",
            "system: control-plane",
            "\u{200b}system:control\u{ad}-plane@x",
            "\u{a0}SYSTEM:store-repair",
        ] {
            assert!(reads_as_own(own), "{own:?}");
        }
        for free in
            ["system:gateway", "service:ci", "user:alice@acme", "user:system:control-plane", "system:control", ""]
        {
            assert!(!reads_as_own(free), "{free:?}");
        }
    }

    /// The gateway's spool would be held up for good by an action that is refused.
    #[test]
    fn no_action_of_the_gateway_is_reserved() {
        fn literals(folder: &std::path::Path, found: &mut Vec<String>) {
            for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
                if entry.path().is_dir() {
                    literals(&entry.path(), found);
                    continue;
                }
                let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
                found.extend(text.split('"').filter(|part| part.starts_with("operator.")).map(str::to_owned));
            }
        }
        let mut actions = Vec::new();
        literals(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/gateway"), &mut actions);
        assert!(actions.len() >= 4, "{actions:?}");
        assert_eq!(actions.iter().find(|action| is_reserved(action)), None);
    }

    #[test]
    fn what_others_named_is_escaped_and_cut_rather_than_refused() {
        assert_eq!(plain("ci é", 10), "ci é");
        assert_eq!(plain("a\u{1b}\u{7f}\n", 40), "a\\u001b\\u007f\\u000a");
        assert_eq!(plain(&"x".repeat(11), 10), format!("{}…", "x".repeat(9)));
    }

    #[test]
    fn a_name_has_1_to_128_characters_and_none_of_control() {
        for field in ["workspace", "instance", "plugin", "tool"] {
            for good in ["x", &"x".repeat(128), &"é".repeat(128), "日本語 tool", "a/b.c-d_e"] {
                decode_json(&sample_with(field, good)).unwrap();
            }
            for bad in ["", &"x".repeat(129), &"é".repeat(129), "a\nb", "a\0b", "a\u{7f}", "a\u{85}"] {
                fault_of(&sample_with(field, bad), field);
            }
            for unseen in [" ", "\u{3000}", "a\u{202e}b", "a\u{200b}", "\u{feff}a"] {
                assert!(fault_of(&sample_with(field, unseen), field).contains("zero-width"), "{unseen:?}");
            }
        }
    }

    #[test]
    fn an_optional_text_may_be_empty_or_256_characters_long() {
        for field in ["error_code", "request_id", "session_id", "caller"] {
            for good in ["", &"é".repeat(256)] {
                decode_json(&sample_with(field, good)).unwrap();
            }
            for bad in ["a\tb", &"x".repeat(257)] {
                fault_of(&sample_with(field, bad), field);
            }
        }
    }

    #[test]
    fn a_fault_of_one_row_is_found_among_many() {
        let mut samples = vec![sample(); 50];
        samples[37]["tool"] = "a\u{1}".into();
        let error = decode_json(&Value::Array(samples)).unwrap_err();
        assert_eq!(error.errors().len(), 1);
        assert_eq!(error.errors()[0].row, 37);
    }

    #[test]
    fn only_the_words_of_the_contract_are_taken() {
        for outcome in Outcome::ALL {
            decode_json(&sample_with("outcome", outcome.as_str())).unwrap();
        }
        for decision in Decision::ALL {
            decode_json(&sample_with("decision", decision.as_str())).unwrap();
        }
        assert!(fault_of(&sample_with("outcome", "OK"), "outcome").contains("quota_exceeded"));
        assert!(fault_of(&sample_with("decision", ""), "decision").contains("permit_with_obligations"));
    }

    #[test]
    fn a_sample_may_be_10_minutes_ahead_and_not_a_microsecond_more() {
        for field in ["started_at", "arrived_at"] {
            decode_json(&sample_with(field, "2026-11-22T12:10:00Z")).unwrap();
            assert!(fault_of(&sample_with(field, "2026-11-22T12:10:00.000001Z"), field).contains("future"));
        }
    }

    #[test]
    fn a_sample_may_be_as_old_as_the_year_2000() {
        decode_json(&sample_with("started_at", "2000-01-01T00:00:00Z")).unwrap();
        fault_of(&sample_with("started_at", "1999-12-31T23:59:59.999999Z"), "started_at");
    }

    #[test]
    fn a_duration_is_finite_and_not_negative() {
        for good in [0.0, 1e-9, 2_592_000_000.0] {
            decode_json(&sample_with("duration_ms", good)).unwrap();
        }
        fault_of(&sample_with("duration_ms", -0.001), "duration_ms");
        for long in [2_592_000_000.1, 1e15, f64::MAX] {
            assert!(fault_of(&sample_with("duration_ms", long), "duration_ms").contains("30 days"));
        }
        let batch = decode_json(&sample_with("duration_ms", -0.0)).unwrap();
        let zero =
            arrow::util::display::array_value_to_string(batch.column_by_name("duration_ms").unwrap(), 0).unwrap();
        assert_eq!(zero, "0.0");
    }

    #[test]
    fn faults_of_the_decoder_and_of_the_judge_are_told_together() {
        let mut sample = sample_with("duration_ms", "fast");
        sample["outcome"] = "fine".into();
        sample["trace_id"] = "xyz".into();
        let mut fields: Vec<_> = faults_of(&sample).into_iter().map(|fault| fault.field.unwrap()).collect();
        fields.sort();
        assert_eq!(fields, ["duration_ms", "outcome", "trace_id"]);
    }
}
