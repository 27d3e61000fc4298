//! The ledger in the play: events beside samples, and afterwards one chain without a fork under a head that verifies.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, StringArray, TimestampMicrosecondArray, new_null_array};
use arrow::datatypes::Int64Type;
use arrow::record_batch::RecordBatch;
use futures::TryStreamExt;
use mcpg::audit::entry::Columns;
use mcpg::audit::segment::SegmentName;
use mcpg::audit::tree::{Peaks, leaf_hash};
use mcpg::audit::{Checkpoint, Hash, Leaf, signer};
use mcpg::model::schema::schemas;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use uuid::Uuid;

use super::world::{BEGAN, Node, keys};

/// The ids of the events that are sent under a key.
pub(super) fn ids(key: u64, rows: usize) -> impl Iterator<Item = String> {
    (0..rows).map(move |row| Uuid::from_u128((1 << 100) + (u128::from(key) << 32) + row as u128).to_string())
}

/// `rows` events whose ids are made of `key`.
pub(super) fn events(key: u64, rows: usize) -> RecordBatch {
    let schema = &schemas().unwrap().audit_event;
    let columns = schema.fields().iter().map(|field| -> ArrayRef {
        match field.name().as_str() {
            "event_id" => Arc::new(StringArray::from_iter_values(ids(key, rows))),
            "occurred_at" | "recorded_at" => {
                Arc::new(TimestampMicrosecondArray::from(vec![BEGAN; rows]).with_timezone("UTC"))
            }
            _ if field.is_nullable() => new_null_array(field.data_type(), rows),
            name => Arc::new(StringArray::from(vec![name; rows])),
        }
    });
    RecordBatch::try_new(Arc::clone(schema), columns.collect()).unwrap()
}

/// What a node shows of an org's ledger.
pub(super) struct Shown {
    /// The first entry: not 0 where the beginning was pruned.
    pub(super) first: u64,
    /// The ids of its events, of which none is there twice.
    pub(super) ids: BTreeSet<String>,
    /// The number after the last entry, and how many the newest head covers.
    pub(super) size: u64,
    pub(super) signed: u64,
    /// Segments that were pruned and are still on the store.
    pub(super) leftovers: usize,
}

/// Checks an org's ledger as a node shows it, entry by entry, and every head that is stored. Of a pruned ledger the
/// tree is not built again here: the node did so when it started.
pub(super) async fn check(node: &Node, org: &str) -> Shown {
    let origin = format!("mcpg.local/orgs/{org}/audit/1");
    let batches = node.entries(org).await;
    let numbers = |batch: &RecordBatch| batch.column_by_name("seq").unwrap().as_primitive::<Int64Type>().clone();
    let text = |batch: &RecordBatch, name: &str, row| {
        batch.column_by_name(name).unwrap().as_string::<i32>().value(row).to_owned()
    };
    let first = batches.first().map_or(0, |batch| numbers(batch).value(0) as u64);
    let mut expected = if first == 0 { Hash::ZERO } else { text(&batches[0], "prev_hash", 0).parse().unwrap() };
    let (mut seq, mut peaks, mut canonical) = (first, Peaks::default(), Vec::new());
    let mut roots = vec![peaks.root()];
    let mut shown = Shown { first, ids: BTreeSet::new(), size: 0, signed: 0, leftovers: 0 };
    for batch in &batches {
        let columns = Columns::of(batch).unwrap();
        for row in 0..batch.num_rows() {
            assert_eq!(numbers(batch).value(row), seq as i64, "{org}: an entry is missing or there twice");
            assert_eq!(
                text(batch, "prev_hash", row),
                expected.to_string(),
                "{org}: {seq} does not follow the one before"
            );
            canonical.clear();
            columns.write_canonical(row, &origin, seq, &expected, &mut canonical).unwrap();
            let entry_hash = Hash::of(&[&canonical]);
            assert_eq!(
                text(batch, "entry_hash", row),
                entry_hash.to_string(),
                "{org}: {seq} is another than was hashed"
            );
            peaks.push(leaf_hash(&Leaf { seq, prev_hash: expected, entry_hash }.bytes()));
            roots.push(peaks.root());
            (expected, seq) = (entry_hash, seq + 1);
            let id = text(batch, "event_id", row);
            assert!(shown.ids.insert(id.clone()), "{org}: the event {id} is there twice");
        }
    }
    let head = |note: &str| signer::check(&keys(), &origin, note).unwrap();
    let agrees = |head: &Checkpoint| first > 0 || roots.get(head.size as usize) == Some(&head.root);
    for path in paths(node, &format!("orgs/{org}/audit/checkpoints")).await {
        let head = head(&read(node, &path).await);
        assert!(agrees(&head) && head.size <= seq, "{org}: the head of {} entries is not of this ledger", head.size);
    }
    if seq > 0 {
        let newest = head(&read(node, &Path::from(format!("orgs/{org}/audit/checkpoint"))).await);
        assert!(agrees(&newest), "{org}: the newest head is not of this ledger");
        (shown.size, shown.signed) = (seq, newest.size);
    }
    let segments = paths(node, &format!("orgs/{org}/audit/segments")).await;
    let names = segments.iter().map(|path| path.filename().unwrap().parse::<SegmentName>().unwrap());
    shown.leftovers = names.filter(|segment| segment.last < first).count();
    shown
}

async fn paths(node: &Node, folder: &str) -> Vec<Path> {
    let listed: Vec<_> = node.store.list(Some(&Path::from(folder))).try_collect().await.unwrap();
    listed.into_iter().map(|meta| meta.location).collect()
}

async fn read(node: &Node, path: &Path) -> String {
    String::from_utf8(node.store.get(path).await.unwrap().bytes().await.unwrap().to_vec()).unwrap()
}
