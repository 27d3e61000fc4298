//! Holes in the emitters' own counters: what an emitter counted and the ledger never got. That is no fault of the
//! ledger, whose own numbers have no holes, so it is reported and nothing more.

use std::collections::{BTreeMap, HashMap};

use super::rows::Emitted;

/// The most runs of numbers that are kept, over all instances, so that memory is bounded: more, and holes are only
/// known to be there up to that point.
const MOST_RUNS: usize = 1 << 20;

/// Numbers that one instance counted and that are not in the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holes {
    /// The emitter.
    pub instance: String,
    /// How many numbers are missing, between the least and the greatest that are there.
    pub missing: u64,
    /// The first of them, and the last of those in a row with it.
    pub first: (i64, i64),
}

/// The numbers seen, an instance.
#[derive(Debug, Default)]
pub(super) struct Emitters {
    /// Runs by their first number, to their last.
    runs: HashMap<String, BTreeMap<i64, i64>>,
    count: usize,
    overflowed: bool,
}

impl Emitters {
    /// Notes numbers. Instances' entries come in nearly in order, so most runs only grow.
    pub(super) fn note(&mut self, emitted: Emitted) {
        let Emitted { instance, mut first, mut last } = emitted;
        let runs = self.runs.entry(instance).or_default();
        if let Some((begin, end)) = runs.range_mut(..=first).next_back() {
            if *end >= last {
                return;
            }
            if *end >= first.saturating_sub(1) {
                first = *begin;
            }
        }
        while let Some((begin, end)) = runs.range(first..=last.saturating_add(1)).next().map(|(b, e)| (*b, *e)) {
            runs.remove(&begin);
            self.count -= 1;
            last = last.max(end);
        }
        if self.count < MOST_RUNS {
            runs.insert(first, last);
            self.count += 1;
        } else {
            self.overflowed = true;
        }
    }

    /// The holes, by instance; and whether there were too many to know them all.
    pub(super) fn holes(&self) -> (Vec<Holes>, bool) {
        let of = |(instance, runs): (&String, &BTreeMap<i64, i64>)| {
            let gaps = runs.iter().zip(runs.iter().skip(1)).map(|((_, end), (begin, _))| (end + 1, begin - 1));
            let missing =
                gaps.clone().map(|(from, to)| to.abs_diff(from).saturating_add(1)).fold(0, u64::saturating_add);
            Some(Holes { instance: instance.clone(), missing, first: gaps.clone().next()? })
        };
        let mut holes: Vec<_> = self.runs.iter().filter_map(of).collect();
        holes.sort_by(|a, b| a.instance.cmp(&b.instance));
        (holes, self.overflowed)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::{Emitted, Emitters};

    proptest! {
        #[test]
        fn what_is_between_the_least_and_the_greatest_and_was_not_seen_is_missing(
            runs in prop::collection::vec((0_i64..200, 0_i64..20), 0..30),
        ) {
            let (mut emitters, mut seen) = (Emitters::default(), BTreeSet::new());
            for (first, length) in runs {
                emitters.note(Emitted { instance: "gw-1".to_owned(), first, last: first + length });
                seen.extend(first..=first + length);
            }
            let range = seen.first().zip(seen.last());
            let missing: Vec<i64> = range.into_iter().flat_map(|(a, b)| *a..=*b).filter(|n| !seen.contains(n)).collect();
            let (holes, _) = emitters.holes();
            prop_assert_eq!(holes.first().map_or(0, |holes| holes.missing), missing.len() as u64);
            prop_assert_eq!(holes.first().map(|holes| holes.first.0), missing.first().copied());
        }
    }

    #[test]
    fn instances_count_apart() {
        let mut emitters = Emitters::default();
        for (instance, first, last) in [("a", 0, 4), ("b", 7, 7), ("a", 9, 9), ("b", i64::MIN, i64::MIN)] {
            emitters.note(Emitted { instance: instance.to_owned(), first, last });
        }
        let (holes, overflowed) = emitters.holes();
        assert_eq!((holes.len(), holes[0].missing, holes[0].first, overflowed), (2, 4, (5, 8), false));
        assert_eq!(holes[1].first, (i64::MIN + 1, 6));
    }
}
