//! One org's ledger as the log has made it: entries numbered and chained, and which segments they lie in.
//!
//! An event gets its number and its place in the chain by its place in the log, as it is applied: so every node
//! computes the same ledger, byte for byte, and two of them cannot fork it. Where one segment ends and the next begins,
//! and which segments become one, are *decisions* of log objects, for the same reason: two nodes that write a segment
//! write the same one (rule L7). What this node has yet to see or to do on the store is kept beside each segment.
//!
//! Entries are live, in memory, until their segment is stored; a query sees segments and live entries, each once.

#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use object_store::path::Path;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::evidence::{Evidence, Known};
use super::segments::{Due, Duty, Entries, Found, Place, Removal, Segment, Stored};
use super::sessions::Sessions;
use super::status::{Prune, Pruned, Status};
use crate::audit::segment::{SegmentName, time_range};
use crate::audit::{AuditError, ChainHead, Hash, Sealed, seal};
use crate::model::OrgName;
use crate::query::{self, TableState};
use crate::storage::table::DataFile;

/// A ledger at one position of the log, as an org's state has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LedgerEnd {
    /// How many entries there have ever been.
    pub(crate) size: u64,
    /// `entry_hash` of the last one, hex.
    pub(crate) hash: String,
    /// The first entry of the first segment.
    pub(crate) first: u64,
    /// How many entries each segment has, from there on without a gap.
    pub(crate) segments: Vec<u64>,
    /// Least and greatest `occurred_at` of each segment, µs; none where it is not known.
    #[serde(default)]
    pub(crate) times: Vec<Option<(i64, i64)>>,
    /// What the entries say of the ledger.
    pub(crate) status: Status,
}

/// The stored segments, and the hash of the last entry of each, where the log has given it.
#[derive(Debug, Clone, Default)]
struct Files {
    files: Arc<Vec<DataFile>>,
    last: Arc<HashMap<Path, Hash>>,
}

impl LedgerEnd {
    /// Whether it is the same ledger. The times of segments only spare queries work: a node that has loaded a ledger
    /// may know fewer. A node of an earlier version knows nothing of sessions.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let without = |end: &Self| {
            let status = Status { sessions: Sessions::default(), ..end.status.clone() };
            Self { times: Vec::new(), status, ..end.clone() }
        };
        without(self) == without(other)
    }
}

/// Entries of one log object that no checkpoint covers.
#[derive(Debug)]
struct Unsigned {
    /// The position that brought them.
    position: u64,
    /// The number after the last of them.
    end: u64,
    /// When this node took them in.
    since: Instant,
}

/// One org's ledger at the position of its state.
#[derive(Debug)]
pub(crate) struct LedgerState {
    origin: String,
    schema: SchemaRef,
    /// The chain after the last entry applied.
    head: ChainHead,
    live: VecDeque<Entries>,
    /// Entries that no checkpoint covers, as far as this node knows. The log is needed for them, whether a segment has
    /// them or not: a load takes them from there.
    unsigned: VecDeque<Unsigned>,
    /// How many entries are under a checkpoint, as far as this node knows.
    covered: u64,
    /// The first entry that is there, where there is no segment.
    first: u64,
    segments: Vec<Segment>,
    /// The stored files, as queries take them; made when it is asked for after a change.
    files: Option<Files>,
    /// What proves the stored files; none of a ledger that is being loaded.
    evidence: Option<Arc<Evidence>>,
    /// When a segment was last ended.
    cut_at: Option<Instant>,
    /// What its entries say of it.
    status: Status,
    removal: Option<Removal>,
}

impl LedgerState {
    /// A ledger without entries.
    pub(crate) fn new(origin: String, schema: SchemaRef) -> Self {
        Self {
            origin,
            schema,
            head: ChainHead::default(),
            live: VecDeque::new(),
            unsigned: VecDeque::new(),
            covered: 0,
            first: 0,
            segments: Vec::new(),
            files: None,
            evidence: None,
            cut_at: None,
            status: Status::default(),
            removal: None,
        }
    }

    /// A ledger as a state has it; where its segments are is not known yet. None if the state cannot be one of a
    /// ledger.
    pub(crate) fn restore(origin: String, schema: SchemaRef, end: &LedgerEnd) -> Option<Self> {
        let mut ledger = Self::new(origin, schema);
        let mut first = end.first;
        ledger.first = first;
        for (at, entries) in end.segments.iter().enumerate() {
            let next = first.checked_add(*entries).filter(|next| *next > first && *next <= end.size)?;
            let (name, times) = (SegmentName { first, last: next - 1 }, end.times.get(at).copied().flatten());
            ledger.segments.push(Segment { name, times, place: Place::Unknown });
            first = next;
        }
        let last: Hash = if end.size == 0 { Hash::ZERO } else { end.hash.parse().ok()? };
        ledger.head = ChainHead { size: end.size, last };
        ledger.status = end.status.clone();
        // What a process left undone, if anything.
        let removal = |Pruned { entry, first_kept }| Removal { entry, first_kept, since: Instant::now() };
        ledger.removal = ledger.status.pruned.map(removal);
        Some(ledger)
    }

    /// How it stands, for a state.
    pub(crate) fn end(&self) -> LedgerEnd {
        LedgerEnd {
            size: self.head.size,
            hash: self.head.last.to_string(),
            first: self.first_kept(),
            segments: self.segments.iter().map(|segment| segment.name.entries()).collect(),
            times: self.segments.iter().map(|segment| segment.times).collect(),
            status: self.status.clone(),
        }
    }

    /// What its entries say of it.
    pub(crate) fn status(&self) -> &Status {
        &self.status
    }

    /// The ledger's origin.
    pub(crate) fn origin(&self) -> &str {
        &self.origin
    }

    /// The schema of its entries.
    pub(crate) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// The chain after the last entry.
    pub(crate) fn head(&self) -> ChainHead {
        self.head
    }

    /// How many entries there have ever been.
    pub(crate) fn size(&self) -> u64 {
        self.head.size
    }

    /// Numbers and chains events after a head, without changing anything.
    ///
    /// # Errors
    /// When an event is not of the form that validation makes sure of.
    pub(crate) fn seal_after(&self, head: &ChainHead, events: &RecordBatch) -> Result<Sealed, AuditError> {
        seal(&self.schema, &self.origin, head, events)
    }

    /// Takes entries that [`LedgerState::seal_after`] made of the events that the object at `position` brought.
    pub(crate) fn apply(&mut self, position: u64, sealed: Sealed) {
        self.head = sealed.head;
        for Prune { entry, first_kept, segments } in self.status.fold(&sealed.batch) {
            self.prune(entry, first_kept, &segments);
        }
        self.hold(position, sealed);
    }

    /// Keeps entries in memory that no stored segment has.
    pub(crate) fn hold(&mut self, position: u64, sealed: Sealed) {
        let Sealed { batch, leaves, head } = sealed;
        let (bytes, since) = (super::held_bytes(&batch), Instant::now());
        self.unsigned.push_back(Unsigned { position, end: head.size, since });
        self.live.push_back(Entries { end: head.size, batch, leaves, bytes, since });
    }

    /// Notes that a checkpoint over so many entries is stored.
    pub(crate) fn cover(&mut self, signed: u64) {
        self.covered = self.covered.max(signed);
        while self.unsigned.front().is_some_and(|entries| entries.end <= self.covered) {
            self.unsigned.pop_front();
        }
    }

    /// The number after the last segment's.
    fn segmented(&self) -> u64 {
        self.segments.last().map_or(self.first, |segment| segment.name.last + 1)
    }

    /// Whether there are entries that no segment is to hold yet.
    pub(crate) fn is_uncut(&self) -> bool {
        self.segmented() < self.head.size
    }

    /// Whether entries are only in memory and in the log, or segments are still to be merged or deleted.
    pub(crate) fn is_busy(&self) -> bool {
        !self.live.is_empty()
            || !self.unsigned.is_empty()
            || self.removal.is_some()
            || self.segments.iter().any(|segment| !segment.is_whole())
    }

    /// Whether a segment may be ended: there are entries for one, and the last was ended at least `period` ago.
    pub(crate) fn wants_cut(&self, period: Duration) -> bool {
        self.is_uncut() && self.cut_at.is_none_or(|cut| cut.elapsed() >= period)
    }

    /// Ends a segment with the last entry so far.
    pub(crate) fn cut(&mut self, ours: bool) {
        let first = self.segmented();
        if first == self.head.size {
            return;
        }
        let duty = Duty { ours, since: Instant::now() };
        let name = SegmentName { first, last: self.head.size - 1 };
        // Entries of no segment are in memory.
        let times = time_range(self.live.iter().filter(|entries| entries.end > first).map(|entries| &entries.batch));
        self.segments.push(Segment { name, times, place: Place::Cut(duty) });
        self.cut_at = Some(duty.since);
    }

    /// Makes one segment out of those that cover exactly this range; a decision that fits none is of no effect, on any
    /// node.
    pub(crate) fn merge(&mut self, name: SegmentName, ours: bool) {
        let from = self.segments.iter().position(|segment| segment.name.first == name.first);
        let to = self.segments.iter().position(|segment| segment.name.last == name.last);
        let (Some(from), Some(to)) = (from, to) else { return };
        if from >= to {
            return;
        }
        let parts: Vec<_> = self.segments.drain(from..=to).collect();
        let is_unknown = parts.iter().any(|part| matches!(part.place, Place::Unknown));
        let duty = Duty { ours, since: Instant::now() };
        let known = parts.iter().map(|part| part.times).collect::<Option<Vec<_>>>().into_iter().flatten();
        let times = known.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)));
        let place = if is_unknown { Place::Unknown } else { Place::Parts(duty, parts) };
        self.segments.insert(from, Segment { name, times, place });
        self.files = None;
    }

    /// Says where each segment is, once the ledger has been replayed: of the files that are stored, `signed` entries
    /// are under a checkpoint. Gives the files that are part of a stored segment, which may go.
    ///
    /// # Errors
    /// The first entry that a checkpoint covers and no file has.
    pub(crate) fn place(&mut self, files: &[(SegmentName, u64)], signed: u64) -> Result<Vec<SegmentName>, u64> {
        let duty = Duty { ours: true, since: Instant::now() };
        let mut leftovers = Vec::new();
        for segment in &mut self.segments {
            let name = segment.name;
            let inner = || files.iter().filter(move |(file, _)| name.holds(*file) && *file != name);
            if name.first >= signed {
                // No checkpoint covers it: what lies there under its name is not believed.
                segment.place = Place::Cut(duty);
            } else if name.last >= signed {
                // A checkpoint covers its beginning, which parts have; the rest is written anew.
                let mut parts = Vec::new();
                let next = parts_of(name, signed, segment.times, files, &mut parts)?;
                let rest = SegmentName { first: next, last: name.last };
                parts.push(Segment { name: rest, times: segment.times, place: Place::Cut(duty) });
                segment.place = Place::Parts(duty, parts);
            } else if let Some((_, size)) = files.iter().find(|(file, _)| *file == name) {
                segment.place = Place::Stored(Stored { size: *size, last: None });
                leftovers.extend(inner().map(|(file, _)| *file));
            } else {
                let mut parts = Vec::new();
                parts_of(name, name.last + 1, segment.times, files, &mut parts)?;
                segment.place = Place::Parts(duty, parts);
            }
        }
        self.cover(signed);
        // Entries that are under a checkpoint are in segments, and need not be in memory.
        while self.live.front().is_some_and(|entries| entries.end <= signed) {
            self.live.pop_front();
        }
        self.files = None;
        Ok(leftovers)
    }

    /// The first segment that is not on the store yet, and what it is to hold.
    pub(crate) fn next_cut(&self) -> Option<Due<Entries>> {
        fn first_cut(segments: &[Segment]) -> Option<(&Segment, Duty)> {
            segments.iter().find_map(|segment| match &segment.place {
                Place::Cut(duty) => Some((segment, *duty)),
                Place::Parts(_, parts) => first_cut(parts),
                Place::Stored(_) | Place::Unknown => None,
            })
        }
        let (segment, duty) = first_cut(&self.segments)?;
        let held = |entries: &&Entries| entries.end > segment.name.first && entries.end <= segment.name.last + 1;
        Some(Due { name: segment.name, duty, from: self.live.iter().filter(held).cloned().collect() })
    }

    /// Notes that a segment is on the store: its entries are live no longer, or its parts are to be deleted, which come
    /// back.
    pub(crate) fn store(&mut self, name: SegmentName, size: u64) -> Vec<SegmentName> {
        fn find(segments: &mut [Segment], name: SegmentName) -> Option<&mut Segment> {
            let holder = segments.iter_mut().find(|segment| segment.name.holds(name))?;
            if holder.name == name {
                return Some(holder);
            }
            match &mut holder.place {
                Place::Parts(_, parts) => find(parts, name),
                _ => None,
            }
        }
        let last = self.live.iter().find(|entries| entries.end == name.last + 1);
        let last = last.and_then(|entries| entries.leaves.last()).map(|leaf| leaf.entry_hash);
        let Some(segment) = find(&mut self.segments, name) else { return Vec::new() };
        let (last, gone) = match &segment.place {
            Place::Stored(_) | Place::Unknown => return Vec::new(),
            Place::Cut(_) => (last, Vec::new()),
            Place::Parts(_, parts) => {
                let last = parts.last().and_then(|part| match &part.place {
                    Place::Stored(stored) => stored.last,
                    _ => None,
                });
                (last, parts.iter().map(|part| part.name).collect())
            }
        };
        segment.place = Place::Stored(Stored { size, last });
        while self.live.front().is_some_and(|entries| entries.end <= name.last + 1) {
            self.live.pop_front();
        }
        self.files = None;
        gone
    }

    /// Merges whose parts are all on the store: what is to be made, with which position, by whom, out of what.
    pub(crate) fn next_merge(&self) -> Option<Due<SegmentName>> {
        self.segments.iter().find_map(|segment| match &segment.place {
            Place::Parts(duty, parts) if parts.iter().all(Segment::is_whole) => {
                Some(Due { name: segment.name, duty: *duty, from: parts.iter().map(|part| part.name).collect() })
            }
            _ => None,
        })
    }

    /// The stored segments that a checkpoint covers, oldest first; any other ends a run and is left out.
    pub(crate) fn runs(&self) -> Vec<Vec<SegmentName>> {
        let mut runs = vec![Vec::new()];
        for segment in &self.segments {
            match runs.last_mut() {
                Some(run) if segment.is_whole() && segment.name.last < self.covered => run.push(segment.name),
                _ => runs.push(Vec::new()),
            }
        }
        runs
    }

    /// Does what a `ledger.prune` says: from here on no query sees the segments that end before `first_kept`, and they
    /// are to be deleted. Should one of them be none that the entry names, because the log made it out of those
    /// meanwhile, the entry has no effect, on any node.
    fn prune(&mut self, entry: u64, first_kept: u64, named: &HashSet<SegmentName>) {
        let is_gone = |segment: &Segment| segment.name.last < first_kept;
        let gone = self.segments.iter().filter(|segment| is_gone(segment));
        if !gone.clone().all(|segment| named.contains(&segment.name)) || self.segments.iter().all(is_gone) {
            return;
        }
        self.segments.retain(|segment| !is_gone(segment));
        self.status.pruned = Some(Pruned { entry, first_kept });
        self.removal = Some(Removal { entry, first_kept, since: Instant::now() });
        self.files = None;
    }

    /// What is to be deleted, if anything.
    pub(crate) fn removal(&self) -> Option<Removal> {
        self.removal
    }

    /// Notes that what the entry pruned is deleted.
    pub(crate) fn removed(&mut self, entry: u64) {
        self.removal = self.removal.filter(|removal| removal.entry != entry);
    }

    /// The stored segments from the oldest on, without the last of all: they may be pruned. Not so what no checkpoint
    /// covers, of which there are `signed` entries: what goes on from the checkpoint needs every entry after it.
    pub(crate) fn prunable(&self, signed: u64) -> Vec<(SegmentName, u64)> {
        let all_but_last = self.segments.iter().take(self.segments.len().saturating_sub(1));
        let stored = all_but_last.map_while(|segment| match &segment.place {
            Place::Stored(stored) if segment.name.last < signed => Some((segment.name, stored.size)),
            Place::Stored(_) | Place::Cut(_) | Place::Parts(..) | Place::Unknown => None,
        });
        stored.collect()
    }

    /// The stored segment that begins with an entry.
    pub(crate) fn stored_from(&self, first: u64) -> Option<SegmentName> {
        let segment = self.segments.iter().find(|segment| segment.name.first == first)?;
        segment.is_whole().then_some(segment.name)
    }

    /// The first entry that is there.
    pub(crate) fn first_kept(&self) -> u64 {
        self.segments.first().map_or(self.first, |segment| segment.name.first)
    }

    /// Where an entry is.
    pub(crate) fn find(&self, seq: u64) -> Option<Found> {
        fn stored(segments: &[Segment], seq: u64) -> Option<SegmentName> {
            let holder = segments.iter().find(|segment| (segment.name.first..=segment.name.last).contains(&seq))?;
            match &holder.place {
                Place::Stored(_) => Some(holder.name),
                Place::Cut(_) | Place::Unknown => None,
                Place::Parts(_, parts) => stored(parts, seq),
            }
        }
        let live =
            self.live.iter().find(|entries| entries.end > seq && seq + entries.batch.num_rows() as u64 >= entries.end);
        live.map(|entries| Found::Live(entries.batch.clone()))
            .or_else(|| stored(&self.segments, seq).map(Found::Stored))
    }

    /// The log is needed from after this position on, for entries that no checkpoint covers; none if it is not needed.
    pub(crate) fn lags_at(&self) -> Option<u64> {
        self.unsigned.front().map(|entries| entries.position.saturating_sub(1))
    }

    /// Sets what proves the stored files.
    pub(crate) fn set_evidence(&mut self, evidence: Arc<Evidence>) {
        self.evidence = Some(evidence);
    }

    /// What proves the stored files.
    pub(crate) fn evidence(&self) -> Option<Arc<Evidence>> {
        self.evidence.clone()
    }

    /// The hash of the last entry of a stored segment, where the log has given it since the ledger was loaded.
    pub(crate) fn last_of(&self, name: SegmentName) -> Option<Hash> {
        let segment = self.segments.iter().find(|segment| segment.name == name)?;
        match &segment.place {
            Place::Stored(stored) => stored.last,
            Place::Cut(_) | Place::Parts(..) | Place::Unknown => None,
        }
    }

    /// `audit_log` at this instant.
    pub(crate) fn view(&mut self, org: &OrgName) -> TableState {
        let segments = &self.segments;
        let Files { files, last } = self.files.get_or_insert_with(|| {
            let (mut files, mut last) = (Vec::with_capacity(segments.len()), HashMap::new());
            segments.iter().for_each(|segment| segment.files(org, &mut files, &mut last));
            Files { files: Arc::new(files), last: Arc::new(last) }
        });
        let known = |evidence: &Arc<Evidence>| Known { evidence: Arc::clone(evidence), last: Arc::clone(last) };
        let evidence = self.evidence.as_ref().map(|evidence| Arc::new(known(evidence)) as Arc<dyn query::Evidence>);
        let live = self.live.iter().map(|entries| entries.batch.clone()).collect();
        TableState { files: Arc::clone(files), live, evidence }
    }

    /// Memory that live entries hold, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.live.iter().map(|entries| entries.bytes).sum()
    }

    /// How long the oldest entry that is in no segment has waited.
    pub(crate) fn waited(&self) -> Duration {
        self.live.front().map_or(Duration::ZERO, |oldest| oldest.since.elapsed())
    }

    /// How long the oldest entry that no checkpoint covers has waited, since this node has it.
    pub(crate) fn unsigned_for(&self) -> Duration {
        self.unsigned.front().map_or(Duration::ZERO, |oldest| oldest.since.elapsed())
    }
}

/// The stored files that hold a segment's entries up to before `end`, as its parts. Gives the entry after the last of
/// them.
///
/// # Errors
/// The first entry before `end` that no file has.
fn parts_of(
    name: SegmentName,
    end: u64,
    times: Option<(i64, i64)>,
    files: &[(SegmentName, u64)],
    parts: &mut Vec<Segment>,
) -> Result<u64, u64> {
    let mut next = name.first;
    while next < end {
        let fits = |file: &SegmentName| file.first == next && file.last < end && *file != name && name.holds(*file);
        let part = files.iter().filter(|(file, _)| fits(file)).max_by_key(|(file, _)| file.last);
        let Some((file, size)) = part else { return Err(next) };
        parts.push(Segment::stored(*file, times, *size));
        next = file.last + 1;
    }
    Ok(next)
}
