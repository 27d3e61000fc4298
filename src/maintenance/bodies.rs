//! Deleting the objects that held sealed payloads before their table did: a day after they were written, so that a
//! store which is restored to an hour ago finds what its log names. Those that no log ever named, left by a crash, go
//! with them.

use object_store::path::Path;

use super::tables::Handles;
use super::{Done, KEPT};
use crate::flush::payloads::{Place, body_folder};
use crate::node::Node;
use crate::storage::StorageError;

/// Digits of the time that an object's name begins with, µs in hex.
const TIME: usize = 16;

/// Deletes what is old and not needed, of an org that is loaded: only of that it is known what its log still names.
pub(super) async fn delete(node: &Node, tables: &Handles, done: &mut Done) -> Result<(), StorageError> {
    let Handles::Loaded(org) = tables else { return Ok(()) };
    let folder = body_folder(&org.name);
    let cutoff = node.now().saturating_sub(KEPT);
    let written = |path: &Path| {
        let name = path.filename()?;
        i64::from_str_radix(name.get(..TIME)?, 16).ok()
    };
    let listed = node.store.list(&folder).await?;
    let old = listed.into_iter().map(|meta| meta.location).filter(|path| written(path).is_some_and(|at| at < cutoff));
    let mut old: Vec<Path> = old.collect();
    if old.is_empty() || !org.may_write() {
        return Ok(());
    }
    let live = org.state.read().payloads.live.after(0);
    let named = live
        .iter()
        .flat_map(|batch| (0..batch.num_rows()).filter_map(|row| Place::of(batch, row)?.path(&org.name).ok()));
    let named: std::collections::HashSet<Path> = named.collect();
    old.retain(|path| !named.contains(path));
    done.deleted += old.len() as u64;
    node.store.delete_all(old).await
}
