//! One bound for the memory that requests and answers take, all together, and a share of it for each caller.
//!
//! Bytes are charged before they are taken in, and the charge lives as long as the bytes: a body is a [`Bytes`] that
//! owns its charge ([`Charge::hold`]), so that whatever is cut from it (parameters, arguments, a result) keeps it, and
//! the last of them to go gives it back. So a request is charged from its first byte until its answer was written, an
//! answer from the first byte that a server sent until its client has read it, and an event until it is kept no longer
//! for resumption.
//!
//! No caller may have more than half of it, so that one alone keeps no other out.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

/// Each caller may have one part in so many.
const SHARE: usize = 2;

/// The bound. Cheap to clone behind its `Arc`.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    used: usize,
    of_owners: HashMap<Arc<str>, usize>,
}

/// Bytes that are charged to a caller; given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Charge {
    budget: Arc<Budget>,
    owner: Arc<str>,
    bytes: usize,
}

/// There is no memory left for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exhausted;

impl Budget {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, state: Mutex::default() })
    }

    /// Charges `bytes` to `owner`.
    ///
    /// # Errors
    /// When there is not as much left, or the owner has its share.
    pub(crate) fn charge(self: &Arc<Self>, owner: &Arc<str>, bytes: usize) -> Result<Charge, Exhausted> {
        let mut charge = Charge { budget: Arc::clone(self), owner: Arc::clone(owner), bytes: 0 };
        charge.grow(bytes)?;
        Ok(charge)
    }

    /// How much of it is in use.
    #[cfg(test)]
    pub(crate) fn used(&self) -> usize {
        self.state.lock().used
    }

    fn take(&self, owner: &Arc<str>, bytes: usize) -> Result<(), Exhausted> {
        let mut state = self.state.lock();
        let of_owner = state.of_owners.get(owner).copied().unwrap_or(0);
        let (used, of_owner) = (state.used.saturating_add(bytes), of_owner.saturating_add(bytes));
        if used > self.limit || of_owner > self.limit / SHARE {
            return Err(Exhausted);
        }
        state.used = used;
        if bytes > 0 {
            state.of_owners.insert(Arc::clone(owner), of_owner);
        }
        Ok(())
    }

    fn give_back(&self, owner: &Arc<str>, bytes: usize) {
        let mut state = self.state.lock();
        state.used = state.used.saturating_sub(bytes);
        if let Some(of_owner) = state.of_owners.get_mut(owner) {
            *of_owner = of_owner.saturating_sub(bytes);
            if *of_owner == 0 {
                state.of_owners.remove(owner);
            }
        }
    }
}

impl Charge {
    /// Charges more.
    ///
    /// # Errors
    /// When there is not as much left; what was charged before stays.
    pub(crate) fn grow(&mut self, bytes: usize) -> Result<(), Exhausted> {
        self.budget.take(&self.owner, bytes)?;
        self.bytes = self.bytes.saturating_add(bytes);
        Ok(())
    }

    /// The bytes, which own the charge from now on.
    pub(crate) fn hold(self, bytes: Vec<u8>) -> Bytes {
        Bytes::from_owner(Held { bytes, _charge: self })
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.budget.give_back(&self.owner, self.bytes);
        }
    }
}

/// Bytes, and what they are charged.
struct Held {
    bytes: Vec<u8>,
    _charge: Charge,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::{Budget, Exhausted};

    #[test]
    fn bytes_are_charged_as_long_as_any_part_of_them_is_there() {
        let budget = Budget::new(100);
        let bytes = budget.charge(&"a".into(), 10).unwrap().hold(vec![7; 10]);
        let part = bytes.slice(2..4);
        drop(bytes);
        assert_eq!(budget.used(), 10);
        drop(part);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn one_owner_has_half_at_most_and_all_have_no_more_than_there_is() {
        let budget = Budget::new(100);
        let mut one = budget.charge(&"a".into(), 50).unwrap();
        assert_eq!(one.grow(1), Err(Exhausted));
        let _other = budget.charge(&"b".into(), 50).unwrap();
        assert_eq!(budget.charge(&"c".into(), 1).unwrap_err(), Exhausted);
        drop(one);
        assert!(budget.charge(&"c".into(), 1).is_ok());
    }
}
