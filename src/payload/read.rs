//! Reading bytes front to back; what is not there is [`Refusal::Format`].

use super::Refusal;

/// What is left to be read.
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn take(&mut self, length: usize) -> Result<&'a [u8], Refusal> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Refusal::Format)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Refusal> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(Refusal::Format)?;
        self.0 = rest;
        Ok(*taken)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Refusal> {
        self.array().map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self) -> Result<usize, Refusal> {
        self.array().map(|bytes| usize::from(u16::from_be_bytes(bytes)))
    }

    pub(super) fn u32(&mut self) -> Result<u32, Refusal> {
        self.array().map(u32::from_be_bytes)
    }

    /// `lp(x)`: a length of two bytes, and as many bytes.
    pub(super) fn lp(&mut self) -> Result<&'a [u8], Refusal> {
        let length = self.u16()?;
        self.take(length)
    }

    /// `lp` of a UTF-8 string.
    pub(super) fn text(&mut self) -> Result<&'a str, Refusal> {
        std::str::from_utf8(self.lp()?).map_err(|_| Refusal::Format)
    }

    pub(super) fn expect(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        if self.take(bytes.len())? == bytes { Ok(()) } else { Err(Refusal::Format) }
    }

    pub(super) fn rest(&self) -> &'a [u8] {
        self.0
    }

    pub(super) fn end(&self) -> Result<(), Refusal> {
        if self.0.is_empty() { Ok(()) } else { Err(Refusal::Format) }
    }
}

/// Adds `lp(x)`. What is written is bounded far below 65,536 bytes; a longer one is an error.
pub(super) fn push_lp(out: &mut Vec<u8>, bytes: &[u8]) -> Result<(), Refusal> {
    let length = u16::try_from(bytes.len()).map_err(|_| Refusal::Format)?;
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(bytes);
    Ok(())
}

/// Bytes as lower-case hex.
pub(super) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| DIGITS.get(usize::from(nibble)).map_or('0', |digit| char::from(*digit));
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// 32 bytes from 64 lower-case hex digits.
pub(super) fn hex32(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    let nibble = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let [high, low] = *pair.first_chunk::<2>()?;
        *byte = nibble(high)? << 4 | nibble(low)?;
    }
    Some(bytes)
}
