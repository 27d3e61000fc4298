//! One entry after the other: each in its place, each following the one before, each a leaf of the tree.
//!
//! Entries come segment by segment. A segment whose entries have been seen already is one that was merged while it was
//! read, or a leftover of a merge: its entries must be the same, which the chain shows if it begins and ends as it did
//! before.

use std::collections::BTreeSet;
use std::io::{self, Read};

use sha2::{Digest, Sha256};

use super::checkpoints::{self, Kept, Newest, Place};
use super::coverage::Coverage;
use super::emitters::Emitters;
use super::removals::{Named, Removals, Seen};
use super::rows::{BadRow, Checked, Notice, Row, path};
use super::run::look_again;
use super::source::{Blob, Source, SourceError};
use super::spacing::Spacer;
use super::tiles::Tree;
use super::{Fault, Kind, Progress, Sound, VerifyError};
use crate::audit::segment::SegmentName;
use crate::audit::tile::{TileKind, WIDTH};
use crate::audit::tree::empty_root;
use crate::audit::{Hash, TileId};

/// The segment whose entries come now.
#[derive(Debug, Clone, Copy)]
struct Current {
    name: SegmentName,
    /// Rows, by the file's word.
    total: u64,
    /// The entry that is to come next.
    at: u64,
    /// `entry_hash` of the one before, where it is known.
    prev: Option<Hash>,
}

/// The state of verification after the entries seen so far.
pub(super) struct Chain<'a> {
    source: &'a dyn Source,
    progress: &'a Progress<'a>,
    head: Newest,
    older: Vec<Kept>,
    /// The names of the auditor's own.
    remembered: Vec<String>,
    /// How many of the older checkpoints the tree has grown past.
    passed: usize,
    /// The greatest of them whose root was the tree's, and the first whose was not.
    agreed: u64,
    disagreed: Option<Kept>,
    tree: Tree<'a>,
    segments: Vec<SegmentName>,
    /// All segments that are there, leftovers too.
    listed: BTreeSet<SegmentName>,
    current: Option<Current>,
    /// The first entry that is there.
    first: Option<u64>,
    /// The number after the last entry, and its hash where it is known.
    next: u64,
    last: Option<Hash>,
    /// Ranges without entries, ends left out.
    gaps: Vec<(u64, u64)>,
    /// Entries whose hash will be asked for again by leftovers, in order, and the hashes so far.
    bounds: Vec<u64>,
    bound_hashes: Vec<Hash>,
    removals: Removals,
    /// The entry after the last one by which the ledger spoke of itself: leftovers say it again.
    noticed: u64,
    spacer: Spacer,
    /// When the last entry under the newest checkpoint was recorded.
    recorded_at: Option<i64>,
    /// The last entry `ledger.key`.
    rotated: Option<u64>,
    emitters: Emitters,
}

impl<'a> Chain<'a> {
    pub(super) fn new(
        source: &'a dyn Source,
        head: Newest,
        (older, remembered): (Vec<Kept>, Vec<String>),
        coverage: &Coverage,
        progress: &'a Progress<'a>,
    ) -> Self {
        let mut bounds: Vec<_> =
            coverage.within.iter().flat_map(|name| [name.first.checked_sub(1), Some(name.last)]).flatten().collect();
        bounds.sort_unstable();
        bounds.dedup();
        Self {
            tree: Tree::new(source, head.checkpoint.size),
            source,
            progress,
            head,
            older,
            remembered,
            passed: 0,
            agreed: 0,
            disagreed: None,
            segments: coverage.wide.clone(),
            listed: coverage.wide.iter().chain(&coverage.within).copied().collect(),
            current: None,
            first: None,
            next: 0,
            last: Some(Hash::ZERO),
            gaps: Vec::new(),
            bounds,
            bound_hashes: Vec::new(),
            removals: Removals::default(),
            noticed: 0,
            spacer: Spacer::default(),
            recorded_at: None,
            rotated: None,
            emitters: Emitters::default(),
        }
    }

    fn size(&self) -> u64 {
        self.head.checkpoint.size
    }

    /// Entries of this segment come now.
    pub(super) fn begin(&mut self, name: SegmentName, total: u64) -> Result<(), VerifyError> {
        if name.first > self.next {
            self.gap(name)?;
        }
        let prev = if name.first == self.next { self.last } else { self.before(name.first) };
        self.current = Some(Current { name, total, at: name.first, prev });
        Ok(())
    }

    /// The hash of the entry before one that has been seen already, where it is known.
    fn before(&self, seq: u64) -> Option<Hash> {
        match seq.checked_sub(1) {
            None => Some(Hash::ZERO),
            Some(before) => self.bound(before),
        }
    }

    fn bound(&self, seq: u64) -> Option<Hash> {
        self.bounds.binary_search(&seq).ok().and_then(|at| self.bound_hashes.get(at)).copied()
    }

    /// Takes the leaves of the entries before this segment, which are not there, from the tiles.
    fn gap(&mut self, name: SegmentName) -> Result<(), VerifyError> {
        let (from, to) = (self.next, name.first);
        let missing = |why: String| Fault { kind: Kind::Missing, seq: Some(from), file: absent(from, to), why };
        if to > self.size() && from < to {
            return Err(missing(format!("no such segment is there; the next one begins with entry {to}")).into());
        }
        while self.tree.count() < to {
            self.spacer.gone();
            let stop = self.older.get(self.passed).map_or(to, |head| head.size.clamp(self.tree.count(), to));
            if let Some(lacking) = self.tree.push_removed(stop)? {
                let why = format!(
                    "no such segment is there, nor the hashes of its entries: {}: {}",
                    lacking.file, lacking.why
                );
                return Err(missing(why).into());
            }
            self.pass_heads();
            if stop == to {
                break;
            }
        }
        self.gaps.push((from, to));
        while self.bounds.get(self.bound_hashes.len()).is_some_and(|bound| *bound < to) {
            self.bound_hashes.push(Hash::ZERO);
        }
        (self.next, self.last) = (to, None);
        Ok(())
    }

    /// Compares the older checkpoints that the tree has reached with it.
    fn pass_heads(&mut self) {
        while let Some(head) = self.older.get(self.passed).filter(|head| head.size <= self.tree.count()) {
            if head.size == self.tree.count() {
                if self.tree.root() == head.root {
                    self.agreed = head.size;
                } else if self.disagreed.is_none() {
                    self.disagreed = Some(*head);
                }
                if head.place == Place::Kept {
                    self.spacer.checkpoint(head.size);
                }
            } else if head.size == 0 && head.root != empty_root() {
                self.disagreed = Some(*head);
            }
            self.passed += 1;
        }
    }

    /// Entries of the current segment.
    pub(super) fn batch(&mut self, checked: Checked) -> Result<(), VerifyError> {
        let Some(mut current) = self.current else { return Ok(()) };
        for row in &checked.rows {
            if row.leaf.seq != current.at || current.at > current.name.last {
                return Err(self.out_of_place(&current, Some(row.leaf.seq), true));
            }
            if current.prev.is_some_and(|prev| prev != row.leaf.prev_hash) {
                return Err(self.unlinked(&current, row));
            }
            if current.at >= self.next {
                self.push(row)?;
            } else {
                self.compare(&current, row)?;
            }
            current.at += 1;
            current.prev = Some(row.leaf.entry_hash);
        }
        if let Some(BadRow { seq, why }) = checked.bad {
            let in_place = seq == Some(current.at) && current.at <= current.name.last;
            return Err(if in_place {
                Fault { kind: Kind::Changed, seq, file: path(current.name), why }.into()
            } else {
                self.out_of_place(&current, seq, false)
            });
        }
        checked.notices.iter().for_each(|notice| self.notice(notice));
        checked.emitted.into_iter().for_each(|emitted| self.emitters.note(emitted));
        self.current = Some(current);
        (self.progress)(self.next.min(self.size()), self.size());
        Ok(())
    }

    fn push(&mut self, row: &Row) -> Result<(), VerifyError> {
        let seq = row.leaf.seq;
        self.pass_heads();
        self.first.get_or_insert(seq);
        if seq < self.size() {
            self.spacer.entry(row.recorded_at);
            self.recorded_at = row.recorded_at;
            self.tree.push(row.hash, Some(row.leaf))?;
            self.pass_heads();
        }
        if self.bounds.get(self.bound_hashes.len()) == Some(&seq) {
            self.bound_hashes.push(row.leaf.entry_hash);
        }
        (self.next, self.last) = (seq + 1, Some(row.leaf.entry_hash));
        Ok(())
    }

    /// An entry that has been seen already must be the same again; since it is chained, it is enough to look where that
    /// is known.
    fn compare(&self, current: &Current, row: &Row) -> Result<(), Fault> {
        let seq = current.at;
        let known = if seq + 1 == self.next { self.last } else { self.bound(seq) };
        if known.is_none_or(|known| known == row.leaf.entry_hash) {
            return Ok(());
        }
        let wider = self.segments.iter().find(|wider| wider.holds(current.name) && **wider != current.name);
        let wider = wider.map_or_else(|| "the segment that covers this one".to_owned(), |wider| path(*wider));
        let why = format!("{wider} covers this one and has another entry in this place: one of both is forged");
        Err(Fault { kind: Kind::Changed, seq: Some(seq), file: path(current.name), why })
    }

    /// A row whose number is not the one that is to come.
    fn out_of_place(&self, current: &Current, found: Option<u64>, is_sound: bool) -> VerifyError {
        let (name, wanted, file) = (current.name, current.at, path(current.name));
        let origin = &self.head.checkpoint.origin;
        let (rows, is_elsewhere) = match look_again(self.source, origin, name, wanted) {
            Ok((rows, elsewhere)) => (rows.max(current.total), elsewhere && wanted <= name.last),
            Err(error) => return error,
        };
        let said = found.map_or("a row without a seq".to_owned(), |seq| format!("entry {seq}"));
        let (kind, seq, why) = if rows > name.entries() {
            (Kind::Added, found, format!("it has {rows} rows, its name says {}", name.entries()))
        } else if is_elsewhere {
            (Kind::Reordered, Some(wanted), format!("{said} is in its place"))
        } else if is_sound {
            (Kind::Missing, Some(wanted), format!("{said} is in its place"))
        } else {
            (Kind::Changed, Some(wanted), format!("{said} is in its place, and is not what its entry_hash says"))
        };
        Fault { kind, seq, file, why }.into()
    }

    /// Two entries that do not follow each other: the bundles tell which of them is not the one that was signed.
    fn unlinked(&mut self, current: &Current, row: &Row) -> VerifyError {
        let seq = row.leaf.seq;
        let changed = match self.tree.difference_now() {
            Ok(difference) => difference.filter(|difference| difference.seq < seq && difference.level == 0).cloned(),
            Err(error) => return error.into(),
        };
        let (seq, file, why) = match changed {
            Some(found) => {
                let why = format!("its leaf is not the one in {}, and entry {seq} does not follow it", found.file);
                (found.seq, self.file_of(found.seq), why)
            }
            None => {
                let why = match current.prev {
                    Some(prev) => {
                        format!("its prev_hash is not the entry_hash of entry {}, {prev}", seq.saturating_sub(1))
                    }
                    None => "its prev_hash is not that of the entry before".to_owned(),
                };
                (seq, path(current.name), why)
            }
        };
        Fault { kind: Kind::Changed, seq: Some(seq), file, why }.into()
    }

    /// The file that holds an entry.
    fn file_of(&self, seq: u64) -> String {
        let holds = |name: &&SegmentName| name.first <= seq && seq <= name.last;
        self.segments.iter().find(holds).map_or_else(|| "segments".to_owned(), |name| path(*name))
    }

    fn notice(&mut self, notice: &Notice) {
        if notice.seq >= self.size() || notice.seq < self.noticed {
            return;
        }
        self.noticed = notice.seq + 1;
        if notice.action == "ledger.key" {
            self.rotated = self.rotated.max(Some(notice.seq));
        }
        self.removals.take(notice, Seen { first: self.first, gaps: &self.gaps });
    }

    /// The current segment is at its end.
    pub(super) fn end(&mut self, name: SegmentName) -> Result<(), VerifyError> {
        let Some(current) = self.current.take().filter(|current| current.at <= name.last) else { return Ok(()) };
        let why = format!("the file ends before it, and its name says {}", name.last);
        Err(Fault { kind: Kind::Missing, seq: Some(current.at), file: path(name), why }.into())
    }

    /// All entries have come.
    pub(super) fn finish(mut self) -> Result<Sound, VerifyError> {
        self.pass_heads();
        let kept_from = self.removals.first_kept();
        if let Some((from, to)) = self.gaps.iter().find(|(_, to)| *to > kept_from) {
            let from = kept_from.max(*from);
            let why = format!("no such segment is there{}", self.removals.refusal(from));
            return Err(Fault { kind: Kind::Missing, seq: Some(from), file: absent(from, *to), why }.into());
        }
        if self.next < self.size() {
            let why = format!("no such segment is there, and the head covers {} entries", self.size());
            return Err(
                Fault { kind: Kind::Missing, seq: Some(self.next), file: absent(self.next, self.size()), why }.into()
            );
        }
        self.judge()?;
        self.check_named()?;
        let first_kept = self.gaps.last().map_or(0, |(_, to)| *to);
        checkpoints::check_unsigned(&self.older, self.rotated, first_kept)?;
        let (holes, more_holes) = self.emitters.holes();
        Ok(Sound {
            size: self.size(),
            root: self.head.checkpoint.root,
            first_kept,
            unsigned: self.next - self.size(),
            heads: self.older.iter().filter(|kept| kept.place == Place::Kept).count() as u64,
            remembered: self.older.iter().filter(|kept| matches!(kept.place, Place::Remembered(_))).count() as u64,
            spacing: self.spacer.finish(),
            recorded_at: self.recorded_at,
            remarks: self.head.remark.into_iter().collect(),
            cosigned: self.head.cosigned,
            origin: self.head.checkpoint.origin,
            holes,
            more_holes,
        })
    }

    /// Segments that a removal names and that are there still must be the ones that it names.
    fn check_named(&self) -> Result<(), VerifyError> {
        for Named { name, sha256, entry } in
            self.removals.named().iter().filter(|named| self.listed.contains(&named.name))
        {
            let Some(blob) = self.source.open(&path(*name))? else { continue };
            let found = digest(&blob).map_err(|error| SourceError::new(path(*name), error))?;
            if found != *sha256 {
                let why = format!("its SHA-256 is {found}, and entry {entry}, ledger.prune, names it by {sha256}");
                return Err(Fault { kind: Kind::Changed, seq: Some(name.first), file: path(*name), why }.into());
            }
        }
        Ok(())
    }

    /// The signed root tells who is right where the entries and the tiles differ.
    fn judge(&mut self) -> Result<(), VerifyError> {
        let difference = self.tree.difference()?.cloned();
        if self.tree.root() == self.head.checkpoint.root {
            if let Some(kept) = self.disagreed {
                let (size, newest) = (kept.size, &self.head.file);
                let (kind, why) = match kept.place {
                    Place::Remembered(_) => {
                        let why = format!("it is not the beginning of {newest}: one of them is of another history");
                        (Kind::Forked, why)
                    }
                    _ => (Kind::ForgedHead, format!("its root is not that of the first {size} entries under {newest}")),
                };
                return Err(Fault { kind, seq: None, file: kept.file(&self.remembered), why }.into());
            }
            return match difference {
                Some(found) => {
                    Err(Fault { kind: Kind::DamagedTile, seq: Some(found.seq), file: found.file, why: found.why }
                        .into())
                }
                None => Ok(()),
            };
        }
        let Some(found) = difference else {
            let why = format!(
                "the signed root is not that of the entries: from here on they were changed, or the checkpoint is forged; the \
                 checkpoints before agree with them up to here ({})",
                self.agreed
            );
            return Err(Fault { kind: Kind::Changed, seq: Some(self.agreed), file: self.head.file.clone(), why }.into());
        };
        if self.gaps.iter().any(|(from, to)| (*from..*to).contains(&found.seq)) {
            // What was taken from the lowest tiles is not what was signed, and the tile above says which one.
            let tile = TileId::within(self.size(), TileKind::Hashes(0), found.seq / WIDTH as u64);
            let file = tile.map_or(found.file, |tile| format!("tile/{tile}"));
            let why = "the hashes of removed entries in it are not those that were signed".to_owned();
            return Err(Fault { kind: Kind::DamagedTile, seq: Some(found.seq), file, why }.into());
        }
        let why = format!("its leaf is not the one in {}, and the head is signed over another root", found.file);
        Err(Fault { kind: Kind::Changed, seq: Some(found.seq), file: self.file_of(found.seq), why }.into())
    }
}

/// The file that would hold the entries `from` to `to - 1`, if it were one.
fn absent(from: u64, to: u64) -> String {
    path(SegmentName { first: from, last: to - 1 })
}

/// The SHA-256 of a file.
fn digest(blob: &Blob) -> io::Result<Hash> {
    let (mut hasher, mut reader, mut some) = (Sha256::new(), blob.reader(), vec![0; 1 << 16]);
    loop {
        match reader.read(&mut some)? {
            0 => return Ok(Hash(hasher.finalize().into())),
            count => hasher.update(some.get(..count).unwrap_or_default()),
        }
    }
}
