//! The idempotency keys of an org's last 24 hours and more, in bounded memory.
//!
//! Keys that came since the last flush are in a set; a flush seals them into a sorted run, which is stored as
//! `orgs/<org>/keys/<from>-<to>`: the keys that the log brought after position `from`, up to and with `to`. A key takes
//! 16 bytes in a run. Neighbouring runs are merged as they grow, like the levels of a log-structured merge tree, but
//! not past an hour's worth of time, so that a run can be dropped whole when all of it is older than a day.
//!
//! On-disk form of a run: magic `MCPGKEY1`, the time of the oldest and of the newest key (i64 µs little-endian), the
//! keys in ascending order (16 bytes each), BLAKE3 of all before it (32 bytes).

use std::collections::{HashMap, VecDeque};
use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::ingest::IdempotencyKey;

const MAGIC: &[u8; 8] = b"MCPGKEY1";
const FRONT: usize = 24;
const HASH: usize = 32;
const MICROS_PER_HOUR: i64 = 3_600_000_000;
/// How long a key is remembered at the least.
const KEPT: i64 = 24 * MICROS_PER_HOUR;

/// A sealed, sorted run of keys.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Run {
    /// Keys of positions after `from`, up to and with `to`.
    pub(super) from: u64,
    pub(super) to: u64,
    times: RangeInclusive<i64>,
    keys: Arc<Vec<IdempotencyKey>>,
    stored: bool,
}

impl Run {
    fn contains(&self, key: &IdempotencyKey) -> bool {
        self.keys.binary_search(key).is_ok()
    }

    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    fn merge(&self, newer: &Self) -> Self {
        let mut keys = Vec::with_capacity(self.len() + newer.len());
        keys.extend_from_slice(&self.keys);
        keys.extend_from_slice(&newer.keys);
        keys.sort_unstable();
        let times = (*self.times.start()).min(*newer.times.start())..=(*self.times.end()).max(*newer.times.end());
        Self { from: self.from, to: newer.to, times, keys: Arc::new(keys), stored: false }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(FRONT + self.len() * 16 + HASH);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&self.times.start().to_le_bytes());
        out.extend_from_slice(&self.times.end().to_le_bytes());
        for key in self.keys.iter() {
            out.extend_from_slice(key.as_bytes());
        }
        let hash = blake3::hash(&out);
        out.extend_from_slice(hash.as_bytes());
        out
    }

    pub(super) fn decode(from: u64, to: u64, bytes: &[u8]) -> Result<Self, &'static str> {
        let end = bytes.len().checked_sub(HASH).filter(|end| *end >= FRONT).ok_or("it is too short")?;
        let (body, hash) = bytes.split_at(end);
        if blake3::hash(body).as_bytes() != hash {
            return Err("it does not match its hash");
        }
        let (front, keys) = body.split_at(FRONT);
        let word = |at: usize| front.get(at..at + 8).and_then(|b| b.try_into().ok()).map(i64::from_le_bytes);
        let (Some(MAGIC), Some(first), Some(last)) = (front.first_chunk::<8>(), word(8), word(16)) else {
            return Err("it does not start with the magic bytes of a run of keys");
        };
        let (keys, []) = keys.as_chunks::<16>() else { return Err("its keys are not whole") };
        let keys = keys.iter().map(|key| IdempotencyKey::from_bytes(*key)).collect();
        Ok(Self { from, to, times: first..=last, keys: Arc::new(keys), stored: true })
    }
}

/// See the module's doc.
#[derive(Debug, Default)]
pub(super) struct KeyWindow {
    fresh: HashMap<IdempotencyKey, i64>,
    /// Ascending in position.
    runs: VecDeque<Run>,
    /// Positions up to here are in `runs`.
    sealed: u64,
    /// Stored runs that others hold the keys of: to be deleted at the next flush.
    spare: Vec<(u64, u64)>,
}

/// What a flush has to do to the stored runs.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Sealed {
    /// To be stored first.
    pub(super) new: Vec<Run>,
    /// To be deleted then: merged into a new one, or older than a day. By `from` and `to`.
    pub(super) gone: Vec<(u64, u64)>,
}

impl KeyWindow {
    /// The window that stored runs make.
    pub(super) fn load(mut runs: Vec<Run>) -> Self {
        // A crash between storing a merged run and deleting its parts leaves both, and so do two nodes that flush in
        // turn: the wider one holds the narrower.
        runs.sort_by_key(|run| (run.from, std::cmp::Reverse(run.to)));
        let (mut kept, mut spare): (VecDeque<Run>, _) = (VecDeque::new(), Vec::new());
        for run in runs {
            if kept.back().is_none_or(|last| run.to > last.to) {
                kept.push_back(run);
            } else {
                spare.push((run.from, run.to));
            }
        }
        let sealed = kept.back().map_or(0, |run| run.to);
        Self { fresh: HashMap::new(), runs: kept, sealed, spare }
    }

    pub(super) fn contains(&self, key: &IdempotencyKey) -> bool {
        self.fresh.contains_key(key) || self.runs.iter().any(|run| run.contains(key))
    }

    pub(super) fn insert(&mut self, time: i64, keys: &[IdempotencyKey]) {
        self.fresh.extend(keys.iter().map(|key| (*key, time)));
    }

    pub(super) fn len(&self) -> usize {
        self.fresh.len() + self.runs.iter().map(Run::len).sum::<usize>()
    }

    /// Seals what is fresh, all of it of positions up to `position`.
    pub(super) fn seal(&mut self, position: u64, now: i64) -> Sealed {
        let mut sealed = Sealed { new: Vec::new(), gone: std::mem::take(&mut self.spare) };
        self.runs.retain(|run| {
            let kept = run.times.end() + KEPT > now;
            if !kept {
                sealed.gone.push((run.from, run.to));
            }
            kept
        });
        let fresh = std::mem::take(&mut self.fresh);
        let times = fresh.values().min().copied().zip(fresh.values().max().copied());
        if let Some((first, last)) = times {
            let mut keys: Vec<_> = fresh.into_keys().collect();
            keys.sort_unstable();
            let mut run =
                Run { from: self.sealed, to: position, times: first..=last, keys: Arc::new(keys), stored: false };
            while let Some(before) = self.runs.back() {
                let merged_span = run.times.end() - before.times.start();
                if before.len() > 2 * run.len() || merged_span > MICROS_PER_HOUR {
                    break;
                }
                if before.stored {
                    sealed.gone.push((before.from, before.to));
                }
                run = before.merge(&run);
                self.runs.pop_back();
            }
            self.runs.push_back(run);
        }
        self.sealed = position;
        sealed.new = self.runs.iter().filter(|run| !run.stored).cloned().collect();
        sealed
    }

    /// Says whether what `seal` returned was stored and deleted; if not, the next seal returns it again.
    pub(super) fn settle(&mut self, sealed: Sealed, stored: bool) {
        if stored {
            self.runs.iter_mut().for_each(|run| run.stored = true);
        } else {
            self.spare.extend(sealed.gone);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{KEPT, KeyWindow, MICROS_PER_HOUR, Run};
    use crate::ingest::{IdempotencyKey, RowKind};

    fn key(n: u64) -> IdempotencyKey {
        IdempotencyKey::new(RowKind::Sample, n.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn a_key_is_known_for_a_day_and_forgotten_some_time_after() {
        let mut window = KeyWindow::default();
        window.insert(0, &[key(1)]);
        window.seal(1, 0);
        window.seal(2, KEPT - 1);
        assert!(window.contains(&key(1)));
        window.seal(3, KEPT + MICROS_PER_HOUR);
        assert!(!window.contains(&key(1)));
    }

    proptest! {
        /// A store that keeps what it is told to and deletes what it is told to, crashed at any seal, even between
        /// storing and deleting, loads the same keys.
        #[test]
        fn stored_runs_hold_what_the_window_holds(
            seals in prop::collection::vec((1u64..40, 0i64..MICROS_PER_HOUR), 1..40), crash in any::<bool>(),
            fails in any::<bool>(),
        ) {
            let (mut window, mut stored) = (KeyWindow::default(), Vec::<(u64, u64, Vec<u8>)>::new());
            let (mut next, mut now) = (0, 0);
            for (position, (count, passed)) in seals.iter().enumerate() {
                now += passed;
                let keys: Vec<_> = (next..next + count).map(key).collect();
                next += count;
                window.insert(now, &keys);
                let sealed = window.seal(position as u64 + 1, now);
                if position % 3 == 2 && fails {
                    window.settle(sealed, false);
                    continue;
                }
                stored.extend(sealed.new.iter().map(|run| (run.from, run.to, run.encode())));
                if !crash {
                    stored.retain(|(from, to, _)| !sealed.gone.contains(&(*from, *to)));
                }
                window.settle(sealed, true);
            }
            let sealed = window.seal(seals.len() as u64 + 1, now);
            stored.extend(sealed.new.iter().map(|run| (run.from, run.to, run.encode())));
            let runs = stored.iter().map(|(from, to, bytes)| Run::decode(*from, *to, bytes).unwrap()).collect();
            let loaded = KeyWindow::load(runs);
            for n in 0..next {
                prop_assert_eq!(loaded.contains(&key(n)), window.contains(&key(n)), "key {}", n);
            }
            prop_assert!(window.runs.len() < 60);
        }

        #[test]
        fn a_changed_byte_of_a_stored_run_is_noticed(at in 0usize..200, flip in 1u8..) {
            let mut window = KeyWindow::default();
            window.insert(5, &[key(1), key(2), key(3)]);
            let mut bytes = window.seal(1, 5).new[0].encode();
            let at = at % bytes.len();
            bytes[at] ^= flip;
            prop_assert!(Run::decode(0, 1, &bytes).is_err());
        }
    }
}
