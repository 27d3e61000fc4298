//! Group commit: the batches of a short window become one WAL object, and are acknowledged when it is durable.
//!
//! One task commits for the process. The window is counted from the arrival of a group's first batch, so while one
//! group is being written the next gathers, and goes out at once if its window is over by then.
//!
//! A commit is: read the log to its end; drop the batches whose key the log holds already (they are acknowledged as
//! duplicates); create the next object; apply; acknowledge. If another node took the number, all that again. If the
//! store answers with an error the object may be there or come to be there, so the same bytes are created again under
//! the same number until the store says won or lost, and a loss to oneself is a win.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arrow::compute::concat_batches;
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until};

use super::org::{Change, Org, Rows};
use super::replica::{self, Link};
use super::{Ack, Admission, Plane, PlaneError, recovery};
use crate::ingest::IdempotencyKey;
use crate::model::OrgName;
use crate::rollup::Digest;
use crate::storage::wal::{Created, Front, Marks, Object, ObjectId, Section, SectionKind, Slot};

/// A group is closed at this many bytes of samples, however short its window was.
const GROUP_BYTES: usize = 32 << 20;
/// A group is closed at this many batches.
const GROUP_BATCHES: usize = 2048;
/// How long a group is tried before its senders are told to come again.
const GIVE_UP: Duration = Duration::from_secs(20);
/// The pause after the store's first error; it doubles up to a second.
const PAUSE: Duration = Duration::from_millis(10);

/// A batch that waits to be committed.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) org: Arc<Org>,
    pub(super) batch: RecordBatch,
    /// What the batch adds to the totals; none for events.
    pub(super) digest: Option<Digest>,
    /// Its section, if it is large enough to be one of its own.
    pub(super) section: Option<Section>,
    pub(super) key: Option<IdempotencyKey>,
    pub(super) admission: Admission,
    pub(super) reply: oneshot::Sender<Result<Ack, PlaneError>>,
    pub(super) arrived: Instant,
}

impl Pending {
    fn kind(&self) -> SectionKind {
        if self.digest.is_some() { SectionKind::Samples } else { SectionKind::Events }
    }

    fn answer(self, outcome: Result<(), PlaneError>, duplicate: bool) {
        let ack = outcome.map(|()| Ack { accepted: self.batch.num_rows(), duplicate });
        // Whoever asked may have gone away; what was committed stays committed.
        let _ = self.reply.send(ack);
        drop(self.admission);
    }
}

/// What the committer is asked to do.
#[derive(Debug)]
pub(super) enum Message {
    /// Commit a batch.
    Commit(Box<Pending>),
    /// Commit the marks that wait, with whatever else there is.
    Mark,
    /// Say when everything asked before is done.
    Settle(oneshot::Sender<()>),
}

/// Commits until the plane is gone.
pub(super) async fn run(plane: Arc<Plane>, mut queue: mpsc::Receiver<Message>) {
    while let Some(message) = queue.recv().await {
        let (group, settle) = match message {
            Message::Commit(first) => gather(&mut queue, *first, plane.settings.commit_window).await,
            Message::Mark => (Vec::new(), None),
            Message::Settle(reply) => {
                settled(Some(reply));
                continue;
            }
        };
        // A task of its own: should a fault of the program end it, its senders learn that their batches are not known to
        // be stored, and the next group is committed all the same.
        let plane = Arc::clone(&plane);
        if let Err(e) = tokio::spawn(async move { commit(&plane, group).await }).await {
            tracing::error!(error = %e, "a group commit ended by a fault of the program");
        }
        settled(settle);
    }
}

fn settled(reply: Option<oneshot::Sender<()>>) {
    if let Some(reply) = reply {
        // Whoever asked may have stopped waiting.
        let _ = reply.send(());
    }
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
            // Marks go with any group.
            Some(Message::Mark) => {}
            Some(Message::Settle(reply)) => return (group, Some(reply)),
            None => break,
        }
    }
    (group, None)
}

async fn commit(plane: &Plane, mut group: Vec<Pending>) {
    let began = Instant::now();
    let outcome = loop {
        // The place is taken before the keys are looked at. Should the log move on meanwhile, and bring one of the keys,
        // the place is no longer free.
        let place = match place(plane).await {
            Ok(place) => place,
            Err(e) => break Err(e),
        };
        let (fresh, duplicates, refused) = by_key(plane, group);
        group = fresh;
        duplicates.into_iter().for_each(|pending| pending.answer(Ok(()), true));
        refused.into_iter().for_each(|(pending, e)| pending.answer(Err(e), false));
        let marks = plane.marks();
        if group.is_empty() && marks.is_empty() {
            return;
        }
        match attempt(plane, &group, marks, place, began).await {
            Ok(Some(written)) => {
                plane.marked(&written.marks);
                break apply(plane, written).await;
            }
            Ok(None) => plane.metrics.wal.conflicts.inc(),
            Err(e) => break Err(e),
        }
        if began.elapsed() > GIVE_UP {
            break Err(PlaneError::busy("other nodes write to the log so fast that this one finds no place in it"));
        }
    };
    match &outcome {
        Ok(()) => {
            plane.metrics.wal.commit_seconds.observe(began.elapsed().as_secs_f64());
            plane.metrics.wal.group_batches.observe(group.len() as f64);
        }
        Err(e) => {
            plane.metrics.wal.failures.inc();
            tracing::warn!(error = %e, batches = group.len(), "a group was not committed");
        }
    }
    let mut seen = std::collections::HashSet::new();
    for pending in group {
        let again = pending.key.is_some_and(|key| !seen.insert((pending.org.name.clone(), key)));
        pending.answer(outcome.clone(), again);
    }
}

/// Parts a group into what is new, what the log holds already, and what an org has no room to remember.
fn by_key(plane: &Plane, group: Vec<Pending>) -> (Vec<Pending>, Vec<Pending>, Vec<(Pending, PlaneError)>) {
    let (mut fresh, mut duplicates, mut refused) = (Vec::with_capacity(group.len()), Vec::new(), Vec::new());
    for pending in group {
        if let Err(e) = pending.org.check_sound() {
            refused.push((pending, e));
            continue;
        }
        let Some(key) = pending.key else {
            fresh.push(pending);
            continue;
        };
        let state = pending.org.read();
        let (known, full) = (state.keys.contains(&key), state.keys.len() >= plane.settings.max_keys);
        drop(state);
        if known {
            duplicates.push(pending);
        } else if full {
            let reason = format!(
                "{} idempotency keys of the last 24 hours are remembered, which is the limit (limits.idempotency_keys)",
                plane.settings.max_keys
            );
            refused.push((pending, PlaneError::Busy { reason, retry_after: Duration::from_secs(60) }));
        } else {
            fresh.push(pending);
        }
    }
    (fresh, duplicates, refused)
}

/// What a group changes, org by org.
type Changes = Vec<(Arc<Org>, Change)>;

/// What a group became in the log.
struct Written {
    seq: u64,
    written_at: i64,
    id: ObjectId,
    floor: u64,
    marks: Marks,
    changes: Changes,
}

/// The end of the log, as far as it has been applied.
struct Place {
    seq: u64,
    previous: Link,
    floor: u64,
}

/// Reads the log to its end, and says where that is.
async fn place(plane: &Plane) -> Result<Place, PlaneError> {
    replica::catch_up(plane).await?;
    let cursor = plane.replica.cursor.lock().await;
    let floor = cursor.floor.max(plane.flushed.load(Ordering::Acquire));
    Ok(Place { seq: cursor.next, previous: cursor.previous.clone(), floor })
}

/// Tries to make the group the object at its place in the log. `None`: another node was faster.
async fn attempt(
    plane: &Plane,
    group: &[Pending],
    marks: Marks,
    place: Place,
    began: Instant,
) -> Result<Option<Written>, PlaneError> {
    let Place { seq, previous, floor } = place;
    let (sections, changes) = put_together(plane, group)?;
    let written_at = plane.now();
    let front = Front { seq, writer: plane.writer, written_at, previous: previous.id(), floor, marks: marks.clone() };
    let (id, pieces) = Object::encode(front, &sections)?;
    let bytes: usize = pieces.iter().map(Bytes::len).sum();
    if !create(plane, seq, &id, pieces, began).await? {
        return Ok(None);
    }
    // A number that trimming has freed can be created by a node that slept through it. The objects before the newest
    // ones are never trimmed, so a missing one tells; who may have written into the past must not acknowledge.
    if !plane.log.exists(seq - 1).await? && recovery::is_trimmed(&plane.log, seq).await? {
        return Err(PlaneError::left_behind());
    }
    plane.metrics.wal.objects.inc();
    plane.metrics.wal.bytes.inc_by(bytes as u64);
    Ok(Some(Written { seq, written_at, id, floor, marks, changes }))
}

/// Creates the object; an error of the store is tried again. False if another object has the number.
async fn create(
    plane: &Plane,
    seq: u64,
    id: &ObjectId,
    pieces: Vec<Bytes>,
    began: Instant,
) -> Result<bool, PlaneError> {
    let mut pause = PAUSE;
    let mut doubtful = false;
    loop {
        match plane.log.create(seq, pieces.clone()).await {
            Ok(Created::Won) => return Ok(true),
            Ok(Created::Lost) if !doubtful => return Ok(false),
            Ok(Created::Lost) => {
                let found = plane.log.read(seq).await?;
                return Ok(matches!(found, Slot::Whole(object) if object.id == *id));
            }
            Err(e) if began.elapsed() > GIVE_UP => return Err(e.into()),
            Err(e) => {
                tracing::warn!(error = %e, "the store did not take a WAL object; trying again");
                doubtful = true;
                sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(1));
            }
        }
    }
}

/// The sections of an object, and what applying it will change, org by org. Small batches of one org become one.
fn put_together(plane: &Plane, group: &[Pending]) -> Result<(Vec<Section>, Changes), PlaneError> {
    let mut small: Vec<Vec<&Pending>> = Vec::new();
    let mut place: HashMap<(&OrgName, SectionKind), usize> = HashMap::new();
    let (mut sections, mut changes) = (Vec::new(), Vec::new());
    // A key that comes twice in one group is stored with the first batch that brings it; the second is its duplicate.
    let mut seen = std::collections::HashSet::new();
    for pending in group {
        if pending.key.is_some_and(|key| !seen.insert((&pending.org.name, key))) {
            continue;
        }
        match &pending.section {
            Some(section) => {
                sections.push(section.clone());
                changes.push((Arc::clone(&pending.org), change(vec![pending], pending.batch.clone())));
            }
            None => {
                let at = *place.entry((&pending.org.name, pending.kind())).or_insert_with(|| {
                    small.push(Vec::new());
                    small.len() - 1
                });
                if let Some(batches) = small.get_mut(at) {
                    batches.push(pending);
                }
            }
        }
    }
    for batches in small {
        let Some(first) = batches.first() else { continue };
        let (org, kind) = (Arc::clone(&first.org), first.kind());
        let joined = concat_batches(plane.schema_of(kind), batches.iter().map(|pending| &pending.batch))
            .map_err(|e| PlaneError::Internal(e.to_string()))?;
        let change = change(batches, joined);
        let keys = change.keys.iter().map(ToString::to_string).collect();
        sections.push(Section::new(org.name.clone(), kind, keys, &change.batch)?);
        changes.push((org, change));
    }
    Ok((sections, changes))
}

fn change(pending: Vec<&Pending>, batch: RecordBatch) -> Change {
    let digests: Vec<_> = pending.iter().filter_map(|pending| pending.digest.clone()).collect();
    Change {
        keys: pending.iter().filter_map(|pending| pending.key).collect(),
        batch,
        rows: if digests.is_empty() { Rows::Events } else { Rows::Samples(digests) },
    }
}

/// Applies what was written, unless a reader of this process has read it back and applied it already.
async fn apply(plane: &Plane, written: Written) -> Result<(), PlaneError> {
    let mut cursor = plane.replica.cursor.lock().await;
    if cursor.next != written.seq {
        return Ok(());
    }
    replica::apply_marks(plane, written.seq, &written.marks, true).await?;
    for (org, change) in written.changes {
        replica::apply_change(plane, &org, written.seq, written.written_at, change)?;
    }
    replica::advance(plane, &mut cursor, written.seq, written.id, written.floor);
    Ok(())
}
