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
//! The last two rows are left out when nothing was counted. Varints are LEB128. Equal histograms have equal bytes,
//! since every value has one form only; a reader refuses any other. It also refuses bytes that no histogram could have
//! written: buckets out of range, a least or greatest duration outside the outermost buckets, a sum that so many
//! durations between these two cannot have. Reading takes no memory and never panics. A call in one bucket takes about
//! 30 bytes, the thousand calls of a busy hour 300.
//!
//! Another scale or layout is another version. A reader says plainly that it cannot read it: rollups of an unknown
//! version are never guessed at.

use super::histogram::{
    FIRST_BUCKET, Histogram, LAST_BUCKET, Moments, SCALE, ZERO_BUCKET, bucket_of, nearest_rank, sum_units,
};
use super::wire::{Malformed, Reader, put_long_varint, put_signed, put_varint};

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
#[derive(Debug, Clone, Copy)]
pub struct Encoded<'a> {
    bytes: &'a [u8],
    count: u64,
    moments: Moments,
}

impl<'a> Encoded<'a> {
    /// Reads and checks every byte.
    ///
    /// # Errors
    /// When they are of another version or scale, or not what [`encode`] writes.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let (count, moments) = read(bytes, |_, _| {})?;
        Ok(Self { bytes, count, moments })
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
            let mut found = None;
            // It was read once without a fault.
            let again = read(self.bytes, |bucket, n| {
                seen += n;
                if seen >= rank {
                    found = found.or(Some(bucket));
                }
            });
            again.ok().and(found)
        }))
    }
}

impl Histogram {
    /// Counts all that encoded bytes have counted, in one pass over them.
    ///
    /// # Errors
    /// As [`Encoded::parse`]. The histogram then holds a part of it and must be thrown away.
    pub fn merge_encoded(&mut self, bytes: &[u8]) -> Result<(), DecodeError> {
        let (_, moments) = read(bytes, |bucket, n| self.add_bucket(bucket, n))?;
        self.add_moments(&moments);
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
    let mut runs = Runs::default();
    histogram.for_each_bucket(|index, n| runs.add(index, n));
    runs.close();
    out.extend([VERSION, SCALE]);
    put_varint(out, histogram.zero_count());
    put_varint(out, runs.closed);
    out.append(&mut runs.out);
    if !histogram.is_empty() {
        let moments = histogram.moments();
        put_long_varint(out, moments.sum);
        out.extend(moments.min.to_le_bytes());
        out.extend(moments.max.to_le_bytes());
    }
}

/// Writes runs of buckets.
#[derive(Default)]
struct Runs {
    out: Vec<u8>,
    closed: u64,
    /// Where the run before ended, exclusive.
    before: Option<i16>,
    /// The run being gathered: its first bucket, and the one after its last.
    run: Option<(i16, i16)>,
    /// Its counts.
    counts: Vec<u8>,
}

impl Runs {
    fn add(&mut self, index: i16, n: u64) {
        match &mut self.run {
            Some((_, end)) if *end == index => *end += 1,
            _ => {
                self.close();
                self.run = Some((index, index + 1));
            }
        }
        put_varint(&mut self.counts, n - 1);
    }

    fn close(&mut self) {
        if let Some((first, end)) = self.run.take() {
            match self.before {
                None => put_signed(&mut self.out, first.into()),
                Some(before) => put_varint(&mut self.out, (first - before - 1) as u64),
            }
            put_varint(&mut self.out, (end - first - 1) as u64);
            self.out.append(&mut self.counts);
            self.before = Some(end);
            self.closed += 1;
        }
    }
}

/// Reads and checks an encoded histogram: `f` is called with each bucket and its count, ascending, the zero bucket
/// first. Gives the count and the moments of all.
fn read(bytes: &[u8], mut f: impl FnMut(i16, u64)) -> Result<(u64, Moments), DecodeError> {
    let mut reader = Reader::new(bytes);
    match (reader.byte("the version")?, reader.byte("the scale")?) {
        (VERSION, SCALE) => {}
        (VERSION, scale) => return Err(DecodeError::Scale(scale)),
        (version, _) => return Err(DecodeError::Version(version)),
    }
    let mut count = reader.varint("the zero bucket")?;
    let mut lowest = None;
    let mut end = None;
    if count > 0 {
        lowest = Some(ZERO_BUCKET);
        f(ZERO_BUCKET, count);
    }
    for _ in 0..reader.count("the runs of buckets")? {
        let (first, after) = read_run(&mut reader, end)?;
        for index in first..after {
            let n = reader.varint("a bucket's count")?.checked_add(1);
            let counted = n.and_then(|n| Some((n, count.checked_add(n)?)));
            let Some((n, total)) = counted else {
                return Err(reader.fault("more than 2^64 durations").into());
            };
            count = total;
            f(index, n);
        }
        lowest = lowest.or(Some(first));
        end = Some(after);
    }
    let mut moments = Moments::default();
    if let Some(lowest) = lowest {
        moments.sum = reader.long_varint("the sum")?;
        moments.min = f64::from_le_bytes(reader.array("the least duration")?);
        moments.max = f64::from_le_bytes(reader.array("the greatest duration")?);
        let highest = end.map_or(ZERO_BUCKET, |end| end - 1);
        check_moments(&moments, count, lowest, highest).map_err(|what| reader.fault(what))?;
    }
    reader.end()?;
    Ok((count, moments))
}

/// Where the next run starts and ends (exclusive), after a run that ended at `before`.
fn read_run(reader: &mut Reader<'_>, before: Option<i16>) -> Result<(i16, i16), Malformed> {
    let first = match before {
        None => Some(reader.signed("the first bucket")?),
        Some(before) => {
            let gap = reader.varint("a gap between buckets")?;
            i64::try_from(gap).ok().and_then(|gap| gap.checked_add(i64::from(before) + 1))
        }
    };
    let more = reader.varint("a run's length")?;
    let last = i64::try_from(more).ok().zip(first).and_then(|(more, first)| more.checked_add(first));
    let in_range = |index: i64| i16::try_from(index).ok().filter(|index| (FIRST_BUCKET..=LAST_BUCKET).contains(index));
    let run = first.and_then(in_range).zip(last.and_then(in_range));
    run.map(|(first, last)| (first, last + 1)).ok_or_else(|| reader.fault("a bucket out of range"))
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
        put_long_varint(&mut expected, 67_010 << 16);
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
