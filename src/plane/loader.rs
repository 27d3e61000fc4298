//! Loading orgs in the background: those that the log has something of, and those whose stored state was doubted.
//!
//! An org is in the queue at most once, from when it is asked for until its load ends, so an org whose load hangs is
//! not begun again and again. A few orgs are loaded at once; a load that lasts gives its turn to the next
//! ([`super::turns`]). What the load itself does is [`recover::org`]. Nothing is kept: after a crash, orgs are queued
//! again as the log is read and as requests ask for them.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::registry::Slot;
use super::turns::Turns;
use super::{Plane, PlaneError, Readiness, recover};
use crate::model::OrgName;
use crate::state::Org;

/// Orgs that are loaded in the background at once.
const BACKGROUND_LOADS_AT_ONCE: usize = 4;

impl Plane {
    /// Queues an org to be loaded in the background.
    pub(super) fn load_in_background(&self, name: OrgName) {
        if let Some(to_load) = self.to_load.get()
            && self.queued.lock().insert(name.clone())
        {
            // Ignore the error: the loader ends with the process.
            let _ = to_load.send(name);
        }
    }

    /// A loaded org met what looks like damage: it is loaded again, and only what that finds too stops it.
    pub(super) fn doubt(&self, org: &Arc<Org>, reason: &str) {
        tracing::warn!(org = %org.name, reason, "what is stored looks damaged; loading the org again");
        self.registry.slot(&org.name).unload();
        self.load_in_background(org.name.clone());
    }
}

/// Loads the queued orgs, a few at once, so that requests for others need not queue behind all of them.
pub(super) async fn run(plane: Arc<Plane>, mut loads: mpsc::UnboundedReceiver<OrgName>) {
    let turns = Arc::new(Turns::new(BACKGROUND_LOADS_AT_ONCE, recover::LOAD_TURN));
    while let Some(name) = loads.recv().await {
        if plane.readiness() == Readiness::Draining {
            return;
        }
        let (plane, turns) = (Arc::clone(&plane), Arc::clone(&turns));
        tokio::spawn(async move {
            turns.run(Box::pin(load_apart(&plane, &name))).await;
        });
    }
}

async fn load_apart(plane: &Plane, name: &OrgName) {
    // One that hangs stays in the queue, so that it is not begun again and again.
    let _queued = Queued { plane, name };
    let slot: Arc<Slot> = plane.registry.slot(name);
    if let Err(e) = recover::org(plane, &slot).await
        && !matches!(e, PlaneError::OrgStopped { .. } | PlaneError::OrgRemoved(_))
    {
        tracing::warn!(org = %slot.name, error = %e, "an org was not loaded and will be tried again");
    }
}

/// Takes an org off the queue of loads when its load ends, however it does.
struct Queued<'a> {
    plane: &'a Plane,
    name: &'a OrgName,
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.plane.queued.lock().remove(self.name);
    }
}
