//! The counts of a histogram's buckets, in as little memory as they need.
//!
//! Three forms, each grown into from the one before and never left again:
//!
//! - *sparse*: a sorted list of up to [`SPARSE_MAX`] buckets with their counts, 8 bytes each. Most histograms of a query
//!   with many groups, and of a rarely called tool, stay so.
//! - *narrow*: one `u32` for each bucket between the lowest and the highest seen. A tool whose calls take from 5 ms to 5 s
//!   takes 2.5 KB.
//! - *wide*: the same with `u64`, once all buckets together have counted more than `u32::MAX`. Checking the total spares a
//!   check for overflow in every bucket.
//!
//! The zero bucket is counted apart. The scale has 4,352 others, so no histogram takes more than 34 KiB. The total saturates at `u64::MAX`: what would
//! exceed it is not counted, and no bucket can overflow.

use std::mem::size_of;
use std::ops::AddAssign;

use super::scale::ZERO_BUCKET;

/// The most buckets that the sparse form holds.
const SPARSE_MAX: usize = 64;

/// A dense window grows to a multiple of this many buckets, so that it seldom grows.
const GROWTH: i16 = 16;

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
    Narrow(Window<u32>),
    Wide(Window<u64>),
}

impl Default for Form {
    fn default() -> Self {
        Self::Sparse(Vec::new())
    }
}

/// A dense run of counts from bucket `first` on.
#[derive(Debug, Clone)]
struct Window<T> {
    first: i16,
    counts: Vec<T>,
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
        match &self.form {
            Form::Sparse(entries) => entries.capacity() * size_of::<(i16, u32)>(),
            Form::Narrow(window) => window.counts.capacity() * size_of::<u32>(),
            Form::Wide(window) => window.counts.capacity() * size_of::<u64>(),
        }
    }

    /// Forgets all counts and keeps the memory of the narrower forms.
    pub(super) fn clear(&mut self) {
        (self.zero, self.total) = (0, 0);
        match &mut self.form {
            Form::Sparse(entries) => entries.clear(),
            Form::Narrow(window) => window.counts.clear(),
            Form::Wide(_) => self.form = Form::default(),
        }
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
        match &mut self.form {
            // The total fits a `u32` in the two narrower forms, and with it every count.
            Form::Sparse(entries) => match entries.binary_search_by_key(&index, |&(at, _)| at) {
                Ok(found) => {
                    if let Some((_, count)) = entries.get_mut(found) {
                        *count += n as u32;
                    }
                }
                Err(place) if entries.len() < SPARSE_MAX => entries.insert(place, (index, n as u32)),
                Err(_) => {
                    let mut window = Window::of(entries);
                    window.add(index, n as u32);
                    self.form = Form::Narrow(window);
                }
            },
            Form::Narrow(window) => window.add(index, n as u32),
            Form::Wide(window) => window.add(index, n),
        }
    }

    /// Counts all that `other` has counted.
    pub(super) fn merge(&mut self, other: &Self) {
        if let Some(total) = self.total.checked_add(other.total) {
            self.make_room_for(other.total);
            let merged = match (&mut self.form, &other.form) {
                (Form::Wide(ours), Form::Wide(theirs)) => ours.merge(theirs),
                (Form::Wide(ours), Form::Narrow(theirs)) => ours.merge(theirs),
                (Form::Narrow(ours), Form::Narrow(theirs)) => ours.merge(theirs),
                (Form::Sparse(entries), Form::Narrow(theirs)) => {
                    let mut window = Window::of(entries);
                    window.merge(theirs);
                    self.form = Form::Narrow(window);
                    true
                }
                _ => false,
            };
            if merged {
                self.zero += other.zero;
                self.total = total;
                return;
            }
        }
        self.add(ZERO_BUCKET, other.zero);
        other.iter().for_each(|(index, n)| self.add(index, n));
    }

    /// The buckets above zero that have counted anything, ascending.
    pub(super) fn iter(&self) -> impl Iterator<Item = (i16, u64)> {
        let (sparse, first, narrow, wide): (&[(i16, u32)], i16, &[u32], &[u64]) = match &self.form {
            Form::Sparse(entries) => (entries, 0, &[], &[]),
            Form::Narrow(window) => (&[], window.first, &window.counts, &[]),
            Form::Wide(window) => (&[], window.first, &[], &window.counts),
        };
        let counts = narrow.iter().map(|&n| u64::from(n)).chain(wide.iter().copied());
        let dense = counts.zip(first..).map(|(n, index)| (index, n)).filter(|&(_, n)| n > 0);
        sparse.iter().map(|&(index, n)| (index, u64::from(n))).chain(dense)
    }

    /// All counts of the buckets from `from` to before `to`.
    pub(super) fn count_between(&self, from: i16, to: i16) -> u64 {
        match &self.form {
            Form::Sparse(entries) => {
                entries.iter().filter(|&&(index, _)| from <= index && index < to).map(|&(_, n)| u64::from(n)).sum()
            }
            Form::Narrow(window) => window.between(from, to).iter().map(|&n| u64::from(n)).sum(),
            Form::Wide(window) => window.between(from, to).iter().sum(),
        }
    }

    /// The bucket of the `rank`-th smallest of what was counted, from 1 to the total; none when nothing was.
    pub(super) fn at_rank(&self, rank: u64) -> Option<i16> {
        if rank <= self.zero {
            return (self.zero > 0).then_some(ZERO_BUCKET);
        }
        let rank = rank.min(self.total) - self.zero;
        match &self.form {
            Form::Sparse(entries) => {
                let mut seen = 0;
                entries.iter().find_map(|&(index, n)| {
                    seen += u64::from(n);
                    (seen >= rank).then_some(index)
                })
            }
            Form::Narrow(window) => window.at_rank(rank),
            Form::Wide(window) => window.at_rank(rank),
        }
    }

    /// Takes the wide form when the total with `n` more no longer fits the narrower ones.
    fn make_room_for(&mut self, n: u64) {
        if self.total.saturating_add(n) <= u64::from(u32::MAX) {
            return;
        }
        let wide = match &self.form {
            Form::Sparse(entries) => Window::of(entries),
            Form::Narrow(window) => {
                Window { first: window.first, counts: window.counts.iter().map(|&n| n.into()).collect() }
            }
            Form::Wide(_) => return,
        };
        self.form = Form::Wide(wide);
    }
}

impl PartialEq for Buckets {
    fn eq(&self, other: &Self) -> bool {
        self.zero == other.zero && self.total == other.total && self.iter().eq(other.iter())
    }
}

impl<T: Copy + Default + AddAssign + From<u32> + Into<u64>> Window<T> {
    /// The dense form of sorted entries.
    fn of(entries: &[(i16, u32)]) -> Self {
        let mut window = Self { first: 0, counts: Vec::new() };
        if let (Some(&(lowest, _)), Some(&(highest, _))) = (entries.first(), entries.last()) {
            window.cover(lowest, highest);
            entries.iter().for_each(|&(index, n)| window.add(index, n.into()));
        }
        window
    }

    fn add(&mut self, index: i16, n: T) {
        let place = usize::try_from(i32::from(index) - i32::from(self.first)).ok();
        if let Some(count) = place.and_then(|place| self.counts.get_mut(place)) {
            *count += n;
        } else {
            self.cover(index, index);
            if let Some(count) = self.counts.get_mut((index - self.first) as usize) {
                *count += n;
            }
        }
    }

    /// Adds every count of `other`; `true`, for it always can.
    fn merge<U: Copy + Into<T> + Into<u64>>(&mut self, other: &Window<U>) -> bool {
        if !other.counts.is_empty() {
            self.cover(other.first, other.last());
            let ours = self.counts.iter_mut().skip((other.first - self.first) as usize);
            ours.zip(&other.counts).for_each(|(ours, &theirs)| *ours += theirs.into());
        }
        true
    }

    /// Grows so that the buckets from `low` to `high` lie within.
    fn cover(&mut self, low: i16, high: i16) {
        let (low, high) =
            if self.counts.is_empty() { (low, high) } else { (low.min(self.first), high.max(self.last())) };
        let first = low.div_euclid(GROWTH) * GROWTH;
        let len = (((high - first) / GROWTH + 1) * GROWTH) as usize;
        if self.counts.is_empty() {
            self.first = first;
        }
        if first < self.first {
            let mut counts = Vec::with_capacity(len);
            counts.resize((self.first - first) as usize, T::default());
            counts.append(&mut self.counts);
            (self.first, self.counts) = (first, counts);
        }
        if len > self.counts.len() {
            self.counts.reserve_exact(len - self.counts.len());
            self.counts.resize(len, T::default());
        }
    }
}

impl<T: Copy + Into<u64>> Window<T> {
    /// The last bucket, when there is any.
    fn last(&self) -> i16 {
        self.first + self.counts.len() as i16 - 1
    }

    /// The counts of the buckets from `from` to before `to`.
    fn between(&self, from: i16, to: i16) -> &[T] {
        let place =
            |index: i16| usize::try_from(i32::from(index) - i32::from(self.first)).unwrap_or(0).min(self.counts.len());
        self.counts.get(place(from)..place(to)).unwrap_or_default()
    }

    /// The bucket of the `rank`-th count, from 1 on. Runs of buckets are added up and passed over whole: the compiler adds
    /// those in parallel.
    fn at_rank(&self, rank: u64) -> Option<i16> {
        let mut seen = 0;
        for (first, run) in (self.first..).step_by(GROWTH as usize).zip(self.counts.chunks(GROWTH as usize)) {
            let in_run: u64 = run.iter().map(|&n| n.into()).sum();
            if seen + in_run >= rank {
                return (first..).zip(run).find_map(|(index, &n)| {
                    seen += n.into();
                    (seen >= rank).then_some(index)
                });
            }
            seen += in_run;
        }
        None
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

    /// Few buckets or many, small counts or such that need the wide form.
    fn counts() -> impl Strategy<Value = Vec<(i16, u64)>> {
        let index = prop_oneof![20 => -20..20i16, 20 => -1920..=2431i16, 1 => Just(ZERO_BUCKET)];
        let n = prop_oneof![9 => 0..5u64, 1 => 0..1u64 << 33];
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
        assert!(buckets.heap_bytes() <= 34 * 1024, "{}", buckets.heap_bytes());
    }
}
