//! The tree on the store: tiles, as C2SP tlog-tiles lays them out (<https://c2sp.org/tlog-tiles>), under `orgs/<org>/audit/tile/`.
//!
//! A hash tile of level `L` holds up to 256 hashes of the tree's level `8·L`, `tile/<L>/<N>`. An entry bundle holds up to 256
//! leaves, each after its length as a big-endian u16, `tile/entries/<N>`. `<N>` is written in groups of three digits, all but
//! the last after an `x`: `x001/x234/067`. One that is not full yet ends in `.p/<width>`; it goes when the full one is there.
//!
//! A tile of one width never changes, so two nodes that write it write the same bytes, and a crash between two tiles is made
//! good by writing all of them again.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::str::FromStr;

use bytes::Bytes;

use super::tree::{self, Peaks, Range};
use super::{AuditError, Hash, Leaf};

/// Hashes in a full tile, leaves in a full bundle.
pub const WIDTH: usize = 256;
/// Levels of the tree that a tile spans.
const HEIGHT: u32 = 8;
/// The length of a hash in bytes.
const HASH: usize = 32;
/// The length of a leaf in a bundle in bytes.
const BUNDLED: usize = 2 + Leaf::LENGTH;

/// What a tile holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TileKind {
    /// Leaves.
    Entries,
    /// Hashes of a level.
    Hashes(u8),
}

/// The name of a tile or a bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TileId {
    /// What it holds.
    pub kind: TileKind,
    /// Its place among its kind, from 0.
    pub index: u64,
    /// How many hashes or leaves it holds: 1 to 256.
    pub width: u16,
}

impl TileId {
    /// The tile of that kind and place in a tree of `size` leaves; none if it has none there.
    pub fn within(size: u64, kind: TileKind, index: u64) -> Option<Self> {
        let count = match kind {
            TileKind::Entries => size,
            TileKind::Hashes(level) => size.checked_shr(HEIGHT * u32::from(level)).unwrap_or(0),
        };
        let left = count.checked_sub(index.checked_mul(WIDTH as u64)?)?.min(WIDTH as u64);
        let width = u16::try_from(left).ok().filter(|width| *width > 0)?;
        Some(Self { kind, index, width })
    }

    /// The same tile when it is full.
    pub fn full(self) -> Self {
        Self { width: WIDTH as u16, ..self }
    }

    /// The folder of the forms that it had before it was full.
    pub fn partial_folder(self) -> String {
        let mut path = self.full().to_string();
        path.push_str(".p");
        path
    }

    /// How many bytes it has.
    pub fn bytes(self) -> usize {
        let each = if self.kind == TileKind::Entries { BUNDLED } else { HASH };
        usize::from(self.width) * each
    }
}

impl fmt::Display for TileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            TileKind::Entries => f.write_str("entries/")?,
            TileKind::Hashes(level) => write!(f, "{level}/")?,
        }
        let digits = format!("{:03}", self.index);
        let first = if digits.len().is_multiple_of(3) { 3 } else { digits.len() % 3 };
        let (first, rest) = digits.split_at(first);
        if rest.is_empty() {
            write!(f, "{first:0>3}")?;
        } else {
            write!(f, "x{first:0>3}")?;
            let groups = rest.as_bytes().chunks(3).map(String::from_utf8_lossy);
            let last = rest.len() / 3 - 1;
            for (at, group) in groups.enumerate() {
                write!(f, "/{}{group}", if at == last { "" } else { "x" })?;
            }
        }
        if usize::from(self.width) < WIDTH { write!(f, ".p/{}", self.width) } else { Ok(()) }
    }
}

/// Said of a path that is no tile's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no tile is named so")]
pub struct NoTile;

impl FromStr for TileId {
    type Err = NoTile;

    fn from_str(path: &str) -> Result<Self, NoTile> {
        let (kind, rest) = path.split_once('/').ok_or(NoTile)?;
        let kind = match kind {
            "entries" => TileKind::Entries,
            level => TileKind::Hashes(level.parse().ok().filter(|level| *level < 8).ok_or(NoTile)?),
        };
        let (number, width) = match rest.split_once(".p/") {
            Some((number, width)) => {
                (number, width.parse().ok().filter(|width| (1..256).contains(width)).ok_or(NoTile)?)
            }
            None => (rest, WIDTH as u16),
        };
        let index = number.split('/').try_fold(0_u64, |index, group| {
            let digits = group.strip_prefix('x').unwrap_or(group).parse::<u64>().ok()?;
            index.checked_mul(1_000)?.checked_add(digits)
        });
        let id = Self { kind, index: index.ok_or(NoTile)?, width };
        // Whatever else could be read as the same name is none.
        if id.to_string() == path { Ok(id) } else { Err(NoTile) }
    }
}

/// The hashes of a hash tile.
///
/// # Errors
/// [`AuditError::Malformed`] when it has not the length that its name says.
pub fn hashes(id: TileId, bytes: &[u8]) -> Result<Vec<Hash>, AuditError> {
    let (hashes, rest) = bytes.as_chunks::<HASH>();
    if bytes.len() != id.bytes() || !rest.is_empty() {
        return Err(AuditError::Malformed(format!("tile/{id} has {} bytes, not {}", bytes.len(), id.bytes())));
    }
    Ok(hashes.iter().copied().map(Hash).collect())
}

/// The leaves of an entry bundle.
///
/// # Errors
/// [`AuditError::Malformed`] when it is none.
pub fn leaves(id: TileId, bytes: &[u8]) -> Result<Vec<Leaf>, AuditError> {
    let malformed = |reason: String| AuditError::Malformed(format!("tile/{id}: {reason}"));
    let (leaves, rest) = bytes.as_chunks::<BUNDLED>();
    if bytes.len() != id.bytes() || !rest.is_empty() {
        return Err(malformed(format!("it has {} bytes, not {}", bytes.len(), id.bytes())));
    }
    let leaf = |(at, [high, low, leaf @ ..]): (usize, &[u8; BUNDLED])| {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let leaf = Leaf::parse(leaf).filter(|_| length == Leaf::LENGTH);
        leaf.ok_or_else(|| malformed(format!("entry {at} of it is no leaf")))
    };
    leaves.iter().enumerate().map(leaf).collect()
}

/// Hash tiles that have been read of one tree, by which proofs are made.
#[derive(Debug, Clone)]
pub struct Tiles {
    size: u64,
    tiles: HashMap<TileId, Vec<Hash>>,
}

impl Tiles {
    /// None yet, of a tree of `size` leaves.
    pub fn new(size: u64) -> Self {
        Self { size, tiles: HashMap::new() }
    }

    /// How many leaves the tree has.
    pub fn size(&self) -> u64 {
        self.size
    }

    fn place(&self, level: u32, index: u64) -> Option<(TileId, usize, usize)> {
        let (tile_level, height) = (level / HEIGHT, level % HEIGHT);
        let first = index.checked_shl(height)?;
        let kind = TileKind::Hashes(u8::try_from(tile_level).ok()?);
        let id = TileId::within(self.size, kind, first / WIDTH as u64)?;
        Some((id, usize::try_from(first % WIDTH as u64).ok()?, 1 << height))
    }

    /// The tiles that are needed to hash these ranges.
    pub fn needed(&self, ranges: &[Range]) -> BTreeSet<TileId> {
        let nodes = ranges.iter().flat_map(|range| range.nodes());
        nodes.filter_map(|(level, index)| self.place(level, index)).map(|(id, ..)| id).collect()
    }

    /// The tiles of the tree's right edge, by which its root and its growth are known.
    pub fn edge(&self) -> BTreeSet<TileId> {
        self.needed(&[Range { from: 0, to: self.size }])
    }

    /// Adds a tile.
    ///
    /// # Errors
    /// [`AuditError::Malformed`] when it has not the length that its name says.
    pub fn insert(&mut self, id: TileId, bytes: &[u8]) -> Result<(), AuditError> {
        self.tiles.insert(id, hashes(id, bytes)?);
        Ok(())
    }

    /// The hash of a node; none when its tile is not there.
    pub fn node(&self, level: u32, index: u64) -> Option<Hash> {
        let (id, from, count) = self.place(level, index)?;
        tree::perfect_root(self.tiles.get(&id)?.get(from..from + count)?)
    }

    /// The hash of a range; none when one of its tiles is not there.
    pub fn range(&self, range: Range) -> Option<Hash> {
        let nodes: Option<Vec<_>> = range.nodes().into_iter().map(|(level, index)| self.node(level, index)).collect();
        tree::join(&nodes?)
    }

    /// The hashes of ranges: a proof.
    pub fn proof(&self, ranges: &[Range]) -> Option<Vec<Hash>> {
        ranges.iter().map(|range| self.range(*range)).collect()
    }

    /// The peaks of the tree, of which its root is made; none when a tile of its edge is not there.
    pub fn peaks(&self) -> Option<Peaks> {
        let nodes = Range { from: 0, to: self.size }.nodes();
        let hashes: Option<Vec<_>> = nodes.into_iter().map(|(level, index)| self.node(level, index)).collect();
        Peaks::new(self.size, hashes?)
    }
}

/// One level of the edge: the tile that is not full yet.
#[derive(Debug, Clone, Default)]
struct Level {
    hashes: Vec<Hash>,
    /// The width in which it was last handed out.
    taken: usize,
}

/// The right edge of a growing tree: what has been added since tiles were last taken, and the tiles that are not full yet.
#[derive(Debug, Clone, Default)]
pub struct TreeEdge {
    size: u64,
    levels: Vec<Level>,
    bundle: Vec<u8>,
    bundle_taken: usize,
    full: Vec<(String, Bytes)>,
    outgrown: Vec<String>,
    grown: Vec<Hash>,
}

impl TreeEdge {
    /// The edge of a tree that is on the store, out of the tiles of [`TreeEdge::tiles_of`].
    ///
    /// # Errors
    /// [`AuditError::Malformed`] when one is missing or not of its length.
    pub fn restore(size: u64, tiles: &HashMap<TileId, Bytes>) -> Result<Self, AuditError> {
        let mut edge = Self { size, ..Self::default() };
        let find = |id: TileId| {
            let found = tiles.get(&id).filter(|bytes| bytes.len() == id.bytes());
            found.ok_or_else(|| AuditError::Malformed(format!("tile/{id} is missing or not of its length")))
        };
        for level in 0..8 {
            let count = size >> (HEIGHT * u32::from(level));
            if count == 0 {
                break;
            }
            let width = usize::try_from(count % WIDTH as u64).unwrap_or(0);
            let mut hashes = Vec::with_capacity(WIDTH);
            if let Some(id) = TileId::within(size, TileKind::Hashes(level), count / WIDTH as u64) {
                hashes.extend(self::hashes(id, find(id)?)?);
            }
            edge.levels.push(Level { hashes, taken: width });
        }
        if let Some(id) = TileId::within(size, TileKind::Entries, size / WIDTH as u64) {
            edge.bundle.extend_from_slice(find(id)?);
            edge.bundle_taken = usize::from(id.width);
        }
        Ok(edge)
    }

    /// The tiles that [`TreeEdge::restore`] needs.
    pub fn tiles_of(size: u64) -> Vec<TileId> {
        let hashes = (0..8).filter_map(|level| {
            let count = size >> (HEIGHT * u32::from(level));
            TileId::within(size, TileKind::Hashes(level), count / WIDTH as u64)
        });
        hashes.chain(TileId::within(size, TileKind::Entries, size / WIDTH as u64)).collect()
    }

    /// How many leaves the tree has.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The hashes of the leaves added since [`TreeEdge::settle`].
    pub fn grown(&self) -> &[Hash] {
        &self.grown
    }

    /// Adds a leaf.
    pub fn push(&mut self, leaf: &Leaf) {
        let bytes = leaf.bytes();
        let mut hash = tree::leaf_hash(&bytes);
        self.grown.push(hash);
        let index = self.size / WIDTH as u64;
        self.bundle.extend_from_slice(&(Leaf::LENGTH as u16).to_be_bytes());
        self.bundle.extend_from_slice(&bytes);
        self.size += 1;
        if self.bundle.len() == WIDTH * BUNDLED {
            let id = TileId { kind: TileKind::Entries, index, width: WIDTH as u16 };
            let bundle = std::mem::take(&mut self.bundle);
            let taken = std::mem::take(&mut self.bundle_taken);
            self.fill(id, bundle, taken);
        }
        let mut place = index;
        for level in 0.. {
            if self.levels.len() <= level {
                self.levels.push(Level::default());
            }
            let Some(at) = self.levels.get_mut(level) else { break };
            at.hashes.push(hash);
            if at.hashes.len() < WIDTH {
                break;
            }
            let (hashes, taken) = (std::mem::take(&mut at.hashes), std::mem::take(&mut at.taken));
            let kind = TileKind::Hashes(u8::try_from(level).unwrap_or(u8::MAX));
            self.fill(TileId { kind, index: place, width: WIDTH as u16 }, concatenated(&hashes), taken);
            let Some(root) = tree::perfect_root(&hashes) else { break };
            hash = root;
            place /= WIDTH as u64;
        }
    }

    fn fill(&mut self, id: TileId, bytes: Vec<u8>, taken: usize) {
        self.full.push((id.to_string(), bytes.into()));
        if taken > 0 {
            self.outgrown.push(id.partial_folder());
        }
    }

    /// The root.
    pub fn root(&self) -> Hash {
        let mut peaks = Vec::new();
        for level in self.levels.iter().rev() {
            let mut rest = level.hashes.as_slice();
            while !rest.is_empty() {
                let (subtree, after) = rest.split_at(1 << rest.len().ilog2());
                peaks.extend(tree::perfect_root(subtree));
                rest = after;
            }
        }
        tree::join(&peaks).unwrap_or_else(tree::empty_root)
    }

    /// The tiles, by their path under `tile/`, that have become full since the last call, and those that are not full but
    /// have grown.
    pub fn take_tiles(&mut self) -> Vec<(String, Bytes)> {
        let mut tiles = std::mem::take(&mut self.full);
        let size = self.size;
        let mut partial = |kind, count: u64, taken: &mut usize, bytes: &dyn Fn() -> Vec<u8>| {
            let id = TileId::within(size, kind, count / WIDTH as u64);
            if let Some(id) = id.filter(|id| usize::from(id.width) != *taken) {
                tiles.push((id.to_string(), bytes().into()));
                *taken = usize::from(id.width);
            }
        };
        let bundle = &self.bundle;
        partial(TileKind::Entries, size, &mut self.bundle_taken, &|| bundle.clone());
        for (number, level) in (0_u8..).zip(&mut self.levels) {
            let hashes = &level.hashes;
            let count = size >> (HEIGHT * u32::from(number));
            partial(TileKind::Hashes(number), count, &mut level.taken, &|| concatenated(hashes));
        }
        tiles
    }

    /// The folders under `tile/` of partial tiles whose full one has been taken: they may go.
    pub fn take_outgrown(&mut self) -> Vec<String> {
        std::mem::take(&mut self.outgrown)
    }

    /// Notes that a head covers all that has been added.
    pub fn settle(&mut self) {
        self.grown.clear();
    }
}

fn concatenated(hashes: &[Hash]) -> Vec<u8> {
    hashes.iter().flat_map(|hash| hash.0).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use bytes::Bytes;
    use proptest::prelude::*;

    use super::{TileId, TileKind, Tiles, TreeEdge, leaves};
    use crate::audit::tree::{Peaks, Range, consistency, inclusion, leaf_hash, verify_consistency, verify_inclusion};
    use crate::audit::{Hash, Leaf};

    fn leaf(seq: u64) -> Leaf {
        Leaf { seq, prev_hash: Hash([1; 32]), entry_hash: Hash::of(&[&seq.to_be_bytes()]) }
    }

    #[test]
    fn names_are_those_of_tlog_tiles() {
        let id = |kind, index, width| TileId { kind, index, width }.to_string();
        assert_eq!(id(TileKind::Hashes(0), 0, 256), "0/000");
        assert_eq!(id(TileKind::Hashes(1), 1_234_067, 256), "1/x001/x234/067");
        assert_eq!(id(TileKind::Entries, 12_345, 17), "entries/x012/345.p/17");
        assert_eq!(id(TileKind::Entries, 123_456, 256), "entries/x123/456");
    }

    #[test]
    fn what_is_no_name_or_a_second_one_for_the_same_tile_is_refused() {
        for bad in [
            "",
            "0",
            "0/",
            "0/0",
            "0/0000",
            "0/x000/001",
            "9/000",
            "00/000",
            "0/000.p/0",
            "0/000.p/256",
            "0/001/002",
            "entries/../../x",
            "0/000.p/05",
            "-1/000",
            "0/x001/x002",
        ] {
            assert!(bad.parse::<TileId>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_name_can_be_read_back(index in any::<u64>(), level in 0_u8..8, width in 1_u16..=256, entries in any::<bool>()) {
            let kind = if entries { TileKind::Entries } else { TileKind::Hashes(level) };
            let id = TileId { kind, index, width };
            prop_assert_eq!(id.to_string().parse(), Ok(id));
        }

        /// Grown in arbitrary steps, with restarts from the store between them.
        #[test]
        fn the_tiles_on_the_store_give_root_proofs_and_leaves(steps in prop::collection::vec((1_u64..700, any::<bool>()), 1..5), at in any::<u64>()) {
            let mut store: HashMap<String, Bytes> = HashMap::new();
            let (mut edge, mut peaks) = (TreeEdge::default(), Peaks::default());
            let mut sizes = Vec::new();
            for (count, restart) in steps {
                for seq in edge.size()..edge.size() + count {
                    edge.push(&leaf(seq));
                    peaks.push(leaf_hash(&leaf(seq).bytes()));
                }
                prop_assert_eq!(edge.grown().len() as u64, count);
                store.extend(edge.take_tiles());
                for folder in edge.take_outgrown() {
                    store.retain(|path, _| !path.starts_with(&format!("{folder}/")));
                }
                edge.settle();
                prop_assert_eq!(edge.root(), peaks.root());
                sizes.push((edge.size(), edge.root()));
                if restart {
                    let ids = TreeEdge::tiles_of(edge.size());
                    let tiles = ids.into_iter().map(|id| (id, store[&id.to_string()].clone())).collect();
                    edge = TreeEdge::restore(edge.size(), &tiles).unwrap();
                    prop_assert_eq!(edge.root(), peaks.root());
                }
            }
            let size = edge.size();
            let mut tiles = Tiles::new(size);
            let seq = at % size;
            let mut ranges = inclusion(seq, size);
            let old = sizes[0];
            ranges.extend(consistency(old.0, size));
            ranges.push(Range { from: 0, to: size });
            for id in tiles.needed(&ranges) {
                tiles.insert(id, &store[&id.to_string()]).unwrap();
            }
            prop_assert_eq!(tiles.peaks().unwrap(), peaks.clone());
            let proof = tiles.proof(&inclusion(seq, size)).unwrap();
            prop_assert!(verify_inclusion(seq, size, leaf_hash(&leaf(seq).bytes()), &proof, &peaks.root()));
            let proof = tiles.proof(&consistency(old.0, size)).unwrap();
            prop_assert!(verify_consistency(old.0, size, &old.1, &peaks.root(), &proof));
            let bundle = TileId::within(size, TileKind::Entries, seq / 256).unwrap();
            let found = leaves(bundle, &store[&bundle.to_string()]).unwrap();
            prop_assert_eq!(found[(seq % 256) as usize], leaf(seq));
        }
    }
}
