//! A ledger as it is found on the store: what the chain and the tree go on from.
//!
//! The newest segment says where the chain stands, up to which place of the log, and what has been pruned. The newest head says which tiles are whole.
//! Entries between the two were stored and not yet signed when the last process died; they are put into the tree again.
//!
//! Nothing here checks every hash; that is `mcpg audit verify`. It is checked that what the control plane goes on from fits
//! together: the head is signed by a key of this deployment, the tiles give its root, and the segments reach it.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use object_store::path::Path;

use super::Plane;
use super::heads::{self, SignedHead};
use super::ledger::{LedgerState, folder, kept_path, newest_path, segment_path};
use super::press::{Press, delete, get, is_no_note, put};
use super::recovery::list;
use super::segments::Segment;
use super::standing::Standing;
use crate::audit::segment::{self, SegmentEnd, SegmentName};
use crate::audit::tile::{TileKind, Tiles};
use crate::audit::tree::Peaks;
use crate::audit::{AuditError, ChainHead, Checkpoint, Hash, Leaf, Signer, TreeEdge, checkpoint, signer};
use crate::model::OrgName;
use crate::storage::StorageError;

/// A ledger without entries: what a damaged org has in place of its own.
pub(super) fn empty(plane: &Plane, name: &OrgName) -> (LedgerState, Press) {
    let origin = checkpoint::origin(&plane.settings.name, name);
    let schema = Arc::clone(&plane.schemas.audit_log);
    let signer = Signer::new(origin.clone(), Arc::clone(&plane.signing), Peaks::default());
    let ledger = LedgerState::new(origin, schema, ChainHead::default(), Vec::new(), Standing::default());
    (ledger, Press::new(TreeEdge::default(), signer, None))
}

/// Loads an org's ledger.
pub(super) async fn load(plane: &Plane, name: &OrgName) -> Result<(LedgerState, Press), StorageError> {
    let origin = checkpoint::origin(&plane.settings.name, name);
    // The mirror's first: it follows this store, so it is behind it whenever all is well.
    let mirrored = heads::mirrored(plane, name, &origin).await?;
    let newest = newest_head(plane, name, &origin, mirrored.as_ref()).await?;
    let head = newest.as_ref().map(|newest| &newest.checkpoint);
    heads::compare(plane, name, mirrored.as_ref(), head).await?;
    let pruned = standing_on_store(plane, name).await?.pruned;
    let (mut segments, gone) = found_segments(plane, name, pruned.map_or(0, |pruned| pruned.first_kept)).await?;
    let signed = head.map_or(0, |head| head.size);
    let end = loop {
        let Some((last, _)) = segments.last().copied() else { break None };
        match read_end(plane, name, last).await {
            Ok(end) => break Some(end),
            // No head speaks of it, so it never was a segment: its write was cut short.
            Err(e) if e.is_damage() && last.first >= signed => segments.pop(),
            Err(e) => return Err(e),
        };
    };
    let reaches = end.as_ref().map_or(0, |end| end.head.size);
    if reaches < signed {
        let reason = format!("the ledger's head covers {signed} entries, and there are segments for {reaches}");
        return Err(StorageError::damaged(format!("{}/segments", folder(name)), reason));
    }
    if let Some(end) = end.as_ref().filter(|end| end.origin != origin) {
        let reason = format!(
            "the ledger of org {name} has the origin {}, and the setting `name` makes it {origin}; set `name` back",
            end.origin
        );
        return Err(plane.store.unusable(reason));
    }
    let (mut edge, peaks) = restore_tree(plane, name, head).await?;
    for (segment, _) in segments.iter().filter(|(segment, _)| segment.last >= signed) {
        for leaf in leaves(plane, name, *segment).await?.iter().filter(|leaf| leaf.seq >= signed) {
            edge.push(leaf);
        }
    }
    for part in gone {
        delete(plane, &segment_path(name, part)).await?;
    }
    let standing = standing_of(name, end.as_ref())?;
    let position = end.as_ref().map_or(0, |end| end.position);
    let text: Arc<str> = end.as_ref().and_then(|end| end.standing.as_deref()).unwrap_or("{}").into();
    let count = segments.len();
    let found = segments.into_iter().enumerate().map(|(at, (segment, size))| {
        let is_last = at + 1 == count;
        let (position, text) = if is_last { (position, Arc::clone(&text)) } else { (0, Arc::from("{}")) };
        Segment::found(segment, position, text, size)
    });
    let (chain, schema) = (end.map(|end| end.head).unwrap_or_default(), Arc::clone(&plane.schemas.audit_log));
    let ledger = LedgerState::new(origin.clone(), schema, chain, found.collect(), standing);
    Ok((ledger, Press::new(edge, Signer::new(origin, Arc::clone(&plane.signing), peaks), newest)))
}

fn standing_of(name: &OrgName, end: Option<&SegmentEnd>) -> Result<Standing, StorageError> {
    let text = end.and_then(|end| end.standing.as_deref());
    Standing::of_segment(text).map_err(|e| StorageError::damaged(format!("{}/segments", folder(name)), e))
}

/// How the ledger stands after the newest segment that is whole: it says what has been pruned, which must be known before a
/// gap between segments can be called one.
async fn standing_on_store(plane: &Plane, name: &OrgName) -> Result<Standing, StorageError> {
    let mut names = Vec::new();
    for meta in list(plane, &Path::from(format!("{}/segments", folder(name)))).await? {
        names.extend(meta.location.filename().unwrap_or_default().parse::<SegmentName>());
    }
    // The last entry first; of two that end with it, the one that begins later, since the other may be half written.
    names.sort_unstable_by_key(|segment| (segment.last, segment.first));
    for segment in names.into_iter().rev() {
        match read_end(plane, name, segment).await {
            Ok(end) => return standing_of(name, Some(&end)),
            Err(e) if e.is_damage() => {}
            Err(e) => return Err(e),
        }
    }
    Ok(Standing::default())
}

/// The newest head, if there is one. Should its write have been cut short, it is the greatest of those that are kept by their
/// size; and the copy by size is made or mended, if a crash kept that from being made. Should the mirror have a greater one, which
/// is kept here too, then a late write put an older one in its place (see `press`).
async fn newest_head(
    plane: &Plane,
    name: &OrgName,
    origin: &str,
    mirrored: Option<&Checkpoint>,
) -> Result<Option<SignedHead>, StorageError> {
    let path = newest_path(name);
    let head = match get(plane, &path).await? {
        Some(bytes) if is_no_note(&bytes) => {
            tracing::error!(%path, "the newest head is no signed note; falling back to the greatest that is kept");
            newest_kept(plane, name, origin).await?
        }
        Some(bytes) => Some(read_head(plane, name, origin, &path, &bytes)?),
        None => newest_kept(plane, name, origin).await?,
    };
    let Some(mut head) = head else { return Ok(None) };
    if let Some(mirrored) = mirrored.filter(|mirrored| mirrored.size > head.checkpoint.size) {
        let kept = kept_path(name, mirrored.size);
        if let Some(bytes) = get(plane, &kept).await?.filter(|bytes| !is_no_note(bytes)) {
            head = read_head(plane, name, origin, &kept, &bytes)?;
        }
    }
    let kept = kept_path(name, head.checkpoint.size);
    if get(plane, &kept).await?.is_none_or(|found| is_no_note(&found)) {
        put(plane, &kept, head.note.clone().into()).await?;
    }
    Ok(Some(head))
}

/// The greatest head that is kept by its size.
async fn newest_kept(plane: &Plane, name: &OrgName, origin: &str) -> Result<Option<SignedHead>, StorageError> {
    let kept = list(plane, &Path::from(format!("{}/checkpoints", folder(name)))).await?;
    for meta in kept.into_iter().rev() {
        if let Some(bytes) = get(plane, &meta.location).await?.filter(|bytes| !is_no_note(bytes)) {
            return read_head(plane, name, origin, &meta.location, &bytes).map(Some);
        }
    }
    Ok(None)
}

fn read_head(
    plane: &Plane,
    name: &OrgName,
    origin: &str,
    path: &Path,
    bytes: &[u8],
) -> Result<SignedHead, StorageError> {
    let note = std::str::from_utf8(bytes).map_err(|_| StorageError::damaged(path, "it is not UTF-8"))?;
    match signer::check(&plane.signing, origin, note) {
        Ok(checkpoint) => Ok(SignedHead::found(checkpoint, note.to_owned())),
        Err(e @ AuditError::Signature(_)) => Err(plane.store.unusable(format!(
            "the ledger of org {name} is not signed by this control plane's key: {path}: {e}; set audit.key_file (or \
             audit.previous_key_file) to the key that signed it, and `name` to the deployment's"
        ))),
        Err(e) => Err(StorageError::damaged(path, e)),
    }
}

/// The segments in order, with their sizes in bytes, and those that have become part of a larger one but are still there.
///
/// Those that end before `first_kept` are left out: they were pruned, and are about to be deleted.
async fn found_segments(
    plane: &Plane,
    name: &OrgName,
    first_kept: u64,
) -> Result<(Vec<(SegmentName, u64)>, Vec<SegmentName>), StorageError> {
    let folder = Path::from(format!("{}/segments", folder(name)));
    let mut all = Vec::new();
    for meta in list(plane, &folder).await? {
        let segment = meta.location.filename().unwrap_or_default().parse::<SegmentName>();
        all.push((segment.map_err(|e| StorageError::damaged(&meta.location, e))?, meta.size));
    }
    all.retain(|(segment, _)| segment.last >= first_kept);
    all.sort_unstable_by_key(|(segment, _)| (segment.first, u64::MAX - segment.last));
    let (mut segments, mut gone) = (Vec::<(SegmentName, u64)>::new(), Vec::new());
    let mut rest = all.into_iter().peekable();
    while let Some((segment, size)) = rest.next() {
        let covers = rest.peek().is_some_and(|(next, _)| segment.holds(*next));
        // Should the write of a merged one have been cut short, its parts are still what counts.
        if covers && read_end(plane, name, segment).await.is_err_and(|e| e.is_damage()) {
            continue;
        }
        while let Some((part, _)) = rest.next_if(|(next, _)| segment.holds(*next)) {
            gone.push(part);
        }
        if let Some((before, _)) = segments.last().filter(|(before, _)| before.last + 1 != segment.first) {
            let reason = format!("it does not follow {before}: entries are missing or there twice");
            return Err(StorageError::damaged(segment_path(name, segment), reason));
        }
        segments.push((segment, size));
    }
    Ok((segments, gone))
}

async fn read_with(
    plane: &Plane,
    name: &OrgName,
    segment: SegmentName,
    mut take: impl FnMut(&RecordBatch) -> Option<()> + Send + 'static,
) -> Result<SegmentEnd, StorageError> {
    let path = segment_path(name, segment);
    let bytes = get(plane, &path).await?.ok_or_else(|| StorageError::damaged(&path, "it is missing"))?;
    let read = move || {
        let damaged = || StorageError::damaged(&path, "an entry of it has no number or no hashes");
        segment::read(path.as_ref(), segment, bytes, |batch| take(&batch).ok_or_else(damaged))
    };
    let read = tokio::task::spawn_blocking(read).await;
    read.unwrap_or_else(|e| Err(StorageError::failed("read", segment, e)))
}

async fn read_end(plane: &Plane, name: &OrgName, segment: SegmentName) -> Result<SegmentEnd, StorageError> {
    read_with(plane, name, segment, |_| Some(())).await
}

async fn leaves(plane: &Plane, name: &OrgName, segment: SegmentName) -> Result<Vec<Leaf>, StorageError> {
    let found = Arc::new(std::sync::Mutex::new(Vec::new()));
    let into = Arc::clone(&found);
    read_with(plane, name, segment, move |batch| {
        let mut found = into.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        leaves_of(batch, &mut found)
    })
    .await?;
    let mut found = found.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    Ok(std::mem::take(&mut *found))
}

fn leaves_of(batch: &RecordBatch, found: &mut Vec<Leaf>) -> Option<()> {
    let seqs = batch.column_by_name("seq")?.as_primitive_opt::<Int64Type>()?;
    let (prev, own) = (batch.column_by_name("prev_hash")?, batch.column_by_name("entry_hash")?);
    let (prev, own) = (prev.as_string_opt::<i32>()?, own.as_string_opt::<i32>()?);
    for ((seq, prev_hash), entry_hash) in seqs.iter().zip(prev).zip(own) {
        let hash = |text: Option<&str>| text.and_then(|text| text.parse::<Hash>().ok());
        let seq = u64::try_from(seq?).ok()?;
        found.push(Leaf { seq, prev_hash: hash(prev_hash)?, entry_hash: hash(entry_hash)? });
    }
    Some(())
}

/// The tree under a head, and its peaks.
async fn restore_tree(
    plane: &Plane,
    name: &OrgName,
    head: Option<&Checkpoint>,
) -> Result<(TreeEdge, Peaks), StorageError> {
    let Some(head) = head else { return Ok((TreeEdge::default(), Peaks::default())) };
    let damaged = |e: &dyn std::fmt::Display| StorageError::damaged(format!("{}/tile", folder(name)), e);
    let (mut found, mut tiles) = (HashMap::<_, Bytes>::new(), Tiles::new(head.size));
    for id in TreeEdge::tiles_of(head.size) {
        // A partial tile may have gone already because the full one is there: its beginning is the same.
        let exact = get(plane, &Path::from(format!("{}/tile/{id}", folder(name)))).await?;
        let bytes = match exact {
            Some(bytes) => bytes,
            None => {
                let full = get(plane, &Path::from(format!("{}/tile/{}", folder(name), id.full()))).await?;
                full.filter(|bytes| bytes.len() >= id.bytes())
                    .map(|bytes| bytes.slice(..id.bytes()))
                    .unwrap_or_default()
            }
        };
        if id.kind != TileKind::Entries {
            tiles.insert(id, &bytes).map_err(|e| damaged(&e))?;
        }
        found.insert(id, bytes);
    }
    let edge = TreeEdge::restore(head.size, &found).map_err(|e| damaged(&e))?;
    let peaks = tiles.peaks().filter(|peaks| peaks.root() == head.root && edge.root() == head.root);
    let peaks =
        peaks.ok_or_else(|| damaged(&"the tiles do not give the root that the ledger's head is signed over"))?;
    Ok((edge, peaks))
}
