//! The publisher: from entries in the log to a ledger that anyone can check.
//!
//! About once a period, for each org with news, in this order:
//!
//! 1. a decision in the log ends a segment;
//! 2. the segment is created if absent;
//! 3. the tree's new tiles and entry bundles are written;
//! 4. the checkpoint is signed and created if absent as `checkpoints/<size>`;
//! 5. `checkpoint` is put, a hint.
//!
//! So a checkpoint never speaks of what is not there. Every step writes what is a function of the log and the key: a
//! crash between two of them is made good by taking all of them again, and two nodes that take the same one write the
//! same bytes. The node whose object carries the decision takes the steps; the others watch. Where nothing comes they
//! take over, which begins with loading the org again (rule L7).
//!
//! `checkpoints/<size>` decides: of two nodes with two histories one finds the other's checkpoint of the same size, and
//! stops, naming both. The signer remembers the last checkpoint and signs nothing that is not proved to extend it, and
//! before it signs it looks whether the store has one that it does not know.
//!
//! `checkpoint` is overwritten, so a write of it that the store or a stalled process carries out late puts an older one
//! over a newer one. Readers take the greater of it and of `checkpoints/`, and it is put right some time after.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use object_store::path::Path;
use tokio::time::Instant;

use super::merge::{merge, remove_merged};
use super::replication::SignedCheckpoint;
use super::segments::{Due, Duty, Entries};
use super::{Ledger, checkpoints_folder, folder, kept_path, newest_path, segment_path, segments_folder};
use crate::audit::note::{Note, VKey};
use crate::audit::segment::{SegmentName, SegmentWriter};
use crate::audit::{AuditError, Checkpoint, Hash, Signer, TreeEdge};
use crate::node::{Node, PlaneError};
use crate::storage::{Ensured, StorageError};

/// How long another node is waited for before its work is taken over.
pub(crate) const TAKEOVER_AFTER: Duration = Duration::from_secs(5);
/// How long after a checkpoint the hint is looked at again: no write of it should be under way for longer than the
/// last.
const HINT_CHECKS: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(90)];
/// How often kept checkpoints are thinned.
const THINNED_EVERY: Duration = Duration::from_secs(3_600);
const HOUR: i64 = 3_600;
const DAY: i64 = 24 * HOUR;
/// Every checkpoint is kept for a day, then one an hour for so many days, then one a day.
const HOURLY_DAYS: i64 = 30;

/// What became of a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// All that could be done is done.
    Done,
    /// The store holds what this node's ledger does not continue, or another node's work is to be taken over: the org
    /// is to be loaded again first.
    Reload,
}

/// What writing an org's ledger needs beside its entries.
#[derive(Debug)]
pub(crate) struct Publisher {
    /// The tree over the entries of all stored segments.
    edge: TreeEdge,
    signer: Signer,
    /// Tiles that are to be on the store before the next checkpoint.
    tiles: Vec<(String, Bytes)>,
    /// When the tree grew past the last checkpoint, and whether by this node's doing.
    due: Option<Duty>,
    /// Segments that have become part of a larger one, and since when: they go once no query can still be reading them.
    pub(crate) merged: VecDeque<(Instant, SegmentName)>,
    /// Whether it was logged that this node lacks the ledger's key.
    logged_missing_key: bool,
    /// The newest checkpoint there is, as it is stored.
    pub(crate) newest: Option<SignedCheckpoint>,
    /// How many of the [`HINT_CHECKS`] were made.
    hint_checks: usize,
    thinned_at: Option<Instant>,
}

impl Publisher {
    /// A publisher that goes on from a tree that the newest checkpoint covers.
    pub(crate) fn new(edge: TreeEdge, signer: Signer, newest: Option<SignedCheckpoint>) -> Self {
        Self {
            edge,
            signer,
            tiles: Vec::new(),
            due: None,
            merged: VecDeque::new(),
            logged_missing_key: false,
            newest,
            hint_checks: 0,
            thinned_at: None,
        }
    }

    /// How many entries the newest checkpoint covers.
    pub(crate) fn signed(&self) -> u64 {
        self.signer.size()
    }

    /// Whether there is something to do beside what the log decides: a checkpoint, merged segments, the hint, thinning.
    pub(crate) fn has_work(&self) -> bool {
        let hint = self.newest.as_ref().zip(HINT_CHECKS.get(self.hint_checks));
        !self.rests()
            || hint.is_some_and(|(newest, after)| newest.since.elapsed() >= *after)
            || self.newest.is_some() && self.thinned_at.is_none_or(|at| at.elapsed() >= THINNED_EVERY)
    }

    /// Whether nothing is owed to the store.
    pub(crate) fn rests(&self) -> bool {
        self.due.is_none() && self.merged.is_empty()
    }

    /// Takes note of a checkpoint that is newer than all before.
    fn know(&mut self, checkpoint: SignedCheckpoint) {
        (self.newest, self.hint_checks) = (Some(checkpoint), 0);
    }

    /// Reads a checkpoint of this ledger; none if it is not signed by a key that is known.
    fn check(&self, ledger: &Ledger, note: &[u8]) -> Option<Checkpoint> {
        let note = std::str::from_utf8(note).ok()?;
        self.signer.check(note, announced_key(ledger).as_ref()).ok()
    }
}

/// Writes what the log has decided of one ledger, and a checkpoint over it.
pub(crate) async fn publish(node: &Node, ledger: &Ledger) -> Result<Outcome, PlaneError> {
    if ledger.health.is_stopped() {
        return Ok(Outcome::Done);
    }
    let mut publisher = ledger.publisher.lock().await;
    loop {
        // One checkpoint after the other: a node that goes on from another's segment first sees that one's checkpoint.
        if sign(node, ledger, &mut publisher).await? == Outcome::Reload {
            return Ok(Outcome::Reload);
        }
        if publisher.due.is_some() {
            break;
        }
        let next = ledger.read().next_cut();
        let Some(Due { name, duty, from: entries }) = next else { break };
        if !duty.ours {
            match node.store.head(&segment_path(&ledger.org, name)).await? {
                Some(found) => {
                    grow(&mut publisher, &entries, duty);
                    ledger.write().store(name, found.size);
                    continue;
                }
                None if duty.since.elapsed() >= TAKEOVER_AFTER => return Ok(Outcome::Reload),
                None => break,
            }
        }
        let (schema, origin) = {
            let state = ledger.read();
            (Arc::clone(state.schema()), state.origin().to_owned())
        };
        let batches: Vec<_> = entries.iter().map(|entries| entries.batch.clone()).collect();
        // What is not in memory is under a checkpoint or in the log: a load finds it.
        if batches.iter().map(|batch| batch.num_rows() as u64).sum::<u64>() != name.entries() {
            tracing::error!(org = %ledger.org, segment = %name, "entries of a segment are not in memory");
            return Ok(Outcome::Reload);
        }
        let encode = move || {
            let mut writer = SegmentWriter::new(&schema, &origin)?;
            batches.iter().try_for_each(|batch| writer.write(batch))?;
            writer.finish()
        };
        let encoded = tokio::task::spawn_blocking(encode).await;
        let bytes = encoded.map_err(|e| PlaneError::Internal(e.to_string()))??;
        let last = entries.last().and_then(|entries| entries.leaves.last()).map(|leaf| leaf.entry_hash);
        let size = create(node, ledger, name, bytes, last).await?;
        grow(&mut publisher, &entries, duty);
        ledger.write().store(name, size);
    }
    if merge(node, ledger, &mut publisher).await? == Outcome::Reload {
        return Ok(Outcome::Reload);
    }
    remove_merged(node, ledger, &mut publisher).await?;
    remove_pruned(node, ledger, &publisher).await?;
    thin(node, ledger, &mut publisher).await?;
    keep_hint(node, ledger, &mut publisher).await?;
    Ok(Outcome::Done)
}

/// Puts the hint at the newest checkpoint right, should an older one have come to stand there.
async fn keep_hint(node: &Node, ledger: &Ledger, publisher: &mut Publisher) -> Result<(), PlaneError> {
    let Some(newest) = &publisher.newest else { return Ok(()) };
    if HINT_CHECKS.get(publisher.hint_checks).is_none_or(|after| newest.since.elapsed() < *after) {
        return Ok(());
    }
    let path = newest_path(&ledger.org);
    let found = node.store.get(&path).await?;
    // Whatever verifies and is no older may stay: another node may be ahead, or a witness may have signed it too.
    let checked = found.and_then(|found| publisher.check(ledger, &found));
    if checked.is_none_or(|checkpoint| checkpoint.size < newest.checkpoint.size) {
        tracing::warn!(%path, size = newest.checkpoint.size, "an older checkpoint, or none, stood here; the newest is put back");
        node.store.put(&path, newest.note.clone().into()).await?;
    }
    publisher.hint_checks += 1;
    Ok(())
}

/// Deletes what a `ledger.prune` has pruned, once a checkpoint covers that entry and no query that began before it can
/// still be reading. Every node does so, and each finds less to do than the one before.
async fn remove_pruned(node: &Node, ledger: &Ledger, publisher: &Publisher) -> Result<(), PlaneError> {
    let Some(removal) = ledger.read().removal() else { return Ok(()) };
    if publisher.signed() <= removal.entry || removal.since.elapsed() < node.settings.query_time {
        return Ok(());
    }
    let listed = node.store.list(&segments_folder(&ledger.org)).await?;
    let gone = listed.into_iter().filter(|meta| {
        let name = meta.location.filename().and_then(|name| name.parse::<SegmentName>().ok());
        name.is_some_and(|name| name.last < removal.first_kept)
    });
    let gone: Vec<_> = gone.map(|meta| meta.location).collect();
    node.metrics.audit.pruned.inc_by(gone.len() as u64);
    if !gone.is_empty() {
        node.store.delete_all(gone).await?;
    }
    ledger.write().removed(removal.entry);
    Ok(())
}

/// Deletes checkpoints that are kept more densely than need be: the tiles prove the rest.
async fn thin(node: &Node, ledger: &Ledger, publisher: &mut Publisher) -> Result<(), PlaneError> {
    if publisher.thinned_at.is_some_and(|at| at.elapsed() < THINNED_EVERY) || publisher.newest.is_none() {
        return Ok(());
    }
    let now = node.now() / 1_000_000;
    let listed = node.store.list(&checkpoints_folder(&ledger.org)).await?;
    let ages = listed.into_iter().map(|meta| (now - meta.last_modified.timestamp(), meta.location));
    let gone = superfluous(now, ages.collect());
    if !gone.is_empty() {
        node.store.delete_all(gone).await?;
    }
    publisher.thinned_at = Some(Instant::now());
    Ok(())
}

/// Of checkpoints with their ages in seconds, oldest first, those that may go: of each hour, or each day, the last one
/// stays.
fn superfluous(now: i64, ages: Vec<(i64, Path)>) -> Vec<Path> {
    let slot = |age: i64| match age {
        age if age < DAY => None,
        age if age < HOURLY_DAYS * DAY => Some((HOUR, (now - age).div_euclid(HOUR))),
        age => Some((DAY, (now - age).div_euclid(DAY))),
    };
    let mut gone = Vec::new();
    let mut rest = ages.into_iter().peekable();
    while let Some((age, path)) = rest.next() {
        let own = slot(age);
        if own.is_some() && rest.peek().is_some_and(|(next, _)| slot(*next) == own) {
            gone.push(path);
        }
    }
    gone
}

/// Puts a segment's entries into the tree. Its checkpoint is waited for since the decision was come upon, not since
/// now: so all that a dead node left is taken over in one go.
fn grow(publisher: &mut Publisher, entries: &[Entries], duty: Duty) {
    for leaf in entries.iter().flat_map(|entries| &entries.leaves) {
        publisher.edge.push(leaf);
    }
    let ours = duty.ours || publisher.due.is_some_and(|due| due.ours);
    publisher.due = Some(Duty { ours, since: duty.since });
}

/// Creates a segment whose last entry has the hash `last`, or finds that it is there. Gives its size.
///
/// What lies there already is another node's, one's own whose answer was lost, or planted: it is believed if it has the
/// same bytes, or if its entries end in the same hash, which is chained to all of them. Anything else no checkpoint
/// covers, and is replaced.
pub(crate) async fn create(
    node: &Node,
    ledger: &Ledger,
    name: SegmentName,
    bytes: Bytes,
    last: Option<Hash>,
) -> Result<u64, PlaneError> {
    let path = segment_path(&ledger.org, name);
    let size = bytes.len() as u64;
    match node.store.ensure(&path, bytes.clone()).await? {
        Ensured::Same => {
            node.metrics.audit.segments.inc();
            Ok(size)
        }
        Ensured::Other(found) => {
            let found_size = found.len() as u64;
            let origin = ledger.read().origin().to_owned();
            let text = path.to_string();
            let verified =
                tokio::task::spawn_blocking(move || super::retention::last_hash(&text, name, found, &origin)).await;
            if verified.is_ok_and(|hash| hash.is_ok_and(|hash| Some(hash) == last)) {
                return Ok(found_size);
            }
            tracing::warn!(%path, "a file that no checkpoint covers lay in a segment's place and is replaced");
            node.store.put(&path, bytes).await?;
            Ok(size)
        }
    }
}

/// Signs a checkpoint over the tree as it stands, if none covers it; see the module's doc for the order.
async fn sign(node: &Node, ledger: &Ledger, publisher: &mut Publisher) -> Result<Outcome, PlaneError> {
    let Some(due) = publisher.due else { return Ok(Outcome::Done) };
    let origin = ledger.read().origin().to_owned();
    let checkpoint = Checkpoint { origin, size: publisher.edge.size(), root: publisher.edge.root() };
    let kept = kept_path(&ledger.org, checkpoint.size);
    let internal = |e: AuditError| PlaneError::Internal(e.to_string());
    let known = node.store.get(&kept).await?.and_then(|found| {
        let text = String::from_utf8(found.to_vec()).ok()?;
        publisher.check(ledger, text.as_bytes()).map(|found| (found, text))
    });
    if let Some((found, text)) = known {
        agree(ledger, &found, &checkpoint)?;
        let key = announced_key(ledger);
        publisher.signer.observe(&text, key.as_ref(), &checkpoint, publisher.edge.grown()).map_err(internal)?;
        let size = checkpoint.size;
        publisher.know(SignedCheckpoint { note: text, checkpoint, ours: false, since: Instant::now() });
        ledger.write().cover(size);
    } else if !may_sign(node, ledger)? {
        if !std::mem::replace(&mut publisher.logged_missing_key, true) {
            tracing::error!(
                org = %ledger.org,
                "its ledger has another key now: this node signs no checkpoint of it until it has that key too"
            );
        }
        return Ok(Outcome::Done);
    } else if !due.ours {
        let takes_over = due.since.elapsed() >= TAKEOVER_AFTER;
        return Ok(if takes_over { Outcome::Reload } else { Outcome::Done });
    } else {
        // The store's newest must be the one that this signer goes on from, or an older one that a late write put
        // there.
        if let Some(found) = node.store.get(&newest_path(&ledger.org)).await?
            && let Some(found) = publisher.check(ledger, &found)
        {
            if found.size > publisher.signed() {
                return Ok(Outcome::Reload);
            }
            if let Some(newest) = publisher.newest.as_ref().filter(|newest| newest.checkpoint.size == found.size) {
                agree(ledger, &found, &newest.checkpoint)?;
            }
        }
        publisher.tiles.extend(publisher.edge.take_tiles());
        let folder = format!("{}/tile", folder(&ledger.org));
        let tiles = publisher.tiles.iter().map(|(path, bytes)| (Path::from(format!("{folder}/{path}")), bytes.clone()));
        node.store.put_all(tiles.collect()).await?;
        let signed = publisher.signer.sign(&checkpoint, publisher.edge.grown()).map_err(internal)?;
        match node.store.ensure(&kept, signed.clone().into()).await? {
            Ensured::Same => {}
            Ensured::Other(found) => match publisher.check(ledger, &found) {
                Some(found) => agree(ledger, &found, &checkpoint)?,
                None => {
                    tracing::warn!(path = %kept, "what is no signed checkpoint of this ledger lay here and is replaced");
                    node.store.put(&kept, signed.clone().into()).await?;
                }
            },
        }
        node.store.put(&newest_path(&ledger.org), signed.clone().into()).await?;
        node.metrics.audit.heads.inc();
        let size = checkpoint.size;
        publisher.know(SignedCheckpoint { note: signed, checkpoint, ours: true, since: Instant::now() });
        ledger.write().cover(size);
    }
    publisher.edge.take_tiles();
    publisher.edge.settle();
    publisher.tiles.clear();
    publisher.due = None;
    if due.ours {
        drop_outgrown(node, ledger, publisher).await?;
    }
    Ok(Outcome::Done)
}

/// Stops the org when two checkpoints of one size have two roots: the ledger has forked.
fn agree(ledger: &Ledger, found: &Checkpoint, ours: &Checkpoint) -> Result<(), PlaneError> {
    if found == ours {
        return Ok(());
    }
    let reason = format!(
        "the ledger has forked: a signed checkpoint over {} entries has the root {}, and this node's has the root {}",
        ours.size, found.root, ours.root
    );
    Err(ledger.health.stopped_by(StorageError::damaged(kept_path(&ledger.org, ours.size), reason)))
}

/// Whether these bytes are not a signed note, by any signer.
pub(crate) fn is_no_note(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).ok().and_then(|text| text.parse::<Note>().ok()).is_none()
}

/// The key that the ledger says its checkpoints are signed with from some entry on, if it does. This node may lack it,
/// when the key was changed on others: it can still follow them.
fn announced_key(ledger: &Ledger) -> Option<VKey> {
    ledger.read().status().key.as_deref().and_then(|key| key.parse().ok())
}

/// Whether this node has the key that the ledger's newest `ledger.key` names, if it names any.
fn may_sign(node: &Node, ledger: &Ledger) -> Result<bool, PlaneError> {
    let state = ledger.read();
    let Some(key) = state.status().key.as_deref() else { return Ok(true) };
    let known = node.signing.vkeys(state.origin()).map_err(|e| PlaneError::Internal(e.to_string()))?;
    Ok(known.iter().any(|vkey| vkey.to_string() == key))
}

/// Deletes the partial tiles whose full one is on the store and under a checkpoint.
async fn drop_outgrown(node: &Node, ledger: &Ledger, publisher: &mut Publisher) -> Result<(), PlaneError> {
    for outgrown in publisher.edge.take_outgrown() {
        let partial = node.store.list(&Path::from(format!("{}/tile/{outgrown}", folder(&ledger.org)))).await?;
        if !partial.is_empty() {
            node.store.delete_all(partial.into_iter().map(|meta| meta.location).collect()).await?;
        }
    }
    Ok(())
}

/// Reads a whole segment that this ledger has.
pub(crate) async fn segment(node: &Node, ledger: &Ledger, name: SegmentName) -> Result<Bytes, StorageError> {
    let path = segment_path(&ledger.org, name);
    node.store.get(&path).await?.ok_or_else(|| StorageError::damaged(&path, "it is missing"))
}

#[cfg(test)]
mod tests {
    use object_store::path::Path;

    use super::{DAY, HOUR, superfluous};

    #[test]
    fn checkpoints_are_thinned_by_age_and_the_last_of_each_hour_and_day_stays() {
        let now = 1_000 * DAY;
        let path = |n: i64| Path::from(n.to_string());
        // Oldest first: two of one day long ago, three of two hours last week, two of today.
        let ages = [200 * DAY, 200 * DAY - HOUR, 7 * DAY - 10, 7 * DAY - 20, 7 * DAY - HOUR - 10, 70, 60];
        let listed = ages.iter().map(|age| (*age, path(*age))).collect();
        assert_eq!(superfluous(now, listed), [path(200 * DAY), path(7 * DAY - 10)]);
    }
}
