//! Making keys, unwrapping them, wrapping them anew, destroying them.
//!
//! Making is create-if-absent: of nodes that make the same key at once, all take the one that is stored, and forget
//! their own. A key that was made is wrapped anew at once if the KEK was rotated in between, before anything is sealed
//! to it: so a rotation that looks for what is to be wrapped anew *after* its new version is in force misses none.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::aws_kms::AwsKmsKek;
use super::file::FileKek;
use super::kek::{Before, Kek, KekError, Wrapped};
use super::place::KeyPlace;
use super::vault::VaultKek;
use crate::config::{PayloadKeys, Storage};
use crate::model::OrgName;
use crate::payload::wrapped::{WrappedKey, plain, read_plain};
use crate::payload::{Epoch, KeyId, KeyPair, Suite};
use crate::storage::{Created, StorageError, Store};

/// How long an unwrapped key is kept.
const KEPT: Duration = Duration::from_secs(300);
/// How often a key is wrapped anew whose KEK is rotated again and again meanwhile.
const REWRAPS: usize = 8;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The KEK.
    #[error(transparent)]
    Kek(#[from] KekError),
    /// Where keys lie.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// No key lies there.
    #[error("there is no key of {0}/{1}")]
    Absent(OrgName, Epoch),
    /// What lies there is another key than the ledger names, or none.
    #[error("what lies there as the key of {0}/{1} is not the one that the ledger names")]
    Foreign(OrgName, Epoch),
}

impl KeyError {
    /// Whether later it may be otherwise.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Kek(KekError::Unavailable(_)) => true,
            Self::Storage(e) => matches!(e, StorageError::Failed { .. }),
            _ => false,
        }
    }
}

/// What a rotation of the KEK did.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Rotated {
    /// What wraps now.
    pub kek: String,
    /// How many keys were wrapped anew.
    pub rewrapped: usize,
    /// What wraps nothing any more, and is destroyed.
    pub destroyed: Vec<String>,
}

/// The key of an epoch that nothing is sealed to yet.
#[derive(Debug, Clone)]
pub struct Made {
    /// The key.
    pub key: KeyPair,
    /// What wraps it.
    pub kek: String,
}

/// See the module's doc.
#[derive(Debug)]
pub struct KeyService {
    kek: Arc<dyn Kek>,
    place: KeyPlace,
    kept: Mutex<HashMap<(OrgName, Epoch), (KeyPair, Instant)>>,
    /// Held while keys are wrapped anew or destroyed, so that none comes back that was deleted meanwhile.
    changing: tokio::sync::Mutex<()>,
}

/// The KEK that the settings name; that of a file is made if it is not there and `may_make` says so.
fn kek_of(settings: &PayloadKeys, may_make: bool) -> Result<Arc<dyn Kek>, KekError> {
    Ok(match (&settings.key, &settings.vault, &settings.aws_kms) {
        (Some(key), ..) => Arc::new(FileKek::of_environment(key)?),
        (_, Some(vault), _) => Arc::new(VaultKek::new(vault)?),
        (.., Some(key)) => Arc::new(AwsKmsKek::new(key)?),
        _ if may_make => Arc::new(FileKek::open(&settings.file)?),
        _ => Arc::new(FileKek::existing(&settings.file)?),
    })
}

/// Unwraps each key that lies there, once. Nothing is written or made, and no KEK is asked where no key lies.
///
/// # Errors
/// When keys lie there and the KEK is of no use, or what the store says.
pub async fn survey(
    settings: &PayloadKeys,
    main: (&Storage, &Store),
) -> Result<Vec<(OrgName, Epoch, Result<(), KeyError>)>, KeyError> {
    let place = KeyPlace::existing(settings.storage.as_ref(), main)?;
    let listed = place.list().await?;
    if listed.is_empty() {
        return Ok(Vec::new());
    }
    let service = KeyService::new(kek_of(settings, false)?, place);
    let mut found = Vec::with_capacity(listed.len());
    for (org, epoch) in listed {
        let unwrapped = match service.place.get(&org, epoch).await? {
            Some(bytes) => service.open_wrapped(&org, epoch, &bytes).await.map(drop),
            None => Err(KeyError::Absent(org.clone(), epoch)),
        };
        found.push((org, epoch, unwrapped));
    }
    Ok(found)
}

impl KeyService {
    /// Over the KEK and the place that the settings name.
    ///
    /// # Errors
    /// When one of them is of no use, or the place cannot be tried now.
    pub async fn open(settings: &PayloadKeys, main: (&Storage, &Store)) -> Result<Self, KeyError> {
        let kek = kek_of(settings, true)?;
        Ok(Self::new(kek, KeyPlace::open(settings.storage.as_ref(), main).await?))
    }

    /// Over these.
    pub fn new(kek: Arc<dyn Kek>, place: KeyPlace) -> Self {
        Self { kek, place, kept: Mutex::default(), changing: tokio::sync::Mutex::default() }
    }

    /// The key of an epoch, made if it is missing. Nothing is sealed to it before the ledger names it.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub async fn make(&self, org: &OrgName, epoch: Epoch) -> Result<Made, KeyError> {
        if let Some(bytes) = self.place.get(org, epoch).await? {
            return self.stored(org, epoch, &bytes).await;
        }
        let key = KeyPair::random(Suite::XWing).map_err(|_| KeyError::Foreign(org.clone(), epoch))?;
        let wrapped = self.kek.wrap(org, epoch, &plain(org, epoch, &key)).await?;
        let bytes = of(org, epoch, &wrapped);
        let unknown = match self.place.create(org, epoch, bytes.clone()).await {
            Created::Won => None,
            Created::Exists => Some(None),
            Created::Unknown(e) => Some(Some(e)),
        };
        let stored = match (unknown, self.place.get(org, epoch).await?) {
            (_, Some(stored)) => stored,
            (Some(Some(e)), None) => return Err(e.into()),
            (_, None) => return Err(KeyError::Absent(org.clone(), epoch)),
        };
        if stored != bytes {
            // Another node was first: its key counts, and this one is forgotten.
            return self.stored(org, epoch, &stored).await;
        }
        let kek = self.wrap_if_rotated(org, epoch, bytes, (&key, wrapped.kek)).await?;
        Ok(Made { key, kek })
    }

    async fn stored(&self, org: &OrgName, epoch: Epoch, bytes: &Bytes) -> Result<Made, KeyError> {
        let key = self.open_wrapped(org, epoch, bytes).await?;
        let wrapped = WrappedKey::read(bytes, org, epoch).map_err(|_| KeyError::Foreign(org.clone(), epoch))?;
        Ok(Made { key, kek: wrapped.kek })
    }

    /// Wraps a key that was just made by the version that wraps now, if that is another by now; says which wraps it. The
    /// one that wrapped it may be destroyed already, by a rotation that did not see it yet.
    async fn wrap_if_rotated(
        &self,
        org: &OrgName,
        epoch: Epoch,
        mut stored: Bytes,
        (key, mut kek): (&KeyPair, String),
    ) -> Result<String, KeyError> {
        for _ in 0..REWRAPS {
            if self.kek.current().await? == kek {
                break;
            }
            let _lock = self.place.lock().await?;
            let wrapped = self.kek.wrap(org, epoch, &plain(org, epoch, key)).await?;
            let bytes = of(org, epoch, &wrapped);
            if !self.place.replace(org, epoch, &stored, bytes.clone()).await? {
                break;
            }
            (stored, kek) = (bytes, wrapped.kek);
        }
        Ok(kek)
    }

    /// The key of an epoch, which the ledger names by its id.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub async fn unwrap(&self, org: &OrgName, epoch: Epoch, named: &KeyId) -> Result<KeyPair, KeyError> {
        let kept = self.kept.lock().get(&(org.clone(), epoch)).filter(|(_, since)| since.elapsed() < KEPT).cloned();
        if let Some((key, _)) = kept.filter(|(key, _)| key.public().id() == *named) {
            return Ok(key);
        }
        let bytes = self.place.get(org, epoch).await?.ok_or_else(|| KeyError::Absent(org.clone(), epoch))?;
        let key = self.open_wrapped(org, epoch, &bytes).await?;
        if key.public().id() != *named {
            return Err(KeyError::Foreign(org.clone(), epoch));
        }
        self.kept.lock().insert((org.clone(), epoch), (key.clone(), Instant::now()));
        Ok(key)
    }

    async fn open_wrapped(&self, org: &OrgName, epoch: Epoch, bytes: &Bytes) -> Result<KeyPair, KeyError> {
        let foreign = |_| KeyError::Foreign(org.clone(), epoch);
        let read = WrappedKey::read(bytes, org, epoch).map_err(foreign)?;
        let wrapped = Wrapped { kek: read.kek, bytes: read.wrapped };
        let plain = self.kek.unwrap(org, epoch, &wrapped).await?;
        read_plain(&plain, org, epoch).map_err(foreign)
    }

    /// Wipes keys that were kept long enough, and those that `is_gone` names.
    pub fn forget(&self, is_gone: impl Fn(&OrgName, Epoch) -> bool) {
        self.kept.lock().retain(|(org, epoch), (_, since)| since.elapsed() < KEPT && !is_gone(org, *epoch));
    }

    /// The epochs that keys lie there of.
    ///
    /// # Errors
    /// What the store says.
    pub async fn list(&self) -> Result<Vec<(OrgName, Epoch)>, KeyError> {
        Ok(self.place.list().await?)
    }

    /// Destroys a key: every version of what lies there, and what is kept of it here. Says how many versions there
    /// were, and which KEK wrapped the last one.
    ///
    /// # Errors
    /// See [`KeyError`]; it is safe to try again.
    pub async fn destroy(&self, org: &OrgName, epoch: Epoch) -> Result<(usize, Option<String>), KeyError> {
        let (_changing, _lock) = (self.changing.lock().await, self.place.lock().await?);
        self.forget(|of, at| of == org && at == epoch);
        let found = self.place.get(org, epoch).await?;
        let kek = found.and_then(|bytes| WrappedKey::read(&bytes, org, epoch).ok()).map(|wrapped| wrapped.kek);
        Ok((self.place.delete(org, epoch).await?, kek))
    }

    /// Rotates the KEK: a new version wraps, every living key is wrapped anew, and what wraps nothing any more is
    /// destroyed.
    ///
    /// # Errors
    /// See [`KeyError`]. What was wrapped anew stays so, nothing was destroyed, and rotating again does the rest.
    pub async fn rotate(&self) -> Result<Rotated, KeyError> {
        let (_changing, _lock) = (self.changing.lock().await, self.place.lock().await?);
        let rotation = self.kek.rotate().await?;
        let (mut rewrapped, mut before) = (0, BTreeSet::new());
        // What wraps now; another rotation may begin meanwhile, and wrap by what is newer still.
        let mut fresh = BTreeSet::from([rotation.now.clone()]);
        // Again, for keys that were made meanwhile: until none is found that is wrapped by what was before.
        let mut is_done = false;
        for _ in 0..REWRAPS {
            is_done = true;
            for (org, epoch) in self.place.list().await? {
                let Some(bytes) = self.place.get(&org, epoch).await? else { continue };
                let foreign = |_| KeyError::Foreign(org.clone(), epoch);
                let read = WrappedKey::read(&bytes, &org, epoch).map_err(foreign)?;
                if fresh.contains(&read.kek) {
                    continue;
                }
                let wrapped = Wrapped { kek: read.kek, bytes: read.wrapped };
                let anew = self.kek.rewrap(&org, epoch, &wrapped).await?;
                before.insert(wrapped.kek);
                is_done = false;
                if self.place.replace(&org, epoch, &bytes, of(&org, epoch, &anew)).await? {
                    rewrapped += 1;
                }
                fresh.insert(anew.kek);
            }
            if is_done {
                break;
            }
        }
        if !is_done {
            let reason = "keys that older versions wrap keep coming; nothing was destroyed";
            return Err(KekError::Unavailable(reason.to_owned()).into());
        }
        before.retain(|kek| !fresh.contains(kek));
        let destroyed = match rotation.before {
            Before::Older => self.kek.destroy_older(&rotation.now).await?,
            Before::Named => {
                for kek in &before {
                    self.kek.destroy(kek).await?;
                }
                before.into_iter().collect()
            }
            Before::Operator => Vec::new(),
        };
        Ok(Rotated { kek: rotation.now, rewrapped, destroyed })
    }

    /// What kind of KEK it is.
    pub fn kind(&self) -> &'static str {
        self.kek.kind()
    }
}

fn of(org: &OrgName, epoch: Epoch, wrapped: &Wrapped) -> Bytes {
    let key = WrappedKey { org: org.clone(), epoch, kek: wrapped.kek.clone(), wrapped: wrapped.bytes.clone() };
    key.write().into()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use async_trait::async_trait;
    use object_store::path::Path;
    use zeroize::Zeroizing;

    use super::super::file::FileKek;
    use super::super::kek::{Before, Kek, KekError, Rotation, Wrapped};
    use super::super::place::KeyPlace;
    use super::{KeyError, KeyService, of, plain};
    use crate::config::{PayloadKeys, Storage};
    use crate::model::OrgName;
    use crate::payload::{Epoch, KeyPair, Suite};
    use crate::storage::{Created, Store};

    struct Bench {
        folder: tempfile::TempDir,
        store: Store,
    }

    impl Bench {
        fn new() -> Self {
            Self { folder: tempfile::tempdir().unwrap(), store: Store::open("memory://").unwrap() }
        }

        fn service(&self) -> KeyService {
            let kek = FileKek::open(&self.folder.path().join("kek")).unwrap();
            KeyService::new(Arc::new(kek), KeyPlace::on(self.store.clone()))
        }
    }

    #[tokio::test]
    async fn nodes_that_make_a_key_at_once_have_the_same() {
        let bench = Bench::new();
        let nodes = [bench.service(), bench.service(), bench.service()];
        let (org, epoch) = ("acme".parse().unwrap(), "2026-11-26.30d".parse().unwrap());
        let made = futures::future::join_all(nodes.iter().map(|node| node.make(&org, epoch))).await;
        let keys: Vec<_> = made.into_iter().map(|made| made.unwrap().key.public().clone()).collect();
        assert!(keys.iter().all(|key| *key == keys[0]));
        assert_eq!(nodes[2].unwrap(&org, epoch, &keys[0].id()).await.unwrap().public(), &keys[0]);
    }

    /// A node pauses after it has made a key, and another one rotates and destroys the version that wraps it.
    #[tokio::test]
    async fn a_key_that_was_wrapped_by_a_version_that_is_gone_is_wrapped_anew() {
        let bench = Bench::new();
        let (slow, other) = (bench.service(), bench.service());
        let (org, epoch): (OrgName, Epoch) = ("acme".parse().unwrap(), "2026-11-26.30d".parse().unwrap());
        // So that there is a version to wrap by.
        other.make(&org, "2026-11-25.30d".parse().unwrap()).await.unwrap();
        let key = KeyPair::random(Suite::XWing).unwrap();
        let wrapped = slow.kek.wrap(&org, epoch, &plain(&org, epoch, &key)).await.unwrap();
        other.rotate().await.unwrap();
        let bytes = of(&org, epoch, &wrapped);
        assert!(matches!(slow.place.create(&org, epoch, bytes.clone()).await, Created::Won));
        slow.wrap_if_rotated(&org, epoch, bytes, (&key, wrapped.kek)).await.unwrap();
        other.unwrap(&org, epoch, &key.public().id()).await.unwrap();
    }

    /// On a folder, which cannot swap.
    #[tokio::test]
    async fn keys_are_changed_by_one_process_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let place = || KeyPlace::on(Store::open(&format!("file://{}", folder.path().display())).unwrap());
        let held = place().lock().await.unwrap().unwrap();
        let service = KeyService::new(Arc::new(FileKek::open(&folder.path().join("kek")).unwrap()), place());
        let waited = tokio::time::timeout(Duration::from_millis(300), service.rotate()).await;
        assert!(waited.is_err(), "it rotates while another process holds the keys");
        drop(held);
        service.rotate().await.unwrap();
    }

    #[tokio::test]
    async fn a_key_that_the_ledger_does_not_name_is_believed_by_nobody() {
        let bench = Bench::new();
        let (org, epoch, other) =
            ("acme".parse().unwrap(), "2026-11-26.30d".parse().unwrap(), "2026-11-27.30d".parse().unwrap());
        let service = bench.service();
        let key = service.make(&org, epoch).await.unwrap().key;
        let another = service.make(&org, other).await.unwrap().key;
        // What lies under another name says itself whose it is.
        let bytes = bench.store.get(&Path::from("payload-keys/acme/2026-11-27.30d")).await.unwrap().unwrap();
        bench.store.put(&Path::from("payload-keys/acme/2026-11-26.30d"), bytes).await.unwrap();
        let refused = bench.service().unwrap(&org, epoch, &key.public().id()).await;
        assert!(matches!(refused, Err(KeyError::Foreign(..))), "{refused:?}");
        let refused = bench.service().unwrap(&org, other, &key.public().id()).await;
        assert!(matches!(refused, Err(KeyError::Foreign(..))), "{refused:?}");
        bench.service().unwrap(&org, other, &another.public().id()).await.unwrap();
    }

    #[tokio::test]
    async fn a_survey_finds_keys_that_nobody_can_unwrap_and_makes_nothing() {
        let bench = Bench::new();
        let file = bench.folder.path().join("kek");
        let (settings, main) = (PayloadKeys { file: file.clone(), ..PayloadKeys::default() }, Storage::default());
        let survey = async || super::survey(&settings, (&main, &bench.store)).await;
        assert!(survey().await.unwrap().is_empty() && !file.exists(), "no key, and no KEK is made");
        let (org, epoch) = ("acme".parse().unwrap(), "2026-11-26.30d".parse().unwrap());
        let service = bench.service();
        service.make(&org, epoch).await.unwrap();
        assert!(matches!(survey().await.unwrap().as_slice(), [(_, _, Ok(()))]));
        std::fs::remove_file(&file).unwrap();
        assert!(matches!(survey().await, Err(KeyError::Kek(KekError::Unavailable(_)))) && !file.exists());
        bench.service();
        let found = survey().await.unwrap();
        assert!(matches!(found.as_slice(), [(_, at, Err(KeyError::Kek(KekError::Refused(_))))] if *at == epoch));
    }

    #[tokio::test]
    async fn a_copy_with_the_key_store_opens_nothing_after_the_next_rotation() {
        let bench = Bench::new();
        let (org, kept, gone) =
            ("acme".parse().unwrap(), "2026-11-26.30d".parse().unwrap(), "2026-10-26.30d".parse().unwrap());
        let service = bench.service();
        let (living, dead) = (service.make(&org, kept).await.unwrap().key, service.make(&org, gone).await.unwrap().key);
        let at = Path::from("payload-keys/acme/2026-10-26.30d");
        let copy = bench.store.get(&at).await.unwrap().unwrap();
        assert_eq!(service.destroy(&org, gone).await.unwrap(), (1, Some("file:1".to_owned())));
        assert!(matches!(service.unwrap(&org, gone, &dead.public().id()).await, Err(KeyError::Absent(..))));
        // A thief's copy still opens with the KEK of that day …
        bench.store.put(&at, copy.clone()).await.unwrap();
        service.unwrap(&org, gone, &dead.public().id()).await.unwrap();
        service.destroy(&org, gone).await.unwrap();
        let rotated = service.rotate().await.unwrap();
        assert_eq!((rotated.rewrapped, rotated.destroyed), (1, vec!["file:1".to_owned()]));
        // … and with no KEK after it.
        bench.store.put(&at, copy).await.unwrap();
        assert!(matches!(bench.service().unwrap(&org, gone, &dead.public().id()).await, Err(KeyError::Kek(_))));
        bench.service().unwrap(&org, kept, &living.public().id()).await.unwrap();
    }

    /// A KEK that wraps nothing; while it wraps one key anew, a node that knows no rotation puts another one there.
    #[derive(Debug)]
    struct Outrun {
        store: Store,
        came: AtomicU64,
    }

    #[async_trait]
    impl Kek for Outrun {
        fn kind(&self) -> &'static str {
            "outrun"
        }

        async fn current(&self) -> Result<String, KekError> {
            Ok("outrun:2".to_owned())
        }

        async fn wrap(&self, _: &OrgName, _: Epoch, plain: &[u8]) -> Result<Wrapped, KekError> {
            Ok(Wrapped { kek: "outrun:2".to_owned(), bytes: plain.to_vec() })
        }

        async fn unwrap(&self, _: &OrgName, _: Epoch, wrapped: &Wrapped) -> Result<Zeroizing<Vec<u8>>, KekError> {
            Ok(Zeroizing::new(wrapped.bytes.clone()))
        }

        async fn rewrap(&self, org: &OrgName, epoch: Epoch, wrapped: &Wrapped) -> Result<Wrapped, KekError> {
            let days = u32::try_from(self.came.fetch_add(1, Ordering::Relaxed)).unwrap() + 100;
            let other = Epoch::new(epoch.date(), days).unwrap();
            let old = Wrapped { kek: "outrun:1".to_owned(), bytes: wrapped.bytes.clone() };
            self.store.put(&Path::from(format!("payload-keys/{org}/{other}")), of(org, other, &old)).await.unwrap();
            self.wrap(org, epoch, &wrapped.bytes).await
        }

        async fn rotate(&self) -> Result<Rotation, KekError> {
            Ok(Rotation { now: "outrun:2".to_owned(), before: Before::Older })
        }

        async fn destroy_older(&self, _: &str) -> Result<Vec<String>, KekError> {
            panic!("what still wraps keys is destroyed")
        }
    }

    #[tokio::test]
    async fn what_still_wraps_a_key_is_not_destroyed_however_many_keys_come_meanwhile() {
        let store = Store::open("memory://").unwrap();
        let kek = Outrun { store: store.clone(), came: AtomicU64::new(0) };
        let (org, epoch): (OrgName, Epoch) = ("acme".parse().unwrap(), "2026-11-26.30d".parse().unwrap());
        let old = Wrapped { kek: "outrun:1".to_owned(), bytes: b"a key".to_vec() };
        store.put(&Path::from(format!("payload-keys/{org}/{epoch}")), of(&org, epoch, &old)).await.unwrap();
        let rotated = KeyService::new(Arc::new(kek), KeyPlace::on(store)).rotate().await;
        assert!(matches!(rotated, Err(KeyError::Kek(KekError::Unavailable(_)))), "{rotated:?}");
    }
}
