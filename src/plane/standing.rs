//! What a ledger's entries say of the ledger itself: whether it is on hold, what has been pruned, which configuration was
//! loaded last, which key came last.
//!
//! It is folded out of the entries as they are numbered, and so is the same on every node. Each segment carries, in its
//! metadata, the standing after its last entry, so that a start reads one segment and not all of them. No verifier reads it:
//! the entries are what counts.
//!
//! Only the control plane makes such entries: nobody can send in an action `ledger.…` or its actor's name.

use std::collections::HashSet;

use arrow::array::{Array, AsArray, StringArray};
use arrow::datatypes::Int64Type;
use arrow::record_batch::RecordBatch;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::audit::segment::SegmentName;
use crate::ingest::OWN_ACTOR;

/// Removing old entries; see `retention` for the detail.
pub(super) const PRUNE: &str = "ledger.prune";
/// From this entry on nothing is removed.
pub(super) const HOLD: &str = "ledger.hold";
/// The hold has ended.
pub(super) const RELEASE: &str = "ledger.release";
/// Heads are signed by another key from here on.
pub(super) const KEY: &str = "ledger.key";
/// The control plane has read its configuration.
pub(super) const CONFIG_LOADED: &str = "operator.config_loaded";
/// What an action of the ledger's own begins with.
const LEDGER: &str = "ledger.";

/// See the module's doc.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Standing {
    /// The entry of the hold that is in force.
    pub(super) hold: Option<u64>,
    /// The entry that ended the last hold.
    pub(super) released: Option<u64>,
    /// What has been pruned.
    pub(super) pruned: Option<Pruned>,
    /// The newest entry that tells of a configuration loaded.
    pub(super) config: Option<u64>,
    /// The verifier key that the newest `ledger.key` tells of.
    pub(super) key: Option<String>,
}

/// What has been pruned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pruned {
    /// The newest `ledger.prune` that took effect.
    pub(super) entry: u64,
    /// The first entry that is kept.
    pub(super) first_kept: u64,
}

/// What a `ledger.prune` asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Prune {
    pub(super) entry: u64,
    pub(super) first_kept: u64,
    /// The segments that it names; no other may go.
    pub(super) segments: HashSet<SegmentName>,
}

impl Standing {
    /// The standing that a segment carries; one that carries none is of a ledger that had nothing to say of itself.
    pub(super) fn of_segment(text: Option<&str>) -> Result<Self, serde_json::Error> {
        text.map_or_else(|| Ok(Self::default()), serde_json::from_str)
    }

    /// Takes in entries. What they ask to be pruned comes back; it is for the ledger to say whether it can be.
    pub(super) fn fold(&mut self, entries: &RecordBatch) -> Vec<Prune> {
        let mut prunes = Vec::new();
        let Some(rows) = Rows::of(entries) else { return prunes };
        for row in 0..entries.num_rows() {
            let action = rows.action.value(row);
            if action != CONFIG_LOADED && !action.starts_with(LEDGER) {
                continue;
            }
            let Some(seq) = rows.seq(row) else { continue };
            match action {
                HOLD => {
                    self.hold.get_or_insert(seq);
                }
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

/// The columns of entries that tell of the ledger.
struct Rows<'a> {
    seq: &'a arrow::array::Int64Array,
    action: &'a StringArray,
    actor: &'a StringArray,
    detail: &'a StringArray,
}

impl<'a> Rows<'a> {
    fn of(entries: &'a RecordBatch) -> Option<Self> {
        let text = |name: &str| entries.column_by_name(name)?.as_string_opt::<i32>();
        let seq = entries.column_by_name("seq")?.as_primitive_opt::<Int64Type>()?;
        Some(Self { seq, action: text("action")?, actor: text("actor")?, detail: text("detail")? })
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

    use arrow::array::{ArrayRef, Int64Array, StringArray};
    use arrow::record_batch::RecordBatch;

    use super::{Pruned, Standing};

    fn entries(rows: &[(&str, &str, &str)]) -> RecordBatch {
        let text = |values: Vec<&str>| Arc::new(StringArray::from(values)) as ArrayRef;
        RecordBatch::try_from_iter([
            ("seq", Arc::new(Int64Array::from_iter_values(10..10 + rows.len() as i64)) as ArrayRef),
            ("action", text(rows.iter().map(|row| row.0).collect())),
            ("actor", text(rows.iter().map(|row| row.1).collect())),
            ("detail", text(rows.iter().map(|row| row.2).collect())),
        ])
        .unwrap()
    }

    const NODE: &str = "system:control-plane@1";
    const PRUNE: &str =
        r#"{"first_kept":"4","segments":[{"name":"00000000000000000000-00000000000000000003.parquet"}]}"#;

    #[test]
    fn the_newest_entries_of_a_kind_say_how_the_ledger_stands() {
        let mut standing = Standing::default();
        let prunes = standing.fold(&entries(&[
            ("tool.permit", "user:a", "{}"),
            ("operator.config_loaded", NODE, "{}"),
            ("ledger.key", NODE, r#"{"vkey":"a+b+c"}"#),
            ("ledger.prune", NODE, PRUNE),
            ("ledger.hold", "service:op", "{}"),
            ("ledger.hold", "service:op", "{}"),
        ]));
        assert_eq!((standing.config, standing.key.as_deref(), standing.hold), (Some(11), Some("a+b+c"), Some(14)));
        assert_eq!((prunes.len(), prunes[0].entry, prunes[0].first_kept), (1, 13, 4));
        standing.fold(&entries(&[("ledger.release", "service:op", "{}")]));
        assert_eq!((standing.hold, standing.released), (None, Some(10)));
    }

    #[test]
    fn a_prune_after_a_hold_or_of_what_is_not_yet_there_asks_for_nothing() {
        let mut standing = Standing::default();
        let later = PRUNE.replace("\"4\"", "\"99\"");
        assert!(standing.fold(&entries(&[("ledger.prune", NODE, &later)])).is_empty());
        assert!(standing.fold(&entries(&[("ledger.hold", NODE, "{}"), ("ledger.prune", NODE, PRUNE)])).is_empty());
    }

    #[test]
    fn nobody_but_the_control_plane_tells_of_its_configuration() {
        let mut standing = Standing::default();
        standing.fold(&entries(&[("operator.config_loaded", "user:mallory", "{}")]));
        assert_eq!(standing.config, None);
    }

    #[test]
    fn it_is_read_back_from_a_segment() {
        let standing = Standing {
            hold: Some(3),
            released: None,
            pruned: Some(Pruned { entry: 9, first_kept: 4 }),
            config: None,
            key: Some("k".to_owned()),
        };
        let text = serde_json::to_string(&standing).unwrap();
        assert_eq!(Standing::of_segment(Some(&text)).unwrap(), standing);
        assert_eq!(Standing::of_segment(None).unwrap(), Standing::default());
    }
}
