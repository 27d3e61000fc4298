//! Where queries spill to: bounded for all together, and by org, so that one org leaves room to the others.
//!
//! The engine's disk managers count what each of them has written, and not what they have together. So there is one for
//! each org with queries, and what it may write is set anew, as queries begin and while they run, to what the others
//! leave. Between two of these moments all together may write more than the bound, by what a disk takes in a twentieth
//! of a second.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use datafusion::common::Result;
use datafusion::execution::disk_manager::{DiskManager, DiskManagerBuilder, DiskManagerMode};
use parking_lot::Mutex;

use super::SqlLimits;
use super::usage::SHARE_OF_ORG;
use crate::model::OrgName;

/// The spill files of all orgs.
#[derive(Debug)]
pub(super) struct Spills {
    mode: DiskManagerMode,
    bytes: u64,
    of: Mutex<HashMap<OrgName, Weak<DiskManager>>>,
}

impl Spills {
    /// Within limits.
    pub(super) fn new(limits: &SqlLimits) -> Self {
        let mode = match &limits.spill_dir {
            Some(folder) => DiskManagerMode::Directories(vec![folder.clone()]),
            None => DiskManagerMode::OsTmpDirectory,
        };
        Self { mode, bytes: limits.spill_bytes, of: Mutex::default() }
    }

    /// Where an org's queries spill to.
    pub(super) fn of(&self, org: &OrgName) -> Result<Arc<DiskManager>> {
        let mut of = self.of.lock();
        let manager = match of.get(org).and_then(Weak::upgrade) {
            Some(known) => known,
            None => {
                let builder = DiskManagerBuilder::default().with_mode(self.mode.clone());
                let made = Arc::new(builder.with_max_temp_directory_size(0).build()?);
                of.insert(org.clone(), Arc::downgrade(&made));
                made
            }
        };
        drop(of);
        self.balance();
        Ok(manager)
    }

    /// Sets what each org may write to its share, or to what the others leave.
    pub(super) fn balance(&self) {
        let mut of = self.of.lock();
        of.retain(|_, manager| manager.strong_count() > 0);
        let managers: Vec<_> = of.values().filter_map(Weak::upgrade).collect();
        drop(of);
        let used: u64 = managers.iter().map(|manager| manager.used_disk_space()).sum();
        for manager in managers {
            let others = used.saturating_sub(manager.used_disk_space());
            let most = (self.bytes / 4 * SHARE_OF_ORG as u64).min(self.bytes.saturating_sub(others));
            if let Err(error) = manager.set_max_temp_directory_size(most) {
                tracing::warn!(%error, "the bound of an org's spill files stays as it was");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::Spills;
    use crate::query::SqlLimits;

    #[test]
    fn one_org_leaves_room_to_the_others_and_all_together_stay_within_the_bound() {
        let spills = Spills::new(&SqlLimits { spill_bytes: 4_000, ..SqlLimits::default() });
        let (noisy, quiet) = ("noisy".parse().unwrap(), "quiet".parse().unwrap());
        let (of_noisy, of_quiet) = (spills.of(&noisy).unwrap(), spills.of(&quiet).unwrap());
        let (file, other) = (of_noisy.create_tmp_file("a").unwrap(), of_quiet.create_tmp_file("b").unwrap());
        let (mut noise, mut quietly) = (file.open_writer().unwrap(), other.open_writer().unwrap());
        noise.write_all(&[0; 3_000]).unwrap();
        noise.write_all(&[0; 1]).unwrap_err();
        spills.balance();
        quietly.write_all(&[0; 1_000]).unwrap();
        quietly.write_all(&[0; 1]).unwrap_err();
        drop((noise, file));
        spills.balance();
        quietly.write_all(&[0; 2_000]).unwrap();
        // An org that has queries already shares with its next one; an org without queries is forgotten.
        assert!(std::sync::Arc::ptr_eq(&spills.of(&quiet).unwrap(), &of_quiet));
        drop(of_noisy);
        spills.balance();
        assert_eq!(spills.of.lock().len(), 1);
    }
}
