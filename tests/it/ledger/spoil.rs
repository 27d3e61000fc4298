//! What a thief of the store can do who knows the format: read segments, change them, and write them again, hashes and
//! all.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray, UInt32Array, new_null_array,
};
use arrow::compute::{concat_batches, take_record_batch};
use arrow::datatypes::DataType;
use bytes::Bytes;
use mcpg::audit::note::Note;
use mcpg::audit::segment::SegmentName;
use mcpg::audit::{ChainHead, Checkpoint, Hash, Leaf, TreeEdge, keys, seal};
use mcpg::model::schema::schemas;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;

use super::given::Copied;

/// The entries of a ledger, a batch a segment.
pub(crate) struct Segments<'a> {
    copy: &'a Copied,
    pub(crate) names: Vec<SegmentName>,
    pub(crate) origin: String,
}

impl<'a> Segments<'a> {
    pub(crate) fn of(copy: &'a Copied) -> Self {
        let names = copy.names("segments").iter().map(|name| name.parse().unwrap()).collect();
        Self { copy, names, origin: copy.vkey.split('+').next().unwrap().to_owned() }
    }

    /// The segment that holds an entry.
    pub(crate) fn of_entry(&self, seq: u64) -> SegmentName {
        *self.names.iter().find(|name| name.first <= seq && seq <= name.last).unwrap()
    }

    pub(crate) fn read(&self, name: SegmentName) -> RecordBatch {
        read(&self.copy.ledger.join(format!("segments/{name}")))
    }

    /// Writes entries as the segment `name`.
    pub(crate) fn write(&self, name: SegmentName, batch: &RecordBatch) {
        let metadata = [("mcpg.v", "mcpg.audit/1"), ("mcpg.origin", self.origin.as_str())];
        self.write_as(name, batch, &metadata, WriterProperties::builder().build());
    }

    /// Writes a file with this metadata in this physical form.
    pub(crate) fn write_as(
        &self,
        name: SegmentName,
        batch: &RecordBatch,
        pairs: &[(&str, &str)],
        form: WriterProperties,
    ) {
        let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(form)).unwrap();
        writer.write(batch).unwrap();
        for (key, value) in pairs {
            writer.append_key_value_metadata(KeyValue::new((*key).to_owned(), (*value).to_owned()));
        }
        self.copy.write(&format!("segments/{name}"), &writer.into_inner().unwrap());
    }

    /// Changes the rows of the segment that holds `seq`; `change` is given the entry's row there.
    pub(crate) fn change(&self, seq: u64, change: impl FnOnce(RecordBatch, usize) -> RecordBatch) -> SegmentName {
        let name = self.of_entry(seq);
        let batch = self.read(name);
        self.write(name, &change(batch, (seq - name.first) as usize));
        name
    }

    /// Hashes and chains the entries from the segment that holds `seq` on anew, and gives all leaves of the ledger.
    pub(crate) fn rehash_from(&self, seq: u64) -> Vec<Leaf> {
        let (mut head, mut leaves) = (ChainHead::default(), Vec::new());
        for name in &self.names {
            let batch = self.read(*name);
            let sealed = seal(&schemas().unwrap().audit_log, &self.origin, &head, &events_of(&batch)).unwrap();
            if name.last >= seq {
                self.write(*name, &sealed.batch);
            }
            head = sealed.head;
            leaves.extend(sealed.leaves);
        }
        leaves
    }

    /// Writes the tiles and bundles over `leaves`.
    pub(crate) fn write_tiles(&self, leaves: &[Leaf]) -> Hash {
        let mut edge = TreeEdge::default();
        leaves.iter().for_each(|leaf| edge.push(leaf));
        for (path, bytes) in edge.take_tiles() {
            self.copy.write(&format!("tile/{path}"), &bytes);
        }
        edge.root()
    }
}

pub(crate) fn read(path: &Path) -> RecordBatch {
    let bytes = Bytes::from(std::fs::read(path).unwrap());
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap().build().unwrap();
    let batches: Vec<_> = reader.map(Result::unwrap).collect();
    concat_batches(&schemas().unwrap().audit_log, &batches).unwrap()
}

/// The entries without what chains them.
pub(crate) fn events_of(batch: &RecordBatch) -> RecordBatch {
    let schema = &schemas().unwrap().audit_event;
    let columns = schema.fields().iter().map(|field| Arc::clone(batch.column_by_name(field.name()).unwrap()));
    RecordBatch::try_new(Arc::clone(schema), columns.collect()).unwrap()
}

/// A head signed by the key in `file`.
pub(crate) fn sign(file: &Path, origin: &str, size: u64, root: Hash) -> Vec<u8> {
    let key = keys::load(file).unwrap().unwrap();
    let checkpoint = Checkpoint { origin: origin.to_owned(), size, root };
    Note::sign(checkpoint.to_string(), origin, &[&key]).unwrap().to_string().into_bytes()
}

/// The rows in the order `order`, each as often as it is named.
pub(crate) fn rows(batch: &RecordBatch, order: impl IntoIterator<Item = usize>) -> RecordBatch {
    let order: UInt32Array = order.into_iter().map(|row| Some(row as u32)).collect();
    take_record_batch(batch, &order).unwrap()
}

/// The batch with another column in the place of `name`.
pub(crate) fn with_column(batch: &RecordBatch, name: &str, column: ArrayRef) -> RecordBatch {
    let schema = batch.schema();
    let columns = schema.fields().iter().zip(batch.columns()).map(|(field, old)| {
        (field.name().clone(), if field.name() == name { Arc::clone(&column) } else { Arc::clone(old) }, true)
    });
    RecordBatch::try_from_iter_with_nullable(columns.collect::<Vec<_>>()).unwrap()
}

/// The batch with another value of `column` in `row`.
pub(crate) fn changed(batch: &RecordBatch, column: &str, row: usize) -> RecordBatch {
    let old = batch.column_by_name(column).unwrap();
    let one: ArrayRef = match old.data_type() {
        DataType::Int64 => Arc::new(Int64Array::from(vec![9_000_000_000])),
        DataType::Timestamp(..) => Arc::new(TimestampMicrosecondArray::from(vec![1]).with_timezone("UTC")),
        DataType::Utf8 if column.ends_with("_hash") => Arc::new(StringArray::from(vec!["ab".repeat(32)])),
        DataType::Utf8 => Arc::new(StringArray::from(vec!["another"])),
        other => new_null_array(other, 1),
    };
    let (before, after) = (old.slice(0, row), old.slice(row + 1, old.len() - row - 1));
    with_column(batch, column, arrow::compute::concat(&[&before, &one, &after]).unwrap())
}
