//! Deleting runs of idempotency keys that no state needs any more: those that became part of a larger one, and those
//! that are older than keys are known.
//!
//! A run goes if no state that is there names it, nor the loaded org has it, and none that is yet to be stored will: it
//! is of objects up to the older of the two newest states, and was put into the store before `cutoff`, a day ago. Which
//! runs there are is a function of the log, and a run that is gone from it never comes back; so a state that names it
//! all the same is an older one, of a node that slept, and is not read.

use std::collections::HashSet;

use object_store::ObjectMeta;
use object_store::path::Path;

use super::dedup::{RunRef, Stored};
use super::snapshot::{self, positions};
use super::state_path;
use crate::model::OrgName;
use crate::node::Node;
use crate::storage::StorageError;

/// The folder of an org's runs.
fn folder(org: &OrgName) -> Path {
    Path::from(format!("orgs/{org}/keys"))
}

/// Deletes the needless runs of an org that were written before `cutoff`, in µs since the epoch by the store's clock;
/// `held` are those of the loaded org, by name. Says how many.
///
/// # Errors
/// What the store says, or that a state is damaged.
pub(crate) async fn sweep(node: &Node, org: &OrgName, held: HashSet<String>, cutoff: i64) -> Result<u64, StorageError> {
    // Listed before the states: a run that a later one brings is not among these.
    let listed = node.store.list(&folder(org)).await?;
    let states = positions(node, org).await?;
    let Some(older) = states.iter().rev().nth(1).copied() else { return Ok(0) };
    let mut needed = held;
    for position in states {
        let path = state_path(org, position);
        let Some(bytes) = node.store.get(&path).await? else { continue };
        let (_, _, remembered) = snapshot::parse(node, org, position, &bytes).await?;
        let stored = Stored::decode(&remembered).map_err(|e| StorageError::damaged(&path, e))?;
        needed.extend(stored.runs().iter().map(RunRef::name));
    }
    let is_needless = |meta: &ObjectMeta| {
        let name = meta.location.filename().unwrap_or_default();
        let is_past = last(name).is_some_and(|last| last <= older);
        is_past && !needed.contains(name) && meta.last_modified.timestamp_micros() < cutoff
    };
    let needless: Vec<_> = listed.into_iter().filter(is_needless).map(|meta| meta.location).collect();
    let count = needless.len() as u64;
    if count > 0 {
        node.store.delete_all(needless).await?;
    }
    Ok(count)
}

/// The position of the last object that a run of this name is of; none of what is not named as a run.
fn last(name: &str) -> Option<u64> {
    let (first, last) = name.split_once('-')?;
    let number = |text: &str| if text.len() == 20 { text.parse::<u64>().ok() } else { None };
    number(first).and_then(|_| number(last))
}

#[cfg(test)]
mod tests {
    use super::last;

    #[test]
    fn what_is_not_named_as_a_run_is_none() {
        assert_eq!(last("00000000000000000007-00000000000000000019"), Some(19));
        for name in ["7-19", "00000000000000000007", "00000000000000000007-0000000000000000001x", "note.txt"] {
            assert_eq!(last(name), None, "{name}");
        }
    }
}
