//! The log above the floor, as it was found: the id of each object, and where each org has sections.
//!
//! Each object is verified as it is read: its MAC and form, the chain, the hash and the form of each body. An object
//! that is at fault is noted, and the chain is taken up after it.

use std::collections::HashMap;

use futures::StreamExt;

use super::{Finding, Findings};
use crate::log::{self, Floor, Object, ObjectId, SectionKind};
use crate::model::OrgName;
use crate::node::Node;
use crate::storage::StorageError;

/// Log objects read ahead.
const READ_AHEAD: usize = 8;
/// How often reading it is begun anew when trimming overtakes it.
const ATTEMPTS: usize = 8;

/// A section of an org.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// The log object.
    pub(super) position: u64,
    /// The position of the org's section before.
    pub(super) previous: u64,
    /// The beginning of the id of the object there, where the section says it.
    pub(super) before: Option<u64>,
    /// The first entry that it brings, and the one after the last.
    pub(super) entries: Option<(u64, u64)>,
}

/// The beginning of an id as a number.
pub(super) fn beginning(hex: &str) -> Option<u64> {
    u64::from_str_radix(hex, 16).ok()
}

impl Place {
    /// What an object has of an org, if it has anything.
    pub(super) fn of(object: &Object, org: &OrgName) -> Option<Self> {
        let mut place: Option<Self> = None;
        for section in object.header.sections.iter().filter(|section| section.org == *org) {
            let entries = section.rows.as_ref().filter(|rows| rows.kind == SectionKind::Events);
            let entries = entries.and_then(|rows| rows.first.map(|first| (first, first.saturating_add(rows.count))));
            let position = object.header.seq;
            let before = section.before.as_deref().and_then(beginning);
            let found = place.get_or_insert(Self { position, previous: section.previous, before, entries: None });
            found.entries = match (found.entries, entries) {
                (Some((first, _)), Some((_, end))) => Some((first, end)),
                (one, other) => one.or(other),
            };
        }
        place
    }
}

/// The verified log above the floor.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// The floor that it begins at.
    pub(super) floor: Floor,
    /// The ids of the objects above the floor; none of one that is at fault.
    ids: Vec<Option<ObjectId>>,
    sections: HashMap<OrgName, Vec<Place>>,
    /// Bytes of all objects.
    pub(super) bytes: u64,
    /// When the first object was written, µs since the epoch.
    pub(super) oldest: Option<i64>,
    /// When the last object was written, µs since the epoch.
    pub(super) newest: Option<i64>,
    /// What is at fault, by position; whose it is, where that is known.
    faults: Vec<(u64, Option<OrgName>, Finding)>,
}

impl Index {
    /// Reads the log from the floor to its end.
    pub(super) async fn load(node: &Node) -> Result<Self, StorageError> {
        let mut index = Self::default();
        index.begin(node).await?;
        Ok(index)
    }

    async fn begin(&mut self, node: &Node) -> Result<(), StorageError> {
        for _ in 0..ATTEMPTS {
            *self = Self { floor: node.log.floor().await?, ..Self::default() };
            if self.read_on(node).await? {
                return Ok(());
            }
        }
        Err(StorageError::failed("read", "wal", "the log is trimmed faster than it can be read"))
    }

    /// Reads what has come since.
    pub(super) async fn extend(&mut self, node: &Node) -> Result<(), StorageError> {
        if self.read_on(node).await? { Ok(()) } else { self.begin(node).await }
    }

    /// Reads on to the end. False if trimming has overtaken it.
    async fn read_on(&mut self, node: &Node) -> Result<bool, StorageError> {
        let first = self.end() + 1;
        let last = node.log.list().await?.last().copied().unwrap_or_default();
        let mut objects =
            futures::stream::iter(first..=last).map(async |seq| (seq, node.log.read(seq).await)).buffered(READ_AHEAD);
        while let Some((seq, object)) = objects.next().await {
            match object {
                Ok(Some(object)) => self.push(node, seq, object),
                Ok(None) => {
                    if node.log.floor().await?.number >= seq {
                        return Ok(false);
                    }
                    self.push_fault(seq, Finding::new(log::name(seq), "it is missing from the log"));
                }
                Err(StorageError::Damaged { object, reason }) => self.push_fault(seq, Finding { object, reason }),
                Err(e) => return Err(e),
            }
        }
        // What was read counts once a floor read after it is lower. What is over it is there for good, whatever was
        // deleted below.
        let floor = node.log.floor().await?.number;
        Ok(floor <= self.end() && !self.faults.iter().any(|(seq, ..)| (first..=floor).contains(seq)))
    }

    fn push_fault(&mut self, seq: u64, fault: Finding) {
        self.faults.push((seq, None, fault));
        self.ids.push(None);
    }

    fn push(&mut self, node: &Node, seq: u64, object: Object) {
        let previous = match self.ids.last() {
            None => Some(self.floor.id.clone()),
            // After one at fault nothing is known.
            Some(id) => id.clone().map(Some),
        };
        if let Some(previous) = previous
            && object.header.previous != previous
        {
            let name = |id: Option<&ObjectId>| id.map_or("none".to_owned(), ToString::to_string);
            let (named, there) = (name(object.header.previous.as_ref()), name(previous.as_ref()));
            let reason = format!("it was written after the object {named}, and the one before it is {there}");
            self.faults.push((seq, None, Finding::new(log::name(seq), reason)));
        }
        for (number, section) in object.header.sections.iter().enumerate() {
            let Some(rows) = &section.rows else { continue };
            if let Err(StorageError::Damaged { object, reason }) = object.read(number, node.schema_of(rows.kind)) {
                self.faults.push((seq, Some(section.org.clone()), Finding { object, reason }));
            }
        }
        for section in &object.header.sections {
            if section.decisions.repaired {
                // What was at fault of the org before was given up.
                self.faults.retain(|(at, of, _)| *at >= seq || of.as_ref() != Some(&section.org));
            }
            let places = self.sections.entry(section.org.clone()).or_default();
            if places.last().is_none_or(|place| place.position != seq) {
                places.extend(Place::of(&object, &section.org));
            }
        }
        self.bytes += object.len() as u64;
        self.oldest = self.oldest.or(Some(object.header.written_at));
        self.newest = self.newest.max(Some(object.header.written_at));
        self.ids.push(Some(object.id));
    }

    /// The number of the last object; the floor's without one.
    pub(super) fn end(&self) -> u64 {
        self.floor.number + self.objects()
    }

    /// How many objects there are.
    pub(super) fn objects(&self) -> u64 {
        self.ids.len() as u64
    }

    /// The id of an object above the floor; none if it is not there or at fault.
    pub(super) fn id(&self, position: u64) -> Option<&ObjectId> {
        let at = position.checked_sub(self.floor.number + 1).and_then(|at| usize::try_from(at).ok())?;
        self.ids.get(at)?.as_ref()
    }

    /// Whether what lies in an object of this range, its ends included, is not known.
    pub(super) fn is_broken(&self, from: u64, to: u64) -> bool {
        (from.max(self.floor.number + 1)..=to.min(self.end())).any(|position| self.id(position).is_none())
    }

    /// The first fault that is of no one org: an object is missing, its header is at fault, or it does not name the one
    /// before.
    pub(super) fn first_of_all(&self) -> Option<&Finding> {
        self.faults.iter().find(|(_, of, _)| of.is_none()).map(|(.., fault)| fault)
    }

    /// The orgs that have sections.
    pub(super) fn orgs(&self) -> impl Iterator<Item = &OrgName> {
        self.sections.keys()
    }

    /// An org's sections, ascending.
    pub(super) fn of(&self, org: &OrgName) -> &[Place] {
        self.sections.get(org).map_or(&[], Vec::as_slice)
    }

    /// What was found.
    pub(super) fn findings(&self) -> Findings {
        let faults = self.faults.iter().map(|(.., fault)| fault.clone()).collect();
        Findings { faults, unread: Vec::new() }
    }
}
