//! What a segment's file says about its rows beside the rows: column statistics, page indexes, page headers, bloom
//! filters, counts.
//!
//! Query engines skip rows by these, so a false one hides entries whose hashes are all right: a greatest `actor` that
//! is less than the true one makes `WHERE actor = …` find nothing. New segments say none of it; those of the first
//! design, and what other programs wrote, may. Each such statement is held against the rows that were decoded. One that
//! is false, that nothing here understands, or that cannot be compared is a fault.
//!
//! | checked | against |
//! |---|---|
//! | rows of the file, rows of a row group, values of a column chunk | page headers, rows |
//! | encodings, offsets, lengths of a column chunk | page headers |
//! | least, greatest, nulls of a chunk, a page (header and column index) | rows |
//! | histograms of levels, bytes of strings | rows |
//! | offset index: place, length, first row of each page | page headers, rows |
//! | bloom filter: every value is in it | rows |
//! | sort order, distinct values, paths to other files, encryption, fields without a known meaning | refused |
//!
//! Left aside, since they say nothing of rows: `created_by`, uncompressed sizes, offsets and ordinals of row groups and
//! column chunks that Parquet has twice, checksums of pages, column orders, names within the schema other than the
//! columns', types of older versions beside the newer ones, metadata under other keys than `mcpg.v` and `mcpg.origin`,
//! and bytes that no page and no index is at.
//!
//! | file | holds |
//! |---|---|
//! | `column` | what the rows of a column really are, and holding what is said of them against that |
//! | `pages` | the headers of pages |

mod column;
mod pages;

use arrow::record_batch::RecordBatch;
use parquet::bloom_filter::Sbbf;
use parquet::file::metadata::ParquetMetaData;
use parquet::file::reader::ChunkReader;

use self::column::{Column, Facts};
use self::pages::{Page, walk};
use super::rows::path;
use super::source::Blob;
use super::thrift::{Fields, Thrift, read};
use super::{Fault, Kind};
use crate::audit::segment::SegmentName;

/// The length of a footer and the magic number after it.
const TAIL: u64 = 8;
/// The most bytes of a page index of one column chunk.
const MAX_INDEX: u64 = 64 << 20;

/// A fault in words; the file and the entry are added at the end.
type Found<T> = Result<T, String>;

/// The claims of one segment's file, checked against its rows.
#[derive(Debug)]
pub(super) struct Claims {
    name: SegmentName,
    blob: Blob,
    footer: Fields,
    columns: Vec<Column>,
    /// Whether something is said that only the rows can confirm.
    needs_rows: bool,
    rows: u64,
}

impl Claims {
    /// What the file says, of which nothing is believed yet. `metadata` is the footer as the rows are decoded by.
    pub(super) fn open(name: SegmentName, blob: Blob, metadata: &ParquetMetaData) -> Result<Self, Fault> {
        Self::read(name, blob, metadata).map_err(|why| fault(name, why))
    }

    fn read(name: SegmentName, blob: Blob, metadata: &ParquetMetaData) -> Found<Self> {
        let footer = footer(&blob)?;
        known(&footer, "the footer", &[1, 2, 3, 4, 5, 6, 7])?;
        let mut columns: Vec<Column> = Vec::new();
        let schema = metadata.file_metadata().schema_descr();
        for leaf in schema.columns() {
            let parts = leaf.path().parts();
            let list =
                (leaf.max_rep_level() > 0).then(|| {
                    let is_optional =
                        i16::from(schema.root_schema().get_fields().iter().any(|field| {
                            Some(field.name()) == parts.first().map(String::as_str) && field.is_optional()
                        }));
                    let usual = leaf.max_rep_level() == 1 && parts.len() == 3;
                    // Lists of three levels: the list may be null, it may be empty, an item may be null.
                    (usual && (1..=2).contains(&(leaf.max_def_level() - is_optional))).then_some(is_optional)
                });
            columns.push(Column {
                name: parts.first().cloned().unwrap_or_default(),
                max_definition: leaf.max_def_level(),
                list,
                is_text: leaf.physical_type() == parquet::basic::Type::BYTE_ARRAY,
                pages: Vec::new(),
                blooms: Vec::new(),
                missed: None,
                at: 0,
                come: 0,
            });
        }
        let mut claims = Self { name, blob, footer, columns, needs_rows: false, rows: 0 };
        claims.look(metadata)?;
        Ok(claims)
    }

    /// Walks through all pages, and finds out whether there is something to hold against rows.
    fn look(&mut self, metadata: &ParquetMetaData) -> Found<()> {
        for (group, fields) in structs(&self.footer, 4, "the row groups")?.into_iter().enumerate() {
            known(fields, "a row group", &[1, 2, 3, 5, 6, 7])?;
            let chunks = structs(fields, 1, "the column chunks")?;
            if chunks.len() != self.columns.len() {
                return Err(format!("row group {group} has {} columns, not {}", chunks.len(), self.columns.len()));
            }
            for (at, (chunk, column)) in chunks.into_iter().zip(&mut self.columns).enumerate() {
                known(chunk, &column.name, &[2, 3, 4, 5, 6, 7])?;
                let chunk_metadata =
                    field(chunk, 3).and_then(Thrift::fields).ok_or("a column chunk has no metadata")?;
                known(chunk_metadata, &column.name, &[1, 2, 3, 4, 5, 6, 7, 9, 11, 12, 13, 14, 15, 16])?;
                walk(&self.blob, group, chunk_metadata, &mut column.pages)
                    .map_err(|why| format!("column {}, row group {group}: {why}", column.name))?;
                let bloom = match chunk_metadata.contains_key(&14) {
                    true => {
                        let decoded = metadata.row_group(group).column(at);
                        Some(Sbbf::read_from_column_chunk(decoded, &self.blob).ok().flatten().ok_or_else(|| {
                            format!("column {}, row group {group}: its bloom filter cannot be read", column.name)
                        })?)
                    }
                    false => None,
                };
                self.needs_rows |= bloom.is_some() || [12, 16].iter().any(|id| chunk_metadata.contains_key(id));
                self.needs_rows |= [4, 6].iter().any(|id| chunk.contains_key(id));
                column.blooms.push(bloom);
            }
        }
        let in_headers = |page: &Page| page.statistics.is_some() || page.counts.is_some();
        self.needs_rows |= self.columns.iter().any(|column| column.pages.iter().any(in_headers));
        Ok(())
    }

    /// Takes the next rows of the file.
    pub(super) fn take(&mut self, batch: &RecordBatch) {
        self.rows += batch.num_rows() as u64;
        if !self.needs_rows {
            return;
        }
        for column in &mut self.columns {
            let Some(values) = batch.column_by_name(&column.name) else { continue };
            column.take(values);
        }
    }

    /// Holds what the file says against the rows, all of which have been taken.
    pub(super) fn judge(self) -> Result<(), Fault> {
        self.hold().map_err(|why| fault(self.name, why))
    }

    fn hold(&self) -> Found<()> {
        equal("the footer's number of rows", field(&self.footer, 3), self.rows)?;
        let mut before = 0;
        for (group, fields) in structs(&self.footer, 4, "the row groups")?.into_iter().enumerate() {
            let rows = field(fields, 3).and_then(Thrift::int).and_then(|rows| u64::try_from(rows).ok());
            let rows = rows.ok_or_else(|| format!("row group {group} has no number of rows"))?;
            for (chunk, column) in structs(fields, 1, "the column chunks")?.into_iter().zip(&self.columns) {
                let located = |why: String| format!("column {}, row group {group}: {why}", column.name);
                self.hold_chunk(group, rows, chunk, column).map_err(located)?;
            }
            before += rows;
        }
        equal("the row groups' number of rows", Some(&Thrift::Int(i64::try_from(before).unwrap_or(-1))), self.rows)
    }

    fn hold_chunk(&self, group: usize, rows: u64, chunk: &Fields, column: &Column) -> Found<()> {
        let pages: Vec<&Page> = column.pages.iter().filter(|page| page.group == group).collect();
        let levels: u64 = pages.iter().map(|page| page.levels).sum();
        let metadata = field(chunk, 3).and_then(Thrift::fields).ok_or("it has no metadata")?;
        equal("the number of values", field(metadata, 5), levels)?;
        if column.list.is_none() && levels != rows {
            return Err(format!("the row group has {rows} rows, and its pages {levels}"));
        }
        if !self.needs_rows {
            return Ok(());
        }
        if column.lacks() {
            return Err("the page headers tell of more values than there are rows".to_owned());
        }
        if let Some((at, value)) = &column.missed
            && *at == group
        {
            return Err(format!("its bloom filter does not have {value}, which is there"));
        }
        let mut facts = Facts::default();
        pages.iter().for_each(|page| facts.add(&page.facts));
        if facts.rows != rows {
            return Err(format!("the row group says {rows} rows, and there are {}", facts.rows));
        }
        if let Some(statistics) = field(metadata, 12) {
            column.hold_statistics("the statistics", statistics, &facts)?;
        }
        if let Some(sizes) = field(metadata, 16) {
            let sizes = sizes.fields().ok_or("its size statistics are none")?;
            known(sizes, "the size statistics", &[1, 2, 3])?;
            if sizes.contains_key(&1) {
                equal("the bytes of its texts", field(sizes, 1), facts.bytes)?;
            }
            column.hold_levels(field(sizes, 2), field(sizes, 3), &[&facts])?;
        }
        for page in &pages {
            if let Some(statistics) = &page.statistics {
                column.hold_statistics("a page header", &Thrift::Struct(statistics.clone()), &page.facts)?;
            }
            if let Some((nulls, rows)) = page.counts {
                equal("a page header's number of nulls", Some(&Thrift::Int(nulls)), page.facts.nulls)?;
                equal("a page header's number of rows", Some(&Thrift::Int(rows)), page.facts.rows)?;
            }
        }
        if let Some(index) = self.index(chunk, 4, 5, "the offset index")? {
            column.hold_offsets(&index, &pages)?;
        }
        if let Some(index) = self.index(chunk, 6, 7, "the column index")? {
            column.hold_column_index(&index, &pages)?;
        }
        Ok(())
    }

    /// Reads an index of pages.
    fn index(&self, chunk: &Fields, offset: i16, length: i16, what: &str) -> Found<Option<Fields>> {
        let number = |id| field(chunk, id).and_then(Thrift::int).and_then(|number| u64::try_from(number).ok());
        let (offset, length) = match (number(offset), number(length)) {
            (None, None) if !chunk.contains_key(&offset) && !chunk.contains_key(&length) => return Ok(None),
            (Some(offset), Some(length)) if length <= MAX_INDEX => (offset, length),
            _ => return Err(format!("{what} has no place")),
        };
        let bytes = usize::try_from(length).ok().and_then(|length| self.blob.get_bytes(offset, length).ok());
        let bytes = bytes.ok_or_else(|| format!("{what} reaches beyond the file's end"))?;
        let read = read(&bytes).filter(|(_, taken)| *taken == bytes.len());
        read.map(|(fields, _)| Some(fields)).ok_or_else(|| format!("{what} cannot be read"))
    }
}

fn fault(name: SegmentName, why: String) -> Fault {
    Fault { kind: Kind::FalseStatistics, seq: Some(name.first), file: path(name), why }
}

fn field(fields: &Fields, id: i16) -> Option<&Thrift> {
    fields.get(&id)
}

fn equal(what: &str, told: Option<&Thrift>, truth: u64) -> Found<()> {
    match told.and_then(Thrift::int) {
        Some(told) if u64::try_from(told) == Ok(truth) => Ok(()),
        Some(told) => Err(format!("{what} is {told}, and there are {truth}")),
        None => Err(format!("{what} is not there")),
    }
}

/// Whether a struct has no fields but these. What else it says, nothing here can hold against the rows.
fn known(fields: &Fields, what: &str, ids: &[i16]) -> Found<()> {
    match fields.keys().find(|id| !ids.contains(id)) {
        Some(id) => Err(format!("{what}: field {id} says what cannot be held against the rows")),
        None => Ok(()),
    }
}

fn structs<'a>(fields: &'a Fields, id: i16, what: &str) -> Found<Vec<&'a Fields>> {
    let list = field(fields, id).and_then(Thrift::list);
    let structs = list.and_then(|list| list.iter().map(Thrift::fields).collect());
    structs.ok_or_else(|| format!("{what} are not there"))
}

/// The footer of the file, all of it.
fn footer(blob: &Blob) -> Found<Fields> {
    let cannot = || "the footer cannot be read".to_owned();
    let tail =
        blob.length().checked_sub(TAIL).and_then(|at| blob.get_bytes(at, TAIL as usize).ok()).ok_or_else(cannot)?;
    let length = tail.first_chunk().copied().map(u32::from_le_bytes).ok_or_else(cannot)?;
    let start = blob.length().checked_sub(TAIL + u64::from(length)).ok_or_else(cannot)?;
    let bytes = blob.get_bytes(start, length as usize).map_err(|_| cannot())?;
    read(&bytes).filter(|(_, taken)| *taken == bytes.len()).map(|(fields, _)| fields).ok_or_else(cannot)
}
