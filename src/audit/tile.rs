//! The tree on the store: tiles, as C2SP tlog-tiles lays them out (<https://c2sp.org/tlog-tiles>), under
//! `orgs/<org>/audit/tile/`.
//!
//! A hash tile of level `L` holds up to 256 hashes of the tree's level `8·L`, `tile/<L>/<N>`. An entry bundle holds up
//! to 256 leaves, each after its length as a big-endian u16, `tile/entries/<N>`. `<N>` is written in groups of three
//! digits, all but the last after an `x`: `x001/x234/067`. One that is not full yet ends in `.p/<width>`; it goes when
//! the full one is there.
//!
//! | module | holds |
//! |---|---|
//! | `id` | the names |
//! | `edge` | the tree's growing edge, which gives the tiles that are to be written |
//! | `tiles` | tiles that were read, which give roots and proofs |
//!
//! A tile of one width never changes, so two nodes that write it write the same bytes, and a crash between two tiles is
//! made good by writing all of them again.

mod edge;
mod id;
mod tiles;

pub use edge::TreeEdge;
pub use id::{NoTile, TileId, TileKind};
pub use tiles::Tiles;

use super::{AuditError, Hash, Leaf};

/// Hashes in a full tile, leaves in a full bundle.
pub const WIDTH: usize = 256;
/// Levels of the tree that a tile spans.
const HEIGHT: u32 = 8;
/// The length of a hash in bytes.
const HASH: usize = 32;
/// The length of a leaf in a bundle in bytes.
const BUNDLED: usize = 2 + Leaf::LENGTH;

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
/// [`AuditError::Malformed`] when it is not a tile.
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

    proptest! {
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
