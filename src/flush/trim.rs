//! Trimming: raising the floor past what every org has elsewhere, and deleting what is under it (rule L2).

use std::time::Duration;

use bytes::Bytes;
use object_store::path::Path;
use tokio::time::timeout;

use crate::log::{Floor, Object};
use crate::model::OrgName;
use crate::node::Node;
use crate::state::{Org, parked_paths};
use crate::storage::{Ensured, StorageError};

/// How long an org's own folder may take for what is to be parked there.
const PARK_TIMEOUT: Duration = Duration::from_secs(10);

/// Up to where the log is not needed for an org of which everything is known; none if it is not needed at all.
///
/// Not past the older of its two newest states while it has a section after the newest, nor past what its tables hold
/// while they lack samples, nor past what its newest checkpoint covers.
pub(crate) fn limit(org: &Org) -> Option<u64> {
    let state = org.state.read();
    let states = (state.saved < state.position).then_some(state.saved_before);
    let tables = (state.live.rows() > 0).then(|| state.tables_hold());
    let payloads = state.payloads.live.first_position().map(|first| first.saturating_sub(1));
    let ledger = org.ledger.read().lags_at();
    states.into_iter().chain(tables).chain(payloads).chain(ledger).min()
}

/// The highest number that the floor may have at a position, whatever orgs need: never over the last object.
pub(crate) fn highest(node: &Node, applied: u64) -> u64 {
    applied.saturating_sub(node.rules.kept.max(1))
}

/// Raises the floor to `number`, and deletes what is under it, from the lowest on.
pub(crate) async fn raise(node: &Node, number: u64) -> Result<(), StorageError> {
    let Some(object) = node.log.read(number).await? else {
        // Another node was there before: the floor says so, or the next look does.
        return Ok(());
    };
    let floor = Floor { number, id: Some(object.id) };
    if node.rules.floor_first {
        node.log.raise(&floor).await?;
        return sweep(node, number).await;
    }
    sweep(node, number).await?;
    node.log.raise(&floor).await
}

/// Deletes what is at or under the floor, whichever node raised it.
pub(crate) async fn sweep(node: &Node, floor: u64) -> Result<(), StorageError> {
    let under: Vec<u64> = node.log.list().await?.into_iter().take_while(|number| *number <= floor).collect();
    if under.is_empty() { Ok(()) } else { node.log.delete(under).await }
}

/// Keeps what the log has of an org at these positions apart, before the floor passes them (rule L10). The org's own
/// folder may be what is in trouble: where it fails or hangs, a folder beside the log takes it.
pub(crate) async fn park(node: &Node, org: &OrgName, positions: &[u64]) -> Result<(), StorageError> {
    let mut own_folder_takes = true;
    for position in positions {
        let Some(object) = node.log.read(*position).await? else {
            // Only what another node has trimmed may be absent: then that one has parked it, or the org needs it no
            // more.
            if node.log.floor().await?.number >= *position {
                continue;
            }
            let reason = format!("it is missing from the log, and org {org} has a section in it");
            return Err(StorageError::damaged(crate::log::name(*position), reason));
        };
        let [own, beside] = parked_paths(org, *position);
        if own_folder_takes {
            let failure = match timeout(PARK_TIMEOUT, park_at(node, org, &object, &own)).await {
                Ok(Ok(())) => continue,
                Ok(Err(e)) => e.to_string(),
                Err(_) => "it hangs".to_owned(),
            };
            tracing::warn!(%org, path = %own, error = failure, "the org's folder does not take what is parked; it goes beside the log");
            own_folder_takes = false;
        }
        park_at(node, org, &object, &beside).await?;
    }
    Ok(())
}

async fn park_at(node: &Node, org: &OrgName, object: &Object, path: &Path) -> Result<(), StorageError> {
    let bytes = object.park(node.log.keys(), path.as_ref(), org)?;
    match node.store.ensure(path, bytes.clone()).await? {
        Ensured::Same => Ok(()),
        // Another node's, under another key that is known; what is not what was to be parked must not stand for it.
        Ensured::Other(found) if is_parked(node, object, path, &found) => Ok(()),
        Ensured::Other(_) => node.store.put(path, bytes).await,
    }
}

fn is_parked(node: &Node, object: &Object, path: &Path, found: &Bytes) -> bool {
    Object::unpark(node.log.keys(), path.as_ref(), found).is_ok_and(|parked| parked.id == object.id)
}

/// Deletes what was parked of an org and is needed no more, by the same bound as the log itself. More may be parked
/// while the org is in use: what is left is looked at again once the bound has passed some of it.
pub(crate) async fn unpark(node: &Node, org: &Org) -> Result<(), StorageError> {
    let Some(from) = org.parked_from() else { return Ok(()) };
    // Read before the listing: what is parked later is past it.
    let position = org.state.read().position;
    let needless = limit(org).unwrap_or(position);
    if from > needless {
        return Ok(());
    }
    let parked = crate::state::load::parked(node, &org.name).await?;
    let (gone, left): (Vec<_>, Vec<_>) = parked.into_iter().partition(|at| *at <= needless);
    if !gone.is_empty() {
        node.store.delete_all(gone.into_iter().flat_map(|at| parked_paths(&org.name, at)).collect()).await?;
    }
    org.set_parked_from(left.first().copied());
    Ok(())
}
