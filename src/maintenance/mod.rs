//! Maintenance: what keeps an org's tables small, and keeps of them what is to be kept. It is apart from flushing,
//! which it never holds up for longer than a commit.
//!
//! | file | holds |
//! |---|---|
//! | `plan` | which files are merged with which, and when |
//! | `merge`, `source`, `fold`, `upload` | merging them, in bounded memory |
//! | `compact` | doing what is planned: read, merge, put, commit |
//! | `retention` | removing what is older than it is kept |
//! | `erasure` | taking a caller's samples out |
//! | `bodies` | deleting what held payloads before their table did |
//! | `housekeeping` | Delta's checkpoints and log; deleting unused files; with it go runs of keys ([`crate::state`]) |
//! | `tables` | the tables of an org that is loaded, or is not |
//! | `lease` | sparing nodes from doing the same |
//! | `report` | when what was done last, for `mcpg store status` |
//! | `names` | what the names of files say |
//!
//! Invariants:
//!
//! - **The same rows.** A merge commits files in the place of others only if those are live on the version that it
//!   commits upon, and only if as many rows came out as went in (of rollups, as many calls). So no row is lost or
//!   doubled, whatever else merges, flushes or removes at the same time, and however long this node was paused in
//!   between. Positions are not touched: queries, counters and replay do not notice.
//! - **Queries survive.** What no version names any more is deleted a day later.
//! - **Nothing waits for it.** It holds an org's tables for the time of a commit; all reading and writing of data is
//!   beside that.
//!
//! After a crash at any step what was put and not committed is an orphan, and goes with the others. Everything else is
//! begun again.

mod bodies;
mod compact;
pub(crate) mod erasure;
mod fold;
mod housekeeping;
mod lease;
mod merge;
mod names;
mod plan;
mod report;
pub(crate) mod retention;
mod source;
mod tables;
#[cfg(test)]
pub(crate) mod tests;
mod upload;

use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

pub use erasure::Erased;
pub(crate) use report::{TableReport, read as read_report};
pub use retention::{ExpiredTable, RetentionPlan};
pub(crate) use tables::Handles;

use crate::flush::Part;
use crate::node::Node;
use crate::state::runs;
use crate::storage::StorageError;
use crate::storage::table::{LiveFile, Partitioning};

/// How old a file that no version names must be before it is deleted, and how old a part of Delta's log, µs. Longer
/// than any query runs, here or in another engine that reads the table.
const KEPT: i64 = 24 * 3_600 * 1_000_000;
/// How often unused files are looked for.
const HOUSEKEEPING: Duration = Duration::from_secs(6 * 3_600);
/// How often a table of which this node commits nothing is read again: others may have merged its files.
const REFRESH: Duration = Duration::from_secs(1_800);
/// A file of fewer bytes counts among `small_files`.
const SMALL_FILE: u64 = 16 << 20;
/// Merges of one table in one turn: then it is another org's.
const MERGES_A_TURN: usize = 16;

/// For how long after rows were taken out the tables are read again each turn: another node may still be at it.
const WATCHED: Duration = Duration::from_secs(900);

/// What a node remembers of the maintenance of an org.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    refreshed: Option<Instant>,
    housekept: Option<Instant>,
    /// The newest entry of the ledger that records a removal of rows, and since when this node knows of it.
    removal: Option<(u64, Instant)>,
    /// Files that nobody needs and that this node's last vacuum could not delete.
    orphans: u64,
}

impl Memory {
    /// Whether the tables are to be read again: rows that another node takes out are to be seen no more here either.
    fn is_old(&mut self, tables: &Handles) -> bool {
        let known = self.removal.map(|(entry, _)| entry);
        if let Some(entry) = tables.removal().filter(|entry| Some(*entry) != known) {
            self.removal = Some((entry, Instant::now()));
        }
        self.removal.is_some_and(|(_, since)| since.elapsed() < WATCHED) || is_past(self.refreshed, REFRESH)
    }

    /// Says how many of an org's files nobody needs and are still there; the metric is the sum over orgs.
    fn count_orphans(&mut self, node: &Node, now: u64) {
        let count = |files: u64| i64::try_from(files).unwrap_or(i64::MAX);
        node.metrics.maintenance.orphans.add(count(now) - count(self.orphans));
        self.orphans = now;
    }
}

fn is_past(at: Option<Instant>, period: Duration) -> bool {
    at.is_none_or(|at| at.elapsed() >= period)
}

/// What a turn did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Done {
    /// Merges that were committed.
    pub merges: u64,
    /// Files that they read.
    pub files_read: u64,
    /// Files that they wrote.
    pub files_written: u64,
    /// Rows that they wrote.
    pub rows: u64,
    /// Bytes that they read.
    pub bytes_read: u64,
    /// Bytes that they wrote.
    pub bytes_written: u64,
    /// Merges whose files something else was done to meanwhile: they changed nothing.
    pub stale: u64,
    /// Unused files that were deleted.
    pub deleted: u64,
    /// Whether more is due.
    pub more: bool,
}

/// Does what is due of an org's tables, as far as a turn goes. What fails of one table keeps nothing from the others.
///
/// # Errors
/// What failed first. What was done stays done.
pub(crate) async fn turn(node: &Node, tables: &Handles, memory: &mut Memory) -> Result<Done, StorageError> {
    let (mut done, mut first) = (Done::default(), Ok(()));
    if memory.is_old(tables) {
        for part in Part::KEPT {
            tables.refresh(node, part).await?;
        }
        memory.refreshed = Some(Instant::now());
    }
    for part in Part::KEPT {
        let merged = Box::pin(compact::compact(node, tables, part, &mut done)).await;
        let kept = match tables.checkpoint(part).await {
            Ok(_) => merged,
            Err(e) => merged.and(Err(e)),
        };
        note(tables, part, "merging its files", kept, &mut first);
    }
    if is_past(memory.housekept, HOUSEKEEPING) {
        if lease::take(node, tables.org()).await? {
            keep_house(node, tables, memory, &mut done, &mut first).await;
        } else {
            // Another node is at it, and counts what it leaves.
            memory.count_orphans(node, 0);
        }
    }
    first.map(|()| done)
}

/// Deletes what nobody needs of an org.
async fn keep_house(
    node: &Node,
    tables: &Handles,
    memory: &mut Memory,
    done: &mut Done,
    first: &mut Result<(), StorageError>,
) {
    let mut orphans = 0;
    let bodies = bodies::delete(node, tables, done).await;
    let mut is_sound = bodies.is_ok();
    note(tables, Part::Payloads, "deleting what held its rows before", bodies, first);
    for part in Part::KEPT {
        let mut left = 0;
        let kept = Box::pin(housekeeping::keep(node, tables, part, done, &mut left)).await;
        orphans += left;
        is_sound &= kept.is_ok();
        note(tables, part, "deleting what it does not need", kept, first);
    }
    memory.count_orphans(node, orphans);
    match runs::sweep(node, tables.org(), tables.runs(), node.now().saturating_sub(KEPT)).await {
        Ok(swept) => {
            done.deleted += swept;
            node.metrics.maintenance.deleted.inc_by(swept);
            if is_sound {
                memory.housekept = Some(Instant::now());
            }
        }
        Err(e) if first.is_ok() => *first = Err(e),
        Err(error) => tracing::warn!(org = %tables.org(), %error, "runs of keys were not deleted"),
    }
}

/// Keeps the first failure, and logs each with its table.
fn note(
    tables: &Handles,
    part: Part,
    what: &str,
    outcome: Result<(), StorageError>,
    first: &mut Result<(), StorageError>,
) {
    if let Err(error) = outcome {
        tracing::warn!(org = %tables.org(), table = tables::name(part), %error, "{what} failed");
        if first.is_ok() {
            *first = Err(error);
        }
    }
}

/// What there is to say of an org's tables, by name.
///
/// # Errors
/// What the store says.
pub(crate) async fn status(node: &Node, tables: &Handles) -> Result<Map<String, Value>, StorageError> {
    let report = read_report(&node.store, tables.org()).await?;
    let mut all = Map::new();
    for part in Part::KEPT {
        let view = tables.refresh(node, part).await?;
        let name = tables::name(part);
        all.insert(name.to_owned(), of_table(&view.files, view.partitioning, report.tables.get(name), node.now()));
    }
    Ok(all)
}

/// What there is to say of a table.
pub(crate) fn of_table(
    files: &[LiveFile],
    partitioning: Partitioning,
    report: Option<&TableReport>,
    now: i64,
) -> Value {
    let ranges = || files.iter().filter_map(|file| file.data.time_range);
    let report = report.cloned().unwrap_or_default();
    json!({
        "files": files.len(),
        "bytes": files.iter().map(|file| file.data.size).sum::<u64>(),
        "small_files": files.iter().filter(|file| file.data.size < SMALL_FILE).count(),
        "oldest": ranges().map(|(least, _)| least).min().and_then(report::time),
        "newest": ranges().map(|(_, greatest)| greatest).max().and_then(report::time),
        "compaction_debt_bytes": debt(files, partitioning, now),
        "last_compaction": report.last_compaction,
        "last_retention": report.last_retention,
        "last_vacuum": report.last_vacuum,
        "orphans": report.orphans,
    })
}

/// Bytes of an org's tables that merges which are due would read, as far as is known without asking the store.
pub(crate) async fn debt_of(node: &Node, tables: &Handles) -> u64 {
    let mut bytes = 0;
    for part in Part::KEPT {
        let view = tables.view(part).await;
        bytes += debt(&view.files, view.partitioning, node.now());
    }
    bytes
}

/// Bytes that merges which are due would read.
fn debt(files: &[LiveFile], partitioning: Partitioning, now: i64) -> u64 {
    plan::plan(files, partitioning, plan::Bounds::default(), now).iter().map(plan::Merge::bytes).sum()
}
