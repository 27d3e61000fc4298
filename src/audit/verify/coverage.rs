//! Which segments are to be read: those that cover the ledger without a gap and without an entry twice.
//!
//! A segment that lies wholly within a wider one is a leftover: a crash between the creation of the wider one and the
//! deletion of its parts. It is sound if it holds the same entries. Segments that overlap in any other way are not.
//!
//! A gap is removed entries if an entry `ledger.prune` says so, which is known at the end, see `removals`; until then
//! its leaves are taken from the tiles. A segment of entries that were removed, and which is there still or again, is a
//! leftover too.
//!
//! A ledger that is being written to changes while it is listed: segments are merged, and the parts go. So whatever
//! looks wrong is listed again; only what stays is.

use super::rows::path;
use super::source::Source;
use super::{Fault, Kind, VerifyError};
use crate::audit::segment::SegmentName;

/// How often a list that looks wrong is made again as long as it changes.
const TRIES: usize = 5;

/// The segments to read, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Coverage {
    /// Segments in order, none of them within another.
    pub(super) wide: Vec<SegmentName>,
    /// Leftovers.
    pub(super) within: Vec<SegmentName>,
}

impl Coverage {
    /// The segments that are there now, to be read from entry `from` on.
    pub(super) fn find(source: &dyn Source, from: u64) -> Result<Self, VerifyError> {
        let mut names = list(source)?;
        for _ in 0..TRIES {
            let found = Self::of(&names, from);
            if matches!(&found, Ok(coverage) if !coverage.has_gap(from)) {
                break;
            }
            let again = list(source)?;
            if again == names {
                break;
            }
            names = again;
        }
        Ok(Self::of(&names, from)?)
    }

    fn of(names: &[SegmentName], from: u64) -> Result<Self, Fault> {
        let (mut wide, mut within) = (Vec::<SegmentName>::new(), Vec::new());
        for name in names.iter().filter(|name| name.last >= from) {
            match wide.last() {
                Some(before) if before.holds(*name) => within.push(*name),
                Some(before) if before.last >= name.first => {
                    let why = format!("{} has it too", path(*before));
                    return Err(Fault { kind: Kind::Added, seq: Some(name.first), file: path(*name), why });
                }
                _ => wide.push(*name),
            }
        }
        Ok(Self { wide, within })
    }

    /// Whether entries are missing between segments. That the first ones are is no sign of a list that was made at a
    /// bad moment.
    fn has_gap(&self, from: u64) -> bool {
        let pairs = self.wide.iter().zip(self.wide.iter().skip(1));
        (from > 0 && self.wide.first().is_some_and(|name| name.first > from))
            || pairs.into_iter().any(|(one, next)| one.last + 1 != next.first)
    }
}

/// The names of all segments, in order of their first entries, the widest first.
pub(super) fn list(source: &dyn Source) -> Result<Vec<SegmentName>, VerifyError> {
    let parse = |name: String| {
        name.parse::<SegmentName>().ok().filter(|name| i64::try_from(name.last).is_ok()).ok_or_else(|| {
            let why = "it is not named as a segment: <first>-<last>.parquet, both in 20 digits".to_owned();
            Fault { kind: Kind::Added, seq: None, file: format!("segments/{name}"), why }
        })
    };
    let mut names = source.list("segments")?.into_iter().map(parse).collect::<Result<Vec<_>, _>>()?;
    names.sort_unstable_by_key(|name| (name.first, u64::MAX - name.last));
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::{Coverage, SegmentName};

    type Ranges = Vec<(u64, u64)>;

    fn of(names: &[(u64, u64)]) -> Result<(Ranges, Ranges), u64> {
        let mut names: Vec<_> = names.iter().map(|(first, last)| SegmentName { first: *first, last: *last }).collect();
        names.sort_unstable_by_key(|name| (name.first, u64::MAX - name.last));
        let plain = |names: Vec<SegmentName>| names.iter().map(|name| (name.first, name.last)).collect();
        let found = Coverage::of(&names, 0).map_err(|fault| fault.seq.unwrap())?;
        Ok((plain(found.wide), plain(found.within)))
    }

    #[test]
    fn parts_of_a_merged_segment_are_leftovers() {
        assert_eq!(of(&[(4, 9), (0, 3), (0, 9), (10, 12)]), Ok((vec![(0, 9), (10, 12)], vec![(0, 3), (4, 9)])));
        assert_eq!(of(&[(0, 9), (3, 5), (3, 4), (5, 5)]), Ok((vec![(0, 9)], vec![(3, 5), (3, 4), (5, 5)])));
    }

    #[test]
    fn any_other_overlap_is_a_fault() {
        assert_eq!(of(&[(0, 5), (5, 9)]), Err(5));
        assert_eq!(of(&[(0, 5), (3, 9)]), Err(3));
    }
}
