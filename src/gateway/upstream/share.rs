//! A plugin's share of the memory that answers may take, and what of it is being read.

use std::sync::Arc;

use bytes::Bytes;

use super::UpstreamError;
use crate::gateway::budget::{Budget, Charge};

/// What is read is charged in steps of this many bytes.
const STEP: usize = 64 * 1024;

/// A plugin's share. Cheap to clone.
#[derive(Clone)]
pub(super) struct Share {
    budget: Arc<Budget>,
    owner: Arc<str>,
}

impl Share {
    pub(super) fn new(budget: Arc<Budget>, plugin: &str) -> Self {
        Self { budget, owner: format!("plugin:{plugin}").into() }
    }

    /// Begins to read something.
    pub(super) fn reading(&self) -> Reading {
        Reading { share: self.clone(), charge: None, charged: 0 }
    }

    /// A charge for bytes that were read.
    pub(super) fn charge(&self, bytes: usize) -> Result<Charge, UpstreamError> {
        self.budget.charge(&self.owner, bytes).map_err(|_| UpstreamError::Memory)
    }

    /// Bytes that were read, which own their charge from now on.
    pub(super) fn hold(&self, bytes: Bytes) -> Result<Bytes, UpstreamError> {
        Ok(self.charge(bytes.len())?.hold(bytes.into()))
    }
}

/// Something that is being read: a body, an event, a line.
pub(super) struct Reading {
    share: Share,
    charge: Option<Charge>,
    charged: usize,
}

impl Reading {
    /// It has this many bytes by now.
    pub(super) fn has(&mut self, bytes: usize) -> Result<(), UpstreamError> {
        if bytes == 0 {
            self.charge = None;
            self.charged = 0;
            return Ok(());
        }
        if bytes <= self.charged {
            return Ok(());
        }
        let more = bytes.saturating_sub(self.charged).next_multiple_of(STEP);
        let grown = match &mut self.charge {
            Some(charge) => charge.grow(more),
            None => self.share.budget.charge(&self.share.owner, more).map(|charge| self.charge = Some(charge)),
        };
        grown.map_err(|_| UpstreamError::Memory)?;
        self.charged = self.charged.saturating_add(more);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::{STEP, Share};
    use crate::gateway::budget::Budget;
    use crate::gateway::upstream::UpstreamError;

    #[test]
    fn what_is_read_is_charged_until_it_is_read_and_then_held() {
        let budget = Budget::new(8 * STEP);
        let share = Share::new(budget.clone(), "p");
        let mut reading = share.reading();
        reading.has(1).unwrap();
        reading.has(STEP).unwrap();
        assert_eq!(budget.used(), STEP);
        assert!(matches!(reading.has(5 * STEP), Err(UpstreamError::Memory)), "a plugin has half at most");
        reading.has(0).unwrap();
        assert_eq!(budget.used(), 0);
        let held = share.hold(Bytes::from_static(b"abc")).unwrap();
        assert_eq!(budget.used(), 3);
        drop(held);
        assert_eq!(budget.used(), 0);
    }
}
