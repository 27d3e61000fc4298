//! The ledger of an org as a node keeps it: entries out of the log, segments, tiles and checkpoints on the store.
//!
//! ```text
//! orgs/<org>/audit/segments/<first>-<last>.parquet     entries
//! orgs/<org>/audit/tile/…                              the Merkle tree over them, C2SP tlog-tiles
//! orgs/<org>/audit/checkpoints/<size>                  signed checkpoints, created if absent
//! orgs/<org>/audit/checkpoint                          a hint at the newest of them
//! ```
//!
//! | file | holds |
//! |---|---|
//! | `state` | what the log has made of it |
//! | `segments`, `status` | what it consists of; what its entries say of itself |
//! | `payload_keys` | what its entries say of the keys of sealed payloads |
//! | `load` | a ledger from an org's state, the log and the newest checkpoint |
//! | `publisher` | seals segments, writes tiles, signs checkpoints |
//! | `merge` | small segments become larger ones |
//! | `retention` | old entries go |
//! | `evidence` | a segment is proved before a query believes it |
//! | `reader` | files and proofs for verifiers |
//! | `replication` | the witness and the mirror |
//!
//! The format is `schemas/ledger.md`; [`crate::audit`] holds what of it needs no store.

mod evidence;
pub(crate) mod load;
pub(crate) mod merge;
pub(crate) mod payload_keys;
pub(crate) mod publisher;
pub mod reader;
pub mod replication;
pub mod retention;
pub(crate) mod segments;
pub(crate) mod sessions;
pub(crate) mod state;
pub(crate) mod status;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use arrow::array::{Array, ArrayRef};
use arrow::record_batch::RecordBatch;
use object_store::path::Path;
use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use publisher::Publisher;
use state::LedgerState;

use bytes::Bytes;
use object_store::ObjectStoreExt;

use crate::audit::Hash;
use crate::audit::segment::SegmentName;
use crate::model::OrgName;
use crate::node::Health;
use crate::query::TableState;
use crate::storage::{StorageError, Store};

/// The folder of an org's ledger.
pub(crate) fn folder(org: &OrgName) -> String {
    format!("orgs/{org}/audit")
}

/// The folder of an org's segments.
pub(crate) fn segments_folder(org: &OrgName) -> Path {
    Path::from(format!("{}/segments", folder(org)))
}

/// The path of a segment.
pub(crate) fn segment_path(org: &OrgName, name: SegmentName) -> Path {
    Path::from(format!("{}/segments/{name}", folder(org)))
}

/// The path of the hint at the newest checkpoint.
pub(crate) fn newest_path(org: &OrgName) -> Path {
    Path::from(format!("{}/checkpoint", folder(org)))
}

/// The folder of the checkpoints.
pub(crate) fn checkpoints_folder(org: &OrgName) -> Path {
    Path::from(format!("{}/checkpoints", folder(org)))
}

/// The path of the checkpoint over `size` entries.
pub(crate) fn kept_path(org: &OrgName, size: u64) -> Path {
    Path::from(format!("{}/checkpoints/{size:020}", folder(org)))
}

/// Memory that a batch's rows take, in bytes.
fn held_bytes(batch: &RecordBatch) -> usize {
    let column = |column: &ArrayRef| column.to_data().get_slice_memory_size().unwrap_or_default();
    batch.columns().iter().map(column).sum()
}

/// One org's ledger on this node.
#[derive(Debug)]
pub struct Ledger {
    pub(crate) org: OrgName,
    state: RwLock<LedgerState>,
    /// Held by who writes segments, tiles and checkpoints.
    pub(crate) publisher: tokio::sync::Mutex<Publisher>,
    pub(crate) health: Arc<Health>,
}

impl Ledger {
    pub(crate) fn new(org: OrgName, state: LedgerState, publisher: Publisher, health: Arc<Health>) -> Self {
        Self { org, state: RwLock::new(state), publisher: tokio::sync::Mutex::new(publisher), health }
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, LedgerState> {
        self.state.read()
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, LedgerState> {
        self.state.write()
    }

    /// The bytes of a stored segment, which are proved to be the ledger's.
    ///
    /// # Errors
    /// What the store says; [`StorageError::Damaged`] when they are not.
    pub(crate) async fn proved(&self, store: &Store, name: SegmentName) -> Result<Bytes, StorageError> {
        let path = segment_path(&self.org, name);
        let view = self.view();
        if let Some(evidence) = view.evidence
            && let Some(file) = view.files.iter().find(|file| file.path == path)
        {
            evidence.prove(file).await?;
            let read = evidence.store().get(&path).await.map_err(|e| StorageError::failed("read", &path, e))?;
            return read.bytes().await.map_err(|e| StorageError::failed("read", &path, e));
        }
        store.get(&path).await?.ok_or_else(|| StorageError::damaged(&path, "it is missing"))
    }

    /// The hash that the last entry of a stored segment must have; none of a ledger that is being loaded.
    ///
    /// # Errors
    /// What the store says, or that the tiles do not show it.
    pub(crate) async fn last_of(&self, name: SegmentName) -> Result<Option<Hash>, StorageError> {
        let (evidence, known) = {
            let state = self.state.read();
            (state.evidence(), state.last_of(name))
        };
        let Some(evidence) = evidence else { return Ok(known) };
        evidence.expected(name, known).await.map(Some)
    }

    /// `audit_log` at this instant.
    pub fn view(&self) -> TableState {
        self.state.write().view(&self.org)
    }
}
