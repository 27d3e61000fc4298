//! The tree over the entries, grown leaf by leaf, and the stored tiles and bundles held against it.
//!
//! A tile is compared as soon as all of its hashes are known: when it is full, or when the tree has the checkpoint's
//! size. Tiles are read some at a time, since a store or a server answers many at once about as fast as one. The first
//! difference is remembered, not raised: which of the two is wrong, the entry or the tile, the checkpoint's signature
//! tells in the end.
//!
//! Of removed entries, the leaves' hashes are taken from the tiles of the lowest level. The checkpoint's root shows
//! that they are right, and the tiles above are compared as everywhere. Bundles of removed entries may have gone; those
//! that are there must fit.

use bytes::Bytes;

use super::source::{Source, SourceError};
use crate::audit::tile::{TileId, TileKind, WIDTH, hashes};
use crate::audit::tree::{self, leaf_hash};
use crate::audit::{Hash, Leaf};

/// Tiles that are read at once.
const AT_ONCE: usize = 128;
/// Levels of the tree that a tile spans, as bits of a leaf's number.
const HEIGHT: u32 = 8;
const HASH: usize = 32;
/// A leaf in a bundle, after its length.
const BUNDLED: usize = 2 + Leaf::LENGTH;

/// Where a stored tile is not what the entries give.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Difference {
    /// The first leaf that it is about.
    pub(super) seq: u64,
    /// The level of the tile: on a high one, the difference may be at any of many leaves.
    pub(super) level: u8,
    /// The tile.
    pub(super) file: String,
    pub(super) why: String,
}

/// What a tile must hold.
struct Wanted {
    id: TileId,
    /// For a bundle: the leaves, where they are known.
    leaves: Vec<Option<Leaf>>,
    hashes: Vec<Hash>,
}

/// The tree over the entries seen so far, compared with the stored tiles.
pub(super) struct Tree<'a> {
    source: &'a dyn Source,
    /// The checkpoint's size: leaves after that are not in the tree.
    size: u64,
    count: u64,
    /// The tile of each level that is not full yet.
    levels: Vec<Vec<Hash>>,
    /// The leaves of the bundle that is not full yet, where they are known.
    leaves: Vec<Option<Leaf>>,
    wanted: Vec<Wanted>,
    difference: Option<Difference>,
}

impl<'a> Tree<'a> {
    /// A tree without leaves, to be grown to `size`.
    pub(super) fn new(source: &'a dyn Source, size: u64) -> Self {
        let (levels, leaves, wanted) = (Vec::new(), Vec::new(), Vec::new());
        Self { source, size, count: 0, levels, leaves, wanted, difference: None }
    }

    /// How many leaves it has.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// Adds a leaf by its hash, and by itself where it is known.
    pub(super) fn push(&mut self, hash: Hash, leaf: Option<Leaf>) -> Result<(), SourceError> {
        if self.count == self.size {
            return Ok(());
        }
        self.count += 1;
        self.leaves.push(leaf);
        let mut hash = hash;
        for level in 0.. {
            if self.levels.len() <= level {
                self.levels.push(Vec::with_capacity(WIDTH));
            }
            let Some(hashes) = self.levels.get_mut(level) else { break };
            hashes.push(hash);
            if hashes.len() < WIDTH {
                break;
            }
            let Some(root) = tree::perfect_root(hashes) else { break };
            self.want(level);
            hash = root;
        }
        if self.count == self.size {
            (0..self.levels.len()).for_each(|level| self.keep_and_want(level));
            self.compare()?;
        }
        if self.wanted.len() >= AT_ONCE { self.compare() } else { Ok(()) }
    }

    /// Wants the tile that a level has come to, which is full, and begins the next.
    fn want(&mut self, level: usize) {
        self.keep_and_want(level);
        self.levels.get_mut(level).into_iter().for_each(Vec::clear);
        if level == 0 {
            self.leaves.clear();
        }
    }

    fn keep_and_want(&mut self, level: usize) {
        let Some(hashes) = self.levels.get(level).filter(|hashes| !hashes.is_empty()) else { return };
        let (Ok(number), Ok(width)) = (u8::try_from(level), u16::try_from(hashes.len())) else { return };
        let index = ((self.count >> (HEIGHT * u32::from(number))) - 1) / WIDTH as u64;
        let id = TileId { kind: TileKind::Hashes(number), index, width };
        if level == 0 {
            let bundle = TileId { kind: TileKind::Entries, ..id };
            self.wanted.push(Wanted { id: bundle, leaves: self.leaves.clone(), hashes: hashes.clone() });
        }
        self.wanted.push(Wanted { id, leaves: Vec::new(), hashes: hashes.clone() });
    }

    /// Adds leaves of removed entries up to `to`, by the stored tiles. Gives the first whose hash is not there, if any.
    pub(super) fn push_removed(&mut self, to: u64) -> Result<Option<Difference>, SourceError> {
        let end = to.min(self.size);
        let mut next = self.count / WIDTH as u64;
        while self.count < end {
            let last = (end - 1) / WIDTH as u64;
            let indexes = next..=last.min(next + AT_ONCE as u64 - 1);
            let ids: Vec<_> =
                indexes.filter_map(|index| TileId::within(self.size, TileKind::Hashes(0), index)).collect();
            for (id, found) in ids.iter().zip(read(self.source, &ids)?) {
                let first = id.index * WIDTH as u64;
                let lacking =
                    |seq, why: String| Ok(Some(Difference { seq, level: 0, file: format!("tile/{id}"), why }));
                let Some(bytes) = found else {
                    return lacking(self.count, "it is missing, and so are the entries that it is over".to_owned());
                };
                let hashes = match hashes(*id, &bytes) {
                    Ok(hashes) => hashes,
                    Err(error) => return lacking(self.count, error.to_string()),
                };
                for (seq, hash) in (first..end).zip(hashes) {
                    if seq >= self.count {
                        self.push(hash, None)?;
                    }
                }
                next = id.index + 1;
            }
        }
        Ok(None)
    }

    /// The root.
    pub(super) fn root(&self) -> Hash {
        let mut peaks = Vec::new();
        for level in self.levels.iter().rev() {
            // A level that has just become full at the tree's end has gone up into the one above.
            let mut rest = level.as_slice();
            while !rest.is_empty() {
                let (subtree, after) = rest.split_at(1 << rest.len().ilog2());
                peaks.extend(tree::perfect_root(subtree));
                rest = after;
            }
        }
        tree::join(&peaks).unwrap_or_else(tree::empty_root)
    }

    /// The first difference so far, all that is known compared.
    pub(super) fn difference(&mut self) -> Result<Option<&Difference>, SourceError> {
        self.compare()?;
        Ok(self.difference.as_ref())
    }

    /// The first difference, the leaves of the bundle that is not full yet included: what tells which of two entries
    /// that do not fit together is the one that was changed.
    pub(super) fn difference_now(&mut self) -> Result<Option<&Difference>, SourceError> {
        self.compare()?;
        let index = self.count / WIDTH as u64;
        let bundle = TileId::within(self.size, TileKind::Entries, index).filter(|_| !self.leaves.is_empty());
        if let (Some(id), Some(hashes)) = (bundle, self.levels.first()) {
            let wanted = Wanted { id, leaves: self.leaves.clone(), hashes: hashes.clone() };
            let found = read(self.source, &[id])?.pop().flatten();
            self.take(wanted.differs(found.as_ref()));
        }
        Ok(self.difference.as_ref())
    }

    fn take(&mut self, found: Option<Difference>) {
        let first = self.difference.take();
        self.difference = match (first, found) {
            (Some(first), Some(found)) => {
                Some(if (found.level, found.seq) < (first.level, first.seq) { found } else { first })
            }
            (first, found) => first.or(found),
        };
    }

    fn compare(&mut self) -> Result<(), SourceError> {
        let wanted = std::mem::take(&mut self.wanted);
        let ids: Vec<_> = wanted.iter().map(|wanted| wanted.id).collect();
        for (wanted, found) in wanted.iter().zip(read(self.source, &ids)?) {
            self.take(wanted.differs(found.as_ref()));
        }
        Ok(())
    }
}

impl Wanted {
    /// How what was found is not what is wanted.
    fn differs(&self, found: Option<&Bytes>) -> Option<Difference> {
        let is_bundle = self.id.kind == TileKind::Entries;
        let level = match self.id.kind {
            TileKind::Entries => 0,
            TileKind::Hashes(level) => level,
        };
        let difference = |item: usize, why: &str| {
            let seq = (self.id.index * WIDTH as u64 + item as u64) << (HEIGHT * u32::from(level));
            Some(Difference { seq, level, file: format!("tile/{}", self.id), why: why.to_owned() })
        };
        let first_known = self.leaves.iter().position(Option::is_some).unwrap_or(0);
        let Some(found) = found else {
            // A bundle of entries that are all removed may have gone with them.
            let may_go = is_bundle && self.leaves.iter().all(Option::is_none);
            return if may_go { None } else { difference(first_known, "it is missing") };
        };
        if found.len() != self.id.bytes() {
            return difference(first_known, &format!("it has {} bytes, not {}", found.len(), self.id.bytes()));
        }
        let (each, what) = if is_bundle { (BUNDLED, "leaf") } else { (HASH, "hash") };
        let items = found.chunks(each).zip(&self.hashes).enumerate();
        let mut wrong = items.filter(|(at, (item, hash))| match self.leaves.get(*at) {
            None => **item != hash.0,
            Some(Some(leaf)) => !is_bundled(item, &leaf.bytes()),
            // Of a removed entry, the leaf that is there must have its hash.
            Some(None) => !item.get(2..).is_some_and(|leaf| leaf_hash(leaf) == **hash && is_bundled(item, leaf)),
        });
        let (at, _) = wrong.next()?;
        difference(at, &format!("the {what} in it is not the entry's"))
    }
}

fn is_bundled(item: &[u8], leaf: &[u8]) -> bool {
    item.split_at_checked(2)
        .is_some_and(|(length, rest)| length == (Leaf::LENGTH as u16).to_be_bytes().as_slice() && rest == leaf)
}

/// Reads tiles; a partial one that has gone since is the beginning of the full one.
pub(super) fn read(source: &dyn Source, ids: &[TileId]) -> Result<Vec<Option<Bytes>>, SourceError> {
    let paths: Vec<_> = ids.iter().map(|id| format!("tile/{id}")).collect();
    let mut found = source.read(&paths)?;
    for (id, found) in ids.iter().zip(&mut found) {
        if found.is_none() && usize::from(id.width) < WIDTH {
            let full = source.read_one(&format!("tile/{}", id.full()))?;
            *found = full.map(|bytes| bytes.slice(..bytes.len().min(id.bytes())));
        }
    }
    Ok(found)
}
