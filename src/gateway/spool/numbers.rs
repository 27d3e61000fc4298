//! The numbers that a lane's batches are sent under, and what the receiver has acknowledged of them.
//!
//! An emitter id is one process's: it is drawn when the spool is opened, and numbers are counted in memory from 1. So
//! no crash, power cut or copy of the folder leads to one being given twice, whatever became of the files. A segment
//! keeps the id and number that are in its header, also when a later process sends it. After a conflict the process
//! counts on under a new id, since something else uses the old one: a copy of this process's memory, say.
//!
//! Each batch carries the number that was acknowledged before it. Of an earlier process's that is what its segment's
//! header says, until one of the same emitter is acknowledged; it may be too low, and never too high.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use super::segment::SentUnder;

/// A lane's counter of batches and its acknowledgements.
#[derive(Debug)]
pub(super) struct Numbers(Mutex<State>);

#[derive(Debug)]
struct State {
    emitter: Uuid,
    next: u64,
    /// The last number that was acknowledged, by emitter: this process's, and those of segments that it found.
    acknowledged: HashMap<Uuid, u64>,
}

impl Numbers {
    /// The numbers of `emitter`, which has sent nothing yet.
    pub(super) fn new(emitter: Uuid) -> Self {
        Self(Mutex::new(State { emitter, next: 1, acknowledged: HashMap::new() }))
    }

    /// A state whose holder panicked is still in order.
    fn locked(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Draws the number of a new segment. It is never drawn again, whether the segment comes to be or not.
    pub(super) fn draw(&self) -> SentUnder {
        let mut state = self.locked();
        let (emitter, number) = (state.emitter, state.next);
        state.next += 1;
        let after = state.acknowledged.get(&emitter).copied().unwrap_or(0);
        SentUnder::Number { emitter, number, after }
    }

    /// The receiver has acknowledged a batch.
    pub(super) fn acknowledge(&self, sent_under: SentUnder) {
        let SentUnder::Number { emitter, number, .. } = sent_under else { return };
        let mut state = self.locked();
        let last = state.acknowledged.entry(emitter).or_default();
        *last = number.max(*last);
    }

    /// What a batch is sent under now: with the number acknowledged last, unless that is a later one's.
    pub(super) fn current(&self, sent_under: SentUnder) -> SentUnder {
        let SentUnder::Number { emitter, number, after } = sent_under else { return sent_under };
        let last = self.locked().acknowledged.get(&emitter).copied().filter(|last| *last < number);
        SentUnder::Number { emitter, number, after: after.max(last.unwrap_or(0)) }
    }

    /// Counts on under `fresh`, if `conflicting` is the emitter that is counted under.
    pub(super) fn leave(&self, conflicting: Uuid, fresh: Uuid) {
        let mut state = self.locked();
        if state.emitter == conflicting {
            (state.emitter, state.next) = (fresh, 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::{Numbers, SentUnder};

    fn number(emitter: u128, number: u64, after: u64) -> SentUnder {
        SentUnder::Number { emitter: Uuid::from_u128(emitter), number, after }
    }

    #[test]
    fn numbers_rise_from_one_and_tell_what_was_acknowledged_before() {
        let numbers = Numbers::new(Uuid::from_u128(1));
        let first = numbers.draw();
        let second = numbers.draw();
        assert_eq!((first, second), (number(1, 1, 0), number(1, 2, 0)));
        numbers.acknowledge(first);
        assert_eq!(numbers.current(second), number(1, 2, 1));
        assert_eq!(numbers.draw(), number(1, 3, 1));
    }

    #[test]
    fn an_earlier_processs_segments_keep_theirs_and_what_their_header_says() {
        let numbers = Numbers::new(Uuid::from_u128(1));
        let (left, next) = (number(9, 6, 4), number(9, 7, 4));
        assert_eq!(numbers.current(left), left);
        numbers.acknowledge(left);
        assert_eq!(numbers.current(next), number(9, 7, 6));
        assert_eq!(numbers.current(number(9, 3, 2)), number(9, 3, 2), "moved back from the quarantine");
        assert_eq!(numbers.draw(), number(1, 1, 0));
    }

    #[test]
    fn after_a_conflict_it_counts_under_another_emitter() {
        let numbers = Numbers::new(Uuid::from_u128(1));
        numbers.draw();
        numbers.leave(Uuid::from_u128(9), Uuid::from_u128(2));
        assert_eq!(numbers.draw(), number(1, 2, 0), "an earlier process's conflict");
        numbers.leave(Uuid::from_u128(1), Uuid::from_u128(2));
        assert_eq!(numbers.draw(), number(2, 1, 0));
    }

    #[test]
    fn a_key_stays_a_key() {
        let (numbers, key) = (Numbers::new(Uuid::from_u128(1)), SentUnder::Key(Uuid::from_u128(3)));
        numbers.acknowledge(key);
        assert_eq!(numbers.current(key), key);
    }
}
