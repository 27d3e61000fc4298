//! `mcpg store status`: what lies on a store, by org.

use chrono::{DateTime, SecondsFormat};
use serde_json::{Map, Value, json};

use super::index::Index;
use super::{Inspector, table};
use crate::audit::{checkpoint, signer};
use crate::ledger;
use crate::maintenance;
use crate::model::OrgName;
use crate::node::Node;
use crate::state::{load, snapshot};
use crate::storage::StorageError;

impl Inspector {
    /// What lies on the store. What of an org cannot be read is said in its place, under `error`.
    ///
    /// # Errors
    /// When there is no store of this version and key, or its log cannot be read.
    pub async fn status(&self) -> Result<Value, StorageError> {
        self.layout().await?;
        let node = &self.node;
        let mut orgs = self.orgs().await?;
        let mut index = Index::load(node).await?;
        orgs.extend(index.orgs().cloned());
        orgs.sort_unstable();
        orgs.dedup();
        let mut said = Vec::with_capacity(orgs.len());
        for org in &orgs {
            said.push(match of(node, org, &mut index).await {
                Ok(status) => status,
                Err(e) => json!({ "org": org, "error": e.to_string() }),
            });
        }
        Ok(json!({
            "storage": node.store.url(),
            "log": {
                "objects": index.objects(), "bytes": index.bytes, "oldest_at": index.oldest.and_then(time),
                "floor": index.floor.number, "position": index.end(),
            },
            "orgs": said,
        }))
    }
}

/// An org. What is stored is read before the log is read on.
async fn of(node: &Node, org: &OrgName, index: &mut Index) -> Result<Value, StorageError> {
    let states = snapshot::positions(node, org).await?.len();
    let newest = snapshot::newest(node, org).await?.map(|loaded| loaded.header);
    let removed_at = newest.as_ref().and_then(|header| header.removed).and_then(time);
    if newest.as_ref().is_some_and(|header| header.deleted) {
        return Ok(json!({ "org": org, "removed_at": removed_at, "deleted": true }));
    }
    let mut tables = Map::new();
    let report = maintenance::read_report(&node.store, org).await?;
    for name in table::TABLES {
        let (table, snapshot) = table::open(node, org, name).await?;
        let now = node.now();
        let mut of = maintenance::of_table(&table.live_files(), table.partitioning(), report.tables.get(name), now);
        if let Some(members) = of.as_object_mut() {
            members.insert("position".to_owned(), json!(snapshot.position));
        }
        tables.insert(name.to_owned(), of);
    }
    let checkpoint = newest_checkpoint(node, org).await?;
    let parked = load::parked(node, org).await?.len();
    index.extend(node).await?;
    let position = newest.as_ref().map_or(0, |header| header.position);
    let stored = newest.as_ref().map_or(0, |header| header.ledger.size);
    let places = index.of(org);
    let brought = places.iter().filter_map(|place| place.entries).map(|(_, end)| end).max();
    Ok(json!({
        "org": org,
        "state": { "position": newest.as_ref().map(|header| header.position), "objects": states },
        "sections": places.iter().filter(|place| place.position > position).count(),
        "ledger": { "entries": brought.unwrap_or_default().max(stored), "checkpoint": checkpoint },
        "tables": tables,
        "parked": parked,
        "removed_at": removed_at,
    }))
}

/// How many entries the newest checkpoint covers, which this deployment's key has signed; `None` without a checkpoint.
async fn newest_checkpoint(node: &Node, org: &OrgName) -> Result<Option<u64>, StorageError> {
    let origin = checkpoint::origin(&node.settings.name, org);
    let kept = node.store.list(&ledger::checkpoints_folder(org)).await?;
    let paths = kept.into_iter().next_back().map(|meta| meta.location).into_iter().chain([ledger::newest_path(org)]);
    let mut newest = None;
    for path in paths {
        let Some(note) = node.store.get(&path).await? else { continue };
        let note = String::from_utf8_lossy(&note);
        let signed = signer::check(&node.signing, &origin, &note).map_err(|e| StorageError::damaged(&path, e))?;
        newest = newest.max(Some(signed.size));
    }
    Ok(newest)
}

fn time(micros: i64) -> Option<String> {
    DateTime::from_timestamp_micros(micros).map(|time| time.to_rfc3339_opts(SecondsFormat::Micros, true))
}
