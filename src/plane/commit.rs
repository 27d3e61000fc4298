//! Group commit: the batches of a short window become one log object, and are acknowledged when it is durable and
//! confirmed.
//!
//! One task commits for the process. The window is counted from the arrival of a group's first batch, so while one
//! group is being written the next gathers, and goes out at once if its window is over by then (as Pebble's commit
//! pipeline).
//!
//! A commit is: drop the batches that the log holds already; create the object after the last one applied, without
//! asking first; decide its fate; confirm it by the floor; apply; acknowledge. Clean success is a win. Any other answer
//! is decided by reading back (rule L1): ours, won; another's, lost once it is confirmed, then all that again at the
//! new end; absent, the same bytes at the same number again. While the fate is open nothing joins or leaves the group.
//! A group whose fate stays unknown is answered 503 and not tried again: its object may yet land, and is then applied
//! like anybody's.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use arrow::compute::concat_batches;
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use chrono::DateTime;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until};

use super::{Ack, Admission, Plane, PlaneError, follow, recover};
use crate::ingest::{BatchId, Lane};
use crate::log::{Decisions, Front, Object, ObjectId, Rows, Section, SectionKind, StoredId};
use crate::model::OrgName;
use crate::payload::{Epoch, KeyId};
use crate::rollup::Digest;
use crate::state::Org;
use crate::state::change::{Change, Place, Rows as ChangeRows};
use crate::state::dedup::{Decision, Dedup};
use crate::storage::{Created, StorageError};

/// A group is closed at this many bytes of samples, however short its window was.
const GROUP_BYTES: usize = 32 << 20;
/// A group is closed at this many batches.
const GROUP_BATCHES: usize = 2048;
/// How long a group is tried before its senders are told to come again.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(20);
/// The pause after the store's first error; it doubles up to a second.
const FIRST_BACKOFF: Duration = Duration::from_millis(10);
const LONGEST_BACKOFF: Duration = Duration::from_secs(1);

/// A batch that waits to be committed.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) org: OrgName,
    pub(super) kind: SectionKind,
    pub(super) batch: RecordBatch,
    /// Its rows as they are stored and what they add to the totals, if it is large enough to be a section of its own.
    pub(super) alone: Option<(Rows, Option<Digest>)>,
    pub(super) id: Option<BatchId>,
    /// The sealed payloads that the events tell of.
    pub(super) payloads: Option<Sealed>,
    pub(super) admission: Admission,
    pub(super) reply: oneshot::Sender<Result<Ack, PlaneError>>,
    pub(super) arrived: Instant,
}

/// Sealed payloads that are committed with the events that tell of them.
#[derive(Debug)]
pub(super) struct Sealed {
    pub(super) rows: Rows,
    pub(super) batch: RecordBatch,
    /// The epochs that they are of, and the keys that they are sealed to.
    pub(super) epochs: Vec<(Epoch, KeyId)>,
}

impl Sealed {
    /// Why they are not taken, as far as the log says at this moment.
    fn refusal(&self, org: &Org) -> Option<PlaneError> {
        {
            let ledger = org.ledger.read();
            let keys = &ledger.status().payload_keys;
            if let Some(refusal) = self.epochs.iter().find_map(|(epoch, key)| keys.refusal(*epoch, key)) {
                return Some(refusal);
            }
        }
        let conflict = org.state.read().payloads.conflict(&self.batch)?;
        let reason = format!("another {} of call {} was stored a moment ago", conflict.1, conflict.0);
        Some(PlaneError::PayloadRefused { code: "payload_conflict", reason })
    }
}

impl Pending {
    fn answer(self, outcome: Result<(), PlaneError>, duplicate: bool) {
        let rows = self.payloads.as_ref().map_or_else(|| self.batch.num_rows(), |sealed| sealed.batch.num_rows());
        let ack = outcome.map(|()| Ack { accepted: rows, duplicate });
        // Ignore the error: the receiver was dropped, and what was committed stays committed.
        let _ = self.reply.send(ack);
        drop(self.admission);
    }

    /// What no two batches of one object may share.
    fn exclusive(&self) -> Option<Exclusive> {
        self.id.map(|id| match id {
            BatchId::Key { key, .. } => Exclusive::Key(self.org.clone(), *key.as_bytes()),
            BatchId::Sequence { lane, .. } => Exclusive::Lane(self.org.clone(), lane),
        })
    }
}

#[derive(PartialEq, Eq, Hash)]
enum Exclusive {
    Key(OrgName, [u8; 16]),
    Lane(OrgName, Lane),
}

/// What the committer is asked to do.
#[derive(Debug)]
pub(super) enum Message {
    /// Commit a batch.
    Commit(Box<Pending>),
    /// Commit the decisions that wait, with whatever else there is.
    Decide,
    /// Say when everything asked before is done.
    Settle(oneshot::Sender<()>),
}

/// Commits until the plane is gone.
pub(super) async fn run(plane: Arc<Plane>, mut queue: mpsc::Receiver<Message>) {
    while let Some(message) = queue.recv().await {
        let (mut group, mut settle) = match message {
            Message::Commit(first) => gather(&mut queue, *first, plane.node.settings.commit_window).await,
            Message::Decide => (Vec::new(), None),
            Message::Settle(reply) => {
                settled(Some(reply));
                continue;
            }
        };
        loop {
            // A task of its own: should it panic, its senders learn that their batches are not known to be stored, and
            // the next group is committed all the same.
            let plane = Arc::clone(&plane);
            match tokio::spawn(async move { commit(&plane, group).await }).await {
                Ok(deferred) if deferred.is_empty() => break,
                Ok(deferred) => {
                    group = deferred;
                    // What has come meanwhile goes along: many batches of one lane hold up no other.
                    if settle.is_none() {
                        settle = join(&mut queue, &mut group);
                    }
                }
                Err(e) => {
                    tracing::error!(error = %e, "a group commit panicked");
                    break;
                }
            }
        }
        settled(settle);
    }
}

fn settled(reply: Option<oneshot::Sender<()>>) {
    if let Some(reply) = reply {
        // Ignore the error: the receiver was dropped.
        let _ = reply.send(());
    }
}

/// Adds to a group what waits already, up to its bounds or to whoever asks for all before to be done.
fn join(queue: &mut mpsc::Receiver<Message>, group: &mut Vec<Pending>) -> Option<oneshot::Sender<()>> {
    let mut bytes: usize = group.iter().map(|pending| pending.batch.get_array_memory_size()).sum();
    while bytes < GROUP_BYTES && group.len() < GROUP_BATCHES {
        match queue.try_recv().ok()? {
            Message::Commit(pending) => {
                bytes += pending.batch.get_array_memory_size();
                group.push(*pending);
            }
            // Decisions go with any group.
            Message::Decide => {}
            Message::Settle(reply) => return Some(reply),
        }
    }
    None
}

async fn gather(
    queue: &mut mpsc::Receiver<Message>,
    first: Pending,
    window: Duration,
) -> (Vec<Pending>, Option<oneshot::Sender<()>>) {
    let closes = sleep_until(first.arrived + window);
    tokio::pin!(closes);
    let mut bytes = first.batch.get_array_memory_size();
    let mut group = vec![first];
    while bytes < GROUP_BYTES && group.len() < GROUP_BATCHES {
        let message = tokio::select! {
            biased;
            message = queue.recv() => message,
            () = &mut closes => return (group, None),
        };
        match message {
            Some(Message::Commit(pending)) => {
                bytes += pending.batch.get_array_memory_size();
                group.push(*pending);
            }
            // Decisions go with any group.
            Some(Message::Decide) => {}
            Some(Message::Settle(reply)) => return (group, Some(reply)),
            None => break,
        }
    }
    (group, None)
}

/// What became of a created object.
enum Fate {
    /// It is in the log, durable and confirmed, and applied.
    Won,
    /// Another object has the number, and is applied.
    Lost,
    /// Nobody can say; the error to answer with.
    Unknown(PlaneError),
}

/// Commits a group. Gives back what has to wait for its fate: a second batch of one key or lane.
async fn commit(plane: &Plane, group: Vec<Pending>) -> Vec<Pending> {
    let began = Instant::now();
    let (mut group, deferred) = one_of_each(group);
    let outcome = loop {
        let written = {
            // The state is that of the cursor's position for as long as its lock is held: what is decided and encoded
            // here is right for the number after it, and if that is taken, all of it is done again.
            let cursor = plane.follower.cursor.lock().await;
            group = decide(plane, group);
            let written = put_together(plane, &cursor, &group);
            match written {
                Ok(Some(written)) => written,
                Ok(None) => return deferred,
                Err(e) => break Err(e),
            }
        };
        let taken = match create(plane, &written, began).await {
            Ok(taken) => taken,
            Err(e) => break Err(e),
        };
        match apply(plane, written, taken, began).await {
            Fate::Won => break Ok(()),
            Fate::Lost => plane.node.metrics.wal.conflicts.inc(),
            Fate::Unknown(e) => break Err(e),
        }
        if began.elapsed() > COMMIT_TIMEOUT {
            break Err(PlaneError::busy("other nodes write to the log so fast that this one finds no place in it"));
        }
    };
    match &outcome {
        Ok(()) => {
            plane.node.metrics.wal.commit_seconds.observe(began.elapsed().as_secs_f64());
            plane.node.metrics.wal.group_batches.observe(group.len() as f64);
        }
        Err(e) => {
            plane.node.metrics.wal.failures.inc();
            tracing::warn!(error = %e, batches = group.len(), "a group was not committed");
        }
    }
    for pending in group {
        pending.answer(outcome.clone(), false);
    }
    deferred
}

/// Parts a group so that no key and no lane is in it twice.
fn one_of_each(group: Vec<Pending>) -> (Vec<Pending>, Vec<Pending>) {
    let mut seen = HashSet::new();
    group.into_iter().partition(|pending| pending.exclusive().is_none_or(|exclusive| seen.insert(exclusive)))
}

/// Answers the batches that the log holds already and those that cannot be taken; gives the others.
fn decide(plane: &Plane, group: Vec<Pending>) -> Vec<Pending> {
    let mut fresh = Vec::with_capacity(group.len());
    for pending in group {
        let org = match plane.registry.loaded(&pending.org) {
            None => {
                pending.answer(Err(PlaneError::unavailable("the org is being loaded again")), false);
                continue;
            }
            Some(org) => org,
        };
        if let Err(e) = org.health.check() {
            pending.answer(Err(e), false);
            continue;
        }
        match pending.id.map_or(Decision::Fresh, |id| org.state.read().dedup.decide(&id)) {
            Decision::Fresh => match pending.payloads.as_ref().and_then(|sealed| sealed.refusal(&org)) {
                None => fresh.push(pending),
                Some(refusal) => pending.answer(Err(refusal), false),
            },
            Decision::FreshAfterGap => {
                plane.node.metrics.log.gaps.inc();
                tracing::warn!(
                    org = %pending.org,
                    "an emitter was answered for a batch that is not here: the store was restored to an older state"
                );
                fresh.push(pending);
            }
            Decision::Duplicate => pending.answer(Ok(()), true),
            refused => {
                let e = refusal(refused, pending.id.as_ref(), &org.state.read().dedup);
                pending.answer(Err(e), false);
            }
        }
    }
    fresh
}

/// The error of a batch that cannot be stored because of what is remembered.
pub(super) fn refusal(decision: Decision, id: Option<&BatchId>, dedup: &Dedup) -> PlaneError {
    match (decision, id) {
        (Decision::Reused, _) => PlaneError::KeyReused,
        (Decision::TooManyLanes, _) => PlaneError::Busy {
            reason: "the org has as many emitter lanes as it may; a lane is forgotten 30 days after its last batch"
                .to_owned(),
            retry_after: Duration::from_secs(60),
        },
        (Decision::Conflict, Some(BatchId::Sequence { lane, number, .. })) => {
            PlaneError::SequenceConflict { number: *number, last: dedup.lanes().last(lane).unwrap_or(0) }
        }
        _ => PlaneError::Internal("a batch was neither new nor stored".to_owned()),
    }
}

/// What a group becomes in the log.
struct Written {
    place: Place,
    pieces: Vec<Bytes>,
    changes: Vec<(Arc<Org>, Change)>,
    batches: usize,
}

/// One org's part of an object.
#[derive(Default)]
struct Part {
    decisions: Decisions,
    rows: Vec<(Rows, ChangeRows)>,
}

/// Encodes a group, and the decisions that wait, as the object after the cursor. None if there is nothing.
fn put_together(plane: &Plane, cursor: &follow::Cursor, group: &[Pending]) -> Result<Option<Written>, PlaneError> {
    let node = &plane.node;
    let mut parts: BTreeMap<OrgName, Part> = BTreeMap::new();
    for org in plane.undecided() {
        let decisions = Decisions { removal: org.take_removal(), ..std::mem::take(&mut *org.decided.lock()) };
        if !decisions.is_empty() && org.may_write() {
            parts.entry(org.name.clone()).or_default().decisions.join(decisions);
        }
    }
    let mut small: BTreeMap<(&OrgName, bool), Vec<&Pending>> = BTreeMap::new();
    for pending in group {
        match &pending.alone {
            Some((rows, digest)) => {
                let row = row(pending.kind, rows.clone(), pending.batch.clone(), digest.clone(), &[pending])?;
                let part = parts.entry(pending.org.clone()).or_default();
                part.rows.push(row);
                // Right after the events that tell of them, whose numbers they take.
                if let Some(sealed) = &pending.payloads {
                    part.rows.push((sealed.rows.clone(), ChangeRows::Payloads(sealed.batch.clone(), 0)));
                }
            }
            None => {
                small.entry((&pending.org, pending.kind == SectionKind::Events)).or_default().push(pending);
            }
        }
    }
    for ((org, _), batches) in small {
        let Some(first) = batches.first() else { continue };
        let joined = concat_batches(node.schema_of(first.kind), batches.iter().map(|pending| &pending.batch))
            .map_err(|e| PlaneError::Internal(e.to_string()))?;
        let rows = Rows::new(first.kind, &joined, node.settings.remote)?;
        let digest = digest(first.kind, &joined)?;
        let row = row(first.kind, rows, joined, digest, &batches)?;
        parts.entry(org.clone()).or_default().rows.push(row);
    }
    if parts.is_empty() {
        return Ok(None);
    }
    let seq = cursor.next;
    let written_at = written_at(node.now(), cursor.time, node.settings.max_rest)?;
    let (mut sections, mut changes) = (Vec::new(), Vec::with_capacity(parts.len()));
    for (name, mut part) in parts {
        let Some(org) = plane.registry.loaded(&name) else {
            // Decisions are made again; rows must not be left out of what is acknowledged.
            if part.rows.is_empty() {
                continue;
            }
            return Err(PlaneError::unavailable("the org is being loaded again; nothing of the group was stored"));
        };
        let (previous, before) = {
            let state = org.state.read();
            (state.position, state.object.as_ref().map(ObjectId::beginning))
        };
        if org.state.read().limits != Some(node.settings.limits) && !part.rows.is_empty() && org.announces_limits() {
            part.decisions.limits = Some(node.settings.limits);
        }
        let mut change = Change {
            previous,
            before: before.clone(),
            decisions: part.decisions.clone(),
            rows: Vec::with_capacity(part.rows.len()),
        };
        let mut decisions = Some(part.decisions);
        let mut first = org.ledger.read().size();
        if part.rows.is_empty() {
            let decisions = decisions.take().unwrap_or_default();
            sections.push(Section { org: name.clone(), previous, before: before.clone(), decisions, rows: None });
        }
        let mut told = first;
        for (mut rows, mut brought) in part.rows {
            if rows.header.kind == SectionKind::Events {
                rows.header.first = Some(first);
                told = first;
                first += rows.header.count;
            }
            if let ChangeRows::Payloads(_, first) = &mut brought {
                rows.header.first = Some(told);
                *first = told;
            }
            let decisions = decisions.take().unwrap_or_default();
            sections.push(Section { org: name.clone(), previous, before: before.clone(), decisions, rows: Some(rows) });
            change.rows.push(brought);
        }
        changes.push((org, change));
    }
    if sections.is_empty() {
        return Ok(None);
    }
    let front = Front { seq, writer: node.writer, written_at, previous: cursor.previous.clone() };
    let (id, pieces) = Object::encode(node.log.keys(), front, sections)?;
    let place = Place { position: seq, id, time: written_at, ours: true };
    Ok(Some(Written { place, pieces, changes, batches: group.len() }))
}

/// When an object is written, µs since the epoch, by a clock that says `now`: never before the one before it.
///
/// # Errors
/// When the clock is so far ahead of it that it is taken for wrong. All that is remembered or kept for a time would be
/// forgotten and deleted by it, and the log's time never goes back.
fn written_at(now: i64, before: i64, max_rest: Duration) -> Result<i64, PlaneError> {
    let rest = i64::try_from(max_rest.as_micros()).unwrap_or(i64::MAX);
    if before == 0 || now.saturating_sub(before) <= rest {
        return Ok(now.max(before));
    }
    let day = |time: i64| DateTime::from_timestamp_micros(time).map(|time| time.format("%F").to_string());
    Err(PlaneError::unavailable(format!(
        "this machine's clock says {}, and the log's last object is of {}: nothing is written by a clock that is so far \
         ahead. Set the clock; if it is right, raise log.max_rest",
        day(now).unwrap_or_default(),
        day(before).unwrap_or_default()
    )))
}

/// What rows add to the totals, if they are samples.
pub(super) fn digest(kind: SectionKind, batch: &RecordBatch) -> Result<Option<Digest>, PlaneError> {
    let digest = (kind == SectionKind::Samples).then(|| Digest::of(batch)).transpose();
    digest.map_err(|e| PlaneError::Internal(e.to_string()))
}

fn row(
    kind: SectionKind,
    mut rows: Rows,
    batch: RecordBatch,
    digest: Option<Digest>,
    pending: &[&Pending],
) -> Result<(Rows, ChangeRows), PlaneError> {
    let ids: Vec<BatchId> = pending.iter().filter_map(|pending| pending.id).collect();
    rows.header.batches = ids.iter().copied().map(StoredId).collect();
    let brought = match (kind, digest) {
        (SectionKind::Samples, Some(digest)) => ChangeRows::Samples(batch, vec![digest], ids),
        (SectionKind::Samples, None) => return Err(PlaneError::Internal("samples without a digest".to_owned())),
        (SectionKind::Events, _) => ChangeRows::Events(batch, ids),
        (SectionKind::Payloads, _) => return Err(PlaneError::Internal("payloads without their events".to_owned())),
    };
    Ok((rows, brought))
}

/// Whose a number is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Taken {
    /// The object that was to be created is there, durably.
    Ours,
    /// Another object is there, or trimming has passed the number.
    NotOurs,
}

/// Creates the object, and reads back until it is known whose the number is.
async fn create(plane: &Plane, written: &Written, began: Instant) -> Result<Taken, PlaneError> {
    let (node, seq) = (&plane.node, written.place.position);
    let mut backoff = FIRST_BACKOFF;
    loop {
        let answer = match node.log.create(seq, &written.pieces).await {
            Created::Won => return Ok(Taken::Ours),
            Created::Exists if !node.rules.read_back => return Ok(Taken::NotOurs),
            Created::Exists => None,
            Created::Unknown(e) => Some(e),
        };
        // Whatever it said, what lies there decides. Absent: the same bytes at the same number again.
        let failure = match read_back(plane, written).await {
            Ok(Some(taken)) => return Ok(taken),
            Ok(None) => match node.log.floor().await {
                Ok(floor) if floor.number >= seq => return Ok(Taken::NotOurs),
                Ok(_) => answer,
                Err(e) => Some(e),
            },
            Err(e) => Some(e),
        };
        // Waiting helps no node that lacks the key of what the others write.
        if let Some(e @ StorageError::Unusable { .. }) = failure {
            return Err(e.into());
        }
        node.metrics.log.hiccups.inc();
        let reason =
            failure.map_or_else(|| "it said that the object exists, and it is absent".to_owned(), |e| e.to_string());
        tracing::warn!(error = reason, position = seq, "the store did not take a log object; trying again");
        if began.elapsed() > COMMIT_TIMEOUT {
            return Err(unknown_fate(&reason));
        }
        sleep(backoff).await;
        backoff = (backoff * 2).min(LONGEST_BACKOFF);
    }
}

fn unknown_fate(reason: &str) -> PlaneError {
    PlaneError::unavailable(format!("it is not known whether the batch was stored, and it may be yet: {reason}"))
}

/// Whose object lies at the number; none if it is absent. One that is ours is made sure to stay.
async fn read_back(plane: &Plane, written: &Written) -> Result<Option<Taken>, StorageError> {
    let log = &plane.node.log;
    match log.read(written.place.position).await {
        Ok(Some(found)) if found.id == written.place.id => {
            log.settle(written.place.position, &written.pieces).await?;
            Ok(Some(Taken::Ours))
        }
        Ok(Some(_)) => Ok(Some(Taken::NotOurs)),
        Ok(None) => Ok(None),
        // Somebody's object that cannot be read: following the log says what it is.
        Err(e) if e.is_damage() => Ok(Some(Taken::NotOurs)),
        Err(e) => Err(e),
    }
}

/// Confirms what was created and applies it, unless another object is there or a reader of this process has applied it
/// already.
async fn apply(plane: &Plane, written: Written, taken: Taken, began: Instant) -> Fate {
    let Written { place, pieces, changes, batches } = written;
    let won = || {
        plane.node.metrics.wal.objects.inc();
        plane.node.metrics.wal.bytes.inc_by(pieces.iter().map(|piece| piece.len() as u64).sum());
        Fate::Won
    };
    let mut backoff = FIRST_BACKOFF;
    loop {
        match try_apply(plane, &place, &changes, taken).await {
            Ok(Applied::Already) => return won(),
            Ok(Applied::Next(mut cursor)) => {
                for (org, change) in &changes {
                    if change.decisions.limits.is_some() {
                        org.set_limits_announced();
                    }
                    plane.registry.slot(&org.name).push(place.position, change.previous);
                }
                follow::apply(plane, &mut cursor, &place, changes);
                return won();
            }
            Ok(Applied::Others) => return Fate::Lost,
            Ok(Applied::Unknown) => {
                let reason = "this node was left behind by the log's trimming";
                tracing::warn!(position = place.position, batches, reason, "the fate of a group is not known");
                return Fate::Unknown(unknown_fate(reason));
            }
            Err(e @ PlaneError::Misconfigured(_)) => return Fate::Unknown(e),
            Err(e) if began.elapsed() > COMMIT_TIMEOUT => return Fate::Unknown(unknown_fate(&e.to_string())),
            Err(e) => {
                plane.node.metrics.log.hiccups.inc();
                tracing::warn!(error = %e, position = place.position, "a commit waits to be confirmed");
                sleep(backoff).await;
                backoff = (backoff * 2).min(LONGEST_BACKOFF);
            }
        }
    }
}

enum Applied<'a> {
    /// A reader of this process has applied it.
    Already,
    /// It is the next one, confirmed: to be applied under the lock that this holds.
    Next(tokio::sync::MutexGuard<'a, follow::Cursor>),
    /// Another object has the number, confirmed and applied.
    Others,
    /// Trimming has passed the number before it was confirmed.
    Unknown,
}

async fn try_apply<'a>(
    plane: &'a Plane,
    place: &Place,
    changes: &[(Arc<Org>, Change)],
    taken: Taken,
) -> Result<Applied<'a>, PlaneError> {
    let mut cursor = plane.follower.cursor.lock().await;
    if cursor.next == place.position {
        let same = |org: &Arc<Org>| plane.registry.loaded(&org.name).is_some_and(|now| Arc::ptr_eq(&now, org));
        if taken == Taken::Ours && changes.iter().all(|(org, _)| same(org)) {
            let floor = plane.node.log.floor().await?;
            if !plane.node.rules.confirm || floor.number < place.position {
                cursor.floor = floor;
                return Ok(Applied::Next(cursor));
            }
            plane.node.metrics.log.left_behind.inc();
            recover::load(plane, &mut cursor).await?;
            return Ok(Applied::Unknown);
        }
        follow::follow(plane, &mut cursor).await?;
    }
    match cursor.applied(place.position, &place.id) {
        // Without reading back, what the store called another's is taken for that.
        Some(true) if taken == Taken::Ours || plane.node.rules.read_back => Ok(Applied::Already),
        Some(_) => Ok(Applied::Others),
        // The cursor was loaded anew since: what can be told from its retry is looked up in what was loaded.
        None => Ok(Applied::Unknown),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{PlaneError, written_at};

    const DAY: i64 = 86_400_000_000;
    const REST: Duration = Duration::from_secs(400 * 86_400);

    #[test]
    fn the_time_of_objects_never_goes_back_and_never_leaps_by_years() {
        let written = |now, before| written_at(now, before, REST).map_err(|e| e.to_string());
        assert_eq!(written(20_000 * DAY, 0), Ok(20_000 * DAY), "the first");
        assert_eq!(written(20_400 * DAY, 20_000 * DAY), Ok(20_400 * DAY));
        assert_eq!(written(19_000 * DAY, 20_000 * DAY), Ok(20_000 * DAY));
        let refused = written_at(20_401 * DAY, 20_000 * DAY, REST).unwrap_err();
        assert!(matches!(refused, PlaneError::Unavailable { .. }), "{refused}");
        assert!(refused.to_string().contains("2025-11-09") && refused.to_string().contains("2024-10-04"), "{refused}");
    }
}
