//! The growing side of the tree: leaves come in, tiles come out.
//!
//! Of a tree of any size only the tiles that are not full yet are in memory, one a level and the bundle. They are what
//! a node reads to go on after a restart ([`TreeEdge::restore`]). A partial tile is written again each time that it has
//! grown; once the full one is there, the folder of the partial ones may go.

use std::collections::HashMap;

use bytes::Bytes;

use super::{BUNDLED, HEIGHT, TileId, TileKind, WIDTH};
use crate::audit::tree;
use crate::audit::{AuditError, Hash, Leaf};

/// One level of the edge: the tile that is not full yet.
#[derive(Debug, Clone, Default)]
struct Level {
    hashes: Vec<Hash>,
    /// The width in which it was last handed out.
    taken: usize,
}

/// The right edge of a growing tree: what has been added since tiles were last taken, and the tiles that are not full
/// yet.
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
                hashes.extend(super::hashes(id, find(id)?)?);
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

    /// The tiles, by their path under `tile/`, that have become full since the last call, and those that are not full
    /// but have grown.
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

    /// Notes that a checkpoint covers all that has been added.
    pub fn settle(&mut self) {
        self.grown.clear();
    }
}

fn concatenated(hashes: &[Hash]) -> Vec<u8> {
    hashes.iter().flat_map(|hash| hash.0).collect()
}
