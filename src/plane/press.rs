//! The press: from entries in the log to a ledger that anyone can check.
//!
//! About once a second, for each org with news, in this order:
//!
//! 1. a mark in the log ends a segment; 2. the segment is created; 3. the tree's new tiles and entry bundles are written;
//! 4. the tree's head is signed and becomes `checkpoint`; 5. the same bytes are created as `checkpoints/<size>`.
//!
//! So a head never speaks of what is not there. Every step writes what is a function of the log and the key: a crash between
//! two of them is made good by taking all of them again, and two nodes that take the same one write the same bytes. The node
//! whose object carries the mark takes the steps; the others watch, and take over when nothing comes.
//!
//! The signer remembers the last head and signs nothing that is not proved to extend it. Should the store hold another head
//! of the same size, the ledger has forked: the org is stopped.
//!
//! `checkpoint` is overwritten, so a write of it that the store or a stalled process carries out late puts an older head over a
//! newer one. Therefore it is looked at again some time after a head, and the newest is put back.
//!
//! Segments that were pruned go last, see `retention`. Small segments are merged by the same way, see `merging`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode};
use tokio::time::{Instant, sleep};

use super::committer::Message;
use super::heads::SignedHead;
use super::ledger::{folder, kept_path, newest_path, segment_path};
use super::merging::{merge, merges, remove_merged};
use super::org::Org;
use super::recovery::list;
use super::segments::{Due, Duty, Entries};
use super::{Plane, PlaneError, Readiness};
use crate::audit::note::{Note, VKey};
use crate::audit::segment::{self, SegmentName, SegmentWriter};
use crate::audit::{Checkpoint, Signer, TreeEdge};
use crate::storage::StorageError;
use crate::storage::wal::Merge;

/// How often it looks for news.
const TICK: Duration = Duration::from_millis(100);
/// How long a segment grows at the least, and so how often a head is signed.
const PERIOD: Duration = Duration::from_secs(1);
/// How long another node is waited for before its work is taken over.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// Orgs whose ledgers are written at once.
const AT_ONCE: usize = 16;
/// How long after a head `checkpoint` is looked at again: no write of it should be under way for longer than the last of these.
const LOOKS: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(90)];
/// How often it is tried to leave nothing unsigned when the process stops.
const FINISH_TRIES: usize = 20;

/// What writing an org's ledger needs beside its entries.
#[derive(Debug)]
pub(super) struct Press {
    /// The tree over the entries of all stored segments.
    edge: TreeEdge,
    signer: Signer,
    /// Tiles that are to be on the store before the next head.
    tiles: Vec<(String, Bytes)>,
    /// When the tree grew past the last head, and whether by this node's doing.
    due: Option<Duty>,
    /// Segments that have become part of a larger one, and since when: they go once no query can still be reading them.
    pub(super) merged: VecDeque<(Instant, SegmentName)>,
    /// Whether it was said that this node lacks the ledger's key.
    told_of_key: bool,
    /// The newest head there is, as it is stored.
    pub(super) newest: Option<SignedHead>,
    /// How many of the [`LOOKS`] were taken at it.
    looks: usize,
}

impl Press {
    /// A press that goes on from a tree whose entries are all stored. If no head covers it yet, one is due.
    pub(super) fn new(edge: TreeEdge, signer: Signer, newest: Option<SignedHead>) -> Self {
        let due = (edge.size() > signer.size()).then(|| Duty { ours: true, since: Instant::now() });
        Self { edge, signer, tiles: Vec::new(), due, merged: VecDeque::new(), told_of_key: false, newest, looks: 0 }
    }

    /// Takes note of a head that is newer than all before.
    fn know(&mut self, head: SignedHead) {
        (self.newest, self.looks) = (Some(head), 0);
    }

    /// Reads a head of this ledger; none if it is not signed by a key that is known.
    fn check(&self, org: &Org, note: &str) -> Option<Checkpoint> {
        self.signer.check(note, told_key(org).as_ref()).ok()
    }
}

/// Presses until the plane is drained.
pub(super) async fn run(plane: Arc<Plane>) {
    while plane.readiness() != Readiness::Draining {
        sleep(TICK).await;
        turn(&plane, PERIOD).await;
    }
}

/// Asks for what is due, and writes what the log has decided.
async fn turn(plane: &Arc<Plane>, period: Duration) {
    ask(plane, period);
    let waited = plane.all_orgs().iter().map(|org| org.ledger().waited()).max();
    plane.metrics.audit.lag_seconds.set(waited.unwrap_or_default().as_secs_f64());
    press_all(plane).await;
}

async fn press_all(plane: &Arc<Plane>) {
    let pressed = futures::stream::iter(plane.all_orgs()).for_each_concurrent(AT_ONCE, |org| async move {
        // A task of its own: should a fault of the program end it, the next turn tries again.
        let (of_plane, of) = (Arc::clone(plane), Arc::clone(&org));
        let outcome = tokio::spawn(async move { press(&of_plane, &of).await }).await;
        let outcome = outcome.unwrap_or_else(|e| Err(PlaneError::Internal(e.to_string())));
        if let Err(e) = outcome {
            plane.metrics.audit.failures.inc();
            tracing::warn!(org = %org.name, error = %e, "the ledger was not written and will be tried again");
        }
    });
    pressed.await;
    // Stored entries are live no longer: that makes room for new ones.
    plane.count_live();
}

/// Ends every segment and signs every head before the process stops, as far as the store lets it. What it cannot do, the
/// next process does: the log holds all of it.
pub(super) async fn finish(plane: &Arc<Plane>) {
    for _ in 0..FINISH_TRIES {
        ask(plane, Duration::ZERO);
        plane.settle().await;
        press_all(plane).await;
        if !is_behind(plane) {
            return;
        }
        sleep(TICK).await;
    }
    tracing::warn!("a ledger has entries that no head covers yet; the next start signs them");
}

/// Whether some ledger has entries that are in no segment.
fn is_behind(plane: &Plane) -> bool {
    plane.all_orgs().iter().any(|org| {
        let ledger = org.ledger();
        !org.is_stopped() && (ledger.is_uncut() || ledger.next_cut().is_some())
    })
}

/// Puts marks that are due into the log.
fn ask(plane: &Arc<Plane>, period: Duration) {
    let mut marks = plane.marks.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    for org in plane.all_orgs() {
        if org.is_stopped() {
            continue;
        }
        let ledger = org.ledger();
        let rested = ledger.cut_at.is_none_or(|cut| cut.elapsed() >= period);
        if rested && ledger.is_uncut() && !marks.cuts.contains(&org.name) {
            marks.cuts.push(org.name.clone());
        }
        for name in merges(&ledger.runs()) {
            let merge = Merge { org: org.name.clone(), first: name.first, last: name.last };
            if !marks.merges.contains(&merge) {
                marks.merges.push(merge);
            }
        }
    }
    let due = !marks.is_empty();
    drop(marks);
    if due && let Some(queue) = plane.queue.get() {
        // A committer that is gone takes nothing any more; a full queue takes the marks with its next group.
        let _ = queue.try_send(Message::Mark);
    }
}

/// Writes what the log has decided of one org.
async fn press(plane: &Plane, org: &Org) -> Result<(), PlaneError> {
    if org.is_stopped() {
        return Ok(());
    }
    let mut press = org.press.lock().await;
    loop {
        // One head after the other: a node that goes on from another's segment first sees that one's head.
        head(plane, org, &mut press).await?;
        if press.due.is_some() {
            break;
        }
        let next = org.ledger().next_cut();
        let Some(Due { name, position, standing, duty, from: entries }) = next else { break };
        let path = segment_path(&org.name, name);
        // Who takes over a segment takes over its head too, without waiting once more.
        let ours = duty.ours || duty.since.elapsed() >= PATIENCE;
        let size = if ours {
            let (schema, origin) = (Arc::clone(org.ledger().schema()), org.ledger().origin().to_owned());
            let batches: Vec<_> = entries.iter().map(|entries| entries.batch.clone()).collect();
            let encode = move || {
                let mut writer = SegmentWriter::new(&schema, &origin, position, &standing)?;
                batches.iter().try_for_each(|batch| writer.write(batch))?;
                writer.finish()
            };
            let encoded = tokio::task::spawn_blocking(encode).await;
            let bytes = encoded.map_err(|e| PlaneError::Internal(e.to_string()))??;
            create(plane, org, name, bytes).await?
        } else {
            match plane.store.objects().head(&path).await {
                Ok(found) => found.size,
                Err(Error::NotFound { .. }) => break,
                Err(e) => return Err(StorageError::failed("look for", &path, e).into()),
            }
        };
        grow(&mut press, &entries, Duty { ours, since: duty.since });
        org.ledger_mut().store(name, size);
    }
    merge(plane, org, &mut press).await?;
    remove_merged(plane, org, &mut press).await?;
    remove_pruned(plane, org, &press).await?;
    keep_newest(plane, org, &mut press).await
}

/// Puts the newest head back, should an older one have come to stand in its place; see the module's doc.
async fn keep_newest(plane: &Plane, org: &Org, press: &mut Press) -> Result<(), PlaneError> {
    let Some(newest) = &press.newest else { return Ok(()) };
    if LOOKS.get(press.looks).is_none_or(|after| newest.since.elapsed() < *after) {
        return Ok(());
    }
    let path = newest_path(&org.name);
    let found = get(plane, &path).await?;
    let text = found.as_deref().and_then(|bytes| std::str::from_utf8(bytes).ok());
    // Whatever verifies and is no older may stay: another node may be ahead, or a witness may have signed it too.
    let stands = text.and_then(|text| press.check(org, text)).is_some_and(|head| head.size >= newest.checkpoint.size);
    if !stands {
        tracing::warn!(%path, size = newest.checkpoint.size, "an older head, or none, stood here; the newest is put back");
        put(plane, &path, newest.note.clone().into()).await?;
    }
    press.looks += 1;
    Ok(())
}

/// Deletes what a `ledger.prune` has pruned, oldest first, once a head covers that entry and no query that began before it can
/// still be reading. Every node does so, and each finds less to do than the one before.
async fn remove_pruned(plane: &Plane, org: &Org, press: &Press) -> Result<(), PlaneError> {
    let Some(removal) = org.ledger().removal() else { return Ok(()) };
    if press.signer.size() <= removal.entry || removal.since.elapsed() < plane.settings.query_time {
        return Ok(());
    }
    for meta in list(plane, &Path::from(format!("{}/segments", folder(&org.name)))).await? {
        let name = meta.location.filename().and_then(|name| name.parse::<SegmentName>().ok());
        if name.is_some_and(|name| name.last < removal.first_kept) {
            delete(plane, &meta.location).await?;
            plane.metrics.audit.pruned.inc();
        }
    }
    org.ledger_mut().removed(removal.entry);
    Ok(())
}

/// Puts a segment's entries into the tree. Its head is waited for since the mark was come upon, not since now: so all that a dead
/// node left is taken over in one go.
fn grow(press: &mut Press, entries: &[Entries], duty: Duty) {
    for leaf in entries.iter().flat_map(|entries| &entries.leaves) {
        press.edge.push(leaf);
    }
    let ours = duty.ours || press.due.is_some_and(|due| due.ours);
    press.due = Some(Duty { ours, since: duty.since });
}

/// Creates a segment, or finds that it is there. Gives its size.
pub(super) async fn create(plane: &Plane, org: &Org, name: SegmentName, bytes: Bytes) -> Result<u64, PlaneError> {
    let path = segment_path(&org.name, name);
    let size = bytes.len() as u64;
    match plane.store.objects().put_opts(&path, bytes.clone().into(), PutMode::Create.into()).await {
        Ok(_) => {
            plane.metrics.audit.segments.inc();
            Ok(size)
        }
        Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => {
            // Another node's, or one's own whose answer was lost. On a store whose writes are not atomic it may be torn:
            // no head speaks of it yet, and so it was never a segment.
            let found = get(plane, &path).await?.unwrap_or_default();
            let found_size = found.len() as u64;
            if segment::read(path.as_ref(), name, found, |_| Ok(())).is_ok() {
                return Ok(found_size);
            }
            tracing::warn!(%path, "a segment that no head speaks of was not whole and is written again");
            put(plane, &path, bytes).await?;
            Ok(size)
        }
        Err(e) => Err(StorageError::failed("create", &path, e).into()),
    }
}

/// Signs a head over the tree as it stands, if none covers it; see the module's doc for the order.
async fn head(plane: &Plane, org: &Org, press: &mut Press) -> Result<(), PlaneError> {
    let Some(due) = press.due else { return Ok(()) };
    let origin = org.ledger().origin().to_owned();
    let checkpoint = Checkpoint { origin, size: press.edge.size(), root: press.edge.root() };
    let newest = newest_path(&org.name);
    let kept = kept_path(&org.name, checkpoint.size);
    let found = get(plane, &kept).await?;
    // One whose write was cut short is none yet: on a store whose writes are not atomic it is written again.
    let is_torn = found.as_deref().is_some_and(is_no_note);
    if let Some(found) = found.filter(|_| !is_torn) {
        let forked = |reason: String| {
            let e = StorageError::damaged(&kept, reason);
            org.stop(e.to_string());
            PlaneError::OrgStopped { org: org.name.to_string(), reason: e.to_string() }
        };
        let text = std::str::from_utf8(&found).map_err(|_| forked("it is not UTF-8".to_owned()))?;
        let told = told_key(org);
        press
            .signer
            .observe(text, told.as_ref(), &checkpoint, press.edge.grown())
            .map_err(|e| forked(e.to_string()))?;
        press.know(SignedHead { note: text.to_owned(), checkpoint, ours: false, since: Instant::now() });
    } else if !may_sign(plane, org)? {
        if !std::mem::replace(&mut press.told_of_key, true) {
            tracing::error!(org = %org.name, "its ledger has got another key: this node signs nothing until it has it too");
        }
        return Ok(());
    } else if due.ours || due.since.elapsed() >= PATIENCE {
        press.tiles.extend(press.edge.take_tiles());
        let folder = format!("{}/tile", folder(&org.name));
        let tiles = press.tiles.iter().map(|(path, bytes)| (Path::from(format!("{folder}/{path}")), bytes.clone()));
        plane.store.put_all(tiles.collect()).await?;
        let signed =
            press.signer.sign(&checkpoint, press.edge.grown()).map_err(|e| PlaneError::Internal(e.to_string()))?;
        put(plane, &newest, signed.clone().into()).await?;
        let mode = if is_torn { PutMode::Overwrite } else { PutMode::Create };
        match plane.store.objects().put_opts(&kept, signed.clone().into(), mode.into()).await {
            Ok(_) | Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => {}
            Err(e) => return Err(StorageError::failed("create", &kept, e).into()),
        }
        plane.metrics.audit.heads.inc();
        press.know(SignedHead { note: signed, checkpoint, ours: true, since: Instant::now() });
    } else {
        return Ok(());
    }
    press.edge.take_tiles();
    press.edge.settle();
    press.tiles.clear();
    press.due = None;
    if due.ours {
        drop_outgrown(plane, org, press).await?;
    }
    Ok(())
}

/// Whether these bytes are no signed note, whoever signed it.
pub(super) fn is_no_note(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).ok().and_then(|text| text.parse::<Note>().ok()).is_none()
}

/// The key that the ledger says its heads are signed with from some entry on, if it does. This node may lack it, when the key was
/// changed on others: it can still follow them.
fn told_key(org: &Org) -> Option<VKey> {
    org.ledger().standing().key.as_deref().and_then(|key| key.parse().ok())
}

/// Whether this node has the key that the ledger's newest `ledger.key` tells of, if it tells of any.
fn may_sign(plane: &Plane, org: &Org) -> Result<bool, PlaneError> {
    let ledger = org.ledger();
    let Some(key) = ledger.standing().key.as_deref() else { return Ok(true) };
    let known = plane.signing.vkeys(ledger.origin()).map_err(|e| PlaneError::Internal(e.to_string()))?;
    Ok(known.iter().any(|vkey| vkey.to_string() == key))
}

/// Deletes the partial tiles whose full one is on the store and under a head.
async fn drop_outgrown(plane: &Plane, org: &Org, press: &mut Press) -> Result<(), PlaneError> {
    for outgrown in press.edge.take_outgrown() {
        for partial in list(plane, &Path::from(format!("{}/tile/{outgrown}", folder(&org.name)))).await? {
            delete(plane, &partial.location).await?;
        }
    }
    Ok(())
}

/// Reads an object, if it is there.
pub(super) async fn get(plane: &Plane, path: &Path) -> Result<Option<Bytes>, StorageError> {
    let failed = |e| StorageError::failed("read", path, e);
    match plane.store.objects().get(path).await {
        Ok(found) => found.bytes().await.map(Some).map_err(failed),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(e) => Err(failed(e)),
    }
}

pub(super) async fn put(plane: &Plane, path: &Path, bytes: Bytes) -> Result<(), StorageError> {
    plane.store.objects().put(path, bytes.into()).await.map(drop).map_err(|e| StorageError::failed("write", path, e))
}

pub(super) async fn delete(plane: &Plane, path: &Path) -> Result<(), StorageError> {
    match plane.store.objects().delete(path).await {
        Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
        Err(e) => Err(StorageError::failed("delete", path, e)),
    }
}
