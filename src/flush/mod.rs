//! Flush: from the live buffer to what lasts apart from the log.
//!
//! For one org, in this order, each step atomic and each with the position that it brings its part to:
//!
//! 1. samples to `tool_invocations`, 2. their partial rollups to `tool_usage_hourly`, 3. and to `tool_usage_daily`,
//! 4. sealed payloads to `tool_invocation_payloads`, 5. runs of idempotency keys, 6. the state, which names all of it.
//!    Then the live buffer forgets what all tables hold.
//!
//! A crash between two steps leaves tables ahead of the state; the next load takes the state and the log after it, and
//! each table goes on from its own position. What may be deleted from the log then is `trim`'s.
//!
//! Any node may flush; positions make it harmless that two do. To spare the work, a node that sees that another one
//! has moved an org's tables waits twice as long before it flushes that org itself.

pub(crate) mod payloads;
pub(crate) mod trim;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use object_store::path::Path;
use tokio::runtime::Handle;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::Instant;

use crate::model::schema::{TOOL_INVOCATION_PAYLOADS, TOOL_INVOCATIONS, TOOL_USAGE_DAILY, TOOL_USAGE_HOURLY};
use crate::node::{Node, PlaneError};
use crate::rollup::{Granularity, RollupError, daily_partials, hourly_partials};
use crate::state::{Org, OrgState, Tables, snapshot};
use crate::storage::table::{Partitioning, Table, TableSnapshot};
use crate::storage::{Ensured, StorageError, parquet};

/// Threads that encode samples, at most: the others are for requests.
const MAX_ENCODERS: usize = 4;

/// Bytes of sealed payloads that wait for a flush.
const MAX_PAYLOADS: u64 = 64 << 20;

/// Whether an org is to be flushed now.
pub(crate) fn is_due(node: &Node, state: &OrgState, crowded: bool) -> bool {
    if state.is_flushed() {
        return false;
    }
    let settings = &node.settings;
    let waited = state.waiting_since.map_or(Duration::ZERO, |since| since.elapsed());
    let patience = if state.flushed_by_peer { 2 } else { 1 };
    waited >= settings.flush_interval * patience
        || state.live.rows() >= settings.flush_rows * patience as usize
        || state.live.bytes() >= settings.flush_bytes
        || state.payloads.waiting >= MAX_PAYLOADS
        || crowded && state.live.rows() > 0
}

/// Brings everything stored of an org up to where it stands in the log.
pub(crate) async fn flush(node: &Node, org: &Org) -> Result<bool, PlaneError> {
    let mut tables = org.tables.lock().await;
    let (target, before, is_flushed) = {
        let state = org.state.read();
        (state.owed(state.tables_hold()), state.samples.position, state.is_flushed())
    };
    if !org.may_write() || is_flushed {
        return Ok(false);
    }
    let began = Instant::now();
    if org.state.read().tables_hold() < target {
        flush_tables(node, org, &mut tables, target).await?;
    }
    payloads::flush(node, org, &mut tables).await?;
    if org.state.read().saved < org.state.read().position {
        save(node, org, &mut tables).await?;
    }
    {
        let mut state = org.state.write();
        let held = state.tables_hold();
        state.live.release(held);
        state.waiting_since = (!state.is_flushed()).then(Instant::now);
    }
    if target > before {
        node.metrics.flush.seconds.observe(began.elapsed().as_secs_f64());
        tracing::debug!(org = %org.name, position = target, took = ?began.elapsed(), "flushed");
    }
    Ok(true)
}

/// One of the tables that a flush writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Part {
    Samples,
    Rollup(Granularity),
    /// Sealed payloads, which are flushed apart.
    Payloads,
}

impl Part {
    /// What is made of samples.
    pub(crate) const ALL: [Self; 3] = [Self::Samples, Self::Rollup(Granularity::Hour), Self::Rollup(Granularity::Day)];

    /// All that maintenance looks after.
    pub(crate) const KEPT: [Self; 4] =
        [Self::Samples, Self::Rollup(Granularity::Hour), Self::Rollup(Granularity::Day), Self::Payloads];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Payloads => TOOL_INVOCATION_PAYLOADS,
            Self::Samples => TOOL_INVOCATIONS,
            Self::Rollup(Granularity::Hour) => TOOL_USAGE_HOURLY,
            Self::Rollup(Granularity::Day) => TOOL_USAGE_DAILY,
        }
    }

    pub(crate) fn table(self, tables: &mut Tables) -> &mut Table {
        match self {
            Self::Payloads => &mut tables.payloads,
            Self::Samples => &mut tables.samples,
            Self::Rollup(Granularity::Hour) => &mut tables.hourly,
            Self::Rollup(Granularity::Day) => &mut tables.daily,
        }
    }

    pub(crate) fn state(self, state: &mut OrgState) -> &mut TableSnapshot {
        match self {
            Self::Payloads => &mut state.payloads.table,
            Self::Samples => &mut state.samples,
            Self::Rollup(Granularity::Hour) => &mut state.hourly,
            Self::Rollup(Granularity::Day) => &mut state.daily,
        }
    }
}

/// Brings all tables of an org to `target`. What each lacks is encoded at once, on threads of its own beside those that
/// serve requests; the commits follow one another.
async fn flush_tables(node: &Node, org: &Org, tables: &mut Tables, target: u64) -> Result<(), PlaneError> {
    let mut bases = Vec::with_capacity(Part::ALL.len());
    for part in Part::ALL {
        bases.push(look(node, org, part, part.table(tables)).await?);
    }
    let mut tasks = VecDeque::new();
    let mut parts = Part::ALL.into_iter().zip(bases).filter(|(_, base)| *base < target).peekable();
    while let Some((part, base)) = parts.next() {
        let mut together = vec![part];
        // Days are made of the hours, where both begin at the same place.
        if let Part::Rollup(_) = part {
            together.extend(std::iter::from_fn(|| parts.next_if(|(_, other)| *other == base)).map(|(part, _)| part));
        }
        let task = encode(node, with_partitions(together.clone(), tables), rows(org, base, target));
        tasks.push_back((base, together, task));
    }
    while let Some((base, parts, task)) = tasks.pop_front() {
        for (part, files) in parts.into_iter().zip(joined(task.await)?) {
            commit(node, org, part, part.table(tables), files, base..target).await?;
        }
    }
    Ok(())
}

/// The position that a table stands at in the store.
async fn look(node: &Node, org: &Org, part: Part, table: &mut Table) -> Result<u64, PlaneError> {
    let known = part.state(&mut org.state.write()).position;
    let now = table.refresh().await?;
    // Another node may be ahead of this one, but not of the log.
    if now.position > org.state.read().position
        && node.log.read(now.position).await?.is_none()
        && node.log.floor().await?.number < now.position
    {
        let reason =
            format!("it says that it holds what came up to {}, and the log does not reach there", now.position);
        return Err(StorageError::damaged(format!("orgs/{}/{}", org.name, part.name()), reason).into());
    }
    let mut state = org.state.write();
    if now.position > known {
        state.flushed_by_peer = true;
    }
    let position = now.position;
    *part.state(&mut state) = now;
    Ok(position)
}

/// Commits what was encoded of a range of positions. Where another node has moved the table on meanwhile, what is
/// lacking still is encoded again.
async fn commit(
    node: &Node,
    org: &Org,
    part: Part,
    table: &mut Table,
    mut files: Files,
    mut range: Range<u64>,
) -> Result<(), PlaneError> {
    loop {
        let (count, bytes, rows) = (files.files.len(), files.bytes(), files.rows);
        let random = Arc::clone(&node.random);
        let appended = table.append(files.files, range.start, range.end, node.now(), move || random.uuid()).await;
        let now = appended?;
        let reached = now.position;
        {
            let mut state = org.state.write();
            *part.state(&mut state) = now;
            if reached == range.end {
                state.flushed_by_peer = false;
            }
        }
        if reached == range.end {
            if matches!(part, Part::Samples) {
                node.metrics.flush.rows.inc_by(rows as u64);
            }
            node.metrics.flush.files.inc_by(count as u64);
            node.metrics.flush.bytes.inc_by(bytes as u64);
        }
        if reached >= range.end {
            return Ok(());
        }
        range.start = reached;
        let parts = vec![(part, table.partitioning())];
        let again = joined(encode(node, parts, self::rows(org, range.start, range.end)).await)?;
        files = again.into_iter().next().ok_or_else(|| PlaneError::Internal("nothing was encoded".to_owned()))?;
    }
}

fn rows(org: &Org, base: u64, target: u64) -> Vec<RecordBatch> {
    org.state.read().live.range(base, target)
}

/// The files of one table, and how many rows they were made of.
struct Files {
    files: Vec<parquet::EncodedFile>,
    rows: usize,
}

impl Files {
    fn bytes(&self) -> usize {
        self.files.iter().map(|file| file.bytes.len()).sum()
    }
}

type Encoding = JoinHandle<Result<Vec<Files>, PlaneError>>;

fn joined(ended: Result<Result<Vec<Files>, PlaneError>, JoinError>) -> Result<Vec<Files>, PlaneError> {
    ended.unwrap_or_else(|e| Err(PlaneError::Internal(e.to_string())))
}

fn with_partitions(parts: Vec<Part>, tables: &mut Tables) -> Vec<(Part, Partitioning)> {
    parts.into_iter().map(|part| (part, part.table(tables).partitioning())).collect()
}

/// Makes of samples what some parts hold of them, in the order of the parts.
fn encode(node: &Node, parts: Vec<(Part, Partitioning)>, samples: Vec<RecordBatch>) -> Encoding {
    let (schemas, runtime) = (node.schemas, Handle::current());
    tokio::task::spawn_blocking(move || {
        let failed = |e: RollupError| PlaneError::Internal(e.to_string());
        let rows = samples.iter().map(RecordBatch::num_rows).sum();
        let mut hours = None;
        let mut made = Vec::with_capacity(parts.len());
        for (part, partitioning) in parts {
            let files = match part {
                Part::Payloads => return Err(PlaneError::Internal("payloads are flushed apart".to_owned())),
                Part::Samples => {
                    let threads = available_parallelism().map_or(1, usize::from).min(MAX_ENCODERS);
                    parquet::encode_by(partitioning, &schemas.tool_invocations, &samples, threads)?
                }
                Part::Rollup(granularity) => {
                    let hours = match &hours {
                        Some(hours) => hours,
                        None => hours.insert(runtime.block_on(hourly_partials(&samples)).map_err(failed)?),
                    };
                    match granularity {
                        Granularity::Hour => {
                            let hours = std::slice::from_ref(hours);
                            parquet::encode_by(partitioning, &schemas.tool_usage_hourly, hours, 1)?
                        }
                        Granularity::Day => {
                            let days = runtime.block_on(daily_partials(hours)).map_err(failed)?;
                            parquet::encode_by(partitioning, &schemas.tool_usage_daily, &[days], 1)?
                        }
                    }
                }
            };
            made.push(Files { files, rows });
        }
        Ok(made)
    })
}

/// Stores the runs of keys and then the state, as of where the org stands now.
async fn save(node: &Node, org: &Org, tables: &mut Tables) -> Result<(), PlaneError> {
    let mut base = tables.saved.clone();
    let kept = loop {
        let (parts, runs) = {
            let (mut state, ledger) = (org.state.write(), org.ledger.read());
            let runs: Vec<_> = state.dedup.keys().runs().filter(|run| !run.is_stored()).cloned().collect();
            (snapshot::take(&org.name, &mut state, ledger.end(), &base), runs)
        };
        for run in runs {
            let path = Path::from(format!("orgs/{}/keys/{}", org.name, run.reference().name()));
            let bytes = Bytes::from(run.encode());
            // The bytes are a function of the log; a state names their hash.
            if let Ensured::Other(_) = node.store.ensure(&path, bytes.clone()).await? {
                node.store.put(&path, bytes).await?;
            }
            run.set_stored();
        }
        let draft = snapshot::draft(node.log.keys(), parts, &base)?;
        let was_full = base == snapshot::Saved::default();
        let (kept, saved) = snapshot::keep(node, draft).await?;
        tables.saved = saved;
        if kept.counts || was_full {
            break kept;
        }
        base = snapshot::Saved::default();
    };
    if kept.counts {
        let mut state = org.state.write();
        if kept.position > state.saved {
            state.saved_before = state.saved;
            state.saved = kept.position;
        }
    }
    Ok(())
}
