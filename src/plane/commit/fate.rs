//! The fate of a log object: creating it, finding out whose object has its number, confirming it by the floor and
//! applying it (rules L1 and L3).
//!
//! A creation that did not cleanly succeed is decided by reading back. The object is applied only after a floor that
//! was read afterwards is lower than its number, under the cursor's lock. Until the fate is known nothing is answered.
//! After a crash the object is in the log or it is not; the next load applies it like any other.

use std::sync::Arc;

use tokio::sync::MutexGuard;
use tokio::time::{Instant, sleep};

use super::encode::Written;
use super::{COMMIT_TIMEOUT, FIRST_BACKOFF, LONGEST_BACKOFF};
use crate::node::PlaneError;
use crate::plane::follow::{self, Cursor};
use crate::plane::{Plane, recover};
use crate::state::Org;
use crate::state::change::{Change, Place};
use crate::storage::{Created, StorageError};

/// What became of a created object.
pub(super) enum Fate {
    /// It is in the log, durable and confirmed, and applied.
    Won,
    /// Another object has the number, and is applied.
    Lost,
    /// It cannot be found out; the error to answer with.
    Unknown(PlaneError),
}

/// Whose object has a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// The object that was to be created is there, durably.
    Ours,
    /// Another object is there, or trimming has passed the number.
    NotOurs,
}

/// Creates the object, and reads back until it is known whose object has the number.
pub(super) async fn create(plane: &Plane, written: &Written, began: Instant) -> Result<Taken, PlaneError> {
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
pub(super) async fn apply(plane: &Plane, written: Written, taken: Taken, began: Instant) -> Fate {
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
    Next(MutexGuard<'a, Cursor>),
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
