//! Small segments of the ledger become larger ones, as the log decides.
//!
//! A mark in the log says which neighbours become one. The file that covers them is made like a segment is; its parts go when it is
//! there, and no query can still be reading them. A crash in between leaves both: the next start finds the wider one and deletes
//! what it covers (`ledger_load`).

use std::sync::Arc;
use std::time::Duration;

use object_store::{Error, ObjectStoreExt};
use tokio::time::Instant;

use super::ledger::segment_path;
use super::org::Org;
use super::press::{PATIENCE, Press, create, delete, get};
use super::segments::Due;
use super::{Plane, PlaneError, Readiness, replica};
use crate::audit::segment::{self, SegmentName, SegmentWriter};
use crate::storage::StorageError;

/// How many neighbouring segments of a size become one.
const FAN_IN: usize = 32;
/// The most entries of a segment that is merged out of others.
const MERGED_ENTRIES: u64 = 1 << 20;

/// Which neighbours are to become one: wherever [`FAN_IN`] or more in a row are of at most the same size class, the
/// classes being powers of [`FAN_IN`]. So an entry is written again about four times on its way to a segment of a million.
pub(super) fn merges(runs: &[Vec<SegmentName>]) -> Vec<SegmentName> {
    let class = |name: &SegmentName| name.entries().ilog(FAN_IN as u64);
    let mut found = Vec::new();
    for run in runs {
        for most in 0..MERGED_ENTRIES.ilog(FAN_IN as u64) {
            let small = run.chunk_by(|a, b| (class(a) <= most) == (class(b) <= most));
            let due = small.filter(|group| group.len() >= FAN_IN && group.iter().all(|name| class(name) <= most));
            let due: Vec<_> = due.filter_map(fitting).collect();
            if !due.is_empty() {
                found.extend(due);
                break;
            }
        }
    }
    found
}

/// As many of the first of them as may be one segment.
fn fitting(group: &[SegmentName]) -> Option<SegmentName> {
    let first = group.first()?.first;
    let last = group.iter().map(|name| name.last).take_while(|last| last - first < MERGED_ENTRIES).last()?;
    (group.first()?.last < last).then_some(SegmentName { first, last })
}

/// Makes one segment out of its parts, which are then to be deleted.
pub(super) async fn merge(plane: &Plane, org: &Org, press: &mut Press) -> Result<(), PlaneError> {
    loop {
        let next = org.ledger().next_merge();
        let Some(Due { name, position, standing, duty, from: parts }) = next else { return Ok(()) };
        let path = segment_path(&org.name, name);
        let size = if duty.ours || duty.since.elapsed() >= PATIENCE {
            let (schema, origin) = (Arc::clone(org.ledger().schema()), org.ledger().origin().to_owned());
            let mut writer = SegmentWriter::new(&schema, &origin, position, &standing)?;
            for part in &parts {
                let path = segment_path(&org.name, *part);
                let bytes = get(plane, &path).await?;
                let Some(bytes) = bytes else {
                    // Another node has made it already, and deleted its parts.
                    return adopt(plane, org, name).await;
                };
                let part = *part;
                let copy =
                    move || segment::read(path.as_ref(), part, bytes, |batch| writer.write(&batch)).map(|_| writer);
                let copied = tokio::task::spawn_blocking(copy).await;
                writer = copied.map_err(|e| PlaneError::Internal(e.to_string()))??;
            }
            let finished = tokio::task::spawn_blocking(move || writer.finish()).await;
            let bytes = finished.map_err(|e| PlaneError::Internal(e.to_string()))??;
            create(plane, org, name, bytes).await?
        } else {
            match plane.store.objects().head(&path).await {
                Ok(found) => found.size,
                Err(Error::NotFound { .. }) => return Ok(()),
                Err(e) => return Err(StorageError::failed("look for", &path, e).into()),
            }
        };
        let parts = org.ledger_mut().store(name, size);
        press.merged.extend(parts.into_iter().map(|part| (Instant::now(), part)));
    }
}

async fn adopt(plane: &Plane, org: &Org, name: SegmentName) -> Result<(), PlaneError> {
    let path = segment_path(&org.name, name);
    match plane.store.objects().head(&path).await {
        Ok(found) => {
            org.ledger_mut().store(name, found.size);
            Ok(())
        }
        Err(Error::NotFound { .. }) => {
            // It may have been pruned by what the log has got since.
            replica::catch_up(plane).await?;
            if !org.ledger().has(name) {
                return Ok(());
            }
            let e = StorageError::damaged(&path, "neither it nor all of the segments that it is made of are there");
            org.stop(e.to_string());
            Err(PlaneError::OrgStopped { org: org.name.to_string(), reason: e.to_string() })
        }
        Err(e) => Err(StorageError::failed("look for", &path, e).into()),
    }
}

/// Deletes the parts of merged segments, once no query that began before can still be reading them: when the process stops,
/// all queries have ended. What a crash leaves of them goes at the next start.
pub(super) async fn remove_merged(plane: &Plane, org: &Org, press: &mut Press) -> Result<(), PlaneError> {
    let draining = plane.readiness() == Readiness::Draining;
    let patience = if draining { Duration::ZERO } else { plane.settings.query_time };
    while let Some((_, part)) = press.merged.front().filter(|(since, _)| since.elapsed() >= patience) {
        delete(plane, &segment_path(&org.name, *part)).await?;
        press.merged.pop_front();
    }
    Ok(())
}
