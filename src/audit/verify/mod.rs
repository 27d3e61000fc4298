//! Verifying a ledger without trusting the control plane, the store, or the lists they give.
//!
//! All that is believed is a verifier key that was obtained from elsewhere. Checked, in this order:
//!
//! 1. The newest checkpoint: its form, whose ledger it is of, its signature; of one size there is one root.
//!    `checkpoints`
//! 2. The segments cover all entries up to the checkpoint's size, and no entry twice. `coverage`
//! 3. Each entry: its columns give its hash, it follows its predecessor, it is in its place. `rows`, `run`
//! 4. What a segment's file says of its rows beside them is true. `claims`
//! 5. The tree over the entries has the checkpoint's root, and the stored tiles and bundles are those of that tree.
//!    `tiles`
//! 6. Entries that are gone were removed by an entry `ledger.prune` that counts, and the tiles that stay give their
//!    part of the root. `removals`
//! 7. Every kept checkpoint, and every one that the auditor kept, is the root of the tree's beginning; gaps in which
//!    the control plane would have kept more are reported. `spacing`
//! 8. Holes in the emitters' own counters, which are reported and make nothing unsound. `emitters`
//!
//! Memory is bounded: files are read where they lie, a few thousand rows at a time; what grows with the ledger are the
//! names of its segments, 56 bytes a kept checkpoint, and what `claims` notes of each page of one segment.
//!
//! Nothing is believed of a segment's metadata but that `mcpg.v` and `mcpg.origin` are what they must be;
//! `mcpg.position` and `mcpg.standing` of the first design are not read at all. Not looked at, since nothing about an
//! entry is taken from them: partial tiles that a later one has replaced, signatures by keys that were not given, and
//! what `claims` lists as left aside. An empty list counts as none.

mod bundle;
mod chain;
mod checkpoints;
mod claims;
#[cfg(test)]
mod claims_tests;
mod coverage;
mod emitters;
mod export;
mod folder;
mod objects;
mod proof;
mod remote;
mod removals;
mod rows;
mod run;
mod source;
mod spacing;
mod spool;
#[cfg(test)]
mod tests;
mod thrift;
mod tiles;

use std::fmt;
use std::num::NonZeroUsize;

pub use bundle::{Bundle, BundleError};
pub use checkpoints::Remembered;
pub use emitters::Holes;
pub use export::{Exported, export};
pub use folder::Folder;
pub use objects::Objects;
pub use proof::prove;
pub use remote::Remote;
pub use source::{Blob, Source, SourceError};
pub use spacing::{Gap, Spacing};

use super::Hash;
use super::note::VKey;
use crate::model::OrgName;

/// What kind of thing is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An entry, or what a file says of itself, is not what was hashed or signed.
    Changed,
    /// An entry that the checkpoint covers is not there.
    Missing,
    /// An entry is there that has no place, or has one twice.
    Added,
    /// Entries are there, and not in their order.
    Reordered,
    /// A file of entries cannot be decoded.
    Unreadable,
    /// A checkpoint is malformed, its signature does not hold, or it is of another tree.
    ForgedHead,
    /// A signed checkpoint that the auditor kept is newer than the newest.
    RolledBack,
    /// Two signed checkpoints are of two histories.
    Forked,
    /// The checkpoint is signed by another key.
    WrongKey,
    /// A witness whose cosignature is demanded has not cosigned the newest checkpoint.
    NotCosigned,
    /// It is the ledger of another org.
    WrongOrg,
    /// The entries are those that were signed, and a tile or a bundle over them is not theirs.
    DamagedTile,
    /// A segment's file says of its rows what they are not, or what cannot be held against them.
    FalseStatistics,
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
            Self::Forked => "forked",
            Self::WrongKey => "wrong_key",
            Self::NotCosigned => "not_cosigned",
            Self::WrongOrg => "wrong_org",
            Self::DamagedTile => "damaged_tile",
            Self::FalseStatistics => "false_statistics",
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
            Self::Forked => "forked head",
            Self::WrongKey => "wrong key",
            Self::NotCosigned => "missing cosignature",
            Self::WrongOrg => "wrong org",
            Self::DamagedTile => "damaged tile",
            Self::FalseStatistics => "false statistics",
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
    /// The keys of which one must have signed the newest checkpoint.
    pub vkeys: Vec<VKey>,
    /// Witnesses that must each have cosigned it.
    pub witnesses: Vec<VKey>,
    /// Checkpoints that the auditor kept: the ledger must have grown from each.
    pub checkpoints: Vec<Remembered>,
}

/// What is reported of a ledger that is sound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sound {
    /// Whose ledger it is.
    pub origin: String,
    /// How many entries the checkpoint covers.
    pub size: u64,
    /// The root of its tree.
    pub root: Hash,
    /// The first entry that is still kept; 0 if none was removed.
    pub first_kept: u64,
    /// Entries after those that the checkpoint covers.
    pub unsigned: u64,
    /// Kept checkpoints, each of them consistent with the newest.
    pub heads: u64,
    /// Checkpoints that the auditor kept, each of them consistent with the newest.
    pub remembered: u64,
    /// How far apart the kept checkpoints are.
    pub spacing: Spacing,
    /// When the last entry under the newest checkpoint was recorded, in µs since the Unix epoch; none if it is gone.
    pub recorded_at: Option<i64>,
    /// What is to be known of where the newest checkpoint was found.
    pub remarks: Vec<String>,
    /// When witnesses cosigned the newest checkpoint, in seconds since the Unix epoch, in the order they were asked
    /// for.
    pub cosigned: Vec<u64>,
    /// Holes in emitters' counters.
    pub holes: Vec<Holes>,
    /// Whether there were too many runs of such counters to know all holes.
    pub more_holes: bool,
}

/// How verifying goes on: entries done, of how many.
pub type Progress<'a> = dyn Fn(u64, u64) + Sync + 'a;

/// Verifies the ledger in `source`, hashing on `workers` threads beside the caller's; on the caller's alone if none is
/// asked for.
///
/// # Errors
/// [`VerifyError::NotSound`] with the first thing that is wrong, [`VerifyError::CouldNot`] when a file could not be
/// read.
pub fn verify(
    source: &dyn Source,
    expected: &Expected,
    workers: Option<NonZeroUsize>,
    progress: &Progress<'_>,
) -> Result<Sound, VerifyError> {
    let kept = checkpoints::list(source)?;
    let head = checkpoints::newest(source, expected, &kept)?;
    let older = checkpoints::older(source, expected, &head, &kept)?;
    let remembered = expected.checkpoints.iter().map(|remembered| remembered.file.clone()).collect();
    let mut sound = run::run(source, head, older, remembered, workers, progress)?;
    sound.remarks.extend(source.passed_over().into_iter().map(|file| {
        format!("passed over: {file}, which an NFS client keeps of a deleted file that is still open; it is no part of the ledger")
    }));
    Ok(sound)
}
