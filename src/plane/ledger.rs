//! One org's ledger as the log has made it: entries numbered and chained, and which segments they lie in.
//!
//! An event gets its number and its place in the chain by its place in the log, as it is applied: so every node computes the
//! same ledger, byte for byte, and two of them cannot fork it. Where one segment ends and the next begins, and which
//! segments become one, has a place in the log too (the *marks* of an object's header), for the same reason: two nodes that
//! write a segment write the same one. What this node has yet to see or to do on the store is kept beside each segment.
//!
//! Entries are live, in memory, until their segment is stored; a query sees segments and live entries, each once.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use object_store::path::Path;
use tokio::time::Instant;

use super::segments::{Due, Duty, Entries, Found, Place, Removal, Segment, Stored};
use super::standing::{Prune, Pruned, Standing};
use crate::audit::segment::{SegmentName, time_range};
use crate::audit::{AuditError, ChainHead, Sealed, seal};
use crate::model::OrgName;
use crate::query::TableState;
use crate::storage::held_bytes;
use crate::storage::table::DataFile;

/// The folder of an org's ledger.
pub(super) fn folder(org: &OrgName) -> String {
    format!("orgs/{org}/audit")
}

/// The path of a segment.
pub(super) fn segment_path(org: &OrgName, name: SegmentName) -> Path {
    Path::from(format!("{}/segments/{name}", folder(org)))
}

/// The path of the newest head.
pub(super) fn newest_path(org: &OrgName) -> Path {
    Path::from(format!("{}/checkpoint", folder(org)))
}

/// The path of the head over `size` entries.
pub(super) fn kept_path(org: &OrgName, size: u64) -> Path {
    Path::from(format!("{}/checkpoints/{size:020}", folder(org)))
}

/// See the module's doc.
#[derive(Debug)]
pub(super) struct LedgerState {
    origin: String,
    schema: SchemaRef,
    /// The chain after the last entry applied.
    head: ChainHead,
    /// What the log brought before this position was in segments when they were loaded.
    loaded: u64,
    live: VecDeque<Entries>,
    segments: Vec<Segment>,
    /// The stored files, as queries take them; made when it is asked for after a change.
    files: Option<Arc<Vec<DataFile>>>,
    /// When a segment was last ended.
    pub(super) cut_at: Option<Instant>,
    /// What its entries say of it.
    standing: Standing,
    removal: Option<Removal>,
}

impl LedgerState {
    /// The ledger that these segments hold, ended by `head`, and what they say of it.
    pub(super) fn new(
        origin: String,
        schema: SchemaRef,
        head: ChainHead,
        segments: Vec<Segment>,
        standing: Standing,
    ) -> Self {
        let loaded = segments.last().map_or(0, |segment| segment.position);
        // What a process left undone, if anything.
        let removal =
            standing.pruned.map(|Pruned { entry, first_kept }| Removal { entry, first_kept, since: Instant::now() });
        Self {
            origin,
            schema,
            head,
            loaded,
            live: VecDeque::new(),
            segments,
            files: None,
            cut_at: None,
            standing,
            removal,
        }
    }

    /// What its entries say of it.
    pub(super) fn standing(&self) -> &Standing {
        &self.standing
    }

    /// The ledger's origin.
    pub(super) fn origin(&self) -> &str {
        &self.origin
    }

    /// The schema of its entries.
    pub(super) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// How many entries there have ever been.
    pub(super) fn size(&self) -> u64 {
        self.head.size
    }

    /// Numbers and chains the events that the object at `position` brought.
    pub(super) fn apply(&mut self, position: u64, events: &RecordBatch) -> Result<(), AuditError> {
        if position < self.loaded || events.num_rows() == 0 {
            return Ok(());
        }
        let sealed = seal(&self.schema, &self.origin, &self.head, events)?;
        self.head = sealed.head;
        for Prune { entry, first_kept, segments } in self.standing.fold(&sealed.batch) {
            self.prune(entry, first_kept, &segments);
        }
        let (bytes, since) = (held_bytes(&sealed.batch), Instant::now());
        let Sealed { batch, leaves, .. } = sealed;
        self.live.push_back(Entries { position, end: self.head.size, batch, leaves, bytes, since });
        Ok(())
    }

    /// The number after the last segment's.
    fn segmented(&self) -> u64 {
        self.segments.last().map_or_else(|| self.head.size - self.live_rows(), |segment| segment.name.last + 1)
    }

    fn live_rows(&self) -> u64 {
        self.live.iter().map(|entries| entries.batch.num_rows() as u64).sum()
    }

    /// Whether there are entries that no segment is to hold yet.
    pub(super) fn is_uncut(&self) -> bool {
        self.segmented() < self.head.size
    }

    /// Ends a segment before the object at `position`.
    pub(super) fn cut(&mut self, position: u64, ours: bool) {
        let first = self.segmented();
        if position <= self.loaded || first == self.head.size {
            return;
        }
        let duty = Duty { ours, since: Instant::now() };
        let name = SegmentName { first, last: self.head.size - 1 };
        // Plain data under string keys can always be written.
        let standing = serde_json::to_string(&self.standing).unwrap_or_default().into();
        self.segments.push(Segment { name, position, standing, merged_at: 0, place: Place::Cut(duty) });
        self.cut_at = Some(duty.since);
    }

    /// Makes one segment out of those that cover exactly this range; a mark that fits none is of no effect, on any node.
    pub(super) fn merge(&mut self, position: u64, name: SegmentName, ours: bool) {
        let from = self.segments.iter().position(|segment| segment.name.first == name.first);
        let to = self.segments.iter().position(|segment| segment.name.last == name.last);
        let (Some(from), Some(to)) = (from, to) else { return };
        if from >= to {
            return;
        }
        let parts: Vec<_> = self.segments.drain(from..=to).collect();
        let (ended, standing) =
            parts.last().map_or_else(|| (0, Arc::default()), |part| (part.position, Arc::clone(&part.standing)));
        let place = Place::Parts(Duty { ours, since: Instant::now() }, parts);
        self.segments.insert(from, Segment { name, position: ended, standing, merged_at: position, place });
        self.files = None;
    }

    /// The first segment that is not on the store yet, and what it is to hold.
    pub(super) fn next_cut(&self) -> Option<Due<Entries>> {
        fn first_cut(segments: &[Segment]) -> Option<(&Segment, Duty)> {
            segments.iter().find_map(|segment| match &segment.place {
                Place::Cut(duty) => Some((segment, *duty)),
                Place::Parts(_, parts) => first_cut(parts),
                Place::Stored(_) => None,
            })
        }
        let (segment, duty) = first_cut(&self.segments)?;
        let held = |entries: &&Entries| entries.end > segment.name.first && entries.end <= segment.name.last + 1;
        let (name, position, standing) = (segment.name, segment.position, Arc::clone(&segment.standing));
        Some(Due { name, position, standing, duty, from: self.live.iter().filter(held).cloned().collect() })
    }

    /// Notes that a segment is on the store: its entries are live no longer, or its parts are to be deleted, which come
    /// back.
    pub(super) fn store(&mut self, name: SegmentName, size: u64) -> Vec<SegmentName> {
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
        let held = |entries: &&Entries| entries.end > name.first && entries.end <= name.last + 1;
        let times = time_range(self.live.iter().filter(held).map(|entries| &entries.batch));
        let Some(segment) = find(&mut self.segments, name) else { return Vec::new() };
        let (times, gone) = match &segment.place {
            Place::Stored(_) => return Vec::new(),
            Place::Cut(_) => (times, Vec::new()),
            Place::Parts(_, parts) => {
                let known = parts.iter().map(|part| match &part.place {
                    Place::Stored(stored) => stored.times,
                    _ => None,
                });
                let known = known.collect::<Option<Vec<_>>>().into_iter().flatten();
                let times = known.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)));
                (times, parts.iter().map(|part| part.name).collect())
            }
        };
        segment.place = Place::Stored(Stored { size, times });
        while self.live.front().is_some_and(|entries| entries.end <= name.last + 1) {
            self.live.pop_front();
        }
        self.files = None;
        gone
    }

    /// Merges whose parts are all on the store: what is to be made, with which position, by whom, out of what.
    pub(super) fn next_merge(&self) -> Option<Due<SegmentName>> {
        self.segments.iter().find_map(|segment| match &segment.place {
            Place::Parts(duty, parts) if parts.iter().all(Segment::is_whole) => Some(Due {
                name: segment.name,
                position: segment.position,
                standing: Arc::clone(&segment.standing),
                duty: *duty,
                from: parts.iter().map(|part| part.name).collect(),
            }),
            _ => None,
        })
    }

    /// Whether there is to be a segment of this name.
    pub(super) fn has(&self, name: SegmentName) -> bool {
        self.segments.iter().any(|segment| segment.name == name)
    }

    /// The stored segments, oldest first; a segment that is not whole ends a run, so it is none here.
    pub(super) fn runs(&self) -> Vec<Vec<SegmentName>> {
        let mut runs = vec![Vec::new()];
        for segment in &self.segments {
            match runs.last_mut() {
                Some(run) if segment.is_whole() => run.push(segment.name),
                _ => runs.push(Vec::new()),
            }
        }
        runs
    }

    /// Does what a `ledger.prune` says: from here on no query sees the segments that end before `first_kept`, and they are to
    /// be deleted. Should one of them be none that the entry names, because the log made it out of those meanwhile, the
    /// entry has no effect, on any node.
    fn prune(&mut self, entry: u64, first_kept: u64, named: &HashSet<SegmentName>) {
        let is_gone = |segment: &Segment| segment.name.last < first_kept;
        let gone = self.segments.iter().filter(|segment| is_gone(segment));
        if !gone.clone().all(|segment| named.contains(&segment.name)) || self.segments.iter().all(is_gone) {
            return;
        }
        self.segments.retain(|segment| !is_gone(segment));
        self.standing.pruned = Some(Pruned { entry, first_kept });
        self.removal = Some(Removal { entry, first_kept, since: Instant::now() });
        self.files = None;
    }

    /// What is to be deleted, if anything.
    pub(super) fn removal(&self) -> Option<Removal> {
        self.removal
    }

    /// Notes that what the entry pruned is deleted.
    pub(super) fn removed(&mut self, entry: u64) {
        self.removal = self.removal.filter(|removal| removal.entry != entry);
    }

    /// The stored segments from the oldest on, without the last of all: they may be pruned.
    pub(super) fn prunable(&self) -> Vec<(SegmentName, u64)> {
        let all_but_last = self.segments.iter().take(self.segments.len().saturating_sub(1));
        let stored = all_but_last.map_while(|segment| match &segment.place {
            Place::Stored(stored) => Some((segment.name, stored.size)),
            Place::Cut(_) | Place::Parts(..) => None,
        });
        stored.collect()
    }

    /// The stored segment that begins with an entry.
    pub(super) fn stored_from(&self, first: u64) -> Option<SegmentName> {
        let segment = self.segments.iter().find(|segment| segment.name.first == first)?;
        segment.is_whole().then_some(segment.name)
    }

    /// The first entry that is there.
    pub(super) fn first_kept(&self) -> u64 {
        self.segments.first().map_or(self.head.size - self.live_rows(), |segment| segment.name.first)
    }

    /// Where an entry is.
    pub(super) fn find(&self, seq: u64) -> Option<Found> {
        fn stored(segments: &[Segment], seq: u64) -> Option<SegmentName> {
            let holder = segments.iter().find(|segment| (segment.name.first..=segment.name.last).contains(&seq))?;
            match &holder.place {
                Place::Stored(_) => Some(holder.name),
                Place::Cut(_) => None,
                Place::Parts(_, parts) => stored(parts, seq),
            }
        }
        let live =
            self.live.iter().find(|entries| entries.end > seq && seq + entries.batch.num_rows() as u64 >= entries.end);
        live.map(|entries| Found::Live(entries.batch.clone()))
            .or_else(|| stored(&self.segments, seq).map(Found::Stored))
    }

    /// The log is needed from after this position on; none if it is not needed.
    pub(super) fn lags_at(&self) -> Option<u64> {
        let live = self.live.front().map(|entries| entries.position - 1);
        let merging = self.segments.iter().filter(|segment| matches!(segment.place, Place::Parts(..)));
        live.into_iter().chain(merging.map(|segment| segment.merged_at - 1)).min()
    }

    /// The greatest position that something stored carries.
    pub(super) fn newest_stored(&self) -> u64 {
        self.loaded
    }

    /// `audit_log` at this instant.
    pub(super) fn view(&mut self, org: &OrgName) -> TableState {
        let segments = &self.segments;
        let files = self.files.get_or_insert_with(|| {
            let mut files = Vec::with_capacity(segments.len());
            segments.iter().for_each(|segment| segment.files(org, &mut files));
            Arc::new(files)
        });
        let live = self.live.iter().map(|entries| entries.batch.clone()).collect();
        TableState { files: Arc::clone(files), live }
    }

    /// Memory that live entries hold, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.live.iter().map(|entries| entries.bytes).sum()
    }

    /// How long the oldest entry that is in no segment has waited.
    pub(super) fn waited(&self) -> Duration {
        self.live.front().map_or(Duration::ZERO, |oldest| oldest.since.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{LedgerState, Segment, SegmentName};
    use crate::audit::{ChainHead, Hash};
    use crate::model::schema::schemas;
    use crate::plane::standing::{Pruned, Standing};

    fn name(first: u64) -> SegmentName {
        SegmentName { first, last: first + 9 }
    }

    /// A ledger of three stored segments of ten entries each.
    fn ledger() -> LedgerState {
        let segments = [0, 10, 20].map(|first| Segment::found(name(first), first, Arc::from("{}"), 100));
        let head = ChainHead { size: 30, last: Hash::ZERO };
        let schema = Arc::clone(&schemas().unwrap().audit_log);
        LedgerState::new("o".to_owned(), schema, head, segments.into(), Standing::default())
    }

    fn prune(ledger: &mut LedgerState, first_kept: u64, named: &[SegmentName]) -> u64 {
        ledger.prune(30, first_kept, &named.iter().copied().collect());
        ledger.first_kept()
    }

    #[test]
    fn what_a_prune_names_is_seen_no_more_and_to_be_deleted() {
        let mut ledger = ledger();
        assert_eq!(prune(&mut ledger, 20, &[name(0), name(10)]), 20);
        assert_eq!(ledger.standing().pruned, Some(Pruned { entry: 30, first_kept: 20 }));
        assert_eq!(ledger.removal().map(|removal| removal.first_kept), Some(20));
        ledger.removed(30);
        assert!(ledger.removal().is_none());
    }

    #[test]
    fn a_prune_that_would_take_what_it_does_not_name_takes_nothing() {
        assert_eq!(prune(&mut ledger(), 20, &[name(0)]), 0);
        let mut merged = ledger();
        merged.merge(31, SegmentName { first: 0, last: 19 }, true);
        assert_eq!(prune(&mut merged, 20, &[name(0), name(10)]), 0);
        assert!(merged.removal().is_none());
    }

    #[test]
    fn the_newest_segment_is_never_pruned() {
        assert_eq!(prune(&mut ledger(), 30, &[name(0), name(10), name(20)]), 0);
    }

    #[test]
    fn segments_that_another_node_has_deleted_already_may_lack() {
        let mut late = ledger();
        late.segments.remove(0);
        assert_eq!(prune(&mut late, 20, &[name(0), name(10)]), 20);
    }
}
