//! The names of tiles, as C2SP tlog-tiles has them, and which tile is where in a tree of a size.
//!
//! A tile has one name and a name is read in one way only: whatever could be taken for a second spelling of it is
//! refused, so that no name reaches a file beside the tiles.

use std::fmt;
use std::str::FromStr;

use super::{BUNDLED, HASH, HEIGHT, WIDTH};

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
        // Any other spelling of the same name is rejected.
        if id.to_string() == path { Ok(id) } else { Err(NoTile) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{TileId, TileKind};

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
    }
}
