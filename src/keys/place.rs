//! Where wrapped keys lie, and that what is deleted there is gone.
//!
//! A store of their own (`payload_keys.storage`), or the prefix `payload-keys/` of the main one, never under `orgs/`: a
//! copy of the store without it opens nothing. A bucket that keeps versions is taken only if versions can be deleted;
//! one with Object Lock never, since a key that cannot be deleted cannot be destroyed.
//!
//! A key is read, wrapped anew and put back. A bucket takes that only where what was read is still there; on a folder,
//! which cannot, a process holds for it the lock of `.payload-keys.lock` in it. Without it a node that paused between the
//! two puts a key back that was destroyed meanwhile, or one that nobody can unwrap any more.

use std::fs::{File, OpenOptions, TryLockError};
use std::time::Duration;

use bytes::Bytes;
use object_store::path::Path;
use tokio::time::sleep;
use uuid::Uuid;

use crate::config::Storage;
use crate::model::OrgName;
use crate::payload::Epoch;
use crate::storage::{Created, StorageError, Store, Versions};

/// The lock's name in a folder.
const LOCK: &str = ".payload-keys.lock";
/// How often the lock is tried, and how long after a failure: it is held for a rotation of all keys.
const LOCK_TRIES: usize = 600;
const LOCK_RETRY: Duration = Duration::from_millis(100);

/// Where keys lie in the main store.
pub(super) const PREFIX: &str = "payload-keys";

/// The place where wrapped keys are stored.
#[derive(Debug)]
pub struct KeyPlace {
    store: Store,
    prefix: Option<&'static str>,
    /// Of a bucket that keeps versions.
    versions: Option<Versions>,
}

impl KeyPlace {
    /// Opens the place and tries what must hold there: an object is written, overwritten, deleted, and looked for.
    ///
    /// # Errors
    /// [`StorageError::Unusable`] when the place keeps what is deleted; what the store says.
    pub async fn open(own: Option<&Storage>, main: (&Storage, &Store)) -> Result<Self, StorageError> {
        let versions = Versions::open(own.unwrap_or(main.0))?;
        let mut place = Self::existing(own, main)?;
        if let Some(versions) = versions {
            if versions.can_lock().await? {
                let reason = "the bucket has Object Lock, so that keys in it could not be destroyed; set payload_keys.storage to one \
                              without";
                return Err(place.store.unusable(reason));
            }
            if versions.are_kept().await? {
                place.versions = Some(versions);
            }
        }
        place.probe().await?;
        Ok(place)
    }

    /// The place as it is, to be read alone.
    ///
    /// # Errors
    /// What the store says.
    pub(super) fn existing(own: Option<&Storage>, main: (&Storage, &Store)) -> Result<Self, StorageError> {
        let (store, prefix) = match own {
            Some(own) => (Store::open_with(own)?, None),
            None => (main.1.clone(), Some(PREFIX)),
        };
        Ok(Self { store, prefix, versions: None })
    }

    /// A place on a store that was opened elsewhere, for tests.
    #[cfg(test)]
    pub(super) fn on(store: Store) -> Self {
        Self { store, prefix: Some(PREFIX), versions: None }
    }

    async fn probe(&self) -> Result<(), StorageError> {
        let path = self.path(&format!("probe-{}", Uuid::new_v4().simple()));
        self.store.put(&path, Bytes::from_static(b"one")).await?;
        self.store.put(&path, Bytes::from_static(b"two")).await?;
        let unusable = |e: StorageError| {
            let advice = "keys there could not be destroyed: let the control plane delete objects and their versions";
            self.store.unusable(format!("{e}; {advice}"))
        };
        self.delete_at(&path).await.map_err(unusable)?;
        Ok(())
    }

    fn path(&self, name: &str) -> Path {
        match self.prefix {
            Some(prefix) => Path::from(format!("{prefix}/{name}")),
            None => Path::from(name),
        }
    }

    fn at(&self, org: &OrgName, epoch: Epoch) -> Path {
        self.path(&format!("{org}/{epoch}"))
    }

    /// Keeps other processes from changing keys until it is dropped, where the store itself does not.
    pub(super) async fn lock(&self) -> Result<Option<File>, StorageError> {
        let Some(folder) = self.store.folder_path() else { return Ok(None) };
        let failed = |e: std::io::Error| StorageError::failed("lock", LOCK, e);
        let file =
            OpenOptions::new().write(true).create(true).truncate(false).open(folder.join(LOCK)).map_err(failed)?;
        for _ in 0..LOCK_TRIES {
            match file.try_lock() {
                Ok(()) => return Ok(Some(file)),
                Err(TryLockError::WouldBlock) => sleep(LOCK_RETRY).await,
                Err(TryLockError::Error(e)) => return Err(failed(e)),
            }
        }
        Err(StorageError::failed("lock", LOCK, "another process holds it"))
    }

    pub(super) async fn get(&self, org: &OrgName, epoch: Epoch) -> Result<Option<Bytes>, StorageError> {
        self.store.get(&self.at(org, epoch)).await
    }

    pub(super) async fn create(&self, org: &OrgName, epoch: Epoch, bytes: Bytes) -> Created {
        self.store.create(&self.at(org, epoch), bytes.into()).await
    }

    /// Puts other bytes in the place of those that were read; on a folder under [`KeyPlace::lock`]. False where they are
    /// not there any more.
    pub(super) async fn replace(
        &self,
        org: &OrgName,
        epoch: Epoch,
        read: &Bytes,
        bytes: Bytes,
    ) -> Result<bool, StorageError> {
        let path = self.at(org, epoch);
        let Some((found, version)) = self.store.get_versioned(&path).await? else { return Ok(false) };
        if found != *read {
            return Ok(false);
        }
        if !self.store.can_swap() {
            return self.store.put(&path, bytes).await.map(|()| true);
        }
        match self.store.swap(&path, Some(version), bytes.clone()).await {
            Created::Won => Ok(true),
            Created::Exists => Ok(false),
            Created::Unknown(e) => match self.store.get(&path).await? {
                Some(now) if now == bytes => Ok(true),
                _ => Err(e),
            },
        }
    }

    /// The keys that lie there. Names that are no key's are passed over.
    pub(super) async fn list(&self) -> Result<Vec<(OrgName, Epoch)>, StorageError> {
        let listed = self.store.list(&Path::from(self.prefix.unwrap_or_default())).await?;
        let name = |path: &Path| {
            let parts: Vec<_> = path.parts().map(|part| part.as_ref().to_owned()).collect();
            let [.., org, epoch] = parts.as_slice() else { return None };
            (parts.len() == 2 + usize::from(self.prefix.is_some())).then_some(())?;
            org.parse().ok().zip(epoch.parse().ok())
        };
        Ok(listed.iter().filter_map(|meta| name(&meta.location)).collect())
    }

    /// Deletes a key, every version of it, and looks for it afterwards. Says how many versions there were.
    pub(super) async fn delete(&self, org: &OrgName, epoch: Epoch) -> Result<usize, StorageError> {
        self.delete_at(&self.at(org, epoch)).await
    }

    async fn delete_at(&self, path: &Path) -> Result<usize, StorageError> {
        let deleted = match &self.versions {
            Some(versions) => versions.delete_all(path).await?,
            None => usize::from(self.store.head(path).await?.is_some()),
        };
        if self.versions.is_none() {
            self.store.delete(path).await?;
        }
        let left = match &self.versions {
            Some(versions) => versions.count(path).await?,
            None => 0,
        };
        if left > 0 || self.store.head(path).await?.is_some() {
            return Err(StorageError::failed("delete", path, "it is still there"));
        }
        Ok(deleted)
    }
}
