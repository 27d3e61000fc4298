//! Thrift's compact protocol, as far as Parquet's footers, page headers and indexes need it.
//!
//! The library that decodes the rows passes over fields that it does not know, takes one of two fields that say the
//! same, and keeps the last of a field that is there twice. Another reader may take the other one. So a verifier reads
//! all that is there itself; what it does not understand is an error.

use std::collections::BTreeMap;

/// Structs within structs: Parquet's have six levels.
const MAX_DEPTH: usize = 16;

/// A value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Thrift {
    Bool(bool),
    Int(i64),
    /// A double, whose value nothing here needs.
    Double,
    Bytes(Vec<u8>),
    List(Vec<Self>),
    Struct(Fields),
}

/// The fields of a struct, by their numbers.
pub(super) type Fields = BTreeMap<i16, Thrift>;

impl Thrift {
    pub(super) fn int(&self) -> Option<i64> {
        if let Self::Int(value) = self { Some(*value) } else { None }
    }

    pub(super) fn boolean(&self) -> Option<bool> {
        if let Self::Bool(value) = self { Some(*value) } else { None }
    }

    pub(super) fn bytes(&self) -> Option<&[u8]> {
        if let Self::Bytes(value) = self { Some(value) } else { None }
    }

    pub(super) fn list(&self) -> Option<&[Self]> {
        if let Self::List(values) = self { Some(values) } else { None }
    }

    pub(super) fn fields(&self) -> Option<&Fields> {
        if let Self::Struct(fields) = self { Some(fields) } else { None }
    }
}

/// Reads a struct from the beginning of `bytes`; returns how many bytes it takes. `None` if it is malformed or cut
/// short.
pub(super) fn read(bytes: &[u8]) -> Option<(Fields, usize)> {
    let mut reader = Reader { rest: bytes };
    let fields = reader.fields(0)?;
    Some((fields, bytes.len() - reader.rest.len()))
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl Reader<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }

    fn varint(&mut self) -> Option<u64> {
        let (mut value, mut shift) = (0_u64, 0);
        loop {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f).checked_shl(shift)?;
            if byte & 0x80 == 0 {
                return Some(value);
            }
            shift += 7;
        }
    }

    fn zigzag(&mut self) -> Option<i64> {
        let value = self.varint()?;
        Some((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    fn take(&mut self, count: usize) -> Option<Vec<u8>> {
        let (taken, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        Some(taken.to_vec())
    }

    fn fields(&mut self, depth: usize) -> Option<Fields> {
        if depth > MAX_DEPTH {
            return None;
        }
        let (mut fields, mut last) = (Fields::new(), 0_i16);
        loop {
            let header = self.byte()?;
            if header == 0 {
                return Some(fields);
            }
            let id = match header >> 4 {
                0 => i16::try_from(self.zigzag()?).ok()?,
                delta => last.checked_add(i16::from(delta))?,
            };
            let value = match header & 15 {
                1 => Thrift::Bool(true),
                2 => Thrift::Bool(false),
                kind => self.value(kind, depth)?,
            };
            if fields.insert(id, value).is_some() {
                return None;
            }
            last = id;
        }
    }

    fn value(&mut self, kind: u8, depth: usize) -> Option<Thrift> {
        Some(match kind {
            3 => Thrift::Int(i64::from(self.byte()? as i8)),
            4..=6 => Thrift::Int(self.zigzag()?),
            7 => {
                self.take(8)?;
                Thrift::Double
            }
            8 => {
                let length = usize::try_from(self.varint()?).ok()?;
                Thrift::Bytes(self.take(length)?)
            }
            9 | 10 => {
                let header = self.byte()?;
                let count = match header >> 4 {
                    15 => usize::try_from(self.varint()?).ok()?,
                    count => usize::from(count),
                };
                // Each item takes a byte at least, so that a length that is a lie asks for no memory.
                if count > self.rest.len() {
                    return None;
                }
                let item = |reader: &mut Self| match header & 15 {
                    1 | 2 => match reader.byte()? {
                        1 => Some(Thrift::Bool(true)),
                        0 | 2 => Some(Thrift::Bool(false)),
                        _ => None,
                    },
                    kind => reader.value(kind, depth + 1),
                };
                Thrift::List((0..count).map(|_| item(self)).collect::<Option<_>>()?)
            }
            12 => Thrift::Struct(self.fields(depth + 1)?),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Fields, Thrift, read};

    #[test]
    fn fields_of_every_kind_are_read() {
        // 1: true, 2: -3, 4: "ab", 5: [7, 300], 25: {1: false}, 26: a double
        let bytes = [
            0x11, 0x15, 5, 0x28, 2, b'a', b'b', 0x19, 0x25, 14, 0xd8, 4, 0x0c, 50, 0x12, 0, 0x17, 0, 0, 0, 0, 0, 0, 0,
            0, 0, 99,
        ];
        let inner = Fields::from([(1, Thrift::Bool(false))]);
        let expected = Fields::from([
            (1, Thrift::Bool(true)),
            (2, Thrift::Int(-3)),
            (4, Thrift::Bytes(b"ab".to_vec())),
            (5, Thrift::List(vec![Thrift::Int(7), Thrift::Int(300)])),
            (25, Thrift::Struct(inner)),
            (26, Thrift::Double),
        ]);
        assert_eq!(read(&bytes), Some((expected, bytes.len() - 1)));
    }

    #[test]
    fn a_field_that_is_there_twice_or_not_all_there_is_refused() {
        assert_eq!(read(&[0x15, 2, 0x05, 2, 4, 0]), None, "field 1 twice");
        assert_eq!(read(&[0x15, 2]), None, "without an end");
        assert_eq!(read(&[0x18, 200, 1, b'x', 0]), None, "a text of 200 bytes");
        assert_eq!(read(&[0x19, 0xf5, 0xff, 0xff, 0xff, 0xff, 0x0f, 0]), None, "a list of billions");
        assert_eq!(read(&[0x1c; 100]), None, "structs without end");
        assert_eq!(read(&[0x1b, 0, 0]), None, "a map, which Parquet has none of");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Some((_, length)) = read(&bytes) {
                prop_assert!(length <= bytes.len());
            }
        }
    }
}
