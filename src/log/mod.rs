//! The log: one order of everything that any node acknowledged, in objects that are created if absent.
//!
//! ```text
//! wal/layout           version, shards, key                                   see `layout`
//! wal/<seq>            log objects, 1, 2, 3 … without gaps above the floor    see `object`
//! wal/floor            up to where the log is gone                            see `floor`
//! ```
//!
//! # The protocol
//!
//! - **L1 Creation.** A node creates `end + 1` if absent, without asking first. Clean success is a win. Any other
//!   answer is decided by reading the object back and comparing its id: ours: won; another's: lost, once what was read
//!   is confirmed; absent: the same bytes at the same number again. While a group's fate is open nothing joins or
//!   leaves it.
//! - **L2 Floor.** A number that only rises and is durable before anything at or under it is deleted.
//! - **L3 Confirmation.** What was read of the log, present or absent, counts once a floor read *after* it is lower
//!   than the first number read. A created object counts once a floor read after it is lower than its number. No clock
//!   is trusted, and no pause between any two steps does harm.
//! - **L4 Chain.** Each object names the one before. What does not fit is held against a floor read after it, and only
//!   what a second load finds too is damage.
//!
//! The protocol is model-checked in `tests/model/`. This module is its steps on the store; what a node does with them
//! is in [`crate::plane`].

pub mod floor;
pub mod layout;
pub mod mac;
pub mod object;
pub(crate) mod v1;

use std::sync::Arc;

use bytes::Bytes;
use object_store::ObjectMeta;
use object_store::path::Path;

pub use floor::Floor;
use floor::Floors;
pub use mac::{KeyId, LogKeys};
pub use object::{
    Decisions, Front, Header, Object, ObjectId, OrgLimits, Removal, Rows, RowsHeader, Section, SectionHeader,
    SectionKind, StoredId,
};

use crate::storage::{Created, StorageError, Store};

const FOLDER: &str = "wal";

/// The rules of the protocol that the simulation switches off one at a time, to show that it would notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// L1: a creation that was not a clean success is decided by reading back.
    pub read_back: bool,
    /// L2: the floor is raised before what it covers is deleted.
    pub floor_first: bool,
    /// L3: what was read or created counts once the floor confirms it.
    pub confirm: bool,
    /// L4: chains are compared.
    pub chain: bool,
    /// L5: rows of up to a state's position that a table lacks are taken from the log.
    pub replay: bool,
    /// L6: an org ignores what it has applied already.
    pub once: bool,
    /// L8: a MAC must fit.
    pub authentic: bool,
    /// L9: a read that fails says nothing of what is stored.
    pub hiccups: bool,
    /// L10: what an org needs of the log is parked before the floor passes it.
    pub parked_first: bool,
    /// Objects that stay however long they have been flushed: a node that is a little behind finds them, and need not
    /// load again. Nothing depends on it (L2).
    pub kept: u64,
}

/// See [`Rules::kept`].
const KEPT_OBJECTS: u64 = 16;

impl Default for Rules {
    fn default() -> Self {
        Self {
            read_back: true,
            floor_first: true,
            confirm: true,
            chain: true,
            replay: true,
            once: true,
            authentic: true,
            hiccups: true,
            parked_first: true,
            kept: KEPT_OBJECTS,
        }
    }
}

/// The path of number `seq`.
pub fn name(seq: u64) -> String {
    format!("{FOLDER}/{seq:020}")
}

/// The number that a file name of 20 digits is.
fn number(name: &str) -> Option<u64> {
    (name.len() == 20 && name.bytes().all(|b| b.is_ascii_digit())).then(|| name.parse().ok()).flatten()
}

/// The numbers of log objects in a listing of the log's folder, ascending. What else lies there is passed over.
fn numbers(listed: &[ObjectMeta]) -> Vec<u64> {
    let numbers = listed.iter().filter_map(|meta| {
        let name = meta.location.as_ref().strip_prefix(FOLDER)?.strip_prefix('/')?;
        number(name)
    });
    let mut numbers: Vec<_> = numbers.collect();
    numbers.sort_unstable();
    numbers
}

/// The log of one store.
#[derive(Debug)]
pub struct Log {
    store: Store,
    keys: Arc<LogKeys>,
    floors: Floors,
}

impl Log {
    /// The log in `store`, authenticated by `keys`.
    pub fn new(store: Store, keys: Arc<LogKeys>) -> Self {
        Self { floors: Floors::new(store.clone()), store, keys }
    }

    /// The keys that it is authenticated by.
    pub fn keys(&self) -> &Arc<LogKeys> {
        &self.keys
    }

    /// Creates number `seq` if it is absent, in one attempt.
    pub async fn create(&self, seq: u64, pieces: &[Bytes]) -> Created {
        self.store.create(&Path::from(name(seq)), pieces.iter().cloned().collect()).await
    }

    /// Makes sure that number `seq`, which was read back and is ours, will be there for good.
    ///
    /// # Errors
    /// What the store says.
    pub async fn settle(&self, seq: u64, pieces: &[Bytes]) -> Result<(), StorageError> {
        self.store.settle(&Path::from(name(seq)), pieces.concat().into()).await
    }

    /// Reads number `seq`; none if it is absent.
    ///
    /// # Errors
    /// What the store says, or that the object is damaged.
    pub async fn read(&self, seq: u64) -> Result<Option<Object>, StorageError> {
        let found = self.store.get(&Path::from(name(seq))).await?;
        found.map(|bytes| Object::parse(&self.keys, seq, bytes)).transpose()
    }

    /// The bytes of one org's object `name` before its MAC, once that fits.
    ///
    /// A MAC under a key that this node lacks is the node's trouble, which stops it, as long as the log may be under that
    /// key too. Where layout and floor are under one that it has, only this object is not what was written: during a
    /// change of keys the floor goes first (see [`Log::reseal`]).
    ///
    /// # Errors
    /// As [`LogKeys::open`]; what the store says.
    pub async fn open_of_org(&self, name: &str, bytes: &Bytes) -> Result<Bytes, StorageError> {
        let opened = self.keys.open(name, bytes);
        let is_unknown = matches!(opened, Err(StorageError::Unusable { .. }));
        if !is_unknown || !self.is_ours().await? {
            return opened;
        }
        opened
            .map_err(|e| StorageError::damaged(name, format!("{e}; but layout and floor are under a key that it has")))
    }

    /// Whether layout and floor, as they lie there now, are under keys that this node has.
    async fn is_ours(&self) -> Result<bool, StorageError> {
        let Some(layout) = self.store.get(&Path::from(layout::NAME)).await? else { return Ok(false) };
        Ok(self.keys.open(layout::NAME, &layout).is_ok() && self.floors.is_ours(&self.keys).await?)
    }

    /// The floor as it stands now.
    ///
    /// # Errors
    /// What the store says, or that the floor is damaged.
    pub async fn floor(&self) -> Result<Floor, StorageError> {
        self.floors.read(&self.keys).await
    }

    /// Writes floor 0, unless there is a floor: before the first object.
    ///
    /// # Errors
    /// What the store says.
    pub async fn begin(&self) -> Result<(), StorageError> {
        self.floors.begin(&self.keys).await
    }

    /// Puts the floor and every log object under the current key. Bytes and ids of objects stay, but for the MAC.
    ///
    /// # Errors
    /// What the store says, or that something is damaged.
    pub async fn reseal(&self) -> Result<(), StorageError> {
        for seq in self.list().await? {
            let path = Path::from(name(seq));
            let Some(bytes) = self.store.get(&path).await? else { continue };
            if let Some(sealed) = Object::reseal(&self.keys, seq, &bytes)? {
                self.store.put(&path, sealed).await?;
            }
        }
        self.floors.reseal(&self.keys).await
    }

    /// Raises the floor, unless it is as high already.
    ///
    /// # Errors
    /// What the store says, or that the floor is damaged.
    pub async fn raise(&self, floor: &Floor) -> Result<(), StorageError> {
        self.floors.raise(&self.keys, floor).await
    }

    /// The numbers that are there, ascending. For a load and for trimming: nothing on a request's path lists.
    ///
    /// # Errors
    /// What the store says.
    pub async fn list(&self) -> Result<Vec<u64>, StorageError> {
        Ok(numbers(&self.store.list(&Path::from(FOLDER)).await?))
    }

    /// Deletes objects, which may be gone already.
    ///
    /// # Errors
    /// What the store says.
    pub async fn delete(&self, numbers: Vec<u64>) -> Result<(), StorageError> {
        self.store.delete_all(numbers.into_iter().map(|seq| Path::from(name(seq))).collect()).await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{Floor, Log, LogKeys, layout};
    use crate::storage::{StorageError, Store};

    /// A byte of the key's id in one org's object is that org's trouble; a store under another key is the node's.
    #[tokio::test]
    async fn an_unknown_key_is_the_orgs_trouble_only_where_layout_and_floor_are_ours() {
        let folder = tempfile::tempdir().unwrap();
        for store in [Store::open("memory://").unwrap(), Store::open(folder.path().to_str().unwrap()).unwrap()] {
            let (ours, others) = (Arc::new(LogKeys::new([1; 32], [])), Arc::new(LogKeys::new([2; 32], [[1; 32]])));
            let log = Log::new(store.clone(), Arc::clone(&ours));
            log.begin().await.unwrap();
            log.raise(&Floor { number: 3, id: None }).await.unwrap();
            layout::write(&store, &ours).await.unwrap();
            let name = "orgs/acme/state/1";
            assert_eq!(log.open_of_org(name, &ours.seal(name, b"x".to_vec())).await.unwrap(), "x");
            let foreign = others.seal(name, b"x".to_vec());
            let refused = log.open_of_org(name, &foreign).await.unwrap_err();
            assert!(refused.is_damage() && refused.to_string().contains(name), "{refused}");
            // Another node begins to change the key: the floor is under the new one, the layout is not yet.
            Log::new(store.clone(), Arc::clone(&others)).reseal().await.unwrap();
            let refused = log.open_of_org(name, &foreign).await.unwrap_err();
            assert!(matches!(refused, StorageError::Unusable { .. }), "{refused}");
            layout::reseal(&store, &others).await.unwrap();
            let refused = log.open_of_org(name, &foreign).await.unwrap_err();
            assert!(matches!(refused, StorageError::Unusable { .. }), "{refused}");
        }
    }
}
