//! What an org remembers of the batches that it stored, so that a retry stores nothing twice.
//!
//! Two memories, both pure state machines over the log, without a clock, a store or a lock:
//!
//! | module | holds |
//! |---|---|
//! | [`lanes`] | marks of emitters that number their batches: a few hundred bytes a lane, for 30 days |
//! | [`keys`] | `Idempotency-Key`s of 24 hours, bounded by bytes: under pressure the oldest are evicted early |
//! | [`run`] | keys in sorted, immutable runs, which are objects of their own on the store |
//! | [`bytes`] | the state's bytes, read back with every one of them checked |
//!
//! # Determinism
//!
//! What is known at a position is a function of the org's sections of the log up to it: of their positions, of their
//! objects' times, of the batches in their order and of the limits that log objects set. Nothing depends on when a
//! flush took a snapshot, on which node did, or on how often the state was stored and loaded in between: two nodes that
//! applied the same sections encode the same bytes, and write the same runs under the same names.
//!
//! # Deciding and applying
//!
//! [`Dedup::decide`] is asked before a batch enters a log object, by a writer that has applied the whole log, and once
//! more after a lost race. [`Dedup::apply`] is called for each batch of an object that is in the log; it cannot fail
//! and does not ask again. Time passing (`apply` and [`Dedup::advance`] carry the object's) only ever forgets, so a
//! batch that was fresh at the end of the log is fresh in the object after it. Two batches of one key or one lane do
//! not belong into one object: the second waits for the first one's fate, and is then decided.
//!
//! # Bytes
//!
//! [`Dedup::encode`] gives the part of the state object: limits, marks, keys that are not in a run yet, and the name,
//! size and BLAKE3 of each run. The caller authenticates it (the state object's MAC). A run needs no MAC of its own: it
//! is believed when its hash is the one in the state. All lengths, orders and counts are checked as well.

mod bytes;
mod keys;
mod lanes;
mod run;
#[cfg(test)]
mod tests;

pub(crate) use bytes::Corrupt;
pub(crate) use keys::{DEFAULT_KEY_BYTES, Keys};
pub(crate) use lanes::{DEFAULT_MAX_LANES, Lanes};
pub(crate) use run::{Run, RunRef};

use crate::ingest::BatchId;
use bytes::Reader;
use keys::StoredKeys;

/// The version of the encoding. A reader refuses any other.
const VERSION: u8 = 1;

/// What is to become of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// It was not stored before: store it.
    Fresh,
    /// Store it, count it and say so: its emitter was answered for batches that this store does not know. The store was
    /// restored to an older state.
    FreshAfterGap,
    /// It is stored already: answer `"duplicate": true`.
    Duplicate,
    /// Its number was used, and it is not known whether for this body: 409 `sequence_conflict`. Never a duplicate.
    Conflict,
    /// Its key was used with another body: 422 `key_reused`.
    Reused,
    /// Its lane is new and the org has too many: 429.
    TooManyLanes,
}

impl Decision {
    /// Whether the batch is to be stored.
    #[cfg(test)]
    pub(crate) const fn stores(self) -> bool {
        matches!(self, Self::Fresh | Self::FreshAfterGap)
    }
}

/// The bounds of an org's memory. They are set by log objects, never by a node's own configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// The most lanes with a mark. A new one past it is refused.
    pub(crate) max_lanes: u32,
    /// The most bytes of keys, at 24 bytes each. Past it the oldest are evicted early.
    pub(crate) max_key_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_lanes: DEFAULT_MAX_LANES, max_key_bytes: DEFAULT_KEY_BYTES }
    }
}

/// What an org remembers of batches.
#[derive(Debug, Clone, Default)]
pub(crate) struct Dedup {
    lanes: Lanes,
    keys: Keys,
}

impl Dedup {
    /// An org that has stored nothing yet.
    pub(crate) fn new(limits: Limits) -> Self {
        let mut new = Self::default();
        new.set_limits(limits);
        new
    }

    /// Sets the bounds, as a log object says. Lanes past a lower bound stay; keys past it are evicted now.
    pub(crate) fn set_limits(&mut self, limits: Limits) {
        self.lanes.set_max_lanes(limits.max_lanes);
        self.keys.set_max_bytes(limits.max_key_bytes);
    }

    /// What is to become of a batch in the object after the newest applied one.
    pub(crate) fn decide(&self, id: &BatchId) -> Decision {
        match id {
            BatchId::Key { key, body } => self.keys.decide(key, *body),
            BatchId::Sequence { lane, number, after, body } => self.lanes.decide(lane, *number, *after, *body),
        }
    }

    /// The log object at `position`, written at `time` (µs), begins: what is too old for it is forgotten.
    ///
    /// Positions rise. A time before an earlier object's counts as that object's.
    pub(crate) fn advance(&mut self, position: u64, time: i64) {
        self.lanes.advance(time);
        self.keys.advance(position, time);
    }

    /// Remembers a batch of the log object at `position`, written at `time` (µs).
    pub(crate) fn apply(&mut self, id: &BatchId, position: u64, time: i64) {
        self.advance(position, time);
        match id {
            BatchId::Key { key, body } => self.keys.apply(key, *body, position, time),
            BatchId::Sequence { lane, number, body, .. } => self.lanes.apply(lane, *number, *body, time),
        }
    }

    /// The marks.
    pub(crate) fn lanes(&self) -> &Lanes {
        &self.lanes
    }

    /// The keys.
    pub(crate) fn keys(&self) -> &Keys {
        &self.keys
    }

    /// From when on (µs) all keys are known, where that is less than 24 hours ago: `Mcpg-Keys-Since`.
    pub(crate) fn keys_since(&self) -> Option<i64> {
        self.keys.since()
    }

    /// The bytes for the state object: all of it, or of the marks those alone that may have changed since the state
    /// whose newest object was written at `base`. Each run of [`Keys::runs`] must be stored before them.
    pub(crate) fn encode(&self, base: Option<i64>) -> Vec<u8> {
        let mut out = vec![VERSION];
        self.lanes.encode(base, &mut out);
        self.keys.encode(&mut out);
        out
    }
}

/// A [`Dedup`] as it was stored, without its runs.
#[derive(Debug)]
pub(crate) struct Stored {
    lanes: lanes::StoredLanes,
    keys: StoredKeys,
}

impl Stored {
    /// Reads what [`Dedup::encode`] wrote.
    ///
    /// # Errors
    /// When the bytes are not exactly of that form.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Corrupt> {
        let mut reader = Reader::new(bytes);
        if reader.u8()? != VERSION {
            return Err(Corrupt("it is of a version that is not known"));
        }
        let stored = Self { lanes: Lanes::decode(&mut reader)?, keys: Keys::decode(&mut reader)? };
        reader.end()?;
        Ok(stored)
    }

    /// The runs that it needs, oldest first. Each is read with [`RunRef::decode`].
    pub(crate) fn runs(&self) -> &[RunRef] {
        &self.keys.runs
    }

    /// The time of the state whose marks it builds on; none when it holds all marks.
    #[cfg(test)]
    pub(crate) fn base(&self) -> Option<i64> {
        self.lanes.base
    }

    /// The memory itself, of the runs that it asked for in their order, and of the state that it builds on, if it does.
    ///
    /// # Errors
    /// When they are not those.
    pub(crate) fn complete(self, runs: Vec<Run>, base: Option<&Dedup>) -> Result<Dedup, Corrupt> {
        let lanes = self.lanes.complete(base.map(|base| &base.lanes))?;
        Ok(Dedup { lanes, keys: self.keys.complete(runs)? })
    }

    /// The marks alone, of a state in the middle of a chain: what the next one builds on. Its keys are that one's to
    /// bring.
    ///
    /// # Errors
    /// When `base` is not the state that it builds on.
    pub(crate) fn complete_lanes(self, base: Option<&Dedup>) -> Result<Dedup, Corrupt> {
        let lanes = self.lanes.complete(base.map(|base| &base.lanes))?;
        Ok(Dedup { lanes, keys: Keys::default() })
    }

    /// The memory of a store of the first design: its runs of keys, oldest first (see [`Run::decode_v1`]).
    pub(crate) fn from_v1(runs: Vec<Run>, limits: Limits, position: u64, time: i64) -> Dedup {
        let mut dedup = Dedup { lanes: Lanes::default(), keys: Keys::from_v1(runs) };
        dedup.advance(position, time);
        dedup.set_limits(limits);
        dedup
    }
}
