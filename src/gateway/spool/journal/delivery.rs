//! Handing batches to a sender: the oldest first, whole, and gone once the receiver has it.
//!
//! A batch is made durable and read from its file when it is sent, with every doubt; what is wrong with it is said
//! beside what is sound of it. A crash between the receiver's word and the deletion sends it again, under the same
//! number.

use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;

use super::{Journal, locked, try_locked};
use crate::gateway::spool::folder::{quarantine_path, renewed_path};
use crate::gateway::spool::sealed::Sealed;
use crate::gateway::spool::segment::{Contents, Header, SentUnder};

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
        let oldest = self.sealed.take_in_hand();
        if oldest.is_none() {
            self.wanted.store(true, Ordering::Relaxed);
        }
        oldest
    }

    /// The batch stays; it is sent again later.
    pub(in crate::gateway::spool) fn put_back(&self) {
        self.sealed.put_back();
    }

    /// Reads a batch, which is to be sent.
    pub(in crate::gateway::spool) fn read(&self, sealed: &Sealed) -> io::Result<Batch> {
        self.sync_before_sending(sealed.ordinal);
        let contents = Contents::read(std::fs::read(self.path(sealed.ordinal))?);
        let contents = contents.filter(|contents| contents.header.sent_under.is(&sealed.sent_under));
        let damage = match &contents {
            None => Some("its header is not sound".to_owned()),
            Some(contents) => contents.damage().or_else(|| {
                let (found, records) = (contents.len(), sealed.records);
                (found != records).then(|| format!("{found} of {records} records are there"))
            }),
        };
        Ok(Batch { contents, damage })
    }

    /// What a batch is sent under, with what the receiver has acknowledged by now.
    pub(in crate::gateway::spool) fn sent_under(&self, sealed: &Sealed) -> SentUnder {
        self.numbers.current(sealed.sent_under)
    }

    /// The receiver has acknowledged a batch.
    pub(in crate::gateway::spool) fn acknowledge(&self, sealed: &Sealed) {
        self.numbers.acknowledge(sealed.sent_under);
    }

    /// Has the batch in hand sent under a new emitter id from now on, also after a crash: the receiver has not stored
    /// it under the old one, and cannot tell what it has.
    ///
    /// The segment is written anew under another name and then takes its place, so that a crash leaves the one or the
    /// other.
    ///
    /// # Errors
    /// When the disk refuses; the batch then keeps its number.
    pub(in crate::gateway::spool) fn renew(&self, sealed: &Sealed) -> io::Result<()> {
        let SentUnder::Number { emitter, .. } = sealed.sent_under else {
            return Err(io::Error::other("it is sent under a key"));
        };
        let _tending = locked(&self.tending);
        let (path, new) = (self.path(sealed.ordinal), renewed_path(&self.folder, sealed.ordinal));
        let old = std::fs::read(&path)?;
        let (header, end) = Header::decode(&old).ok_or_else(|| io::Error::other("its header is not sound"))?;
        let sent_under = SentUnder::Number { emitter: self.parts.random.uuid(), number: 1, after: 0 };
        let mut bytes = Header { sent_under, ..header }.encode().map_err(io::Error::other)?;
        bytes.extend_from_slice(old.get(end..).unwrap_or_default());
        self.put_in_place(&new, &path, &bytes).inspect_err(|_| {
            // What is left of it is deleted when the spool is opened.
            let _ = self.disk().remove(&new);
        })?;
        self.quota.add(self.name, bytes.len() as u64);
        self.quota.sub(self.name, old.len() as u64);
        self.sealed.renew(sealed.ordinal, sent_under, bytes.len() as u64);
        self.numbers.leave(emitter, self.parts.random.uuid());
        // A failure is said where it happens; what follows is as durable as the disk lets it be.
        let _ = self.timed(|| self.disk().sync_folder(&self.folder));
        Ok(())
    }

    fn put_in_place(&self, new: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let file = match self.disk().create(new) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.disk().remove(new)?;
                self.disk().create(new)?
            }
            created => created?,
        };
        file.write_at(bytes, 0)?;
        self.timed(|| file.sync())?;
        self.disk().rename(new, path)
    }

    /// The batch was delivered: it goes.
    pub(in crate::gateway::spool) fn done(&self, sealed: &Sealed) {
        if let Some(sealed) = self.sealed.take_off(sealed.ordinal) {
            self.delete(&sealed);
        }
        self.sync_deletions();
    }

    /// The batch goes into the quarantine, for a person to look at.
    pub(in crate::gateway::spool) fn set_aside(&self, sealed: &Sealed) {
        let Some(sealed) = self.sealed.take_off(sealed.ordinal) else { return };
        let from = self.path(sealed.ordinal);
        let to = quarantine_path(&self.folder, self.name, sealed.ordinal);
        if let Err(error) = self.disk().rename(&from, &to) {
            tracing::error!(%error, path = %from.display(), "cannot set a segment of the spool aside");
        } else {
            tracing::error!(path = %to.display(), records = sealed.records, "a batch is in the quarantine");
            // There first, and then not here any more: a power cut leaves it at one of the two places at least.
            let folders = [to.parent().unwrap_or(&self.folder), &self.folder];
            let _ = folders.iter().try_for_each(|folder| self.timed(|| self.disk().sync_folder(folder)));
        }
        self.metrics().quarantined.inc();
        self.quota.sub(self.name, sealed.bytes);
    }

    /// Whether nothing waits to be delivered.
    pub(in crate::gateway::spool) fn is_empty(&self) -> bool {
        // A segment that is being written to is not empty, nor is one that records wait for; both are looked at under
        // its lock, so that none is on its way from there to here.
        let none_open =
            try_locked(&self.active).is_some_and(|open| open.records == 0 && locked(&self.pending).bytes() == 0);
        none_open && self.sealed.is_empty()
    }

    pub(super) fn delete(&self, sealed: &Sealed) {
        let path = self.path(sealed.ordinal);
        if let Err(error) = self.disk().remove(&path) {
            // It will be sent again when the spool is opened anew, under the same number.
            tracing::error!(%error, path = %path.display(), "cannot delete a segment of the spool");
        }
        self.deletions.fetch_add(1, Ordering::Relaxed);
        self.quota.sub(self.name, sealed.bytes);
    }
}
