//! The exemplars of each org, as this node keeps them: taken from the samples that it acknowledges, read by scrapes.
//!
//! They are best effort (`rollup::exemplars`): samples that are acknowledged while a scrape reads their org's exemplars
//! leave none.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use crate::model::OrgName;
use crate::rollup::{Candidates, Exemplars};

/// The exemplars of all orgs on this node.
#[derive(Debug, Default)]
pub(super) struct OfOrgs(Mutex<HashMap<OrgName, Arc<RwLock<Exemplars>>>>);

impl OfOrgs {
    /// Those of an org, if it has any.
    pub(super) fn of(&self, org: &OrgName) -> Option<Arc<RwLock<Exemplars>>> {
        self.0.lock().get(org).cloned()
    }

    /// Takes up what an acknowledged batch brought, at `now`, for at most so many series.
    pub(super) fn take(&self, org: &OrgName, candidates: Candidates, now: i64, most: usize) {
        if candidates.is_empty() {
            return;
        }
        let kept = Arc::clone(self.0.lock().entry(org.clone()).or_default());
        if let Some(mut kept) = kept.try_write() {
            kept.take(candidates, now, most);
        }
    }
}
