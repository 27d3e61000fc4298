//! Who keeps an org's tables for the time being: an object that says so. It spares nodes from doing the same work, and
//! nothing else depends on it: two that hold it at once, by a pause or by clocks that differ, waste what one of them
//! does, since every commit checks that its inputs are live.

use chrono::{DateTime, SecondsFormat};
use object_store::path::Path;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::model::OrgName;
use crate::node::Node;
use crate::storage::StorageError;

/// For how long it is taken, µs.
const TERM: i64 = 120_000_000;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Lease {
    writer: Uuid,
    until: String,
}

/// Takes the lease, or keeps it. Whether this node has it.
pub(super) async fn take(node: &Node, org: &OrgName) -> Result<bool, StorageError> {
    let path = Path::from(format!("orgs/{org}/maintenance/lease"));
    let now = node.now();
    if let Some(found) = node.store.get(&path).await? {
        // One that cannot be read does not count.
        let held = serde_json::from_slice::<Lease>(&found).ok();
        let until = held.as_ref().and_then(|lease| DateTime::parse_from_rfc3339(&lease.until).ok());
        let is_held =
            until.map(|until| until.timestamp_micros()).is_some_and(|until| until > now && until <= now + 2 * TERM);
        if is_held && held.is_some_and(|lease| lease.writer != node.writer) {
            return Ok(false);
        }
    }
    let until = DateTime::from_timestamp_micros(now.saturating_add(TERM)).unwrap_or_default();
    let lease = Lease { writer: node.writer, until: until.to_rfc3339_opts(SecondsFormat::Micros, true) };
    let bytes = serde_json::to_vec(&lease).map_err(|e| StorageError::failed("write", &path, e))?;
    node.store.put(&path, bytes.into()).await?;
    // Of two that take it at once one comes last.
    let there = node.store.get(&path).await?.and_then(|bytes| serde_json::from_slice::<Lease>(&bytes).ok());
    Ok(there.as_ref() == Some(&lease))
}
