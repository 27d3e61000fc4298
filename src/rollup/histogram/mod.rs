//! The latency histogram: what every quantile of this program is read from.
//!
//! A base-2 exponential histogram of **scale 6** over **seconds**, which is at once OpenTelemetry's exponential
//! histogram of scale 6 and Prometheus' native histogram of schema 6, so that one column feeds the quantile gauges, the
//! native histograms and SQL. Merging adds buckets: an hour's histogram is exactly that of its flushes together, a
//! day's of its hours, a fleet's of its nodes. The scale is part of the encoded form, whose version is in
//! [`super::codec`].
//!
//! # What it holds
//!
//! - counts by bucket: bucket `i` holds the durations of more than γ^i and at most γ^(i+1) seconds, γ = 2^(1/64);
//! - the zero bucket: durations of at most 2^-30 s (0.93 ns), which is Prometheus' `zero_threshold`;
//! - the clamp: durations above 2^38 s (8,700 years) count as that long, in buckets and sum. The range is then 68
//!   octaves of 64 buckets, 4,352 in all, and a histogram's memory is bounded by 37 KiB;
//! - the exact least and greatest duration;
//! - the sum of durations, each rounded to a multiple of 2^-16 ms (15 ns). Whole multiples are added as 128-bit
//!   integers, so the sum is exact and the same in whatever order the samples came. As a double it is exact up to 2^37
//!   ms, and then the nearest double.
//!
//! # The error of a quantile is under 1 %
//!
//! [`Histogram::quantile`] is by nearest rank: of n durations in order, the quantile q is that of rank ⌈q·n⌉ (at least
//! 1). Counting up the buckets finds the bucket that the duration x of this rank lies in, without error, for which
//! bucket a duration falls into depends on the duration alone. So a < x ≤ b with b = γ·a. The answer is r = 2ab/(a+b),
//! the harmonic mean of the bounds. The error |r − x|/x is largest at an end of the bucket, since r/x falls as x grows:
//!
//! - at x = a: r/a − 1 = 2b/(a+b) − 1 = (b − a)/(a + b);
//! - at x = b: 1 − r/b = 1 − 2a/(a+b) = (b − a)/(a + b).
//!
//! Both are (γ − 1)/(γ + 1) = tanh(ln 2 / 128) < ln 2 / 128 < 0.005416. So **the error is under 0.542 %**, to which
//! rounding in doubles adds less than 10^-15. Taking r into [min, max] moves it towards x, which lies there, and never
//! past it. The first and the last rank are the least and the greatest duration, which are held exactly; so is a lone
//! duration. A duration in the zero bucket is read as 0, or as the least duration if that is greater: wrong by less
//! than 1 ns.

mod buckets;
mod scale;
mod window;

pub(crate) use scale::{
    FIRST_BUCKET, LAST_BUCKET, PER_OCTAVE, ZERO_BUCKET, bucket_of, sanitised, sum_units, upper_bound_seconds,
};
pub use scale::{SCALE, ZERO_THRESHOLD_SECONDS};

use buckets::Buckets;
use scale::{SUM_UNITS_PER_MS, midpoint_ms};

/// Durations by bucket, mergeable without loss; see the module.
#[derive(Debug, Clone)]
pub struct Histogram {
    buckets: Buckets,
    moments: Moments,
}

/// What is held of durations beside their buckets.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Moments {
    /// Sum in units of 2^-16 ms.
    pub(crate) sum: u128,
    /// The least, in milliseconds; infinite without samples.
    pub(crate) min: f64,
    /// The greatest, in milliseconds; negative infinity without samples.
    pub(crate) max: f64,
}

impl Default for Moments {
    fn default() -> Self {
        Self { sum: 0, min: f64::INFINITY, max: f64::NEG_INFINITY }
    }
}

impl Moments {
    /// Takes in `n` times a duration, which must be [`sanitised`].
    pub(crate) fn record(&mut self, duration_ms: f64, n: u64) {
        self.sum = self.sum.saturating_add(u128::from(sum_units(duration_ms)) * u128::from(n));
        self.min = self.min.min(duration_ms);
        self.max = self.max.max(duration_ms);
    }

    fn merge(&mut self, other: &Self) {
        self.sum = self.sum.saturating_add(other.sum);
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new()
    }
}

impl PartialEq for Histogram {
    fn eq(&self, other: &Self) -> bool {
        self.moments == other.moments && self.buckets == other.buckets
    }
}

impl Histogram {
    /// A histogram of nothing.
    pub fn new() -> Self {
        Self { buckets: Buckets::default(), moments: Moments::default() }
    }

    /// Counts a duration, in milliseconds. What is no duration (negative, NaN) counts as zero.
    pub fn record(&mut self, duration_ms: f64) {
        self.record_n(duration_ms, 1);
    }

    /// Counts a duration `n` times. The count saturates at `u64::MAX`.
    pub fn record_n(&mut self, duration_ms: f64, n: u64) {
        if n == 0 {
            return;
        }
        let duration_ms = sanitised(duration_ms);
        self.buckets.add(bucket_of(duration_ms), n);
        self.moments.record(duration_ms, n);
    }

    /// Counts durations whose buckets and moments were found before.
    pub(crate) fn absorb(&mut self, buckets: &[i16], moments: &Moments) {
        self.buckets.add_each(buckets);
        self.moments.merge(moments);
    }

    /// Counts `n` in a bucket, whose moments come by [`Histogram::add_moments`].
    pub(crate) fn add_bucket(&mut self, bucket: i16, n: u64) {
        self.buckets.add(bucket, n);
    }

    /// Takes in the moments of durations counted by [`Histogram::add_bucket`].
    pub(crate) fn add_moments(&mut self, moments: &Moments) {
        self.moments.merge(moments);
    }

    /// Counts all that `other` has counted. The result is the same as if one histogram had counted both.
    pub fn merge(&mut self, other: &Self) {
        self.buckets.merge(&other.buckets);
        self.moments.merge(&other.moments);
    }

    /// Forgets everything and keeps the memory.
    pub(crate) fn clear(&mut self) {
        self.buckets.clear();
        self.moments = Moments::default();
    }

    /// How many durations it counted.
    pub fn count(&self) -> u64 {
        self.buckets.total()
    }

    /// Whether it counted none.
    pub fn is_empty(&self) -> bool {
        self.count() == 0
    }

    /// The sum of all durations in milliseconds, each rounded to 2^-16 ms.
    pub fn sum_ms(&self) -> f64 {
        self.moments.sum as f64 / SUM_UNITS_PER_MS
    }

    /// The least duration, in milliseconds, exactly.
    pub fn min_ms(&self) -> Option<f64> {
        (!self.is_empty()).then_some(self.moments.min)
    }

    /// The greatest duration, in milliseconds, exactly.
    pub fn max_ms(&self) -> Option<f64> {
        (!self.is_empty()).then_some(self.moments.max)
    }

    /// Durations of at most [`ZERO_THRESHOLD_SECONDS`].
    pub fn zero_count(&self) -> u64 {
        self.buckets.zero()
    }

    /// The buckets above zero that counted anything, as (index, count), ascending. Bucket `i` ends at 2^((i+1)/64)
    /// seconds, inclusive.
    pub fn buckets(&self) -> impl Iterator<Item = (i16, u64)> {
        self.buckets.iter()
    }

    /// The quantile `q` of 0 to 1 (outside, the nearer of the two), in milliseconds, by nearest rank, within 0.542 %.
    /// None when nothing was counted or `q` is NaN.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let rank = nearest_rank(q, self.count())?;
        Some(self.moments.at_rank(rank, self.count(), || self.buckets.at_rank(rank)))
    }

    /// Calls `f` with each of [`Histogram::buckets`], faster.
    pub(crate) fn for_each_bucket(&self, f: impl FnMut(i16, u64)) {
        self.buckets.for_each(f);
    }

    /// How many durations are at most 2^e seconds, for each `e` of `exponents`: exact, since such a bound is a
    /// bucket's. The exponents ascend and lie between −30 and 38.
    pub fn cumulative<const N: usize>(&self, exponents: [i8; N]) -> [u64; N] {
        let mut from = FIRST_BUCKET;
        let mut seen = self.zero_count();
        exponents.map(|exponent| {
            let to = (i32::from(exponent) * PER_OCTAVE) as i16;
            seen += self.buckets.count_between(from, to);
            from = to;
            seen
        })
    }

    /// Memory on the heap, in bytes.
    pub fn heap_bytes(&self) -> usize {
        self.buckets.heap_bytes()
    }

    pub(crate) fn moments(&self) -> &Moments {
        &self.moments
    }
}

impl Moments {
    /// The duration that stands for the `rank`-th of `count`, whose bucket `bucket` finds.
    pub(crate) fn at_rank(&self, rank: u64, count: u64, bucket: impl FnOnce() -> Option<i16>) -> f64 {
        if rank >= count {
            self.max
        } else if rank <= 1 {
            self.min
        } else {
            bucket().map_or(self.max, |bucket| midpoint_ms(bucket).max(self.min).min(self.max))
        }
    }
}

/// The rank ⌈q·n⌉ of 1 to `n`; none when `n` is 0 or `q` is NaN. A product within rounding of a whole number is taken
/// for that number, so that the quantile 0.07 of 100 is the seventh and not the eighth.
pub(crate) fn nearest_rank(q: f64, n: u64) -> Option<u64> {
    if n == 0 || q.is_nan() {
        return None;
    }
    let exact = q.clamp(0.0, 1.0) * n as f64;
    let whole = exact.round();
    let rank = if (exact - whole).abs() <= whole * (2.0 * f64::EPSILON) { whole } else { exact.ceil() };
    Some((rank as u64).clamp(1, n))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(durations: &[f64]) -> Histogram {
        let mut histogram = Histogram::new();
        durations.iter().for_each(|&ms| histogram.record(ms));
        histogram
    }

    /// Heavy-tailed: most a few milliseconds, some many seconds, a few none at all.
    fn durations() -> impl Strategy<Value = Vec<f64>> {
        let duration = prop_oneof![
            20 => (0.0..1.0f64).prop_map(|u| 2.0 * (1.0 - u).powf(-1.5)),
            5 => 0.0..1e5f64,
            1 => Just(0.0),
            1 => (0u32..5000).prop_map(f64::from),
        ];
        prop::collection::vec(duration, 1..300)
    }

    proptest! {
        #[test]
        fn a_quantile_is_within_1_percent_of_the_exact_nearest_rank(mut durations in durations(), q in 0.0..=1.0f64) {
            let estimate = of(&durations).quantile(q).unwrap();
            durations.sort_by(f64::total_cmp);
            let exact = durations[nearest_rank(q, durations.len() as u64).unwrap() as usize - 1];
            prop_assert!((estimate - exact).abs() <= exact * 0.00542 + 1e-6, "{estimate} for {exact}");
        }

        #[test]
        fn order_and_batching_leave_no_trace(durations in durations(), cut in any::<prop::sample::Index>()) {
            let (left, right) = durations.split_at(cut.index(durations.len()));
            let mut merged = of(right);
            merged.merge(&of(left));
            prop_assert_eq!(&merged, &of(&durations));
            prop_assert_eq!(merged.sum_ms().to_bits(), of(&durations).sum_ms().to_bits());
        }

        #[test]
        fn cumulative_counts_are_exact(durations in durations()) {
            let exponents = [-30, -8, -1, 0, 3, 38];
            let expected = exponents.map(|e| durations.iter().filter(|&&ms| ms / 1000.0 <= 2f64.powi(e.into())).count() as u64);
            prop_assert_eq!(of(&durations).cumulative(exponents), expected);
        }
    }

    #[test]
    fn a_lone_duration_is_every_quantile_exactly() {
        for ms in [0.0, 1e-9, 0.1, 84.0, 1e300] {
            assert_eq!(of(&[ms]).quantile(0.5), Some(ms));
        }
    }

    #[test]
    fn the_first_and_the_last_rank_are_exact() {
        let histogram = of(&[3.3, 17.1, 999.9]);
        assert_eq!((histogram.quantile(0.0), histogram.quantile(1.0)), (Some(3.3), Some(999.9)));
        assert_eq!((histogram.quantile(-1.0), histogram.quantile(2.0)), (Some(3.3), Some(999.9)));
    }

    #[test]
    fn a_rank_survives_the_rounding_of_its_product() {
        for percent in 1..=100u64 {
            assert_eq!(nearest_rank(percent as f64 / 100.0, 100), Some(percent));
            assert_eq!(nearest_rank(percent as f64 / 100.0, 1_000_000), Some(percent * 10_000));
        }
        assert_eq!(nearest_rank(0.5, 1_000_001), Some(500_001));
    }

    #[test]
    fn nothing_has_no_quantile() {
        let nothing = Histogram::new();
        assert_eq!(
            (nothing.quantile(0.5), nothing.min_ms(), nothing.max_ms(), nothing.sum_ms()),
            (None, None, None, 0.0)
        );
        assert_eq!(of(&[1.0]).quantile(f64::NAN), None);
    }

    #[test]
    fn what_is_no_duration_counts_as_zero() {
        let histogram = of(&[-5.0, f64::NAN]);
        assert_eq!((histogram.count(), histogram.zero_count(), histogram.max_ms()), (2, 2, Some(0.0)));
    }

    #[test]
    fn many_at_once_are_as_many_one_by_one() {
        let mut at_once = Histogram::new();
        at_once.record_n(12.5, 7);
        assert_eq!(at_once, of(&[12.5; 7]));
        assert_eq!(at_once.sum_ms(), 87.5);
    }
}
