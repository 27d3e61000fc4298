//! 32 secret bytes on a page of their own, which is locked in memory and zeroized when it is dropped.
//!
//! A locked page is written to no swap. Where the system lets no more pages be locked (`RLIMIT_MEMLOCK`) the secret is
//! kept all the same, and the log says so once: what must not be there at all is a core dump, which both programs
//! forbid.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

use rand::Rng;
use region::LockGuard;
use zeroize::Zeroize;

/// Memory is locked by pages: two secrets on one page would be unlocked by the first that goes.
#[repr(align(4096))]
struct Page([u8; 4096]);

/// 32 secret bytes in locked memory.
pub struct Secret {
    /// Dropped before the page is freed.
    _lock: Option<LockGuard>,
    page: Box<Page>,
}

impl Secret {
    /// Takes over secret bytes. The caller zeroizes its own copy.
    pub fn new(bytes: &[u8; 32]) -> Self {
        static SAID: AtomicBool = AtomicBool::new(false);
        let mut page = Box::new(Page([0; 4096]));
        let lock = region::lock(page.0.as_ptr(), page.0.len());
        if let Err(error) = &lock
            && !SAID.swap(true, Ordering::Relaxed)
        {
            tracing::warn!(%error, "a key could not be locked in memory; raise RLIMIT_MEMLOCK");
        }
        page.0.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        Self { _lock: lock.ok(), page }
    }

    /// 32 random bytes.
    pub fn random() -> Self {
        let mut bytes = [0; 32];
        rand::rng().fill_bytes(&mut bytes);
        let secret = Self::new(&bytes);
        bytes.zeroize();
        secret
    }

    /// The bytes.
    pub fn expose(&self) -> &[u8; 32] {
        // A page has more than 32 bytes.
        self.page.0.first_chunk().unwrap_or(&[0; 32])
    }
}

impl Clone for Secret {
    fn clone(&self) -> Self {
        Self::new(self.expose())
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.page.0.zeroize();
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

#[cfg(test)]
mod tests {
    use super::Secret;

    #[test]
    fn secrets_are_apart_and_tell_nothing() {
        let (one, two) = (Secret::random(), Secret::random());
        assert_ne!(one.expose(), two.expose());
        assert_eq!(one.clone().expose(), one.expose());
        assert_eq!(format!("{one:?}"), "Secret");
        let page = |secret: &Secret| secret.expose().as_ptr() as usize / 4096;
        assert_ne!(page(&one), page(&two), "two secrets on one page would be unlocked together");
    }
}
