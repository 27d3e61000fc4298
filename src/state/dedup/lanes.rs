//! Marks of emitters that number their batches (`Mcpg-Emitter`, `Mcpg-Sequence`, `Mcpg-After`).
//!
//! A lane is one sequence of one emitter's process, with one batch under way at a time. So all that has to be
//! remembered of it is one mark: the number of its last batch, and the fingerprints of its last [`REMEMBERED`] ones. It
//! is the producer id and sequence number of Kafka's idempotent producer, with `after` in the place of its strict
//! succession: an emitter may give a batch up, and the next one is stored all the same.
//!
//! | number | after | |
//! |---|---|---|
//! | any, the lane has no mark | any | stored |
//! | above the mark | at or under the mark | stored |
//! | above the mark | above the mark | stored, and said: the emitter was answered for what is not here any more |
//! | at or under the mark | any | `Duplicate` if this body was stored under this number; otherwise `Conflict` |
//!
//! A mark lives for [`MARK_LIFE`] after its last batch, by the time of the log's objects, and is never evicted before.
//! When an org has as many as it may, a lane without one is refused.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use uuid::Uuid;

use super::Decision;
use super::bytes::{Corrupt, Reader};
use crate::ingest::{Fingerprint, Lane};

/// How long a mark lives after the lane's last batch, in µs: 30 days.
pub(super) const MARK_LIFE: i64 = 30 * 24 * 3_600_000_000;

/// Of how many batches a mark has the fingerprints.
pub(super) const REMEMBERED: usize = 16;

/// How many lanes of an org have a mark at most, if no log object says otherwise. At 16 fingerprints each a mark takes
/// about 300 bytes, so 3 MB an org.
pub(crate) const DEFAULT_MAX_LANES: u32 = 10_000;

/// The fewest bytes of a mark.
const MARK_BYTES: usize = 16 + 2 + 8 + 1 + 16;

/// What is remembered of a lane.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mark {
    /// When the object was written that has its last batch, µs.
    time: i64,
    /// Its last batches by number, ascending. The last one's is the mark.
    recent: VecDeque<(u64, Fingerprint)>,
}

impl Mark {
    fn number(&self) -> u64 {
        self.recent.back().map_or(0, |(number, _)| *number)
    }

    fn is_dead_at(&self, time: i64) -> bool {
        self.time.saturating_add(MARK_LIFE) <= time
    }
}

/// The marks of an org's lanes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lanes {
    max_lanes: u32,
    /// When the newest applied object was written, µs.
    time: i64,
    marks: BTreeMap<Lane, Mark>,
    /// The lanes by the time of their marks: who dies first.
    by_age: BTreeSet<(i64, Lane)>,
}

impl Default for Lanes {
    fn default() -> Self {
        Self { max_lanes: DEFAULT_MAX_LANES, time: i64::MIN, marks: BTreeMap::new(), by_age: BTreeSet::new() }
    }
}

impl Lanes {
    /// Sets how many lanes may have a mark. Those that have one keep it.
    pub(crate) fn set_max_lanes(&mut self, max_lanes: u32) {
        self.max_lanes = max_lanes;
    }

    /// When the newest applied object was written, µs: a state names its base by it (see [`super::Dedup::encode`]).
    #[cfg(test)]
    pub(crate) fn time(&self) -> i64 {
        self.time
    }

    /// How many lanes have a mark.
    pub(crate) fn len(&self) -> usize {
        self.marks.len()
    }

    /// The number of a lane's last batch.
    pub(crate) fn last(&self, lane: &Lane) -> Option<u64> {
        self.marks.get(lane).map(Mark::number)
    }

    /// What is to become of batch `number` of a lane, whose emitter was last answered for batch `after`.
    pub(crate) fn decide(&self, lane: &Lane, number: u64, after: u64, body: Fingerprint) -> Decision {
        let Some(mark) = self.marks.get(lane) else {
            let full = u64::try_from(self.marks.len()).unwrap_or(u64::MAX) >= u64::from(self.max_lanes);
            return if full { Decision::TooManyLanes } else { Decision::Fresh };
        };
        if number > mark.number() {
            return if after > mark.number() { Decision::FreshAfterGap } else { Decision::Fresh };
        }
        if mark.recent.contains(&(number, body)) { Decision::Duplicate } else { Decision::Conflict }
    }

    /// An object written at `time` begins: marks that are too old for it are forgotten.
    pub(crate) fn advance(&mut self, time: i64) {
        self.time = self.time.max(time);
        while let Some((_, lane)) = self.by_age.first().copied()
            && self.marks.get(&lane).is_none_or(|mark| mark.is_dead_at(self.time))
        {
            self.by_age.pop_first();
            self.marks.remove(&lane);
        }
    }

    /// Remembers batch `number` of a lane, in an object written at `time`.
    ///
    /// A number that is not above the mark changes nothing: no writer puts one into the log.
    pub(crate) fn apply(&mut self, lane: &Lane, number: u64, body: Fingerprint, time: i64) {
        self.advance(time);
        let time = self.time;
        let mark = self.marks.entry(*lane).or_insert(Mark { time, recent: VecDeque::new() });
        if number <= mark.number() && !mark.recent.is_empty() {
            return;
        }
        if mark.recent.len() == REMEMBERED {
            mark.recent.pop_front();
        }
        mark.recent.push_back((number, body));
        self.by_age.remove(&(mark.time, *lane));
        mark.time = time;
        self.by_age.insert((time, *lane));
    }

    pub(super) fn encode(&self, base: Option<i64>, out: &mut Vec<u8>) {
        // A mark that was last touched at the base's own time may have been touched after it, by an object of that
        // time.
        let changed = || self.marks.iter().filter(|(_, mark)| base.is_none_or(|base| mark.time >= base));
        out.push(u8::from(base.is_some()));
        out.extend_from_slice(&base.unwrap_or_default().to_le_bytes());
        out.extend_from_slice(&self.max_lanes.to_le_bytes());
        out.extend_from_slice(&self.time.to_le_bytes());
        out.extend_from_slice(&(changed().count() as u64).to_le_bytes());
        for (lane, mark) in changed() {
            out.extend_from_slice(lane.emitter.as_bytes());
            out.extend_from_slice(&lane.lane.to_le_bytes());
            out.extend_from_slice(&mark.time.to_le_bytes());
            // At most 16.
            out.push(mark.recent.len() as u8);
            for (number, Fingerprint(body)) in &mark.recent {
                out.extend_from_slice(&number.to_le_bytes());
                out.extend_from_slice(&body.to_le_bytes());
            }
        }
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<StoredLanes, Corrupt> {
        let base = match (reader.u8()?, reader.i64()?) {
            (0, 0) => None,
            (1, base) => Some(base),
            _ => return Err(Corrupt("it does not say whether it holds all marks")),
        };
        let mut lanes = Self { max_lanes: reader.u32()?, time: reader.i64()?, ..Self::default() };
        let mut before = None;
        for _ in 0..reader.count(MARK_BYTES)? {
            let lane = Lane { emitter: Uuid::from_bytes(reader.array()?), lane: reader.u16()? };
            if before.replace(lane) >= Some(lane) {
                return Err(Corrupt("its lanes are not in order"));
            }
            let mark = mark(reader)?;
            if mark.time > lanes.time || mark.is_dead_at(lanes.time) || base.is_some_and(|base| mark.time < base) {
                return Err(Corrupt("a mark's time is not one of its log's"));
            }
            lanes.by_age.insert((mark.time, lane));
            lanes.marks.insert(lane, mark);
        }
        Ok(StoredLanes { base, lanes })
    }
}

fn mark(reader: &mut Reader<'_>) -> Result<Mark, Corrupt> {
    let time = reader.i64()?;
    let count = usize::from(reader.u8()?);
    if !(1..=REMEMBERED).contains(&count) {
        return Err(Corrupt("a mark has no batches, or too many"));
    }
    let mut recent: VecDeque<(u64, Fingerprint)> = VecDeque::with_capacity(count);
    for _ in 0..count {
        let (number, body) = (reader.u64()?, Fingerprint(reader.u64()?));
        if recent.back().is_some_and(|(before, _)| *before >= number) {
            return Err(Corrupt("a mark's numbers do not rise"));
        }
        recent.push_back((number, body));
    }
    Ok(Mark { time, recent })
}

/// [`Lanes`] as they were stored: all of them, or what changed since an earlier state.
#[derive(Debug)]
pub(super) struct StoredLanes {
    pub(super) base: Option<i64>,
    lanes: Lanes,
}

impl StoredLanes {
    pub(super) fn complete(self, base: Option<&Lanes>) -> Result<Lanes, Corrupt> {
        let Some(time) = self.base else { return Ok(self.lanes) };
        let base = base.filter(|base| base.time == time).ok_or(Corrupt("it builds on another state"))?;
        let mut whole = base.clone();
        (whole.max_lanes, whole.time) = (self.lanes.max_lanes, self.lanes.time);
        for (lane, mark) in self.lanes.marks {
            whole.by_age.insert((mark.time, lane));
            if let Some(before) = whole.marks.insert(lane, mark.clone())
                && before.time != mark.time
            {
                whole.by_age.remove(&(before.time, lane));
            }
        }
        whole.advance(whole.time);
        Ok(whole)
    }
}
