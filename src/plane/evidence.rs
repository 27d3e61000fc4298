//! What a verifier reads of a ledger: files as they lie on the store, and proofs made of them.

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;

use super::ledger::folder;
use super::press::get;
use super::recovery::list;
use super::{Plane, PlaneError};
use crate::audit::segment::SegmentName;
use crate::audit::tile::{TileKind, Tiles, leaves};
use crate::audit::{InclusionProof, TileId, checkpoint, signer, tree};
use crate::model::OrgName;
use crate::storage::StorageError;

/// Tiles read at once for a proof.
const AT_ONCE: usize = 8;

/// A file of a ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LedgerFile {
    /// The newest signed head.
    Checkpoint,
    /// The signed head of so many entries.
    Kept(u64),
    /// A hash tile or a bundle of entries.
    Tile(TileId),
    /// Entries.
    Segment(SegmentName),
}

impl Plane {
    /// A file of the org's ledger, if it is there.
    ///
    /// # Errors
    /// See [`PlaneError`].
    pub async fn ledger_file(&self, org: &OrgName, file: LedgerFile) -> Result<Option<Bytes>, PlaneError> {
        self.sound(org)?;
        let name = match file {
            LedgerFile::Checkpoint => "checkpoint".to_owned(),
            LedgerFile::Kept(size) => format!("checkpoints/{size:020}"),
            LedgerFile::Tile(id) => format!("tile/{id}"),
            LedgerFile::Segment(name) => format!("segments/{name}"),
        };
        Ok(get(self, &Path::from(format!("{}/{name}", folder(org)))).await?)
    }

    /// The segments and heads of the org's ledger: their paths under `audit/`, and their sizes in bytes.
    ///
    /// # Errors
    /// See [`PlaneError`].
    pub async fn ledger_files(&self, org: &OrgName) -> Result<Vec<(String, u64)>, PlaneError> {
        self.sound(org)?;
        let mut files = Vec::new();
        for kind in ["checkpoints", "segments"] {
            for meta in list(self, &Path::from(format!("{}/{kind}", folder(org)))).await? {
                files.push((format!("{kind}/{}", meta.location.filename().unwrap_or_default()), meta.size));
            }
        }
        Ok(files)
    }

    /// The verifier key of the org's ledger.
    ///
    /// # Errors
    /// See [`PlaneError`].
    pub fn ledger_key(&self, org: &OrgName) -> Result<String, PlaneError> {
        self.sound(org)?;
        let origin = checkpoint::origin(&self.settings.name, org);
        let vkey = self.signing.vkey(&origin).map_err(|e| PlaneError::Internal(e.to_string()))?;
        Ok(vkey.to_string())
    }

    /// A proof that entry `seq` is under the newest head; none when that does not cover it.
    ///
    /// # Errors
    /// See [`PlaneError`].
    pub async fn inclusion_proof(&self, org: &OrgName, seq: u64) -> Result<Option<InclusionProof>, PlaneError> {
        let damaged = |e: &dyn std::fmt::Display| StorageError::damaged(folder(org), e);
        let Some(note) = self.ledger_file(org, LedgerFile::Checkpoint).await? else { return Ok(None) };
        let note = String::from_utf8(note.to_vec()).map_err(|e| damaged(&e))?;
        let origin = checkpoint::origin(&self.settings.name, org);
        let head = signer::check(&self.signing, &origin, &note).map_err(|e| damaged(&e))?;
        let Some(bundle) = TileId::within(head.size, TileKind::Entries, seq / 256).filter(|_| seq < head.size) else {
            return Ok(None);
        };
        let mut tiles = Tiles::new(head.size);
        let ranges = tree::inclusion(seq, head.size);
        let needed = tiles.needed(&ranges).into_iter().chain([bundle]);
        let read = futures::stream::iter(needed).map(|id| async move { Ok((id, self.tile(org, id).await?)) });
        let read: Vec<(TileId, Bytes)> =
            read.buffered(AT_ONCE).try_collect::<Vec<_>>().await.map_err(|e: PlaneError| e)?;
        let mut leaf = None;
        for (id, bytes) in read {
            if id == bundle {
                let place = usize::try_from(seq % 256).unwrap_or(usize::MAX);
                leaf = leaves(id, &bytes).map_err(|e| damaged(&e))?.get(place).copied();
            } else {
                tiles.insert(id, &bytes).map_err(|e| damaged(&e))?;
            }
        }
        let proof = leaf
            .zip(tiles.proof(&ranges))
            .and_then(|(leaf, path)| InclusionProof::new(&leaf, &path, head.size, &head.root, note));
        let proof = proof.ok_or_else(|| damaged(&"the tiles do not show the entry under the ledger's head"))?;
        Ok(Some(proof))
    }

    /// A tile; a partial one that has gone since is the beginning of the full one.
    pub(super) async fn tile(&self, org: &OrgName, id: TileId) -> Result<Bytes, PlaneError> {
        self.sound(org)?;
        Ok(stored_tile(self, org, id).await?)
    }
}

/// See [`Plane::tile`].
pub(super) async fn stored_tile(plane: &Plane, org: &OrgName, id: TileId) -> Result<Bytes, StorageError> {
    let path = |id: TileId| Path::from(format!("{}/tile/{id}", folder(org)));
    if let Some(found) = get(plane, &path(id)).await? {
        return Ok(found);
    }
    let full = get(plane, &path(id.full())).await?;
    let found = full.filter(|bytes| bytes.len() >= id.bytes()).map(|bytes| bytes.slice(..id.bytes()));
    found.ok_or_else(|| StorageError::damaged(path(id), "it is missing"))
}
