//! Padding: how long a plaintext is made, so that its length tells little of what it holds.
//!
//! Up to 256 bytes all are alike. Beyond, Padmé: with E = ⌊log₂ L⌋ and S = ⌊log₂ E⌋ + 1, L is rounded up to a multiple
//! of 2^(E−S), which adds at most 12 % and leaves O(log log L) bits of the length.

/// The least padded length.
const LEAST: usize = 256;

/// The padded length of `length` bytes.
pub fn padded(length: usize) -> usize {
    let Some(e) = length.checked_ilog2().filter(|_| length > LEAST) else { return LEAST };
    let s = e.ilog2() + 1;
    let unit = 1_usize << e.saturating_sub(s);
    length.next_multiple_of(unit)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::padded;

    #[test]
    fn lengths_are_those_of_the_specification() {
        for (length, expected) in [
            (0, 256),
            (9, 256),
            (256, 256),
            (257, 272),
            (272, 272),
            (273, 288),
            (1_000, 1_024),
            (1_024, 1_024),
            (1_025, 1_088),
            (65_545, 67_584),
            (1 << 20, 1 << 20),
            ((1 << 20) + 9, (1 << 20) + (1 << 15)),
        ] {
            assert_eq!(padded(length), expected, "{length}");
        }
    }

    proptest! {
        #[test]
        fn it_never_shortens_adds_at_most_an_eighth_and_is_its_own_padding(length in 0usize..20_000_000) {
            let to = padded(length);
            prop_assert!(to >= length && to <= length.max(256) + length / 8 + 1);
            prop_assert_eq!(padded(to), to);
            prop_assert!(padded(length + 1) >= to);
        }
    }
}
