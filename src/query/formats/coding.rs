//! Content codings of answers: gzip and zstd, by `Accept-Encoding` (RFC 9110, section 12.5.3).

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;

use crate::query::QueryError;

/// How hard it is tried: an answer is made once and read once.
const GZIP_LEVEL: u32 = 1;
const ZSTD_LEVEL: i32 = 1;

/// A content coding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Coding {
    /// `zstd`.
    Zstd,
    /// `gzip`.
    Gzip,
}

impl Coding {
    /// The value of `Content-Encoding`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Zstd => "zstd",
            Self::Gzip => "gzip",
        }
    }

    /// The coding that an `Accept-Encoding` header likes best, zstd among equals; none without one, or where it likes
    /// the plain form better.
    pub fn negotiate(accept: Option<&str>) -> Option<Self> {
        let mut best: Option<(Self, f32)> = None;
        let (mut plain, mut any) = (None, None);
        for part in accept?.split(',') {
            let mut parameters = part.split(';').map(str::trim);
            let name = parameters.next().unwrap_or_default();
            let quality = parameters.find_map(|p| p.strip_prefix("q=").or_else(|| p.strip_prefix("Q=")));
            let quality: f32 = quality.map_or(1.0, |quality| quality.parse().unwrap_or(0.0));
            let coding = match name.to_ascii_lowercase().as_str() {
                "zstd" => Self::Zstd,
                "gzip" | "x-gzip" => Self::Gzip,
                "identity" => {
                    plain = Some(quality);
                    continue;
                }
                "*" => {
                    any = Some(quality);
                    continue;
                }
                _ => continue,
            };
            let better = match best {
                None => true,
                Some((Self::Gzip, other)) if coding == Self::Zstd => quality >= other,
                Some((_, other)) => quality > other,
            };
            if better {
                best = Some((coding, quality));
            }
        }
        // A client that takes any coding is assumed to know gzip.
        let (coding, quality) = best.or_else(|| Some((Self::Gzip, any?)))?;
        (quality > 0.0 && quality >= plain.unwrap_or(0.0)).then_some(coding)
    }

    /// Compresses as it comes.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn compressor(self) -> std::io::Result<Compressor> {
        Ok(match self {
            Self::Zstd => Compressor::Zstd(zstd::stream::write::Encoder::new(Vec::new(), ZSTD_LEVEL)?),
            Self::Gzip => Compressor::Gzip(GzEncoder::new(Vec::new(), Compression::new(GZIP_LEVEL))),
        })
    }

    /// The whole of some bytes, compressed.
    ///
    /// # Errors
    /// As [`Coding::compressor`].
    pub fn compress(self, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
        let mut compressor = self.compressor()?;
        let mut out = compressor.push(bytes)?;
        out.append(&mut compressor.finish()?);
        Ok(out)
    }
}

/// A body that is being compressed.
pub enum Compressor {
    /// By zstd.
    Zstd(zstd::stream::write::Encoder<'static, Vec<u8>>),
    /// By gzip.
    Gzip(GzEncoder<Vec<u8>>),
}

impl Compressor {
    /// Takes some bytes in, and gives what there is compressed so far: perhaps nothing yet.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn push(&mut self, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
        Ok(match self {
            Self::Zstd(encoder) => {
                encoder.write_all(bytes)?;
                std::mem::take(encoder.get_mut())
            }
            Self::Gzip(encoder) => {
                encoder.write_all(bytes)?;
                std::mem::take(encoder.get_mut())
            }
        })
    }

    /// Gives all that it holds back, without ending the body.
    pub(super) fn flush(&mut self) -> Result<Vec<u8>, QueryError> {
        let flushed = match self {
            Self::Zstd(encoder) => encoder.flush().map(|()| std::mem::take(encoder.get_mut())),
            Self::Gzip(encoder) => encoder.flush().map(|()| std::mem::take(encoder.get_mut())),
        };
        flushed.map_err(|error| not_compressed(&error))
    }

    /// Ends the body, and gives its end.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn finish(self) -> std::io::Result<Vec<u8>> {
        match self {
            Self::Zstd(encoder) => encoder.finish(),
            Self::Gzip(encoder) => encoder.finish(),
        }
    }
}

pub(super) fn not_compressed(error: &std::io::Error) -> QueryError {
    tracing::error!(%error, "an answer could not be compressed");
    QueryError::Internal
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::Coding;

    #[test]
    fn the_coding_liked_best_is_chosen() {
        for (accept, expected) in [
            (None, None),
            (Some(""), None),
            (Some("identity"), None),
            (Some("br"), None),
            (Some("gzip"), Some(Coding::Gzip)),
            (Some("GZIP;q=0.5, deflate"), Some(Coding::Gzip)),
            (Some("gzip, zstd"), Some(Coding::Zstd)),
            (Some("zstd;q=0.5, gzip"), Some(Coding::Gzip)),
            (Some("gzip;q=0"), None),
            (Some("gzip;q=0.3, identity;q=0.9"), None),
            (Some("*"), Some(Coding::Gzip)),
            (Some("*;q=0"), None),
        ] {
            assert_eq!(Coding::negotiate(accept), expected, "{accept:?}");
        }
    }

    #[test]
    fn what_was_compressed_comes_back() {
        let text = b"mcpg_tool_calls_total ".repeat(10_000);
        let (mut gzip, mut back) = (Coding::Gzip.compress(&text).unwrap(), Vec::new());
        flate2::read::GzDecoder::new(gzip.as_slice()).read_to_end(&mut back).unwrap();
        assert!(back == text && gzip.len() < text.len() / 20);
        gzip.truncate(gzip.len() - 4);
        flate2::read::GzDecoder::new(gzip.as_slice()).read_to_end(&mut Vec::new()).unwrap_err();
        let zstd = Coding::Zstd.compress(&text).unwrap();
        assert_eq!(zstd::decode_all(zstd.as_slice()).unwrap(), text);
    }
}
