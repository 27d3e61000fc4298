//! What a verifier reads of a ledger: files as they lie on the store, and proofs made of them.

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;

use super::folder;
use crate::audit::segment::SegmentName;
use crate::audit::tile::{TileKind, Tiles, leaves};
use crate::audit::{Checkpoint, Hash, InclusionProof, Leaf, TileId, tree};
use crate::model::OrgName;
use crate::storage::{StorageError, Store};

/// Tiles read at once for a proof.
const AT_ONCE: usize = 8;

/// A file of a ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LedgerFile {
    /// The newest signed checkpoint.
    Checkpoint,
    /// The signed checkpoint of so many entries.
    Kept(u64),
    /// A hash tile or a bundle of entries.
    Tile(TileId),
    /// Entries.
    Segment(SegmentName),
}

/// A file of an org's ledger, if it is there.
pub(crate) async fn file(store: &Store, org: &OrgName, file: LedgerFile) -> Result<Option<Bytes>, StorageError> {
    let name = match file {
        LedgerFile::Checkpoint => "checkpoint".to_owned(),
        LedgerFile::Kept(size) => format!("checkpoints/{size:020}"),
        LedgerFile::Tile(id) => format!("tile/{id}"),
        LedgerFile::Segment(name) => format!("segments/{name}"),
    };
    store.get(&Path::from(format!("{}/{name}", folder(org)))).await
}

/// The segments and checkpoints of an org's ledger: their paths under `audit/`, and their sizes in bytes.
pub(crate) async fn files(store: &Store, org: &OrgName) -> Result<Vec<(String, u64)>, StorageError> {
    let mut files = Vec::new();
    for kind in ["checkpoints", "segments"] {
        for meta in store.list(&Path::from(format!("{}/{kind}", folder(org)))).await? {
            files.push((format!("{kind}/{}", meta.location.filename().unwrap_or_default()), meta.size));
        }
    }
    Ok(files)
}

/// The leaf of entry `seq`, with the path that shows it under a checkpoint.
///
/// # Errors
/// [`StorageError::Damaged`] when the tiles do not show it.
pub(crate) async fn leaf(
    store: &Store,
    org: &OrgName,
    checkpoint: &Checkpoint,
    seq: u64,
) -> Result<(Leaf, Vec<Hash>), StorageError> {
    let damaged = |e: &dyn std::fmt::Display| StorageError::damaged(format!("{}/tile", folder(org)), e);
    let unshown =
        || damaged(&format!("the tiles do not show entry {seq} under the checkpoint over {}", checkpoint.size));
    let bundle = TileId::within(checkpoint.size, TileKind::Entries, seq / 256).filter(|_| seq < checkpoint.size);
    let bundle = bundle.ok_or_else(unshown)?;
    let mut tiles = Tiles::new(checkpoint.size);
    let ranges = tree::inclusion(seq, checkpoint.size);
    let needed = tiles.needed(&ranges).into_iter().chain([bundle]);
    let read = futures::stream::iter(needed).map(|id| async move { Ok((id, tile(store, org, id).await?)) });
    let read: Vec<(TileId, Bytes)> =
        read.buffered(AT_ONCE).try_collect::<Vec<_>>().await.map_err(|e: StorageError| e)?;
    let mut leaf = None;
    for (id, bytes) in read {
        if id == bundle {
            let place = usize::try_from(seq % 256).unwrap_or(usize::MAX);
            leaf = leaves(id, &bytes).map_err(|e| damaged(&e))?.get(place).copied();
        } else {
            tiles.insert(id, &bytes).map_err(|e| damaged(&e))?;
        }
    }
    let (leaf, path) = leaf.zip(tiles.proof(&ranges)).ok_or_else(unshown)?;
    let hash = tree::leaf_hash(&leaf.bytes());
    let shown = leaf.seq == seq && tree::verify_inclusion(seq, checkpoint.size, hash, &path, &checkpoint.root);
    if shown { Ok((leaf, path)) } else { Err(unshown()) }
}

/// A proof that entry `seq` is under a checkpoint, whose note is `note`.
///
/// # Errors
/// As [`leaf`].
pub(crate) async fn proof(
    store: &Store,
    org: &OrgName,
    checkpoint: &Checkpoint,
    note: String,
    seq: u64,
) -> Result<InclusionProof, StorageError> {
    let (leaf, path) = leaf(store, org, checkpoint, seq).await?;
    let proof = InclusionProof::new(&leaf, &path, checkpoint.size, &checkpoint.root, note);
    proof.ok_or_else(|| StorageError::damaged(folder(org), "the tiles do not show the entry under the checkpoint"))
}

/// A tile; a partial one that has gone since is the beginning of the full one.
pub(crate) async fn tile(store: &Store, org: &OrgName, id: TileId) -> Result<Bytes, StorageError> {
    let path = |id: TileId| Path::from(format!("{}/tile/{id}", folder(org)));
    if let Some(found) = store.get(&path(id)).await? {
        return Ok(found);
    }
    let full = store.get(&path(id.full())).await?;
    let found = full.filter(|bytes| bytes.len() >= id.bytes()).map(|bytes| bytes.slice(..id.bytes()));
    found.ok_or_else(|| StorageError::damaged(path(id), "it is missing"))
}
