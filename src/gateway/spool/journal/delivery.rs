//! Handing batches to a sender: the oldest first, whole, and gone once the receiver has it.
//!
//! A batch is read from its file when it is sent, with every doubt; what is wrong with it is said beside what is sound of
//! it. A crash between the receiver's word and the deletion sends it again, under the same key.

use std::io;
use std::sync::atomic::Ordering;

use super::{Journal, locked, try_locked};
use crate::gateway::spool::folder::quarantine_path;
use crate::gateway::spool::segment::Contents;
use crate::gateway::spool::shelf::Sealed;

/// What a batch holds.
#[derive(Debug)]
pub(crate) struct Batch {
    contents: Option<Contents>,
    /// What is wrong with it, if anything is: the records are those that are sound.
    pub(crate) damage: Option<String>,
}

impl Batch {
    /// The records in their order, each with its number.
    pub(crate) fn records(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.contents.iter().flat_map(Contents::records)
    }

    /// A batch of which nothing can be read.
    pub(crate) fn unreadable(error: &io::Error) -> Self {
        Self { contents: None, damage: Some(error.to_string()) }
    }

    pub(crate) fn len(&self) -> u64 {
        self.contents.as_ref().map_or(0, Contents::len)
    }
}

impl Journal {
    /// The oldest batch, which is then in hand until [`Journal::put_back`] or [`Journal::done`].
    pub(in crate::gateway::spool) fn take_oldest(&self) -> Option<Sealed> {
        let oldest = self.shelf.take_in_hand();
        if oldest.is_none() {
            self.wanted.store(true, Ordering::Relaxed);
        }
        oldest
    }

    /// The batch stays; it is sent again later.
    pub(in crate::gateway::spool) fn put_back(&self) {
        self.shelf.put_back();
    }

    /// Reads a batch.
    pub(in crate::gateway::spool) fn read(&self, sealed: &Sealed) -> io::Result<Batch> {
        let contents = Contents::read(std::fs::read(self.path(sealed.ordinal))?);
        let contents = contents.filter(|contents| contents.header.key == sealed.key);
        let damage = match &contents {
            None => Some("its header is not sound".to_owned()),
            Some(contents) => contents.damage().or_else(|| {
                let (found, records) = (contents.len(), sealed.records);
                (found != records).then(|| format!("{found} of {records} records are there"))
            }),
        };
        Ok(Batch { contents, damage })
    }

    /// The batch was delivered: it goes.
    pub(in crate::gateway::spool) fn done(&self, sealed: &Sealed) {
        if let Some(sealed) = self.shelf.take_off(sealed.ordinal) {
            self.delete(&sealed);
        }
    }

    /// The batch goes into the quarantine, for a person to look at.
    pub(in crate::gateway::spool) fn set_aside(&self, sealed: &Sealed) {
        let Some(sealed) = self.shelf.take_off(sealed.ordinal) else { return };
        let from = self.path(sealed.ordinal);
        let to = quarantine_path(&self.folder, self.name, sealed.ordinal);
        if let Err(error) = self.disk().rename(&from, &to) {
            tracing::error!(%error, path = %from.display(), "cannot set a segment of the spool aside");
        } else {
            tracing::error!(path = %to.display(), records = sealed.records, "a batch is in the quarantine");
        }
        self.metrics().quarantined.inc();
        self.bound.sub(self.name, sealed.bytes);
    }

    /// Whether nothing waits to be delivered.
    pub(in crate::gateway::spool) fn is_empty(&self) -> bool {
        // A segment that is being written to is not empty, nor is one that records wait for; both are looked at under its
        // lock, so that none is on its way from there to here.
        let none_open =
            try_locked(&self.open).is_some_and(|open| open.records == 0 && locked(&self.pending).bytes() == 0);
        none_open && self.shelf.is_empty()
    }

    pub(super) fn delete(&self, sealed: &Sealed) {
        let path = self.path(sealed.ordinal);
        if let Err(error) = self.disk().remove(&path) {
            // It will be sent again when the spool is opened anew, under the same key.
            tracing::error!(%error, path = %path.display(), "cannot delete a segment of the spool");
        }
        self.bound.sub(self.name, sealed.bytes);
    }
}
