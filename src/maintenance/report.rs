//! When what was done last to an org's tables: the object `orgs/<org>/maintenance/report`, for those who ask. Nothing
//! is decided by it.

use std::collections::BTreeMap;

use chrono::{DateTime, SecondsFormat};
use object_store::path::Path;
use serde::{Deserialize, Serialize};

use crate::model::OrgName;
use crate::node::Node;
use crate::storage::{StorageError, Store};

/// What was done last, by table.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Report {
    /// The tables.
    pub(crate) tables: BTreeMap<String, TableReport>,
}

/// What was done last to one table.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct TableReport {
    /// When files were merged last.
    pub(crate) last_compaction: Option<String>,
    /// When rows were removed last because they were old enough.
    pub(crate) last_retention: Option<String>,
    /// When unused files were last looked for.
    pub(crate) last_vacuum: Option<String>,
    /// How many were found then.
    pub(crate) orphans: Option<u64>,
}

/// A time as it is said.
pub(super) fn time(micros: i64) -> Option<String> {
    DateTime::from_timestamp_micros(micros).map(|time| time.to_rfc3339_opts(SecondsFormat::Micros, true))
}

fn path(org: &OrgName) -> Path {
    Path::from(format!("orgs/{org}/maintenance/report"))
}

/// Reads an org's report. One that cannot be understood is an empty one.
pub(crate) async fn read(store: &Store, org: &OrgName) -> Result<Report, StorageError> {
    let found = store.get(&path(org)).await?;
    Ok(found.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default())
}

/// Notes what was done to a table.
pub(super) async fn note(node: &Node, org: &OrgName, table: &str, now: TableReport) -> Result<(), StorageError> {
    let mut report = read(&node.store, org).await?;
    let before = report.tables.remove(table).unwrap_or_default();
    let after = TableReport {
        last_compaction: now.last_compaction.or(before.last_compaction),
        last_retention: now.last_retention.or(before.last_retention),
        last_vacuum: now.last_vacuum.or(before.last_vacuum),
        orphans: now.orphans.or(before.orphans),
    };
    report.tables.insert(table.to_owned(), after);
    let path = path(org);
    let bytes = serde_json::to_vec(&report).map_err(|e| StorageError::failed("write", &path, e))?;
    node.store.put(&path, bytes.into()).await
}
