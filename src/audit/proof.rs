//! That an entry is under a signed head: what `GET …/audit/{seq}/proof` gives, as JSON or as a C2SP tlog-proof
//! (<https://c2sp.org/tlog-proof>).

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Serialize;

use super::{Hash, Leaf, tree};

/// An inclusion proof (RFC 6962, section 2.1.1).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct InclusionProof {
    /// The entry's number, which is its leaf's place.
    pub seq: u64,
    /// How many entries the head covers.
    pub size: u64,
    /// The entry's hash.
    #[serde(serialize_with = "text")]
    pub entry_hash: Hash,
    /// The hash of the entry before it.
    #[serde(serialize_with = "text")]
    pub prev_hash: Hash,
    /// The 73 bytes that the tree holds of the entry, base64.
    pub leaf: String,
    /// The hashes from the leaf's sibling up to the root's child, base64.
    pub hashes: Vec<String>,
    /// The signed head.
    pub checkpoint: String,
}

fn text<S: serde::Serializer>(hash: &Hash, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(hash)
}

impl InclusionProof {
    /// A proof that `leaf` is under the head `checkpoint`, which is a signed note, of `size` entries and that `root`. None if
    /// `path` does not show it: then the ledger's tiles are not those of the head.
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
        })
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
}
