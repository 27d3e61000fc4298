//! The atoms of this program's compact binary forms: LEB128 variable-length integers, as Protocol Buffers have them,
//! with zigzag for signed ones. Reading is strict: an integer has one form only, the shortest, so that equal values are
//! equal bytes.

/// Why bytes could not be read, and where: byte offsets count from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// They stop in the middle.
    #[error("it ends at byte {at}, in the middle of {what}")]
    Truncated {
        /// Where.
        at: usize,
        /// Of what.
        what: &'static str,
    },
    /// What stands there is not allowed.
    #[error("byte {at}: {what}")]
    Invalid {
        /// Where it begins or ends.
        at: usize,
        /// What is wrong with it.
        what: &'static str,
    },
}

/// Appends an integer, seven bits a byte, the lowest first.
pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value > 0x7f {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// The same of an integer of up to 128 bits.
pub(super) fn put_long_varint(out: &mut Vec<u8>, mut value: u128) {
    while value > u128::from(u64::MAX) {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    put_varint(out, value as u64);
}

/// A signed integer as an unsigned one: 0, −1, 1, −2 … as 0, 1, 2, 3 …
pub(super) fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

/// Appends a signed integer.
pub(super) fn put_signed(out: &mut Vec<u8>, value: i64) {
    put_varint(out, zigzag(value));
}

/// Appends a length and that many bytes.
pub(super) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Reads from the front of some bytes.
#[derive(Debug, Clone)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// The fault `what` of what was read last.
    pub(super) fn fault(&self, what: &'static str) -> Malformed {
        Malformed::Invalid { at: self.at, what }
    }

    pub(super) fn byte(&mut self, what: &'static str) -> Result<u8, Malformed> {
        match self.bytes.get(self.at) {
            Some(&byte) => {
                self.at += 1;
                Ok(byte)
            }
            None => Err(Malformed::Truncated { at: self.at, what }),
        }
    }

    pub(super) fn take(&mut self, len: usize, what: &'static str) -> Result<&'a [u8], Malformed> {
        let end = self.at.checked_add(len);
        let taken = end.and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or(Malformed::Truncated { at: self.bytes.len(), what })?;
        self.at += len;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Malformed> {
        let taken = self.take(N, what)?;
        taken.try_into().map_err(|_| self.fault(what))
    }

    pub(super) fn varint(&mut self, what: &'static str) -> Result<u64, Malformed> {
        let byte = self.byte(what)?;
        if byte < 0x80 {
            return Ok(byte.into());
        }
        self.at -= 1;
        u64::try_from(self.long_varint(what)?).map_err(|_| self.fault("an integer of more than 64 bits"))
    }

    pub(super) fn long_varint(&mut self, what: &'static str) -> Result<u128, Malformed> {
        let mut value = 0u128;
        for shift in (0..).step_by(7) {
            let byte = self.byte(what)?;
            let bits = u128::from(byte & 0x7f);
            if shift >= 128 || bits << shift >> shift != bits {
                return Err(self.fault("an integer of more than 128 bits"));
            }
            value |= bits << shift;
            if byte < 0x80 {
                if byte == 0 && shift > 0 {
                    return Err(self.fault("an integer that is longer than it need be"));
                }
                break;
            }
        }
        Ok(value)
    }

    pub(super) fn signed(&mut self, what: &'static str) -> Result<i64, Malformed> {
        let value = self.varint(what)?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// A length and that many bytes.
    pub(super) fn bytes(&mut self, what: &'static str) -> Result<&'a [u8], Malformed> {
        let len = self.count(what)?;
        self.take(len, what)
    }

    /// How many of something follow, each of a byte at least: so never more than there are bytes left.
    pub(super) fn count(&mut self, what: &'static str) -> Result<usize, Malformed> {
        let count = self.varint(what)?;
        let left = self.bytes.len() - self.at;
        usize::try_from(count)
            .ok()
            .filter(|&count| count <= left)
            .ok_or(Malformed::Truncated { at: self.bytes.len(), what })
    }

    /// That nothing is left.
    pub(super) fn end(&self) -> Result<(), Malformed> {
        if self.at == self.bytes.len() { Ok(()) } else { Err(self.fault("nothing should follow here")) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn integers_come_back(value: u128, signed: i64, small: u64) {
            let mut out = Vec::new();
            put_long_varint(&mut out, value);
            put_signed(&mut out, signed);
            put_varint(&mut out, small);
            put_bytes(&mut out, b"abc");
            let mut reader = Reader::new(&out);
            prop_assert_eq!(reader.long_varint("").unwrap(), value);
            prop_assert_eq!(reader.signed("").unwrap(), signed);
            prop_assert_eq!(reader.varint("").unwrap(), small);
            prop_assert_eq!(reader.bytes("").unwrap(), b"abc");
            prop_assert_eq!(reader.end(), Ok(()));
        }

        #[test]
        fn what_can_be_read_is_written_the_same(bytes in prop::collection::vec(any::<u8>(), 0..24)) {
            let mut reader = Reader::new(&bytes);
            if let Ok(value) = reader.long_varint("") {
                let mut out = Vec::new();
                put_long_varint(&mut out, value);
                prop_assert_eq!(&bytes[..out.len()], &out[..]);
            }
        }
    }

    #[test]
    fn a_length_beyond_the_end_is_refused_before_memory_is_taken_for_it() {
        let mut out = Vec::new();
        put_varint(&mut out, u64::MAX);
        assert_eq!(Reader::new(&out).bytes("a name"), Err(Malformed::Truncated { at: 10, what: "a name" }));
    }
}
