//! What an Arrow IPC stream claims, checked against what it has, before anything is decoded.
//!
//! The stream format (Arrow columnar format, "IPC Streaming Format") is a row of messages, each
//! `ff ff ff ff ‖ metadata length (u32) ‖ metadata (a flatbuffer) ‖ body`. Its reader believes lengths: of bodies, of
//! columns, of what compressed buffers unpack to. Here they are added up first, so that a body of a kilobyte cannot ask
//! for a gigabyte. The rules, beyond the format's own:
//!
//! - columns are flat: null, whole and floating numbers, booleans, text, dates and timestamps, dictionaries of those;
//! - all buffers of the stream, unpacked, fit in the limit on decoded bytes, and all rows in the limit on rows;
//! - at most 4,096 messages, 64 columns and 1 MiB of metadata a message, which no sample needs;
//! - little-endian, and no deltas to dictionaries, whose cost is quadratic.

use arrow::ipc::{self, CompressionType, Endianness, MessageHeader};

use super::DecodeLimits;
use super::error::{Faults, IngestError, RowKind, shown};

const CONTINUATION: [u8; 4] = [0xff; 4];
const MAX_METADATA_BYTES: usize = 1 << 20;
const MAX_MESSAGES: usize = 4096;
const MAX_COLUMNS: usize = 64;

/// Checks a whole stream.
///
/// # Errors
/// [`IngestError::Malformed`], [`IngestError::TooLarge`], or [`IngestError::Invalid`] for a column's type.
pub(super) fn check(stream: &[u8], limits: DecodeLimits) -> Result<(), IngestError> {
    let mut guard = Guard {
        limits,
        bytes_left: u64::try_from(limits.max_decoded_bytes).unwrap_or(u64::MAX),
        rows_left: u64::try_from(limits.max_rows).unwrap_or(u64::MAX),
    };
    let mut rest = stream;
    for _ in 0..MAX_MESSAGES {
        if rest.is_empty() {
            return Ok(());
        }
        let (continuation, after) = rest.split_first_chunk().ok_or_else(truncated)?;
        if *continuation != CONTINUATION {
            return Err(malformed("a message does not start with ff ff ff ff"));
        }
        let (len, after) = after.split_first_chunk().ok_or_else(truncated)?;
        let len = usize::try_from(u32::from_le_bytes(*len)).map_err(|_| truncated())?;
        if len == 0 {
            return if after.is_empty() { Ok(()) } else { Err(malformed("bytes follow the end of the stream")) };
        }
        if len > MAX_METADATA_BYTES {
            return Err(malformed("the metadata of a message is over 1 MiB"));
        }
        let (metadata, after) = after.split_at_checked(len).ok_or_else(truncated)?;
        let message =
            ipc::root_as_message(metadata).map_err(|_| malformed("the metadata of a message is not sound"))?;
        let body_len = usize::try_from(message.bodyLength()).map_err(|_| truncated())?;
        let (body, after) = after.split_at_checked(body_len).ok_or_else(truncated)?;
        guard.message(&message, body)?;
        rest = after;
    }
    Err(malformed("over 4096 messages"))
}

struct Guard {
    limits: DecodeLimits,
    bytes_left: u64,
    rows_left: u64,
}

impl Guard {
    fn message(&mut self, message: &ipc::Message<'_>, body: &[u8]) -> Result<(), IngestError> {
        match message.header_type() {
            MessageHeader::Schema => schema(message.header_as_schema().ok_or_else(no_header)?),
            MessageHeader::RecordBatch => {
                let batch = message.header_as_record_batch().ok_or_else(no_header)?;
                let rows = u64::try_from(batch.length()).map_err(|_| malformed("a batch has a negative length"))?;
                self.rows_left = self
                    .rows_left
                    .checked_sub(rows)
                    .ok_or_else(|| IngestError::too_many_rows(RowKind::Sample, self.limits.max_rows))?;
                self.columns(&batch, body)
            }
            MessageHeader::DictionaryBatch => {
                let dictionary = message.header_as_dictionary_batch().ok_or_else(no_header)?;
                if dictionary.isDelta() {
                    return Err(malformed("deltas to dictionaries are not supported; send whole dictionaries"));
                }
                let values = dictionary.data().ok_or_else(no_header)?;
                if usize::try_from(values.length()).map_or(true, |len| len > self.limits.max_rows) {
                    return Err(IngestError::too_many_rows(RowKind::Sample, self.limits.max_rows));
                }
                self.columns(&values, body)
            }
            _ => Err(malformed("a message is neither a schema, a batch nor a dictionary")),
        }
    }

    /// Checks the columns and buffers of a batch against its body.
    fn columns(&mut self, batch: &ipc::RecordBatch<'_>, body: &[u8]) -> Result<(), IngestError> {
        for node in batch.nodes().into_iter().flatten() {
            if node.length() != batch.length() || node.null_count() < 0 || node.null_count() > node.length() {
                return Err(malformed("a column is not as long as its batch"));
            }
        }
        let codec = match batch.compression() {
            None => None,
            Some(compression) => match compression.codec() {
                codec @ (CompressionType::ZSTD | CompressionType::LZ4_FRAME) => Some(codec),
                _ => return Err(malformed("a compression that is neither zstd nor lz4")),
            },
        };
        let mut count = 0_i64;
        for buffer in batch.buffers().into_iter().flatten() {
            count += 1;
            let bytes = usize::try_from(buffer.offset())
                .ok()
                .zip(usize::try_from(buffer.length()).ok())
                .and_then(|(offset, len)| body.get(offset..offset.checked_add(len)?))
                .ok_or_else(|| malformed("a buffer lies outside its message"))?;
            self.buffer(bytes, codec)?;
        }
        for variadic in batch.variadicBufferCounts().into_iter().flatten() {
            if !(0..=count).contains(&variadic) {
                return Err(malformed("a column has more buffers than its batch"));
            }
        }
        Ok(())
    }

    fn buffer(&mut self, bytes: &[u8], codec: Option<CompressionType>) -> Result<(), IngestError> {
        let Some(codec) = codec.filter(|_| !bytes.is_empty()) else { return self.charge(bytes.len() as u64) };
        let (prefix, packed) =
            bytes.split_first_chunk().ok_or_else(|| malformed("a compressed buffer lacks its length"))?;
        let claimed = match i64::from_le_bytes(*prefix) {
            // The format's sign for a buffer that is not compressed after all.
            -1 => return self.charge(bytes.len() as u64),
            claimed => u64::try_from(claimed).map_err(|_| malformed("a compressed buffer has a negative length"))?,
        };
        self.charge(claimed.max(bytes.len() as u64))?;
        // Unlike zstd's, the reader of lz4 does not stop at the claimed length.
        let is_lz4 = claimed > 0 && codec == CompressionType::LZ4_FRAME;
        if is_lz4 && lz4_bound(packed).is_none_or(|bound| bound > self.max_bytes().max(LZ4_MIN_BLOCK)) {
            return Err(malformed("a buffer's lz4 frame is not sound, or is too large"));
        }
        Ok(())
    }

    fn charge(&mut self, bytes: u64) -> Result<(), IngestError> {
        self.bytes_left = self.bytes_left.checked_sub(bytes).ok_or_else(|| {
            let limit = self.limits.max_decoded_bytes;
            IngestError::TooLarge(format!("the columns, unpacked, are over {limit} bytes; send smaller batches"))
        })?;
        Ok(())
    }

    fn max_bytes(&self) -> u64 {
        u64::try_from(self.limits.max_decoded_bytes).unwrap_or(u64::MAX)
    }
}

/// Checks the columns' types, and that names and metadata do not repeat one long text many times.
fn schema(schema: ipc::Schema<'_>) -> Result<(), IngestError> {
    if schema.endianness() != Endianness::Little {
        return Err(malformed("the stream is not little-endian"));
    }
    let mut text_bytes = metadata_bytes(schema.custom_metadata());
    let mut faults = Faults::default();
    for (index, field) in schema.fields().into_iter().flatten().enumerate() {
        if index >= MAX_COLUMNS {
            return Err(malformed("over 64 columns"));
        }
        let name = field.name().unwrap_or_default();
        text_bytes += name.len() + metadata_bytes(field.custom_metadata());
        let nested = field.children().is_some_and(|children| !children.is_empty());
        let flat = matches!(
            field.type_type(),
            ipc::Type::Null
                | ipc::Type::Int
                | ipc::Type::FloatingPoint
                | ipc::Type::Bool
                | ipc::Type::Utf8
                | ipc::Type::LargeUtf8
                | ipc::Type::Utf8View
                | ipc::Type::Date
                | ipc::Type::Timestamp
        );
        if nested || !flat || !has_known_parameters(&field) {
            let kind = field.type_type().variant_name().unwrap_or("unknown");
            faults.field(0, shown(name), format!("the Arrow type {kind} is not supported as it is given here"));
        }
    }
    if text_bytes > MAX_METADATA_BYTES {
        return Err(malformed("the metadata of the schema is over 1 MiB"));
    }
    if faults.is_empty() { Ok(()) } else { Err(faults.into_error(RowKind::Sample)) }
}

/// Whether the type's parameters, and those of its dictionary's index, are ones that exist: Arrow's reader panics on
/// any other.
fn has_known_parameters(field: &ipc::Field<'_>) -> bool {
    let known_width = |int: ipc::Int<'_>| matches!(int.bitWidth(), 8 | 16 | 32 | 64);
    let known = match field.type_type() {
        ipc::Type::Int => field.type_as_int().is_some_and(known_width),
        ipc::Type::FloatingPoint => {
            field.type_as_floating_point().is_some_and(|float| float.precision().variant_name().is_some())
        }
        ipc::Type::Date => field.type_as_date().is_some_and(|date| date.unit().variant_name().is_some()),
        ipc::Type::Timestamp => field.type_as_timestamp().is_some_and(|time| time.unit().variant_name().is_some()),
        _ => true,
    };
    known && field.dictionary().is_none_or(|dictionary| dictionary.indexType().is_some_and(known_width))
}

fn metadata_bytes<'a>(pairs: Option<impl IntoIterator<Item = ipc::KeyValue<'a>>>) -> usize {
    let len = |text: Option<&str>| text.map_or(0, str::len);
    pairs.into_iter().flatten().map(|pair| len(pair.key()) + len(pair.value()) + size_of::<(String, String)>()).sum()
}

/// The smallest of the block sizes of an lz4 frame.
const LZ4_MIN_BLOCK: u64 = 64 << 10;

/// The most bytes that an lz4 frame (LZ4 Frame Format 1.6) can unpack to: block by block, the block size or 255 times
/// what is there. None for what is not exactly one frame.
fn lz4_bound(frame: &[u8]) -> Option<u64> {
    let (magic, rest) = frame.split_first_chunk()?;
    let (&[flags, block_descriptor], rest) = rest.split_first_chunk()?;
    if u32::from_le_bytes(*magic) != 0x184d_2204 || flags >> 6 != 1 {
        return None;
    }
    let has = |bit: u8| usize::from(flags >> bit & 1);
    let (block_checksum, content_size, content_checksum, dictionary_id) = (has(4), has(3), has(2), has(0));
    let max_block = match block_descriptor >> 4 & 7 {
        size @ 4..=7 => LZ4_MIN_BLOCK << (2 * u32::from(size - 4)),
        _ => return None,
    };
    let mut rest = rest.get(content_size * 8 + dictionary_id * 4 + 1..)?;
    let mut bound = 0_u64;
    loop {
        let (size, after) = rest.split_first_chunk()?;
        let size = u32::from_le_bytes(*size);
        if size == 0 {
            return (after.len() == content_checksum * 4).then_some(bound);
        }
        let len = size & 0x7fff_ffff;
        bound += max_block.min(u64::from(len) * 255);
        rest = after.get(usize::try_from(len).ok()? + block_checksum * 4..)?;
    }
}

fn malformed(reason: &str) -> IngestError {
    IngestError::malformed(format!("not a sound Arrow stream: {reason}"))
}

fn truncated() -> IngestError {
    malformed("it is cut short")
}

fn no_header() -> IngestError {
    malformed("a message lacks its header")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, NullArray, StringArray};
    use arrow::ipc::CompressionType;
    use arrow::record_batch::RecordBatch;

    use super::super::fixtures::*;
    use super::super::{DecodeLimits, IngestError, Media};
    use super::{check, lz4_bound};

    fn column_of(values: ArrayRef) -> RecordBatch {
        RecordBatch::try_from_iter_with_nullable([("error_message", values, true)]).unwrap()
    }

    fn check_within(body: &[u8], max_decoded_bytes: usize) -> Result<(), IngestError> {
        check(body, DecodeLimits { max_decoded_bytes, ..DecodeLimits::default() })
    }

    #[test]
    fn a_stream_cut_anywhere_within_a_message_is_malformed() {
        let body = stream(&[emitted(2)], None);
        let cuts = (1..body.len()).filter(|&cut| check_within(&body[..cut], 1 << 20).is_ok()).count();
        // Whole messages with no end mark are a stream: after the schema, and after the batch.
        assert_eq!(cuts, 2);
    }

    #[test]
    fn bytes_after_the_end_are_malformed() {
        let body = [stream(&[emitted(1)], None), b"x".to_vec()].concat();
        assert_eq!(decode_arrow(&body).unwrap_err().code(), "malformed_body");
    }

    #[test]
    fn a_buffer_that_claims_to_unpack_to_more_than_the_limit_is_refused_unread() {
        let long = column_of(Arc::new(StringArray::from(vec!["x".repeat(5_000_000)])));
        for codec in [CompressionType::ZSTD, CompressionType::LZ4_FRAME] {
            let body = stream(std::slice::from_ref(&long), Some(codec));
            assert!(body.len() < 100_000);
            assert_eq!(check_within(&body, 1_000_000).unwrap_err().status(), 413);
            check_within(&body, 6_000_000).unwrap();
        }
    }

    #[test]
    fn an_lz4_buffer_that_unpacks_to_more_than_it_claims_is_refused_unread() {
        let long = column_of(Arc::new(StringArray::from(vec!["x".repeat(5_000_000)])));
        let mut body = stream(&[long], Some(CompressionType::LZ4_FRAME));
        let claim = 5_000_000_i64.to_le_bytes();
        let at = body.windows(8).rposition(|window| window == claim).unwrap();
        body[at..at + 8].copy_from_slice(&100_i64.to_le_bytes());
        assert_eq!(check_within(&body, 1_000_000).unwrap_err().code(), "malformed_body");
    }

    #[test]
    fn the_bound_of_an_lz4_frame_holds() {
        for text in ["", "short", &"x".repeat(300_000), &"abcdefgh".repeat(100_000)] {
            let body = stream(&[column_of(Arc::new(StringArray::from(vec![text])))], Some(CompressionType::LZ4_FRAME));
            let Some(at) = body.windows(4).rposition(|window| window == 0x184d_2204_u32.to_le_bytes()) else {
                continue;
            };
            let end = (at..=body.len()).find(|&end| lz4_bound(&body[at..end]).is_some()).unwrap();
            assert!(lz4_bound(&body[at..end]).unwrap() >= text.len() as u64);
        }
    }

    #[test]
    fn rows_that_cost_no_bytes_count_too() {
        let body = stream(&[column_of(Arc::new(NullArray::new(10_000_000)))], None);
        assert!(body.len() < 1000);
        assert_eq!(decode_arrow(&body).unwrap_err().status(), 413);
    }

    #[test]
    fn many_columns_are_refused() {
        let column = Arc::new(StringArray::from(vec!["x"])) as ArrayRef;
        let batch = RecordBatch::try_from_iter((0..100).map(|n| (format!("c{n}"), Arc::clone(&column)))).unwrap();
        assert_eq!(
            decode_as(Media::ArrowStream, &stream(&[batch], None), DecodeLimits::default()).unwrap_err().status(),
            400
        );
    }

    #[test]
    fn text_of_another_kind_is_malformed() {
        for body in [b"{}".as_slice(), b"ARROW1\0\0", b"PAR1", &[0xff; 64], &[0; 64]] {
            assert_eq!(decode_arrow(body).unwrap_err().code(), "malformed_body");
        }
    }
}
