//! One org's state at one position of the log: running totals, what is remembered of batches, samples that no table
//! holds yet.
//!
//! | file | holds |
//! |---|---|
//! | `org` | the org, and what changes under its lock |
//! | `live` | acknowledged samples that some table lacks |
//! | `payloads` | rows of sealed payloads that their table lacks |
//! | `dedup` | how retries of a batch are recognized |
//! | `change` | what one object brings to an org, and applying it |
//! | `snapshot` | the state as it is stored, one object an org and position |
//! | `runs` | deleting runs of keys that no state needs |
//! | `load` | an org from what is stored |
//! | `admission` | the memory budget |
//!
//! A state is a function of its position: applying reads no clock, no configuration and no randomness (rule L6).

pub mod admission;
pub(crate) mod change;
pub(crate) mod dedup;
pub mod live;
pub mod load;
pub mod org;
pub mod payloads;
pub(crate) mod runs;
pub mod snapshot;
#[cfg(test)]
mod tests;

pub use admission::{Admission, Budget};
pub use live::{LiveBuffer, held_bytes};
pub use org::{Org, OrgState, Tables};

use object_store::path::Path;

use crate::model::OrgName;

/// The folder of an org's states.
pub fn state_folder(org: &OrgName) -> Path {
    Path::from(format!("orgs/{org}/state"))
}

/// The path of an org's state at a position.
pub fn state_path(org: &OrgName, position: u64) -> Path {
    Path::from(format!("orgs/{org}/state/{position:020}"))
}

/// The folders of what is parked of an org: its sections of log objects that are trimmed (rule L10). The second one,
/// beside the log, has what the org's own folder did not take, for it may be that folder which is in trouble.
pub fn parked_folders(org: &OrgName) -> [Path; 2] {
    [Path::from(format!("orgs/{org}/parked")), Path::from(format!("wal/parked/{org}"))]
}

/// The paths at which what is parked of an org of one log object may lie.
pub fn parked_paths(org: &OrgName, position: u64) -> [Path; 2] {
    parked_folders(org).map(|folder| Path::from(format!("{folder}/{position:020}")))
}
