//! That an entry is under a signed checkpoint: what `GET …/audit/{seq}/proof` and `mcpg audit proof` give, as JSON; the
//! API also as a C2SP tlog-proof (<https://c2sp.org/tlog-proof>).
//!
//! The JSON is all that an auditor needs beside the verifier key:
//!
//! ```text
//! entry ──SHA-256──▶ entry_hash ─┐
//!            seq, prev_hash ─────┴▶ leaf ──hashes──▶ root, under checkpoint ──signature──▶ verifier key
//! ```

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

use super::entry::{self, Member};
use super::note::{Note, VKey};
use super::{Checkpoint, Hash, Leaf, checkpoint, tree};
use crate::model::OrgName;

/// An inclusion proof (RFC 6962, section 2.1.1).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InclusionProof {
    /// The entry's number, which is its leaf's place.
    pub seq: u64,
    /// How many entries the checkpoint covers.
    pub size: u64,
    /// The entry's hash.
    #[serde(with = "text")]
    pub entry_hash: Hash,
    /// The hash of the entry before it.
    #[serde(with = "text")]
    pub prev_hash: Hash,
    /// The 73 bytes that the tree holds of the entry, base64.
    pub leaf: String,
    /// The hashes from the leaf's sibling up to the root's child, base64.
    pub hashes: Vec<String>,
    /// The signed checkpoint.
    pub checkpoint: String,
    /// The entry's canonical bytes, which `entry_hash` is the SHA-256 of; none of an entry that was removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entry: Option<String>,
}

mod text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use super::Hash;

    pub(super) fn serialize<S: Serializer>(hash: &Hash, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(hash)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Hash, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// Why a proof proves nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NoProof(String);

/// What a proof proves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proved {
    /// The checkpoint that the entry is under.
    pub checkpoint: Checkpoint,
    /// The members of the entry; none where the proof does not hold it.
    pub entry: Option<BTreeMap<String, Member>>,
}

impl InclusionProof {
    /// A proof that `leaf` is under the checkpoint `checkpoint`, which is a signed note, of `size` entries and that
    /// `root`. None if `path` does not show it: then the ledger's tiles are not those of the checkpoint.
    pub fn new(leaf: &Leaf, path: &[Hash], size: u64, root: &Hash, checkpoint: String) -> Option<Self> {
        let bytes = leaf.bytes();
        tree::verify_inclusion(leaf.seq, size, tree::leaf_hash(&bytes), path, root).then(|| Self {
            seq: leaf.seq,
            size,
            entry_hash: leaf.entry_hash,
            prev_hash: leaf.prev_hash,
            leaf: BASE64.encode(bytes),
            hashes: path.iter().map(|hash| BASE64.encode(hash.0)).collect(),
            checkpoint,
            entry: None,
        })
    }

    /// The proof with the entry's canonical bytes. None if they are another entry's.
    #[must_use]
    pub fn with_entry(self, canonical: Vec<u8>) -> Option<Self> {
        let is_its = Hash::of(&[&canonical]) == self.entry_hash;
        let entry = String::from_utf8(canonical).ok().filter(|_| is_its)?;
        Some(Self { entry: Some(entry), ..self })
    }

    /// The proof as a tlog-proof.
    pub fn to_text(&self) -> String {
        let mut text = format!("c2sp.org/tlog-proof@v1\nindex {}\n", self.seq);
        for hash in &self.hashes {
            text.push_str(hash);
            text.push('\n');
        }
        text.push('\n');
        text.push_str(&self.checkpoint);
        text
    }

    /// What it proves to a verifier who knows one of the ledger's verifier keys, and for whom it is to be of `org`
    /// where that is given.
    ///
    /// # Errors
    /// [`NoProof`] when it proves nothing.
    pub fn check(&self, vkeys: &[VKey], org: Option<&OrgName>) -> Result<Proved, NoProof> {
        let fault = |why: &str| NoProof(why.to_owned());
        let note: Note = self.checkpoint.parse().map_err(|e: super::AuditError| NoProof(e.to_string()))?;
        let checkpoint: Checkpoint = note.text.parse().map_err(|e: super::AuditError| NoProof(e.to_string()))?;
        if let Some(org) = org
            && !checkpoint::is_of(&checkpoint.origin, org.as_str())
        {
            return Err(NoProof(format!("its checkpoint is of {}, not of a ledger of org {org}", checkpoint.origin)));
        }
        let mut fitting = vkeys.iter().filter(|vkey| vkey.name() == checkpoint.origin && !vkey.is_cosignature());
        if !fitting.any(|vkey| vkey.verify(&note).is_ok()) {
            return Err(fault("no key that was given has signed its checkpoint"));
        }
        let leaf = BASE64.decode(&self.leaf).ok().and_then(|bytes| Leaf::parse(&bytes));
        let named = Leaf { seq: self.seq, prev_hash: self.prev_hash, entry_hash: self.entry_hash };
        if leaf != Some(named) || self.size != checkpoint.size {
            return Err(fault("its members contradict each other"));
        }
        let path = self.hashes.iter().map(|hash| Some(Hash(BASE64.decode(hash).ok()?.try_into().ok()?)));
        let path: Vec<Hash> =
            path.collect::<Option<_>>().ok_or_else(|| fault("its path has something that is not a hash"))?;
        let hash = tree::leaf_hash(&named.bytes());
        if !tree::verify_inclusion(self.seq, checkpoint.size, hash, &path, &checkpoint.root) {
            return Err(fault("its path does not lead from the leaf to the root that was signed"));
        }
        let entry = self.entry.as_deref().map(|entry| members(entry, &named, &checkpoint.origin)).transpose()?;
        Ok(Proved { checkpoint, entry })
    }
}

/// The members of an entry whose leaf is `leaf`, in the ledger `origin`.
fn members(text: &str, leaf: &Leaf, origin: &str) -> Result<BTreeMap<String, Member>, NoProof> {
    if Hash::of(&[text.as_bytes()]) != leaf.entry_hash {
        return Err(NoProof("the entry is not the one that its hash is of".to_owned()));
    }
    let members = entry::parse(text).ok_or_else(|| NoProof("the entry is not written canonically".to_owned()))?;
    let (seq, prev_hash) = (leaf.seq.to_string(), leaf.prev_hash.to_string());
    for (name, wanted) in [("v", entry::VERSION), ("origin", origin), ("seq", &seq), ("prev_hash", &prev_hash)] {
        if members.get(name) != Some(&Member::Text(wanted.to_owned())) {
            return Err(NoProof(format!("the entry's {name} is not {wanted}")));
        }
    }
    Ok(members)
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::SigningKey;

    use super::{InclusionProof, Member};
    use crate::audit::note::{Algorithm, Note, VKey};
    use crate::audit::tree::{self, Peaks};
    use crate::audit::{Checkpoint, Hash, Leaf};

    const ORIGIN: &str = "mcpg.local/orgs/acme/audit/1";

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_bytes(&[seed; 32])
    }

    fn vkey(seed: u8) -> VKey {
        VKey::new(ORIGIN, Algorithm::Ed25519, key(seed).verifying_key()).unwrap()
    }

    /// A proof of entry 1 of 2.
    fn proof() -> InclusionProof {
        let entry = format!(
            r#"{{"action":"tool.permit","origin":"{ORIGIN}","policy_ids":["a","b\n"],"prev_hash":"{}","seq":"1","v":"mcpg.audit/1"}}"#,
            Hash::of(&[b"before"])
        );
        let first = Leaf { seq: 0, prev_hash: Hash::ZERO, entry_hash: Hash::of(&[b"before"]) };
        let leaf = Leaf { seq: 1, prev_hash: first.entry_hash, entry_hash: Hash::of(&[entry.as_bytes()]) };
        let mut peaks = Peaks::default();
        let hashes = [first, leaf].map(|leaf| tree::leaf_hash(&leaf.bytes()));
        hashes.iter().for_each(|hash| peaks.push(*hash));
        let head = Checkpoint { origin: ORIGIN.to_owned(), size: 2, root: peaks.root() };
        let note = Note::sign(head.to_string(), ORIGIN, &[&key(1), &key(2)]).unwrap().to_string();
        let proof = InclusionProof::new(&leaf, &hashes[..1], 2, &peaks.root(), note).unwrap();
        proof.with_entry(entry.into_bytes()).unwrap()
    }

    #[test]
    fn a_proof_proves_its_entry_to_whoever_has_one_of_the_keys() {
        for keys in [&[vkey(1)][..], &[vkey(2)], &[vkey(3), vkey(2)]] {
            let proved = proof().check(keys, Some(&"acme".parse().unwrap())).unwrap();
            assert_eq!(proved.entry.unwrap()["action"], Member::Text("tool.permit".to_owned()));
            assert_eq!(proved.checkpoint.size, 2);
        }
        let text = serde_json::to_string(&proof()).unwrap();
        assert_eq!(serde_json::from_str::<InclusionProof>(&text).unwrap(), proof());
        let without = InclusionProof { entry: None, ..proof() };
        assert_eq!(without.check(&[vkey(1)], None).unwrap().entry, None);
    }

    #[test]
    fn no_byte_of_a_proof_can_change() {
        let text = serde_json::to_string(&proof()).unwrap();
        // The second signature is by a key that was not given: what it is, is not looked at.
        let unread = text.rfind("\u{2014}").unwrap()..text.find("\",\"entry\"").unwrap();
        for at in (0..text.len()).filter(|at| !unread.contains(at)) {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            let changed = serde_json::from_slice::<InclusionProof>(&bytes).ok();
            let proved = changed.and_then(|changed| changed.check(&[vkey(1)], None).ok());
            assert_eq!(proved, None, "byte {at} of {text}");
        }
    }

    #[test]
    fn a_proof_of_another_org_or_key_or_entry_is_none() {
        assert!(proof().check(&[vkey(3)], None).is_err());
        assert!(proof().check(&[], None).is_err());
        assert!(proof().check(&[vkey(1)], Some(&"globex".parse().unwrap())).is_err());
        assert_eq!(proof().with_entry(b"{}".to_vec()), None);
        for (from, to) in [("\"1\"", "\"2\""), ("audit/1", "audit/2"), ("/orgs/acme", "/orgs/globex")] {
            let changed = InclusionProof { entry: proof().entry.map(|entry| entry.replace(from, to)), ..proof() };
            assert!(changed.check(&[vkey(1)], None).is_err());
        }
    }
}
