//! The key that cookies are sealed with: of `session.key_file`, or made of the ledger's key, which all nodes have.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use zeroize::Zeroizing;

use super::Sealer;
use crate::audit::SigningKeys;
use crate::config;

/// The permission bits that only the owner may have.
const OTHERS: u32 = 0o077;

impl Sealer {
    /// The sealer of these settings.
    ///
    /// # Errors
    /// When a key file cannot be read, others may read it, or it holds no key: in words for people.
    pub fn load(settings: &config::Session, signing: &SigningKeys) -> Result<Self, String> {
        let (current, previous) = match &settings.key_file {
            Some(path) => (read(path)?, settings.previous_key_file.as_deref().map(read).transpose()?),
            None => signing.seeds(),
        };
        let previous = previous.as_ref().map(|previous| previous.as_slice());
        Self::new(current.as_slice(), previous).ok_or_else(|| "no key can be made to seal sessions with".to_owned())
    }
}

fn read(path: &Path) -> Result<Zeroizing<[u8; 32]>, String> {
    let failed = |reason: &dyn std::fmt::Display| format!("the session key {}: {reason}", path.display());
    let mode = fs::metadata(path).map_err(|e| failed(&e))?.permissions().mode();
    if mode & OTHERS != 0 {
        return Err(failed(&format!("others may read it (mode {:04o}); chmod 600 it", mode & 0o7777)));
    }
    let text = Zeroizing::new(fs::read_to_string(path).map_err(|e| failed(&e))?);
    let advice = "it is not 64 hex digits; `openssl rand -hex 32` makes some";
    let hash = blake3::Hash::from_hex(text.trim()).map_err(|_| failed(&advice))?;
    Ok(Zeroizing::new(*hash.as_bytes()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use ed25519_dalek::SigningKey;

    use super::Sealer;
    use crate::audit::SigningKeys;
    use crate::config::Session;

    const ORIGIN: &str = "https://m";

    #[test]
    fn nodes_of_one_ledger_key_open_each_others_cookies() {
        let keys = |byte| SigningKeys::new(SigningKey::from_bytes(&[byte; 32]));
        let sealer = |keys: &SigningKeys| Sealer::load(&Session::default(), keys).unwrap();
        let sealed = sealer(&keys(1)).seal("c", ORIGIN, b"x").unwrap();
        assert!(sealer(&keys(1)).open("c", ORIGIN, &sealed).is_some());
        assert!(sealer(&keys(2)).open("c", ORIGIN, &sealed).is_none());
        let changed = keys(2).with_previous(SigningKey::from_bytes(&[1; 32]));
        assert!(sealer(&changed).open("c", ORIGIN, &sealed).is_some());
    }

    #[test]
    fn a_key_file_is_hex_that_nobody_else_may_read() {
        let folder = tempfile::tempdir().unwrap();
        let load = |text: &str, mode| {
            let path = folder.path().join("session.key");
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let settings = Session { key_file: Some(path), ..Session::default() };
            Sealer::load(&settings, &SigningKeys::new(SigningKey::from_bytes(&[1; 32]))).map(drop)
        };
        let key = "ab".repeat(32);
        load(&format!("{key}\n"), 0o600).unwrap();
        assert!(load(&key, 0o644).unwrap_err().contains("chmod 600"));
        assert!(load("short", 0o600).unwrap_err().contains("64 hex digits"));
    }
}
