//! A sorted, immutable run of idempotency keys: an object of its own, `orgs/<org>/keys/<from>-<to>`.
//!
//! ```text
//! offset  bytes
//!      0      8  magic "MCPGKEY2"
//!      8     16  the positions of the first and the last log object that its keys came with, u64 each
//!     24     16  when these were written, µs, i64 each
//!     40      1  1: each key has its body's fingerprint; 0: none has, they are of the first design
//!     41      8  how many keys, u64
//!     49      …  keys, ascending: 16 bytes, and 8 bytes of fingerprint
//! ```
//!
//! All figures are little-endian. A run is a function of the log, so every node makes the same one. It is named, with
//! its BLAKE3, by each state that needs it, and believed if that is its hash: the state's MAC authenticates both.
//!
//! A run of the first design (`MCPGKEY1`) has 16 bytes a key and ends in a hash of its own.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use super::bytes::{Corrupt, Reader};
use crate::ingest::{Fingerprint, IdempotencyKey};

const MAGIC: &[u8; 8] = b"MCPGKEY2";
const MAGIC_V1: &[u8; 8] = b"MCPGKEY1";
const FRONT: usize = 49;
const FRONT_V1: usize = 24;
const HASH: usize = 32;

/// Bytes of a key in a run, with the fingerprint of its body; so many are counted for each key.
pub(super) const ENTRY: usize = 24;
const BARE: usize = 16;

/// What a key was used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// A batch with this body.
    Body(Fingerprint),
    /// A batch of which the first design did not remember the body.
    AnyBody,
}

/// The keys of a run, ascending.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Entries {
    Whole(Vec<(IdempotencyKey, Packed)>),
    Bare(Vec<IdempotencyKey>),
}

/// A fingerprint without alignment, so that an entry has 24 bytes.
type Packed = [u8; 8];

/// A run. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Run(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    positions: (u64, u64),
    times: (i64, i64),
    entries: Entries,
    hash: OnceLock<[u8; HASH]>,
    stored: AtomicBool,
}

/// A run as a state names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct RunRef {
    positions: (u64, u64),
    times: (i64, i64),
    whole: bool,
    count: u64,
    hash: [u8; HASH],
}

impl Run {
    /// A run of keys with their bodies, ascending, from log objects of these positions and times.
    pub(super) fn new(
        positions: (u64, u64),
        times: (i64, i64),
        entries: impl Iterator<Item = (IdempotencyKey, Fingerprint)>,
    ) -> Self {
        let entries = entries.map(|(key, Fingerprint(body))| (key, body.to_le_bytes())).collect();
        Self::of(positions, times, Entries::Whole(entries), false)
    }

    fn of(positions: (u64, u64), times: (i64, i64), entries: Entries, stored: bool) -> Self {
        let (hash, stored) = (OnceLock::new(), AtomicBool::new(stored));
        Self(Arc::new(Inner { positions, times, entries, hash, stored }))
    }

    pub(super) fn times(&self) -> (i64, i64) {
        self.0.times
    }

    /// How many keys it has.
    pub(crate) fn len(&self) -> u64 {
        match &self.0.entries {
            Entries::Whole(entries) => entries.len() as u64,
            Entries::Bare(keys) => keys.len() as u64,
        }
    }

    pub(super) fn find(&self, key: &IdempotencyKey) -> Option<Found> {
        match &self.0.entries {
            Entries::Whole(entries) => {
                let at = entries.binary_search_by(|(found, _)| found.cmp(key)).ok()?;
                let (_, body) = entries.get(at)?;
                Some(Found::Body(Fingerprint(u64::from_le_bytes(*body))))
            }
            Entries::Bare(keys) => keys.binary_search(key).is_ok().then_some(Found::AnyBody),
        }
    }

    /// One run of this one's keys and those of the next newer one, if both have bodies. Of a key in both the older
    /// stays.
    pub(super) fn merged(&self, newer: &Self) -> Option<Self> {
        let (Entries::Whole(old), Entries::Whole(new)) = (&self.0.entries, &newer.0.entries) else { return None };
        let mut entries = Vec::with_capacity(old.len() + new.len());
        entries.extend_from_slice(old);
        entries.extend_from_slice(new);
        // The sort is stable and finds two sorted runs: it merges them.
        entries.sort_by_key(|(key, _)| *key);
        entries.dedup_by_key(|(key, _)| *key);
        let positions = (self.0.positions.0, newer.0.positions.1);
        Some(Self::of(positions, (self.0.times.0, newer.0.times.1), Entries::Whole(entries), false))
    }

    /// The object's bytes.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let Inner { positions, times, entries, .. } = &*self.0;
        let mut out = Vec::with_capacity(FRONT + usize::try_from(self.len()).unwrap_or_default() * ENTRY);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&positions.0.to_le_bytes());
        out.extend_from_slice(&positions.1.to_le_bytes());
        out.extend_from_slice(&times.0.to_le_bytes());
        out.extend_from_slice(&times.1.to_le_bytes());
        out.push(u8::from(matches!(entries, Entries::Whole(_))));
        out.extend_from_slice(&self.len().to_le_bytes());
        match entries {
            Entries::Whole(entries) => entries.iter().for_each(|(key, body)| {
                out.extend_from_slice(key.as_bytes());
                out.extend_from_slice(body);
            }),
            Entries::Bare(keys) => keys.iter().for_each(|key| out.extend_from_slice(key.as_bytes())),
        }
        self.0.hash.get_or_init(|| *blake3::hash(&out).as_bytes());
        out
    }

    /// How a state names it. Hashes the bytes if that was not done yet.
    pub(crate) fn reference(&self) -> RunRef {
        let hash = self.0.hash.get().copied().unwrap_or_else(|| *blake3::hash(&self.encode()).as_bytes());
        let Inner { positions, times, entries, .. } = &*self.0;
        let whole = matches!(entries, Entries::Whole(_));
        RunRef { positions: *positions, times: *times, whole, count: self.len(), hash }
    }

    /// Whether this node knows that it is stored. Not part of the state: it is stored again otherwise, to no harm.
    pub(crate) fn is_stored(&self) -> bool {
        self.0.stored.load(Ordering::Relaxed)
    }

    /// Notes that it is stored.
    pub(crate) fn set_stored(&self) {
        self.0.stored.store(true, Ordering::Relaxed);
    }

    /// Reads a run of the first design, which was named `<from>-<to>`. It is stored anew, in the new form, by the next
    /// flush.
    ///
    /// # Errors
    /// When the bytes are not exactly of that form.
    pub(crate) fn decode_v1(positions: (u64, u64), bytes: &[u8]) -> Result<Self, Corrupt> {
        let (body, hash) = bytes
            .len()
            .checked_sub(HASH)
            .filter(|end| *end >= FRONT_V1)
            .and_then(|end| bytes.split_at_checked(end))
            .ok_or(Corrupt("it is too short"))?;
        if blake3::hash(body).as_bytes() != hash {
            return Err(Corrupt("it does not match its hash"));
        }
        let mut reader = Reader::new(body);
        if &reader.array()? != MAGIC_V1 {
            return Err(Corrupt("it does not start with the magic bytes of a run of keys"));
        }
        let times = (reader.i64()?, reader.i64()?);
        let count = (body.len() - FRONT_V1) / BARE;
        let mut keys = Vec::with_capacity(count);
        for _ in 0..count {
            keys.push(IdempotencyKey::from_bytes(reader.array()?));
        }
        reader.end()?;
        if !keys.is_sorted() {
            return Err(Corrupt("its keys are not in order"));
        }
        keys.dedup();
        Ok(Self::of(positions, times, Entries::Bare(keys), false))
    }
}

/// Runs are equal when their keys and their names are, whatever a node knows of their being stored.
impl PartialEq for Run {
    fn eq(&self, other: &Self) -> bool {
        let all = |run: &Self| (run.0.positions, run.0.times);
        all(self) == all(other) && self.0.entries == other.0.entries
    }
}

impl RunRef {
    /// How many bytes it takes in a state.
    pub(super) const BYTES: usize = 8 + 8 + 8 + 8 + 1 + 8 + HASH;

    /// The object's name in the org's folder of keys: `<from>-<to>`, 20 digits each.
    pub(crate) fn name(&self) -> String {
        let (from, to) = self.positions;
        format!("{from:020}-{to:020}")
    }

    pub(super) fn positions(&self) -> (u64, u64) {
        self.positions
    }

    pub(super) fn times(&self) -> (i64, i64) {
        self.times
    }

    /// Reads the run from the object's bytes.
    ///
    /// # Errors
    /// When they are not the ones that the state names.
    pub(crate) fn decode(&self, bytes: &[u8]) -> Result<Run, Corrupt> {
        if *blake3::hash(bytes).as_bytes() != self.hash {
            return Err(Corrupt("a run of keys does not match the hash in the state"));
        }
        let mut reader = Reader::new(bytes);
        if &reader.array()? != MAGIC {
            return Err(Corrupt("it does not start with the magic bytes of a run of keys"));
        }
        let positions = (reader.u64()?, reader.u64()?);
        let times = (reader.i64()?, reader.i64()?);
        let whole = reader.u8()? == 1;
        let count = reader.count(if whole { ENTRY } else { BARE })?;
        let entries = if whole {
            let mut entries = Vec::with_capacity(count);
            for _ in 0..count {
                entries.push((IdempotencyKey::from_bytes(reader.array()?), reader.array()?));
            }
            Entries::Whole(entries)
        } else {
            let mut keys = Vec::with_capacity(count);
            for _ in 0..count {
                keys.push(IdempotencyKey::from_bytes(reader.array()?));
            }
            Entries::Bare(keys)
        };
        reader.end()?;
        let rises = match &entries {
            Entries::Whole(entries) => entries.is_sorted_by(|(a, _), (b, _)| a < b),
            Entries::Bare(keys) => keys.is_sorted_by(|a, b| a < b),
        };
        if !rises {
            return Err(Corrupt("its keys are not in order"));
        }
        let run = Run::of(positions, times, entries, true);
        run.0.hash.get_or_init(|| self.hash);
        if run.reference() != *self {
            return Err(Corrupt("a run of keys is not the one that the state names"));
        }
        Ok(run)
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.positions.0.to_le_bytes());
        out.extend_from_slice(&self.positions.1.to_le_bytes());
        out.extend_from_slice(&self.times.0.to_le_bytes());
        out.extend_from_slice(&self.times.1.to_le_bytes());
        out.push(u8::from(self.whole));
        out.extend_from_slice(&self.count.to_le_bytes());
        out.extend_from_slice(&self.hash);
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, Corrupt> {
        let positions = (reader.u64()?, reader.u64()?);
        let times = (reader.i64()?, reader.i64()?);
        let whole = match reader.u8()? {
            0 => false,
            1 => true,
            _ => return Err(Corrupt("it does not say what its keys are")),
        };
        if positions.0 > positions.1 || times.0 > times.1 {
            return Err(Corrupt("a run of keys ends before it begins"));
        }
        Ok(Self { positions, times, whole, count: reader.u64()?, hash: reader.array()? })
    }
}
