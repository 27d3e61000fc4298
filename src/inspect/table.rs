//! Verifying one Delta table of an org: each commit of its log, and that each live file is there with its size.
//!
//! Delta's log has no MAC: a change that leaves a commit well formed and names files that are there with their sizes is
//! not found.

use std::sync::Arc;

use futures::StreamExt;
use object_store::path::Path;
use serde_json::Value;

use super::Findings;
use crate::model::OrgName;
use crate::node::Node;
use crate::storage::StorageError;
use crate::storage::table::{Table, TableSnapshot};

/// Objects that are asked for at once.
const AT_ONCE: usize = 16;
/// What a line of a commit may be, by Delta's protocol.
const ACTIONS: [&str; 10] = [
    "add",
    "remove",
    "metaData",
    "protocol",
    "txn",
    "commitInfo",
    "cdc",
    "domainMetadata",
    "checkpointMetadata",
    "sidecar",
];

/// The three tables of an org, in the order in which a state names their positions.
pub(super) const TABLES: [&str; 3] = [
    crate::model::schema::TOOL_INVOCATIONS,
    crate::model::schema::TOOL_USAGE_HOURLY,
    crate::model::schema::TOOL_USAGE_DAILY,
];

/// Opens the table of this name.
pub(super) async fn open(node: &Node, org: &OrgName, name: &str) -> Result<(Table, TableSnapshot), StorageError> {
    let schemas = node.schemas;
    let (schema, time) = match name {
        crate::model::schema::TOOL_USAGE_HOURLY => (&schemas.tool_usage_hourly, "window_start"),
        crate::model::schema::TOOL_USAGE_DAILY => (&schemas.tool_usage_daily, "window_start"),
        _ => (&schemas.tool_invocations, "started_at"),
    };
    Table::open(&node.store, org, name, Arc::clone(schema), time).await
}

/// Verifies the table of this name; gives it, unless it cannot be read.
pub(super) async fn check(node: &Node, org: &OrgName, name: &str, findings: &mut Findings) -> Option<TableSnapshot> {
    let opened = open(node, org, name).await.map(|(_, snapshot)| snapshot);
    let folder = format!("orgs/{org}/{name}/_delta_log");
    let mut commits = Findings::default();
    let log = check_commits(node, &Path::from(folder), &mut commits).await;
    let log = commits.take(log).unwrap_or_default();
    let snapshot = match opened {
        Ok(snapshot) => Some(snapshot),
        // The commit that is at fault says it more exactly.
        Err(StorageError::Damaged { .. }) if !commits.faults.is_empty() => None,
        Err(e) => findings.take(Err(e)),
    };
    findings.join(commits);
    let snapshot = snapshot?;
    let files = Arc::clone(&snapshot.files);
    let mut heads = futures::stream::iter(files.iter())
        .map(async |file| (file, node.store.head(&file.path).await))
        .buffer_unordered(AT_ONCE);
    while let Some((file, head)) = heads.next().await {
        let Some(head) = findings.take(head) else { continue };
        let reason = match head {
            Some(head) if head.size == file.size => continue,
            Some(head) => format!("it has {} bytes, and the table's log says {}", head.size, file.size),
            None => "it is missing, and it is a live file of the table".to_owned(),
        };
        let name = file.path.filename().unwrap_or_default();
        let named = log.iter().find(|(_, bytes)| std::str::from_utf8(bytes).is_ok_and(|text| text.contains(name)));
        let by = named.map_or_else(String::new, |(commit, _)| format!(" ({commit})"));
        findings.fault(&file.path, format!("{reason}{by}"));
    }
    Some(snapshot)
}

type Commits = Vec<(Path, bytes::Bytes)>;

/// Verifies that each commit is well formed and that none is missing after the newest checkpoint of Delta's log.
async fn check_commits(node: &Node, folder: &Path, findings: &mut Findings) -> Result<Commits, StorageError> {
    let (mut versions, mut checkpoint) = (Vec::new(), None);
    for meta in node.store.list(folder).await? {
        let Some((name, kind)) = meta.location.filename().and_then(|name| name.split_once('.')) else { continue };
        let Some(version) = name.parse::<u64>().ok().filter(|_| name.len() == 20) else { continue };
        if kind == "json" {
            versions.push((version, meta.location.clone()));
        } else if kind.starts_with("checkpoint.") {
            checkpoint = checkpoint.max(Some(version));
        }
    }
    versions.sort_unstable();
    let mut expected = checkpoint.map_or(0, |version| version + 1);
    for (version, _) in versions.iter().filter(|(version, _)| checkpoint.is_none_or(|newest| *version > newest)) {
        for missing in expected..*version {
            findings.fault(format!("{folder}/{missing:020}.json"), "it is missing from the log of the table");
        }
        expected = version + 1;
    }
    let mut commits = Commits::with_capacity(versions.len());
    let mut reads = futures::stream::iter(versions)
        .map(async |(_, path)| node.store.get(&path).await.map(|bytes| (path, bytes)))
        .buffered(AT_ONCE);
    while let Some(read) = reads.next().await {
        let (path, Some(bytes)) = read? else { continue };
        if let Err(reason) = well_formed(&bytes) {
            findings.fault(&path, reason);
        }
        commits.push((path, bytes));
    }
    Ok(commits)
}

fn well_formed(commit: &[u8]) -> Result<(), String> {
    let text = std::str::from_utf8(commit).map_err(|e| e.to_string())?;
    for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let at = at + 1;
        let action: Value = serde_json::from_str(line).map_err(|e| format!("line {at} is no JSON: {e}"))?;
        let names: Vec<&String> = action.as_object().into_iter().flatten().map(|(name, _)| name).collect();
        if names.len() != 1 || !names.iter().all(|name| ACTIONS.contains(&name.as_str())) {
            return Err(format!("line {at} is no action of Delta's protocol"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::well_formed;

    #[test]
    fn a_line_that_is_no_action_is_told() {
        assert_eq!(well_formed(b"{\"commitInfo\":{}}\n{\"add\":{\"path\":\"x\"}}\n"), Ok(()));
        for bad in ["{\"commitInfo\":{}}\nx", "{\"adf\":{}}", "[]", "{\"add\":{},\"remove\":{}}"] {
            assert!(well_formed(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
