//! `Content-Encoding`: how a body is packed, and unpacking it within a bound.
//!
//! Unpacking is streamed and stops at the limit, so that a body that claims to be small and is not costs no more memory
//! than the limit. A zstd frame may ask for a window of at most 8 MiB, which is what RFC 9659 allows in HTTP.

use std::io::{self, Read};

use bytes::Bytes;
use flate2::bufread::MultiGzDecoder;
use http::HeaderMap;
use http::header::CONTENT_ENCODING;

use super::error::IngestError;

/// The largest zstd window, as a power of two: 8 MiB, see RFC 9659.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;

/// How a body is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Encoding {
    /// Not at all.
    #[default]
    Identity,
    /// gzip, RFC 1952; several members may follow each other.
    Gzip,
    /// Zstandard, RFC 8878; several frames may follow each other.
    Zstd,
}

impl Encoding {
    /// The name in a `Content-Encoding`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }

    /// The encoding that a request's `Content-Encoding` names (RFC 9110, section 8.4). Chains are refused.
    ///
    /// # Errors
    /// [`IngestError::UnsupportedEncoding`] for any other name and for more than one.
    pub fn from_headers(headers: &HeaderMap) -> Result<Self, IngestError> {
        let mut found = Self::Identity;
        for value in headers.get_all(CONTENT_ENCODING) {
            let value = value.to_str().map_err(|_| refuse("the Content-Encoding is not ASCII"))?;
            for token in value.split(',').map(|token| token.trim().to_ascii_lowercase()) {
                let next = match token.as_str() {
                    "" | "identity" => continue,
                    "gzip" | "x-gzip" => Self::Gzip,
                    "zstd" => Self::Zstd,
                    _ => return Err(refuse("this Content-Encoding is not known")),
                };
                if found != Self::Identity {
                    return Err(refuse("several Content-Encodings in a chain are not supported"));
                }
                found = next;
            }
        }
        Ok(found)
    }

    /// The body unpacked.
    ///
    /// # Errors
    /// [`IngestError::TooLarge`] past `limit` bytes, [`IngestError::BadEncoding`] for data that does not unpack.
    pub fn unpack(self, body: &Bytes, limit: usize) -> Result<Bytes, IngestError> {
        match self {
            Self::Identity if body.len() > limit => Err(too_large(limit)),
            Self::Identity => Ok(body.clone()),
            Self::Gzip => self.drain(MultiGzDecoder::new(&**body), body.len(), limit),
            Self::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(&**body).map_err(|e| self.corrupt(&e))?;
                decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(|e| self.corrupt(&e))?;
                self.drain(decoder, body.len(), limit)
            }
        }
    }

    fn drain(self, reader: impl Read, packed: usize, limit: usize) -> Result<Bytes, IngestError> {
        // Samples shrink to about a fifth; room for four times as much saves most of the regrowth.
        let mut unpacked = Vec::with_capacity(packed.saturating_mul(4).min(limit));
        let past_limit = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
        reader.take(past_limit).read_to_end(&mut unpacked).map_err(|e| self.corrupt(&e))?;
        if unpacked.len() > limit { Err(too_large(limit)) } else { Ok(unpacked.into()) }
    }

    fn corrupt(self, cause: &io::Error) -> IngestError {
        IngestError::BadEncoding(format!("the body is not sound {}: {cause}", self.as_str()))
    }
}

fn refuse(reason: &str) -> IngestError {
    IngestError::UnsupportedEncoding(format!("{reason}; send gzip, zstd or none"))
}

fn too_large(limit: usize) -> IngestError {
    IngestError::TooLarge(format!("the body, unpacked, is over {limit} bytes; send smaller batches"))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use bytes::Bytes;
    use http::header::CONTENT_ENCODING;
    use http::{HeaderMap, HeaderValue};

    use super::Encoding;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(data: &[u8]) -> Vec<u8> {
        zstd::stream::encode_all(data, 1).unwrap()
    }

    fn from_header(value: &'static str) -> Result<Encoding, u16> {
        Encoding::from_headers(&HeaderMap::from_iter([(CONTENT_ENCODING, HeaderValue::from_static(value))]))
            .map_err(|error| error.status().as_u16())
    }

    #[test]
    fn the_header_names_one_encoding_in_any_case() {
        assert_eq!(Encoding::from_headers(&HeaderMap::new()).unwrap(), Encoding::Identity);
        assert_eq!(from_header("GZIP"), Ok(Encoding::Gzip));
        assert_eq!(from_header("identity, zstd"), Ok(Encoding::Zstd));
    }

    #[test]
    fn a_chain_or_a_foreign_encoding_is_refused() {
        assert_eq!(from_header("br"), Err(415));
        assert_eq!(from_header("gzip, zstd"), Err(415));
        assert_eq!(from_header("gzip, gzip"), Err(415));
    }

    #[test]
    fn members_and_frames_in_a_row_are_one_body() {
        let two_members = [gzip(b"one "), gzip(b"two")].concat().into();
        assert_eq!(&*Encoding::Gzip.unpack(&two_members, 100).unwrap(), b"one two");
        let two_frames = [zstd(b"one "), zstd(b"two")].concat().into();
        assert_eq!(&*Encoding::Zstd.unpack(&two_frames, 100).unwrap(), b"one two");
    }

    #[test]
    fn a_body_may_be_as_long_as_the_limit_and_no_longer() {
        let data = vec![b'a'; 1000];
        for (encoding, packed) in
            [(Encoding::Identity, data.clone()), (Encoding::Gzip, gzip(&data)), (Encoding::Zstd, zstd(&data))]
        {
            let packed = packed.into();
            assert_eq!(encoding.unpack(&packed, 1000).unwrap().len(), 1000);
            let error = encoding.unpack(&packed, 999).unwrap_err();
            assert_eq!(error.status(), 413);
            assert!(error.to_string().contains("999"), "{error}");
        }
    }

    #[test]
    fn a_bomb_costs_no_more_than_the_limit() {
        let bomb = gzip(&vec![0; 50_000_000]).into();
        assert_eq!(Encoding::Gzip.unpack(&bomb, 1_000_000).unwrap_err().status(), 413);
    }

    #[test]
    fn a_zstd_window_over_8_mib_is_refused() {
        let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(27).unwrap();
        std::io::copy(&mut std::io::repeat(b'a').take(20_000_000), &mut encoder).unwrap();
        let error = Encoding::Zstd.unpack(&encoder.finish().unwrap().into(), 100_000_000).unwrap_err();
        assert_eq!(error.code(), "bad_encoding");
    }

    #[test]
    fn truncated_or_foreign_data_is_bad_encoding() {
        let data = b"some text that is long enough to be cut";
        for (encoding, packed) in [(Encoding::Gzip, gzip(data)), (Encoding::Zstd, zstd(data))] {
            for bad in [&packed[..packed.len() - 1], b"plain text", &[&packed[..], b"tail"].concat()] {
                let bad = Bytes::copy_from_slice(bad);
                assert_eq!(encoding.unpack(&bad, 1000).unwrap_err().code(), "bad_encoding");
            }
        }
    }
}
