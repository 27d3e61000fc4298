//! SHA-256, HKDF (RFC 5869) with SHA-256, and comparing without telling where two values differ.

use hkdf::Hkdf;
use sha2::{Digest as _, Sha256};

/// SHA-256 of parts, one after another.
pub(super) fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    parts.iter().for_each(|part| hasher.update(part));
    hasher.finalize().into()
}

/// `HKDF(salt, ikm, info, N)`. Every length that is asked for is far below the most that HKDF gives.
pub(super) fn hkdf<const N: usize>(salt: &[u8], ikm: &[u8], info: &[&[u8]]) -> [u8; N] {
    let mut out = [0; N];
    let expanded = Hkdf::<Sha256>::new(Some(salt), ikm).expand_multi_info(info, &mut out);
    debug_assert!(expanded.is_ok(), "HKDF gives up to 8,160 bytes");
    out
}

/// Whether two values are the same, in a time that does not depend on where they differ.
pub(super) fn is_same(one: [u8; 32], other: [u8; 32]) -> bool {
    // The comparison of these takes the same time wherever they differ.
    blake3::Hash::from(one) == blake3::Hash::from(other)
}
