//! The keys that checkpoints are signed with. They are never in the object store.
//!
//! A key is an Ed25519 private key in PKCS#8 PEM, as `openssl genpkey -algorithm ed25519` makes it, in a file that only
//! its owner may read (mode 0600), or in an environment variable. The file is made at the first start.
//!
//! To change the key, the old one stays configured as the previous one for a while: checkpoints are then signed with
//! both, so that verifiers that know either can go on.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use ed25519_dalek::SigningKey;
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{DecodePrivateKey, EncodePrivateKey};
use rand::Rng;
use zeroize::Zeroizing;

use super::AuditError;
use super::note::{Algorithm, Note, VKey};

/// The permission bits that only the owner may have.
const OTHERS: u32 = 0o077;

/// The current key and, for the overlap after a change, the one before.
#[derive(Clone)]
pub struct SigningKeys {
    current: SigningKey,
    previous: Option<SigningKey>,
}

impl fmt::Debug for SigningKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKeys").field("overlap", &self.previous.is_some()).finish_non_exhaustive()
    }
}

impl SigningKeys {
    /// Signs with `current` alone.
    pub fn new(current: SigningKey) -> Self {
        Self { current, previous: None }
    }

    /// Signs with `previous` as well.
    #[must_use]
    pub fn with_previous(self, previous: SigningKey) -> Self {
        Self { previous: Some(previous), ..self }
    }

    /// Whether checkpoints are signed with two keys.
    pub fn has_overlap(&self) -> bool {
        self.previous.is_some()
    }

    /// The verifier key of the current key for the ledger `origin`.
    ///
    /// # Errors
    /// When the origin cannot be a key's name.
    pub fn vkey(&self, origin: &str) -> Result<VKey, AuditError> {
        VKey::new(origin, Algorithm::Ed25519, self.current.verifying_key())
    }

    /// The verifier keys of all keys, the current one first.
    ///
    /// # Errors
    /// As [`SigningKeys::vkey`].
    pub fn vkeys(&self, origin: &str) -> Result<Vec<VKey>, AuditError> {
        let keys = [Some(&self.current), self.previous.as_ref()].into_iter().flatten();
        keys.map(|key| VKey::new(origin, Algorithm::Ed25519, key.verifying_key())).collect()
    }

    /// Keys of another use, derived from the current signing key and, if there is one, from the one before: BLAKE3's
    /// key derivation with `context`.
    pub fn derive(&self, context: &str) -> ([u8; 32], Option<[u8; 32]>) {
        let derive = |key: &SigningKey| blake3::derive_key(context, key.as_bytes());
        (derive(&self.current), self.previous.as_ref().map(derive))
    }

    /// The secrets of the current key and, if there is one, of the one before, for keys of another use that a
    /// specification derives from them.
    pub fn seeds(&self) -> (Zeroizing<[u8; 32]>, Option<Zeroizing<[u8; 32]>>) {
        let seed = |key: &SigningKey| Zeroizing::new(key.to_bytes());
        (seed(&self.current), self.previous.as_ref().map(seed))
    }

    /// Signs a note under the name `origin`.
    ///
    /// # Errors
    /// When the origin cannot be a key's name.
    pub(crate) fn sign(&self, text: String, origin: &str) -> Result<Note, AuditError> {
        let keys: Vec<_> = [Some(&self.current), self.previous.as_ref()].into_iter().flatten().collect();
        Note::sign(text, origin, &keys)
    }
}

/// Reads a key from its PEM text.
///
/// # Errors
/// [`AuditError::Key`] when it is not a key.
pub fn parse(pem: &str) -> Result<SigningKey, AuditError> {
    let advice = "it is not an Ed25519 private key in PKCS#8 PEM; `openssl genpkey -algorithm ed25519` makes one";
    SigningKey::from_pkcs8_pem(pem.trim()).map_err(|_| AuditError::Key(advice.to_owned()))
}

/// Reads the key in `path`; makes one there if there is no such file.
///
/// # Errors
/// [`AuditError::Key`] when the file cannot be read or made, others may read it, or it holds no key.
pub fn load_or_make(path: &Path) -> Result<SigningKey, AuditError> {
    match load(path)? {
        Some(key) => Ok(key),
        None => make(path),
    }
}

/// Reads the key in `path`, if there is such a file.
///
/// # Errors
/// As [`load_or_make`].
pub fn load(path: &Path) -> Result<Option<SigningKey>, AuditError> {
    let fault = |reason: &dyn fmt::Display| AuditError::Key(format!("{}: {reason}", path.display()));
    let mode = match fs::metadata(path) {
        Ok(metadata) => metadata.permissions().mode(),
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(fault(&e)),
    };
    if mode & OTHERS != 0 {
        let advice =
            format!("others may read it (mode {:04o}); chmod 600 it, and change the key if others have", mode & 0o7777);
        return Err(fault(&advice));
    }
    let pem = fs::read_to_string(path).map_err(|e| fault(&e))?;
    parse(&pem).map(Some).map_err(|e| fault(&e))
}

/// Makes a key. It is written beside its place and linked there, so that of several processes that start at once all
/// take the first one's key, and a crash leaves no half of one.
fn make(path: &Path) -> Result<SigningKey, AuditError> {
    let fault = |e: &dyn fmt::Display| AuditError::Key(format!("{} cannot be made: {e}", path.display()));
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    fs::create_dir_all(folder).map_err(|e| fault(&e))?;
    let mut seed = [0; 32];
    rand::rng().fill_bytes(&mut seed);
    let key = SigningKey::from_bytes(&seed);
    let pem = key.to_pkcs8_pem(LineEnding::LF).map_err(|e| fault(&e))?;
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}", uuid::Uuid::new_v4()));
    let beside = Path::new(&beside);
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(beside)?;
        file.write_all(pem.as_bytes())?;
        file.sync_all()?;
        match fs::hard_link(beside, path) {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        fs::remove_file(beside)?;
        File::open(folder)?.sync_all()
    })();
    written.map_err(|e| fault(&e))?;
    load(path)?.ok_or_else(|| fault(&"it went away again"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::{load, load_or_make, parse};

    #[test]
    fn a_key_is_made_once_and_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys/ledger.key");
        assert!(load(&path).unwrap().is_none());
        let made = load_or_make(&path).unwrap();
        assert_eq!(load_or_make(&path).unwrap(), made);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_key_that_others_may_read_or_that_is_none_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.key");
        load_or_make(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(load_or_make(&path).unwrap_err().to_string().contains("chmod 600"));
        assert!(parse("-----BEGIN PRIVATE KEY-----\nx\n-----END PRIVATE KEY-----").is_err());
    }

    #[test]
    fn a_key_that_openssl_made_is_read() {
        let pem = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n";
        assert_eq!(parse(pem).unwrap().to_bytes()[..4], [0xd4, 0xee, 0x72, 0xdb]);
    }
}
