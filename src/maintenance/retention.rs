//! Retention of the tables: partitions go whole, once all that they hold is older than it is kept.
//!
//! What is due is said first: `operator.retention` in the org's ledger names the rule, the partitions and how many rows
//! go with them. Then one commit a table removes the files, which queries that run may read for a day yet. A crash
//! between the two is made good by the next run, which finds the same. While the org's ledger is on hold nothing goes,
//! nor does what the configuration that was loaded last, on any node, has kept for longer: both are looked at before
//! each commit.
//!
//! Counters and histograms are the state's and the ledger is apart: neither notices. A rollup is kept longer than what
//! it was made of.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use deltalake_core::protocol::DeltaOperation;
use serde::Serialize;

use super::report::{self, TableReport};
use super::tables::{Handles, View, name};
use crate::flush::Part;
use crate::node::{Node, Retention, TableRetention};
use crate::rollup::Granularity;
use crate::storage::StorageError;
use crate::storage::table::{LiveFile, Replacement};

/// What a run removes, or would.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct RetentionPlan {
    /// The entry of the hold that stops it.
    pub hold: Option<u64>,
    /// The tables of which something goes.
    pub tables: Vec<ExpiredTable>,
}

/// What goes of a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExpiredTable {
    /// Its name.
    pub table: String,
    /// How long rows are kept, and what says so.
    pub rule: String,
    /// Rows from before this are not kept.
    pub before: DateTime<Utc>,
    /// The partitions that go, by the day or the month that they are of.
    pub partitions: Vec<String>,
    /// How many files go.
    pub files: u64,
    /// How many rows they hold.
    pub rows: u64,
    /// How many bytes they have.
    pub bytes: u64,
    /// A digest of their names: what came anew is not what went before, however alike they are.
    #[serde(skip)]
    pub(crate) names: String,
}

fn rule(retention: &TableRetention, part: Part) -> &Retention {
    match part {
        Part::Samples => &retention.samples,
        Part::Payloads => &retention.payloads,
        Part::Rollup(Granularity::Hour) => &retention.hourly,
        Part::Rollup(Granularity::Day) => &retention.daily,
    }
}

/// The files of partitions that ended before a time.
fn expired(view: &View, before: DateTime<Utc>) -> Vec<LiveFile> {
    let before = before.timestamp_micros();
    let is_over = |file: &&LiveFile| view.partitioning.range(file.data.date).1 <= before;
    view.files.iter().filter(is_over).cloned().collect()
}

fn digest(files: &[LiveFile]) -> String {
    let mut hasher = blake3::Hasher::new();
    for file in files {
        hasher.update(file.name.as_bytes()).update(b"\n");
    }
    hasher.finalize().to_hex().to_string()
}

fn before(node: &Node, rule: &Retention) -> DateTime<Utc> {
    let period = TimeDelta::from_std(rule.period).unwrap_or(TimeDelta::MAX);
    node.clock.now().checked_sub_signed(period).unwrap_or(DateTime::<Utc>::MIN_UTC)
}

/// Whether what a plan names of a table is due by another rule too: by one that is longer now, less is.
pub(crate) fn is_due(node: &Node, retention: &TableRetention, of: &ExpiredTable) -> bool {
    let part = Part::KEPT.into_iter().find(|part| of.table == name(*part));
    part.is_some_and(|part| of.before <= before(node, rule(retention, part)))
}

/// What would go now.
pub(crate) async fn plan(
    node: &Node,
    tables: &Handles,
    retention: &TableRetention,
) -> Result<RetentionPlan, StorageError> {
    let mut plan = RetentionPlan::default();
    for part in Part::KEPT {
        let view = tables.refresh(node, part).await?;
        let rule = rule(retention, part);
        let before = before(node, rule);
        let files = expired(&view, before);
        if files.is_empty() {
            continue;
        }
        let mut partitions: BTreeMap<i32, String> = BTreeMap::new();
        for file in &files {
            partitions.entry(file.data.date).or_insert_with(|| view.partitioning.value(file.data.date));
        }
        plan.tables.push(ExpiredTable {
            table: name(part).to_owned(),
            rule: rule.rule.clone(),
            before,
            partitions: partitions.into_values().collect(),
            files: files.len() as u64,
            rows: files.iter().map(|file| file.data.rows).sum(),
            bytes: files.iter().map(|file| file.data.size).sum(),
            names: digest(&files),
        });
    }
    Ok(plan)
}

/// Removes what a plan names, which the ledger says by now. What was merged meanwhile is looked for again.
pub(crate) async fn remove(node: &Node, tables: &Handles, plan: &RetentionPlan) -> Result<(), StorageError> {
    for part in Part::KEPT {
        let Some(of) = plan.tables.iter().find(|of| of.table == name(part)) else { continue };
        let mut is_done = false;
        while !is_done && tables.may_write() {
            let view = tables.refresh(node, part).await?;
            let mut inputs = expired(&view, of.before);
            inputs.retain(|file| of.partitions.contains(&view.partitioning.value(file.data.date)));
            if inputs.is_empty() {
                break;
            }
            let rows = inputs.iter().map(|file| file.data.rows).sum();
            let column = view.partitioning.column();
            let list = of.partitions.iter().map(|value| format!("'{value}'")).collect::<Vec<_>>().join(", ");
            let operation = DeltaOperation::Delete { predicate: Some(format!("{column} IN ({list})")) };
            let replacement = Replacement { inputs, outputs: Vec::new(), fence: 0, changes_rows: true, operation };
            is_done = tables.replace(part, &replacement, node.now()).await?;
            if is_done {
                node.metrics.maintenance.expired.inc_by(rows);
            }
        }
        let now = TableReport { last_retention: report::time(node.now()), ..TableReport::default() };
        report::note(node, tables.org(), name(part), now).await?;
    }
    Ok(())
}
