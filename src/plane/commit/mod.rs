//! Group commit: the batches of a short window become one log object, and are acknowledged when it is durable and
//! confirmed.
//!
//! One task commits for the process. The window is counted from the arrival of a group's first batch, so while one
//! group is being written the next gathers, and goes out at once if its window has ended (as in Pebble's commit
//! pipeline).
//!
//! A commit is: drop the batches that the log holds already; encode the rest ([`encode`]); create the object after the
//! last one applied, without asking first; decide its fate; confirm it by the floor; apply; acknowledge. Clean success
//! is a win. Any other answer is decided by reading back (rule L1): ours, won; another's, lost once it is confirmed,
//! then all that again at the new end; absent, the same bytes at the same number again. While the fate is open nothing
//! joins or leaves the group. A group whose fate stays unknown is answered 503 and not tried again: its object may yet
//! land, and is then applied like any other.

mod encode;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::AsArray;
use arrow::record_batch::RecordBatch;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until};

use encode::Written;
pub(super) use encode::digest;

use super::{Ack, Admission, Plane, PlaneError, follow, recover};
use crate::ingest::{BatchId, Lane};
use crate::ledger::payload_keys::KEY_DESTROYING;
use crate::ledger::status::HOLD;
use crate::log::{Rows, SectionKind};
use crate::model::OrgName;
use crate::payload::{Epoch, KeyId};
use crate::rollup::Digest;
use crate::state::Org;
use crate::state::change::{Change, Place};
use crate::state::dedup::{Decision, Dedup};
use crate::storage::{Created, StorageError};

/// A group is closed at this many bytes of samples, however short its window was.
const GROUP_BYTES: usize = 32 << 20;
/// A group is closed at this many batches.
const GROUP_BATCHES: usize = 2048;
/// How long a group is tried before its senders are answered 503.
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
    /// The sealed payloads that the events name.
    pub(super) payloads: Option<Sealed>,
    pub(super) admission: Admission,
    pub(super) reply: oneshot::Sender<Result<Ack, PlaneError>>,
    pub(super) arrived: Instant,
}

/// Sealed payloads that are committed with the events that name them.
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

    /// Why it is not taken, as far as the log says at this moment, with those that come before it in the group.
    fn refusal(&self, org: &Org, before: &[Self]) -> Option<PlaneError> {
        if self.says(KEY_DESTROYING) {
            let (held, next) = {
                let ledger = org.ledger.read();
                (ledger.status().hold, ledger.size())
            };
            let joined = before.iter().any(|before| before.org == self.org && before.says(HOLD)).then_some(next);
            if let Some(entry) = held.or(joined) {
                return Some(PlaneError::OnHold { org: self.org.to_string(), entry });
            }
        }
        self.payloads.as_ref().and_then(|sealed| sealed.refusal(org))
    }

    /// Whether one of its events is such an action.
    fn says(&self, action: &str) -> bool {
        let actions = self.batch.column_by_name("action").and_then(|column| column.as_string_opt::<i32>());
        self.kind == SectionKind::Events
            && actions.is_some_and(|actions| actions.iter().flatten().any(|at| at == action))
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

/// Adds to a group what waits already, up to its bounds or to a [`Message::Settle`].
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
    /// It cannot be found out; the error to answer with.
    Unknown(PlaneError),
}

/// Commits a group. Returns what has to wait for its fate: a second batch of one key or lane.
async fn commit(plane: &Plane, group: Vec<Pending>) -> Vec<Pending> {
    let began = Instant::now();
    let (mut group, deferred) = one_of_each(group);
    let outcome = loop {
        let written = {
            // The state is that of the cursor's position for as long as its lock is held: what is decided and encoded
            // here is right for the number after it, and if that is taken, all of it is done again.
            let cursor = plane.follower.cursor.lock().await;
            group = decide(plane, group);
            let written = encode::encode(plane, &cursor, &group);
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
///
/// What a legal hold forbids is asked here and nowhere before, since only here it is known what stands in the log before
/// it: a hold that was acknowledged stops every destruction that is not in the log yet.
fn decide(plane: &Plane, group: Vec<Pending>) -> Vec<Pending> {
    let mut fresh: Vec<Pending> = Vec::with_capacity(group.len());
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
            Decision::Fresh => match pending.refusal(&org, &fresh) {
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

/// Whose object has a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Taken {
    /// The object that was to be created is there, durably.
    Ours,
    /// Another object is there, or trimming has passed the number.
    NotOurs,
}

/// Creates the object, and reads back until it is known whose object has the number.
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

/// Whose object lies at the number; `None` if it is absent. One that is ours is made sure to stay.
async fn read_back(plane: &Plane, written: &Written) -> Result<Option<Taken>, StorageError> {
    let log = &plane.node.log;
    match log.read(written.place.position).await {
        Ok(Some(found)) if found.id == written.place.id => {
            log.settle(written.place.position, &written.pieces).await?;
            Ok(Some(Taken::Ours))
        }
        Ok(Some(_)) => Ok(Some(Taken::NotOurs)),
        Ok(None) => Ok(None),
        // An object that cannot be read: following the log says what it is.
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
        // The cursor was loaded anew since; a retry of the batch is decided by what was loaded.
        None => Ok(Applied::Unknown),
    }
}
