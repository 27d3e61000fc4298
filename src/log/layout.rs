//! `wal/layout`: what is fixed for the log of a store, and the first thing that a node reads.
//!
//! A line of JSON and a MAC: the version of what is stored, the number of shards, the id of the key that it is
//! authenticated by. It is created if absent, before anything else is written. A store of version 1 has none, and is
//! brought over first.

use object_store::path::Path;
use serde::{Deserialize, Serialize};

use super::mac::LogKeys;
use crate::storage::{Ensured, StorageError, Store};

/// Its path on the store.
pub(crate) const NAME: &str = "wal/layout";
/// The version of what this program stores, and the greatest that it reads.
pub const VERSION: u32 = 2;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Layout {
    version: u32,
    shards: u32,
    key: String,
}

impl Layout {
    fn ours(keys: &LogKeys) -> Self {
        Self { version: VERSION, shards: 1, key: keys.current().to_string() }
    }
}

/// What kind of store this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Nothing is there yet.
    Empty,
    /// One that this program reads.
    Current,
    /// One of version 1, to be brought over.
    First,
}

/// Looks what kind of store this is. Writes nothing.
///
/// # Errors
/// [`StorageError::Unusable`] when it is of a newer version, or of a key that this node lacks.
pub async fn find(store: &Store, keys: &LogKeys) -> Result<Found, StorageError> {
    let mut read = store.get(&Path::from(NAME)).await?;
    if read.is_none() {
        // A log or an org's folder without a layout is what version 1 wrote.
        let is_first = !super::numbers(&store.list(&Path::from(super::FOLDER)).await?).is_empty()
            || !store.list(&Path::from("orgs")).await?.is_empty();
        if !is_first {
            return Ok(Found::Empty);
        }
        // Unless another node has begun the store between the two looks.
        read = store.get(&Path::from(NAME)).await?;
    }
    let Some(bytes) = read else { return Ok(Found::First) };
    let body = keys.open(NAME, &bytes)?;
    let layout: Layout = serde_json::from_slice(&body).map_err(|e| StorageError::damaged(NAME, e))?;
    if layout.version > VERSION || layout.shards != 1 {
        return Err(store.unusable(format!(
            "its log is of version {} in {} shards, and this program reads up to version {VERSION} in one; run a newer one",
            layout.version, layout.shards
        )));
    }
    Ok(Found::Current)
}

/// Writes the layout, unless there is one.
///
/// # Errors
/// What the store says; [`StorageError::Unusable`] when another node has just written one under another key.
pub async fn write(store: &Store, keys: &LogKeys) -> Result<(), StorageError> {
    let body = serde_json::to_vec(&Layout::ours(keys)).unwrap_or_default();
    match store.ensure(&Path::from(NAME), keys.seal(NAME, body)).await? {
        Ensured::Same => Ok(()),
        Ensured::Other(found) => keys.open(NAME, &found).map(drop),
    }
}

/// Puts the layout under the current key: once everything else is.
///
/// # Errors
/// What the store says.
pub async fn reseal(store: &Store, keys: &LogKeys) -> Result<(), StorageError> {
    let body = serde_json::to_vec(&Layout::ours(keys)).unwrap_or_default();
    store.put(&Path::from(NAME), keys.seal(NAME, body)).await
}

#[cfg(test)]
mod tests {
    use super::{Found, NAME, find, write};
    use crate::log::LogKeys;
    use crate::storage::{StorageError, Store};

    /// Rule L11: such a node must not even take part.
    #[tokio::test]
    async fn a_layout_of_a_newer_version_or_of_more_shards_is_refused() {
        let (store, keys) = (Store::open("memory://").unwrap(), LogKeys::new([3; 32], []));
        write(&store, &keys).await.unwrap();
        assert_eq!(find(&store, &keys).await.unwrap(), Found::Current);
        let body = keys.open(NAME, &store.get(&NAME.into()).await.unwrap().unwrap()).unwrap();
        let text = std::str::from_utf8(&body).unwrap();
        for (from, to) in [("\"version\":2", "\"version\":3"), ("\"shards\":1", "\"shards\":2")] {
            let newer = text.replace(from, to);
            assert_ne!(newer, text);
            store.put(&NAME.into(), keys.seal(NAME, newer.into_bytes())).await.unwrap();
            let refused = find(&store, &keys).await.unwrap_err();
            assert!(matches!(refused, StorageError::Unusable { .. }), "{refused}");
            assert!(refused.to_string().contains("run a newer one"), "{refused}");
        }
    }
}
