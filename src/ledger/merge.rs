//! Small segments of the ledger become larger ones, as the log decides.
//!
//! A decision in the log says which neighbours become one. The file that covers them is made like a segment is; its
//! parts go when it is there, and no query can still be reading them. A crash in between leaves both: the next load
//! finds the wider one and deletes what it covers (`load`).

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use super::publisher::{Outcome, Publisher, TAKEOVER_AFTER, create};
use super::segments::Due;
use super::{Ledger, segment_path};
use crate::audit::segment::{self, SegmentName};
use crate::node::{Node, PlaneError};
use crate::storage::StorageError;

/// How many neighbouring segments of a size become one.
const FAN_IN: usize = 32;
/// The most entries of a segment that is merged out of others.
const MERGED_ENTRIES: u64 = 1 << 20;

/// Which neighbours are to become one: wherever [`FAN_IN`] or more in a row are of at most the same size class, the
/// classes being powers of [`FAN_IN`]. So an entry is written again about four times on its way to a segment of a
/// million.
pub(crate) fn merges(runs: &[Vec<SegmentName>]) -> Vec<SegmentName> {
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
pub(crate) async fn merge(node: &Node, ledger: &Ledger, publisher: &mut Publisher) -> Result<Outcome, PlaneError> {
    loop {
        let next = ledger.read().next_merge();
        let Some(Due { name, duty, from: parts }) = next else { return Ok(Outcome::Done) };
        let path = segment_path(&ledger.org, name);
        let size = if duty.ours {
            let (schema, origin) = {
                let state = ledger.read();
                (Arc::clone(state.schema()), state.origin().to_owned())
            };
            let mut whole = Vec::with_capacity(parts.len());
            for part in &parts {
                // Another node may have made it already, and deleted its parts.
                let Some(bytes) = node.store.get(&segment_path(&ledger.org, *part)).await? else {
                    return Ok(Outcome::Reload);
                };
                whole.push((*part, bytes));
            }
            let merged = tokio::task::spawn_blocking(move || {
                let (name, last) = whole.last().cloned().unwrap_or((name, Bytes::new()));
                let end = segment::read(&name.to_string(), name, last, |_| Ok(()))?;
                Ok::<_, StorageError>((segment::merge(&schema, &origin, &whole)?, Some(end.head.last)))
            });
            let (bytes, last) = merged.await.map_err(|e| PlaneError::Internal(e.to_string()))??;
            create(node, ledger, name, bytes, last).await?
        } else {
            match node.store.head(&path).await? {
                Some(found) => found.size,
                None if duty.since.elapsed() >= TAKEOVER_AFTER => return Ok(Outcome::Reload),
                None => return Ok(Outcome::Done),
            }
        };
        let parts = ledger.write().store(name, size);
        publisher.merged.extend(parts.into_iter().map(|part| (Instant::now(), part)));
    }
}

/// Deletes the parts of merged segments, once no query that began before can still be reading them, on any node. What a
/// stop or a crash leaves of them goes after the next load.
pub(crate) async fn remove_merged(node: &Node, ledger: &Ledger, publisher: &mut Publisher) -> Result<(), PlaneError> {
    let patience = node.settings.query_time;
    while let Some((_, part)) = publisher.merged.front().filter(|(since, _)| since.elapsed() >= patience) {
        node.store.delete(&segment_path(&ledger.org, *part)).await?;
        publisher.merged.pop_front();
    }
    Ok(())
}
