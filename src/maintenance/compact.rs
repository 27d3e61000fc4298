//! Doing what is planned for a table: for each merge its inputs are read, its outcome put, and one commit made.

use deltalake_core::protocol::DeltaOperation;
use tokio::time::Instant;

use super::merge::{Merged, merge};
use super::plan::{Bounds, Merge, plan};
use super::report::{self, TableReport};
use super::tables::{Handles, name};
use super::{Done, MERGES_A_TURN, lease};
use crate::flush::Part;
use crate::node::Node;
use crate::storage::StorageError;
use crate::storage::parquet::is_partial;
use crate::storage::table::Replacement;

/// Merges of a turn that may fail before it ends: one file that cannot be read keeps the others from nothing, and a
/// store that fails is not asked again and again.
const MOST_FAILED: usize = 3;

/// Merges what is due of a table, as far as a turn goes.
pub(super) async fn compact(node: &Node, tables: &Handles, part: Part, done: &mut Done) -> Result<(), StorageError> {
    let bounds = Bounds::of(node);
    let view = tables.view(part).await;
    if plan(&view.files, view.partitioning, bounds, node.now()).is_empty() || !lease::take(node, tables.org()).await? {
        return Ok(());
    }
    let (mut merges, before) = (0, *done);
    let mut failed = Vec::new();
    'turn: while merges < MERGES_A_TURN && failed.is_empty() {
        // What was known may be old, and each round makes files for the next.
        let view = tables.refresh(node, part).await?;
        let due = plan(&view.files, view.partitioning, bounds, node.now());
        if due.is_empty() {
            break;
        }
        for due in due {
            if merges == MERGES_A_TURN {
                done.more = true;
                break;
            }
            if failed.len() == MOST_FAILED {
                break;
            }
            merges += 1;
            if !tables.may_write() || !lease::take(node, tables.org()).await? {
                break 'turn;
            }
            failed.extend(one(node, tables, part, &due, bounds, done).await.err());
        }
    }
    if done.merges > before.merges {
        let now = TableReport { last_compaction: report::time(node.now()), ..TableReport::default() };
        report::note(node, tables.org(), name(part), now).await?;
    }
    failed.into_iter().next().map_or(Ok(()), Err)
}

/// Does one merge.
async fn one(
    node: &Node,
    tables: &Handles,
    part: Part,
    due: &Merge,
    bounds: Bounds,
    done: &mut Done,
) -> Result<(), StorageError> {
    let began = Instant::now();
    let site = tables.site(node, part).await;
    // Read before the first file is put.
    let fence = tables.fence(part).await?;
    let Merged { files, rows } = Box::pin(merge(node, due, &site, bounds, None)).await?;
    let expected: u64 = due.inputs.iter().map(|input| input.data.rows).sum();
    let is_whole = if is_partial(&site.schema) { rows <= expected } else { rows == expected };
    if !is_whole || files.is_empty() {
        let reason = format!("{rows} rows came out of {} files that have {expected}", due.inputs.len());
        return Err(StorageError::failed("merge", &site.folder, reason));
    }
    let (count, written) = (files.len() as u64, files.iter().map(|file| file.size).sum::<u64>());
    let operation =
        DeltaOperation::Optimize { predicate: None, target_size: i64::try_from(bounds.file_bytes).unwrap_or(i64::MAX) };
    let replacement = Replacement { inputs: due.inputs.clone(), outputs: files, fence, changes_rows: false, operation };
    if !tables.replace(part, &replacement, node.now()).await? {
        done.stale += 1;
        node.metrics.maintenance.stale.inc();
        tracing::debug!(org = %tables.org(), table = name(part), "the files of a merge went meanwhile: it changed nothing");
        return Ok(());
    }
    done.merges += 1;
    done.files_read += due.inputs.len() as u64;
    done.files_written += count;
    done.rows += rows;
    done.bytes_read += due.bytes();
    done.bytes_written += written;
    let metrics = &node.metrics.maintenance;
    metrics.merges.inc();
    metrics.files.inc_by(due.inputs.len() as u64);
    metrics.rows.inc_by(rows);
    metrics.bytes_read.inc_by(due.bytes());
    metrics.bytes_written.inc_by(written);
    metrics.seconds.observe(began.elapsed().as_secs_f64());
    tracing::debug!(org = %tables.org(), table = name(part), stage = ?due.into.stage, files = due.inputs.len(), rows, took = ?began.elapsed(), "merged");
    Ok(())
}
