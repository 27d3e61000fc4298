//! `mcpg store check`: walks and verifies all of a store.
//!
//! | part | what is verified |
//! |---|---|
//! | layout, floor | MAC and form |
//! | log above the floor | no number is missing; of each object MAC, form, chain and the hash of each body |
//! | states | MAC, form, chain of bases; each run of keys by its hash; the newest is decoded |
//! | sections | each names the one before, from the newest state on |
//! | tables | each commit is well formed, none is missing, each live file is there with its size |
//! | ledger | as `mcpg audit verify` does, under the deployment's own key |
//! | all together | state, tables, checkpoint and log are of one time |
//!
//! The contents of a table's files are not read.

use super::index::Index;
use super::{Finding, Findings, Inspector, Progress, confirmed, org};
use crate::model::OrgName;
use crate::storage::StorageError;

/// What a check has found, and how much it has verified.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// What is wrong.
    pub faults: Vec<Finding>,
    /// What could not be read, and so was not verified.
    pub unread: Vec<Finding>,
    /// Log objects.
    pub objects: u64,
    /// Orgs.
    pub orgs: u64,
    /// States.
    pub states: u64,
    /// Runs of keys.
    pub runs: u64,
    /// Live files of tables.
    pub files: u64,
    /// Entries of ledgers under their checkpoints.
    pub entries: u64,
    /// Wrapped keys of payloads that unwrap; they are looked at by [`crate::keys::survey`].
    pub payload_keys: u64,
    /// The floor, and the number of the log's last object.
    pub log: (u64, u64),
}

impl Report {
    /// Whether all was verified and nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.faults.is_empty() && self.unread.is_empty()
    }

    fn conclude(mut self, findings: Findings) -> Self {
        (self.faults, self.unread) = (findings.faults, findings.unread);
        self.faults.sort();
        self.faults.dedup_by(|one, other| one.object == other.object);
        self.unread.sort();
        self.unread.dedup();
        self
    }
}

impl Inspector {
    /// Verifies all of the store.
    ///
    /// # Errors
    /// [`StorageError::Unusable`] when it is missing, or not of this version and key.
    pub async fn check(&self, progress: &Progress<'_>) -> Result<Report, StorageError> {
        match self.layout().await {
            Ok(()) => self.check_parts(Findings::default(), progress).await,
            Err(StorageError::Damaged { object, reason }) => {
                let mut findings = Findings::default();
                findings.fault(object, reason);
                self.check_parts(findings, progress).await
            }
            Err(e) => Err(e),
        }
    }

    /// Verifies all but the layout.
    pub(super) async fn check_parts(
        &self,
        mut findings: Findings,
        progress: &Progress<'_>,
    ) -> Result<Report, StorageError> {
        let (node, mut counts) = (&self.node, Report::default());
        progress("wal");
        let mut index = None;
        let log = confirmed(async || {
            let mut look = Findings::default();
            index = look.take(Index::load(node).await);
            look.join(index.as_ref().map(Index::findings).unwrap_or_default());
            look
        })
        .await;
        if index.is_none() {
            findings.join(log);
        }
        let mut orgs: Vec<OrgName> = findings.take(self.orgs().await).unwrap_or_default();
        orgs.extend(index.iter().flat_map(Index::orgs).cloned());
        orgs.sort_unstable();
        orgs.dedup();
        for org in &orgs {
            progress(&format!("orgs/{org}"));
            let mut of_org = Report::default();
            let found = confirmed(async || {
                of_org = Report::default();
                org::check(node, org, index.as_mut(), &mut of_org).await
            })
            .await;
            findings.join(found);
            counts.states += of_org.states;
            counts.runs += of_org.runs;
            counts.files += of_org.files;
            counts.entries += of_org.entries;
        }
        counts.orgs = orgs.len() as u64;
        if let Some(index) = &index {
            // With what came while the orgs were verified.
            findings.join(index.findings());
            counts.objects = index.objects();
            counts.log = (index.floor.number, index.end());
        }
        Ok(counts.conclude(findings))
    }
}
