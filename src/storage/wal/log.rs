//! The log in the object store: creating, reading and deleting its objects by number.

use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutPayload};

use super::object::{Object, Parsed};
use crate::storage::StorageError;

const FOLDER: &str = "wal";

/// The log of one store.
#[derive(Debug, Clone)]
pub struct Log {
    objects: Arc<dyn ObjectStore>,
}

/// Whether a creation won.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// The object is in the log, durably.
    Won,
    /// Another object has that number.
    Lost,
}

/// What is at a number of the log.
#[derive(Debug)]
pub enum Slot {
    /// Nothing.
    Absent,
    /// A whole object.
    Whole(Box<Object>),
    /// An object whose write never finished.
    Torn,
}

impl Log {
    /// The log in `objects`.
    pub fn new(objects: Arc<dyn ObjectStore>) -> Self {
        Self { objects }
    }

    /// The path of number `seq`.
    pub fn name(seq: u64) -> String {
        format!("{FOLDER}/{seq:020}")
    }

    /// Creates number `seq` if it is absent. On an error the object may be there all the same: creating the same bytes
    /// again is safe, and then [`Created::Lost`] may mean losing to oneself.
    ///
    /// # Errors
    /// What the store says.
    pub async fn create(&self, seq: u64, pieces: Vec<Bytes>) -> Result<Created, StorageError> {
        let payload: PutPayload = pieces.into_iter().collect();
        match self.objects.put_opts(&Path::from(Self::name(seq)), payload, PutMode::Create.into()).await {
            Ok(_) => Ok(Created::Won),
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(Created::Lost),
            Err(e) => Err(StorageError::failed("create", Self::name(seq), e)),
        }
    }

    /// Reads number `seq`.
    ///
    /// # Errors
    /// What the store says, or that the object is damaged.
    pub async fn read(&self, seq: u64) -> Result<Slot, StorageError> {
        let failed = |e| StorageError::failed("read", Self::name(seq), e);
        let bytes = match self.objects.get(&Path::from(Self::name(seq))).await {
            Ok(found) => found.bytes().await.map_err(failed)?,
            Err(Error::NotFound { .. }) => return Ok(Slot::Absent),
            Err(e) => return Err(failed(e)),
        };
        Ok(match Object::parse(seq, bytes)? {
            Parsed::Whole(object) => Slot::Whole(object),
            Parsed::Torn => Slot::Torn,
        })
    }

    /// Whether number `seq` is there, in whatever state.
    ///
    /// # Errors
    /// What the store says.
    pub async fn exists(&self, seq: u64) -> Result<bool, StorageError> {
        match self.objects.head(&Path::from(Self::name(seq))).await {
            Ok(_) => Ok(true),
            Err(Error::NotFound { .. }) => Ok(false),
            Err(e) => Err(StorageError::failed("look for", Self::name(seq), e)),
        }
    }

    /// The numbers that are there, ascending. For start-up only: nothing on a read's path lists.
    ///
    /// # Errors
    /// What the store says, or that something else than a WAL object lies in the log's folder.
    pub async fn list(&self) -> Result<Vec<u64>, StorageError> {
        let listed: Vec<_> = self
            .objects
            .list(Some(&Path::from(FOLDER)))
            .try_collect()
            .await
            .map_err(|e| StorageError::failed("list", FOLDER, e))?;
        let mut numbers = listed
            .iter()
            .map(|meta| {
                let number = meta.location.filename().and_then(|name| name.parse().ok());
                number.ok_or_else(|| StorageError::damaged(&meta.location, "it is not named as a WAL object"))
            })
            .collect::<Result<Vec<u64>, _>>()?;
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// Deletes number `seq`; it may be gone already.
    ///
    /// # Errors
    /// What the store says.
    pub async fn delete(&self, seq: u64) -> Result<(), StorageError> {
        match self.objects.delete(&Path::from(Self::name(seq))).await {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(StorageError::failed("delete", Self::name(seq), e)),
        }
    }
}
