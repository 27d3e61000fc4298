//! Who signs checkpoints: it remembers the last one, and signs nothing that is not shown to extend it.
//!
//! What it remembers are the peaks of the last checkpoint's tree. It is given the hashes of the leaves added since,
//! grows its own peaks by them, and signs only if that makes the root that it was asked to sign. So a fault elsewhere
//! in the program, or a store that was rolled back under it, cannot make it sign two histories.

use std::sync::Arc;

use super::keys::SigningKeys;
use super::note::{Note, VKey};
use super::tree::Peaks;
use super::{AuditError, Checkpoint, Hash};

/// Signs checkpoints of one ledger.
#[derive(Debug)]
pub struct Signer {
    origin: String,
    keys: Arc<SigningKeys>,
    last: Peaks,
}

impl Signer {
    /// A signer that goes on from `last`: the peaks of the tree of the newest checkpoint, or none of an empty ledger.
    pub fn new(origin: String, keys: Arc<SigningKeys>, last: Peaks) -> Self {
        Self { origin, keys, last }
    }

    /// How many entries the last checkpoint covers.
    pub fn size(&self) -> u64 {
        self.last.size()
    }

    /// The ledger's origin.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Signs a checkpoint that extends the last one by the leaves of these hashes. Gives the signed note.
    ///
    /// # Errors
    /// [`AuditError::NoExtension`] when it does not.
    pub fn sign(&mut self, head: &Checkpoint, grown: &[Hash]) -> Result<String, AuditError> {
        let grown = self.grow(head, grown)?;
        let note = self.keys.sign(head.to_string(), &self.origin)?;
        self.last = grown;
        Ok(note.to_string())
    }

    /// Takes over a checkpoint that another node has signed, which is to be this one; by `also` too, the key that the
    /// ledger names.
    ///
    /// # Errors
    /// [`AuditError::Signature`] when none of these keys signed it, [`AuditError::NoExtension`] when it is another
    /// history.
    pub fn observe(
        &mut self,
        note: &str,
        also: Option<&VKey>,
        head: &Checkpoint,
        grown: &[Hash],
    ) -> Result<(), AuditError> {
        let found = self.check(note, also)?;
        if found != *head {
            let reason =
                format!("a signed checkpoint of {} entries has the root {}, not {}", found.size, found.root, head.root);
            return Err(AuditError::NoExtension(reason));
        }
        self.last = self.grow(head, grown)?;
        Ok(())
    }

    /// Reads a checkpoint that one of this deployment's keys, or `also`, has signed.
    ///
    /// # Errors
    /// [`AuditError::Signature`] when none has, [`AuditError::Malformed`] when it is no checkpoint of this ledger.
    pub fn check(&self, note: &str, also: Option<&VKey>) -> Result<Checkpoint, AuditError> {
        check_by(self.keys.vkeys(&self.origin)?.iter().chain(also), &self.origin, note)
    }

    fn grow(&self, head: &Checkpoint, grown: &[Hash]) -> Result<Peaks, AuditError> {
        // The last checkpoint once more: it was signed, and could not be stored.
        if head.origin == self.origin && head.size == self.last.size() && head.root == self.last.root() {
            return Ok(self.last.clone());
        }
        let mut peaks = self.last.clone();
        grown.iter().for_each(|leaf| peaks.push(*leaf));
        if head.origin != self.origin || head.size != peaks.size() || head.root != peaks.root() {
            return Err(AuditError::NoExtension(format!(
                "a checkpoint of {} with {} entries and root {} is not what the last one, of {} entries, grew to: {} with root {}",
                head.origin,
                head.size,
                head.root,
                self.last.size(),
                peaks.size(),
                peaks.root()
            )));
        }
        Ok(peaks)
    }
}

/// Reads a checkpoint of the ledger `origin` that one of `keys` has signed.
///
/// # Errors
/// As [`Signer::check`].
pub fn check(keys: &SigningKeys, origin: &str, note: &str) -> Result<Checkpoint, AuditError> {
    check_by(keys.vkeys(origin)?.iter(), origin, note)
}

fn check_by<'a>(vkeys: impl Iterator<Item = &'a VKey>, origin: &str, note: &str) -> Result<Checkpoint, AuditError> {
    let note: Note = note.parse()?;
    let mut verified = vkeys.map(|vkey| vkey.verify(&note));
    let first = verified.next().unwrap_or_else(|| Err(AuditError::Key("there is no signing key".to_owned())));
    if first.is_err() && !verified.any(|outcome| outcome.is_ok()) {
        first?;
    }
    let head: Checkpoint = note.text.parse()?;
    if head.origin != origin {
        return Err(AuditError::Malformed(format!("it is a head of {}, not of {origin}", head.origin)));
    }
    Ok(head)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ed25519_dalek::SigningKey;

    use super::Signer;
    use crate::audit::tree::{Peaks, leaf_hash};
    use crate::audit::{AuditError, Checkpoint, Hash, SigningKeys};

    const ORIGIN: &str = "mcpg.local/orgs/acme/audit/1";

    fn keys(seed: u8) -> Arc<SigningKeys> {
        Arc::new(SigningKeys::new(SigningKey::from_bytes(&[seed; 32])))
    }

    fn signer() -> Signer {
        Signer::new(ORIGIN.to_owned(), keys(1), Peaks::default())
    }

    fn leaves(numbers: std::ops::Range<u8>) -> Vec<Hash> {
        numbers.map(|n| leaf_hash(&[n])).collect()
    }

    fn head(leaves: &[Hash]) -> Checkpoint {
        let mut peaks = Peaks::default();
        leaves.iter().for_each(|leaf| peaks.push(*leaf));
        Checkpoint { origin: ORIGIN.to_owned(), size: peaks.size(), root: peaks.root() }
    }

    #[test]
    fn what_extends_the_last_head_is_signed() {
        let mut signer = signer();
        let note = signer.sign(&head(&leaves(0..3)), &leaves(0..3)).unwrap();
        assert_eq!(signer.check(&note, None), Ok(head(&leaves(0..3))));
        signer.sign(&head(&leaves(0..9)), &leaves(3..9)).unwrap();
        assert_eq!(signer.size(), 9);
    }

    #[test]
    fn the_last_head_may_be_signed_again_and_is_the_same_then() {
        let mut signer = signer();
        let note = signer.sign(&head(&leaves(0..3)), &leaves(0..3)).unwrap();
        assert_eq!(signer.sign(&head(&leaves(0..3)), &leaves(0..3)), Ok(note));
        signer.sign(&head(&leaves(0..4)), &leaves(3..4)).unwrap();
    }

    #[test]
    fn what_does_not_extend_the_last_head_is_not_signed() {
        let mut signer = signer();
        signer.sign(&head(&leaves(0..3)), &leaves(0..3)).unwrap();
        let another = Checkpoint { origin: "mcpg.local/orgs/globex/audit/1".to_owned(), ..head(&leaves(0..4)) };
        for (head, grown) in [
            (head(&leaves(1..5)), leaves(3..4)),
            (head(&leaves(0..2)), vec![]),
            (head(&leaves(0..5)), leaves(3..4)),
            (another, leaves(3..4)),
        ] {
            assert!(matches!(signer.sign(&head, &grown), Err(AuditError::NoExtension(_))), "{head}");
        }
        assert_eq!(signer.size(), 3);
    }

    #[test]
    fn a_head_that_a_peer_signed_is_taken_over_if_it_is_the_same() {
        let (mut one, mut two) = (signer(), signer());
        let note = one.sign(&head(&leaves(0..3)), &leaves(0..3)).unwrap();
        two.observe(&note, None, &head(&leaves(0..3)), &leaves(0..3)).unwrap();
        let forked = one.sign(&head(&[leaves(0..3), leaves(7..8)].concat()), &leaves(7..8)).unwrap();
        assert!(matches!(
            two.observe(&forked, None, &head(&leaves(0..4)), &leaves(3..4)),
            Err(AuditError::NoExtension(_))
        ));
        let mut stranger = Signer::new(ORIGIN.to_owned(), keys(2), Peaks::default());
        let outcome = stranger.observe(&note, None, &head(&leaves(0..3)), &leaves(0..3));
        assert!(matches!(outcome, Err(AuditError::Signature(_))));
        // Unless the ledger itself names the key.
        let named = keys(1).vkey(ORIGIN).unwrap();
        stranger.observe(&note, Some(&named), &head(&leaves(0..3)), &leaves(0..3)).unwrap();
    }

    #[test]
    fn in_an_overlap_either_key_verifies() {
        let both = SigningKeys::new(SigningKey::from_bytes(&[2; 32])).with_previous(SigningKey::from_bytes(&[1; 32]));
        let mut changed = Signer::new(ORIGIN.to_owned(), Arc::new(both), Peaks::default());
        let note = changed.sign(&head(&leaves(0..3)), &leaves(0..3)).unwrap();
        for seed in [1, 2] {
            assert!(super::check(&keys(seed), ORIGIN, &note).is_ok());
        }
        assert!(super::check(&keys(3), ORIGIN, &note).is_err());
    }
}
