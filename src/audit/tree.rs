//! The Merkle tree of RFC 6962 over the entries' leaves: its hashes, and proofs that an entry is in it and that a later
//! tree has an earlier one for its beginning.
//!
//! A node of level `l` and index `i` is the root of the leaves from `i·2^l` up to `(i+1)·2^l`. A range of leaves that
//! is no such power of two has no node of its own; its hash is that of the nodes that it is made of, from the right.

use super::Hash;

/// The hash of a leaf's bytes (RFC 6962, section 2.1).
pub fn leaf_hash(leaf: &[u8]) -> Hash {
    Hash::of(&[&[0], leaf])
}

/// The hash of an inner node.
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    // In one piece, which the hasher takes faster than three.
    let mut bytes = [1; 65];
    bytes[1..33].copy_from_slice(&left.0);
    bytes[33..].copy_from_slice(&right.0);
    Hash::of(&[&bytes])
}

/// The root of a tree without leaves.
pub fn empty_root() -> Hash {
    Hash::of(&[])
}

/// The hash of neighbouring subtrees, the larger before the smaller: joined from the right. None of none.
pub fn join(subtrees: &[Hash]) -> Option<Hash> {
    subtrees.iter().rev().copied().reduce(|right, left| node_hash(&left, &right))
}

/// The root of a power of two of neighbouring nodes of one level.
pub fn perfect_root(nodes: &[Hash]) -> Option<Hash> {
    let mut level = nodes.to_vec();
    while level.len() > 1 {
        level = level.as_chunks::<2>().0.iter().map(|[left, right]| node_hash(left, right)).collect();
    }
    level.first().copied()
}

/// The roots of the perfect subtrees that a tree consists of, the largest first: all that is needed to let it grow.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Peaks {
    size: u64,
    hashes: Vec<Hash>,
}

impl Peaks {
    /// The peaks of a tree of `size` leaves; as many as `size` has bits set. None if they are not so many.
    pub fn new(size: u64, hashes: Vec<Hash>) -> Option<Self> {
        (hashes.len() == size.count_ones() as usize).then_some(Self { size, hashes })
    }

    /// How many leaves.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Adds a leaf by its hash.
    pub fn push(&mut self, leaf: Hash) {
        let mut hash = leaf;
        for _ in 0..self.size.trailing_ones() {
            if let Some(left) = self.hashes.pop() {
                hash = node_hash(&left, &hash);
            }
        }
        self.hashes.push(hash);
        self.size += 1;
    }

    /// The root.
    pub fn root(&self) -> Hash {
        join(&self.hashes).unwrap_or_else(empty_root)
    }
}

/// Leaves from `from` up to and without `to`, which begin where a power of two of at least their number does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Range {
    /// The first leaf.
    pub from: u64,
    /// The leaf after the last.
    pub to: u64,
}

impl Range {
    /// The nodes it is made of, `(level, index)`, from the left.
    pub fn nodes(self) -> Vec<(u32, u64)> {
        let (mut nodes, mut from) = (Vec::new(), self.from);
        while from < self.to {
            let level = (self.to - from).ilog2();
            nodes.push((level, from >> level));
            from += 1 << level;
        }
        nodes
    }
}

/// The greatest power of two below `size`, which is at least 2.
fn split(size: u64) -> u64 {
    1 << (size - 1).ilog2()
}

/// The ranges whose hashes prove that leaf `index` is in a tree of `size` leaves, from the leaf upwards (RFC 6962,
/// section 2.1.1). Empty if it is not.
pub fn inclusion(index: u64, size: u64) -> Vec<Range> {
    let (mut ranges, mut from, mut to) = (Vec::new(), 0, size);
    if index >= size {
        return ranges;
    }
    while to - from > 1 {
        let middle = from + split(to - from);
        if index < middle {
            ranges.push(Range { from: middle, to });
            to = middle;
        } else {
            ranges.push(Range { from, to: middle });
            from = middle;
        }
    }
    ranges.reverse();
    ranges
}

/// The ranges whose hashes prove that a tree of `new` leaves begins with one of `old` (RFC 6962, section 2.1.2). Empty
/// if there is nothing to prove.
pub fn consistency(old: u64, new: u64) -> Vec<Range> {
    let (mut ranges, mut from, mut to) = (Vec::new(), 0, new);
    if old == 0 || old >= new {
        return ranges;
    }
    while to != old {
        let middle = from + split(to - from);
        if old <= middle {
            ranges.push(Range { from: middle, to });
            to = middle;
        } else {
            ranges.push(Range { from, to: middle });
            from = middle;
        }
    }
    if from > 0 {
        ranges.push(Range { from, to });
    }
    ranges.reverse();
    ranges
}

/// Whether `proof` shows that the leaf of this hash is leaf `index` of the tree (RFC 9162, section 2.1.3.2).
pub fn verify_inclusion(index: u64, size: u64, leaf: Hash, proof: &[Hash], root: &Hash) -> bool {
    if index >= size {
        return false;
    }
    let (mut at, mut last, mut hash) = (index, size - 1, leaf);
    for sibling in proof {
        if last == 0 {
            return false;
        }
        if at & 1 == 1 || at == last {
            hash = node_hash(sibling, &hash);
            while at & 1 == 0 && at != 0 {
                (at, last) = (at >> 1, last >> 1);
            }
        } else {
            hash = node_hash(&hash, sibling);
        }
        (at, last) = (at >> 1, last >> 1);
    }
    last == 0 && hash == *root
}

/// Whether `proof` shows that the tree of `new` leaves and `new_root` begins with that of `old` and `old_root` (RFC
/// 9162, section 2.1.4.2).
pub fn verify_consistency(old: u64, new: u64, old_root: &Hash, new_root: &Hash, proof: &[Hash]) -> bool {
    if old == new {
        return proof.is_empty() && old_root == new_root;
    }
    if old == 0 {
        return proof.is_empty() && *old_root == empty_root();
    }
    if old > new {
        return false;
    }
    let (first, rest) = if old.is_power_of_two() {
        (*old_root, proof)
    } else {
        let Some((first, rest)) = proof.split_first() else { return false };
        (*first, rest)
    };
    let (mut at, mut last) = (old - 1, new - 1);
    while at & 1 == 1 {
        (at, last) = (at >> 1, last >> 1);
    }
    let (mut before, mut after) = (first, first);
    for hash in rest {
        if last == 0 {
            return false;
        }
        if at & 1 == 1 || at == last {
            before = node_hash(hash, &before);
            after = node_hash(hash, &after);
            while at & 1 == 0 && at != 0 {
                (at, last) = (at >> 1, last >> 1);
            }
        } else {
            after = node_hash(&after, hash);
        }
        (at, last) = (at >> 1, last >> 1);
    }
    last == 0 && before == *old_root && after == *new_root
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        Hash, Peaks, Range, consistency, empty_root, inclusion, join, leaf_hash, node_hash, perfect_root, split,
        verify_consistency, verify_inclusion,
    };

    fn leaves(count: u64) -> Vec<Hash> {
        (0..count).map(|n| leaf_hash(&n.to_be_bytes())).collect()
    }

    /// The definition of RFC 6962, section 2.1.
    fn root(leaves: &[Hash]) -> Hash {
        match leaves {
            [] => empty_root(),
            [one] => *one,
            more => {
                let (left, right) = more.split_at(usize::try_from(split(more.len() as u64)).unwrap());
                node_hash(&root(left), &root(right))
            }
        }
    }

    fn hashes(leaves: &[Hash], ranges: &[Range]) -> Vec<Hash> {
        let of = |range: &Range| {
            let nodes = range.nodes().into_iter().map(|(level, index)| {
                let (from, to) = ((index << level) as usize, ((index + 1) << level) as usize);
                perfect_root(&leaves[from..to]).unwrap()
            });
            join(&nodes.collect::<Vec<_>>()).unwrap()
        };
        ranges.iter().map(of).collect()
    }

    #[test]
    fn an_empty_tree_has_the_hash_of_nothing_for_its_root() {
        let nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Peaks::default().root().to_string(), nothing);
    }

    proptest! {
        #[test]
        fn a_tree_grown_leaf_by_leaf_has_the_root_of_the_definition(size in 0_u64..300) {
            let mut peaks = Peaks::default();
            leaves(size).into_iter().for_each(|leaf| peaks.push(leaf));
            prop_assert_eq!((peaks.root(), peaks.size()), (root(&leaves(size)), size));
        }

        #[test]
        fn a_proof_shows_its_leaf_at_its_place_and_no_other(size in 1_u64..300, at in any::<u64>(), wrong in any::<u64>()) {
            let (all, index) = (leaves(size), at % size);
            let proof = hashes(&all, &inclusion(index, size));
            let (leaf, root) = (all[index as usize], root(&all));
            prop_assert!(verify_inclusion(index, size, leaf, &proof, &root));
            let other = wrong % size;
            prop_assert_eq!(verify_inclusion(other, size, leaf, &proof, &root), other == index);
            prop_assert!(!verify_inclusion(index, size, leaf_hash(b"x"), &proof, &root));
            prop_assert!(!verify_inclusion(index, size, leaf, &[&proof[..], &[leaf]].concat(), &root));
            prop_assert!(!verify_inclusion(size, size, leaf, &proof, &root));
        }

        #[test]
        fn a_proof_shows_that_a_tree_begins_with_an_earlier_one(new in 1_u64..300, cut in any::<u64>()) {
            let (all, old) = (leaves(new), cut % (new + 1));
            let proof = hashes(&all, &consistency(old, new));
            let (before, after) = (root(&all[..old as usize]), root(&all));
            prop_assert!(verify_consistency(old, new, &before, &after, &proof));
            let another = root(&leaves(new + 1)[1..]);
            prop_assert!(!verify_consistency(old, new, &before, &another, &proof) || old == 0);
            if old > 0 {
                prop_assert!(!verify_consistency(old, new, &another, &after, &proof));
            }
        }
    }
}
