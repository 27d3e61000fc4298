//! Entries of a segment, from any writer of Parquet: its physical form is free, what it says is not.
//!
//! Dictionaries, encodings, compression, row groups, the names of a list's items, the embedded Arrow schema and how it
//! spells the time zone: none of these matter. Which columns there are, of which type, what the metadata says: all of
//! that does.
//!
//! A batch of rows is checked by itself here, apart from its place: each row's `entry_hash` must be the hash of the
//! canonical bytes that its columns give. That is nearly all of the work, and it needs no other row, so it is done on
//! many threads.

use std::fmt::Display;
use std::sync::Arc;

use arrow::array::{Array, AsArray, Int64Array, StringArray, TimestampMicrosecondArray, new_null_array};
use arrow::datatypes::{DataType, Int64Type, SchemaRef, TimeUnit, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};

use super::claims::Claims;
use super::source::Blob;
use super::{Fault, Kind};
use crate::audit::entry::{self, Columns};
use crate::audit::segment::{META_ORIGIN, META_VERSION, SegmentName};
use crate::audit::{Hash, Leaf, tree};
use crate::model::schema::schemas;

/// Rows of a batch.
const BATCH_ROWS: usize = 4_096;

/// The path of a segment, for messages and for the source.
pub(super) fn path(name: SegmentName) -> String {
    format!("segments/{name}")
}

/// Opens a segment of the ledger `origin`.
pub(super) fn open(name: SegmentName, blob: Blob, origin: &str) -> Result<Rows, Fault> {
    let fault = |kind, why: &dyn Display| Fault { kind, seq: Some(name.first), file: path(name), why: why.to_string() };
    let unreadable = |why: &dyn Display| fault(Kind::Unreadable, why);
    // The Arrow schema that some writers embed is a second word on the columns; only Parquet's own counts.
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    let builder =
        ParquetRecordBatchReaderBuilder::try_new_with_options(blob.clone(), options).map_err(|e| unreadable(&e))?;
    let file = builder.metadata().file_metadata();
    for (key, wanted, kind) in [(META_VERSION, entry::VERSION, Kind::Changed), (META_ORIGIN, origin, Kind::WrongOrg)] {
        let pairs = file.key_value_metadata().into_iter().flatten().filter(|pair| pair.key == key);
        let values: Vec<_> = pairs.map(|pair| pair.value.as_deref().unwrap_or_default()).collect();
        if values != [wanted] {
            return Err(fault(kind, &format!("its metadata {key} is {values:?}, not {wanted}")));
        }
    }
    let schema = Arc::clone(&schemas().map_err(|e| unreadable(&e))?.audit_log);
    check_columns(&schema, builder.schema()).map_err(|why| fault(Kind::Changed, &why))?;
    let total = u64::try_from(file.num_rows()).unwrap_or(0);
    // Whatever the file says beside its rows is judged after them: an entry that was changed is the better word for it.
    let claims = Claims::open(name, blob, builder.metadata());
    let reader = builder.with_batch_size(BATCH_ROWS).build().map_err(|e| unreadable(&e))?;
    Ok(Rows { name, total, schema, reader, claims })
}

/// Whether `found` has the columns of an entry, and no others.
fn check_columns(wanted: &SchemaRef, found: &SchemaRef) -> Result<(), String> {
    for field in found.fields() {
        if wanted.field_with_name(field.name()).is_err() {
            return Err(format!("it has a column {} that no entry has", field.name()));
        }
    }
    for field in wanted.fields() {
        let same: Vec<_> = found.fields().iter().filter(|column| column.name() == field.name()).collect();
        let [column] = same.as_slice() else {
            return Err(format!(
                "it has {} column {}",
                if same.is_empty() { "no" } else { "more than one" },
                field.name()
            ));
        };
        if !is_of(field.data_type(), column.data_type()) {
            return Err(format!("its column {} is of the type {}", field.name(), column.data_type()));
        }
    }
    Ok(())
}

/// Whether a column of the type `found` holds what is wanted. A column that is null in every row may have no type of
/// its own.
fn is_of(wanted: &DataType, found: &DataType) -> bool {
    match (wanted, found) {
        (DataType::Timestamp(..), DataType::Timestamp(TimeUnit::Microsecond, _)) | (_, DataType::Null) => true,
        (DataType::List(wanted), DataType::List(found)) => is_of(wanted.data_type(), found.data_type()),
        _ => wanted == found,
    }
}

/// The rows of a segment, batch by batch.
pub(super) struct Rows {
    pub(super) name: SegmentName,
    /// How many there are, by the file's word.
    pub(super) total: u64,
    schema: SchemaRef,
    reader: ParquetRecordBatchReader,
    claims: Result<Claims, Fault>,
}

impl Rows {
    /// Reads on.
    pub(super) fn next_batch(&mut self) -> Option<Result<RecordBatch, Fault>> {
        let batch = self.reader.next()?;
        let unreadable =
            |why: String| Fault { kind: Kind::Unreadable, seq: Some(self.name.first), file: path(self.name), why };
        let batch = batch.and_then(|batch| typed(&self.schema, &batch)).map_err(|error| unreadable(error.to_string()));
        if let (Ok(batch), Ok(claims)) = (&batch, &mut self.claims) {
            claims.take(batch);
        }
        Some(batch)
    }

    /// Holds what the file says beside its rows against them. All of them have been read.
    pub(super) fn judge(self) -> Result<(), Fault> {
        self.claims?.judge()
    }
}

/// The batch with a type for columns that have none.
fn typed(schema: &SchemaRef, batch: &RecordBatch) -> Result<RecordBatch, arrow::error::ArrowError> {
    let is_untyped = |found: &DataType| match found {
        DataType::List(item) => *item.data_type() == DataType::Null,
        found => *found == DataType::Null,
    };
    if !batch.columns().iter().any(|column| is_untyped(column.data_type())) {
        return Ok(batch.clone());
    }
    let found = batch.schema();
    let columns = found.fields().iter().zip(batch.columns()).map(|(field, column)| {
        let wanted = schema.field_with_name(field.name())?.data_type();
        // A list of untyped items holds none, or nulls, which no list may hold; so null is what it comes to.
        let column = match is_untyped(column.data_type()) {
            true if column.as_list_opt::<i32>().is_some_and(|list| !list.values().is_empty()) => Arc::clone(column),
            true => new_null_array(wanted, column.len()),
            false => Arc::clone(column),
        };
        Ok((field.name().clone(), column, true))
    });
    RecordBatch::try_from_iter_with_nullable(columns.collect::<Result<Vec<_>, arrow::error::ArrowError>>()?)
}

/// A row that is what its hash says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    pub(super) leaf: Leaf,
    /// The leaf's hash.
    pub(super) hash: Hash,
    pub(super) recorded_at: Option<i64>,
}

/// A row that is not what its hash says, or has no number or no hashes.
#[derive(Debug)]
pub(super) struct BadRow {
    /// What it has for its number.
    pub(super) seq: Option<u64>,
    pub(super) why: String,
}

/// An entry by which the ledger speaks of itself: a removal, a new key.
#[derive(Debug, Clone)]
pub(super) struct Notice {
    pub(super) seq: u64,
    pub(super) action: String,
    pub(super) detail: Option<String>,
    /// Whether it is the control plane's, see `removals`.
    pub(super) is_own: bool,
}

/// Numbers in a row that one emitter gave, the last one included.
#[derive(Debug)]
pub(super) struct Emitted {
    pub(super) instance: String,
    pub(super) first: i64,
    pub(super) last: i64,
}

/// What a batch holds: sound rows, up to the first that is not.
#[derive(Debug, Default)]
pub(super) struct Checked {
    pub(super) rows: Vec<Row>,
    pub(super) bad: Option<BadRow>,
    pub(super) notices: Vec<Notice>,
    pub(super) emitted: Vec<Emitted>,
}

/// Checks a batch of the ledger `origin`.
pub(super) fn check(batch: &RecordBatch, origin: &str) -> Checked {
    let mut checked = Checked::default();
    let columns = Columns::of(batch).map_err(|e| e.to_string()).and_then(|columns| {
        let text = |name: &str| batch.column_by_name(name).and_then(|column| column.as_string_opt::<i32>());
        let number = |name: &str| batch.column_by_name(name).and_then(|column| column.as_primitive_opt::<Int64Type>());
        let found = || {
            Some(Sealed {
                seq: number("seq")?,
                emitter_seq: number("emitter_seq")?,
                instance: text("instance")?,
                recorded_at: batch.column_by_name("recorded_at")?.as_primitive_opt::<TimestampMicrosecondType>()?,
                actor: text("actor")?,
                emitters: [
                    text("workspace")?,
                    text("instance")?,
                    text("request_id")?,
                    text("trace_id")?,
                    text("span_id")?,
                    text("invocation_id")?,
                ],
                action: text("action")?,
                detail: text("detail")?,
                prev_hash: text("prev_hash")?,
                entry_hash: text("entry_hash")?,
            })
        };
        Ok((columns, found().ok_or("a column is of another type")?))
    });
    let (columns, sealed) = match columns {
        Ok(found) => found,
        Err(why) => {
            checked.bad = Some(BadRow { seq: None, why });
            return checked;
        }
    };
    let mut canonical = Vec::with_capacity(1_024);
    checked.rows.reserve(batch.num_rows());
    for row in 0..batch.num_rows() {
        match sealed.check(row, &columns, origin, &mut canonical) {
            Ok(leaf) => {
                let recorded_at = sealed.recorded_at.is_valid(row).then(|| sealed.recorded_at.value(row));
                checked.rows.push(Row { leaf, hash: tree::leaf_hash(&leaf.bytes()), recorded_at });
                sealed.note(row, leaf.seq, &mut checked);
            }
            Err(why) => {
                checked.bad = Some(BadRow { seq: sealed.seq(row), why });
                break;
            }
        }
    }
    checked
}

/// The columns that give an entry's place, and what is reported of it.
struct Sealed<'a> {
    seq: &'a Int64Array,
    emitter_seq: &'a Int64Array,
    instance: &'a StringArray,
    recorded_at: &'a TimestampMicrosecondArray,
    actor: &'a StringArray,
    /// Columns that only emitters fill.
    emitters: [&'a StringArray; 6],
    action: &'a StringArray,
    detail: &'a StringArray,
    prev_hash: &'a StringArray,
    entry_hash: &'a StringArray,
}

impl Sealed<'_> {
    fn seq(&self, row: usize) -> Option<u64> {
        let seq = self.seq.is_valid(row).then(|| self.seq.value(row));
        seq.and_then(|seq| u64::try_from(seq).ok())
    }

    fn check(&self, row: usize, columns: &Columns<'_>, origin: &str, canonical: &mut Vec<u8>) -> Result<Leaf, String> {
        let hash = |column: &StringArray, name: &str| {
            let text = column.is_valid(row).then(|| column.value(row)).ok_or_else(|| format!("it has no {name}"))?;
            text.parse::<Hash>().map_err(|_| format!("its {name} is not 64 lower-case hex digits"))
        };
        let seq = self.seq(row).ok_or("it has no seq")?;
        let prev_hash = hash(self.prev_hash, "prev_hash")?;
        let entry_hash = hash(self.entry_hash, "entry_hash")?;
        canonical.clear();
        columns.write_canonical(row, origin, seq, &prev_hash, canonical).map_err(|e| e.to_string())?;
        let found = Hash::of(&[canonical]);
        if found == entry_hash {
            Ok(Leaf { seq, prev_hash, entry_hash })
        } else {
            Err(format!("its columns hash to {found}, and its entry_hash is {entry_hash}"))
        }
    }

    fn note(&self, row: usize, seq: u64, checked: &mut Checked) {
        let text = |column: &StringArray| column.is_valid(row).then(|| column.value(row).to_owned());
        if self.action.is_valid(row) && self.action.value(row).starts_with("ledger.") {
            let action = text(self.action).unwrap_or_default();
            let detail = text(self.detail);
            let is_own = self.is_own(row, detail.as_deref());
            checked.notices.push(Notice { seq, action, detail, is_own });
        }
        if self.emitter_seq.is_valid(row) {
            let (number, instance) =
                (self.emitter_seq.value(row), if self.instance.is_valid(row) { self.instance.value(row) } else { "" });
            match checked
                .emitted
                .last_mut()
                .filter(|run| run.instance == instance && run.last.checked_add(1) == Some(number))
            {
                Some(run) => run.last = number,
                None => checked.emitted.push(Emitted { instance: instance.to_owned(), first: number, last: number }),
            }
        }
    }
}

/// What the actor of the control plane itself begins with.
const CONTROL_PLANE: &str = "system:control-plane@";
/// The prefix of the actor of a caller who asked the control plane with a token.
const TOKEN: &str = "service:";
/// Who asked a control plane that has no tokens.
const ANYBODY: &str = "anonymous";

impl Sealed<'_> {
    /// Whether an entry is the control plane's own, see `removals`.
    fn is_own(&self, row: usize, detail: Option<&str>) -> bool {
        let actor = if self.actor.is_valid(row) { self.actor.value(row) } else { "" };
        if actor.starts_with(CONTROL_PLANE) {
            return true;
        }
        let asked = actor == ANYBODY || actor.starts_with(TOKEN);
        let is_emitted = self.emitter_seq.is_valid(row) || self.emitters.iter().any(|column| column.is_valid(row));
        let members = detail.map(serde_json::from_str::<serde_json::Map<String, serde_json::Value>>);
        let is_stamped =
            members.is_some_and(|members| members.map_or(true, |members| members.contains_key("submitted_by")));
        asked && !is_emitted && !is_stamped
    }
}

/// The canonical bytes of the entry `seq`; none where no row has this number.
pub(super) fn canonical(rows: &mut Rows, origin: &str, seq: u64) -> Result<Option<Vec<u8>>, Fault> {
    while let Some(batch) = rows.next_batch() {
        let batch = batch?;
        let seqs = batch.column_by_name("seq").and_then(|column| column.as_primitive_opt::<Int64Type>());
        let row = seqs.and_then(|seqs| seqs.values().iter().position(|found| u64::try_from(*found) == Ok(seq)));
        let Some(row) = row else { continue };
        let prev_hash = batch.column_by_name("prev_hash").and_then(|column| column.as_string_opt::<i32>());
        let prev_hash =
            prev_hash.filter(|hashes| hashes.is_valid(row)).and_then(|hashes| hashes.value(row).parse().ok());
        let fault = |why: String| Fault { kind: Kind::Changed, seq: Some(seq), file: path(rows.name), why };
        let prev_hash = prev_hash.ok_or_else(|| fault("it has no prev_hash".to_owned()))?;
        let mut written = Vec::new();
        let columns = Columns::of(&batch).map_err(|e| fault(e.to_string()))?;
        columns.write_canonical(row, origin, seq, &prev_hash, &mut written).map_err(|e| fault(e.to_string()))?;
        return Ok(Some(written));
    }
    Ok(None)
}

/// Where numbers lie in a segment: how many rows there are, and whether one of them is `wanted`.
pub(super) fn find(rows: &mut Rows, wanted: u64) -> Result<(u64, bool), Fault> {
    let (mut count, mut found) = (0, false);
    while let Some(batch) = rows.next_batch() {
        let batch = batch?;
        count += batch.num_rows() as u64;
        let seqs = batch.column_by_name("seq").and_then(|column| column.as_primitive_opt::<Int64Type>());
        found |= seqs.is_some_and(|seqs| seqs.iter().flatten().any(|seq| u64::try_from(seq) == Ok(wanted)));
    }
    Ok((count, found))
}
