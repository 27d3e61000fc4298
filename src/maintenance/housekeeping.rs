//! Deleting what is not needed any more: files that no version of a table names, or none since a day ago, and Delta's
//! log before the newest checkpoint that is a day old.
//!
//! That a file which is deleted is never committed afterwards does not depend on clocks: see [`crate::storage::table`].
//! That no query reads it does, as far as a day.

use super::report::{self, TableReport};
use super::tables::{Handles, name};
use super::{Done, KEPT};
use crate::flush::Part;
use crate::node::Node;
use crate::storage::StorageError;
use crate::storage::table::{Orphans, cut_log};

/// Files that are deleted at once.
const AT_ONCE: usize = 1_000;

/// Keeps house for one table. `left` becomes the number of files that nobody needs and that are still there.
pub(super) async fn keep(
    node: &Node,
    tables: &Handles,
    part: Part,
    done: &mut Done,
    left: &mut u64,
) -> Result<(), StorageError> {
    let cutoff = node.now().saturating_sub(KEPT);
    let folder = tables.site(node, part).await.folder;
    let orphans = vacuum(node, tables, part, cutoff, done, left).await?;
    cut_log(&node.store, &folder, cutoff).await?;
    let now = TableReport { last_vacuum: report::time(node.now()), orphans: Some(orphans), ..TableReport::default() };
    report::note(node, tables.org(), name(part), now).await
}

/// Deletes the files that nobody needs. Says how many were found.
async fn vacuum(
    node: &Node,
    tables: &Handles,
    part: Part,
    cutoff: i64,
    done: &mut Done,
    left: &mut u64,
) -> Result<u64, StorageError> {
    let kept = tables.reclaimable(part, cutoff).await?;
    let folder = tables.site(node, part).await.folder;
    let orphans: Orphans = kept.orphans(&node.store, &folder, cutoff).await?;
    let found = orphans.names.len() as u64;
    *left = found;
    if found == 0 || !tables.may_write() {
        return Ok(found);
    }
    let paths = tables.fence_off(part, orphans).await?;
    for paths in paths.chunks(AT_ONCE) {
        node.store.delete_all(paths.to_vec()).await?;
        *left = left.saturating_sub(paths.len() as u64);
        done.deleted += paths.len() as u64;
        node.metrics.maintenance.deleted.inc_by(paths.len() as u64);
    }
    Ok(found)
}
