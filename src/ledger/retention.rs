//! Retention of the ledger: old entries go, and the ledger says so itself.
//!
//! 1. The oldest segments whose every entry was recorded longer ago than the org keeps them are read and verified: each
//!    entry's hash, and the chain from the first of them to the first entry that is kept. Their age is that of the rows
//!    so verified, never what a footer says of them. What does not verify is not removed, and
//!    `ledger.verification_failed` says so: pruning must not wash away a trace.
//! 2. `ledger.prune` is appended: the rule, `first_kept`, and the SHA-256 of each segment that is to go.
//! 3. A checkpoint is signed that covers it.
//! 4. The segments that end before `first_kept` are deleted, once no query can still be reading them (`publisher`).
//!
//! What is pruned follows from the log alone: every node drops the same segments from its view at the same entry, and
//! deleting is harmless twice. A crash after 2 or 3, or in 4, is made good by any node that loads the org. Tiles stay,
//! so every checkpoint and every proof that was made before still holds.
//!
//! A **legal hold** is the entry `ledger.hold`: a prune that the log has after it is of no effect, until
//! `ledger.release`.
//!
//! Segments go whole, and the newest stays whatever its age. So an entry is there for as long as the newest of its
//! segment is kept. Nothing here touches the analytics tables, nor does their retention touch the ledger.

use std::collections::HashMap;

use arrow::array::AsArray;
use arrow::datatypes::TimestampMicrosecondType;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use parking_lot::Mutex;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::errors::ParquetError;
use serde::Serialize;

use super::publisher::segment as read_segment;
use super::{Ledger, segment_path};
use crate::audit::segment::{self, SegmentName};
use crate::audit::{Hash, entry};
use crate::model::OrgName;
use crate::node::{Node, PlaneError, Retention};
use crate::storage::StorageError;

/// Segments of one prune at most; what is left is for the next.
const MOST_SEGMENTS: usize = 256;

/// What a prune removes, or would.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PrunePlan {
    /// How long entries are kept, and what says so.
    pub rule: String,
    /// Entries recorded before this are not kept.
    pub before: DateTime<Utc>,
    /// The entry of the hold that stops it.
    pub hold: Option<u64>,
    /// The first entry that is there afterwards.
    pub first_kept: u64,
    /// How many entries go.
    pub entries: u64,
    /// Their segments.
    pub segments: Vec<PrunedSegment>,
}

/// A segment that goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PrunedSegment {
    /// Its file name.
    pub name: String,
    /// SHA-256 of the file.
    pub sha256: String,
    /// Its size.
    pub bytes: u64,
}

/// How an org's ledger is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Keeping {
    /// How long entries are kept, and what says so.
    pub rule: String,
    /// The entry of the hold that is in force.
    pub hold: Option<u64>,
    /// The first entry that is there.
    pub first_kept: u64,
    /// How many entries there have ever been.
    pub size: u64,
}

/// Why nothing can be pruned.
#[derive(Debug)]
pub(crate) enum Unpruned {
    /// A segment that is due does not verify.
    Unsound(SegmentName, StorageError),
    /// Anything else.
    Failed(PlaneError),
}

impl<E: Into<PlaneError>> From<E> for Unpruned {
    fn from(e: E) -> Self {
        Self::Failed(e.into())
    }
}

/// Segments that were looked at and are not old enough yet, and when the newest entry of each was recorded, as its
/// verified rows say: so that a segment is not read again at every look.
pub(crate) type Ages = Mutex<HashMap<OrgName, (SegmentName, i64)>>;

/// What a prune would remove now.
pub(crate) async fn plan(
    node: &Node,
    ledger: &Ledger,
    retention: &Retention,
    ages: &Ages,
) -> Result<PrunePlan, Unpruned> {
    let Retention { period, rule } = retention.clone();
    let before = node.clock.now() - chrono::TimeDelta::from_std(period).unwrap_or(chrono::TimeDelta::MAX);
    let signed = ledger.publisher.lock().await.newest.as_ref().map_or(0, |newest| newest.checkpoint.size);
    let (candidates, hold, first_kept) = {
        let state = ledger.read();
        (state.prunable(signed), state.status().hold, state.first_kept())
    };
    let mut plan = PrunePlan { rule, before, hold, first_kept, entries: 0, segments: Vec::new() };
    let mut chain = None;
    for (name, size) in candidates.into_iter().take(MOST_SEGMENTS).take_while(|_| hold.is_none()) {
        let known = ages.lock().get(&ledger.org).filter(|(known, _)| *known == name).map(|(_, newest)| *newest);
        if known.is_some_and(|newest| newest >= before.timestamp_micros()) {
            break;
        }
        let verified = verify(node, ledger, name, chain).await?;
        if verified.newest >= before.timestamp_micros() {
            ages.lock().insert(ledger.org.clone(), (name, verified.newest));
            break;
        }
        // Chained to all before it: so they are the ledger's, and not others that hang together as well.
        let proved = ledger.last_of(name).await?;
        if proved.is_some_and(|last| last != verified.last) {
            let reason = "its entries are not those of the ledger";
            return Err(Unpruned::Unsound(name, StorageError::damaged(segment_path(&ledger.org, name), reason)));
        }
        chain = Some(verified.last);
        plan.entries += name.entries();
        plan.first_kept = name.last + 1;
        plan.segments.push(PrunedSegment { name: name.to_string(), sha256: verified.sha256.to_string(), bytes: size });
    }
    if let Some(chain) = chain {
        verify_link(node, ledger, plan.first_kept, chain).await?;
    }
    Ok(plan)
}

/// Verifies each entry of a segment against its hash, and the chain through it.
async fn verify(node: &Node, ledger: &Ledger, name: SegmentName, chain: Option<Hash>) -> Result<Verified, Unpruned> {
    let path = segment_path(&ledger.org, name);
    let bytes = read_segment(node, ledger, name).await?;
    let origin = ledger.read().origin().to_owned();
    let verified = tokio::task::spawn_blocking(move || check(path.as_ref(), name, bytes, &origin, chain)).await;
    let verified = verified.map_err(|e| PlaneError::Internal(e.to_string()))?;
    verified.map_err(|e| if e.is_damage() { Unpruned::Unsound(name, e) } else { e.into() })
}

/// Verifies that the first entry that is kept follows the last one that goes. Where it has become part of a larger
/// segment since, the last one that goes is proved by itself.
async fn verify_link(node: &Node, ledger: &Ledger, first_kept: u64, chain: Hash) -> Result<(), Unpruned> {
    let Some(name) = ledger.read().stored_from(first_kept) else { return Ok(()) };
    let path = segment_path(&ledger.org, name);
    let bytes = read_segment(node, ledger, name).await?;
    let hash = first_link(bytes).map_err(|e| StorageError::damaged(&path, e))?;
    if hash == Some(chain) {
        return Ok(());
    }
    let reason = format!("entry {first_kept} does not follow the one before it");
    Err(Unpruned::Unsound(name, StorageError::damaged(&path, reason)))
}

/// `prev_hash` of a segment's first entry.
fn first_link(bytes: Bytes) -> Result<Option<Hash>, ParquetError> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(bytes)?;
    let column = ProjectionMask::columns(builder.parquet_schema(), ["prev_hash"]);
    let Some(first) = builder.with_projection(column).with_limit(1).build()?.next() else { return Ok(None) };
    let first = first.map_err(|e| ParquetError::ArrowError(e.to_string()))?;
    let hashes = first.column_by_name("prev_hash").and_then(|column| column.as_string_opt::<i32>());
    Ok(hashes.and_then(|hashes| hashes.iter().next().flatten()?.parse().ok()))
}

/// What a verified segment is.
struct Verified {
    /// Of the whole file.
    sha256: Hash,
    /// The last entry's.
    last: Hash,
    /// When its newest entry was recorded, in µs.
    newest: i64,
}

/// The hash of a segment's last entry, once every entry of it was verified.
pub(crate) fn last_hash(path: &str, name: SegmentName, bytes: Bytes, origin: &str) -> Result<Hash, StorageError> {
    check(path, name, bytes, origin, None).map(|verified| verified.last)
}

fn check(
    path: &str,
    name: SegmentName,
    bytes: Bytes,
    origin: &str,
    chain: Option<Hash>,
) -> Result<Verified, StorageError> {
    let (sha256, mut chain, mut seq, mut canonical) =
        (Hash::of(&[&bytes]), chain, name.first, Vec::with_capacity(1_024));
    let mut newest = i64::MIN;
    let end = segment::read(path, name, bytes, |batch| {
        let damaged = |seq: u64, what: &str| StorageError::damaged(path, format!("entry {seq}: {what}"));
        let columns = entry::Columns::of(&batch).map_err(|e| StorageError::damaged(path, e))?;
        let recorded = batch.column_by_name("recorded_at");
        let recorded = recorded.and_then(|column| column.as_primitive_opt::<TimestampMicrosecondType>());
        let recorded = recorded.ok_or_else(|| damaged(seq, "it has no recorded_at"))?;
        newest = arrow::compute::max(recorded).map_or(newest, |time| time.max(newest));
        let hashes = |name: &str| batch.column_by_name(name).and_then(|column| column.as_string_opt::<i32>());
        let (Some(before), Some(own)) = (hashes("prev_hash"), hashes("entry_hash")) else {
            return Err(damaged(seq, "it has no hashes"));
        };
        for (row, (before, own)) in before.iter().zip(own).enumerate() {
            let hash = |text: Option<&str>| text.and_then(|text| text.parse::<Hash>().ok());
            let (Some(before), Some(own)) = (hash(before), hash(own)) else {
                return Err(damaged(seq, "it has no hashes"));
            };
            if chain.is_some_and(|chain| chain != before) {
                return Err(damaged(seq, "it does not follow the one before it"));
            }
            canonical.clear();
            let written = columns.write_canonical(row, origin, seq, &before, &mut canonical);
            written.map_err(|e| damaged(seq, &e.to_string()))?;
            if Hash::of(&[&canonical]) != own {
                return Err(damaged(seq, "it is not what its hash was made of"));
            }
            (chain, seq) = (Some(own), seq + 1);
        }
        Ok(())
    })?;
    Ok(Verified { sha256, last: end.head.last, newest })
}
