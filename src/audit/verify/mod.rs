//! Verifying a ledger without trusting whoever keeps it: not the control plane, not the store, not the lists they give.
//!
//! All that is believed is a verifier key that was had from elsewhere. Checked, in this order:
//!
//! 1. The newest head: its form, whose ledger it is of, its signature; no kept head is newer. `heads`
//! 2. The segments cover all entries up to the head's size, and no entry twice. `coverage`
//! 3. Each entry: its columns give its hash, it follows its predecessor, it is in its place. `rows`, `run`
//! 4. The tree over the entries has the head's root, and the stored tiles and bundles are those of that tree. Where entries
//!    were removed, an entry `ledger.prune` says so, and the tiles that stay give their part of the root. `tiles`
//! 5. Every kept head is the root of the tree's beginning.
//! 6. Holes in the emitters' own counters, which are reported and make nothing unsound. `emitters`
//!
//! Memory is bounded: files are read where they lie, a few thousand rows at a time; what grows with the ledger are the names of
//! its segments and 40 bytes a kept head.
//!
//! Not looked at, since nobody takes anything about an entry from them: partial tiles that a later one has replaced, Parquet's own
//! statistics and indexes, the key `mcpg.position` of a segment's metadata, signatures by keys that were not given. An empty list
//! counts as none.

mod bundle;
mod chain;
mod coverage;
mod emitters;
mod export;
mod folder;
mod heads;
mod objects;
mod remote;
mod rows;
mod run;
mod source;
mod spool;
#[cfg(test)]
mod tests;
mod tiles;

use std::fmt;
use std::num::NonZeroUsize;

pub use bundle::{Bundle, BundleError};
pub use emitters::Holes;
pub use export::{Exported, export};
pub use folder::Folder;
pub use objects::Objects;
pub use remote::Remote;
pub use source::{Blob, Source, SourceError};

use super::Hash;
use super::note::VKey;
use crate::model::OrgName;

/// What kind of thing is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An entry, or what a file says of itself, is not what was hashed or signed.
    Changed,
    /// An entry that the head covers is not there.
    Missing,
    /// An entry is there that has no place, or has one twice.
    Added,
    /// Entries are there, and not in their order.
    Reordered,
    /// A file of entries cannot be decoded.
    Unreadable,
    /// A head is malformed, its signature does not hold, or it is of another tree.
    ForgedHead,
    /// There is a signed head that is newer than the newest.
    RolledBack,
    /// The head is signed by another key.
    WrongKey,
    /// It is the ledger of another org.
    WrongOrg,
    /// The entries are those that were signed, and a tile or a bundle over them is not theirs.
    DamagedTile,
}

impl Kind {
    /// Its name for programs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Changed => "changed",
            Self::Missing => "missing",
            Self::Added => "added",
            Self::Reordered => "reordered",
            Self::Unreadable => "unreadable",
            Self::ForgedHead => "forged_head",
            Self::RolledBack => "rolled_back",
            Self::WrongKey => "wrong_key",
            Self::WrongOrg => "wrong_org",
            Self::DamagedTile => "damaged_tile",
        }
    }

    const fn words(self) -> &'static str {
        match self {
            Self::Changed => "changed entry",
            Self::Missing => "missing entry",
            Self::Added => "added entry",
            Self::Reordered => "reordered entry",
            Self::Unreadable => "unreadable segment",
            Self::ForgedHead => "forged head",
            Self::RolledBack => "rolled-back head",
            Self::WrongKey => "wrong key",
            Self::WrongOrg => "wrong org",
            Self::DamagedTile => "damaged tile",
        }
    }
}

/// The first thing that is wrong with a ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What kind of thing.
    pub kind: Kind,
    /// The entry it is about, or the first of those.
    pub seq: Option<u64>,
    /// The file, under `orgs/<org>/audit/`.
    pub file: String,
    /// What was found.
    pub why: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind.words())?;
        if let Some(seq) = self.seq {
            let of = if self.kind.words().ends_with("entry") { "" } else { ", entry" };
            write!(f, "{of} {seq}")?;
        }
        write!(f, " in {}: {}", self.file, self.why)
    }
}

/// Why a ledger was not found sound.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// It is not sound.
    #[error("{0}")]
    NotSound(Fault),
    /// It could not be checked.
    #[error(transparent)]
    CouldNot(#[from] SourceError),
}

impl From<Fault> for VerifyError {
    fn from(fault: Fault) -> Self {
        Self::NotSound(fault)
    }
}

/// What the ledger is held against.
#[derive(Debug, Clone)]
pub struct Expected {
    /// Whose ledger it is to be.
    pub org: OrgName,
    /// The keys of which one must have signed the newest head.
    pub vkeys: Vec<VKey>,
    /// Witnesses that must each have cosigned it.
    pub witnesses: Vec<VKey>,
}

/// What is told of a ledger that is sound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sound {
    /// Whose ledger it is.
    pub origin: String,
    /// How many entries the head covers.
    pub size: u64,
    /// The root of its tree.
    pub root: Hash,
    /// The first entry that is still kept; 0 if none was removed.
    pub first_kept: u64,
    /// Entries after those that the head covers.
    pub unsigned: u64,
    /// Kept heads, each of them consistent with the newest.
    pub heads: u64,
    /// When witnesses cosigned the newest head, in seconds since the Unix epoch, in the order they were asked for.
    pub cosigned: Vec<u64>,
    /// Holes in emitters' counters.
    pub holes: Vec<Holes>,
    /// Whether there were too many runs of such counters to know all holes.
    pub more_holes: bool,
}

/// How verifying goes on: entries done, of how many.
pub type Progress<'a> = dyn Fn(u64, u64) + Sync + 'a;

/// Verifies the ledger in `source`, hashing on `workers` threads beside the caller's; on the caller's alone if none is asked for.
///
/// # Errors
/// [`VerifyError::NotSound`] with the first thing that is wrong, [`VerifyError::CouldNot`] when a file could not be read.
pub fn verify(
    source: &dyn Source,
    expected: &Expected,
    workers: Option<NonZeroUsize>,
    progress: &Progress<'_>,
) -> Result<Sound, VerifyError> {
    let kept = heads::list(source)?;
    let head = heads::newest(source, expected, !kept.is_empty())?;
    let older = heads::older(source, expected, &head, kept)?;
    run::run(source, head, older, workers, progress)
}
