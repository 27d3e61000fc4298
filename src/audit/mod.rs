//! The audit ledger: what was decided, by whom, so that no change goes unnoticed. The format is `schemas/ledger.md`.
//!
//! ```text
//! event ─▶ entry: number, predecessor's hash, own hash (chain) ─▶ segment, Parquet
//!                          │ leaf: seq ‖ prev_hash ‖ entry_hash
//!                          ▼
//!             Merkle tree, RFC 6962, in tiles ─▶ checkpoint: origin, size, root, signed with Ed25519
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`entry`] | an entry's canonical bytes, which its hash is of |
//! | [`chain`] | numbering and chaining events |
//! | [`tree`] | the Merkle tree's hashes; inclusion and consistency |
//! | [`tile`] | the tree's form on the store, and its growing edge |
//! | [`segment`] | entries on the store |
//! | [`note`] | signed notes and their keys |
//! | [`checkpoint`] | checkpoints |
//! | [`keys`] | the keys that checkpoints are signed with |
//! | [`signer`] | signing checkpoints, and refusing any that is no extension of the last |
//! | [`proof`] | the proof that an entry is under a checkpoint |
//! | [`verify`] | whether a ledger is sound, without trusting the control plane or the store; bundles |
//! | [`witness`] | the protocol with a witness |
//!
//! Invariant I5: no byte of an entry, nor its place, nor the ledger's length can change without verification failing.
//! Every column of a row is in its canonical bytes; the hash of these is in its leaf and in its successor's bytes; the
//! leaf is under the root; the root and the size are under the signature.

pub mod chain;
pub mod checkpoint;
pub mod entry;
#[cfg(test)]
pub(crate) mod fixtures;
mod hash;
pub mod keys;
pub mod note;
pub mod proof;
pub mod segment;
pub mod signer;
pub mod tile;
pub mod tree;
pub mod verify;
pub mod witness;

pub use chain::{ChainHead, Leaf, Sealed, seal};
pub use checkpoint::Checkpoint;
pub use hash::{Hash, InvalidHash};
pub use keys::SigningKeys;
pub use proof::{InclusionProof, NoProof, Proved};
pub use signer::Signer;
pub use tile::{TileId, TreeEdge};

/// What is wrong with entries, checkpoints or keys.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuditError {
    /// A batch is not of the ledger's schema.
    #[error("entries of another form: {0}")]
    Form(String),
    /// An entry cannot be written canonically.
    #[error("{column}: {reason}")]
    Entry {
        /// The column at fault.
        column: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// A note, a key or a checkpoint is malformed.
    #[error("{0}")]
    Malformed(String),
    /// No signature of the key that was asked for holds.
    #[error("{0}")]
    Signature(String),
    /// A checkpoint that is no extension of the one that was signed before.
    #[error("refused to sign: {0}")]
    NoExtension(String),
    /// A key cannot be had.
    #[error("the ledger's key: {0}")]
    Key(String),
}
