//! A dense run of buckets' counts, all of one width, and the sums of each 16 of them.
//!
//! Callers that add see to it that no count can overflow: see [`super::buckets`].

use std::ops::AddAssign;

use super::scale::{FIRST_BUCKET, LAST_BUCKET, ZERO_BUCKET};

/// A dense window is made of runs of this many buckets, and begins at a multiple of it.
const RUN: usize = 16;

/// The counts of all buckets from `first` on.
#[derive(Debug, Clone)]
pub(super) struct Window<T> {
    first: i16,
    counts: Vec<T>,
    /// The sum of each run of counts.
    sums: Vec<T>,
}

/// An unsigned integer that counts.
pub(super) trait Count: Copy + Default + AddAssign + Into<u64> {
    /// A count that is known to fit.
    fn of(n: u64) -> Self;
}

impl Count for u16 {
    fn of(n: u64) -> Self {
        n as Self
    }
}

impl Count for u32 {
    fn of(n: u64) -> Self {
        n as Self
    }
}

impl Count for u64 {
    fn of(n: u64) -> Self {
        n
    }
}

impl<T: Count> Window<T> {
    /// The counts of sorted entries, which fit.
    pub(super) fn of(entries: &[(i16, u32)]) -> Self {
        let mut window = Self { first: 0, counts: Vec::new(), sums: Vec::new() };
        if let (Some(&(lowest, _)), Some(&(highest, _))) = (entries.first(), entries.last()) {
            window.cover(lowest, highest);
            entries.iter().for_each(|&(index, n)| window.add(index, n.into()));
        }
        window
    }

    /// The same counts in more bits.
    pub(super) fn widened<U: Count>(&self) -> Window<U> {
        let widened = |counts: &[T]| counts.iter().map(|&n| U::of(n.into())).collect();
        Window { first: self.first, counts: widened(&self.counts), sums: widened(&self.sums) }
    }

    /// Memory on the heap, in bytes.
    pub(super) fn heap_bytes(&self) -> usize {
        (self.counts.capacity() + self.sums.capacity()) * size_of::<T>()
    }

    /// Forgets all counts and keeps the memory.
    pub(super) fn clear(&mut self) {
        self.counts.clear();
        self.sums.clear();
    }

    /// Counts `n` more in a bucket; the count fits.
    pub(super) fn add(&mut self, index: i16, n: u64) {
        let place = match self.place(index) {
            Some(place) if place < self.counts.len() => place,
            _ => {
                self.cover(index, index);
                self.place(index).unwrap_or_default()
            }
        };
        if let (Some(count), Some(sum)) = (self.counts.get_mut(place), self.sums.get_mut(place / RUN)) {
            *count += T::of(n);
            *sum += T::of(n);
        }
    }

    /// Adds one to each of some buckets, and says how many were the zero bucket, which is not among its counts.
    pub(super) fn add_each(&mut self, indices: &[i16]) -> u64 {
        let mut zero = 0;
        for &index in indices {
            if index == ZERO_BUCKET {
                zero += 1;
            } else {
                self.add(index, 1);
            }
        }
        zero
    }

    /// Adds every count of `other`; `true`, for it always can.
    pub(super) fn merge<U: Count + Into<T>>(&mut self, other: &Window<U>) -> bool {
        fn add<T: AddAssign, U: Copy + Into<T>>(ours: &mut [T], at: usize, theirs: &[U]) {
            ours.iter_mut().skip(at).zip(theirs).for_each(|(ours, &theirs)| *ours += theirs.into());
        }
        if !other.counts.is_empty() {
            self.cover(other.first, other.last());
            let at = (other.first - self.first) as usize;
            add(&mut self.counts, at, &other.counts);
            add(&mut self.sums, at / RUN, &other.sums);
        }
        true
    }

    /// Grows so that the buckets from `low` to `high` lie within; by a quarter at least, so that it seldom grows.
    fn cover(&mut self, low: i16, high: i16) {
        const LEN: i16 = RUN as i16;
        let (mut low, mut high) = (low, high);
        if self.counts.is_empty() {
            self.first = low.div_euclid(LEN) * LEN;
        } else {
            let quarter = (self.counts.len() / 4) as i16;
            if low < self.first {
                low = low.min((self.first - quarter).max(FIRST_BUCKET));
            }
            if high > self.last() {
                high = high.max((self.last() + quarter).min(LAST_BUCKET));
            }
            (low, high) = (low.min(self.first), high.max(self.last()));
        }
        let first = low.div_euclid(LEN) * LEN;
        let runs = (high - first) as usize / RUN + 1;
        if first < self.first || runs > self.sums.len() {
            let before = (self.first - first) as usize;
            grow(&mut self.counts, before, runs * RUN);
            grow(&mut self.sums, before / RUN, runs);
            self.first = first;
        }
    }

    /// Where the count of a bucket is, if not before all others.
    fn place(&self, index: i16) -> Option<usize> {
        usize::try_from(i32::from(index) - i32::from(self.first)).ok()
    }

    /// The last bucket, when there is any.
    fn last(&self) -> i16 {
        self.first + self.counts.len() as i16 - 1
    }

    /// The buckets that have counted anything, ascending.
    pub(super) fn iter(&self) -> impl Iterator<Item = (i16, u64)> {
        let counts = self.counts.iter().enumerate().map(|(place, &n)| (self.first + place as i16, n.into()));
        counts.filter(|&(_, n)| n > 0)
    }

    /// Calls `f` with each bucket that has counted anything, ascending. Which buckets of a run are empty is as good as
    /// random, and a wrongly guessed branch costs more than all else here; so a run's empty buckets are found without
    /// branches first.
    pub(super) fn for_each(&self, mut f: impl FnMut(i16, u64)) {
        let firsts = (self.first..).step_by(RUN);
        let runs = firsts.zip(self.counts.chunks(RUN)).zip(&self.sums).filter(|(_, sum)| (**sum).into() > 0);
        for ((first, run), _) in runs {
            let mut filled =
                run.iter().enumerate().fold(0u32, |filled, (place, &n)| filled | u32::from(n.into() > 0) << place);
            while filled > 0 {
                let place = filled.trailing_zeros() as usize;
                if let Some(&n) = run.get(place) {
                    f(first + place as i16, n.into());
                }
                filled &= filled - 1;
            }
        }
    }

    /// All counts of the buckets from `from` to before `to`.
    pub(super) fn count_between(&self, from: i16, to: i16) -> u64 {
        let place = |index: i16| self.place(index).unwrap_or(0).min(self.counts.len());
        let (from, to) = (place(from), place(to));
        let (first_run, end_run) = (from.div_ceil(RUN), to / RUN);
        if first_run >= end_run {
            return total(&self.counts, from, to);
        }
        let edges = total(&self.counts, from, first_run * RUN) + total(&self.counts, end_run * RUN, to);
        edges + total(&self.sums, first_run, end_run)
    }

    /// The bucket of the `rank`-th count, from 1 on. The run that holds it is found by the sums.
    pub(super) fn at_rank(&self, rank: u64) -> Option<i16> {
        let mut seen = 0;
        let run = self.sums.iter().position(|&sum| {
            let found = seen + sum.into() >= rank;
            if !found {
                seen += sum.into();
            }
            found
        })?;
        let mut places = (run * RUN..).zip(self.counts.iter().skip(run * RUN));
        places.find_map(|(place, &n)| {
            seen += n.into();
            (seen >= rank).then_some(self.first + place as i16)
        })
    }
}

/// Puts `before` zeros before some counts, and as many after them as make `len` in all.
fn grow<T: Count>(counts: &mut Vec<T>, before: usize, len: usize) {
    let mut grown = Vec::with_capacity(len);
    grown.resize(before, T::default());
    grown.append(counts);
    grown.resize(len, T::default());
    *counts = grown;
}

/// The sum of some counts, those from `from` to before `to`.
fn total<T: Count>(counts: &[T], from: usize, to: usize) -> u64 {
    counts.get(from..to).unwrap_or_default().iter().map(|&n| n.into()).sum()
}
