//! Idempotency keys of the last 24 hours, each with the fingerprint of the body that it came with, in bounded memory.
//!
//! The newest keys are in one open tree. As the next log object begins it is closed into a sorted [`Run`] if it has
//! [`RUN_KEYS`] keys, or if a new five minutes have begun. Neighbouring runs are merged as they grow, like the levels
//! of a log-structured merge tree, but not past an hour's worth of time, so that a run can be dropped whole when all of
//! it is older than a day. A key so is known for at least 24 hours and at most an hour and five minutes more, by the
//! time of the log's objects. All that depends on positions, times and counts of what was applied, and on nothing else:
//! a flush stores the runs that there are and the open keys beside them, and changes neither.
//!
//! Past [`Keys::set_max_bytes`] the oldest run is evicted early, until the rest fits: a new batch is never refused for
//! the sake of old keys. [`Keys::since`] says from when on all keys are known, and [`Keys::evicted_early`] counts those
//! that went. A run is at most a sixteenth of the bound, so nearly all of it is used.
//!
//! The trade-off: an entry has no time of its own, for 24 bytes a key instead of 32.

use std::collections::{BTreeMap, VecDeque};

use super::Decision;
use super::bytes::{Corrupt, Reader};
use super::run::{ENTRY, Found, Run, RunRef};
use crate::ingest::{Fingerprint, IdempotencyKey};

/// How long a key is known at the least, µs: 24 hours.
pub(super) const KEPT: i64 = 24 * HOUR;
/// The most time that a run spans.
pub(super) const HOUR: i64 = 3_600_000_000;
/// A run is closed at the latest when a new slice of time begins.
pub(super) const SLICE: i64 = HOUR / 12;

/// A run is closed with so many keys, and merged up to so many. Both are less under a small bound.
const RUN_KEYS: u64 = 4096;
const MAX_RUN_KEYS: u64 = 1 << 18;

/// The bytes of keys of an org, if no log object says otherwise: 96 MiB, four million keys.
pub(crate) const DEFAULT_KEY_BYTES: u64 = 96 << 20;

/// The keys that are not in a run yet.
#[derive(Debug, Clone, PartialEq)]
struct Open {
    /// Of the first and the last object that brought one.
    positions: (u64, u64),
    times: (i64, i64),
    entries: BTreeMap<IdempotencyKey, Fingerprint>,
}

/// The idempotency keys of the last 24 hours.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Keys {
    max_bytes: u64,
    /// When the newest applied object was written, µs.
    time: i64,
    /// All keys that were written from here on are known; none if none was evicted early.
    known_since: Option<i64>,
    evicted_early: u64,
    open: Option<Open>,
    /// Oldest first.
    runs: VecDeque<Run>,
    /// How many keys are in runs.
    in_runs: u64,
}

impl Default for Keys {
    fn default() -> Self {
        Self {
            max_bytes: DEFAULT_KEY_BYTES,
            time: i64::MIN,
            known_since: None,
            evicted_early: 0,
            open: None,
            runs: VecDeque::new(),
            in_runs: 0,
        }
    }
}

impl Keys {
    /// The keys of a store of the first design, by its runs, oldest first.
    pub(super) fn from_v1(runs: Vec<Run>) -> Self {
        let in_runs = runs.iter().map(Run::len).sum();
        let time = runs.iter().map(|run| run.times().1).max().unwrap_or(i64::MIN);
        Self { runs: runs.into(), in_runs, time, ..Self::default() }
    }

    /// Sets the bound of bytes, at 24 a key, and keeps it.
    pub(crate) fn set_max_bytes(&mut self, max_bytes: u64) {
        self.max_bytes = max_bytes;
        self.keep_bound();
    }

    /// How many keys are known.
    pub(crate) fn len(&self) -> u64 {
        self.in_runs + self.open.as_ref().map_or(0, |open| open.entries.len() as u64)
    }

    /// Their bytes, as they count against the bound.
    pub(crate) fn bytes(&self) -> u64 {
        self.len() * ENTRY as u64
    }

    /// The bound of them.
    pub(crate) fn max_bytes(&self) -> u64 {
        self.max_bytes
    }

    /// How many keys were evicted before their time, ever.
    pub(crate) fn evicted_early(&self) -> u64 {
        self.evicted_early
    }

    /// From when on (µs) all keys are known, if that is less than 24 hours before the newest object.
    pub(crate) fn since(&self) -> Option<i64> {
        self.known_since.filter(|since| since.saturating_add(KEPT) > self.time)
    }

    /// The runs, oldest first: a flush stores those that are not stored yet, and deletes others once no state needs
    /// them.
    pub(crate) fn runs(&self) -> impl ExactSizeIterator<Item = &Run> {
        self.runs.iter()
    }

    /// What is to become of a batch with this key and body.
    pub(crate) fn decide(&self, key: &IdempotencyKey, body: Fingerprint) -> Decision {
        let open = self.open.as_ref().and_then(|open| open.entries.get(key)).map(|body| Found::Body(*body));
        match open.or_else(|| self.runs.iter().rev().find_map(|run| run.find(key))) {
            None => Decision::Fresh,
            Some(Found::AnyBody) => Decision::Duplicate,
            Some(Found::Body(stored)) if stored == body => Decision::Duplicate,
            Some(Found::Body(_)) => Decision::Reused,
        }
    }

    /// The object at `position`, written at `time`, begins.
    pub(crate) fn advance(&mut self, position: u64, time: i64) {
        self.time = self.time.max(time);
        let (limit, slice) = (self.run_keys(), self.time.div_euclid(SLICE));
        // An object's keys are never parted, so that no two runs have one name.
        let is_due = |open: &Open| {
            let full = open.entries.len() as u64 >= limit || open.times.0.div_euclid(SLICE) != slice;
            position > open.positions.1 && full
        };
        if self.open.as_ref().is_some_and(is_due) {
            self.close();
        }
        while let Some(run) = self.runs.front()
            && run.times().1.saturating_add(KEPT) <= self.time
        {
            self.in_runs -= run.len();
            self.runs.pop_front();
        }
    }

    /// Remembers a batch of the object at `position`, written at `time`, under a key that was found fresh.
    pub(crate) fn apply(&mut self, key: &IdempotencyKey, body: Fingerprint, position: u64, time: i64) {
        self.advance(position, time);
        let (position, time) = ((position, position), (self.time, self.time));
        let open = self.open.get_or_insert_with(|| Open { positions: position, times: time, entries: BTreeMap::new() });
        open.positions.1 = open.positions.1.max(position.1);
        open.times.1 = time.1;
        open.entries.entry(*key).or_insert(body);
        self.keep_bound();
    }

    /// With how many keys a run is closed.
    fn run_keys(&self) -> u64 {
        (self.max_bytes / ENTRY as u64 / 64).clamp(1, RUN_KEYS)
    }

    /// How many keys a merged run has at most.
    fn max_run_keys(&self) -> u64 {
        (self.max_bytes / ENTRY as u64 / 16).clamp(1, MAX_RUN_KEYS)
    }

    fn close(&mut self) {
        let Some(Open { positions, times, entries }) = self.open.take() else { return };
        let mut run = Run::new(positions, times, entries.into_iter());
        while let Some(before) = self.runs.back() {
            let span = run.times().1.saturating_sub(before.times().0);
            let large = before.len() > 2 * run.len() || before.len() + run.len() > self.max_run_keys();
            let Some(merged) = (!large && span <= HOUR).then(|| before.merged(&run)).flatten() else { break };
            self.in_runs -= before.len();
            self.runs.pop_back();
            run = merged;
        }
        self.in_runs += run.len();
        self.runs.push_back(run);
    }

    /// Evicts the oldest keys while there are too many.
    fn keep_bound(&mut self) {
        while self.bytes() > self.max_bytes {
            let (count, last) = if let Some(run) = self.runs.pop_front() {
                self.in_runs -= run.len();
                (run.len(), run.times().1)
            } else if let Some(open) = self.open.take() {
                (open.entries.len() as u64, open.times.1)
            } else {
                break;
            };
            self.evicted_early += count;
            // Of the evicted ones' last moment some may be known, and are not promised.
            self.known_since = self.known_since.max(Some(last.saturating_add(1)));
        }
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.max_bytes.to_le_bytes());
        out.extend_from_slice(&self.time.to_le_bytes());
        out.push(u8::from(self.known_since.is_some()));
        out.extend_from_slice(&self.known_since.unwrap_or_default().to_le_bytes());
        out.extend_from_slice(&self.evicted_early.to_le_bytes());
        out.extend_from_slice(&(self.runs.len() as u64).to_le_bytes());
        self.runs.iter().for_each(|run| run.reference().encode(out));
        let open = self.open.as_ref();
        out.extend_from_slice(&open.map_or(0, |open| open.entries.len() as u64).to_le_bytes());
        let Some(Open { positions, times, entries }) = open else { return };
        for (key, Fingerprint(body)) in entries {
            out.extend_from_slice(key.as_bytes());
            out.extend_from_slice(&body.to_le_bytes());
        }
        out.extend_from_slice(&positions.0.to_le_bytes());
        out.extend_from_slice(&positions.1.to_le_bytes());
        out.extend_from_slice(&times.0.to_le_bytes());
        out.extend_from_slice(&times.1.to_le_bytes());
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<StoredKeys, Corrupt> {
        let mut keys = Self { max_bytes: reader.u64()?, time: reader.i64()?, ..Self::default() };
        keys.known_since = match (reader.u8()?, reader.i64()?) {
            (0, 0) => None,
            (1, since) => Some(since),
            _ => return Err(Corrupt("it does not say since when keys are known")),
        };
        keys.evicted_early = reader.u64()?;
        let mut runs: Vec<RunRef> = Vec::new();
        for _ in 0..reader.count(RunRef::BYTES)? {
            let run = RunRef::read(reader)?;
            if runs.last().is_some_and(|before| before.positions().1 > run.positions().0) {
                return Err(Corrupt("its runs of keys are not in order"));
            }
            runs.push(run);
        }
        let mut entries = BTreeMap::new();
        let count = reader.count(ENTRY)?;
        for _ in 0..count {
            let (key, body) = (IdempotencyKey::from_bytes(reader.array()?), Fingerprint(reader.u64()?));
            if entries.last_key_value().is_some_and(|(before, _)| *before >= key) {
                return Err(Corrupt("its keys are not in order"));
            }
            entries.insert(key, body);
        }
        if count > 0 {
            let open =
                Open { positions: (reader.u64()?, reader.u64()?), times: (reader.i64()?, reader.i64()?), entries };
            let after_runs =
                runs.last().is_none_or(|run| run.positions().1 < open.positions.0 && run.times().0 <= open.times.0);
            if open.positions.0 > open.positions.1 || open.times.0 > open.times.1 || !after_runs {
                return Err(Corrupt("its newest keys are not of the newest objects"));
            }
            keys.open = Some(open);
        }
        Ok(StoredKeys { keys, runs })
    }
}

/// [`Keys`] as they were stored, without their runs.
#[derive(Debug)]
pub(super) struct StoredKeys {
    keys: Keys,
    pub(super) runs: Vec<RunRef>,
}

impl StoredKeys {
    pub(super) fn complete(self, runs: Vec<Run>) -> Result<Keys, Corrupt> {
        let Self { mut keys, runs: named } = self;
        if runs.len() != named.len() || runs.iter().zip(&named).any(|(run, named)| run.reference() != *named) {
            return Err(Corrupt("the runs of keys are not those that the state names"));
        }
        keys.in_runs = runs.iter().map(Run::len).sum();
        keys.runs = runs.into();
        Ok(keys)
    }
}
