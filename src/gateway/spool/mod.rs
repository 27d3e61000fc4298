//! A durable, bounded, crash-safe queue of records on the local disk, between a call and the receivers of its
//! telemetry.
//!
//! Two **lanes**, samples and audit events, each a folder of segment files; and a third, of sealed payloads, with a
//! bound of its own. A record of that is an envelope and a record under it, of up to 20 MiB, and no JSON. A record is
//! appended to the lane's open segment as it comes; a segment that is large or old enough is sealed, and *is* then a
//! batch: it is sent whole, under the emitter and number in its header, and deleted once it is acknowledged. So a
//! record is written once, a retry sends the same rows under the same number whatever crashed in between, and the
//! receiver stores them exactly once.
//!
//! ```text
//! <spool>/lock                          held while a gateway uses the spool
//! <spool>/samples/00000000000000000007  segments, numbered without end
//! <spool>/audit/00000000000000000031
//! <spool>/quarantine/<lane>-<number>    what the receiver refuses for good, or what is damaged; see below
//!
//! a segment   offset  bytes
//!                  0      8  magic "MCPGSPL2"
//!                  8      4  length of the header, u32 little-endian
//!                 12      8  checksum: the first 8 bytes of the BLAKE3 of the header
//!                 20      …  header, JSON: emitter, number, what was acknowledged before; lane, org, the number of the
//!                            first record, time of creation
//!                  …      …  frames
//! a frame          0      4  length of the payload, u32 little-endian, at most 256 KiB
//!                  4      8  number of the record, u64 little-endian; rising
//!                 12      8  checksum: the first 8 bytes of the BLAKE3 of the bytes before and the payload
//!                 20      …  payload: a JSON object
//! end mark                   a frame numbered 2^64 - 1 whose payload is the count of records and the next number, u64 each;
//!                            written when the segment was made durable as a whole
//! ```
//!
//! A segment of the form before has the magic "MCPGSPL1" and a key in the place of emitter and number; it is sent under
//! that key, as `Idempotency-Key`. `<lane>/<number>.new` is a segment that gets another header (see below): what a
//! crash leaves of it is deleted.
//!
//! The last file of a lane may be all zeros: room for the next segment, kept so that the open one can be sealed,
//! delivered and deleted on a full disk too.
//!
//! Records of a lane are numbered one after the other over all segments and restarts. A record that could not be
//! written leaves a hole in the numbers. There is always an open segment; of audit events it is made durable, with the
//! next number in its header, before an older one may go, so that no number of theirs is ever given twice. The numbers
//! of samples are not handed out, and may be given again after a power cut.
//!
//! # Exactly once
//!
//! Batches of a lane are numbered by [`numbers`], under an emitter id that only this process has, and sent one at a
//! time (`Mcpg-Emitter`, `Mcpg-Sequence`, `Mcpg-After`). The receiver remembers the last number of an emitter and the
//! bodies of its last 16 batches. For that to be enough,
//!
//! - a batch is made durable before it is sent for the first time: what a power cut leaves under its number is what was
//!   sent;
//! - deletions are made durable at the latest after [`UNSYNCED_DELETIONS`], so that no older batch comes back.
//!
//! When the receiver cannot compare a number (409), it has not stored the batch under it. The segment then gets a new
//! header, with a new emitter id and the number 1, which is durable before it is sent again. That is the case of a
//! segment that comes back from the quarantine or from a backup of the folder, and of two machines that are copies of
//! each other.
//!
//! # What is durable, and when
//!
//! Appending writes to the file before it returns (a few µs, no fsync), so a record outlives `kill -9` from then on.
//! What a power cut may take:
//!
//! - of samples, those of the last [`SYNC_EVERY`] that were not delivered yet;
//! - of audit events, none whose recording was waited for: those are fsynced first, many at once. Others are fsynced
//!   within [`SYNC_EVERY`], and always before they are sent.
//!
//! The one exception: while a disk is slow (a write takes over 20 ms) or refuses writes, records wait in memory,
//! bounded, and `kill -9` takes them. A disk that hangs holds up the one call that is writing; all others leave their
//! records and go on.
//!
//! # Bounds
//!
//! All segments together have at most the bound of bytes. Past it, or when the disk is full, the oldest batches of
//! samples are deleted and counted as lost. Audit events are never deleted: when no sample is left to make room for
//! them, recording fails, and the caller decides what that means.
//!
//! # After a crash
//!
//! A segment without an end mark is read to its last sound frame; what follows is the torn tail of a write that was
//! never acknowledged, and is cut off. Bytes that are no frame *between* sound frames, a frame that is missing under an
//! end mark, or a header that is not sound are damage: said in the log and in a metric, the segment kept in the
//! quarantine, and what is sound of it delivered all the same. To send a quarantined segment again, stop the gateway
//! and move the file back into its lane's folder under its number; numbers of files in the quarantine are not given
//! again. Of a damaged one, what is sound has been delivered: it is not to be sent again.
//!
//! | module | holds |
//! |---|---|
//! | [`lane`] | a lane as calls and senders see it |
//! | [`journal`] | what a lane is made of and does: recording, making durable, sealing, delivering |
//! | [`pending`], [`active`], [`sealed`] | where a record is on its way: in memory, in the active segment, in a batch |
//! | [`flusher`] | the thread that keeps a lane |
//! | [`numbers`] | what batches are sent under |
//! | [`disk_health`] | whether the disk is slow, or refuses |
//! | [`quota`] | the bytes of all segments |
//! | [`segment`] | the bytes of one |
//! | [`folder`] | what the files are called |
//! | [`disk`] | the disk, as a component |
//! | [`recovery`] | opening a lane |

mod active;
mod disk;
mod disk_health;
mod flusher;
mod folder;
mod journal;
mod lane;
mod numbers;
mod pending;
mod quota;
mod recovery;
mod sealed;
mod segment;
#[cfg(test)]
mod tests;

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub(crate) use disk::{Disk, LocalDisk, create_folder};
pub(crate) use journal::Batch;
pub(crate) use lane::Lane;
pub(crate) use sealed::Sealed;
pub(crate) use segment::SentUnder;

use super::metrics::{GatewayMetrics, Lane as LaneMetrics};
use crate::model::{Clock, OrgName, Random, micros};
use journal::{Tuning, Turn};
use quota::Quota;
use segment::Header;

/// How long a record may be in the operating system's memory alone.
pub(crate) const SYNC_EVERY: Duration = Duration::from_secs(1);

/// So many deletions are made durable at once. The receiver compares a number with its last 16.
pub(crate) const UNSYNCED_DELETIONS: u64 = 8;

/// The most records of a segment: what one request brings.
const SEGMENT_RECORDS: u64 = 8_192;

/// The most bytes of a segment, and the least that a small bound is cut into.
const SEGMENT_BYTES: u64 = 4 << 20;
const LEAST_SEGMENT_BYTES: u64 = 16 << 10;

/// Which of the two lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LaneName {
    Samples,
    Audit,
    /// Sealed payloads, with a bound of their own.
    Payloads,
}

impl LaneName {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Samples => "samples",
            Self::Audit => "audit",
            Self::Payloads => "payloads",
        }
    }

    /// The lane of an emitter that its batches are numbered in.
    pub(crate) const fn index(self) -> u16 {
        match self {
            Self::Samples => 0,
            Self::Audit => 1,
            Self::Payloads => 2,
        }
    }

    /// How old the first record of a segment becomes before it is sealed for a sender that waits. An audit segment is
    /// fsynced when it is sealed, so those are made more rarely.
    const fn window(self) -> Duration {
        match self {
            Self::Samples => Duration::from_millis(200),
            Self::Audit | Self::Payloads => Duration::from_millis(500),
        }
    }

    /// The most bytes of a record.
    pub(crate) const fn max_payload(self) -> usize {
        match self {
            Self::Samples | Self::Audit => segment::MAX_PAYLOAD,
            Self::Payloads => segment::MAX_SEALED,
        }
    }

    /// Whether the oldest go when there is no more room.
    const fn is_dropped(self) -> bool {
        !matches!(self, Self::Audit)
    }
}

/// Why a record is not in the spool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotRecorded {
    /// The bound of bytes is reached.
    #[error("the spool is full; raise control_plane.spool.max_bytes, or see why nothing is delivered")]
    Full,
    /// Too many records wait for a slow disk.
    #[error("records come faster than the spool's disk takes them")]
    Backlog,
    /// The disk refused it.
    #[error("the spool's disk refuses to be written to; the log says why")]
    Disk,
    /// It is larger than a record may be.
    #[error("the record is larger than 256 KiB")]
    TooLarge,
    /// The disk did not answer in time.
    #[error("the spool's disk did not answer in time")]
    Late,
    /// The gateway is stopping.
    #[error("the gateway is stopping")]
    Stopping,
}

/// Why a spool cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// Another process uses it.
    #[error("{0} is used by another gateway; give each its own control_plane.spool.path")]
    InUse(PathBuf),
    /// The disk refuses.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

impl SpoolError {
    fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { what, path, source }
    }
}

/// What a spool is opened with.
#[derive(Debug, Clone)]
pub(crate) struct SpoolSettings {
    pub(crate) folder: PathBuf,
    /// The bound of all segments together.
    pub(crate) max_bytes: u64,
    /// The org that records are for from now on; those from before keep theirs.
    pub(crate) org: OrgName,
    /// Which lanes are used. The folder of another one is left as it is.
    pub(crate) samples: bool,
    pub(crate) audit: bool,
    /// The bound of sealed payloads, where that lane is used.
    pub(crate) payloads: Option<u64>,
}

/// What a spool stands on.
#[derive(Debug, Clone)]
pub(crate) struct SpoolParts {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) random: Arc<dyn Random>,
    pub(crate) metrics: Arc<GatewayMetrics>,
}

impl SpoolParts {
    /// What is counted of a lane.
    fn metrics_of(&self, lane: LaneName) -> &LaneMetrics {
        match lane {
            LaneName::Samples => &self.metrics.samples,
            LaneName::Audit => &self.metrics.audit,
            LaneName::Payloads => &self.metrics.payloads,
        }
    }

    /// The header of a segment that is begun now; its first record has the number `first` or a later one.
    fn header(&self, sent_under: SentUnder, lane: LaneName, org: &OrgName, first: u64) -> Header {
        Header {
            sent_under,
            lane: lane.as_str().to_owned(),
            org: org.clone(),
            first,
            created_at: micros(self.clock.now()),
        }
    }
}

/// The spool while it is open.
#[derive(Debug)]
pub(crate) struct Spool {
    pub(crate) samples: Option<Lane>,
    pub(crate) audit: Option<Lane>,
    pub(crate) payloads: Option<Lane>,
    /// Released by the operating system however the process ends.
    _lock: File,
}

impl Spool {
    /// Opens the spool, making it if it is not there, and takes up what an earlier run left.
    ///
    /// # Errors
    /// See [`SpoolError`].
    pub(crate) fn open(settings: &SpoolSettings, parts: &SpoolParts) -> Result<Self, SpoolError> {
        let folder = &settings.folder;
        create_folder(folder).map_err(SpoolError::io("create", folder))?;
        let lock = lock(folder)?;
        let (quota, turn) = (Arc::new(Quota::new(settings.max_bytes)), Turn::default());
        parts.metrics.spool_limit_bytes.set(i64::try_from(settings.max_bytes).unwrap_or(i64::MAX));
        let emitter = parts.random.uuid();
        let open = |name: LaneName| {
            let tuning = Tuning::of(name, settings.max_bytes);
            recovery::open(folder, name, &settings.org, (tuning, emitter), parts, (&quota, &turn))
        };
        let samples = settings.samples.then(|| open(LaneName::Samples)).transpose()?;
        let audit = settings.audit.then(|| open(LaneName::Audit)).transpose()?;
        let payloads = settings.payloads.map(|most| {
            // A bound of their own, and a turn: they take nothing from samples and events, nor hold them up.
            let (quota, turn) = (Arc::new(Quota::new(most)), Turn::default());
            let tuning = Tuning::of(LaneName::Payloads, most);
            recovery::open(folder, LaneName::Payloads, &settings.org, (tuning, emitter), parts, (&quota, &turn))
        });
        let payloads = payloads.transpose()?;
        let yields = samples.clone();
        Ok(Self {
            samples: samples.map(|journal| Lane::start(journal, None)).transpose()?,
            audit: audit.map(|journal| Lane::start(journal, yields)).transpose()?,
            payloads: payloads.map(|journal| Lane::start(journal, None)).transpose()?,
            _lock: lock,
        })
    }
}

fn lock(folder: &Path) -> Result<File, SpoolError> {
    let path = folder.join("lock");
    let file =
        File::options().create(true).truncate(false).write(true).open(&path).map_err(SpoolError::io("open", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(SpoolError::InUse(folder.to_owned())),
        Err(TryLockError::Error(error)) => Err(SpoolError::io("lock", &path)(error)),
    }
}
