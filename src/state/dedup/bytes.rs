//! Reading bytes back: little-endian figures, each checked to be there, and nothing after the last.

/// Why bytes are not what was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("what is remembered of batches is damaged: {0}")]
pub(crate) struct Corrupt(pub(crate) &'static str);

/// A cursor over bytes.
#[derive(Debug)]
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Corrupt> {
        let (array, rest) = self.0.split_first_chunk().ok_or(Corrupt("it is too short"))?;
        self.0 = rest;
        Ok(*array)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Corrupt> {
        self.array().map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self) -> Result<u16, Corrupt> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Corrupt> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Corrupt> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn i64(&mut self) -> Result<i64, Corrupt> {
        self.array().map(i64::from_le_bytes)
    }

    /// How many items of `bytes` each follow: never more than there is room for, so that a false count takes no memory.
    pub(super) fn count(&mut self, bytes: usize) -> Result<usize, Corrupt> {
        let count = usize::try_from(self.u64()?).unwrap_or(usize::MAX);
        if count.checked_mul(bytes).is_none_or(|needed| needed > self.0.len()) {
            return Err(Corrupt("it is too short for what it says to hold"));
        }
        Ok(count)
    }

    /// That nothing is left.
    pub(super) fn end(&self) -> Result<(), Corrupt> {
        if self.0.is_empty() { Ok(()) } else { Err(Corrupt("bytes follow its end")) }
    }
}
