//! Hashes and proofs out of tiles that have been read: which are needed, and what they give.
//!
//! Nothing here is trusted: a tile that was changed gives another root, and a proof that does not hold.

use std::collections::{BTreeSet, HashMap};

use super::{HEIGHT, TileId, TileKind, WIDTH, hashes};
use crate::audit::tree::{self, Peaks, Range};
use crate::audit::{AuditError, Hash};

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
