//! A KEK in a file, or in the environment: one line a version, `<number> <64 hex>`; the highest wraps.
//!
//! ```text
//! key     = HKDF(32 zero bytes, KEK, "mcpg.payload-key/1 wrap", 32)
//! wrapped = nonce (12 random) ‖ AES-256-GCM(key, AAD = lp(org) ‖ lp(epoch))
//! ```
//!
//! The file is read at each use, which is rare: so a version that another process added is known at once, and one that
//! was removed is used no more. It is replaced whole, by a rename, and never changed in place. Only its owner may read
//! it (mode 0600). Who replaces it holds the lock of the file `<file>.lock` from before reading to after the rename:
//! two nodes that rotate at once would else both write the number after the newest, and what the first has wrapped by
//! its own would open nowhere.

use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use async_trait::async_trait;
use hkdf::Hkdf;
use rand::Rng;
use sha2::Sha256;
use tokio::time::sleep;
use zeroize::{Zeroize, Zeroizing};

use super::kek::{Before, Kek, KekError, Rotation, Wrapped};
use crate::config::Secret as Text;
use crate::model::OrgName;
use crate::payload::{Epoch, Secret};

const KIND: &str = "file";
const WRAP: &[u8] = b"mcpg.payload-key/1 wrap";
const NONCE: usize = 12;
/// How often the lock is tried, and how long after a failure: it is held for a read, a write and a sync.
const LOCK_TRIES: usize = 500;
const LOCK_RETRY: Duration = Duration::from_millis(20);
/// The bits that nobody but the owner may have.
const OTHERS: u32 = 0o077;

/// Where the versions stand.
#[derive(Debug)]
enum Source {
    File(PathBuf),
    Environment(Text),
}

/// A KEK in a file or in the environment.
#[derive(Debug)]
pub(super) struct FileKek(Source);

/// Versions by number, ascending.
type Versions = Vec<(u64, Secret)>;

impl FileKek {
    /// The KEK of a file, which is made if it is not there.
    pub(super) fn open(path: &Path) -> Result<Self, KekError> {
        let kek = Self(Source::File(path.to_owned()));
        match kek.versions() {
            Err(KekError::Unavailable(_)) if !path.exists() => {
                write(path, &[(1, Secret::random())], true).map_err(|e| unusable(path, &e))?;
                kek.versions()?;
            }
            read => drop(read?),
        }
        Ok(kek)
    }

    /// The KEK of a file that is there.
    pub(super) fn existing(path: &Path) -> Result<Self, KekError> {
        let kek = Self(Source::File(path.to_owned()));
        kek.versions().map(|_| kek)
    }

    /// The KEK of these lines; only the operator who sets them can rotate it.
    pub(super) fn of_environment(lines: &Text) -> Result<Self, KekError> {
        let kek = Self(Source::Environment(lines.clone()));
        kek.versions().map(|_| kek)
    }

    fn versions(&self) -> Result<Versions, KekError> {
        match &self.0 {
            Source::Environment(lines) => {
                parse(lines.expose()).map_err(|e| KekError::Unusable(format!("payload_keys.key: {e}")))
            }
            Source::File(path) => {
                let away = |e: &dyn fmt::Display| KekError::Unavailable(format!("{}: {e}", path.display()));
                let mode = fs::metadata(path).map_err(|e| away(&e))?.permissions().mode();
                if mode & OTHERS != 0 {
                    let advice = format!(
                        "others may read it (mode {:04o}); chmod 600 it, and rotate it if others have",
                        mode & 0o7777
                    );
                    return Err(unusable(path, &advice));
                }
                let text = Zeroizing::new(fs::read_to_string(path).map_err(|e| away(&e))?);
                parse(&text).map_err(|e| unusable(path, &e))
            }
        }
    }

    fn newest(&self) -> Result<(u64, Secret), KekError> {
        self.versions()?.pop().ok_or_else(|| KekError::Unusable("there is no version of the KEK".to_owned()))
    }

    fn version(&self, kek: &str) -> Result<Secret, KekError> {
        let gone = || KekError::Refused(format!("it was wrapped by {kek}, which is not there any more"));
        let number: u64 = kek.strip_prefix("file:").and_then(|number| number.parse().ok()).ok_or_else(gone)?;
        self.versions()?.into_iter().find(|(of, _)| *of == number).map(|(_, key)| key).ok_or_else(gone)
    }

    fn path(&self) -> Result<&Path, KekError> {
        match &self.0 {
            Source::File(path) => Ok(path),
            Source::Environment(_) => Err(KekError::Unusable(
                "the KEK is in the environment: the operator takes its old lines out".to_owned(),
            )),
        }
    }
}

/// The lock of those who replace the file, until it is dropped.
async fn lock(path: &Path) -> Result<File, KekError> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".lock");
    let opened = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&beside);
    let file = opened.map_err(|e| unusable(path, &format!("its lock: {e}")))?;
    for _ in 0..LOCK_TRIES {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => sleep(LOCK_RETRY).await,
            Err(TryLockError::Error(e)) => return Err(unusable(path, &format!("its lock: {e}"))),
        }
    }
    Err(KekError::Unavailable(format!("{}: another process replaces it", path.display())))
}

fn unusable(path: &Path, e: &dyn fmt::Display) -> KekError {
    KekError::Unusable(format!("the KEK {}: {e}", path.display()))
}

fn parse(text: &str) -> Result<Versions, String> {
    let mut versions = Versions::new();
    for (line, at) in text.lines().map(str::trim).filter(|line| !line.is_empty()).zip(1..) {
        let fault = || format!("line {at} is not `<number> <64 hex digits>`");
        let (number, hex) = line.split_once(' ').ok_or_else(fault)?;
        let number = number.parse::<u64>().ok().filter(|number| *number > 0).ok_or_else(fault)?;
        let mut key = crate::payload::Digest::from_hex(hex).ok_or_else(fault)?.0;
        versions.push((number, Secret::new(&key)));
        key.zeroize();
    }
    versions.sort_by_key(|(number, _)| *number);
    if versions.windows(2).any(|pair| matches!(pair, [(a, _), (b, _)] if a == b)) {
        return Err("a number stands twice".to_owned());
    }
    if versions.is_empty() { Err("it holds no version".to_owned()) } else { Ok(versions) }
}

/// Writes versions beside the file and puts them in its place; of a file that is to be made, only if none is there yet.
fn write(path: &Path, versions: &[(u64, Secret)], is_new: bool) -> std::io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    fs::create_dir_all(folder)?;
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}", uuid::Uuid::new_v4()));
    let beside = PathBuf::from(beside);
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        for (number, key) in versions {
            let hex = Zeroizing::new(crate::payload::Digest(*key.expose()).to_string());
            writeln!(file, "{number} {}", *hex)?;
        }
        file.sync_all()?;
        if is_new {
            match fs::hard_link(&beside, path) {
                Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(e),
                _ => {}
            }
        } else {
            fs::rename(&beside, path)?;
        }
        File::open(folder)?.sync_all()
    })();
    match fs::remove_file(&beside) {
        Err(e) if e.kind() != ErrorKind::NotFound => written.and(Err(e)),
        _ => written,
    }
}

fn cipher(key: &Secret) -> Aes256Gcm {
    let mut derived = [0; 32];
    let expanded = Hkdf::<Sha256>::new(Some(&[0; 32]), key.expose()).expand(WRAP, &mut derived);
    debug_assert!(expanded.is_ok(), "HKDF gives up to 8,160 bytes");
    let cipher = Aes256Gcm::new(&derived.into());
    derived.zeroize();
    cipher
}

fn bound(org: &OrgName, epoch: Epoch) -> Vec<u8> {
    let mut out = Vec::new();
    for part in [org.as_str().to_owned(), epoch.to_string()] {
        // Names of orgs and epochs are far below 65,536 bytes.
        out.extend_from_slice(&u16::try_from(part.len()).unwrap_or(u16::MAX).to_be_bytes());
        out.extend_from_slice(part.as_bytes());
    }
    out
}

#[async_trait]
impl Kek for FileKek {
    fn kind(&self) -> &'static str {
        KIND
    }

    async fn current(&self) -> Result<String, KekError> {
        self.newest().map(|(number, _)| format!("{KIND}:{number}"))
    }

    async fn wrap(&self, org: &OrgName, epoch: Epoch, plain: &[u8]) -> Result<Wrapped, KekError> {
        let (number, key) = self.newest()?;
        let mut nonce = [0; NONCE];
        rand::rng().fill_bytes(&mut nonce);
        let payload = Payload { msg: plain, aad: &bound(org, epoch) };
        let sealed = cipher(&key).encrypt(&Nonce::from(nonce), payload);
        let sealed = sealed.map_err(|_| KekError::Unusable("the key cannot be wrapped".to_owned()))?;
        Ok(Wrapped { kek: format!("{KIND}:{number}"), bytes: [&nonce[..], &sealed].concat() })
    }

    async fn unwrap(&self, org: &OrgName, epoch: Epoch, wrapped: &Wrapped) -> Result<Zeroizing<Vec<u8>>, KekError> {
        let key = self.version(&wrapped.kek)?;
        let changed = || KekError::Refused("what is wrapped was changed, or belongs elsewhere".to_owned());
        let (nonce, sealed) = wrapped.bytes.split_first_chunk::<NONCE>().ok_or_else(changed)?;
        let payload = Payload { msg: sealed, aad: &bound(org, epoch) };
        cipher(&key).decrypt(&Nonce::from(*nonce), payload).map(Zeroizing::new).map_err(|_| changed())
    }

    async fn rotate(&self) -> Result<Rotation, KekError> {
        let Source::File(path) = &self.0 else {
            return Ok(Rotation { now: self.current().await?, before: Before::Operator });
        };
        let _lock = lock(path).await?;
        let mut versions = self.versions()?;
        let number = versions.last().map_or(1, |(number, _)| number + 1);
        versions.push((number, Secret::random()));
        write(path, &versions, false).map_err(|e| unusable(path, &e))?;
        Ok(Rotation { now: format!("{KIND}:{number}"), before: Before::Older })
    }

    async fn destroy_older(&self, now: &str) -> Result<Vec<String>, KekError> {
        let path = self.path()?;
        let _lock = lock(path).await?;
        let (gone, kept): (Vec<_>, Vec<_>) =
            self.versions()?.into_iter().partition(|(number, _)| format!("{KIND}:{number}") != *now);
        let Some((newest, _)) = kept.last() else {
            return Err(KekError::Unusable(format!("{now} is not in the file; nothing was removed")));
        };
        // Another rotation may have begun: what is newer stays.
        let (newer, gone): (Vec<_>, Vec<_>) = gone.into_iter().partition(|(number, _)| number > newest);
        let names = gone.iter().map(|(number, _)| format!("{KIND}:{number}")).collect();
        let kept: Versions = kept.into_iter().chain(newer).collect();
        write(path, &kept, false).map_err(|e| unusable(path, &e))?;
        Ok(names)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Before, FileKek, Kek, KekError, lock, write};
    use crate::config::Secret;
    use crate::payload::Secret as Key;

    #[tokio::test]
    async fn what_a_version_wrapped_it_unwraps_until_it_is_destroyed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys/payload.kek");
        let (kek, org, epoch) =
            (FileKek::open(&path).unwrap(), "acme".parse().unwrap(), "2026-11-26.30d".parse().unwrap());
        let first = kek.wrap(&org, epoch, b"secret").await.unwrap();
        assert_eq!(first.kek, "file:1");
        assert_eq!(kek.unwrap(&org, epoch, &first).await.unwrap().as_slice(), b"secret");
        let elsewhere = kek.unwrap(&"globex".parse().unwrap(), epoch, &first).await;
        assert!(matches!(elsewhere, Err(KekError::Refused(_))));
        let before = std::fs::read_to_string(&path).unwrap();
        let rotation = kek.rotate().await.unwrap();
        let second = kek.rewrap(&org, epoch, &first).await.unwrap();
        assert_eq!((rotation.now.as_str(), second.kek.as_str()), ("file:2", "file:2"));
        assert!(kek.unwrap(&org, epoch, &first).await.is_ok(), "nothing is lost before it was wrapped anew");
        assert_eq!(kek.destroy_older(&rotation.now).await.unwrap(), ["file:1"]);
        assert!(matches!(kek.unwrap(&org, epoch, &first).await, Err(KekError::Refused(_))));
        assert_eq!(kek.unwrap(&org, epoch, &second).await.unwrap().as_slice(), b"secret");
        assert!(!std::fs::read_to_string(&path).unwrap().contains(before.trim()));
        // Another process opens the same file.
        let other = FileKek::open(&path).unwrap();
        assert_eq!(other.current().await.unwrap(), "file:2");
    }

    /// Two that both wrote the same number would each wrap by a key of that name, and one of them would be gone.
    #[tokio::test]
    async fn who_rotates_waits_for_another_that_does_and_takes_a_number_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("payload.kek");
        let kek = FileKek::open(&path).unwrap();
        let held = lock(&path).await.unwrap();
        let mut rotating = tokio::spawn(async move { kek.rotate().await });
        assert!(tokio::time::timeout(Duration::from_millis(100), &mut rotating).await.is_err(), "it does not wait");
        write(&path, &[(1, Key::random()), (2, Key::random())], false).unwrap();
        drop(held);
        assert_eq!(rotating.await.unwrap().unwrap().now, "file:3");
        assert_eq!(FileKek::open(&path).unwrap().versions().unwrap().len(), 3);
    }

    #[tokio::test]
    async fn a_kek_of_the_environment_is_rotated_by_a_line_with_a_higher_number() {
        let (one, two) = (format!("1 {}", "ab".repeat(32)), format!("2 {}", "cd".repeat(32)));
        let (org, epoch) = ("acme".parse().unwrap(), "2026-11-26.30d".parse().unwrap());
        let kek = |lines: &str| FileKek::of_environment(&Secret::new(lines)).unwrap();
        let first = kek(&one).wrap(&org, epoch, b"secret").await.unwrap();
        let both = kek(&format!("{one}\n{two}"));
        let rotation = both.rotate().await.unwrap();
        assert_eq!((rotation.now.as_str(), rotation.before), ("file:2", Before::Operator));
        let second = both.rewrap(&org, epoch, &first).await.unwrap();
        assert_eq!(kek(&two).unwrap(&org, epoch, &second).await.unwrap().as_slice(), b"secret");
        assert!(matches!(kek(&two).unwrap(&org, epoch, &first).await, Err(KekError::Refused(_))));
        assert!(both.destroy_older("file:2").await.is_err(), "what is not destroyed is not said to be");
    }

    #[test]
    fn a_file_that_others_may_read_or_that_holds_no_key_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kek");
        FileKek::open(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(FileKek::open(&path).unwrap_err().to_string().contains("chmod 600"));
        let hex = "ab".repeat(32);
        for bad in ["", "1", "1 zz", &format!("0 {hex}"), &format!("1 {hex}\n1 {hex}"), &format!("x {hex}")] {
            assert!(FileKek::of_environment(&Secret::new(bad)).is_err(), "{bad:?}");
        }
        FileKek::of_environment(&Secret::new(format!("2 {hex}\n\n1 {hex}"))).unwrap();
    }
}
