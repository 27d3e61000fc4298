//! Proof that a segment holds the ledger's entries, before a query believes any of it (rule L8).
//!
//! What lies in the folder of segments may be forged. The first query that needs a segment since its ledger was loaded
//! has all of it read, each entry's hash computed anew, and the last of them, which is chained to all before it, held
//! against the ledger's own: the hash that the log made of that entry, or that of the leaf which the signed checkpoint
//! covers. From then on queries read that version of the file, by its ETag, and no other ([`Pinned`]).
//!
//! A segment that fails is named in the query's error, and is verified again with the next query: once the genuine one
//! is put back, nothing more need be done. The org goes on taking samples and events.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore};
use tokio::sync::Semaphore;

use super::reader;
use crate::audit::segment::SegmentName;
use crate::audit::{Checkpoint, Hash};
use crate::model::OrgName;
use crate::query;
use crate::storage::pinned::Pinned;
use crate::storage::table::DataFile;
use crate::storage::{StorageError, Store};

/// Segments that are proved at once in this process: each is in memory as a whole, up to a million entries.
static AT_ONCE: Semaphore = Semaphore::const_new(2);
/// How long one waits for its turn.
const TURN: Duration = Duration::from_secs(10);

/// What proves the segments of one ledger, as it stood when it was loaded.
#[derive(Debug)]
pub(crate) struct Evidence {
    store: Store,
    org: OrgName,
    origin: String,
    /// The newest checkpoint when the ledger was loaded: it covers every segment that was stored then.
    checkpoint: Option<Checkpoint>,
    pinned: Arc<Pinned>,
}

impl Evidence {
    pub(crate) fn new(store: &Store, org: OrgName, origin: String, checkpoint: Option<Checkpoint>) -> Self {
        let pinned = Arc::new(Pinned::new(Arc::clone(store.objects())));
        Self { store: store.clone(), org, origin, checkpoint, pinned }
    }

    /// The hash that the entry at the end of a segment has.
    pub(crate) async fn expected(&self, name: SegmentName, known: Option<Hash>) -> Result<Hash, StorageError> {
        if let Some(known) = known {
            return Ok(known);
        }
        let path = super::segment_path(&self.org, name);
        let checkpoint = self.checkpoint.as_ref().filter(|checkpoint| checkpoint.size > name.last);
        let checkpoint = checkpoint.ok_or_else(|| StorageError::damaged(&path, "no checkpoint covers its entries"))?;
        Ok(reader::leaf(&self.store, &self.org, checkpoint, name.last).await?.0.entry_hash)
    }

    async fn prove(&self, path: &Path, known: Option<Hash>) -> Result<ObjectMeta, StorageError> {
        if let Some(meta) = self.pinned.pin_of(path) {
            return Ok(meta);
        }
        // Reads that hang must not use up the turns for good: who waits goes on without after a while.
        let _permit = tokio::time::timeout(TURN, AT_ONCE.acquire()).await;
        if let Some(meta) = self.pinned.pin_of(path) {
            return Ok(meta);
        }
        let name = path.filename().and_then(|name| name.parse::<SegmentName>().ok());
        let name = name.ok_or_else(|| StorageError::damaged(path, "it is not named as a segment"))?;
        let expected = self.expected(name, known).await?;
        let found = self.store.get_whole(path).await?;
        let (bytes, mut meta) = found.ok_or_else(|| StorageError::damaged(path, "it is missing"))?;
        let (text, origin) = (path.to_string(), self.origin.clone());
        let verified = move || super::retention::last_hash(&text, name, bytes, &origin);
        let last = tokio::task::spawn_blocking(verified).await;
        let last = last.map_err(|e| StorageError::failed("verify", path, e.to_string()))??;
        if last != expected {
            return Err(StorageError::damaged(path, "its entries are not those of the ledger"));
        }
        // A store under a prefix gives the whole path.
        meta.location = path.clone();
        self.pinned.pin(meta.clone());
        Ok(meta)
    }
}

/// The evidence as a query asks for it, with what the ledger knows of its segments at that instant.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) evidence: Arc<Evidence>,
    /// The hash of the last entry of each segment whose entries came out of the log since the ledger was loaded.
    pub(crate) last: Arc<HashMap<Path, Hash>>,
}

#[async_trait]
impl query::Evidence for Known {
    async fn prove(&self, file: &DataFile) -> Result<ObjectMeta, StorageError> {
        self.evidence.prove(&file.path, self.last.get(&file.path).copied()).await
    }

    fn store(&self) -> Arc<dyn ObjectStore> {
        Arc::clone(&self.evidence.pinned) as Arc<dyn ObjectStore>
    }
}
