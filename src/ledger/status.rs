//! What a ledger's entries say of the ledger itself: whether it is on hold, what has been pruned, which configuration
//! was loaded last, which key signs, which sessions of browsers are over.
//!
//! It is folded out of the entries as they are numbered, so it is the same on every node, and it is part of the org's
//! state. Nothing of it is taken from a segment: any party that can write to the store can forge a segment's metadata.
//!
//! Only the control plane makes such entries: an emitter can send neither an action `ledger.…` nor the control plane's
//! actor.

use std::collections::HashSet;

use arrow::array::{Array, AsArray, StringArray};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::payload_keys::{PAYLOAD, PayloadKeys};
use super::sessions::{SESSION_ENDED, SESSIONS_REVOKED, Sessions};
use crate::audit::segment::SegmentName;
use crate::ingest::OWN_ACTOR;

/// Removing old entries; see `retention` for the detail.
pub(crate) const PRUNE: &str = "ledger.prune";
/// From this entry on nothing is removed.
pub(crate) const HOLD: &str = "ledger.hold";
/// The hold has ended.
pub(crate) const RELEASE: &str = "ledger.release";
/// Checkpoints are signed by another key from here on.
pub(crate) const KEY: &str = "ledger.key";
/// Rows go from the tables: of a caller, or since they are old.
pub(crate) const ERASURE: &str = "operator.erasure";
pub(crate) const RETENTION: &str = "operator.retention";
/// The control plane has read its configuration.
pub(crate) const CONFIG_LOADED: &str = "operator.config_loaded";
/// What an action of the ledger's own begins with.
const LEDGER: &str = "ledger.";

/// The status of a ledger: a function of its entries.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Status {
    /// The entry of the hold that is in force.
    pub(crate) hold: Option<u64>,
    /// The entry that ended the last hold.
    pub(crate) released: Option<u64>,
    /// What has been pruned.
    pub(crate) pruned: Option<Pruned>,
    /// The newest entry that records a configuration loaded.
    pub(crate) config: Option<u64>,
    /// The newest entry since this node has the ledger that records a removal of rows from the tables: what it knows of
    /// their files is old.
    #[serde(skip)]
    pub(crate) removal: Option<u64>,
    /// The verifier key in the newest `ledger.key`.
    pub(crate) key: Option<String>,
    /// The keys of sealed payloads.
    #[serde(skip_serializing_if = "PayloadKeys::is_empty")]
    pub(crate) payload_keys: PayloadKeys,
    /// Sessions of browsers that are over before their time.
    #[serde(skip_serializing_if = "Sessions::is_empty")]
    pub(crate) sessions: Sessions,
}

/// What has been pruned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pruned {
    /// The newest `ledger.prune` that took effect.
    pub(crate) entry: u64,
    /// The first entry that is kept.
    pub(crate) first_kept: u64,
}

/// What a `ledger.prune` asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Prune {
    pub(crate) entry: u64,
    pub(crate) first_kept: u64,
    /// The segments that it names; no other may go.
    pub(crate) segments: HashSet<SegmentName>,
}

impl Status {
    /// Takes in entries. What they ask to be pruned comes back; it is for the ledger to say whether it can be.
    pub(crate) fn fold(&mut self, entries: &RecordBatch) -> Vec<Prune> {
        let mut prunes = Vec::new();
        let Some(rows) = Rows::of(entries) else { return prunes };
        for row in 0..entries.num_rows() {
            let action = rows.action.value(row);
            let of_sessions = action == SESSION_ENDED || action == SESSIONS_REVOKED;
            if action.starts_with(PAYLOAD) {
                let (actor, time) = (rows.actor.value(row), rows.recorded_at.value(row));
                self.payload_keys.fold(action, actor, time, rows.detail(row).as_ref());
                continue;
            }
            let of_tables = action == ERASURE || action == RETENTION;
            if action != CONFIG_LOADED && !of_sessions && !of_tables && !action.starts_with(LEDGER) {
                continue;
            }
            let Some(seq) = rows.seq(row) else { continue };
            match action {
                SESSION_ENDED | SESSIONS_REVOKED => {
                    if let Some(detail) = rows.detail(row) {
                        self.sessions.fold(action, &detail);
                    }
                }
                HOLD => {
                    self.hold.get_or_insert(seq);
                }
                ERASURE | RETENTION => self.removal = Some(seq),
                RELEASE => (self.hold, self.released) = (None, Some(seq)),
                KEY => self.key = rows.detail(row).and_then(|detail| Some(detail.get("vkey")?.as_str()?.to_owned())),
                CONFIG_LOADED if rows.actor.value(row).starts_with(OWN_ACTOR) => self.config = Some(seq),
                // A hold that the log has before it stops it.
                PRUNE if self.hold.is_none() => prunes.extend(rows.prune(row, seq)),
                _ => {}
            }
        }
        prunes
    }
}

/// The columns of entries that concern the ledger.
struct Rows<'a> {
    seq: &'a arrow::array::Int64Array,
    action: &'a StringArray,
    actor: &'a StringArray,
    detail: &'a StringArray,
    recorded_at: &'a arrow::array::TimestampMicrosecondArray,
}

impl<'a> Rows<'a> {
    fn of(entries: &'a RecordBatch) -> Option<Self> {
        let text = |name: &str| entries.column_by_name(name)?.as_string_opt::<i32>();
        let seq = entries.column_by_name("seq")?.as_primitive_opt::<Int64Type>()?;
        let recorded_at = entries.column_by_name("recorded_at")?.as_primitive_opt::<TimestampMicrosecondType>()?;
        Some(Self { seq, action: text("action")?, actor: text("actor")?, detail: text("detail")?, recorded_at })
    }

    fn seq(&self, row: usize) -> Option<u64> {
        u64::try_from(self.seq.value(row)).ok()
    }

    fn detail(&self, row: usize) -> Option<Value> {
        self.detail.is_valid(row).then(|| serde_json::from_str(self.detail.value(row)).ok()).flatten()
    }

    fn prune(&self, row: usize, entry: u64) -> Option<Prune> {
        let detail = self.detail(row)?;
        let first_kept = detail.get("first_kept")?.as_str()?.parse().ok().filter(|first| *first <= entry)?;
        let segments = detail.get("segments")?.as_array()?.iter();
        let segments = segments.filter_map(|segment| segment.get("name")?.as_str()?.parse().ok()).collect();
        Some(Prune { entry, first_kept, segments })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array, StringArray, TimestampMicrosecondArray};
    use arrow::record_batch::RecordBatch;

    use super::{Pruned, Status};

    fn entries(rows: &[(&str, &str, &str)]) -> RecordBatch {
        let text = |values: Vec<&str>| Arc::new(StringArray::from(values)) as ArrayRef;
        RecordBatch::try_from_iter([
            ("seq", Arc::new(Int64Array::from_iter_values(10..10 + rows.len() as i64)) as ArrayRef),
            ("action", text(rows.iter().map(|row| row.0).collect())),
            ("actor", text(rows.iter().map(|row| row.1).collect())),
            ("detail", text(rows.iter().map(|row| row.2).collect())),
            ("recorded_at", Arc::new(TimestampMicrosecondArray::from_value(1, rows.len())) as ArrayRef),
        ])
        .unwrap()
    }

    const NODE: &str = "system:control-plane@1";
    const PRUNE: &str =
        r#"{"first_kept":"4","segments":[{"name":"00000000000000000000-00000000000000000003.parquet"}]}"#;

    #[test]
    fn the_newest_entries_of_a_kind_say_how_the_ledger_stands() {
        let mut status = Status::default();
        let prunes = status.fold(&entries(&[
            ("tool.permit", "user:a", "{}"),
            ("operator.config_loaded", NODE, "{}"),
            ("ledger.key", NODE, r#"{"vkey":"a+b+c"}"#),
            ("ledger.prune", NODE, PRUNE),
            ("ledger.hold", "service:op", "{}"),
            ("ledger.hold", "service:op", "{}"),
        ]));
        assert_eq!((status.config, status.key.as_deref(), status.hold), (Some(11), Some("a+b+c"), Some(14)));
        assert_eq!((prunes.len(), prunes[0].entry, prunes[0].first_kept), (1, 13, 4));
        status.fold(&entries(&[("ledger.release", "service:op", "{}")]));
        assert_eq!((status.hold, status.released), (None, Some(10)));
    }

    #[test]
    fn a_prune_after_a_hold_or_of_what_is_not_yet_there_asks_for_nothing() {
        let mut status = Status::default();
        let later = PRUNE.replace("\"4\"", "\"99\"");
        assert!(status.fold(&entries(&[("ledger.prune", NODE, &later)])).is_empty());
        assert!(status.fold(&entries(&[("ledger.hold", NODE, "{}"), ("ledger.prune", NODE, PRUNE)])).is_empty());
    }

    #[test]
    fn nobody_but_the_control_plane_tells_of_its_configuration() {
        let mut status = Status::default();
        status.fold(&entries(&[("operator.config_loaded", "user:mallory", "{}")]));
        assert_eq!(status.config, None);
    }

    #[test]
    fn rows_that_go_from_the_tables_are_known_of_and_not_stored() {
        let mut status = Status::default();
        status.fold(&entries(&[("operator.retention", NODE, "{}"), ("operator.erasure", "user:a", "{}")]));
        assert_eq!(status.removal, Some(11));
        let text = serde_json::to_string(&status).unwrap();
        assert_eq!(serde_json::from_str::<Status>(&text).unwrap().removal, None, "what is loaded has fresh tables");
    }

    #[test]
    fn it_is_read_back_as_it_was_written() {
        let pruned = Some(Pruned { entry: 9, first_kept: 4 });
        let status = Status { hold: Some(3), pruned, key: Some("k".to_owned()), ..Status::default() };
        let text = serde_json::to_string(&status).unwrap();
        assert_eq!(serde_json::from_str::<Status>(&text).unwrap(), status);
    }
}
