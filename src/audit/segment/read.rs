//! Reading segments: the metadata must be that of entries, and the rows numbered as the name says.
//!
//! What does not fit is [`StorageError::Damaged`]. Hashes are not recomputed here; `audit/verify` does that.

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder};

use super::{META_ORIGIN, META_POSITION, META_STANDING, META_VERSION, SegmentName};
use crate::audit::{ChainHead, Hash, entry};
use crate::storage::StorageError;

/// Rows of a batch as it is read.
const BATCH_ROWS: usize = 8_192;

/// What a segment says of itself, and where it leaves the chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentEnd {
    /// The ledger's origin.
    pub origin: String,
    /// `mcpg.position` of a segment of the first design. Nothing proves it.
    pub position: Option<u64>,
    /// `mcpg.standing` of a segment of the first design. Nothing proves it.
    pub standing: Option<String>,
    /// The chain after its last entry.
    pub head: ChainHead,
}

/// A segment that was opened: its metadata was found to be that of entries.
pub(super) struct Opened {
    pub(super) bytes: Bytes,
    pub(super) reader: ArrowReaderMetadata,
    pub(super) origin: String,
    position: Option<u64>,
    standing: Option<String>,
}

impl Opened {
    pub(super) fn new(path: &str, bytes: Bytes) -> Result<Self, StorageError> {
        let damaged = |reason: String| StorageError::damaged(path, reason);
        // The Arrow schema that segments of the first design embed describes the columns a second time; Parquet's own
        // counts.
        let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true).with_encoding_stats_as_mask(false);
        let reader = ArrowReaderMetadata::load(&bytes, options).map_err(|e| damaged(e.to_string()))?;
        let metadata = reader.metadata().file_metadata().key_value_metadata().cloned().unwrap_or_default();
        let find = |key: &str| metadata.iter().find(|pair| pair.key == key).and_then(|pair| pair.value.clone());
        let value = |key: &str| find(key).ok_or_else(|| damaged(format!("its metadata has no {key}")));
        let version = value(META_VERSION)?;
        if version != entry::VERSION {
            return Err(damaged(format!("its entries are of version {version}, not {}", entry::VERSION)));
        }
        let origin = value(META_ORIGIN)?;
        let position = find(META_POSITION).and_then(|position| position.parse().ok());
        Ok(Self { bytes, reader, origin, position, standing: find(META_STANDING) })
    }

    pub(super) fn builder(&self) -> ParquetRecordBatchReaderBuilder<Bytes> {
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(self.bytes.clone(), self.reader.clone());
        builder.with_batch_size(BATCH_ROWS)
    }
}

/// Reads a segment of our own from its bytes, handing each batch to `take`; `path` is for messages.
///
/// # Errors
/// [`StorageError::Damaged`] when it is no segment, or has not the entries that its name says. This looks at what the
/// control plane goes on from, not at every hash: that is `mcpg audit verify`.
pub fn read(
    path: &str,
    name: SegmentName,
    bytes: Bytes,
    mut take: impl FnMut(RecordBatch) -> Result<(), StorageError>,
) -> Result<SegmentEnd, StorageError> {
    let opened = Opened::new(path, bytes)?;
    let head = numbered(path, name, opened.builder(), &mut take)?;
    let Opened { origin, position, standing, .. } = opened;
    Ok(SegmentEnd { origin, position, standing, head })
}

/// Reads rows and checks that they are numbered as the segment's name says; returns the chain after the last one.
pub(super) fn numbered(
    path: &str,
    name: SegmentName,
    builder: ParquetRecordBatchReaderBuilder<Bytes>,
    take: &mut dyn FnMut(RecordBatch) -> Result<(), StorageError>,
) -> Result<ChainHead, StorageError> {
    let damaged = |reason: String| StorageError::damaged(path, reason);
    let (mut next, mut last) = (name.first, None);
    let reader = builder.build().map_err(|e| damaged(e.to_string()))?;
    for batch in reader {
        let batch = batch.map_err(|e| damaged(e.to_string()))?;
        let column = |name: &str| batch.column_by_name(name).ok_or_else(|| damaged(format!("it has no column {name}")));
        let seqs =
            column("seq")?.as_primitive_opt::<Int64Type>().ok_or_else(|| damaged("seq is no int64".to_owned()))?;
        for seq in seqs.iter() {
            if next > name.last || seq.and_then(|seq| u64::try_from(seq).ok()) != Some(next) {
                return Err(damaged(format!("entry {next} is not where it should be")));
            }
            next += 1;
        }
        let hashes = column("entry_hash")?.as_string_opt::<i32>();
        let hashes = hashes.ok_or_else(|| damaged("entry_hash is no string".to_owned()))?;
        if let Some(hash) = hashes.iter().last() {
            last = hash.and_then(|hash| hash.parse::<Hash>().ok());
        }
        take(batch)?;
    }
    if next != name.last + 1 {
        return Err(damaged(format!("it ends before entry {next}, and its name says {}", name.last)));
    }
    let last = last.ok_or_else(|| damaged("its last entry_hash is no hash".to_owned()))?;
    Ok(ChainHead { size: next, last })
}
