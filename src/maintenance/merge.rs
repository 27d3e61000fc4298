//! Merging files of one partition: streams of rows in order become one, which is written as it comes.
//!
//! ```text
//! store ─▶ row group ─▶ batch ─┐
//! store ─▶ row group ─▶ batch ─┼─▶ least key first ─▶ fold (rollups) ─▶ row group ─▶ part of a file ─▶ store
//! store ─▶ row group ─▶ batch ─┘
//! ```
//!
//! Whatever the files' size, in memory are a row group of bytes and a batch of rows of each input
//! ([`super::plan::cost`]), the row group that is being written, and a part that is being sent: 256 MiB at most.
//! Nothing is sorted as a whole. The store is asked on the runtime; decoding, comparing and encoding happen on threads
//! that may block, a step at a time.
//!
//! What is put into the store is not named anywhere until it is committed: a crash or an error leaves orphans, for the
//! vacuum.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{AsArray, BooleanArray};
use arrow::compute::{filter_record_batch, interleave_record_batch};
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use arrow::row::Row;
use bytes::Bytes;
use object_store::path::Path;
use uuid::Uuid;

use super::fold::Folder;
use super::names::Stage;
use super::plan::{Bounds, Merge};
use super::source::{Head, Next, Source};
use super::upload::Upload;
use crate::node::Node;
use crate::storage::StorageError;
use crate::storage::parquet::{FileWriter, Keys, Purpose, is_partial};
use crate::storage::table::{Partitioning, WrittenFile};

/// Rows that are read of an input at a time, and their bytes where rows are wide.
const READ_ROWS: usize = 1_024;
const READ_BYTES: u64 = 1 << 20;
/// Rows that are written at a time, and their bytes where rows are wide.
const WRITE_ROWS: usize = 8_192;
const WRITE_BYTES: u64 = 8 << 20;

/// How many rows of so many bytes each are read of an input at a time.
pub(super) fn read_rows(row_bytes: u64) -> usize {
    rows_at_once(row_bytes, READ_ROWS, READ_BYTES)
}

fn rows_at_once(row_bytes: u64, rows: usize, bytes: u64) -> usize {
    usize::try_from(bytes / row_bytes.max(1)).unwrap_or(rows).clamp(1, rows)
}

/// What a merge has written.
#[derive(Debug, Default)]
pub(super) struct Merged {
    pub(super) files: Vec<WrittenFile>,
    pub(super) rows: u64,
}

/// Rows that are left out.
#[derive(Debug, Clone)]
pub(super) enum Filter {
    /// Those of a caller.
    Caller(String),
    /// Those of calls, by their ids.
    Calls(Arc<HashSet<u128>>),
}

impl Filter {
    /// The column that names calls.
    pub(super) const CALL: &'static str = "invocation_id";

    /// The column that says which rows these are.
    pub(super) fn column(&self) -> &'static str {
        match self {
            Self::Caller(_) => "caller",
            Self::Calls(_) => Self::CALL,
        }
    }

    /// Whether a row that has this there is one of them.
    pub(super) fn takes(&self, value: Option<&str>) -> bool {
        match self {
            Self::Caller(caller) => value == Some(caller),
            Self::Calls(calls) => {
                value.and_then(|id| Uuid::try_parse(id).ok()).is_some_and(|id| calls.contains(&id.as_u128()))
            }
        }
    }

    fn apply(&self, batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
        let Some(column) = batch.column_by_name(self.column()) else { return Ok(batch.clone()) };
        let kept: BooleanArray = column.as_string::<i32>().iter().map(|value| Some(!self.takes(value))).collect();
        filter_record_batch(batch, &kept)
    }
}

/// Where the files of a table go.
#[derive(Debug, Clone)]
pub(super) struct Site {
    pub(super) folder: Path,
    pub(super) partitioning: Partitioning,
    /// The stored columns.
    pub(super) schema: SchemaRef,
}

impl Site {
    /// The path in the table's folder, and in the store, of a file of this name.
    fn of(&self, partition: i32, name: &str) -> (String, Path) {
        let name = self.partitioning.place(partition, name);
        let path = Path::from(format!("{}/{name}", self.folder));
        (name, path)
    }
}

/// Reads the inputs of a merge and puts its outcome into the store, but for rows that are to be left out.
pub(super) async fn merge(
    node: &Node,
    merge: &Merge,
    site: &Site,
    bounds: Bounds,
    filter: Option<Filter>,
) -> Result<Merged, StorageError> {
    let mut sources = Vec::with_capacity(merge.inputs.len());
    for input in &merge.inputs {
        sources.push(Source::open(&node.store, input, SchemaRef::clone(&site.schema)).await?);
    }
    let purpose = if merge.into.stage >= Stage::Day { Purpose::Kept } else { Purpose::Merged };
    let mut work = Work::new(sources, &site.schema, purpose, bounds).map_err(failed)?;
    let rows: u64 = merge.inputs.iter().map(|input| input.data.rows).sum();
    work.write_rows = rows_at_once(merge.bytes() / rows.max(1), WRITE_ROWS, WRITE_BYTES);
    work.filter = filter;
    let mut merged = Merged::default();
    let mut upload: Option<(String, Upload)> = None;
    loop {
        let (back, step) = on_thread(work).await?;
        work = back;
        if upload.is_none() && !matches!(step, Step::Needs(..) | Step::End) {
            let (name, path) = site.of(merge.partition, &merge.into.name(node.random.uuid()));
            upload = Some((name, Upload::new(&node.store, path)));
        }
        match step {
            Step::Needs(source, range) => {
                if let Some(source) = work.source(source) {
                    source.give(&node.store, range).await?;
                }
            }
            Step::Bytes(bytes) => {
                if let Some((_, upload)) = &mut upload {
                    upload.write(bytes).await?;
                }
            }
            Step::FileEnds { bytes, stats, rows } => {
                let Some((name, mut upload)) = upload.take() else { continue };
                upload.write(bytes).await?;
                let size = upload.finish().await?;
                merged.rows += rows as u64;
                merged.files.push(WrittenFile { name, partition: merge.partition, size, stats });
            }
            Step::End => return Ok(merged),
        }
    }
}

fn failed(e: ArrowError) -> StorageError {
    StorageError::failed("merge", "files", e)
}

/// Takes a step where it may block.
async fn on_thread(mut work: Box<Work>) -> Result<(Box<Work>, Step), StorageError> {
    let stepped = tokio::task::spawn_blocking(move || work.step().map(|step| (work, step))).await;
    stepped.unwrap_or_else(|e| Err(StorageError::failed("merge", "files", e)))
}

/// What a merge needs or has.
#[derive(Debug)]
enum Step {
    /// A source needs these bytes.
    Needs(usize, std::ops::Range<u64>),
    /// Bytes of the file that is being written.
    Bytes(Bytes),
    /// The last bytes of the file, and what there is to know of it.
    FileEnds { bytes: Bytes, stats: String, rows: usize },
    /// There is nothing left.
    End,
}

/// An input that has rows.
#[derive(Debug)]
struct Cursor {
    source: usize,
    head: Head,
    row: usize,
    /// Where its batch is among those that rows were picked of.
    place: Option<usize>,
}

impl Cursor {
    fn rows(&self) -> usize {
        self.head.batch.num_rows()
    }

    fn key(&self) -> Option<Row<'_>> {
        self.head.keys.as_ref().map(|keys| keys.row(self.row))
    }

    /// Whether its next row comes before another's: by their keys, and then in the order of the inputs.
    fn is_before(&self, other: &Self) -> bool {
        (self.key(), self.source) < (other.key(), other.source)
    }
}

/// A merge between two steps.
#[derive(Debug)]
struct Work {
    schema: SchemaRef,
    purpose: Purpose,
    bounds: Bounds,
    keys: Option<Keys>,
    folder: Option<Folder>,
    sources: Vec<Source>,
    /// Sources of which the next rows are to be read.
    hungry: Vec<usize>,
    cursors: Vec<Cursor>,
    /// Batches that rows were picked of, and the rows.
    batches: Vec<RecordBatch>,
    picked: Vec<(usize, usize)>,
    writer: Option<FileWriter>,
    write_rows: usize,
    filter: Option<Filter>,
    is_over: bool,
}

impl Work {
    fn new(
        sources: Vec<Source>,
        schema: &SchemaRef,
        purpose: Purpose,
        bounds: Bounds,
    ) -> Result<Box<Self>, ArrowError> {
        let folder = match (is_partial(schema), Keys::of(schema)?) {
            (true, Some(keys)) => Some(Folder::new(keys)),
            _ => None,
        };
        Ok(Box::new(Self {
            schema: SchemaRef::clone(schema),
            purpose,
            bounds,
            keys: Keys::of(schema)?,
            folder,
            hungry: (0..sources.len()).collect(),
            sources,
            cursors: Vec::new(),
            batches: Vec::new(),
            picked: Vec::new(),
            writer: None,
            write_rows: WRITE_ROWS,
            filter: None,
            is_over: false,
        }))
    }

    fn source(&mut self, number: usize) -> Option<&mut Source> {
        self.sources.get_mut(number)
    }

    /// Goes on until something is needed or done.
    fn step(&mut self) -> Result<Step, StorageError> {
        loop {
            while let Some(number) = self.hungry.pop() {
                let Some(source) = self.sources.get_mut(number) else { continue };
                match source.next(self.keys.as_ref())? {
                    Next::Rows(head) => self.cursors.push(Cursor { source: number, head, row: 0, place: None }),
                    Next::End => {}
                    Next::Needs(range) => {
                        self.hungry.push(number);
                        return Ok(Step::Needs(number, range));
                    }
                }
            }
            if let Some(step) = self.out()? {
                return Ok(step);
            }
            if self.cursors.is_empty() {
                if self.is_over {
                    return Ok(Step::End);
                }
                self.is_over = true;
                self.emit()?;
                if let Some(last) = self.folder.as_mut().and_then(Folder::finish) {
                    self.write(&last)?;
                }
                let end = self.writer.take().map(end_of).transpose()?;
                return Ok(end.unwrap_or(Step::End));
            }
            self.pick()?;
        }
    }

    /// What of the file that is being written can be sent.
    fn out(&mut self) -> Result<Option<Step>, StorageError> {
        let Some(writer) = &mut self.writer else { return Ok(None) };
        if writer.size() as u64 >= self.bounds.file_bytes {
            return self.writer.take().map(end_of).transpose();
        }
        Ok((writer.done() >= super::upload::PART).then(|| Step::Bytes(writer.take().into())))
    }

    /// Picks the rows that come next, until an input has none left or there are enough.
    fn pick(&mut self) -> Result<(), StorageError> {
        let mut is_read = false;
        while self.picked.len() < self.write_rows && !is_read {
            let Some((least, to)) = self.run() else { break };
            let Some(cursor) = self.cursors.get_mut(least) else { break };
            let batch = match cursor.place {
                Some(batch) => batch,
                None => {
                    self.batches.push(cursor.head.batch.clone());
                    *cursor.place.insert(self.batches.len() - 1)
                }
            };
            self.picked.extend((cursor.row..to).map(|row| (batch, row)));
            cursor.row = to;
            is_read = to >= cursor.rows();
            if is_read {
                self.hungry.push(cursor.source);
                self.cursors.swap_remove(least);
            }
        }
        if self.picked.len() >= self.write_rows { self.emit() } else { Ok(()) }
    }

    /// The input whose rows come next, and the row up to which they do.
    fn run(&self) -> Option<(usize, usize)> {
        let mut cursors = self.cursors.iter().enumerate();
        let (mut least, mut first) = cursors.next()?;
        let mut second: Option<&Cursor> = None;
        for (at, cursor) in cursors {
            if cursor.is_before(first) {
                second = Some(first);
                (least, first) = (at, cursor);
            } else if second.is_none_or(|second| cursor.is_before(second)) {
                second = Some(cursor);
            }
        }
        let most = first.rows().min(first.row + self.write_rows - self.picked.len());
        let mut to = first.row + 1;
        match (&first.head.keys, second.map(Cursor::key)) {
            (Some(keys), Some(Some(bound))) => {
                while to < most && keys.row(to) <= bound {
                    to += 1;
                }
            }
            _ => to = most,
        }
        Some((least, to))
    }

    /// Hands on the rows that were picked.
    fn emit(&mut self) -> Result<(), StorageError> {
        if self.picked.is_empty() {
            return Ok(());
        }
        let rows = interleave_record_batch(&self.batches.iter().collect::<Vec<_>>(), &self.picked).map_err(failed)?;
        self.picked.clear();
        self.batches.clear();
        self.cursors.iter_mut().for_each(|cursor| cursor.place = None);
        let rows = match &self.filter {
            Some(filter) => filter.apply(&rows).map_err(failed)?,
            None => rows,
        };
        match &mut self.folder {
            Some(folder) => {
                let rows = folder.push(rows).map_err(failed)?;
                self.write(&rows)
            }
            None => self.write(&rows),
        }
    }

    fn write(&mut self, rows: &RecordBatch) -> Result<(), StorageError> {
        if rows.num_rows() == 0 {
            return Ok(());
        }
        let writer = match &mut self.writer {
            Some(writer) => writer,
            None => self.writer.insert(FileWriter::new(&self.schema, self.purpose)?),
        };
        writer.write(rows)
    }
}

fn end_of(writer: FileWriter) -> Result<Step, StorageError> {
    let end = writer.finish()?;
    Ok(Step::FileEnds { bytes: end.bytes.into(), stats: end.stats, rows: end.rows })
}
