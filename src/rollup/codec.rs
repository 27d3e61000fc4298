//! The binary form of a histogram, version 1: the `latency` column of the rollups.
//!
//! | part | form |
//! |---|---|
//! | version | byte, 1 |
//! | scale | byte, 6 |
//! | durations in the zero bucket | varint |
//! | runs of non-empty buckets in a row | varint: how many; then for each, by ascending index: |
//! | – where it starts | first run: index, signed varint; others: empty buckets since the run before, less 1, varint |
//! | – its length, less 1 | varint |
//! | – its counts, each less 1 | varints |
//! | sum, in units of 2^-16 ms | varint of up to 128 bits |
//! | least, greatest duration in ms | two doubles, little-endian |
//!
//! The last two rows are left out when nothing was counted. Varints are LEB128. Equal histograms have equal bytes, since
//! every value has one form only; a reader refuses any other. It also refuses bytes that no histogram could have written:
//! buckets out of range, a least or greatest duration outside the outermost buckets, a sum that so many durations between
//! these two cannot have. Reading takes no memory and never panics. A call in one bucket takes about 30 bytes, the thousand
//! calls of a busy hour 300.
//!
//! Another scale or layout is another version. A reader says plainly that it cannot read it: rollups of an unknown version
//! are never guessed at.

use super::histogram::{
    FIRST_BUCKET, Histogram, LAST_BUCKET, Moments, SCALE, ZERO_BUCKET, bucket_of, nearest_rank, sum_units,
};
use super::wire::{Malformed, Reader, put_signed, put_varint};

/// The version written.
const VERSION: u8 = 1;

/// Why bytes are no histogram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Written by a newer program.
    #[error("latency histogram of version {0}, and this program reads version {VERSION}: use a newer one")]
    Version(u8),
    /// Of a scale that this program does not have.
    #[error("latency histogram of scale {0}, and this program reads scale {SCALE}: use a newer one")]
    Scale(u8),
    /// Damaged, or no histogram at all.
    #[error("no latency histogram: {0}")]
    Malformed(#[from] Malformed),
}

/// A histogram's bytes, found to be sound, and read in place.
#[derive(Debug, Clone)]
pub struct Encoded<'a> {
    zero: u64,
    count: u64,
    runs: usize,
    body: Reader<'a>,
    moments: Moments,
}

impl<'a> Encoded<'a> {
    /// Reads and checks every byte.
    ///
    /// # Errors
    /// When they are of another version or scale, or not what [`encode`] writes.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        match (reader.byte("the version")?, reader.byte("the scale")?) {
            (VERSION, SCALE) => {}
            (VERSION, scale) => return Err(DecodeError::Scale(scale)),
            (version, _) => return Err(DecodeError::Version(version)),
        }
        let zero = reader.varint("the zero bucket")?;
        let runs = reader.count("the runs of buckets")?;
        let mut buckets = Runs { reader: reader.clone(), runs_left: runs, left_in_run: 0, next: None };
        let mut count = zero;
        let mut lowest = (zero > 0).then_some(ZERO_BUCKET);
        let mut highest = lowest;
        while let Some((index, n)) = buckets.advance()? {
            count = count.checked_add(n).ok_or(buckets.reader.fault("more than 2^64 durations"))?;
            lowest = lowest.or(Some(index));
            highest = Some(index);
        }
        let mut encoded = Self { zero, count, runs, body: reader, moments: Moments::default() };
        let mut tail = buckets.reader;
        if let (Some(lowest), Some(highest)) = (lowest, highest) {
            let moments = Moments {
                sum: tail.long_varint("the sum")?,
                min: f64::from_le_bytes(tail.array("the least duration")?),
                max: f64::from_le_bytes(tail.array("the greatest duration")?),
            };
            check_moments(&moments, count, lowest, highest).map_err(|what| tail.fault(what))?;
            encoded.moments = moments;
        }
        tail.end()?;
        Ok(encoded)
    }

    /// How many durations it counted.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The quantile `q`, as [`Histogram::quantile`] has it.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let rank = nearest_rank(q, self.count)?;
        Some(self.moments.at_rank(rank, self.count, || {
            let mut seen = 0;
            self.buckets().find_map(|(index, n)| {
                seen += n;
                (seen >= rank).then_some(index)
            })
        }))
    }

    /// Every bucket with its count, ascending, the zero bucket first.
    fn buckets(&self) -> impl Iterator<Item = (i16, u64)> + use<'a> {
        let mut runs = Runs { reader: self.body.clone(), runs_left: self.runs, left_in_run: 0, next: None };
        let zero = (self.zero > 0).then_some((ZERO_BUCKET, self.zero));
        // All of it was read once without a fault, in `parse`.
        zero.into_iter().chain(std::iter::from_fn(move || runs.advance().ok().flatten()))
    }
}

impl Histogram {
    /// Counts all that encoded bytes have counted.
    ///
    /// # Errors
    /// As [`Encoded::parse`]; the histogram is then as it was.
    pub fn merge_encoded(&mut self, bytes: &[u8]) -> Result<(), DecodeError> {
        let encoded = Encoded::parse(bytes)?;
        self.absorb(encoded.buckets(), &encoded.moments);
        Ok(())
    }

    /// Reads what [`encode`] wrote.
    ///
    /// # Errors
    /// As [`Encoded::parse`].
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut histogram = Self::new();
        histogram.merge_encoded(bytes)?;
        Ok(histogram)
    }
}

/// Appends a histogram's binary form.
pub fn encode(histogram: &Histogram, out: &mut Vec<u8>) {
    out.extend([VERSION, SCALE]);
    put_varint(out, histogram.zero_count().into());
    let mut runs = 0u128;
    let mut previous: Option<i16> = None;
    for (index, _) in histogram.buckets() {
        runs += u128::from(previous.is_none_or(|previous| previous + 1 != index));
        previous = Some(index);
    }
    put_varint(out, runs);
    let mut buckets = histogram.buckets().peekable();
    let mut counts = Vec::new();
    let mut end: Option<i16> = None;
    while let Some((first, n)) = buckets.next() {
        match end {
            None => put_signed(out, first.into()),
            Some(end) => put_varint(out, (first - end - 1) as u128),
        }
        let mut last = first;
        put_varint(&mut counts, u128::from(n - 1));
        while let Some((index, n)) = buckets.next_if(|&(index, _)| index == last + 1) {
            put_varint(&mut counts, u128::from(n - 1));
            last = index;
        }
        put_varint(out, (last - first) as u128);
        out.append(&mut counts);
        end = Some(last + 1);
    }
    if !histogram.is_empty() {
        let moments = histogram.moments();
        put_varint(out, moments.sum);
        out.extend(moments.min.to_le_bytes());
        out.extend(moments.max.to_le_bytes());
    }
}

/// Whether the moments can be those of `count` durations in the buckets from `lowest` to `highest`; else, what cannot.
fn check_moments(moments: &Moments, count: u64, lowest: i16, highest: i16) -> Result<(), &'static str> {
    let is_duration = |ms: f64| ms.is_finite() && ms.is_sign_positive();
    if !is_duration(moments.min) || !is_duration(moments.max) || moments.min > moments.max {
        return Err("the least and the greatest duration are none");
    }
    if bucket_of(moments.min) != lowest || bucket_of(moments.max) != highest {
        return Err("the least or the greatest duration does not lie in an outermost bucket");
    }
    let all = |ms: f64| u128::from(sum_units(ms)).saturating_mul(count.into());
    if !(all(moments.min)..=all(moments.max)).contains(&moments.sum) {
        return Err("the sum is not one of so many durations");
    }
    Ok(())
}

/// Reads the runs of buckets, one bucket at a time.
#[derive(Debug)]
struct Runs<'a> {
    reader: Reader<'a>,
    runs_left: usize,
    left_in_run: u64,
    /// The bucket after the last one read.
    next: Option<i16>,
}

impl Runs<'_> {
    fn advance(&mut self) -> Result<Option<(i16, u64)>, Malformed> {
        if self.left_in_run == 0 {
            if self.runs_left == 0 {
                return Ok(None);
            }
            self.start_run()?;
        }
        self.left_in_run -= 1;
        let index = self.next.unwrap_or(FIRST_BUCKET);
        self.next = Some(index + 1);
        let n = self.reader.varint("a bucket's count")?.checked_add(1);
        Ok(Some((index, n.ok_or(self.reader.fault("more than 2^64 durations"))?)))
    }

    fn start_run(&mut self) -> Result<(), Malformed> {
        const OUT_OF_RANGE: &str = "a bucket out of range";
        self.runs_left -= 1;
        let first = match self.next {
            None => Some(self.reader.signed("the first bucket")?),
            Some(end) => {
                let gap = self.reader.varint("a gap between buckets")?;
                i64::try_from(gap).ok().and_then(|gap| gap.checked_add(i64::from(end) + 1))
            }
        };
        let first = first.and_then(|first| i16::try_from(first).ok()).ok_or(self.reader.fault(OUT_OF_RANGE))?;
        let more = self.reader.varint("a run's length")?;
        let last = i64::try_from(more).ok().and_then(|more| more.checked_add(first.into()));
        if first < FIRST_BUCKET || last.is_none_or(|last| last > LAST_BUCKET.into()) {
            return Err(self.reader.fault(OUT_OF_RANGE));
        }
        self.left_in_run = more + 1;
        self.next = Some(first);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encoded(histogram: &Histogram) -> Vec<u8> {
        let mut out = Vec::new();
        encode(histogram, &mut out);
        out
    }

    fn histogram() -> impl Strategy<Value = Histogram> {
        let duration = prop_oneof![4 => (-10.0..20.0f64).prop_map(f64::exp2), 1 => Just(0.0), 1 => 0.0..f64::MAX];
        let n = prop_oneof![9 => 1..300u64, 1 => 1..1u64 << 40];
        prop::collection::vec((duration, n), 0..120).prop_map(|durations| {
            let mut histogram = Histogram::new();
            durations.into_iter().for_each(|(ms, n)| histogram.record_n(ms, n));
            histogram
        })
    }

    proptest! {
        #[test]
        fn a_histogram_comes_back_and_answers_the_same(histogram in histogram(), q in 0.0..=1.0f64) {
            let bytes = encoded(&histogram);
            prop_assert_eq!(Histogram::decode(&bytes).unwrap(), histogram.clone());
            let read = Encoded::parse(&bytes).unwrap();
            prop_assert_eq!(read.count(), histogram.count());
            prop_assert_eq!(read.quantile(q), histogram.quantile(q));
        }

        #[test]
        fn what_can_be_read_is_written_the_same(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let bytes = [&[VERSION, SCALE], &bytes[..]].concat();
            if let Ok(histogram) = Histogram::decode(&bytes) {
                prop_assert_eq!(encoded(&histogram), bytes);
            }
        }

        #[test]
        fn a_changed_byte_is_refused_or_another_histogram(
            histogram in histogram(), at in any::<prop::sample::Index>(), byte: u8,
        ) {
            let good = encoded(&histogram);
            let mut bytes = good.clone();
            bytes[at.index(good.len())] = byte;
            if let Ok(read) = Histogram::decode(&bytes) {
                prop_assert_eq!(encoded(&read), bytes);
            }
        }

        #[test]
        fn a_part_of_it_is_refused(histogram in histogram(), at in any::<prop::sample::Index>()) {
            let bytes = encoded(&histogram);
            prop_assert!(Histogram::decode(&bytes[..at.index(bytes.len())]).is_err());
            prop_assert!(Histogram::decode(&[bytes, vec![0]].concat()).is_err());
        }
    }

    #[test]
    fn version_1_stays_as_it_is() {
        let mut histogram = Histogram::new();
        [0.0, 1000.0, 1000.0, 1010.0, 64_000.0].into_iter().for_each(|ms| histogram.record(ms));
        let mut expected = vec![1, 6, 1, 2, 1, 1, 1, 0, 253, 2 /* gap 381 */, 0, 0];
        put_varint(&mut expected, 67_010 << 16);
        expected.extend(0f64.to_le_bytes());
        expected.extend(64_000f64.to_le_bytes());
        assert_eq!(encoded(&histogram), expected);
    }

    #[test]
    fn another_version_or_scale_is_named() {
        assert_eq!(Histogram::decode(&[2, 6, 0, 0]), Err(DecodeError::Version(2)));
        assert_eq!(Histogram::decode(&[1, 5, 0, 0]), Err(DecodeError::Scale(5)));
        let message = DecodeError::Version(2).to_string();
        assert_eq!(message, "latency histogram of version 2, and this program reads version 1: use a newer one");
    }

    #[test]
    fn a_sum_that_cannot_be_is_refused() {
        let mut histogram = Histogram::new();
        histogram.record_n(8.0, 3);
        let mut bytes = encoded(&histogram);
        let sum_at = bytes.len() - 16 - 3;
        bytes[sum_at] ^= 1;
        let error = Histogram::decode(&bytes).unwrap_err().to_string();
        assert!(error.contains("the sum is not one of so many durations"), "{error}");
    }

    #[test]
    fn a_histogram_of_nothing_is_four_bytes() {
        assert_eq!(encoded(&Histogram::new()), [VERSION, SCALE, 0, 0]);
        assert_eq!(Encoded::parse(&[VERSION, SCALE, 0, 0]).unwrap().quantile(0.5), None);
    }
}
