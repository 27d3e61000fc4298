//! The counts of a histogram's buckets, in as little memory as they need.
//!
//! - *Sparse*: a sorted list of up to [`SPARSE_MAX`] buckets with their counts, 8 bytes each. Most histograms of a
//!   query with many groups, and of a rarely called tool, stay so.
//! - *Dense*: one count for each bucket between the lowest and the highest seen, in 16, 32 or 64 bits. The width is
//!   chosen by the total of all counts, which no count exceeds: checking the total spares a check for overflow in every
//!   bucket. A tool whose 60,000 calls take from 5 ms to 5 s takes 1.3 KB. The sum of every 16 counts is kept beside
//!   them: a quantile and the classic buckets of a scrape read these, a sixteenth of the memory, which is what a
//!   scrape's time goes into.
//!
//! A form only ever grows into the next. The zero bucket is counted apart. The scale has 4,352 others, so no histogram
//! takes more than 37 KiB. The total saturates at `u64::MAX`: what would exceed it is not counted.

use super::scale::ZERO_BUCKET;
use super::window::Window;

/// The most buckets that the sparse form holds.
const SPARSE_MAX: usize = 64;

/// Counts by bucket index.
#[derive(Debug, Clone, Default)]
pub(super) struct Buckets {
    form: Form,
    zero: u64,
    /// All counts together, that of the zero bucket too.
    total: u64,
}

#[derive(Debug, Clone)]
enum Form {
    Sparse(Vec<(i16, u32)>),
    Dense16(Window<u16>),
    Dense32(Window<u32>),
    Dense64(Window<u64>),
}

impl Default for Form {
    fn default() -> Self {
        Self::Sparse(Vec::new())
    }
}

/// What to do with the window of a dense form, whatever its width, and with the entries of the sparse one.
macro_rules! in_form {
    ($form:expr, $window:ident => $dense:expr, $entries:ident => $sparse:expr) => {
        match $form {
            Form::Sparse($entries) => $sparse,
            Form::Dense16($window) => $dense,
            Form::Dense32($window) => $dense,
            Form::Dense64($window) => $dense,
        }
    };
}

impl Buckets {
    /// All counts together.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// The count of the zero bucket.
    pub(super) fn zero(&self) -> u64 {
        self.zero
    }

    /// Memory on the heap, in bytes.
    pub(super) fn heap_bytes(&self) -> usize {
        in_form!(&self.form,
            window => window.heap_bytes(),
            entries => entries.capacity() * size_of::<(i16, u32)>())
    }

    /// Forgets all counts and keeps the memory.
    pub(super) fn clear(&mut self) {
        (self.zero, self.total) = (0, 0);
        in_form!(&mut self.form, window => window.clear(), entries => entries.clear());
    }

    /// Counts `n` more in a bucket.
    pub(super) fn add(&mut self, index: i16, n: u64) {
        let n = n.min(u64::MAX - self.total);
        if n == 0 {
            return;
        }
        self.make_room_for(n);
        self.total += n;
        if index == ZERO_BUCKET {
            self.zero += n;
            return;
        }
        in_form!(&mut self.form,
        window => window.add(index, n),
        entries => match entries.binary_search_by_key(&index, |&(at, _)| at) {
            Ok(found) => {
                if let Some((_, count)) = entries.get_mut(found) {
                    // The total fits 32 bits as long as the form is sparse.
                    *count += n as u32;
                }
            }
            Err(place) => {
                entries.insert(place, (index, n as u32));
                if entries.len() > SPARSE_MAX {
                    self.form = Form::dense(entries, self.total);
                }
            }
        });
    }

    /// Counts one more in each of some buckets.
    pub(super) fn add_each(&mut self, indices: &[i16]) {
        let n = indices.len() as u64;
        self.make_room_for(n);
        let (false, Some(total)) = (matches!(self.form, Form::Sparse(_)), self.total.checked_add(n)) else {
            indices.iter().for_each(|&index| self.add(index, 1));
            return;
        };
        self.total = total;
        self.zero += in_form!(&mut self.form, window => window.add_each(indices), _entries => 0);
    }

    /// Counts all that `other` has counted.
    pub(super) fn merge(&mut self, other: &Self) {
        if let Some(total) = self.total.checked_add(other.total) {
            self.make_room_for(other.total);
            if let (Form::Sparse(entries), false) = (&self.form, matches!(other.form, Form::Sparse(_))) {
                self.form = Form::dense(entries, total);
            }
            let merged = match (&mut self.form, &other.form) {
                (Form::Dense16(ours), Form::Dense16(theirs)) => ours.merge(theirs),
                (Form::Dense32(ours), Form::Dense16(theirs)) => ours.merge(theirs),
                (Form::Dense32(ours), Form::Dense32(theirs)) => ours.merge(theirs),
                (Form::Dense64(ours), Form::Dense16(theirs)) => ours.merge(theirs),
                (Form::Dense64(ours), Form::Dense32(theirs)) => ours.merge(theirs),
                (Form::Dense64(ours), Form::Dense64(theirs)) => ours.merge(theirs),
                _ => false,
            };
            if merged {
                self.zero += other.zero;
                self.total = total;
                return;
            }
        }
        self.add(ZERO_BUCKET, other.zero);
        other.for_each(|index, n| self.add(index, n));
    }

    /// The buckets above zero that have counted anything, ascending.
    pub(super) fn iter(&self) -> Box<dyn Iterator<Item = (i16, u64)> + '_> {
        in_form!(&self.form,
            window => Box::new(window.iter()),
            entries => Box::new(entries.iter().map(|&(index, n)| (index, n.into()))))
    }

    /// Calls `f` with each bucket above zero that has counted anything, ascending. Faster than [`Buckets::iter`].
    pub(super) fn for_each(&self, mut f: impl FnMut(i16, u64)) {
        in_form!(&self.form,
            window => window.for_each(f),
            entries => entries.iter().for_each(|&(index, n)| f(index, n.into())));
    }

    /// All counts of the buckets from `from` to before `to`.
    pub(super) fn count_between(&self, from: i16, to: i16) -> u64 {
        in_form!(&self.form,
        window => window.count_between(from, to),
        entries => {
            let within = entries.iter().filter(|&&(index, _)| from <= index && index < to);
            within.map(|&(_, n)| u64::from(n)).sum()
        })
    }

    /// The bucket of the `rank`-th smallest of what was counted, from 1 to the total; none when nothing was.
    pub(super) fn at_rank(&self, rank: u64) -> Option<i16> {
        if rank <= self.zero {
            return (self.zero > 0).then_some(ZERO_BUCKET);
        }
        let rank = rank.min(self.total) - self.zero;
        in_form!(&self.form,
        window => window.at_rank(rank),
        entries => {
            let mut seen = 0;
            entries.iter().find_map(|&(index, n)| {
                seen += u64::from(n);
                (seen >= rank).then_some(index)
            })
        })
    }

    /// Takes a wider form when the total with `n` more no longer fits the counts of this one.
    fn make_room_for(&mut self, n: u64) {
        const MAX_16: u64 = u16::MAX as u64;
        const MAX_32: u64 = u32::MAX as u64;
        let total = self.total.saturating_add(n);
        self.form = match &self.form {
            Form::Sparse(entries) if total > MAX_32 => Form::dense(entries, total),
            Form::Dense16(window) if total > MAX_32 => Form::Dense64(window.widened()),
            Form::Dense32(window) if total > MAX_32 => Form::Dense64(window.widened()),
            Form::Dense16(window) if total > MAX_16 => Form::Dense32(window.widened()),
            _ => return,
        };
    }
}

impl PartialEq for Buckets {
    fn eq(&self, other: &Self) -> bool {
        self.zero == other.zero && self.total == other.total && self.iter().eq(other.iter())
    }
}

impl Form {
    /// The dense form of sorted entries, as wide as the total asks for.
    fn dense(entries: &[(i16, u32)], total: u64) -> Self {
        if total <= u16::MAX.into() {
            Self::Dense16(Window::of(entries))
        } else if total <= u32::MAX.into() {
            Self::Dense32(Window::of(entries))
        } else {
            Self::Dense64(Window::of(entries))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn filled(counts: &[(i16, u64)]) -> Buckets {
        let mut buckets = Buckets::default();
        counts.iter().for_each(|&(index, n)| buckets.add(index, n));
        buckets
    }

    fn model(counts: &[(i16, u64)]) -> Vec<(i16, u64)> {
        let mut model = BTreeMap::new();
        counts.iter().filter(|&&(_, n)| n > 0).for_each(|&(index, n)| *model.entry(index).or_default() += n);
        model.into_iter().collect()
    }

    /// Few buckets or many, small counts or such that need a wider form.
    fn counts() -> impl Strategy<Value = Vec<(i16, u64)>> {
        let index = prop_oneof![20 => -20..20i16, 20 => -1920..=2431i16, 1 => Just(ZERO_BUCKET)];
        let n = prop_oneof![18 => 0..5u64, 1 => 0..1u64 << 17, 1 => 0..1u64 << 33];
        prop::collection::vec((index, n), 0..200)
    }

    proptest! {
        #[test]
        fn every_form_counts_as_a_map_does(counts in counts()) {
            let buckets = filled(&counts);
            let model = model(&counts);
            let zero = Some((ZERO_BUCKET, buckets.zero())).filter(|&(_, n)| n > 0);
            prop_assert_eq!(zero.into_iter().chain(buckets.iter()).collect::<Vec<_>>(), model.clone());
            prop_assert_eq!(buckets.total(), model.iter().map(|&(_, n)| n).sum::<u64>());
        }

        #[test]
        fn merging_is_adding_one_by_one(left in counts(), right in counts()) {
            let mut merged = filled(&left);
            merged.merge(&filled(&right));
            prop_assert_eq!(merged, filled(&[left, right].concat()));
        }

        #[test]
        fn adding_one_to_each_is_adding_them_one_by_one(
            before in counts(), each in prop::collection::vec(prop_oneof![Just(ZERO_BUCKET), -1920..=2431i16], 0..200),
        ) {
            let mut buckets = filled(&before);
            buckets.add_each(&each);
            let one_by_one = each.iter().map(|&index| (index, 1)).collect();
            prop_assert_eq!(buckets, filled(&[before, one_by_one].concat()));
        }

        #[test]
        fn a_cleared_histogram_counts_anew(before in counts(), after in counts()) {
            let mut reused = filled(&before);
            reused.clear();
            reused.merge(&filled(&after));
            prop_assert_eq!(reused, filled(&after));
        }

        #[test]
        fn a_rank_lies_in_the_bucket_that_counted_it(counts in counts(), place in 0.0..=1.0f64) {
            let buckets = filled(&counts);
            let rank = ((place * buckets.total() as f64) as u64).max(1);
            let mut seen = 0;
            let expected = model(&counts).into_iter().find(|&(_, n)| {
                seen += n;
                seen >= rank
            });
            prop_assert_eq!(buckets.at_rank(rank), expected.map(|(index, _)| index));
        }

        #[test]
        fn counts_between_two_buckets_are_those_from_the_first_to_before_the_second(
            counts in counts(), from in -2000..2500i16, to in -2000..2500i16,
        ) {
            let expected: u64 = model(&counts).iter().filter(|(index, _)| (from..to).contains(index)).map(|(_, n)| n).sum();
            prop_assert_eq!(filled(&counts).count_between(from, to), expected);
        }
    }

    #[test]
    fn the_total_saturates_and_no_bucket_overflows() {
        let mut buckets = filled(&[(1, u64::MAX - 1), (2, 5)]);
        buckets.merge(&filled(&[(2, 7), (3, u64::MAX)]));
        assert_eq!(buckets.total(), u64::MAX);
        assert_eq!(buckets.iter().collect::<Vec<_>>(), [(1, u64::MAX - 1), (2, 1)]);
    }

    #[test]
    fn memory_is_bounded_by_the_scale() {
        let mut buckets = Buckets::default();
        for index in -1920..=2431 {
            buckets.add(index, 1 << 32);
        }
        assert!(buckets.heap_bytes() <= 37 * 1024, "{}", buckets.heap_bytes());
    }
}
