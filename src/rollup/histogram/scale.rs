//! The scale: which bucket a duration falls into, and where the buckets lie.
//!
//! Bucket `i` holds the durations of more than 2^(i/64) and at most 2^((i+1)/64) seconds: OpenTelemetry's exponential
//! histogram of scale 6, whose bucket `i` is the bucket `i + 1` of a Prometheus native histogram of schema 6.
//!
//! The bucket is found from the bits of the double alone. Its exponent gives the octave; within the octave, the 52 bits
//! of its mantissa are compared with the mantissas of the 64 bounds 2^(k/64), each rounded to the nearest double. A
//! table over the mantissa's first seven bits says how many bounds lie below a cell of width 1/128; since the bounds
//! are at least 1/92 apart, a cell holds one bound at most, and one comparison finishes the search. There is no
//! logarithm in it, so the answer is the same on every machine, and a value on a bound falls below it.

/// The scale: each doubling of a duration is cut into 2^6 buckets.
pub const SCALE: u8 = 6;

/// Buckets to an octave.
pub(crate) const PER_OCTAVE: i32 = 1 << SCALE;

/// Durations of at most this many seconds (2^-30, just under a nanosecond) count as zero.
pub const ZERO_THRESHOLD_SECONDS: f64 = 1.0 / (1u64 << 30) as f64;

/// Durations above 2^38 seconds, 8,700 years, count as that long, in milliseconds.
pub(crate) const CLAMP_MS: f64 = 274_877_906_944_000.0;

/// The bucket of durations that count as zero. It sorts before every other, and is no index of one.
pub(crate) const ZERO_BUCKET: i16 = i16::MIN;

/// The first bucket above the zero threshold.
pub(crate) const FIRST_BUCKET: i16 = -30 * PER_OCTAVE as i16;

/// The last bucket, whose upper bound is the clamp.
pub(crate) const LAST_BUCKET: i16 = 38 * PER_OCTAVE as i16 - 1;

/// Units of the exact sum of durations in a millisecond: 2^16.
pub(crate) const SUM_UNITS_PER_MS: f64 = 65_536.0;

const MANTISSA_BITS: u32 = 52;
const MANTISSA: u64 = (1 << MANTISSA_BITS) - 1;
const EXPONENT_BIAS: i32 = 1023;

/// Mantissas of 2^(k/64) for k = 0, 1 … 63, each the nearest double.
const BOUNDS: [u64; 64] = [
    0x0000000000000,
    0x02C9A3E778061,
    0x059B0D3158574,
    0x0874518759BC8,
    0x0B5586CF9890F,
    0x0E3EC32D3D1A2,
    0x11301D0125B51,
    0x1429AAEA92DE0,
    0x172B83C7D517B,
    0x1A35BEB6FCB75,
    0x1D4873168B9AA,
    0x2063B88628CD6,
    0x2387A6E756238,
    0x26B4565E27CDD,
    0x29E9DF51FDEE1,
    0x2D285A6E4030B,
    0x306FE0A31B715,
    0x33C08B26416FF,
    0x371A7373AA9CB,
    0x3A7DB34E59FF7,
    0x3DEA64C123422,
    0x4160A21F72E2A,
    0x44E086061892D,
    0x486A2B5C13CD0,
    0x4BFDAD5362A27,
    0x4F9B2769D2CA7,
    0x5342B569D4F82,
    0x56F4736B527DA,
    0x5AB07DD485429,
    0x5E76F15AD2148,
    0x6247EB03A5585,
    0x6623882552225,
    0x6A09E667F3BCD,
    0x6DFB23C651A2F,
    0x71F75E8EC5F74,
    0x75FEB564267C9,
    0x7A11473EB0187,
    0x7E2F336CF4E62,
    0x82589994CCE13,
    0x868D99B4492ED,
    0x8ACE5422AA0DB,
    0x8F1AE99157736,
    0x93737B0CDC5E5,
    0x97D829FDE4E50,
    0x9C49182A3F090,
    0xA0C667B5DE565,
    0xA5503B23E255D,
    0xA9E6B5579FDBF,
    0xAE89F995AD3AD,
    0xB33A2B84F15FB,
    0xB7F76F2FB5E47,
    0xBCC1E904BC1D2,
    0xC199BDD85529C,
    0xC67F12E57D14B,
    0xCB720DCEF9069,
    0xD072D4A07897C,
    0xD5818DCFBA487,
    0xDA9E603DB3285,
    0xDFC97337B9B5F,
    0xE502EE78B3FF6,
    0xEA4AFA2A490DA,
    0xEFA1BEE615A27,
    0xF50765B6E4540,
    0xFA7C1819E90D8,
];

/// Cells of the table over the mantissa, and how far right a mantissa is shifted to give its cell.
const CELLS: usize = 128;
const CELL_SHIFT: u32 = MANTISSA_BITS - CELLS.trailing_zeros();

/// For each cell: how many bounds lie below its start, and the mantissa of the first that does not (past the last
/// bound, one that no mantissa exceeds).
const TABLE: [(u8, u64); CELLS] = table();

#[expect(clippy::indexing_slicing, reason = "evaluated by the compiler, which refuses an index out of range")]
const fn table() -> [(u8, u64); CELLS] {
    let mut table = [(0, MANTISSA); CELLS];
    let mut cell = 0;
    let mut below = 0;
    while cell < CELLS {
        while below < BOUNDS.len() && BOUNDS[below] < (cell as u64) << CELL_SHIFT {
            below += 1;
        }
        table[cell] = (below as u8, if below < BOUNDS.len() { BOUNDS[below] } else { MANTISSA });
        cell += 1;
    }
    table
}

/// A duration as this program counts it: finite and not negative. What is no duration (negative, NaN) counts as zero.
pub(crate) fn sanitised(duration_ms: f64) -> f64 {
    if duration_ms > 0.0 { duration_ms.min(f64::MAX) } else { 0.0 }
}

/// The bucket of a duration, or [`ZERO_BUCKET`].
pub(crate) fn bucket_of(duration_ms: f64) -> i16 {
    let seconds = duration_ms.min(CLAMP_MS) / 1000.0;
    if seconds <= ZERO_THRESHOLD_SECONDS {
        return ZERO_BUCKET;
    }
    let bits = seconds.to_bits();
    let mantissa = bits & MANTISSA;
    let (below, next) = TABLE.get((mantissa >> CELL_SHIFT) as usize).copied().unwrap_or_default();
    let bounds_below = i32::from(below) + i32::from(mantissa > next);
    let exponent = (bits >> MANTISSA_BITS) as i32 - EXPONENT_BIAS;
    (exponent * PER_OCTAVE + bounds_below - 1) as i16
}

/// The upper bound of bucket `index`, in seconds; it is the lower bound of the next.
pub(crate) fn upper_bound_seconds(index: i16) -> f64 {
    let above = i32::from(index) + 1;
    let mantissa = BOUNDS.get(above.rem_euclid(PER_OCTAVE) as usize).copied().unwrap_or_default();
    let exponent = above.div_euclid(PER_OCTAVE) + EXPONENT_BIAS;
    f64::from_bits((exponent as u64) << MANTISSA_BITS | mantissa)
}

/// The value that stands for bucket `index`, in milliseconds: the harmonic mean of its bounds, which is equally wrong,
/// in proportion, for a duration at either end.
pub(crate) fn midpoint_ms(index: i16) -> f64 {
    if index == ZERO_BUCKET {
        return 0.0;
    }
    let (low, high) = (upper_bound_seconds(index.saturating_sub(1)), upper_bound_seconds(index));
    2000.0 * low * high / (low + high)
}

/// A duration in units of 2^-16 ms (15 ns), rounded half up: sums of whole units are exact, whatever their order.
pub(crate) fn sum_units(duration_ms: f64) -> u64 {
    (duration_ms.min(CLAMP_MS) * SUM_UNITS_PER_MS + 0.5) as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_bounds_are_powers_of_the_base() {
        for (k, &mantissa) in BOUNDS.iter().enumerate() {
            let bound = f64::from_bits(1023 << MANTISSA_BITS | mantissa);
            let power = 2f64.powf(k as f64 / 64.0);
            assert!((bound.to_bits() as i64 - power.to_bits() as i64).abs() <= 1, "2^({k}/64): {bound} and {power}");
        }
    }

    #[test]
    fn a_value_on_a_bound_falls_below_it_and_its_successor_above() {
        for index in FIRST_BUCKET..LAST_BUCKET {
            // Seconds times 1000 is not always a double, so the milliseconds are approached from the division's side.
            let bound = upper_bound_seconds(index);
            let mut ms = bound * 1000.0;
            while ms / 1000.0 > bound {
                ms = ms.next_down();
            }
            while ms.next_up() / 1000.0 <= bound {
                ms = ms.next_up();
            }
            assert_eq!(bucket_of(ms), index);
            assert_eq!(bucket_of(ms.next_up()), index + 1);
        }
    }

    #[test]
    fn whole_powers_of_two_seconds_end_an_octave() {
        for exponent in -29..38 {
            let ms = 2f64.powi(exponent) * 1000.0;
            assert_eq!(i32::from(bucket_of(ms)), exponent * PER_OCTAVE - 1, "2^{exponent} s");
        }
    }

    #[test]
    fn the_ends_of_the_range_are_the_zero_bucket_and_the_last() {
        for zero in [0.0, -0.0, f64::MIN_POSITIVE, f64::from_bits(1), ZERO_THRESHOLD_SECONDS * 1000.0] {
            assert_eq!(bucket_of(zero), ZERO_BUCKET, "{zero}");
        }
        assert_eq!(bucket_of(ZERO_THRESHOLD_SECONDS * 1000.0 * 1.001), FIRST_BUCKET);
        for huge in [CLAMP_MS, CLAMP_MS * 2.0, f64::MAX, f64::INFINITY] {
            assert_eq!(bucket_of(huge), LAST_BUCKET, "{huge}");
        }
        assert_eq!(upper_bound_seconds(LAST_BUCKET), 2f64.powi(38));
    }

    #[test]
    fn the_clamp_fits_the_units_of_a_sum() {
        assert!(CLAMP_MS * SUM_UNITS_PER_MS + 0.5 < u64::MAX as f64);
        assert_eq!(sum_units(f64::INFINITY), (CLAMP_MS * SUM_UNITS_PER_MS) as u64);
    }

    #[test]
    fn what_is_no_duration_counts_as_zero() {
        for wrong in [-1.0, f64::NEG_INFINITY, f64::NAN, -0.0] {
            assert_eq!(sanitised(wrong).to_bits(), 0);
        }
        assert_eq!(sanitised(f64::INFINITY), f64::MAX);
    }

    proptest! {
        #[test]
        fn a_bucket_holds_what_it_is_given(exponent in -20.0..45.0f64) {
            let ms = 2f64.powf(exponent);
            let index = bucket_of(ms);
            prop_assert!(upper_bound_seconds(index - 1) < ms / 1000.0 && ms / 1000.0 <= upper_bound_seconds(index));
            prop_assert!((midpoint_ms(index) - ms).abs() / ms < 0.00542);
        }
    }
}
