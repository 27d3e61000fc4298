//! The floor: up to where the log is gone, for every reader (rule L2).
//!
//! A floor is a number and the id of the object at it. It only rises. It is durable before anything at or under it is
//! deleted, and floor 0 is there before object 1: no floor, or one lower than a node has seen, is damage.
//!
//! On a store with compare-and-swap it is the one object `wal/floor`. A folder has no compare-and-swap, and a rename
//! that lands late would take the floor back: there it is names `wal/floor/<number>`, created if absent, of which the
//! greatest counts. Lower names may go once a greater one is there, since a later listing of the folder finds the
//! greater one.
//!
//! The content is a line of JSON and a MAC. After a crash the floor is the old one or the new one; what lies at or
//! under it and was not deleted yet is deleted when it is raised next.

use bytes::Bytes;
use object_store::path::Path;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::mac::LogKeys;
use super::object::ObjectId;
use crate::storage::{Created, Ensured, StorageError, Store};

const NAME: &str = "wal/floor";
/// How often a swap of the floor is tried, each time upon what is read anew.
const SWAPS: usize = 4;

/// A floor: the number up to which the log may be deleted, and the id of the object at it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Floor {
    /// Objects up to and with this one do not exist for any reader.
    pub number: u64,
    /// The id of the object at that number; none at 0.
    pub id: Option<ObjectId>,
}

/// Reads and raises the floor.
#[derive(Debug)]
pub(super) struct Floors {
    store: Store,
    /// The greatest that this node has seen, so that a lower one is noticed.
    seen: Mutex<Option<Floor>>,
}

impl Floors {
    pub(super) fn new(store: Store) -> Self {
        Self { store, seen: Mutex::default() }
    }

    /// Writes floor 0, unless there is a floor.
    pub(super) async fn begin(&self, keys: &LogKeys) -> Result<(), StorageError> {
        if self.stored(keys).await?.is_none() {
            self.write(keys, &Floor::default(), None).await?;
        }
        Ok(())
    }

    /// The floor as it stands now.
    ///
    /// # Errors
    /// What the store says; [`StorageError::Damaged`] when it is missing, or lower than one than was seen before.
    pub(super) async fn read(&self, keys: &LogKeys) -> Result<Floor, StorageError> {
        // Of before the read: another task may see a greater one while this read is under way.
        let before = self.seen.lock().clone();
        let found = self.stored(keys).await?;
        let found = found.ok_or_else(|| StorageError::damaged(NAME, "there is no floor, though the log has begun"))?;
        if let Some(before) = before.filter(|before| before.number > found.number) {
            let reason = format!("the floor fell from {} to {}; a floor only rises", before.number, found.number);
            return Err(StorageError::damaged(NAME, reason));
        }
        let mut seen = self.seen.lock();
        if seen.as_ref().is_none_or(|seen| seen.number < found.number) {
            *seen = Some(found.clone());
        }
        Ok(found)
    }

    /// Raises the floor, unless it is as high already.
    pub(super) async fn raise(&self, keys: &LogKeys, floor: &Floor) -> Result<(), StorageError> {
        let before = self.read(keys).await?;
        if before.number >= floor.number {
            return Ok(());
        }
        self.write(keys, floor, Some(&before)).await?;
        self.read(keys).await.map(drop)
    }

    /// Puts the floor under the current key.
    pub(super) async fn reseal(&self, keys: &LogKeys) -> Result<(), StorageError> {
        let path = if self.store.can_swap() { NAME.to_owned() } else { name_of(self.read(keys).await?.number) };
        let Some((bytes, version)) = self.store.get_versioned(&Path::from(path.as_str())).await? else { return Ok(()) };
        let Some(sealed) = keys.reseal(&path, &bytes)? else { return Ok(()) };
        if !self.store.can_swap() {
            return self.store.put(&Path::from(path.as_str()), sealed).await;
        }
        match self.store.swap(&Path::from(path.as_str()), Some(version), sealed).await {
            // It rose meanwhile, under the key of the node that raised it.
            Created::Won | Created::Exists => Ok(()),
            Created::Unknown(e) => Err(e),
        }
    }

    /// Whether the floor, as it lies there now, is under one of these keys.
    pub(super) async fn is_ours(&self, keys: &LogKeys) -> Result<bool, StorageError> {
        let path = if self.store.can_swap() {
            NAME.to_owned()
        } else {
            let Some(number) = self.greatest().await? else { return Ok(false) };
            name_of(number)
        };
        let found = self.store.get(&Path::from(path.as_str())).await?;
        Ok(found.is_some_and(|bytes| keys.open(&path, &bytes).is_ok()))
    }

    async fn stored(&self, keys: &LogKeys) -> Result<Option<Floor>, StorageError> {
        if self.store.can_swap() {
            let found = self.store.get(&Path::from(NAME)).await?;
            return found.map(|bytes| parse(keys, NAME, &bytes)).transpose();
        }
        // A name that was listed may be gone when it is read: then a greater one is there.
        let mut last = None;
        loop {
            let Some(number) = self.greatest().await? else { return Ok(None) };
            if let Some(seen) = self.seen.lock().as_ref().filter(|seen| seen.number == number) {
                return Ok(Some(seen.clone()));
            }
            let path = name_of(number);
            match self.store.get(&Path::from(path.as_str())).await? {
                Some(bytes) => {
                    let floor = parse(keys, &path, &bytes)?;
                    if floor.number != number {
                        return Err(StorageError::damaged(
                            &path,
                            format!("it says that the floor is {}", floor.number),
                        ));
                    }
                    return Ok(Some(floor));
                }
                None if last == Some(number) => {
                    return Err(StorageError::failed("read", &path, "it is listed and cannot be read"));
                }
                None => last = Some(number),
            }
        }
    }

    async fn greatest(&self) -> Result<Option<u64>, StorageError> {
        let listed = self.store.list(&Path::from(NAME)).await?;
        Ok(listed.iter().filter_map(|meta| super::number(meta.location.filename()?)).max())
    }

    async fn write(&self, keys: &LogKeys, floor: &Floor, before: Option<&Floor>) -> Result<(), StorageError> {
        // Plain data under string keys can always be written.
        let body = serde_json::to_vec(floor).unwrap_or_default();
        if !self.store.can_swap() {
            let path = name_of(floor.number);
            let bytes = keys.seal(&path, body);
            if let Ensured::Other(other) = self.store.ensure(&Path::from(path.as_str()), bytes).await? {
                // Another node's, perhaps under another key that is known; two nodes never disagree on the id.
                let other = parse(keys, &path, &other)?;
                if other != *floor {
                    return Err(StorageError::damaged(
                        &path,
                        format!("it is {other:?}, and this node makes it {floor:?}"),
                    ));
                }
            }
            if let Some(before) = before {
                self.store.delete(&Path::from(name_of(before.number))).await?;
            }
            return Ok(());
        }
        let bytes = keys.seal(NAME, body);
        for _ in 0..SWAPS {
            let read = self.store.get_versioned(&Path::from(NAME)).await?;
            if let Some((found, _)) = &read
                && parse(keys, NAME, found)?.number >= floor.number
            {
                return Ok(());
            }
            match self.store.swap(&Path::from(NAME), read.map(|(_, version)| version), bytes.clone()).await {
                Created::Won => return Ok(()),
                // Somebody else's, or one's own whose answer was lost: reading tells.
                Created::Exists => {}
                Created::Unknown(e) => return Err(e),
            }
        }
        Err(StorageError::failed("raise", NAME, "other nodes write it all the time"))
    }
}

fn name_of(number: u64) -> String {
    format!("{NAME}/{number:020}")
}

fn parse(keys: &LogKeys, path: &str, bytes: &Bytes) -> Result<Floor, StorageError> {
    let body = keys.open(path, bytes)?;
    serde_json::from_slice(&body).map_err(|e| StorageError::damaged(path, e))
}

#[cfg(test)]
mod tests {
    use super::{Floor, Floors, NAME, name_of};
    use crate::log::LogKeys;
    use crate::storage::Store;

    fn keys() -> LogKeys {
        LogKeys::new([3; 32], [])
    }

    fn floor(number: u64) -> Floor {
        Floor { number, id: (number > 0).then(|| serde_json::from_str(r#""ab""#).unwrap()) }
    }

    /// A store with compare-and-swap, and a folder.
    fn stores(folder: &tempfile::TempDir) -> [Store; 2] {
        [Store::open("memory://").unwrap(), Store::open(folder.path().to_str().unwrap()).unwrap()]
    }

    #[tokio::test]
    async fn it_only_rises_whoever_raises_it_and_no_floor_is_damage() {
        let folder = tempfile::tempdir().unwrap();
        for store in stores(&folder) {
            let [one, other] = [Floors::new(store.clone()), Floors::new(store)];
            assert!(one.read(&keys()).await.unwrap_err().is_damage(), "there is none");
            one.begin(&keys()).await.unwrap();
            one.raise(&keys(), &floor(7)).await.unwrap();
            other.begin(&keys()).await.unwrap();
            other.raise(&keys(), &floor(5)).await.unwrap();
            for node in [one, other] {
                assert_eq!(node.read(&keys()).await.unwrap(), floor(7));
            }
        }
    }

    /// A genuine floor of before, put back by a late write, a restore or a thief: what is above it may be gone.
    #[tokio::test]
    async fn one_that_is_lower_than_the_node_has_seen_is_damage() {
        let folder = tempfile::tempdir().unwrap();
        for store in stores(&folder) {
            let floors = Floors::new(store.clone());
            floors.begin(&keys()).await.unwrap();
            let of = |number| if store.can_swap() { NAME.to_owned() } else { name_of(number) };
            let before = store.get(&of(0).into()).await.unwrap().unwrap();
            floors.raise(&keys(), &floor(7)).await.unwrap();
            store.delete(&of(7).into()).await.unwrap();
            store.put(&of(0).into(), before).await.unwrap();
            let fell = floors.read(&keys()).await.unwrap_err();
            assert!(fell.is_damage() && fell.to_string().contains("fell from 7 to 0"), "{fell}");
        }
    }
}
