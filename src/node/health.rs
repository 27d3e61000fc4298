//! Whether an org is sound.
//!
//! A stop is this node's own finding: damage that a second look found too. It says the exact object, lasts until a
//! reload of the org succeeds, and concerns no other org (rule L10).

use parking_lot::RwLock;
use tokio::time::Instant;

use super::PlaneError;
use crate::model::OrgName;

/// The health of one org on this node: sound, or stopped with a reason.
#[derive(Debug)]
pub struct Health {
    org: OrgName,
    stop: RwLock<Option<(String, Instant)>>,
}

impl Health {
    /// The health of an org that is sound.
    pub fn new(org: OrgName) -> Self {
        Self { org, stop: RwLock::default() }
    }

    /// Stops the org (invariant I2). A second reason adds nothing to the first.
    pub fn stop(&self, reason: String) {
        let mut stop = self.stop.write();
        if stop.is_none() {
            tracing::error!(org = %self.org, reason, "org is stopped: what is stored of it is damaged");
            *stop = Some((reason, Instant::now()));
        }
    }

    /// Stops the org if the error is damage; gives the error to answer with.
    pub fn stopped_by(&self, e: impl Into<PlaneError>) -> PlaneError {
        let e = e.into();
        let PlaneError::Damaged(reason) = e else { return e };
        self.stop(reason.clone());
        PlaneError::OrgStopped { org: self.org.to_string(), reason }
    }

    /// Whether the org is stopped.
    pub fn is_stopped(&self) -> bool {
        self.stop.read().is_some()
    }

    /// Since when the org is stopped, if it is.
    pub fn stopped_since(&self) -> Option<Instant> {
        self.stop.read().as_ref().map(|(_, since)| *since)
    }

    /// # Errors
    /// [`PlaneError::OrgStopped`] if the org is stopped.
    pub fn check(&self) -> Result<(), PlaneError> {
        match &*self.stop.read() {
            None => Ok(()),
            Some((reason, _)) => Err(PlaneError::OrgStopped { org: self.org.to_string(), reason: reason.clone() }),
        }
    }
}
