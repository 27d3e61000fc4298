//! A ledger from what is stored: an org's authenticated state, the log, and the newest signed checkpoint.
//!
//! Nothing that merely lies in a folder is believed (rule L8):
//!
//! - the entries up to the state's position, their number and last hash, and which segments they lie in, are the
//!   state's, which carries a MAC;
//! - entries past the last checkpoint come from authenticated log objects, never from a segment;
//! - the newest checkpoint is signed, and the ledger's own chain must agree with it: the hash of the last entry that it
//!   covers is in its tree, and each entry's hash covers the one before;
//! - what a segment's metadata or footer says is not looked at.
//!
//! `checkpoint` is a hint: the newest is the greater of it and of `checkpoints/`.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use object_store::path::Path;

use super::evidence::Evidence;
use super::publisher::{Publisher, is_no_note};
use super::reader;
use super::replication::{self, Elsewhere, SignedCheckpoint};
use super::state::LedgerState;
use super::{Ledger, checkpoints_folder, folder, kept_path, newest_path, segments_folder};
use crate::audit::segment::SegmentName;
use crate::audit::tile::{TileKind, Tiles};
use crate::audit::tree::Peaks;
use crate::audit::{AuditError, Checkpoint, Hash, Signer, TreeEdge, signer};
use crate::model::OrgName;
use crate::node::{Health, Node};
use crate::storage::StorageError;

/// The newest checkpoint of a ledger, with the tree under it.
#[derive(Debug)]
pub(crate) struct Signed {
    newest: Option<SignedCheckpoint>,
    edge: TreeEdge,
    peaks: Peaks,
    /// The hash of the last entry that it covers.
    last: Hash,
    /// What lies in a checkpoint's place and is not of this ledger, if anything: a newer one may have lain there.
    foreign: Option<Path>,
}

impl Signed {
    /// How many entries it covers.
    pub(crate) fn size(&self) -> u64 {
        self.newest.as_ref().map_or(0, |newest| newest.checkpoint.size)
    }

    /// What lies in a checkpoint's place and is not of this ledger.
    pub(crate) fn foreign(&self) -> Option<&Path> {
        self.foreign.as_ref()
    }

    /// The hash of the last entry that it covers; zeros if none.
    pub(crate) fn last(&self) -> Hash {
        self.last
    }
}

/// Reads the newest checkpoint and the tree under it, and holds it against the mirror's.
pub(crate) async fn signed(
    node: &Node,
    elsewhere: &Elsewhere,
    org: &OrgName,
    origin: &str,
) -> Result<Signed, StorageError> {
    // The mirror's first: it follows this store, so it is behind it whenever all is well.
    let mirrored = replication::mirrored(node, elsewhere, org, origin).await?;
    let (newest, foreign) = newest(node, org, origin).await?;
    let checkpoint = newest.as_ref().map(|newest| &newest.checkpoint);
    replication::compare(node, org, mirrored.as_ref(), checkpoint).await?;
    let (edge, peaks) = restore_tree(node, org, checkpoint).await?;
    let last = match checkpoint.filter(|checkpoint| checkpoint.size > 0) {
        None => Hash::ZERO,
        Some(checkpoint) => reader::leaf(&node.store, org, checkpoint, checkpoint.size - 1).await?.0.entry_hash,
    };
    Ok(Signed { newest, edge, peaks, last, foreign })
}

/// Puts a ledger together, once its entries are replayed: finds its segments, and what goes on writing it.
pub(crate) async fn assemble(
    node: &Node,
    org: &OrgName,
    mut state: LedgerState,
    signed: Signed,
    health: Arc<Health>,
) -> Result<Ledger, StorageError> {
    let size = signed.size();
    if size > state.size() {
        let reason = format!(
            "the checkpoint covers {size} entries, and state and log have {}: the log is older than the ledger",
            state.size()
        );
        return Err(StorageError::damaged(newest_path(org), reason));
    }
    let mut files = Vec::new();
    for meta in node.store.list(&segments_folder(org)).await? {
        // What is not named as a segment is ignored.
        let name = meta.location.filename().and_then(|name| name.parse::<SegmentName>().ok());
        files.extend(name.map(|name| (name, meta.size)));
    }
    let leftovers = state.place(&files, size).map_err(|first| {
        let reason = format!("entry {first} is under the ledger's checkpoint, and no segment there has it");
        StorageError::damaged(format!("{}/segments", folder(org)), reason)
    })?;
    let origin = state.origin().to_owned();
    let covered = signed.newest.as_ref().map(|newest| newest.checkpoint.clone());
    state.set_evidence(Arc::new(Evidence::new(&node.store, org.clone(), origin.clone(), covered)));
    let mut publisher =
        Publisher::new(signed.edge, Signer::new(origin, Arc::clone(&node.signing), signed.peaks), signed.newest);
    publisher.merged.extend(leftovers.into_iter().map(|name| (tokio::time::Instant::now(), name)));
    Ok(Ledger::new(org.clone(), state, publisher, health))
}

/// The newest checkpoint, if there is one: the greater of the hint and of those that are kept by their size. The hint
/// is mended by the publisher. What no key of this deployment has signed is passed over: that the ledger had a newer
/// checkpoint shows in its state, which names entries that nothing else has then.
async fn newest(
    node: &Node,
    org: &OrgName,
    origin: &str,
) -> Result<(Option<SignedCheckpoint>, Option<Path>), StorageError> {
    let (path, mut newest, mut foreign) = (newest_path(org), None, None);
    if let Some(bytes) = node.store.get(&path).await? {
        newest = read(node, origin, &path, &bytes)?;
        foreign = newest.is_none().then(|| path.clone());
    }
    let kept = node.store.list(&checkpoints_folder(org)).await?;
    for meta in kept.into_iter().rev() {
        let size = meta.location.filename().and_then(|name| name.parse::<u64>().ok());
        let Some(size) = size else { continue };
        if newest.as_ref().is_some_and(|newest| newest.checkpoint.size > size) {
            break;
        }
        let Some(bytes) = node.store.get(&meta.location).await? else { continue };
        let Some(found) = read(node, origin, &meta.location, &bytes)? else {
            foreign.get_or_insert(meta.location);
            continue;
        };
        if found.checkpoint.size != size {
            let reason = format!("it is named by another size than its own, {}", found.checkpoint.size);
            return Err(StorageError::damaged(&meta.location, reason));
        }
        match &newest {
            Some(hint) if hint.checkpoint.size == size && hint.checkpoint.root != found.checkpoint.root => {
                let reason = format!(
                    "two signed checkpoints over {size} entries: {path} has the root {}, this one {}",
                    hint.checkpoint.root, found.checkpoint.root
                );
                return Err(StorageError::damaged(&meta.location, reason));
            }
            _ => newest = Some(found),
        }
        break;
    }
    if let Some(newest) = &newest {
        // A crash may have come between the two.
        let kept = kept_path(org, newest.checkpoint.size);
        if node.store.head(&kept).await?.is_none() {
            node.store.put(&kept, newest.note.clone().into()).await?;
        }
    }
    Ok((newest, foreign))
}

/// A checkpoint of this ledger; none if it is not one that a key of this deployment has signed. That this node has the
/// deployment's keys, the layout and the log have shown: so one that no key of its own fits is not the deployment's.
fn read(node: &Node, origin: &str, path: &Path, bytes: &[u8]) -> Result<Option<SignedCheckpoint>, StorageError> {
    if is_no_note(bytes) {
        tracing::error!(%path, "passed over: it is no signed note");
        return Ok(None);
    }
    let note = std::str::from_utf8(bytes).map_err(|_| StorageError::damaged(path, "it is not UTF-8"))?;
    match signer::check(&node.signing, origin, note) {
        Ok(checkpoint) => Ok(Some(SignedCheckpoint::found(checkpoint, note.to_owned()))),
        Err(e @ AuditError::Signature(_)) => {
            // Signed by a key of this deployment, for this org, under another name of the deployment.
            let named = note.lines().next().filter(|named| *named != origin && org_part(named) == org_part(origin));
            if let Some(named) = named.filter(|named| signer::check(&node.signing, named, note).is_ok()) {
                return Err(node.store.unusable(format!(
                    "{path} is of the ledger {named}, and this control plane's would be {origin}; set `name` to the \
                     deployment's, as it was"
                )));
            }
            tracing::error!(%path, error = %e, "passed over: no key of this deployment has signed it");
            Ok(None)
        }
        Err(e) => Err(StorageError::damaged(path, e)),
    }
}

/// What of an origin comes after the deployment's name.
fn org_part(origin: &str) -> Option<&str> {
    origin.split_once("/orgs/").map(|(_, part)| part)
}

/// The tree under a checkpoint, and its peaks.
async fn restore_tree(
    node: &Node,
    org: &OrgName,
    checkpoint: Option<&Checkpoint>,
) -> Result<(TreeEdge, Peaks), StorageError> {
    let Some(checkpoint) = checkpoint else { return Ok((TreeEdge::default(), Peaks::default())) };
    let damaged = |e: &dyn std::fmt::Display| StorageError::damaged(format!("{}/tile", folder(org)), e);
    let (mut found, mut tiles) = (HashMap::<_, Bytes>::new(), Tiles::new(checkpoint.size));
    for id in TreeEdge::tiles_of(checkpoint.size) {
        let bytes = reader::tile(&node.store, org, id).await?;
        if id.kind != TileKind::Entries {
            tiles.insert(id, &bytes).map_err(|e| damaged(&e))?;
        }
        found.insert(id, bytes);
    }
    let edge = TreeEdge::restore(checkpoint.size, &found).map_err(|e| damaged(&e))?;
    let peaks = tiles.peaks().filter(|peaks| peaks.root() == checkpoint.root && edge.root() == checkpoint.root);
    let peaks = peaks.ok_or_else(|| damaged(&"the tiles do not give the root that the checkpoint is signed over"))?;
    Ok((edge, peaks))
}
