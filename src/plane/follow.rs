//! Following the log: reading the objects that other nodes wrote, and applying each object once, in order.
//!
//! What is read stands on nothing until a floor that is read afterwards confirms it (rule L3): objects are read up to
//! the log's end or a bound, then the floor, and only then anything is applied. So an org's state never has what is not
//! confirmed, and a read that fails on the way changes nothing.
//!
//! The cursor knows the next number. A reader and the committer may both come upon an object (a reader may even read
//! back what the committer of its own process has just written); the holder of the cursor's lock applies it, and the
//! other finds the cursor past it.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::sync::Mutex;

use super::{Plane, PlaneError, recover};
use crate::log::{Floor, Object, ObjectId};
use crate::model::OrgName;
use crate::state::Org;
use crate::state::change::{Change, Place};
use crate::storage::StorageError;

/// Objects that are read before the floor is asked, at most, and bytes of them.
const READ_OBJECTS: usize = 64;
const READ_BYTES: usize = 32 << 20;
/// The ids of so many applied objects are remembered, so that the committer knows its own.
const REMEMBERED_IDS: usize = 1_024;

/// Where this node stands in the log.
#[derive(Debug, Default)]
pub(super) struct Cursor {
    /// The number to read or write next; 0 before the log was loaded.
    pub(super) next: u64,
    /// The id of the object before; none at the beginning.
    pub(super) previous: Option<ObjectId>,
    /// When the object before was written, µs.
    pub(super) time: i64,
    /// The newest floor that was read.
    pub(super) floor: Floor,
    applied: VecDeque<(u64, ObjectId)>,
}

impl Cursor {
    /// A cursor after an object.
    pub(super) fn at(next: u64, previous: Option<ObjectId>, time: i64, floor: Floor) -> Self {
        Self { next, previous, time, floor, applied: VecDeque::new() }
    }

    /// Whether number `seq` was applied as the object of this id; none if that is not known any more.
    pub(super) fn applied(&self, seq: u64, id: &ObjectId) -> Option<bool> {
        self.applied.iter().find(|(number, _)| *number == seq).map(|(_, applied)| applied == id)
    }

    fn advance(&mut self, place: &Place) {
        self.next = place.position + 1;
        self.previous = Some(place.id.clone());
        self.time = self.time.max(place.time);
        self.applied.push_back((place.position, place.id.clone()));
        if self.applied.len() > REMEMBERED_IDS {
            self.applied.pop_front();
        }
    }
}

/// This node's place in the log, and waiting for it to be followed.
#[derive(Debug, Default)]
pub(super) struct Follower {
    pub(super) cursor: Mutex<Cursor>,
    /// Rounds of catching up that have begun, and the greatest of them that has ended well. A reader that waited for
    /// the lock while a round began after its own arrival need not read the log again.
    begun: AtomicU64,
    ended: AtomicU64,
    outdated: AtomicBool,
}

impl Follower {
    /// Whether the log has what this node must not pass over and cannot read: an object of a newer version, or under a
    /// key that it lacks. Then it takes no part any more, neither flushes nor trims (rule L11).
    pub(super) fn is_outdated(&self) -> bool {
        self.outdated.load(Ordering::Acquire)
    }
}

/// Applies everything that is in the log now.
pub(super) async fn catch_up(plane: &Plane) -> Result<(), PlaneError> {
    let follower = &plane.follower;
    let arrived = follower.begun.load(Ordering::Acquire);
    let mut cursor = follower.cursor.lock().await;
    if follower.ended.load(Ordering::Acquire) > arrived {
        return Ok(());
    }
    let round = follower.begun.fetch_add(1, Ordering::AcqRel) + 1;
    let began = tokio::time::Instant::now();
    let followed = follow(plane, &mut cursor).await;
    follower.outdated.store(matches!(followed, Err(PlaneError::Misconfigured(_))), Ordering::Release);
    followed?;
    plane.node.metrics.catch_up.seconds.observe(began.elapsed().as_secs_f64());
    follower.ended.store(round, Ordering::Release);
    Ok(())
}

/// Why reading stopped.
enum Stopped {
    /// There is no next object.
    End,
    /// There may be more.
    Bound,
    /// What is there does not fit.
    Unfit(StorageError),
}

/// Applies what the log holds from the cursor on.
pub(super) async fn follow(plane: &Plane, cursor: &mut Cursor) -> Result<(), PlaneError> {
    let mut findings = recover::Findings::default();
    loop {
        let first = cursor.next;
        let (objects, stopped) = read(plane, cursor).await?;
        let floor = plane.node.log.floor().await?;
        if plane.node.rules.confirm && floor.number >= first {
            tracing::warn!(position = first, floor = floor.number, "left behind by trimming; loading again");
            plane.node.metrics.log.left_behind.inc();
            recover::load(plane, cursor).await?;
            continue;
        }
        cursor.floor = floor;
        for object in objects {
            apply_object(plane, cursor, &object);
        }
        match stopped {
            Stopped::End => return Ok(()),
            Stopped::Bound => {}
            Stopped::Unfit(e) => {
                tracing::warn!(error = %e, "the log does not fit; loading it again");
                findings.note(e)?;
                recover::load(plane, cursor).await?;
            }
        }
    }
}

/// Reads objects from the cursor on, each of which names the one before.
async fn read(plane: &Plane, cursor: &Cursor) -> Result<(Vec<Object>, Stopped), StorageError> {
    let (mut objects, mut bytes) = (Vec::new(), 0);
    let (mut next, mut previous) = (cursor.next, cursor.previous.clone());
    loop {
        if objects.len() >= READ_OBJECTS || bytes >= READ_BYTES {
            return Ok((objects, Stopped::Bound));
        }
        let object = match plane.node.log.read(next).await {
            Ok(Some(object)) => object,
            Ok(None) => return Ok((objects, Stopped::End)),
            Err(e) if e.is_damage() => return Ok((objects, Stopped::Unfit(e))),
            Err(e) => return Err(e),
        };
        if plane.node.rules.chain && object.header.previous != previous {
            return Ok((objects, Stopped::Unfit(unchained(&object, previous.as_ref()))));
        }
        previous = Some(object.id.clone());
        bytes += object.len();
        next += 1;
        objects.push(object);
    }
}

/// The finding that an object does not name the one before it.
pub(super) fn unchained(object: &Object, previous: Option<&ObjectId>) -> StorageError {
    let text = |id: Option<&ObjectId>| id.map_or_else(|| "none".to_owned(), ToString::to_string);
    let named = text(object.header.previous.as_ref());
    let reason = format!("it names {named} as the object before it, and that is {}", text(previous));
    StorageError::damaged(crate::log::name(object.header.seq), reason)
}

/// Applies the next object, which is confirmed.
fn apply_object(plane: &Plane, cursor: &mut Cursor, object: &Object) {
    let mut names: Vec<&OrgName> = object.header.sections.iter().map(|section| &section.org).collect();
    names.sort_unstable();
    names.dedup();
    // All that can fail comes first: decoding what concerns the orgs that are loaded.
    let changes = names.into_iter().map(|name| {
        let org = plane.registry.loaded(name).filter(|org| !org.health.is_stopped());
        let change = org.map(|org| (Change::decode(&plane.node, object, name), org));
        let previous = object.header.sections.iter().find(|section| section.org == *name).map_or(0, |s| s.previous);
        (name.clone(), previous, change)
    });
    let changes: Vec<_> = changes.collect();
    let place = Place::of(&plane.node, object);
    let mut loaded = Vec::new();
    for (name, previous, change) in changes {
        let slot = plane.registry.slot(&name);
        let continues = slot.push(place.position, previous);
        if object.header.sections.iter().any(|section| section.org == name && section.decisions.repaired) {
            tracing::warn!(org = %name, position = place.position, "the org was repaired; loading it again");
            slot.repaired();
            continue;
        }
        match change {
            None => {}
            Some((_, org)) if plane.node.rules.chain && !continues => {
                org.health.stop(format!(
                    "{}: its section of org {name} was written after one at {previous}, which is not the last one here",
                    crate::log::name(place.position)
                ));
            }
            Some((Ok(change), org)) => loaded.push((org, change)),
            Some((Err(e), org)) => org.health.stop(e.to_string()),
        }
    }
    plane.node.metrics.catch_up.objects.inc();
    apply(plane, cursor, &place, loaded);
}

/// Applies what an object brings to the orgs that are loaded, and moves the cursor. It cannot fail.
pub(super) fn apply(plane: &Plane, cursor: &mut Cursor, place: &Place, changes: Vec<(Arc<Org>, Change)>) {
    let mut brought = 0;
    for (org, change) in changes {
        let before = org.live_bytes();
        let applied = catch_unwind(AssertUnwindSafe(|| {
            let (mut state, mut ledger) = (org.state.write(), org.ledger.write());
            match change.prepare(&ledger) {
                Ok(prepared) => prepared.apply(place, &mut state, &mut ledger, plane.node.rules.once),
                Err(e) => org.health.stop(format!("{}: {e}", crate::log::name(place.position))),
            }
        }));
        if applied.is_err() {
            tracing::error!(org = %org.name, position = place.position, "applying panicked; the org is loaded again");
            plane.registry.slot(&org.name).unload();
        }
        if org.state.read().deleted {
            // Loading it again finds nothing that is to be read of it, and says so on the store.
            plane.registry.slot(&org.name).unload();
        }
        brought += org.live_bytes().saturating_sub(before);
    }
    cursor.advance(place);
    plane.node.metrics.wal.position.set(i64::try_from(place.position).unwrap_or(i64::MAX));
    // All orgs are counted anew after each flush and each turn of the publisher.
    plane.budget.add_live(brought);
}
