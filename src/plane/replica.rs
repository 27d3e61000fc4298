//! Following the log: reading the objects that other nodes wrote, and applying each object once, in order.
//!
//! The cursor knows the next number. A reader and the committer may both come upon an object (a reader may even read
//! back what the committer of its own process has just written); whoever holds the cursor's lock applies it, and the
//! other finds the cursor past it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};

use tokio::sync::Mutex;
use uuid::Uuid;

use super::org::{Change, Org, Rows};
use super::{Plane, PlaneError, recovery};
use crate::audit::segment::SegmentName;
use crate::ingest::IdempotencyKey;
use crate::model::OrgName;
use crate::rollup::Digest;
use crate::storage::StorageError;
use crate::storage::wal::{Marks, Object, ObjectId, SectionKind, Slot};

/// What the object before the next one must have been.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) enum Link {
    /// It is trimmed, and nobody can say.
    #[default]
    Unknown,
    /// The beginning of the log, or a torn object that is passed over.
    Void,
    /// That object.
    Is(ObjectId),
}

impl Link {
    pub(super) fn id(&self) -> Option<ObjectId> {
        match self {
            Self::Is(id) => Some(id.clone()),
            Self::Unknown | Self::Void => None,
        }
    }

    fn agrees(&self, previous: Option<&ObjectId>) -> bool {
        match self {
            Self::Unknown => true,
            Self::Void => previous.is_none(),
            Self::Is(id) => previous == Some(id),
        }
    }
}

/// Where this node stands in the log. Once recovered it has always applied the object before the next one: so if that
/// one is gone, trimming has passed this node by.
#[derive(Debug, Default)]
pub(super) struct Cursor {
    /// The number to read or write next.
    pub(super) next: u64,
    pub(super) previous: Link,
    /// The greatest floor that an object announced: what may be deleted.
    pub(super) floor: u64,
    /// What this process has deleted up to.
    pub(super) trimmed: u64,
}

/// See the module's doc.
#[derive(Debug, Default)]
pub(super) struct Replica {
    pub(super) cursor: Mutex<Cursor>,
    /// Rounds of catching up that have begun, and the greatest of them that has ended well. A reader that waited for
    /// the lock while a round began after its own arrival need not read the log again.
    begun: AtomicU64,
    ended: AtomicU64,
}

/// Applies everything that is in the log now.
pub(super) async fn catch_up(plane: &Plane) -> Result<(), PlaneError> {
    let replica = &plane.replica;
    let arrived = replica.begun.load(Ordering::Acquire);
    let mut cursor = replica.cursor.lock().await;
    if replica.ended.load(Ordering::Acquire) > arrived {
        return Ok(());
    }
    let round = replica.begun.fetch_add(1, Ordering::AcqRel) + 1;
    let began = tokio::time::Instant::now();
    follow(plane, &mut cursor).await?;
    plane.metrics.catch_up.seconds.observe(began.elapsed().as_secs_f64());
    replica.ended.store(round, Ordering::Release);
    Ok(())
}

/// Applies what the log holds from the cursor on.
pub(super) async fn follow(plane: &Plane, cursor: &mut Cursor) -> Result<(), PlaneError> {
    loop {
        match plane.log.read(cursor.next).await? {
            Slot::Whole(object) => {
                plane.metrics.catch_up.objects.inc();
                apply_object(plane, cursor, *object).await?;
            }
            Slot::Torn => pass_over(cursor),
            // The object before is always kept. Where it is gone, trimming has passed this node by.
            Slot::Absent if !plane.log.exists(cursor.next - 1).await? => {
                tracing::warn!(position = cursor.next, "left behind by trimming; starting again from the snapshots");
                Box::pin(recovery::load(plane, cursor)).await?;
            }
            Slot::Absent => return Ok(()),
        }
    }
}

/// Goes on after a torn object. It was never acknowledged. Should it yet have been whole once, the object after it
/// names it, and applying that one fails.
pub(super) fn pass_over(cursor: &mut Cursor) {
    tracing::warn!(position = cursor.next, "a torn WAL object is passed over; nothing in it was acknowledged");
    cursor.next += 1;
    cursor.previous = Link::Void;
}

/// A WAL object read and pre-aggregated.
pub(super) struct Decoded {
    seq: u64,
    id: ObjectId,
    written_at: i64,
    writer: Uuid,
    previous: Option<ObjectId>,
    floor: u64,
    marks: Marks,
    sections: Vec<(OrgName, Result<Change, StorageError>)>,
}

impl Decoded {
    /// Reads an object's sections and aggregates them: the expensive part, which needs nothing but the object.
    pub(super) fn of(plane: &Plane, object: &Object) -> Self {
        let sections = object.sections().map(|(number, section)| {
            let change = || {
                let batch = object.read(number, plane.schema_of(section.kind))?;
                let damaged = |reason: String| StorageError::damaged(format!("section {number}"), reason);
                let rows = match section.kind {
                    SectionKind::Samples => {
                        Rows::Samples(vec![Digest::of(&batch).map_err(|e| damaged(e.to_string()))?])
                    }
                    SectionKind::Events => Rows::Events,
                };
                let keys = section.keys.iter().map(|key| key.parse::<IdempotencyKey>());
                let keys = keys.collect::<Result<_, _>>().map_err(|e| damaged(e.to_string()))?;
                Ok(Change { keys, batch, rows })
            };
            (section.org.clone(), change())
        });
        Self {
            seq: object.header.seq,
            id: object.id.clone(),
            written_at: object.header.written_at,
            writer: object.header.writer,
            previous: object.header.previous.clone(),
            floor: object.header.floor,
            marks: object.header.marks.clone(),
            sections: sections.collect(),
        }
    }
}

async fn apply_object(plane: &Plane, cursor: &mut Cursor, object: Object) -> Result<(), PlaneError> {
    apply_decoded(plane, cursor, Decoded::of(plane, &object)).await
}

/// Applies the next object of the log.
pub(super) async fn apply_decoded(plane: &Plane, cursor: &mut Cursor, decoded: Decoded) -> Result<(), PlaneError> {
    if !cursor.previous.agrees(decoded.previous.as_ref()) {
        let reason = format!(
            "it was written after {:?}, but this store holds {:?} before it",
            decoded.previous, cursor.previous
        );
        return Err(StorageError::damaged(crate::storage::wal::Log::name(decoded.seq), reason).into());
    }
    apply_marks(plane, decoded.seq, &decoded.marks, decoded.writer == plane.writer).await?;
    for (name, change) in decoded.sections {
        let org = known_org(plane, &name).await?;
        match change {
            Ok(change) => apply_change(plane, &org, decoded.seq, decoded.written_at, change)?,
            Err(e) => org.stop(e.to_string()),
        }
    }
    if decoded.writer != plane.writer {
        tracing::trace!(position = decoded.seq, writer = %decoded.writer, "applied another node's object");
    }
    advance(plane, cursor, decoded.seq, decoded.id, decoded.floor);
    Ok(())
}

/// Applies what an object decides about the ledgers, which comes before what it brings them.
pub(super) async fn apply_marks(plane: &Plane, seq: u64, marks: &Marks, ours: bool) -> Result<(), PlaneError> {
    for name in &marks.cuts {
        known_org(plane, name).await?.ledger_mut().cut(seq, ours);
    }
    for merge in &marks.merges {
        let name = SegmentName { first: merge.first, last: merge.last };
        known_org(plane, &merge.org).await?.ledger_mut().merge(seq, name, ours);
    }
    Ok(())
}

/// Applies one org's part of an object. A stopped org stays where it stopped.
pub(super) fn apply_change(
    plane: &Plane,
    org: &Org,
    seq: u64,
    written_at: i64,
    change: Change,
) -> Result<(), PlaneError> {
    if org.is_stopped() {
        return Ok(());
    }
    let Change { keys, batch, rows } = change;
    match rows {
        Rows::Samples(digests) => {
            let mut state = org.write();
            let applied = state.apply(seq, plane.now(), batch, &digests);
            applied.map_err(|e| PlaneError::Internal(e.to_string()))?;
            state.remember(seq, written_at, &keys);
        }
        Rows::Events => {
            org.write().remember(seq, written_at, &keys);
            org.ledger_mut().apply(seq, &batch).map_err(|e| PlaneError::Internal(e.to_string()))?;
        }
    }
    Ok(())
}

pub(super) fn advance(plane: &Plane, cursor: &mut Cursor, seq: u64, id: ObjectId, floor: u64) {
    cursor.next = seq + 1;
    cursor.previous = Link::Is(id);
    cursor.floor = cursor.floor.max(floor);
    plane.metrics.wal.position.set(i64::try_from(seq).unwrap_or(i64::MAX));
    plane.count_live();
}

/// The org of a section. One that is not in this node's configuration is followed all the same, unseen, so that its
/// samples reach its tables.
async fn known_org(plane: &Plane, name: &OrgName) -> Result<Arc<Org>, PlaneError> {
    let known = plane.orgs.read().unwrap_or_else(PoisonError::into_inner).get(name).map(Arc::clone);
    match known {
        Some(org) => Ok(org),
        None => {
            tracing::warn!(org = %name, "the log has rows of an org that is not configured; they are kept, not served");
            let org = Arc::new(recovery::load_org(plane, name).await?);
            plane.orgs.write().unwrap_or_else(PoisonError::into_inner).insert(name.clone(), Arc::clone(&org));
            Ok(org)
        }
    }
}
