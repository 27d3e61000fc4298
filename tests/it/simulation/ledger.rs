//! The ledger in the play: events beside samples, and afterwards one chain without a fork under a head that verifies.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, StringArray, TimestampMicrosecondArray, new_null_array};
use arrow::datatypes::Int64Type;
use arrow::record_batch::RecordBatch;
use futures::TryStreamExt;
use mcpg::audit::entry::Columns;
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

/// Checks an org's ledger as a node shows it, entry by entry, and every head that is stored. Gives the ids of its events, of
/// which none is there twice.
pub(super) async fn check(node: &Node, org: &str) -> BTreeSet<String> {
    let origin = format!("mcpg.local/orgs/{org}/audit/1");
    let (mut ids, mut roots, mut peaks) = (BTreeSet::new(), vec![Peaks::default().root()], Peaks::default());
    let (mut expected, mut canonical) = (Hash::ZERO, Vec::new());
    for batch in node.entries(org).await {
        let columns = Columns::of(&batch).unwrap();
        let text = |name: &str, row| batch.column_by_name(name).unwrap().as_string::<i32>().value(row).to_owned();
        for row in 0..batch.num_rows() {
            let seq = peaks.size();
            let numbers = batch.column_by_name("seq").unwrap().as_primitive::<Int64Type>();
            assert_eq!(numbers.value(row), seq as i64, "{org}: an entry is missing or there twice");
            assert_eq!(text("prev_hash", row), expected.to_string(), "{org}: entry {seq} does not follow the one before");
            canonical.clear();
            columns.write_canonical(row, &origin, seq, &expected, &mut canonical).unwrap();
            let entry_hash = Hash::of(&[&canonical]);
            assert_eq!(text("entry_hash", row), entry_hash.to_string(), "{org}: entry {seq} is another than was hashed");
            peaks.push(leaf_hash(&Leaf { seq, prev_hash: expected, entry_hash }.bytes()));
            roots.push(peaks.root());
            expected = entry_hash;
            let id = text("event_id", row);
            assert!(ids.insert(id.clone()), "{org}: the event {id} is there twice");
        }
    }
    let head = |note: &str| signer::check(&keys(), &origin, note).unwrap();
    let agrees = |head: &Checkpoint| roots.get(head.size as usize) == Some(&head.root);
    let folder = Path::from(format!("orgs/{org}/audit/checkpoints"));
    let kept: Vec<_> = node.store.list(Some(&folder)).try_collect().await.unwrap();
    for meta in kept {
        let head = head(&read(node, &meta.location).await);
        assert!(agrees(&head), "{org}: the head of {} entries is not of this ledger", head.size);
    }
    if peaks.size() > 0 {
        let newest = head(&read(node, &Path::from(format!("orgs/{org}/audit/checkpoint"))).await);
        assert_eq!(newest.size, peaks.size(), "{org}: entries that no head covers");
        assert!(agrees(&newest), "{org}: the newest head is not of this ledger");
    }
    ids
}

async fn read(node: &Node, path: &Path) -> String {
    String::from_utf8(node.store.get(path).await.unwrap().bytes().await.unwrap().to_vec()).unwrap()
}
